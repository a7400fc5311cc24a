//! Requests to the engine, and the interfaces that the engine needs.

use std::time::Duration;

use async_trait::async_trait;
use dormouse_protocol::{ErrorReply, Event, LogId, Subject};

pub use dormouse_subject_state::request::{HandoverOutcome, SubjectReply, SubjectRequest};

/// Index of a tenant's record at this server, in the order in which the server got to know the tenants. Work that tenants
/// share is served in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TenantId(u32);

impl TenantId {
    /// The record of the server's own work, and of all tenants without a record of their own.
    pub const SHARED: Self = Self(0);

    /// The tenant with this index.
    #[must_use]
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// The index.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// A request with its tenant, its reply limit and its callback. The engine calls `respond` exactly once.
pub struct Submission {
    /// The tenant that the request is charged to.
    pub tenant: TenantId,
    /// When the caller stops waiting, on the monotonic clock of the engine. A request that is not begun by then is
    /// refused. [`Submission::NO_DEADLINE`] if it never stops.
    pub deadline: Duration,
    /// When the request arrived, on the same clock.
    pub received: Duration,
    /// The operation.
    pub request: SubjectRequest,
    /// The largest encoded reply that the caller can forward, in bytes. Pages and multi-key replies stay below it.
    pub max_reply_bytes: usize,
    /// Takes the reply. The subject's task calls it, so it must not block: encode, enqueue, return.
    pub respond: Box<dyn FnOnce(Result<SubjectReply, ErrorReply>) + Send>,
}

impl Submission {
    /// The deadline of the server's own requests.
    pub const NO_DEADLINE: Duration = Duration::MAX;

    /// Whether the caller has stopped waiting at `now`.
    #[must_use]
    pub fn is_expired(&self, now: Duration) -> bool {
        self.deadline <= now
    }
}

impl std::fmt::Debug for Submission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Submission").field("request", &self.request).finish_non_exhaustive()
    }
}

/// Generation of this process's lease. It changes if a lease may have been interrupted. A lease of a new generation is
/// not confirmed until a read barrier has passed under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseGeneration(pub u64);

/// Permission to serve subjects: the engine's view of the coordinator.
#[async_trait]
pub trait Authority: Send + Sync + 'static {
    /// The generation of the lease that this process holds now; `None` if it holds none.
    fn lease(&self) -> Option<LeaseGeneration>;

    /// Whether this process may claim `subject`. `owner` is the owner that its newest manifest names; `None`: there is
    /// no owner, or it has released the subject. `Ok` with an owner means that the owner's lease has expired, so its
    /// log may be sealed. The engine asks again after the seal, because the owner may have renewed its lease meanwhile.
    /// A wrong authority cannot lose a write of the level `bucket`.
    ///
    /// # Errors
    /// `not_owner` with the server to ask instead; `unavailable` if the coordinator cannot be asked.
    async fn may_claim(&self, subject: &Subject, owner: Option<&LogId>) -> Result<(), ErrorReply>;

    /// Reports that this process has released `subject` and no longer serves it, or never owned it. Returns once the
    /// coordinator has the report, or when a further attempt is useless. Until then the subject is not served here.
    /// Must not fail.
    async fn released(&self, subject: &Subject);
}

/// Takes the events of all subjects, to publish them on the bus.
pub trait EventSink: Send + Sync + 'static {
    /// Takes one event. The subject's task calls it in order of rev, after the changes are durable at their level and
    /// before their replies. Events and replies travel independently: a client can have the reply before a subscriber
    /// has the event. It must not block.
    fn publish(&self, subject: &Subject, event: Event);
}
