//! When a server has not reached the bucket for longer than the history's rules allow for by themselves: that is a harm
//! like any other, whether it was done on purpose or drawn.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dormouse_checker::HarmKind;
use dormouse_protocol::ServerName;

use crate::recorder::Recorder;

/// How long it may fail to bring its log to the bucket before that is noted. Well below what is allowed for in
/// [`Rules::unshipped`](dormouse_checker::Rules::unshipped), or there would be a gap.
const NOTED_AFTER: Duration = Duration::from_secs(1);

/// How one server gets on with bringing its own log to the bucket.
pub struct Outage {
    server: ServerName,
    recorder: Recorder,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Since when every attempt has failed.
    since: Option<Duration>,
    /// The harm of it, once it is one.
    harm: Option<usize>,
}

impl Outage {
    /// Of a server that has not tried yet.
    #[must_use]
    pub fn new(server: ServerName, recorder: Recorder) -> Self {
        Self { server, recorder, state: Mutex::default() }
    }

    /// An attempt has come to an end at `now`.
    pub fn tried(&self, now: Duration, reached: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match state.since {
            Some(since) => since,
            None if reached => return,
            None => *state.since.insert(now),
        };
        if state.harm.is_none() && now >= since + NOTED_AFTER {
            state.harm = Some(self.recorder.harm(&self.server, HarmKind::CutFromBucket, since));
        }
        if reached {
            let State { harm, .. } = std::mem::take(&mut *state);
            if let Some(harm) = harm {
                self.recorder.harm_over(harm);
            }
        }
    }
}
