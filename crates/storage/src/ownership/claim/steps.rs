//! What a claim is told, and what it wants.

use dormouse_protocol::{ErrorReply, LogId, Rev, Seq, Slot};

#[cfg(doc)]
use super::super::terms;
use super::super::{BaseObject, Creation, Found, Verified};
#[cfg(doc)]
use super::Claim;
use crate::keys::{Folder, ManifestNumber, Nonce};
use crate::manifest::Manifest;

/// What a [`Claim`] is told.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ClaimInput {
    /// The answer to [`ClaimEffect::List`].
    Listed(Folder),
    /// The answer to [`ClaimEffect::Get`].
    Got(Found),
    /// The authority allows the claim.
    Allowed,
    /// The authority does not, and this is what the caller is told.
    Refused(ErrorReply),
    /// The answer to [`ClaimEffect::Seal`]: the log's highest slot is a seal.
    Sealed,
    /// The answer to [`ClaimEffect::Restore`].
    Restored(Restored),
    /// The answer to [`ClaimEffect::Restore`] when an object that it needs does not exist, or when the entries found
    /// do not join the base without a hole.
    ObjectMissing {
        /// What was looked for.
        object: String,
    },
    /// The answer to [`ClaimEffect::PutBase`]: the object is complete in the bucket.
    BasePut(BaseObject),
    /// The answer to [`ClaimEffect::Create`].
    Created(Creation),
    /// What was asked cannot be done, and this is what the caller is told: the bucket failed, an object is not what
    /// its checksum says, the disk is full.
    Failed(ErrorReply),
}

/// The state that a [`ClaimEffect::Restore`] has brought here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Restored {
    /// Its rev.
    pub rev: Rev,
    /// The seq that a message without one gets next.
    pub next_seq: Seq,
    /// It holds an entry above the manifest's base ([`Entry::is_above`](crate::entry::Entry::is_above)), with or without
    /// operations.
    pub above_base: bool,
    /// A slot of this process's own log below which nothing of the subject can come to lie from now on.
    pub first_slot: Slot,
    /// For the manifest that may follow: fresh each time.
    pub nonce: Nonce,
}

/// Which log's entries belong on top of a base.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Tail {
    /// None: the base holds everything.
    None,
    /// This process's own, from the manifest's first slot on.
    Own,
    /// This sealed one, from the manifest's first slot on; then, where it was an earlier log of this very data
    /// directory, what the local write-ahead log still holds above its last slot.
    Sealed(LogId),
}

/// What a [`Claim`] wants next, or how it ended. Exactly one effect is outstanding at any time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ClaimEffect {
    /// List the subject's folder.
    List,
    /// Read this manifest.
    Get(ManifestNumber),
    /// Ask the authority whether this process may claim the subject from `owner` (`None`: nobody's).
    AskAuthority {
        /// The owner by the newest manifest.
        owner: Option<LogId>,
    },
    /// Seal this log, which may be sealed already.
    Seal(LogId),
    /// Bring the subject's state here: everything that an earlier `Restore` brought is void.
    ///
    /// Either the local file, where [`local::may_reuse`](crate::ownership::local::may_reuse) allows it; or the snapshot (without
    /// one: an empty state at the rev that the first delta follows, or at the base's, with the manifest's next seq and
    /// what it remembers of a [past life](crate::manifest::PastLife)), then the [`terms`], then the deltas. Then every entry
    /// of the tail that the state lacks, in order of rev.
    Restore {
        /// The base; `None`: a new subject, empty at rev 0 and seq 1.
        manifest: Option<Box<Manifest>>,
        /// What follows it.
        tail: Tail,
    },
    /// Upload the restored state as a snapshot, or everything in it above the manifest's base as a delta
    /// ([`base_kind`](crate::ownership::base_kind)), under a fresh name.
    PutBase {
        /// For the object's name.
        made_for: ManifestNumber,
    },
    /// Create this manifest. Asked for again after an unknown outcome, with the same bytes.
    Create(Box<Manifest>),
    /// The end: the subject is this process's. Serve the restored state under this manifest, unless the process's log
    /// has met its seal.
    Serve(Verified),
    /// The end of a claim for what is this process's own: it is not.
    NotOwned,
    /// The end of a claim for draining.
    Drained(Drained),
    /// The end: the claim has failed, and this is what the caller is told.
    GiveUp(ErrorReply),
}

/// What a claim for draining came to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Drained {
    /// The subject needs nothing of the log, now and for ever.
    NotNeeded,
    /// It needs entries of the log; said only when nothing may be changed.
    Needed,
    /// It does no more, by this manifest.
    Released(Verified),
}
