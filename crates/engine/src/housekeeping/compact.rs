//! Compaction of subjects whose old entries retain log slots. A dormant subject is opened for it.

mod choice;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dormouse_protocol::{ErrorReply, Subject};
use futures::stream::{FuturesUnordered, StreamExt};

use crate::api::SubjectRequest;
use crate::engine::EngineShared;
use choice::{CompactionChoice, LogView};

/// Interval of the checks: in this time, a log grows by a small part of its smallest limit.
const INTERVAL: Duration = Duration::from_secs(1);

/// Above this number of subjects with a tail, all of them are due, because each tail uses memory.
const MANY: u64 = 50_000;

/// Above this sum of the slots of all tails, all of them are due for the same reason.
const MANY_SLOTS: u64 = 1_000_000;

/// Compacts due subjects: at intervals, and whenever a compaction has ended.
pub(super) async fn run(shared: Arc<EngineShared>) {
    let mut choice = CompactionChoice::default();
    let mut running = FuturesUnordered::new();
    let mut check = std::pin::pin!(tokio::time::sleep(INTERVAL));
    loop {
        tokio::select! {
            biased;
            Some((subject, error)) = running.next() => {
                if let Some(error) = &error {
                    tracing::debug!(%subject, %error, impact = "old log slots are retained", "compaction failed");
                }
                choice.ended(subject, error.is_none(), shared.env.boot());
            }
            () = &mut check => {
                check.set(tokio::time::sleep(INTERVAL));
                begin_check(&shared, &mut choice);
            }
        }
        let view = view(&shared, choice.look_at());
        for subject in choice.begin(view, shared.env.boot()) {
            running.push(compact(Arc::clone(&shared), subject));
        }
    }
}

fn begin_check(shared: &EngineShared, choice: &mut CompactionChoice) {
    let (retained, limit) = (shared.log.metrics().retained_bytes, shared.settings.log.max_log_bytes);
    let is_over = choice.begin_check(retained, limit, shared.env.boot());
    let was_over = shared.counters.log_over_limit.swap(is_over, Ordering::Relaxed);
    if is_over && !was_over {
        tracing::warn!(
            retained_bytes = retained,
            limit,
            impact = "the log uses more of the bucket than it may",
            "log exceeds its limit of bytes"
        );
    }
}

fn view(shared: &EngineShared, most: usize) -> LogView {
    let log = shared.log.metrics();
    LogView {
        next: shared.log.next_slot(),
        lowest_within_limit: shared.log.lowest_slot_within_limit(),
        has_many_tails: log.subjects_with_tail > MANY || log.tail_slots > MANY_SLOTS,
        oldest: shared.log.oldest_tails(most),
    }
}

async fn compact(shared: Arc<EngineShared>, subject: Subject) -> (Subject, Option<ErrorReply>) {
    let done = shared.execute(&subject, SubjectRequest::Compact).await;
    (subject, done.err())
}
