//! Records a fault when a server has not reached the bucket for longer than the history's rules allow, no matter
//! whether the fault was injected on purpose or at random.

use std::time::Duration;

use dormouse_checker::ServerFaultKind;
use dormouse_protocol::ServerName;
use dormouse_runtime::Lock;

use crate::recorder::Recorder;

/// The time without a successful create after which a fault is recorded. It must be well below
/// [`Rules::unshipped`](dormouse_checker::Rules::unshipped), otherwise faults in between are missed.
const NOTED_AFTER: Duration = Duration::from_secs(1);

/// The results of one server's creates in its own log.
pub struct BucketOutage {
    server: ServerName,
    recorder: Recorder,
    state: Lock<State>,
}

#[derive(Default)]
struct State {
    /// The time since which every attempt has failed.
    since: Option<Duration>,
    /// The index of the fault, once it is recorded.
    fault_id: Option<usize>,
}

impl BucketOutage {
    /// The state of a server without attempts.
    #[must_use]
    pub fn new(server: ServerName, recorder: Recorder) -> Self {
        Self { server, recorder, state: Lock::default() }
    }

    /// Records the end of an attempt at `now`.
    pub fn tried(&self, now: Duration, reached: bool) {
        let mut state = self.state.lock();
        let since = match state.since {
            Some(since) => since,
            None if reached => return,
            None => *state.since.insert(now),
        };
        if state.fault_id.is_none() && now >= since + NOTED_AFTER {
            state.fault_id =
                Some(self.recorder.record_fault(&self.server, ServerFaultKind::CutFromBucket, since));
        }
        if reached {
            let State { fault_id, .. } = std::mem::take(&mut *state);
            if let Some(fault_id) = fault_id {
                self.recorder.end_fault(fault_id);
            }
        }
    }
}
