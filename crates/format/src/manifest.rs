//! The manifest: the numbered object that names the owner of a subject and the objects with its data.
//!
//! A manifest is one line of JSON with its fields in a fixed order, the checksum last. The checksum is the CRC-64 of
//! the same line without the checksum, over the exact bytes. So a check needs no new encoding, and it detects every
//! changed byte. The newest manifest of a folder is the valid one. It is never changed and never deleted; the manifest
//! with the next number replaces it.

#[cfg(test)]
mod tests;
mod tombstone;

use bytes::Bytes;
use dormouse_protocol::limits::TERM_HISTORY;
use dormouse_protocol::{ErrorReply, LogId, Rev, Seq, Slot, Subject, Term};
use serde::{Deserialize, Serialize};

use crate::checksum::Crc64;
use crate::keys::SubjectKeys;
pub use tombstone::{TombstoneSession, TombstoneState};

pub use crate::keys::{DeltaName, ManifestNumber, Nonce, SnapshotName};

/// The newest format that this version reads. It writes this format if the manifest has a [`TombstoneState`].
pub const MANIFEST_FORMAT: u32 = 2;

/// The format without a [`TombstoneState`]. Still written if there is none, so that a version that knows only this
/// format can read the manifest.
const FORMAT_WITHOUT_PAST: u32 = 1;

/// Names the owner of a subject, its term, and the objects from which its state is rebuilt.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Manifest {
    /// The subject's full name: folder names of long subjects are hashes.
    pub subject: Subject,
    /// The manifest's number.
    pub number: ManifestNumber,
    /// The term under which the owner serves.
    pub term: Term,
    /// The last rev that the term inherited from the one before.
    pub term_base: Rev,
    /// The log of the process that owns the subject, or owned it until it released it.
    pub owner: LogId,
    /// The rev up to which the objects named here hold every change.
    pub base_rev: Rev,
    /// The seq that a message without one gets next, as of `base_rev`.
    pub next_seq: Seq,
    /// Entries above `base_rev` are in the owner's log from this slot on.
    pub first_slot: Slot,
    /// The snapshot; `None` while the subject has none.
    pub snapshot: Option<SnapshotRef>,
    /// The deltas above the snapshot (or the empty subject), in order, up to `base_rev`.
    pub deltas: Vec<DeltaRef>,
    /// Earlier terms that the snapshot does not contain yet, each with the last rev that it inherited, ascending.
    pub terms: Vec<TermBase>,
    /// The owner has released the subject: the next claim does not depend on the owner.
    pub released: bool,
    /// The subject was destroyed. A later claim continues with term, rev and seq from here. Implies `released`.
    pub tombstone: bool,
    /// State that survives a destroy: present in the tombstone, and in the manifests after it until there is a
    /// snapshot. Also `None` if an earlier version destroyed the subject.
    pub tombstone_state: Option<TombstoneState>,
    /// Distinguishes this manifest from any other that was meant to have its number.
    pub nonce: Nonce,
}

/// A manifest's reference to a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRef {
    /// The object's name in the subject's folder; contains its rev.
    pub name: SnapshotName,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The checksum of its bytes.
    pub crc64: Crc64,
}

impl SnapshotRef {
    /// The rev of the subject's state in the snapshot.
    #[must_use]
    pub const fn rev(&self) -> Rev {
        self.name.rev
    }
}

/// A manifest's reference to a delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeltaRef {
    /// The object's name in the subject's folder; contains the rev of its last entry.
    pub name: DeltaName,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The checksum of its bytes.
    pub crc64: Crc64,
}

impl DeltaRef {
    /// The rev of the delta's last entry.
    #[must_use]
    pub const fn rev(&self) -> Rev {
        self.name.rev
    }
}

/// A term and the rev where it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TermBase {
    /// The term.
    pub term: Term,
    /// The last rev that it inherited.
    pub term_base: Rev,
}

/// Maximum number of deltas on one snapshot.
pub const MAX_DELTAS: usize = 8;

/// Why a manifest cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The object is damaged.
    #[error("{object}: {what}")]
    Corrupt {
        /// The object's key.
        object: String,
        /// What is wrong with it.
        what: String,
    },
    /// A newer version wrote the object, in a format that this version does not know.
    #[error(
        "{object}: written in manifest format {format}, the newest that this version reads is {MANIFEST_FORMAT}"
    )]
    UnsupportedVersion {
        /// The object's key.
        object: String,
        /// The format that it is written in.
        format: u32,
    },
}

