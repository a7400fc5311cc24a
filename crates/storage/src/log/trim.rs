//! The task that deletes slots nobody needs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::Slot;
use futures::stream::{FuturesUnordered, StreamExt};

use super::handle::Shared;

/// After a deletion that failed.
const PAUSE: Duration = Duration::from_secs(5);

/// Deletions under way at once: as many slots as are written in a second must be deleted in one.
const MOST_AT_ONCE: usize = 8;

/// When so many have failed, only those are tried again: the bucket does not delete just now.
const MOST_FAILED: usize = 1_024;

pub(super) async fn run(shared: Arc<Shared>) {
    let mut over = std::pin::pin!(shared.ended());
    let mut under_way = FuturesUnordered::new();
    // Those that failed, and when each is tried again, in this order.
    let mut failed = VecDeque::new();
    // What is not deleted at the end goes when the log is drained.
    while !shared.stop.is_given() {
        let now = shared.env.boot();
        while under_way.len() < MOST_AT_ONCE {
            let Some(slot) = next(&shared, &mut failed, now) else { break };
            under_way.push(delete(&shared, slot));
        }
        let retry_at = failed.front().filter(|_| under_way.len() < MOST_AT_ONCE).map(|(at, _)| *at);
        let pause = retry_at.map(|at: Duration| at.saturating_sub(now));
        tokio::select! {
            biased;
            _ = &mut over => return,
            Some((slot, deleted)) = under_way.next() => {
                if !deleted {
                    failed.push_back((shared.env.boot() + PAUSE, slot));
                }
            }
            () = shared.rest(&shared.wakers.trim, pause) => {}
        }
    }
}

/// The slot to delete next: a fresh one before one that could not be deleted.
fn next(shared: &Shared, failed: &mut VecDeque<(Duration, Slot)>, now: Duration) -> Option<Slot> {
    let fresh = if failed.len() < MOST_FAILED { shared.lock().take_doomed_slot() } else { None };
    fresh.or_else(|| failed.pop_front_if(|(at, _)| *at <= now).map(|(_, slot)| slot))
}

/// Deletes a slot; says whether it is gone.
async fn delete(shared: &Shared, slot: Slot) -> (Slot, bool) {
    let deleted = shared.bucket.delete(&shared.keys.slot(slot)).await;
    match &deleted {
        Ok(()) => tracing::debug!(log = %shared.id, %slot, "deleted: no manifest needs it"),
        Err(error) => {
            tracing::debug!(log = %shared.id, %slot, %error, "a slot that nobody needs stays for now");
        }
    }
    (slot, deleted.is_ok())
}
