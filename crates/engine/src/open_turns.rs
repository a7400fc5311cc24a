//! Permits to open subjects, granted to tenants in turn: a tenant that opens many dormant subjects delays the open of
//! another tenant by at most one turn.

use std::sync::Arc;

use dormouse_protocol::OverloadCause;
use dormouse_runtime::Lock;
use dormouse_runtime::fair_queue::FairQueue;
use tokio::sync::oneshot;

use crate::api::TenantId;

/// Subjects that may be opening at the same time.
const OPENING: usize = 32;

/// Maximum number of waiting opens.
const WAITING: usize = 1_024;

/// The waiting opens and the free permits.
#[derive(Debug)]
struct Turns {
    free: usize,
    waiting: FairQueue<TenantId, oneshot::Sender<OpenPermit>>,
}

/// See the [module](self). Cloning shares it.
#[derive(Debug, Clone)]
pub(crate) struct OpenTurns(Arc<Lock<Turns>>);

/// Permission to open one subject. A drop returns it.
#[derive(Debug)]
pub(crate) struct OpenPermit {
    /// `None` once it is passed on.
    turns: Option<OpenTurns>,
}

impl OpenTurns {
    pub(crate) fn new() -> Self {
        Self::with(OPENING)
    }

    fn with(permits: usize) -> Self {
        Self(Arc::new(Lock::new(Turns { free: permits, waiting: FairQueue::new(1) })))
    }

    /// Waits for the turn of `tenant`. Cancelling the call gives the turn to the next.
    ///
    /// # Errors
    /// [`OverloadCause::SubjectOpens`] if too many opens of the tenant, or of all tenants, wait.
    pub(crate) async fn acquire(&self, tenant: TenantId) -> Result<OpenPermit, OverloadCause> {
        let turn = {
            let mut turns = self.0.lock();
            if turns.free > 0 && turns.waiting.is_empty() {
                turns.free -= 1;
                return Ok(self.permit());
            }
            let own = turns.waiting.len_of(tenant);
            let others = turns.waiting.len() - own;
            // A tenant may have half of the places that others leave free, and at least one.
            let share = (WAITING.saturating_sub(others) / 2).max(1);
            if own >= share || turns.waiting.len() >= WAITING {
                return Err(OverloadCause::SubjectOpens);
            }
            let (grant, turn) = oneshot::channel();
            turns.waiting.push(tenant, 1, grant);
            turn
        };
        // The queue holds the sender until it grants the turn, and it is not dropped while `self` exists.
        turn.await.map_err(|_| OverloadCause::SubjectOpens)
    }

    fn permit(&self) -> OpenPermit {
        OpenPermit { turns: Some(self.clone()) }
    }

    /// A permit has become free: grants it to the next that still waits.
    fn pass_on(&self) {
        loop {
            let next = {
                let mut turns = self.0.lock();
                match turns.waiting.pop() {
                    Some((_, grant)) => grant,
                    None => {
                        turns.free += 1;
                        return;
                    }
                }
            };
            match next.send(self.permit()) {
                Ok(()) => return,
                // Its caller is gone. The permit must not pass itself on here: that would recurse.
                Err(mut unused) => unused.turns = None,
            }
        }
    }
}

impl Drop for OpenPermit {
    fn drop(&mut self) {
        if let Some(turns) = self.turns.take() {
            turns.pass_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;
    use tokio::task::JoinSet;

    use super::*;

    const GREEDY: TenantId = TenantId::new(1);
    const POLITE: TenantId = TenantId::new(2);

    /// Starts an open that reports its tenant when its turn comes, and then ends.
    fn open(turns: &OpenTurns, tenant: TenantId, order: &Arc<Lock<Vec<TenantId>>>, opens: &mut JoinSet<()>) {
        let (turns, order) = (turns.clone(), Arc::clone(order));
        opens.spawn(async move {
            let _permit = turns.acquire(tenant).await.unwrap();
            order.lock().push(tenant);
            tokio::time::sleep(Duration::from_millis(10)).await;
        });
    }

    /// An open of another tenant waits for one turn, not for all waiting opens.
    #[tokio::test(start_paused = true)]
    async fn open_waits_for_one_turn_of_other_tenant() {
        let (turns, order, mut opens) = (OpenTurns::with(1), Arc::default(), JoinSet::new());
        for _ in 0..100 {
            open(&turns, GREEDY, &order, &mut opens);
        }
        tokio::time::sleep(Duration::from_millis(15)).await;
        open(&turns, POLITE, &order, &mut opens);
        opens.join_all().await;
        let order = order.lock();
        assert_eq!(order.len(), 101);
        let position = order.iter().position(|tenant| *tenant == POLITE).unwrap();
        assert!(position <= 3, "{position}");
        assert_eq!(turns.0.lock().free, 1);
    }

    /// A tenant's waiting opens are limited to half of the places that others leave free.
    #[tokio::test(start_paused = true)]
    async fn open_over_waiting_share_gets_overloaded() {
        let turns = OpenTurns::with(0);
        let mut waiting = Vec::new();
        let mut fill = |tenant| {
            let before = waiting.len();
            loop {
                let mut one = Box::pin(turns.acquire(tenant));
                match one.as_mut().now_or_never() {
                    Some(refused) => {
                        assert_eq!(refused.unwrap_err(), OverloadCause::SubjectOpens);
                        return waiting.len() - before;
                    }
                    None => waiting.push(one),
                }
            }
        };
        assert_eq!([fill(GREEDY), fill(POLITE)], [512, 256]);
    }

    /// A cancelled open, before or after its turn, leaves its permit to the next.
    #[tokio::test(start_paused = true)]
    async fn open_cancelled_leaves_permit_to_next() {
        let turns = OpenTurns::with(1);
        let first = turns.acquire(GREEDY).await.unwrap();
        let mut cancelled = Box::pin(turns.acquire(GREEDY));
        let mut granted = Box::pin(turns.acquire(GREEDY));
        let mut last = Box::pin(turns.acquire(POLITE));
        for waiting in [&mut cancelled, &mut granted, &mut last] {
            assert!(waiting.as_mut().now_or_never().is_none());
        }
        drop(cancelled);
        drop(first);
        // One of the two has the permit, and does not know yet.
        drop(granted);
        drop(last.await.unwrap());
        assert_eq!(turns.0.lock().free, 1);
    }
}