/// The error reply to a caller of the engine. A newer object is no error of the request, so the code is not
/// `unsupported_version`: a newer server can serve the subject, this one cannot.
impl From<ManifestError> for ErrorReply {
    fn from(error: ManifestError) -> Self {
        match error {
            ManifestError::Corrupt { object, what } => Self::corrupt(object, what),
            ManifestError::UnsupportedVersion { .. } => Self::unavailable(error.to_string()),
        }
    }
}

/// The fields in the order of the object, without the checksum.
#[derive(Serialize)]
struct Body<'a> {
    format: u32,
    subject: &'a Subject,
    n: ManifestNumber,
    term: Term,
    term_base: Rev,
    owner: &'a LogId,
    base_rev: Rev,
    next_seq: Seq,
    first_slot: Slot,
    snapshot: &'a Option<SnapshotRef>,
    deltas: &'a [DeltaRef],
    terms: &'a [TermBase],
    released: bool,
    tombstone: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    past: &'a Option<TombstoneState>,
    nonce: Nonce,
}

/// The fields as they are read. An unknown field is damage: a newer version would have a higher format number.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    format: u32,
    subject: Subject,
    n: ManifestNumber,
    term: Term,
    term_base: Rev,
    owner: LogId,
    base_rev: Rev,
    next_seq: Seq,
    first_slot: Slot,
    snapshot: Option<SnapshotRef>,
    deltas: Vec<DeltaRef>,
    terms: Vec<TermBase>,
    released: bool,
    tombstone: bool,
    past: Option<TombstoneState>,
    nonce: Nonce,
    #[serde(rename = "checksum")]
    _checksum: Crc64,
}

/// Only the format number, to select the format of the other fields.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Between the body and the checksum's digits, and after them.
const CHECKSUM_FIELD: &str = ",\"checksum\":\"";
const CHECKSUM_END: &str = "\"}";

impl Manifest {
    /// Encodes the manifest. The same manifest always has the same bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let body = Body {
            format: if self.tombstone_state.is_some() { MANIFEST_FORMAT } else { FORMAT_WITHOUT_PAST },
            subject: &self.subject,
            n: self.number,
            term: self.term,
            term_base: self.term_base,
            owner: &self.owner,
            base_rev: self.base_rev,
            next_seq: self.next_seq,
            first_slot: self.first_slot,
            snapshot: &self.snapshot,
            deltas: &self.deltas,
            terms: &self.terms,
            released: self.released,
            tombstone: self.tombstone,
            past: &self.tombstone_state,
            nonce: self.nonce,
        };
        // It holds strings, numbers and booleans under fixed names, so the encoding cannot fail.
        let mut text = serde_json::to_string(&body).expect("a manifest is always valid JSON");
        let checksum = Crc64::of(text.as_bytes());
        text.pop();
        text.push_str(CHECKSUM_FIELD);
        text.push_str(&checksum.to_string());
        text.push_str(CHECKSUM_END);
        text.into()
    }

    /// Reads manifest `number` of `subject`.
    ///
    /// # Errors
    /// [`ManifestError::Corrupt`] if the bytes are not the encoding of a manifest of this subject and number,
    /// [`ManifestError::UnsupportedVersion`] if a newer version wrote them.
    pub fn decode(subject: &Subject, number: ManifestNumber, bytes: &[u8]) -> Result<Self, ManifestError> {
        let object = SubjectKeys::new(subject).manifest(number).to_string();
        let corrupt = |what: String| ManifestError::Corrupt { object: object.clone(), what };
        let Format { format } =
            serde_json::from_slice(bytes).map_err(|error| corrupt(format!("not a manifest: {error}")))?;
        if format > MANIFEST_FORMAT {
            return Err(ManifestError::UnsupportedVersion { object, format });
        }
        if format < FORMAT_WITHOUT_PAST {
            return Err(corrupt(format!("format {format} never existed")));
        }
        verify_checksum(bytes).map_err(|what| corrupt(what.to_owned()))?;
        let wire: Wire = serde_json::from_slice(bytes)
            .map_err(|error| corrupt(format!("not a manifest of format {format}: {error}")))?;
        wire.into_manifest(subject, number).map_err(corrupt)
    }
}

fn verify_checksum(bytes: &[u8]) -> Result<(), &'static str> {
    const TAIL_BYTES: usize = CHECKSUM_FIELD.len() + 16 + CHECKSUM_END.len();
    const NO_CHECKSUM: &str = "does not end in a checksum";
    let body_bytes = bytes.len().checked_sub(TAIL_BYTES).ok_or(NO_CHECKSUM)?;
    let (body, tail) = bytes.split_at(body_bytes);
    let stated: Crc64 = std::str::from_utf8(tail)
        .ok()
        .and_then(|tail| tail.strip_prefix(CHECKSUM_FIELD)?.strip_suffix(CHECKSUM_END)?.parse().ok())
        .ok_or(NO_CHECKSUM)?;
    if Crc64::of(&[body, b"}"].concat()) == stated { Ok(()) } else { Err("wrong checksum") }
}

