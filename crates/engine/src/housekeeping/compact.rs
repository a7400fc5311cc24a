//! Compaction of subjects whose old entries retain log slots.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dormouse_commit_log::log::SubjectTail;
use dormouse_protocol::{Slot, Subject};
use futures::StreamExt;

use crate::api::SubjectRequest;
use crate::engine::EngineShared;

/// Interval of the checks.
const INTERVAL: Duration = Duration::from_secs(5);

/// Maximum number of subjects compacted per check, and at the same time.
const PER_CHECK: usize = 250;
const AT_ONCE: usize = 8;

/// A subject with entries older than this is compacted.
const OLD: Duration = Duration::from_secs(3_600);

/// A log with more retained slots than this is too long.
const LONG: u64 = 10_000;

/// Above this number of subjects with a tail, all of them are due, because each tail uses memory.
const MANY: u64 = 50_000;

/// Above this sum of the slots of all tails, all of them are due for the same reason.
const MANY_SLOTS: u64 = 1_000_000;

/// How long a subject is skipped after a failed compaction, and the maximum number of skipped subjects.
const RETRY_DELAY: Duration = Duration::from_secs(120);
const MAX_SKIPPED: usize = 1_000;

/// Whether a tail is too old or has too many slots, or its first slot is too far from the end of the log.
fn is_due(tail: &SubjectTail, next: Slot, now: Duration) -> bool {
    now.saturating_sub(tail.since) > OLD
        || tail.slots >= SubjectTail::DUE_SLOTS
        || next.get().saturating_sub(tail.first_slot.get()) > LONG
}

/// Compacts due subjects at intervals.
pub(super) async fn run(shared: Arc<EngineShared>) {
    // Subjects with a failed compaction, and until when they are skipped, so that they do not block the others.
    let mut skipped: HashMap<Subject, Duration> = HashMap::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let (next, now) = (shared.log.next_slot(), shared.env.boot());
        skipped.retain(|_, until| *until > now);
        let log = shared.log.metrics();
        let many = log.subjects_with_tail > MANY || log.tail_slots > MANY_SLOTS;
        let due: Vec<Subject> = shared
            .log
            .oldest_tails(PER_CHECK + skipped.len())
            .into_iter()
            .filter(|(subject, tail)| (many || is_due(tail, next, now)) && !skipped.contains_key(subject))
            .map(|(subject, _)| subject)
            .collect();
        let compacted = futures::stream::iter(due).map(|subject| {
            let shared = Arc::clone(&shared);
            async move {
                let done = shared.execute(&subject, SubjectRequest::Compact).await;
                (subject, done.err())
            }
        });
        let failed: Vec<_> = compacted.buffer_unordered(AT_ONCE).collect().await;
        for (subject, error) in failed {
            let Some(error) = error else { continue };
            tracing::debug!(%subject, %error, impact = "old log slots are retained", "compaction failed");
            if skipped.len() < MAX_SKIPPED {
                skipped.insert(subject, now + RETRY_DELAY);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A subject is due for compaction if its tail is too old, has too many slots, or is too many slots back.
    #[test]
    fn compaction_is_due_for_old_or_distant_tail() {
        let since = Duration::from_secs(100);
        let tail = SubjectTail { first_slot: Slot::new(5), bytes: 1, entries: 1, slots: 1_023, since };
        let at = |slot, seconds| is_due(&tail, Slot::new(slot), Duration::from_secs(seconds));
        assert!(!at(10_005, 3_700));
        assert!(at(10_006, 3_700));
        assert!(at(10_005, 3_701));
        assert!(is_due(&SubjectTail { slots: 1_024, ..tail }, Slot::new(5), since));
    }
}
