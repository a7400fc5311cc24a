//! The authority of the engine: the lease of this process, and the coordinator's answers to claim requests.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dormouse_bus::{AskError, Bus, ask};
use dormouse_engine::api::{Authority, LeaseGeneration};
use dormouse_protocol::fleet::{Acknowledged, ClaimReply, ClaimRequest, ReleaseRequest};
use dormouse_protocol::{
    ErrorCode, ErrorReply, LogId, OverloadCause, Prefix, ProtocolVersion, RetryAdvice, Subject,
};
use dormouse_runtime::{Env, Lock};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::lease::HeldLease;

/// Maximum number of claim requests in flight, and of releases. They use the connection of the heartbeats, which must not
/// wait behind many of them. Further ones wait in order of arrival.
const MAX_CLAIMS: usize = 32;
const MAX_RELEASES: usize = 64;
/// Deadline of a claim request to the coordinator, and the longest wait before it. Clients wait for it, and retry.
const CLAIM_DEADLINE: Duration = Duration::from_secs(2);
/// Deadline of one release call to the coordinator.
const RELEASE_DEADLINE: Duration = Duration::from_secs(1);
/// How long a release is resent, and the pause before each attempt. Meanwhile the coordinator still redirects clients
/// to this server. After that the manifest is the only record of the release.
const RELEASE_RETRY_TIME: Duration = Duration::from_secs(10);
const RELEASE_PAUSE: Duration = Duration::from_millis(100);

/// The current lease, shared between the task that renews it and its readers.
#[derive(Debug, Clone)]
pub struct LeaseView {
    env: Env,
    // A lock instead of two atomics: it is written once a second, so readers do not wait, and a reader sees the end and
    // the generation of the same lease.
    current: Arc<Lock<Option<HeldLease>>>,
}

impl LeaseView {
    /// A view without a lease.
    #[must_use]
    pub fn new(env: Env) -> Self {
        Self { env, current: Arc::default() }
    }

    /// Replaces the current lease.
    pub(crate) fn set(&self, lease: Option<HeldLease>) {
        *self.current.lock() = lease;
    }

    /// The generation of the lease, if it has not expired. Reads the clock, so a lease expires without a task that
    /// runs.
    #[must_use]
    pub fn generation(&self) -> Option<LeaseGeneration> {
        self.held().map(|(generation, _)| generation)
    }

    /// The generation of the lease, and the time until it expires.
    pub(crate) fn held(&self) -> Option<(LeaseGeneration, Duration)> {
        let lease = (*self.current.lock())?;
        let now = self.env.boot();
        (now < lease.valid_until).then(|| (lease.generation, lease.valid_until.saturating_sub(now)))
    }
}

/// The engine's view of the coordinator.
pub struct CoordinatorAuthority {
    bus: Arc<dyn Bus>,
    prefix: Prefix,
    log: LogId,
    lease: LeaseView,
    claims: Semaphore,
    releases: Semaphore,
}

impl CoordinatorAuthority {
    /// Sends requests over `bus` in the name of `log`.
    #[must_use]
    pub fn new(bus: Arc<dyn Bus>, prefix: Prefix, log: LogId, lease: LeaseView) -> Self {
        let (claims, releases) = (Semaphore::new(MAX_CLAIMS), Semaphore::new(MAX_RELEASES));
        Self { bus, prefix, log, lease, claims, releases }
    }
}

#[async_trait]
impl Authority for CoordinatorAuthority {
    fn lease(&self) -> Option<LeaseGeneration> {
        self.lease.generation()
    }

    async fn may_claim(&self, subject: &Subject, owner: Option<&LogId>) -> Result<(), ErrorReply> {
        let request =
            ClaimRequest { v: ProtocolVersion::CURRENT, claimant: self.log.clone(), owner: owner.cloned() };
        let Ok(_permit) = timeout(CLAIM_DEADLINE, self.claims.acquire()).await else {
            return Err(OverloadCause::SubjectOpens.into());
        };
        let allowed: Result<ClaimReply, AskError> =
            ask(&*self.bus, self.prefix.claim(subject), &request, CLAIM_DEADLINE).await;
        allowed.map(drop).map_err(|error| refusal(subject, error))
    }

