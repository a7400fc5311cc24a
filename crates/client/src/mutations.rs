//! Deliberate bugs in feeds and in sets, so that a simulation can show that it would find them. See `docs/testing.md`.
//!
//! Without the feature `mutations` there are none. With it there is one only on a thread that asked for it: a
//! simulation runs its whole fleet on one thread, so that many can run beside each other, each with a bug of its own.

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// That events are missing is not noticed: whatever comes next is taken for what comes next.
    HoleIgnored,
    /// An event that comes again is told again.
    RepeatTold,
    /// After everything was read, what is gone is not told.
    DifferenceUntold,
    /// What waits together is sent in the wrong order.
    SetsOvertake,
}

impl Mutation {
    /// Every bug.
    pub const ALL: [Self; 4] =
        [Self::HoleIgnored, Self::RepeatTold, Self::DifferenceUntold, Self::SetsOvertake];

    /// Its name on a command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HoleIgnored => "hole-ignored",
            Self::RepeatTold => "repeat-told",
            Self::DifferenceUntold => "difference-untold",
            Self::SetsOvertake => "sets-overtake",
        }
    }
}

#[cfg(feature = "mutations")]
thread_local! {
    static THERE: std::cell::Cell<Option<Mutation>> = const { std::cell::Cell::new(None) };
}

/// From now on this thread has this bug and no other; `None`: none.
#[cfg(feature = "mutations")]
pub fn break_on_this_thread(mutation: Option<Mutation>) {
    THERE.set(mutation);
}

/// Whether the bug is there.
#[cfg(feature = "mutations")]
pub(crate) fn is_there(mutation: Mutation) -> bool {
    THERE.get() == Some(mutation)
}

/// Whether the bug is there: it is not.
#[cfg(not(feature = "mutations"))]
pub(crate) const fn is_there(_: Mutation) -> bool {
    false
}
