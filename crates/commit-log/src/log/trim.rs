//! The task that deletes unneeded slots.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::Slot;
use futures::stream::{FuturesUnordered, StreamExt};

use super::handle::LogShared;

/// Pause after a failed delete.
const PAUSE: Duration = Duration::from_secs(5);

/// Concurrent deletes: as many slots as are written in a second must be deleted in one.
const MAX_CONCURRENT_DELETES: usize = 8;

/// At this many failures, only the failed deletes are retried: the bucket rejects deletes at the moment.
const MAX_FAILED_DELETES: usize = 1_024;

pub(super) async fn run(shared: Arc<LogShared>) {
    let mut over = std::pin::pin!(shared.ended());
    let mut under_way = FuturesUnordered::new();
    // Failed deletes and when each is retried, in this order.
    let mut failed = VecDeque::new();
    // Slots that are not deleted at the end are deleted when the log is reclaimed.
    while !shared.stop.is_requested() {
        let now = shared.env.boot();
        while under_way.len() < MAX_CONCURRENT_DELETES {
            let Some(slot) = next(&shared, &mut failed, now) else { break };
            under_way.push(delete(&shared, slot));
        }
        let retry_at = failed.front().filter(|_| under_way.len() < MAX_CONCURRENT_DELETES).map(|(at, _)| *at);
        let pause = retry_at.map(|at: Duration| at.saturating_sub(now));
        tokio::select! {
            biased;
            _ = &mut over => return,
            Some((slot, deleted)) = under_way.next() => {
                if !deleted {
                    failed.push_back((shared.env.boot() + PAUSE, slot));
                }
            }
            () = shared.wait_for_work(&shared.wakers.trim, pause) => {}
        }
    }
}

/// The slot to delete next: new slots come before failed ones.
fn next(shared: &LogShared, failed: &mut VecDeque<(Duration, Slot)>, now: Duration) -> Option<Slot> {
    let fresh = if failed.len() < MAX_FAILED_DELETES { shared.lock().take_trimmable_slot() } else { None };
    fresh.or_else(|| failed.pop_front_if(|(at, _)| *at <= now).map(|(_, slot)| slot))
}

/// Deletes a slot; returns whether it is deleted.
async fn delete(shared: &LogShared, slot: Slot) -> (Slot, bool) {
    let deleted = shared.bucket.delete(&shared.keys.slot(slot)).await;
    match &deleted {
        Ok(()) => {
            shared.lock().slot_sizes.deleted(slot);
            tracing::debug!(log = %shared.id, %slot, "slot deleted");
        }
        Err(error) => {
            tracing::debug!(log = %shared.id, %slot, %error, "slot delete failed");
        }
    }
    (slot, deleted.is_ok())
}
