//! What the engine may do: the lease this process holds, and the coordinator's word on claims.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dormouse_bus::{AskError, Bus, ask};
use dormouse_protocol::fleet::{Acknowledged, ClaimReply, ClaimRequest, ReleaseRequest};
use dormouse_protocol::{ErrorCode, ErrorReply, LogId, Prefix, ProtocolVersion, Retry, Subject};
use dormouse_runtime::Env;
use dormouse_storage::api::{Authority, LeaseGeneration};

use crate::lease::Lease;

/// How long the coordinator may think about a claim. Clients wait for it, and ask again.
const CLAIM_DEADLINE: Duration = Duration::from_secs(2);
/// How long an answer to the note that a subject was handed back is waited for.
const RELEASE_DEADLINE: Duration = Duration::from_secs(1);
/// For how long the note is repeated, and the pause before each time. Who asks where the subject is meanwhile is sent
/// here; after that the manifest has to say it.
const RELEASE_PATIENCE: Duration = Duration::from_secs(10);
const RELEASE_PAUSE: Duration = Duration::from_millis(100);

/// The lease as of now, shared between the task that renews it and everybody who relies on it.
#[derive(Debug, Clone)]
pub struct LeaseView {
    env: Env,
    // A lock, and not two atomics: it is written once a second, so readers never wait, and end and generation of a
    // lease are always seen together.
    trusted: Arc<Mutex<Option<Lease>>>,
}

impl LeaseView {
    /// A view that shows no lease yet.
    #[must_use]
    pub fn new(env: Env) -> Self {
        Self { env, trusted: Arc::default() }
    }

    /// From now on this is what may be believed.
    pub(crate) fn set(&self, lease: Option<Lease>) {
        *self.trusted.lock().unwrap_or_else(PoisonError::into_inner) = lease;
    }

    /// The generation of the lease that holds at this moment. Asks the clock: nobody has to be awake for a lease to
    /// end.
    #[must_use]
    pub fn generation(&self) -> Option<LeaseGeneration> {
        let lease = (*self.trusted.lock().unwrap_or_else(PoisonError::into_inner))?;
        (self.env.boot() < lease.valid_until).then_some(lease.generation)
    }
}

/// The engine's view of the coordinator.
pub struct Coordinated {
    bus: Arc<dyn Bus>,
    prefix: Prefix,
    log: LogId,
    lease: LeaseView,
}

impl Coordinated {
    /// Asks over `bus` in the name of `log`.
    #[must_use]
    pub fn new(bus: Arc<dyn Bus>, prefix: Prefix, log: LogId, lease: LeaseView) -> Self {
        Self { bus, prefix, log, lease }
    }
}

#[async_trait]
impl Authority for Coordinated {
    fn lease(&self) -> Option<LeaseGeneration> {
        self.lease.generation()
    }

    async fn may_claim(&self, subject: &Subject, owner: Option<&LogId>) -> Result<(), ErrorReply> {
        let request =
            ClaimRequest { v: ProtocolVersion::CURRENT, claimant: self.log.clone(), owner: owner.cloned() };
        let asked: Result<ClaimReply, AskError> =
            ask(&*self.bus, self.prefix.claim(subject), &request, CLAIM_DEADLINE).await;
        asked.map(drop).map_err(|error| refusal(subject, error))
    }

    async fn released(&self, subject: &Subject) {
        let request = ReleaseRequest { v: ProtocolVersion::CURRENT, log: self.log.clone() };
        let until = self.lease.env.boot() + RELEASE_PATIENCE;
        // A coordinator that grants no leases would not hear this either, and ten thousand subjects on their way out
        // must not each wait to find that out.
        while self.lease.generation().is_some() {
            let noted: Result<Acknowledged, AskError> =
                ask(&*self.bus, self.prefix.release(subject), &request, RELEASE_DEADLINE).await;
            let Err(error) = noted else { return };
            tracing::debug!(%subject, %error, "the coordinator has not heard that the subject was handed back");
            let heard = matches!(&error, AskError::Service(reply) if reply.retry() == Retry::Never);
            if heard || self.lease.env.boot() + RELEASE_PAUSE >= until {
                return;
            }
            tokio::time::sleep(RELEASE_PAUSE).await;
        }
    }
}

/// What a client is told when the coordinator did not allow a claim.
fn refusal(subject: &Subject, error: AskError) -> ErrorReply {
    match error {
        AskError::Service(error)
            if matches!(error.code, ErrorCode::NotOwner | ErrorCode::Unavailable | ErrorCode::Overloaded) =>
        {
            error
        }
        // Anything else is between us and the coordinator; a client can only wait until it is settled.
        error => {
            tracing::debug!(%subject, %error, "the coordinator did not say whether the subject may be claimed");
            ErrorReply::unavailable(format!("the coordinator could not be asked about the subject: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use dormouse_runtime::{SeededEntropy, VirtualClock};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_ends_by_itself() {
        let clock = VirtualClock::starting_at(Duration::ZERO);
        let env = Env::simulated(Arc::new(clock), Arc::new(SeededEntropy::new(1)));
        let view = LeaseView::new(env);
        assert_eq!(view.generation(), None);
        let generation = LeaseGeneration(3);
        view.set(Some(Lease { valid_until: Duration::from_millis(100), generation }));
        assert_eq!(view.generation(), Some(generation));
        tokio::time::advance(Duration::from_millis(99)).await;
        assert_eq!(view.generation(), Some(generation));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(view.generation(), None);
    }

    #[test]
    fn only_the_coordinators_word_on_the_subject_reaches_the_client() {
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
