//! Inputs and effects of a claim.

use dormouse_format::keys::{Folder, ManifestNumber, Nonce};
use dormouse_format::manifest::Manifest;
use dormouse_protocol::{ErrorReply, LogId, Rev, Seq, Slot};

#[cfg(doc)]
use super::super::terms;
use super::super::{BaseObject, CreateResult, ManifestRead, Verified};
#[cfg(doc)]
use super::Claim;

/// Input of a [`Claim`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ClaimInput {
    /// The answer to [`ClaimEffect::List`].
    Listed(Folder),
    /// The answer to [`ClaimEffect::Get`].
    Got(ManifestRead),
    /// The authority allows the claim.
    Allowed,
    /// The authority rejects the claim, with this error for the caller.
    Refused(ErrorReply),
    /// The answer to [`ClaimEffect::Seal`]: the log's highest slot is a seal.
    Sealed,
    /// The answer to [`ClaimEffect::Restore`].
    Restored(Restored),
    /// The answer to [`ClaimEffect::Restore`] when an object that it needs does not exist, or when the entries do not
    /// join the base without a gap.
    ObjectMissing {
        /// The missing object.
        object: String,
    },
    /// The answer to [`ClaimEffect::PutBase`]: the object is complete in the bucket.
    BasePut(BaseObject),
    /// The answer to [`ClaimEffect::Create`].
    Created(CreateResult),
    /// The last effect failed, with this error for the caller: the bucket failed, an object does not match its
    /// checksum, or the disk is full.
    Failed(ErrorReply),
}

/// The state restored by [`ClaimEffect::Restore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Restored {
    /// Its rev.
    pub rev: Rev,
    /// The next seq for a message without a given one.
    pub next_seq: Seq,
    /// It holds an entry above the manifest's base ([`LogEntry::is_above`](dormouse_format::entry::LogEntry::is_above)), with or
    /// without operations.
    pub above_base: bool,
    /// A slot of this process's own log; from now on, no entry of the subject can be in a slot below it.
    pub first_slot: Slot,
    /// For the manifest that may follow: new each time.
    pub nonce: Nonce,
}

/// The log whose entries follow a base.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TailSource {
    /// None: the base holds everything.
    None,
    /// This process's own, from the manifest's first slot on.
    Own,
    /// This sealed log, from the manifest's first slot on. If it is an earlier log of this data directory, the stranded
    /// writes in the local write-ahead log above its last slot follow.
    Sealed(LogId),
}

/// The next effect of a [`Claim`], or its end. Exactly one effect is outstanding at any time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ClaimEffect {
    /// List the subject's folder.
    List,
    /// Read this manifest.
    Get(ManifestNumber),
    /// Ask the authority whether this process may claim the subject from `owner` (`None`: no owner).
    AskAuthority {
        /// The owner by the newest manifest.
        owner: Option<LogId>,
    },
    /// Seal this log, which may be sealed already.
    Seal(LogId),
    /// Restore the subject's state: everything from an earlier `Restore` is void.
    ///
    /// Use the local file, if `local::may_reuse` allows it. Otherwise apply, in this order: the snapshot, then the
    /// [`terms`], then the deltas. Without a snapshot, start with an empty state at the rev that the first delta
    /// follows, or at the base's, with the manifest's next seq and its
    /// [tombstone state](dormouse_format::manifest::TombstoneState). In both cases, then apply every entry of the tail
    /// that the state lacks, in order of rev.
    ///
    /// A reclamation may only read the entries of the tail above the base, and answer what the state would be: the base
    /// that it puts is a copy of them.
    Restore {
        /// The base; `None`: a new subject, empty at rev 0 and seq 1.
        manifest: Option<Box<Manifest>>,
        /// The log that follows it.
        tail: TailSource,
    },
    /// Upload the restored state as a snapshot, or everything in it above the manifest's base as a delta
    /// ([`claim_base_kind`](crate::ownership::claim_base_kind)), under a fresh name. A reclamation may also upload a
    /// [merged delta](BaseObject::MergedDelta).
    PutBase {
        /// For the object's name.
        made_for: ManifestNumber,
    },
    /// Create this manifest. Requested again after an unknown outcome, with the same bytes.
    Create(Box<Manifest>),
    /// The end: this process owns the subject. Serve the restored state under this manifest, unless the process's log
    /// is fenced.
    Serve(Verified),
    /// The end of a claim by [`Claim::reopen`]: the subject is not this process's own.
    NotOwned,
    /// The end of a claim for a reclamation.
    Reclaimed(ReclaimOutcome),
    /// The end: the claim has failed, with this error for the caller.
    GiveUp(ErrorReply),
}

/// Result of a claim for a reclamation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ReclaimOutcome {
    /// The subject needs nothing of the log, now and later.
    NotNeeded,
    /// It needs entries of the log; returned only in a dry run.
    Needed,
    /// With this manifest it no longer needs entries of the log.
    Released(Verified),
}
