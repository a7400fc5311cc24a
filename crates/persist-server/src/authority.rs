//! The authority of the engine: the lease of this process, and the coordinator's answers to claim requests.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dormouse_bus::{AskError, Bus, ask};
use dormouse_engine::api::{Authority, LeaseGeneration};
use dormouse_protocol::fleet::{Acknowledged, ClaimReply, ClaimRequest, ReleaseRequest};
use dormouse_protocol::{ErrorCode, ErrorReply, LogId, Prefix, ProtocolVersion, RetryAdvice, Subject};
use dormouse_runtime::{Env, Lock};
use tokio::sync::Semaphore;

use crate::lease::HeldLease;

/// Deadline of a claim request to the coordinator. Clients wait for it, and retry.
const CLAIM_DEADLINE: Duration = Duration::from_secs(2);
/// Deadline of one release call to the coordinator.
const RELEASE_DEADLINE: Duration = Duration::from_secs(1);
/// How long a release is resent, and the pause before each attempt. Meanwhile the coordinator still redirects clients
/// to this server. After that the manifest is the only record of the release.
const RELEASE_RETRY_TIME: Duration = Duration::from_secs(10);
const RELEASE_PAUSE: Duration = Duration::from_millis(100);
/// Maximum number of claim requests in flight. Each open sends one at a time, so only opens beyond their limit wait.
const MAX_CLAIMS: usize = 32;
/// The same for releases. Further ones wait, as long as they are resent.
const MAX_RELEASES: usize = 64;

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
        // The wait is not bounded here: the deadlines of those who ask bound it, and each request before it ends.
        let _permit = self.claims.acquire().await;
        let allowed: Result<ClaimReply, AskError> =
            ask(&*self.bus, self.prefix.claim(subject), &request, CLAIM_DEADLINE).await;
        allowed.map(drop).map_err(|error| refusal(subject, error))
    }

    async fn released(&self, subject: &Subject) {
        let request = ReleaseRequest { v: ProtocolVersion::CURRENT, log: self.log.clone() };
        let until = self.lease.env.boot() + RELEASE_RETRY_TIME;
        let Ok(Ok(_permit)) = tokio::time::timeout(RELEASE_RETRY_TIME, self.releases.acquire()).await else {
            return;
        };
        // Without a lease the coordinator is probably unreachable. Ten thousand subjects that close must not each wait
        // for a release deadline.
        while self.lease.generation().is_some() {
            let acknowledged: Result<Acknowledged, AskError> =
                ask(&*self.bus, self.prefix.release(subject), &request, RELEASE_DEADLINE).await;
            let Err(error) = acknowledged else { return };
            tracing::debug!(%subject, %error, "release not acknowledged by coordinator");
            let rejected = matches!(&error, AskError::Service(reply) if reply.retry() == RetryAdvice::Never);
            if rejected || self.lease.env.boot() + RELEASE_PAUSE >= until {
                return;
            }
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
    use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
    use dormouse_bus::{ServeOptions, serve};
    use dormouse_protocol::encode;
    use dormouse_runtime::{SeededEntropy, VirtualClock};

    use super::*;

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

    /// However many subjects close at once, a limited number of releases is in flight, and each is sent in the end.
    #[tokio::test(start_paused = true)]
    async fn releases_in_flight_are_limited() {
        let clock = VirtualClock::starting_at(Duration::ZERO);
        let env = Env::simulated(Arc::new(clock), Arc::new(SeededEntropy::new(1)));
        let broker = MemoryBroker::new();
        let tasks = env.tasks();
        let coordinator: Arc<dyn Bus> = Arc::new(broker.connect(MemoryOptions::named("coordinator")));
        let route = Prefix::default().fleet_all();
        let mut requests = serve(&coordinator, &env, &tasks, route, ServeOptions::default()).await.unwrap();
        let view = LeaseView::new(env.clone());
        view.set(Some(HeldLease { valid_until: Duration::from_secs(60), generation: LeaseGeneration(1) }));
        let server: Arc<dyn Bus> = Arc::new(broker.connect(MemoryOptions::named("server")));
        let log = "persist-1-01K000000000000000000000P0".parse().unwrap();
        let authority = CoordinatorAuthority::new(server, Prefix::default(), log, view);
        let subjects: Vec<Subject> =
            (0..3 * MAX_RELEASES).map(|number| format!("a.{number}").parse().unwrap()).collect();
        let releasing = futures::future::join_all(subjects.iter().map(|subject| authority.released(subject)));
        let answering = async {
            let mut unanswered = Vec::new();
            let mut answered = 0;
            while answered < subjects.len() {
                while let Ok(Some(incoming)) =
                    tokio::time::timeout(Duration::from_millis(10), requests.next()).await
                {
                    unanswered.push(incoming.responder);
                }
                assert!((1..=MAX_RELEASES).contains(&unanswered.len()), "{}", unanswered.len());
                for responder in unanswered.drain(..) {
                    answered += 1;
                    responder.ok(encode(&Acknowledged::default()).unwrap());
                }
            }
        };
        tokio::join!(releasing, answering);
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
        let unanswered = dormouse_bus::RequestError::NoResponders(dormouse_protocol::Route::new("x"));
        assert_eq!(refusal(&subject, unanswered.into()).code, ErrorCode::Unavailable);
    }
}
