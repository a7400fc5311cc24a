//! Injected bugs. Each one breaks a rule that the guarantees need, so that a simulation can prove that it finds the
//! bug. See `docs/testing.md`.
//!
//! Without the feature `mutations` no bug exists. With the feature, a bug is active only on a thread that enabled it. A
//! simulation runs its whole fleet on one thread, so several simulations can run in parallel, each with its own bug.

/// An injected bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InjectedBug {
    /// The WAL is not synced before a write is acknowledged at the level `disk`.
    NoSync,
    /// A write of level `bucket` is acknowledged, published and read once it is on the local disk.
    AckBeforeBucket,
    /// A claim takes effect before a listing shows that its manifest is the newest.
    NoListAfterClaim,
    /// A seal takes effect before a listing shows that it is the highest slot.
    NoListAfterSeal,
    /// The engine does not ask the authority again after it has sealed an orphaned log.
    NoRecheckAfterSeal,
    /// Reads are answered at once, with or without a lease.
    LeaseIgnored,
    /// A lease counts as confirmed after a gap although no read barrier has passed.
    NoBarrierAfterGap,
    /// A claim drops the dedup window of the subject.
    DedupLostOnClaim,
    /// A subject that is created after a tombstone drops the tombstone's dedup window.
    DedupLostOnDestroy,
    /// A subject that this process has released opens again without a claim.
    ReopenAfterRelease,
    /// Blobs are deleted once no message refers to them, although the base may still refer to them.
    ValueDeletedEarly,
    /// If a slot exists already, its creation counts as successful.
    ExistsIsSuccess,
    /// A full subject whose limit policy refuses writes drops its oldest messages instead.
    FullDropsOldest,
    /// A read uses the file without the acknowledged changes of the apply backlog.
    ReadIgnoresBacklog,
}

impl InjectedBug {
    /// Every bug.
    pub const ALL: [Self; 14] = [
        Self::NoSync,
        Self::AckBeforeBucket,
        Self::NoListAfterClaim,
        Self::NoListAfterSeal,
        Self::NoRecheckAfterSeal,
        Self::LeaseIgnored,
        Self::NoBarrierAfterGap,
        Self::DedupLostOnClaim,
        Self::DedupLostOnDestroy,
        Self::ReopenAfterRelease,
        Self::ValueDeletedEarly,
        Self::ExistsIsSuccess,
        Self::FullDropsOldest,
        Self::ReadIgnoresBacklog,
    ];

    /// The bug's name on a command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoSync => "no-sync",
            Self::AckBeforeBucket => "ack-before-bucket",
            Self::NoListAfterClaim => "no-list-after-claim",
            Self::NoListAfterSeal => "no-list-after-seal",
            Self::NoRecheckAfterSeal => "no-recheck-after-seal",
            Self::LeaseIgnored => "lease-ignored",
            Self::NoBarrierAfterGap => "no-barrier-after-gap",
            Self::DedupLostOnClaim => "dedup-lost-on-claim",
            Self::DedupLostOnDestroy => "dedup-lost-on-destroy",
            Self::ReopenAfterRelease => "reopen-after-release",
            Self::ValueDeletedEarly => "value-deleted-early",
            Self::ExistsIsSuccess => "exists-is-success",
            Self::FullDropsOldest => "full-drops-oldest",
            Self::ReadIgnoresBacklog => "read-ignores-backlog",
        }
    }
}

#[cfg(feature = "mutations")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<InjectedBug>> = const { std::cell::Cell::new(None) };
}

/// Enables this bug and no other on this thread; `None` disables all.
#[cfg(feature = "mutations")]
pub fn inject_on_this_thread(bug: Option<InjectedBug>) {
    ACTIVE.set(bug);
}

/// Whether the bug is active on this thread.
#[cfg(feature = "mutations")]
pub(crate) fn is_active(bug: InjectedBug) -> bool {
    ACTIVE.get() == Some(bug)
}

/// Always `false` without the feature `mutations`.
#[cfg(not(feature = "mutations"))]
pub(crate) const fn is_active(_: InjectedBug) -> bool {
    false
}
