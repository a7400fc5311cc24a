//! The network between the connections: cut, lossy, slow.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use dormouse_bus::memory::{MessageInfo, Network};
use dormouse_runtime::Lock;

use crate::rng::SeededRng;
use crate::trace::{Trace, brief};

/// The faults of messages, in messages out of a thousand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkFaults {
    /// The message is lost.
    pub lost: u64,
    /// The message is delivered, and once more later.
    pub twice: u64,
    /// The message is delayed, and later messages overtake it.
    pub late: u64,
    /// The largest delay, in milliseconds.
    pub late_ms: u64,
}

impl NetworkFaults {
    /// No faults.
    pub const NONE: Self = Self { lost: 0, twice: 0, late: 0, late_ms: 1 };
}

/// A network whose faults come from a seed and from the [nemesis](crate::nemesis). Cloning shares it.
#[derive(Clone)]
pub struct FaultyNetwork(Arc<Shared>);

struct Shared {
    rng: SeededRng,
    trace: Trace,
    state: Lock<State>,
}

struct State {
    faults: NetworkFaults,
    /// The faults of events, if they differ.
    events: Option<NetworkFaults>,
    /// The cut pairs (from, to), with the number of active cuts.
    cuts: BTreeMap<(String, String), u32>,
    /// Messages that were sent once and delivered twice, as digests.
    repeated: BTreeSet<u64>,
    /// The arrival of the last message of each pair; later messages arrive later.
    last: BTreeMap<(String, String), Duration>,
}

impl FaultyNetwork {
    /// Creates a network without faults.
    #[must_use]
    pub fn new(seed: u64, trace: Trace) -> Self {
        let state = State {
            faults: NetworkFaults::NONE,
            events: None,
            cuts: BTreeMap::new(),
            repeated: BTreeSet::new(),
            last: BTreeMap::new(),
        };
        Self(Arc::new(Shared { rng: SeededRng::of(seed, "network"), trace, state: Lock::new(state) }))
    }

    /// Sets the faults of messages.
    pub fn set_faults(&self, faults: NetworkFaults) {
        self.state().faults = faults;
    }

    /// Sets the faults of events, if they differ from those of other messages.
    pub fn set_event_faults(&self, faults: Option<NetworkFaults>) {
        self.state().events = faults;
    }

    /// Drops all messages from one host to the other until [`mend`](Self::mend) is called as often.
    pub fn cut(&self, from: &str, to: &str) {
        *self.state().cuts.entry((from.to_owned(), to.to_owned())).or_default() += 1;
    }

    /// Cancels one [`cut`](Self::cut).
    pub fn mend(&self, from: &str, to: &str) {
        let pair = (from.to_owned(), to.to_owned());
        let mut state = self.state();
        if let Some(times) = state.cuts.get_mut(&pair) {
            *times -= 1;
            if *times == 0 {
                state.cuts.remove(&pair);
            }
        }
    }

    /// Returns whether a payload was sent once and delivered twice. Then one copy may be executed although the other is
    /// rejected.
    #[must_use]
    pub fn has_repeated(&self, digest: u64) -> bool {
        self.state().repeated.contains(&digest)
    }

    /// Returns the longest delivery time of a message.
    #[must_use]
    pub fn delay(&self) -> Duration {
        let faults = self.state().faults;
        let late_ms = if faults.late + faults.twice > 0 { faults.late_ms } else { 0 };
        Duration::from_millis(5 + late_ms)
    }

    /// Removes all cuts and faults.
    pub fn heal(&self) {
        let mut state = self.state();
        state.cuts.clear();
        state.faults = NetworkFaults::NONE;
        state.events = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }

    fn decide(&self, pair: &(String, String), is_event: bool) -> Vec<Duration> {
        let (rng, trace) = (&self.0.rng, &self.0.trace);
        let mut state = self.state();
        // The number of draws is constant, so a message's faults do not depend on earlier messages.
        let [draw, jitter, late, second] = std::array::from_fn(|_| rng.draw());
        let faults = state.events.filter(|_| is_event).unwrap_or(state.faults);
        if state.cuts.contains_key(pair) {
            trace.count("message cut off");
            return Vec::new();
        }
        let now = trace.now();
        // Half a millisecond on average, and in order.
        let arrives = now + Duration::from_micros(100 + jitter % 800);
        let last = state.last.entry(pair.clone()).or_default();
        let in_order = arrives.max(*last + Duration::from_micros(1));
        let late = Duration::from_millis(1 + late % faults.late_ms.max(1));
        let mut chance = draw % 1_000;
        let mut hits = |odds: u64| {
            let hits = chance < odds;
            chance = chance.wrapping_sub(odds);
            hits
        };
        if hits(faults.lost) {
            trace.count("message lost");
            return Vec::new();
        }
        if hits(faults.late) {
            trace.count("message delayed");
            return vec![in_order + late - now];
        }
        *last = in_order;
        if hits(faults.twice) {
            trace.count("message duplicated");
            let again = Duration::from_millis(1 + second % faults.late_ms.max(1));
            return vec![in_order - now, in_order + again - now];
        }
        vec![in_order - now]
    }
}

impl Network for FaultyNetwork {
    fn delivery_delays(&self, passage: MessageInfo<'_>) -> Vec<Duration> {
        let MessageInfo { from, to, route, is_reply: is_answer, payload } = passage;
        let is_event = route.as_str().starts_with("persist.events.");
        let delays = self.decide(&(from.to_owned(), to.to_owned()), is_event);
        let (size, digest) = (payload.len(), brief(payload));
        if delays.len() > 1 {
            self.state().repeated.insert(digest);
        }
        let kind = if is_answer { "answer" } else { "message" };
        self.0.trace.line(format_args!("{kind} {from}>{to} {route} {size}:{digest:016x} {delays:?}"));
        delays
    }
}
