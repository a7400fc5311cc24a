//! Deliberate bugs, each in the place of a rule that the guarantees rest on, so that a simulation can show that it would
//! find them. See `docs/testing.md`.
//!
//! Without the feature `mutations` there are none. With it there is one only on a thread that asked for it: a
//! simulation runs its whole fleet on one thread, so that many can run beside each other, each with a bug of its own.

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// The local write-ahead log is not synced before a write is acknowledged at the level `disk`.
    NoSync,
    /// What is of level `bucket` counts as durable once it is on the local disk: acknowledged, announced and read then.
    ToldBeforeTheBucket,
    /// A claim's manifest counts before a listing has shown it to be the newest.
    NoListAfterClaim,
    /// A seal counts before a listing has shown it to be the highest slot.
    NoListAfterSeal,
    /// The authority is not asked again once the log of a dead process is sealed.
    NoQuestionAfterSeal,
    /// Reads are answered at once, whether there is a lease or not.
    LeaseIgnored,
    /// A lease is trusted after a gap though no barrier has passed.
    NoBarrierAfterGap,
    /// What was answered to whom is forgotten when a subject is claimed.
    SessionsForgotten,
    /// What a tombstone remembers is not taken along by what begins after it.
    DestroyForgets,
    /// A subject that this process has released is opened again without a claim.
    ReleasedIsStillOurs,
    /// Large values go as soon as nothing refers to them, though the base may lead back to them.
    ValueDeletedEarly,
    /// That a slot exists already is taken for the success of its creation.
    ExistsIsSuccess,
    /// A full subject that is to refuse writes loses its oldest messages to them.
    FullLosesTheOldest,
    /// A read sees the file without what is acknowledged and not in it yet.
    ReadsBehind,
}

impl Mutation {
    /// Every bug.
    pub const ALL: [Self; 14] = [
        Self::NoSync,
        Self::ToldBeforeTheBucket,
        Self::NoListAfterClaim,
        Self::NoListAfterSeal,
        Self::NoQuestionAfterSeal,
        Self::LeaseIgnored,
        Self::NoBarrierAfterGap,
        Self::SessionsForgotten,
        Self::DestroyForgets,
        Self::ReleasedIsStillOurs,
        Self::ValueDeletedEarly,
        Self::ExistsIsSuccess,
        Self::FullLosesTheOldest,
        Self::ReadsBehind,
    ];

    /// Its name on a command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoSync => "no-sync",
            Self::ToldBeforeTheBucket => "told-before-the-bucket",
            Self::NoListAfterClaim => "no-list-after-claim",
            Self::NoListAfterSeal => "no-list-after-seal",
            Self::NoQuestionAfterSeal => "no-question-after-seal",
            Self::LeaseIgnored => "lease-ignored",
            Self::NoBarrierAfterGap => "no-barrier-after-gap",
            Self::SessionsForgotten => "sessions-forgotten",
            Self::DestroyForgets => "destroy-forgets",
            Self::ReleasedIsStillOurs => "released-is-still-ours",
            Self::ValueDeletedEarly => "value-deleted-early",
            Self::ExistsIsSuccess => "exists-is-success",
            Self::FullLosesTheOldest => "full-loses-the-oldest",
            Self::ReadsBehind => "reads-behind",
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
