//! Queued changes whose caller no longer waits.
//!
//! Such a change is not planned. It is refused, unless another copy of it can be or was executed:
//!
//! - A later copy in the queue waits longer: its deadline applies to the first copy, too.
//! - A copy is planned, or the dedup window has its reply: the reply follows that copy.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::RequestId;
use dormouse_protocol::deadline::time_ran_out;
use dormouse_runtime::injected_bug;
use dormouse_subject_state::database::Database;
use dormouse_subject_state::plan::{self, PlanResult};

use super::Respond;
use super::pipeline::Pipeline;
use crate::api::Submission;
use crate::engine::EngineShared;

/// The deadlines of the queued copies of each request. They are collected at the first expired request of a planning pass,
/// so other passes cost nothing.
#[derive(Default)]
pub(super) struct QueuedDeadlines(Option<HashMap<RequestId, Duration>>);

impl QueuedDeadlines {
    /// The deadline of the first request in `writes`, or that of its copy that waits longest.
    fn of_front(&mut self, writes: &VecDeque<Submission>) -> Duration {
        let Some(front) = writes.front() else { return Duration::ZERO };
        let Some(id) = plan::request_id(&front.request) else { return front.deadline };
        let latest = self.0.get_or_insert_with(|| {
            let mut latest = HashMap::new();
            for submission in writes {
                if let Some(id) = plan::request_id(&submission.request) {
                    let deadline: &mut Duration = latest.entry(id).or_default();
                    *deadline = submission.deadline.max(*deadline);
                }
            }
            latest
        });
        latest.get(&id).copied().unwrap_or(front.deadline)
    }
}

/// What becomes of the first queued change.
#[expect(clippy::large_enum_variant, reason = "it is rare, and none is kept")]
pub(super) enum DeadlineCheck {
    /// Its caller, or that of a copy, still waits.
    InTime,
    /// No caller waits, but a copy was planned or executed: this is its reply.
    Known(PlanResult),
    /// No caller waits, and no copy was planned.
    Expired,
}

impl Pipeline {
    /// Checks the deadline of the first queued change at `now`.
    pub(super) fn check_deadline(
        &self,
        shared: &EngineShared,
        database: &Database,
        writes: &mut VecDeque<Submission>,
        deadlines: &mut QueuedDeadlines,
        now: Duration,
    ) -> DeadlineCheck {
        if injected_bug!(PlanExpired) || writes.front().is_none_or(|front| !front.is_expired(now)) {
            return DeadlineCheck::InTime;
        }
        let latest = deadlines.of_front(writes);
        let Some(front) = writes.front_mut() else { return DeadlineCheck::InTime };
        front.deadline = latest;
        if !front.is_expired(now) {
            return DeadlineCheck::InTime;
        }
        match self.remembered_reply(shared, database, front) {
            Some(known) => DeadlineCheck::Known(known),
            None => DeadlineCheck::Expired,
        }
    }
}

/// The reply path of a planned change. Its result is sent whatever the time.
pub(super) fn reply_path(shared: &Arc<EngineShared>, respond: Respond, deadline: Duration) -> Respond {
    if !injected_bug!(DenyPlanned) {
        return respond;
    }
    let env = shared.env.clone();
    Box::new(move |answer| respond(if env.boot() < deadline { answer } else { Err(time_ran_out()) }))
}
