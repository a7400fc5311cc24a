//! The list of the aggressors, each with its user, its size and the refusal that it must get.

/// A tenant that takes as much as the service gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Aggressor {
    /// A user who may only read pages through a subject of many messages, with thousands of requests unanswered.
    GetAllFlood,
    /// Sixteen atomic batches of 9,000 messages at a time.
    AtomicBatches,
    /// 30,000 messages that expire after a millisecond.
    ShortTtl,
    /// A flood of gets of small messages.
    SmallGets,
    /// A flood of sets of small messages.
    SmallSets,
    /// Gets with 900 kB of bytes that are no request.
    GarbageGets,
    /// Two `delete_all` of subjects with many messages.
    DeleteAll,
    /// Look-ups of subjects that were never written.
    UnknownLookups,
    /// 2,000 uploads that begin and never end.
    Uploads,
    /// Gets from 10,000 different subjects that are dormant.
    DormantReads,
    /// Sets of level `bucket` to many subjects while the bucket does not answer.
    HangingBucket,
    /// 33,000 sets of as many sessions.
    Sessions,
}

/// The size of an attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Small enough for a test with unoptimized programs.
    Test,
    /// The size that the documentation names.
    Full,
}

/// The error that an aggressor must get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It exceeds its share, so at least one request gets `overloaded`.
    Overloaded,
    /// The server refuses every request by its size.
    Size,
    /// It stays within its share: the server may execute every request.
    Nothing,
}

impl Aggressor {
    /// Every aggressor, in the order of the documentation.
    pub const ALL: [Self; 12] = [
        Self::GetAllFlood,
        Self::AtomicBatches,
        Self::ShortTtl,
        Self::SmallGets,
        Self::SmallSets,
        Self::GarbageGets,
        Self::DeleteAll,
        Self::UnknownLookups,
        Self::Uploads,
        Self::DormantReads,
        Self::HangingBucket,
        Self::Sessions,
    ];

    /// Returns the name on the command line and in tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GetAllFlood => "get_all flood",
            Self::AtomicBatches => "atomic batches",
            Self::ShortTtl => "1 ms TTL",
            Self::SmallGets => "small gets",
            Self::SmallSets => "small sets",
            Self::GarbageGets => "garbage gets",
            Self::DeleteAll => "delete_all",
            Self::UnknownLookups => "unknown look-ups",
            Self::Uploads => "uploads",
            Self::DormantReads => "dormant reads",
            Self::HangingBucket => "hanging bucket",
            Self::Sessions => "sessions",
        }
    }

    /// Returns the user who attacks.
    #[must_use]
    pub const fn user(self) -> &'static str {
        match self {
            Self::GetAllFlood | Self::SmallGets | Self::GarbageGets | Self::DormantReads => "auditor",
            _ => "alice",
        }
    }

    /// Returns the error that the attack must get.
    #[must_use]
    pub const fn refusal(self) -> Refusal {
        match self {
            Self::GarbageGets => Refusal::Size,
            // A few large requests, which fit the share of a tenant.
            Self::AtomicBatches | Self::ShortTtl | Self::DeleteAll => Refusal::Nothing,
            _ => Refusal::Overloaded,
        }
    }
}