    async fn released(&self, subject: &Subject) {
        let request = ReleaseRequest { v: ProtocolVersion::CURRENT, log: self.log.clone() };
        let until = self.lease.env.boot() + RELEASE_RETRY_TIME;
        loop {
            let left = until.saturating_sub(self.lease.env.boot());
            let Ok(permit) = timeout(left, self.releases.acquire()).await else { return };
            // Without a lease the coordinator is probably unreachable. Ten thousand subjects that close must not each wait
            // for a release deadline.
            if self.lease.generation().is_none() {
                return;
            }
            let acknowledged: Result<Acknowledged, AskError> =
                ask(&*self.bus, self.prefix.release(subject), &request, RELEASE_DEADLINE).await;
            let Err(error) = acknowledged else { return };
            tracing::debug!(%subject, %error, "release not acknowledged by coordinator");
            let rejected = matches!(&error, AskError::Service(reply) if reply.retry() == RetryAdvice::Never);
            if rejected || self.lease.env.boot() + RELEASE_PAUSE >= until {
                return;
            }
            drop(permit);
            tokio::time::sleep(RELEASE_PAUSE).await;
        }
    }
}

/// The error that the client gets if the coordinator did not allow a claim.
fn refusal(subject: &Subject, error: AskError) -> ErrorReply {
    match error {
        AskError::Service(error)
            if matches!(error.code, ErrorCode::NotOwner | ErrorCode::Unavailable | ErrorCode::Overloaded) =>
        {
            error
        }
        // Any other error concerns only this server and the coordinator. The client can only retry later.
        error => {
            tracing::debug!(%subject, %error, "claim request to coordinator failed");
            ErrorReply::unavailable(format!("claim request to the coordinator failed: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use dormouse_bus::memory::{MemoryBroker, MemoryBus, MemoryOptions};
    use dormouse_bus::{Delivery, Outgoing, SubscribeOptions, Subscription};
    use dormouse_protocol::{Route, RoutePattern, ServerName, encode};
    use dormouse_runtime::{SeededEntropy, VirtualClock};
    use futures::future::join_all;

    use super::*;

    /// An authority with a lease, the requests to its coordinator, and the coordinator's connection.
    /// The last token of `route` may differ.
    async fn scene(route: Route) -> (CoordinatorAuthority, Subscription, MemoryBus) {
        let clock = VirtualClock::starting_at(Duration::ZERO);
        let env = Env::simulated(Arc::new(clock), Arc::new(SeededEntropy::new(1)));
        let broker = MemoryBroker::new();
        let coordinator = broker.connect(MemoryOptions::named("coordinator"));
        let base = route.as_str().rsplit_once('.').unwrap().0;
        let pattern = RoutePattern::new(format!("{base}.*"));
        let requests = coordinator.subscribe(pattern, SubscribeOptions::default()).await;
        let lease = LeaseView::new(env);
        let valid_until = Duration::from_secs(3_600);
        lease.set(Some(HeldLease { valid_until, generation: LeaseGeneration(1) }));
        let log = LogId::new(ServerName::new("persist-1").unwrap(), ulid::Ulid::from_parts(1, 1));
        let bus = Arc::new(broker.connect(MemoryOptions::named("persist-1")));
        (CoordinatorAuthority::new(bus, Prefix::default(), log, lease), requests.unwrap(), coordinator)
    }

    fn subject(number: usize) -> Subject {
        Subject::new(&format!("s{number}")).unwrap()
    }

    /// Waits for `number` requests, and checks that there is no other one.
    async fn take_all(requests: &mut Subscription, number: usize) -> Vec<Delivery> {
        let mut taken = Vec::new();
        while taken.len() < number {
            taken.push(requests.next().await.unwrap());
        }
        let more = timeout(Duration::from_millis(100), requests.next()).await;
        assert!(more.is_err(), "more than {number} requests are in flight");
        taken
    }

    /// At most 32 claim requests are in flight. Others wait, and a wait above the deadline is `overloaded`.
    #[tokio::test(start_paused = true)]
    async fn claims_in_flight_are_limited() {
        let (authority, mut requests, _coordinator) = scene(Prefix::default().claim(&subject(0))).await;
        let claims = |number: usize| {
            let subjects = (0..number).map(subject);
            join_all(subjects.map(async |subject| authority.may_claim(&subject, None).await))
        };
        let later = async {
            take_all(&mut requests, MAX_CLAIMS).await;
            // They wait until the deadline of the first ones. The last one waits longer, until its own.
            futures::join!(claims(MAX_CLAIMS + 1), take_all(&mut requests, MAX_CLAIMS)).0
        };
        let (first, mut later) = futures::join!(claims(MAX_CLAIMS), later);
        let last = later.pop().unwrap().unwrap_err();
        assert_eq!((last.code.clone(), last.retry_after_ms.is_some()), (ErrorCode::Overloaded, true));
        for outcome in first.into_iter().chain(later) {
            assert_eq!(outcome.unwrap_err().code, ErrorCode::Unavailable);
        }
    }

    /// At most 64 releases are in flight, and an acknowledgement lets the next one go.
    #[tokio::test(start_paused = true)]
    async fn releases_in_flight_are_limited() {
        let (authority, mut requests, coordinator) = scene(Prefix::default().release(&subject(0))).await;
        let subjects = (0..MAX_RELEASES + 1).map(subject);
        let releases = join_all(subjects.map(async |subject| authority.released(&subject).await));
        let replies = async {
            let mut in_flight = take_all(&mut requests, MAX_RELEASES).await;
            let reply = encode(&Acknowledged::default()).unwrap();
            while let Some(request) = in_flight.pop() {
                let reply_to = request.reply_to.unwrap();
                coordinator.publish(Outgoing::new(reply_to, reply.clone())).await.unwrap();
                let next = timeout(Duration::from_millis(1), requests.next()).await;
                in_flight.extend(next.ok().flatten());
            }
        };
        futures::join!(releases, replies);
    }

    /// The lease view returns the generation until the lease expires, without any further input.
    #[tokio::test(start_paused = true)]
    async fn lease_view_ends_at_expiry() {
        let clock = VirtualClock::starting_at(Duration::ZERO);
        let env = Env::simulated(Arc::new(clock), Arc::new(SeededEntropy::new(1)));
        let view = LeaseView::new(env);
        assert_eq!(view.generation(), None);
        let generation = LeaseGeneration(3);
        view.set(Some(HeldLease { valid_until: Duration::from_millis(100), generation }));
        assert_eq!(view.generation(), Some(generation));
        tokio::time::advance(Duration::from_millis(99)).await;
        assert_eq!(view.generation(), Some(generation));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(view.generation(), None);
    }

    /// The client sees the `not_owner` of the coordinator; other claim errors become `unavailable`.
    #[test]
    fn claim_refusal_passes_not_owner_and_hides_other_errors() {
        let subject = Subject::new("a").unwrap();
        let not_owner = ErrorReply::not_owner(None);
        assert_eq!(refusal(&subject, not_owner.clone().into()), not_owner);
        for error in [ErrorReply::bad_request("x"), ErrorReply::internal("x")] {
            assert_eq!(refusal(&subject, error.into()).code, ErrorCode::Unavailable);
        }
        let unanswered = dormouse_bus::RequestError::NoResponders(Route::new("x"));
        assert_eq!(refusal(&subject, unanswered.into()).code, ErrorCode::Unavailable);
    }
}
