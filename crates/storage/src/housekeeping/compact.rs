//! Compacting subjects whose old entries keep the log long.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::{Slot, Subject};
use futures::StreamExt;

use crate::api::Request;
use crate::engine::Shared;
use crate::log::Tail;

/// How often it is looked.
const INTERVAL: Duration = Duration::from_secs(5);

/// Most subjects that are compacted per look, and at the same time.
const PER_LOOK: usize = 250;
const AT_ONCE: usize = 8;

/// Entries older than this are given a base of their subject's own.
const OLD: Duration = Duration::from_secs(3_600);

/// A log of more slots than this is too long.
const LONG: u64 = 10_000;

/// More subjects than this shall not need the log: what is remembered of each is in memory.
const MANY: u64 = 50_000;

/// For how long a subject that could not be compacted makes room for others, and how many such are remembered.
const REST: Duration = Duration::from_secs(120);
const MOST_RESTING: usize = 1_000;

/// Whether what a tail keeps of the log is too old, or too far from its end.
fn is_due(tail: &Tail, next: Slot, now: Duration) -> bool {
    now.saturating_sub(tail.since) > OLD || next.get().saturating_sub(tail.first_slot.get()) > LONG
}

/// Looks at intervals.
pub(super) async fn run(shared: Arc<Shared>) {
    // Subjects that could not be compacted, and until when they rest: none may stand in the way of the others for ever.
    let mut resting: HashMap<Subject, Duration> = HashMap::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let (next, now) = (shared.log.next_slot(), shared.env.boot());
        resting.retain(|_, until| *until > now);
        let many = shared.log.figures().tails > MANY;
        let due: Vec<Subject> = shared
            .log
            .oldest_tails(PER_LOOK + resting.len())
            .into_iter()
            .filter(|(subject, tail)| (many || is_due(tail, next, now)) && !resting.contains_key(subject))
            .map(|(subject, _)| subject)
            .collect();
        let compacted = futures::stream::iter(due).map(|subject| {
            let shared = Arc::clone(&shared);
            async move {
                let done = shared.execute(&subject, Request::Compact).await;
                (subject, done.err())
            }
        });
        let failed: Vec<_> = compacted.buffer_unordered(AT_ONCE).collect().await;
        for (subject, error) in failed {
            let Some(error) = error else { continue };
            tracing::debug!(%subject, %error, "a subject that keeps old slots of the log was not compacted");
            if resting.len() < MOST_RESTING {
                resting.insert(subject, now + REST);
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
