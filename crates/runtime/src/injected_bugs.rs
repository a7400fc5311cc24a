//! Injected bugs. Each one breaks a rule that the guarantees need, so that a simulation can prove that it finds the
//! bug. See `docs/testing.md`.
//!
//! Production code names a bug at one place, with [`injected_bug!`](crate::injected_bug). Without the feature
//! `mutations` the macro is `false` and compiles to nothing. With the feature, a bug is active only on a thread that
//! enabled it. A simulation runs its whole fleet on one thread, so several simulations can run in parallel, each with
//! its own bug.

/// Whether an [`InjectedBug`](crate::injected_bugs::InjectedBug), named by its variant, is active on this thread.
#[macro_export]
macro_rules! injected_bug {
    ($bug:ident) => {
        $crate::injected_bugs::is_active($crate::injected_bugs::InjectedBug::$bug)
    };
}

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
    /// A feed ignores gaps: it takes any event that comes next as the next one.
    GapIgnored,
    /// A feed outputs a repeated event again.
    RepeatEmitted,
    /// After a full read, a feed does not output removals.
    RemovalNotEmitted,
    /// Sets that are queued together are sent in the wrong order.
    SetsReordered,
    /// A change is planned although its caller has stopped waiting.
    PlanExpired,
    /// If the time of a change runs out after it was planned, the reply says that it was not executed.
    DenyPlanned,
    /// Reads find messages that a `delete_all` has removed and whose rows still exist.
    FloorIgnored,
}

impl InjectedBug {
    /// Every bug.
    pub const ALL: [Self; 21] = [
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
        Self::GapIgnored,
        Self::RepeatEmitted,
        Self::RemovalNotEmitted,
        Self::SetsReordered,
        Self::PlanExpired,
        Self::DenyPlanned,
        Self::FloorIgnored,
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
            Self::GapIgnored => "gap-ignored",
            Self::RepeatEmitted => "repeat-emitted",
            Self::RemovalNotEmitted => "removal-not-emitted",
            Self::SetsReordered => "sets-reordered",
            Self::PlanExpired => "plan-expired",
            Self::DenyPlanned => "deny-planned",
            Self::FloorIgnored => "floor-ignored",
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

/// Whether the bug is active on this thread. Use [`injected_bug!`](crate::injected_bug).
#[cfg(feature = "mutations")]
#[must_use]
pub fn is_active(bug: InjectedBug) -> bool {
    ACTIVE.get() == Some(bug)
}

/// Always `false` without the feature `mutations`.
#[cfg(not(feature = "mutations"))]
#[inline(always)]
#[must_use]
pub const fn is_active(_: InjectedBug) -> bool {
    false
}
