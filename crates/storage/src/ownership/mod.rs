//! Who owns a subject, decided by machines that do nothing themselves.
//!
//! A process serves a subject only while the subject's newest manifest names the process's log and is not released.
//!
//! | module | decides |
//! |---|---|
//! | [`claim`] | how a subject comes to be owned: from the newest manifest, over the seal of its owner's log, to the next |
//! | [`publish`] | how an owner takes a subject from one manifest to the next: a newer base, a release, the end |
//! | [`drain`] | how the log of a process that is gone is emptied |
//! | [`garbage`] | what may be deleted |
//! | [`local`] | what is left on the local disk and may still be used |
//!
//! Whoever drives a machine performs each effect and answers with the input that belongs to it. The machines hold no
//! clock, no chance and no payload, and can be cloned, compared and hashed: the model checker explores the very ones
//! that run in production.
//!
//! A machine belongs to one log of the process that drives it. When that log has met its seal, every machine that was
//! begun for it is dropped, and no late answer to one of its effects may be used.

pub mod claim;
pub mod drain;
pub mod garbage;
pub mod local;
pub mod publish;
#[cfg(test)]
mod testing;

use bytes::Bytes;
use dormouse_protocol::limits::REMEMBERED_TERMS;
use dormouse_protocol::{ErrorReply, Rev, Seq, Slot, Subject};

use crate::bucket::{BucketError, BucketKey, CreateOutcome};
use crate::keys::{BlobName, Folder, ManifestNumber, SubjectKeys};
use crate::manifest::{DeltaRef, MAX_DELTAS, Manifest, SnapshotRef, TermBase};

/// How the creation of a manifest ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Creation {
    /// The manifest under this number is the one that was sent.
    Ours,
    /// The number has another manifest, which stays.
    Anothers,
    /// Not known, and this is why. The manifest may be there, or appear later.
    Unknown(ErrorReply),
}

impl Creation {
    /// Reads the result of [`create_once`](crate::bucket::create_once). An error is definite: nothing was created.
    ///
    /// # Errors
    /// That error, as a caller is told.
    pub fn of(result: Result<CreateOutcome, BucketError>) -> Result<Self, ErrorReply> {
        match result {
            Ok(CreateOutcome::Ours) => Ok(Self::Ours),
            Ok(CreateOutcome::Anothers) => Ok(Self::Anothers),
            Ok(CreateOutcome::Unknown(error)) => Ok(Self::Unknown(ErrorReply::from(&error))),
            Err(error) => Err(ErrorReply::from(&error)),
        }
    }
}

/// What was found where a manifest was to be read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Found {
    /// The manifest.
    Manifest(Box<Manifest>),
    /// No object (any more).
    Missing,
    /// An object that is damaged, or written by a newer version.
    Unreadable(ErrorReply),
}

impl Found {
    /// Reads what the bucket holds under `number` of `subject`.
    #[must_use]
    pub fn read(subject: &Subject, number: ManifestNumber, bytes: Option<Bytes>) -> Self {
        match bytes.map(|bytes| Manifest::decode(subject, number, &bytes)) {
            None => Self::Missing,
            Some(Ok(manifest)) => Self::Manifest(Box::new(manifest)),
            Some(Err(error)) => Self::Unreadable(error.into()),
        }
    }
}

/// An object that is complete in the bucket and is to become the end of a manifest's base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BaseObject {
    /// The whole state.
    Snapshot(SnapshotRef),
    /// Every entry above the base before, nothing left out.
    Delta(DeltaRef),
}

impl BaseObject {
    /// The rev up to which it leads.
    #[must_use]
    pub const fn rev(&self) -> Rev {
        match self {
            Self::Snapshot(snapshot) => snapshot.name.rev,
            Self::Delta(delta) => delta.name.rev,
        }
    }

    /// The manifest that it was made for.
    #[must_use]
    pub const fn made_for(&self) -> ManifestNumber {
        match self {
            Self::Snapshot(snapshot) => snapshot.name.made_for,
            Self::Delta(delta) => delta.name.made_for,
        }
    }

