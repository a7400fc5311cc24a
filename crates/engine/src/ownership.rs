//! Ownership of subjects, decided by machines without side effects.
//!
//! A process serves a subject only while the subject's newest manifest names the process's log and is not released.
//!
//! | module | decides |
//! |---|---|
//! | [`claim`] | the claim of a subject: from the newest manifest, over the seal of its owner's log, to the next manifest |
//! | [`publish`] | an owner's next manifest: a newer base, a release, a destroy |
//! | [`reclaim`] | the reclamation of an orphaned log |
//! | [`garbage`] | the objects that may be deleted |
//! | `local` | the local files and writes of an earlier run that are still usable |
//!
//! The driver of a machine performs each effect and answers with its input. The machines hold no clock, no randomness
//! and no payload, and can be cloned, compared and hashed: the model checker explores the same code that runs in
//! production. Therefore they are public: outside this crate, only the model uses them.
//!
//! A machine belongs to one log of the process that drives it. When that log is fenced, every machine created for it is
//! dropped, and no late answer to one of its effects may be used.

pub mod claim;
pub mod garbage;
pub(crate) mod local;
pub mod publish;
pub mod reclaim;
#[cfg(test)]
mod testing;

use bytes::Bytes;
use dormouse_format::keys::{BlobName, BucketKey, Folder, ManifestNumber, SubjectKeys};
use dormouse_format::manifest::{DeltaRef, MAX_DELTAS, Manifest, SnapshotRef, TermBase};
use dormouse_protocol::limits::TERM_HISTORY;
use dormouse_protocol::{ErrorReply, Rev, Seq, Slot, Subject};

use dormouse_bucket::{BucketError, CreateOutcome};

/// Result of a manifest create.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CreateResult {
    /// The manifest under this number is the one that was sent.
    Ours,
    /// The number has another manifest, which stays.
    Foreign,
    /// The outcome is unknown, for this reason. The manifest may exist, or appear later.
    Unknown(ErrorReply),
}

impl CreateResult {
    /// Reads the result of [`create_once`](dormouse_bucket::create_once). An error is definite: nothing was created.
    ///
    /// # Errors
    /// That error, as an [`ErrorReply`].
    pub fn of(result: Result<CreateOutcome, BucketError>) -> Result<Self, ErrorReply> {
        match result {
            Ok(CreateOutcome::Ours) => Ok(Self::Ours),
            Ok(CreateOutcome::Foreign) => Ok(Self::Foreign),
            Ok(CreateOutcome::Unknown(error)) => Ok(Self::Unknown(ErrorReply::from(&error))),
            Err(error) => Err(ErrorReply::from(&error)),
        }
    }
}

/// Result of reading a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ManifestRead {
    /// The manifest.
    Manifest(Box<Manifest>),
    /// No object, or no longer.
    Missing,
    /// An object that is damaged, or written by a newer version.
    Unreadable(ErrorReply),
}

impl ManifestRead {
    /// Decodes the object that the bucket holds under `number` of `subject`.
    #[must_use]
    pub fn read(subject: &Subject, number: ManifestNumber, bytes: Option<Bytes>) -> Self {
        match bytes.map(|bytes| Manifest::decode(subject, number, &bytes)) {
            None => Self::Missing,
            Some(Ok(manifest)) => Self::Manifest(Box::new(manifest)),
            Some(Err(error)) => Self::Unreadable(error.into()),
        }
    }
}

/// An object that is complete in the bucket and becomes the end of a manifest's base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BaseObject {
    /// The whole state.
    Snapshot(SnapshotRef),
    /// Every entry above the previous base, without omissions.
    Delta(DeltaRef),
    /// The same, after every entry of the previous base's deltas, which it replaces.
    MergedDelta(DeltaRef),
}

impl BaseObject {
    /// The rev at its end.
    #[must_use]
    pub const fn rev(&self) -> Rev {
        match self {
            Self::Snapshot(snapshot) => snapshot.name.rev,
            Self::Delta(delta) | Self::MergedDelta(delta) => delta.name.rev,
        }
    }

    /// The manifest that it was made for.
    #[must_use]
    pub const fn made_for(&self) -> ManifestNumber {
        match self {
            Self::Snapshot(snapshot) => snapshot.name.made_for,
            Self::Delta(delta) | Self::MergedDelta(delta) => delta.name.made_for,
        }
    }

