//! Whether what this process holds may be read at this moment, without asking the bucket.
//!
//! Writes need no clock: they are fenced by the log. Reads need to know that nobody has taken over since, and that
//! is known while a lease holds that has been trusted once. A lease is trusted when a [barrier](crate::log::Log::barrier)
//! was passed under its generation: whatever happened before it began, nobody had taken the log over since.

use std::sync::{Arc, Mutex, PoisonError};

use dormouse_protocol::ErrorReply;

use crate::api::{Authority, LeaseGeneration};
use crate::log::Log;
use crate::mutations::{Mutation, is_there};

/// See the [module](self).
pub(crate) struct Trust {
    authority: Arc<dyn Authority>,
    log: Log,
    trusted: Mutex<Option<LeaseGeneration>>,
    /// The lease for which a barrier is under way, or was, that nobody waits for.
    sought: Mutex<Option<LeaseGeneration>>,
}

impl Trust {
    pub(crate) fn new(authority: Arc<dyn Authority>, log: Log) -> Self {
        Self { authority, log, trusted: Mutex::new(None), sought: Mutex::new(None) }
    }

    /// Whether reads may be answered at once, and writes acknowledged below the level `bucket`.
    pub(crate) fn holds(&self) -> bool {
        let lease = self.authority.lease();
        let trusted = lease == *self.lock() || is_there(Mutation::NoBarrierAfterGap);
        (lease.is_some() && trusted || is_there(Mutation::LeaseIgnored)) && !self.log.is_over()
    }

    /// The lease that is held and not trusted yet, once: whoever is told of it passes a barrier. Reads pass barriers by
    /// themselves; where there are only writes, each would wait for the bucket otherwise.
    pub(crate) fn to_seek(&self) -> Option<LeaseGeneration> {
        let lease = self.authority.lease()?;
        // See `Trust::lock`.
        let mut sought = self.sought.lock().unwrap_or_else(PoisonError::into_inner);
        (*self.lock() != Some(lease) && sought.replace(lease) != Some(lease)).then_some(lease)
    }

    /// Waits until it is proved that at the moment of the call nobody had taken the log over. One proof serves all who
    /// wait. A lease that held all the while is trusted from then on.
    ///
    /// Cancelling the call has no effect on others.
    ///
    /// # Errors
    /// `not_owner` when somebody has, `unavailable` while it cannot be found out.
    pub(crate) async fn barrier(&self) -> Result<(), ErrorReply> {
        let before = self.authority.lease();
        self.log.barrier().await?;
        if before.is_some() && before == self.authority.lease() {
            *self.lock() = before;
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<LeaseGeneration>> {
        // A generation is one word: no panic elsewhere leaves it half written.
        self.trusted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