    /// Puts it at the end of the base of `manifest`. A snapshot knows of every term up to the one it was taken in,
    /// and of the life before.
    fn extend(self, manifest: &mut Manifest) {
        manifest.base_rev = self.rev();
        match self {
            Self::Snapshot(snapshot) => {
                manifest.snapshot = Some(snapshot);
                manifest.deltas.clear();
                manifest.terms.clear();
                manifest.past = None;
            }
            Self::Delta(delta) => manifest.deltas.push(delta),
        }
    }
}

/// A base that its owner publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NewBase {
    /// What was uploaded, made for the number after the current manifest's.
    pub object: BaseObject,
    /// Every entry that it lacks is in the owner's log from this slot on, or will be.
    pub first_slot: Slot,
    /// The seq that a message without one gets next, as of its rev.
    pub next_seq: Seq,
}

/// A manifest that a listing has shown to be the newest after it was read or created.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Verified {
    /// The manifest.
    pub manifest: Box<Manifest>,
    /// What nothing refers to any more, by the rule of [`garbage::objects`].
    pub garbage: Vec<BucketKey>,
    /// The large values that the listing showed. Which of them may go, the owner decides by [`garbage::blobs`].
    pub blobs: Vec<BlobName>,
}

impl Verified {
    fn new(manifest: Box<Manifest>, folder: Folder) -> Self {
        Self { garbage: garbage::objects(&folder, &manifest), blobs: folder.blobs, manifest }
    }
}

/// Whether the next base is a snapshot or a delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BaseKind {
    /// A snapshot.
    Snapshot,
    /// A delta.
    Delta,
}

/// The size that a snapshot counts for at least, in bytes: a file with an empty state has about as many.
const SMALLEST_SNAPSHOT_BYTES: u64 = 64 * 1_024;

/// What the next base after `manifest` shall be, when `tail_bytes` of entries are above it: a delta while the deltas
/// together stay under a quarter of the snapshot and there are not too many of them. `None`: the subject is new.
#[must_use]
pub fn base_kind(manifest: Option<&Manifest>, tail_bytes: u64) -> BaseKind {
    let deltas = manifest.map_or(&[][..], |manifest| &manifest.deltas);
    let snapshot = manifest.and_then(|manifest| manifest.snapshot).map_or(0, |snapshot| snapshot.size_bytes);
    let deltas_bytes = deltas.iter().map(|delta| delta.size_bytes).fold(tail_bytes, u64::saturating_add);
    let small = deltas_bytes <= snapshot.max(SMALLEST_SNAPSHOT_BYTES) / 4;
    if small && deltas.len() < MAX_DELTAS { BaseKind::Delta } else { BaseKind::Snapshot }
}

/// The terms that a state rebuilt from `manifest` knows of besides those in its snapshot, ascending: what the state
/// has to take in before the first entry above the snapshot. The feeds of a destroyed subject begin anew, so of those
/// before it none is known.
#[must_use]
pub fn terms(manifest: &Manifest) -> Vec<TermBase> {
    if manifest.tombstone {
        return Vec::new();
    }
    let own = TermBase { term: manifest.term, term_base: manifest.term_base };
    let mut terms: Vec<_> = manifest.terms.iter().copied().chain([own]).collect();
    terms.drain(..terms.len().saturating_sub(REMEMBERED_TERMS));
    terms
}

/// Is `manifest`, which was read before this listing, its newest? The newest manifest is never deleted, so where the
/// number is the same, so is the manifest. A listing proves only the past.
#[must_use]
pub fn is_newest(folder: &Folder, manifest: &Manifest) -> bool {
    folder.newest() == Some(manifest.number)
}

/// A listing that lacks what is certainly there.
fn contract_broken(manifest: &Manifest) -> ErrorReply {
    ErrorReply::corrupt(
        SubjectKeys::new(&manifest.subject).manifest(manifest.number).to_string(),
        "written or read, but a listing does not show it: the bucket does not keep its contract",
    )
}
