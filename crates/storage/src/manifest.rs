//! The manifest: the numbered object that says who owns a subject and where its data is.
//!
//! A manifest is one line of JSON with its fields in a fixed order, the checksum last. The checksum is the CRC-64 of
//! the same line without it, taken over the bytes as they are, so that nothing has to be written again to be
//! checked, and one changed byte anywhere is noticed. The newest manifest of a folder counts; it is never changed
//! and never deleted, only followed by the next number.

mod past;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use dormouse_protocol::limits::REMEMBERED_TERMS;
use dormouse_protocol::{ErrorReply, LogId, Rev, Seq, Slot, Subject, Term};
use serde::{Deserialize, Serialize};

use crate::checksum::Crc64;
use crate::keys::SubjectKeys;
pub use past::{PastLife, PastSession};

pub use crate::keys::{DeltaName, ManifestNumber, Nonce, SnapshotName};

/// The newest format that this version reads, and that it writes where there is a [`PastLife`] to tell of.
pub const MANIFEST_FORMAT: u32 = 2;

/// The format without. Still written where it says everything, so that a version that knows no other goes on reading what
/// concerns it.
const FORMAT_WITHOUT_PAST: u32 = 1;

/// Says who owns a subject, under which term, and from which objects its state is rebuilt.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Manifest {
    /// The subject, by its full name: folder names of long subjects are hashes.
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
    /// What follows the snapshot (or the empty subject), in order, up to `base_rev`.
    pub deltas: Vec<DeltaRef>,
    /// The terms before this one that the snapshot does not know of yet, with the last rev that each inherited,
    /// ascending.
    pub terms: Vec<TermBase>,
    /// The owner has given the subject back: whoever comes next claims it without asking for the owner.
    pub released: bool,
    /// The subject was destroyed. A later claim goes on with term, rev and seq from here. Implies `released`.
    pub tombstone: bool,
    /// What is remembered of the life before a destroy: in the tombstone, and in what follows it until there is a
    /// snapshot. `None` also where an earlier version destroyed the subject.
    pub past: Option<PastLife>,
    /// Tells this manifest from any other that was meant to have its number.
    pub nonce: Nonce,
}

/// A manifest's reference to a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRef {
    /// The object's name in the subject's folder; tells its rev.
    pub name: SnapshotName,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The checksum of its bytes.
    pub crc64: Crc64,
}

impl SnapshotRef {
    /// The rev at which the snapshot holds the subject.
    #[must_use]
    pub const fn rev(&self) -> Rev {
        self.name.rev
    }
}

/// A manifest's reference to a delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeltaRef {
    /// The object's name in the subject's folder; tells the rev of its last entry.
    pub name: DeltaName,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The checksum of its bytes.
    pub crc64: Crc64,
}

impl DeltaRef {
    /// The rev up to which the delta leads.
    #[must_use]
    pub const fn rev(&self) -> Rev {
        self.name.rev
    }
}

/// A term and where it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TermBase {
    /// The term.
    pub term: Term,
    /// The last rev that it inherited.
    pub term_base: Rev,
}

/// Most deltas that hang on a snapshot.
pub const MAX_DELTAS: usize = 8;

/// Why an object is not the manifest it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The object is not what was written.
    #[error("{object}: {what}")]
    Corrupt {
        /// The object's key.
        object: String,
        /// What is wrong with it.
        what: String,
    },
    /// The object was written by a newer version, in a format that this one must not guess at.
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

/// What a caller of the engine is told. A newer object is no fault of the request, so it is not the wire's
/// `unsupported_version`: a newer server can serve the subject, this one cannot.
impl From<ManifestError> for ErrorReply {
    fn from(error: ManifestError) -> Self {
        match error {
            ManifestError::Corrupt { object, what } => Self::corrupt(object, what),
            ManifestError::UnsupportedVersion { .. } => Self::unavailable(error.to_string()),
        }
    }
}

/// The fields in the order of the file, without the checksum.
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
    past: &'a Option<PastLife>,
    nonce: Nonce,
}

/// The fields as they are read. A field that this format does not have is damage, not a newer version: that would
/// have a higher format number.
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
    past: Option<PastLife>,
    nonce: Nonce,
    #[serde(rename = "checksum")]
    _checksum: Crc64,
}

/// Just enough to tell which format the rest is in.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Between the body and the checksum's digits, and after them.
const CHECKSUM_FIELD: &str = ",\"checksum\":\"";
const CHECKSUM_END: &str = "\"}";

impl Manifest {
    /// The manifest's bytes. The same manifest always has the same bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let body = Body {
            format: if self.past.is_some() { MANIFEST_FORMAT } else { FORMAT_WITHOUT_PAST },
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
            past: &self.past,
            nonce: self.nonce,
        };
        // Strings, numbers and booleans under fixed names: nothing in it can fail to become JSON.
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
    /// [`ManifestError::Corrupt`] when the bytes are not what [`Manifest::encode`] wrote for this subject and number,
    /// [`ManifestError::UnsupportedVersion`] when a newer version wrote them.
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
    /// Checks what one field says against the others and against where the object was found.
    fn into_manifest(self, subject: &Subject, number: ManifestNumber) -> Result<Manifest, String> {
        if self.subject != *subject {
            return Err(format!("belongs to the subject {}", self.subject));
        }
        if self.n != number {
            return Err(format!("says that it is {}", self.n));
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
            past: self.past,
            nonce: self.nonce,
        };
        match manifest.contradiction() {
            Some(what) => Err(format!("{what}: its fields contradict each other")),
            None => Ok(manifest),
        }
    }
}

impl Manifest {
    /// What no manifest of this format says, if this one says it: it is refused when it is read, so it must never be
    /// written.
    pub(crate) fn contradiction(&self) -> Option<&'static str> {
        let zero = self.term == Term::default() || self.next_seq == Seq::default();
        if zero || self.number < ManifestNumber::FIRST {
            return Some("counts from zero");
        }
        if self.term_base > self.base_rev {
            return Some("inherits more than it has");
        }
        if self.tombstone && (!self.released || !self.terms.is_empty()) {
            return Some("is a tombstone that goes on");
        }
        let of_past = || self.past.as_ref().and_then(|past| past.contradiction(self));
        self.contradiction_of_base().or_else(|| self.contradiction_of_terms()).or_else(of_past)
    }

    /// What the base refers to must have been made for it, one object for each manifest, and lead up to it.
    fn contradiction_of_base(&self) -> Option<&'static str> {
        let snapshot = self.snapshot.iter().map(|snapshot| (snapshot.name.made_for, snapshot.rev()));
        let deltas = self.deltas.iter().map(|delta| (delta.name.made_for, delta.rev()));
        let objects: Vec<_> = snapshot.chain(deltas).collect();
        let Some((made_for, rev)) = objects.last() else {
            // An empty state: that of a new subject, or of one that was destroyed at the rev it inherited.
            let empty = self.tombstone || self.base_rev == self.term_base;
            return (!empty).then_some("has a base without an object");
        };
        if self.tombstone {
            return Some("is a tombstone with data");
        }
        if self.deltas.len() > MAX_DELTAS {
            return Some("refers to more deltas than there may be");
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
        if self.terms.len() > REMEMBERED_TERMS {
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
