//! Permits to open subjects. An open holds several kinds, one after another, so that a slow open does not stop the others:
//!
//! - *local*, while it works on the local file: it waits for nothing.
//! - *calls*, while it waits for small objects of the bucket or for the coordinator.
//! - *download*, in place of *calls*, while it restores a subject from large objects.
//!
//! Tenants get permits in turn, and a tenant may hold half of those that the others leave: a tenant that opens many
//! dormant subjects delays the open of another tenant by at most one turn.

use dormouse_protocol::OverloadCause;
use dormouse_runtime::fair_permits::{FairPermit, FairPermits};

use crate::api::TenantId;

/// Opens that may work on their local files at the same time.
const LOCAL: usize = 32;

/// Opens that may wait for small objects or for the coordinator at the same time.
const CALLS: usize = 256;

/// Opens that may restore from large objects at the same time.
const DOWNLOADS: usize = 16;

/// Maximum number of opens that wait for their turn.
const WAITING: usize = 1_024;

/// Bytes that an open reads from the bucket without a permit for a download.
pub(crate) const SMALL_DOWNLOAD_BYTES: u64 = 4 * 1_024 * 1_024;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct OpenPermits {
    local: FairPermits,
    calls: FairPermits,
    downloads: FairPermits,
}

/// The turn of an open: the permits with which it begins.
#[derive(Debug)]
pub(crate) struct OpenTurn {
    pub(crate) local: FairPermit,
    pub(crate) calls: FairPermit,
}

impl OpenPermits {
    pub(crate) fn new() -> Self {
        Self {
            local: FairPermits::new(LOCAL),
            calls: FairPermits::new(CALLS),
            downloads: FairPermits::new(DOWNLOADS),
        }
    }

    /// Waits for the turn of `tenant`. Cancelling the call gives the turn to the next.
    ///
    /// # Errors
    /// [`OverloadCause::SubjectOpens`] if too many opens of the tenant, or of all tenants, wait.
    pub(crate) async fn turn(&self, tenant: TenantId) -> Result<OpenTurn, OverloadCause> {
        let (own, all) = self.calls.waiting(tenant.get());
        // A tenant may have half of the places that others leave free, and at least one.
        let share = (WAITING.saturating_sub(all - own) / 2).max(1);
        if own >= share || all >= WAITING {
            return Err(OverloadCause::SubjectOpens);
        }
        let calls = self.calls.acquire(tenant.get()).await;
        Ok(OpenTurn { calls, local: self.local.acquire(tenant.get()).await })
    }

    /// Waits for a permit for calls after a download. No more opens wait for it than there are permits for downloads.
    pub(crate) async fn calls(&self, tenant: TenantId) -> FairPermit {
        self.calls.acquire(tenant.get()).await
    }

    /// Waits for a permit for a download. No more opens wait for it than the limit of open subjects allows.
    pub(crate) async fn download(&self, tenant: TenantId) -> FairPermit {
        self.downloads.acquire(tenant.get()).await
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const GREEDY: TenantId = TenantId::new(1);
    const POLITE: TenantId = TenantId::new(2);

    /// A tenant holds half of the permits that others leave, and its waiting opens have half of the places.
    #[test]
    fn open_over_waiting_share_gets_overloaded() {
        let permits = OpenPermits::new();
        let (mut turns, mut waiting) = (Vec::new(), Vec::new());
        let mut fill = |tenant| {
            let (held, waited) = (turns.len(), waiting.len());
            loop {
                let mut one = Box::pin(permits.turn(tenant));
                match one.as_mut().now_or_never() {
                    Some(Ok(OpenTurn { calls, .. })) => turns.push(calls),
                    Some(Err(refused)) => {
                        assert_eq!(refused, OverloadCause::SubjectOpens);
                        return (turns.len() - held, waiting.len() - waited);
                    }
                    None => waiting.push(one),
                }
            }
        };
        assert_eq!([fill(GREEDY), fill(POLITE)], [(CALLS / 2, 512), (CALLS / 4, 256)]);
    }
}