impl Wire {
    /// Checks the fields against each other and against the object's key.
    fn into_manifest(self, subject: &Subject, number: ManifestNumber) -> Result<Manifest, String> {
        if self.subject != *subject {
            return Err(format!("belongs to the subject {}", self.subject));
        }
        if self.n != number {
            return Err(format!("contains the number of {}", self.n));
        }
        if (self.format == MANIFEST_FORMAT) != self.past.is_some() {
            return Err("has fields of another format".to_owned());
        }
        let manifest = Manifest {
            subject: self.subject,
            number: self.n,
            term: self.term,
            term_base: self.term_base,
            owner: self.owner,
            base_rev: self.base_rev,
            next_seq: self.next_seq,
            first_slot: self.first_slot,
            snapshot: self.snapshot,
            deltas: self.deltas,
            terms: self.terms,
            released: self.released,
            tombstone: self.tombstone,
            tombstone_state: self.past,
            nonce: self.nonce,
        };
        match manifest.contradiction() {
            Some(what) => Err(format!("{what}: its fields contradict each other")),
            None => Ok(manifest),
        }
    }
}

impl Manifest {
    /// Whether no claim can follow this manifest, because its number or its term is the last but one. Only damage leads
    /// there.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.number.next() >= ManifestNumber::LAST || self.term.next().get() == u64::MAX
    }

    /// The size of the base's objects together, in bytes.
    #[must_use]
    pub fn base_bytes(&self) -> u64 {
        let snapshot = self.snapshot.map_or(0, |snapshot| snapshot.size_bytes);
        self.deltas.iter().map(|delta| delta.size_bytes).fold(snapshot, u64::saturating_add)
    }

    /// The contradiction in this manifest, if there is one. Decoding rejects such a manifest, so it must never be
    /// written.
    #[must_use]
    pub fn contradiction(&self) -> Option<&'static str> {
        let zero = self.term == Term::default() || self.next_seq == Seq::default();
        if zero || self.number < ManifestNumber::FIRST {
            return Some("counts from zero");
        }
        let counters = [self.term.get(), self.base_rev.get(), self.next_seq.get(), self.first_slot.get()];
        if self.number >= ManifestNumber::LAST || counters.contains(&u64::MAX) {
            return Some("has a last number, which nothing can follow");
        }
        if self.term_base > self.base_rev {
            return Some("has a term_base above its base_rev");
        }
        if self.tombstone && (!self.released || !self.terms.is_empty()) {
            return Some("is a tombstone that is not final");
        }
        let of_past = || self.tombstone_state.as_ref().and_then(|past| past.contradiction(self));
        self.contradiction_of_base().or_else(|| self.contradiction_of_terms()).or_else(of_past)
    }

    /// The objects of the base must have been made for this or earlier manifests, one for each manifest, and reach the
    /// base rev.
    fn contradiction_of_base(&self) -> Option<&'static str> {
        let snapshot = self.snapshot.iter().map(|snapshot| (snapshot.name.made_for, snapshot.rev()));
        let deltas = self.deltas.iter().map(|delta| (delta.name.made_for, delta.rev()));
        let objects: Vec<_> = snapshot.chain(deltas).collect();
        let Some((made_for, rev)) = objects.last() else {
            // An empty state: of a new subject, or of one that was destroyed at the rev that the term inherited.
            let empty = self.tombstone || self.base_rev == self.term_base;
            return (!empty).then_some("has a base without an object");
        };
        if self.tombstone {
            return Some("is a tombstone with data");
        }
        if self.deltas.len() > MAX_DELTAS {
            return Some("refers to more deltas than allowed");
        }
        if !objects.is_sorted_by(|one, next| one.0 < next.0 && one.1 <= next.1) {
            return Some("refers to a snapshot and deltas that do not follow each other");
        }
        if *made_for > self.number {
            return Some("refers to an object that was not made for it");
        }
        (*rev != self.base_rev).then_some("refers to objects that do not lead up to its base")
    }

    fn contradiction_of_terms(&self) -> Option<&'static str> {
        if self.terms.len() > TERM_HISTORY {
            return Some("names more terms than are remembered");
        }
        let ascending =
            self.terms.is_sorted_by(|one, next| one.term < next.term && one.term_base <= next.term_base);
        let earlier =
            self.terms.last().is_none_or(|last| last.term < self.term && last.term_base <= self.term_base);
        let counted = self.terms.iter().all(|term| term.term != Term::default());
        (!ascending || !earlier || !counted).then_some("names terms that do not precede its own")
    }
}
