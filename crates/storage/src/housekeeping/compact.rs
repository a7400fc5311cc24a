//! Compacting subjects whose old entries keep the log long.

use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::Slot;

use crate::api::Request;
use crate::engine::Shared;
use crate::log::Tail;

/// How often it is looked.
const INTERVAL: Duration = Duration::from_secs(10);

/// Most subjects that are compacted per look: two a second.
const AT_ONCE: usize = 20;

/// Entries older than this are given a base of their subject's own.
const OLD: Duration = Duration::from_secs(3_600);

/// A log of more slots than this is too long.
const LONG: u64 = 10_000;

/// Whether what a tail keeps of the log is too old, or too far from its end.
fn is_due(tail: &Tail, next: Slot, now: Duration) -> bool {
    now.saturating_sub(tail.since) > OLD || next.get().saturating_sub(tail.first_slot.get()) > LONG
}

/// Looks at intervals.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let (next, now) = (shared.log.next_slot(), shared.env.boot());
        for (subject, tail) in shared.log.oldest_tails(AT_ONCE) {
            if !is_due(&tail, next, now) {
                continue;
            }
            if let Err(error) = shared.execute(&subject, Request::Compact).await {
                tracing::debug!(%subject, %error, "a subject that keeps old slots of the log was not compacted");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_due_when_it_is_old_or_far_back() {
        let tail = Tail { first_slot: Slot::new(5), bytes: 1, entries: 1, since: Duration::from_secs(100) };
        let at = |slot, seconds| is_due(&tail, Slot::new(slot), Duration::from_secs(seconds));
        assert!(!at(10_005, 3_700));
        assert!(at(10_006, 3_700));
        assert!(at(10_005, 3_701));
    }
}
