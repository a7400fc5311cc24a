//! The network between the connections: cut, lossy, slow.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_bus::memory::{Network, Passage};

use crate::dice::Dice;
use crate::trace::{Trace, brief};

/// How often what happens to a message, in messages out of a thousand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weather {
    /// It is lost.
    pub lost: u64,
    /// It comes twice.
    pub twice: u64,
    /// It comes late, and what was sent after it before it.
    pub late: u64,
    /// How late at most, in milliseconds.
    pub late_ms: u64,
}

impl Weather {
    /// Nothing happens to messages.
    pub const FAIR: Self = Self { lost: 0, twice: 0, late: 0, late_ms: 1 };
}

/// A network whose faults are drawn from a seed and made by the [nemesis](crate::nemesis). Cloning shares it.
#[derive(Clone)]
pub struct Net(Arc<Shared>);

struct Shared {
    dice: Dice,
    trace: Trace,
    state: Mutex<State>,
}

struct State {
    weather: Weather,
    /// What befalls events, where it is something else.
    events: Option<Weather>,
    /// From whom to whom nothing gets through, and how many times that was said.
    cuts: BTreeMap<(String, String), u32>,
    /// What was sent once and comes twice, briefly.
    repeated: BTreeSet<u64>,
    /// When the last message of each pair arrives: what comes later is sent later.
    last: BTreeMap<(String, String), Duration>,
}

impl Net {
    /// A network without faults so far.
    #[must_use]
    pub fn new(seed: u64, trace: Trace) -> Self {
        let state = State {
            weather: Weather::FAIR,
            events: None,
            cuts: BTreeMap::new(),
            repeated: BTreeSet::new(),
            last: BTreeMap::new(),
        };
        Self(Arc::new(Shared { dice: Dice::of(seed, "network"), trace, state: Mutex::new(state) }))
    }

    /// From now on this is the weather.
    pub fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    /// From now on this befalls events, whatever befalls everything else.
    pub fn set_events_weather(&self, weather: Option<Weather>) {
        self.state().events = weather;
    }

    /// Nothing gets through from one to the other until [`mend`](Self::mend) was called as often.
    pub fn cut(&self, from: &str, to: &str) {
        *self.state().cuts.entry((from.to_owned(), to.to_owned())).or_default() += 1;
    }

    /// Takes back one [`cut`](Self::cut).
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

    /// Whether a payload that was sent once came twice: what one copy is refused the other may be granted.
    #[must_use]
    pub fn has_repeated(&self, digest: u64) -> bool {
        self.state().repeated.contains(&digest)
    }

    /// How long a message is on its way at most.
    #[must_use]
    pub fn delay(&self) -> Duration {
        let weather = self.state().weather;
        let late_ms = if weather.late + weather.twice > 0 { weather.late_ms } else { 0 };
        Duration::from_millis(5 + late_ms)
    }

    /// Everything gets through again, in fair weather.
    pub fn heal(&self) {
        let mut state = self.state();
        state.cuts.clear();
        state.weather = Weather::FAIR;
        state.events = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn decide(&self, pair: &(String, String), is_event: bool) -> Vec<Duration> {
        let (dice, trace) = (&self.0.dice, &self.0.trace);
        let mut state = self.state();
        // Always as many draws: what befalls a message does not hang on what befell those before it.
        let [fate, way, late, second] = std::array::from_fn(|_| dice.draw());
        let weather = state.events.filter(|_| is_event).unwrap_or(state.weather);
        if state.cuts.contains_key(pair) {
            trace.count("message cut off");
            return Vec::new();
        }
        let now = trace.now();
        // Half a millisecond on average, and in order.
        let arrives = now + Duration::from_micros(100 + way % 800);
        let last = state.last.entry(pair.clone()).or_default();
        let in_turn = arrives.max(*last + Duration::from_micros(1));
        let late = Duration::from_millis(1 + late % weather.late_ms.max(1));
        let mut chance = fate % 1_000;
        let mut falls = |odds: u64| {
            let falls = chance < odds;
            chance = chance.wrapping_sub(odds);
            falls
        };
        if falls(weather.lost) {
            trace.count("message lost");
            return Vec::new();
        }
        if falls(weather.late) {
            trace.count("message late");
            return vec![in_turn + late - now];
        }
        *last = in_turn;
        if falls(weather.twice) {
            trace.count("message twice");
            let again = Duration::from_millis(1 + second % weather.late_ms.max(1));
            return vec![in_turn - now, in_turn + again - now];
        }
        vec![in_turn - now]
    }
}

impl Network for Net {
    fn fates(&self, passage: Passage<'_>) -> Vec<Duration> {
        let Passage { from, to, route, is_answer, payload } = passage;
        let is_event = route.as_str().starts_with("persist.events.");
        let fates = self.decide(&(from.to_owned(), to.to_owned()), is_event);
        let (size, digest) = (payload.len(), brief(payload));
        if fates.len() > 1 {
            self.state().repeated.insert(digest);
        }
        let kind = if is_answer { "answer" } else { "message" };
        self.0.trace.line(format_args!("{kind} {from}>{to} {route} {size}:{digest:016x} {fates:?}"));
        fates
    }
}
