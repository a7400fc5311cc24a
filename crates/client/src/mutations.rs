//! Injected bugs in feeds and in sets, which show that the simulation detects such bugs. See
//! `docs/testing.md`.
//!
//! Without the feature `mutations` there are none. With it, a bug is active only on a thread that requested
//! it. A simulation runs its whole fleet on one thread, so several simulations can run concurrently, each
//! with its own bug.

/// A deliberate bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InjectedBug {
    /// A feed ignores gaps: it takes any event that comes next as the next one.
    GapIgnored,
    /// A feed emits a repeated event again.
    RepeatEmitted,
    /// After a full read, a feed does not emit removals.
    RemovalNotEmitted,
    /// Sets that are queued together are sent in the wrong order.
    SetsReordered,
}

impl InjectedBug {
    /// Every bug.
    pub const ALL: [Self; 4] =
        [Self::GapIgnored, Self::RepeatEmitted, Self::RemovalNotEmitted, Self::SetsReordered];

    /// Its name on a command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GapIgnored => "gap-ignored",
            Self::RepeatEmitted => "repeat-emitted",
            Self::RemovalNotEmitted => "removal-not-emitted",
            Self::SetsReordered => "sets-reordered",
        }
    }
}

#[cfg(feature = "mutations")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<InjectedBug>> = const { std::cell::Cell::new(None) };
}

/// Activates this bug on this thread and deactivates any other; `None`: no bug.
#[cfg(feature = "mutations")]
pub fn inject_on_this_thread(mutation: Option<InjectedBug>) {
    ACTIVE.set(mutation);
}

/// Whether the bug is active.
#[cfg(feature = "mutations")]
pub(crate) fn is_active(mutation: InjectedBug) -> bool {
    ACTIVE.get() == Some(mutation)
}

/// Whether the bug is active: never without the feature.
#[cfg(not(feature = "mutations"))]
pub(crate) const fn is_active(_: InjectedBug) -> bool {
    false
}