    /// Adds it to the end of the base of `manifest`. A snapshot includes every term up to the one in which it was
    /// taken, and the tombstone state.
    fn extend(self, manifest: &mut Manifest) {
        manifest.base_rev = self.rev();
        match self {
            Self::Snapshot(snapshot) => {
                manifest.snapshot = Some(snapshot);
                manifest.deltas.clear();
                manifest.terms.clear();
                manifest.tombstone_state = None;
            }
            Self::Delta(delta) => manifest.deltas.push(delta),
            Self::MergedDelta(delta) => manifest.deltas = vec![delta],
        }
    }
}

/// A new base that the owner publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NewBase {
    /// The uploaded object, made for the number after the current manifest's.
    pub object: BaseObject,
    /// Every entry that it lacks is or will be in the owner's log from this slot on.
    pub first_slot: Slot,
    /// The next seq for a message without a given one, as of its rev.
    pub next_seq: Seq,
}

/// A manifest that a listing has shown to be the newest after it was read or created.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Verified {
    /// The manifest.
    pub manifest: Box<Manifest>,
    /// The unreferenced objects, by the rule of [`garbage::objects`].
    pub garbage: Vec<BucketKey>,
    /// The blobs that the listing showed. The owner decides by [`garbage::blobs`] which of them to delete.
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

/// Minimum size that a snapshot counts for, in bytes: the file of an empty state has about this size.
const SMALLEST_SNAPSHOT_BYTES: u64 = 64 * 1_024;

/// The kind of the base that an owner makes after `manifest`, with `tail_bytes` of entries above it. It is a delta while the
/// deltas together stay under a quarter of the snapshot's size and are not too many.
#[must_use]
pub fn base_kind(manifest: &Manifest, tail_bytes: u64) -> BaseKind {
    let deltas = &manifest.deltas;
    let snapshot = manifest.snapshot.map_or(0, |snapshot| snapshot.size_bytes);
    let deltas_bytes = deltas.iter().map(|delta| delta.size_bytes).fold(tail_bytes, u64::saturating_add);
    let small = deltas_bytes <= snapshot.max(SMALLEST_SNAPSHOT_BYTES) / 4;
    if small && deltas.len() < MAX_DELTAS { BaseKind::Delta } else { BaseKind::Snapshot }
}

/// The kind of the base that a claim makes after `manifest`: a delta of any size, unless there are too many. `None`: the
/// subject is new.
#[must_use]
pub fn claim_base_kind(manifest: Option<&Manifest>) -> BaseKind {
    let deltas = manifest.map_or(0, |manifest| manifest.deltas.len());
    if deltas < MAX_DELTAS { BaseKind::Delta } else { BaseKind::Snapshot }
}

/// The terms that a state rebuilt from `manifest` knows besides those in its snapshot, ascending: the state must add
/// them before the first entry above the snapshot. The feeds of a destroyed subject start again, so the terms before it
/// are unknown.
#[must_use]
pub fn terms(manifest: &Manifest) -> Vec<TermBase> {
    if manifest.tombstone {
        return Vec::new();
    }
    let own = TermBase { term: manifest.term, term_base: manifest.term_base };
    let mut terms: Vec<_> = manifest.terms.iter().copied().chain([own]).collect();
    terms.drain(..terms.len().saturating_sub(TERM_HISTORY));
    terms
}

/// Whether `manifest`, which was read before this listing, is its newest. The newest manifest is never deleted, so an
/// equal number means the same manifest. A listing proves only the past.
#[must_use]
pub fn is_newest(folder: &Folder, manifest: &Manifest) -> bool {
    folder.newest() == Some(manifest.number)
}

/// No manifest can follow `manifest`: see [`Manifest::is_last`].
fn no_successor(manifest: &Manifest) -> ErrorReply {
    ErrorReply::corrupt(
        SubjectKeys::new(&manifest.subject).manifest(manifest.number).to_string(),
        "its number or its term is so high that no manifest can follow it",
    )
}

/// A listing lacks an object that certainly exists.
fn contract_broken(manifest: &Manifest) -> ErrorReply {
    ErrorReply::corrupt(
        SubjectKeys::new(&manifest.subject).manifest(manifest.number).to_string(),
        "written or read before, but missing from a listing: the bucket violates its contract",
    )
}
