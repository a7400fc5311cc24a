//! The read lease: whether this process may serve reads now, without asking the bucket.
//!
//! Writes need no clock, because the log fences them. Reads need proof that no takeover has happened since. A confirmed
//! lease is that proof while it holds. A lease is confirmed when a [read barrier](Log::barrier) has passed
//! under its generation: no other process had sealed the log by then.

use std::sync::Arc;

use dormouse_commit_log::log::Log;
use dormouse_protocol::ErrorReply;
use dormouse_runtime::{Lock, injected_bug};

use crate::api::{Authority, LeaseGeneration};

/// See the [module](self).
pub(crate) struct ReadLease {
    authority: Arc<dyn Authority>,
    log: Log,
    confirmed: Lock<Option<LeaseGeneration>>,
    /// The lease for which [`ReadLease::lease_to_confirm`] has already requested a barrier.
    requested: Lock<Option<LeaseGeneration>>,
}

impl ReadLease {
    pub(crate) fn new(authority: Arc<dyn Authority>, log: Log) -> Self {
        Self { authority, log, confirmed: Lock::new(None), requested: Lock::new(None) }
    }

    /// Whether reads may be answered at once, and writes be acknowledged below the level `bucket`.
    pub(crate) fn is_confirmed(&self) -> bool {
        let lease = self.authority.lease();
        let confirmed = lease == *self.lock() || injected_bug!(NoBarrierAfterGap);
        (lease.is_some() && confirmed || injected_bug!(LeaseIgnored)) && !self.log.is_closed()
    }

    /// The lease that is held and not confirmed yet, returned once per lease. The caller passes a read barrier for it.
    /// Reads pass barriers by themselves; without this call, a subject with writes only would wait for the bucket on
    /// each write.
    pub(crate) fn lease_to_confirm(&self) -> Option<LeaseGeneration> {
        let lease = self.authority.lease()?;
        // See `ReadLease::lock`.
        let mut requested = self.requested.lock();
        (*self.lock() != Some(lease) && requested.replace(lease) != Some(lease)).then_some(lease)
    }

    /// Waits for a read barrier: proof that at the moment of the call no other process had sealed the log. One barrier
    /// serves all callers that wait. If one lease held throughout, it is confirmed from then on.
    ///
    /// Cancelling the call has no effect on other callers.
    ///
    /// # Errors
    /// `not_owner` if the log is sealed, `unavailable` while the bucket cannot answer.
    pub(crate) async fn barrier(&self) -> Result<(), ErrorReply> {
        let before = self.authority.lease();
        self.log.barrier().await?;
        if before.is_some() && before == self.authority.lease() {
            *self.lock() = before;
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<LeaseGeneration>> {
        // A generation is one word, so a panic elsewhere cannot leave it partly written.
        self.confirmed.lock()
    }
}
