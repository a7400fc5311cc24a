//! The events of a run, line by line. Two runs of a seed must have equal traces.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use dormouse_runtime::{Env, Lock};

/// The events of a run, in order. Cloning shares it.
#[derive(Clone)]
pub struct Trace(Arc<Shared>);

struct Shared {
    world: Env,
    state: Lock<State>,
}

struct State {
    digest: u64,
    lines: u64,
    /// The text, if it is kept.
    text: Option<String>,
    line: String,
    counts: BTreeMap<&'static str, u64>,
}

/// The digest of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    /// A checksum over all lines.
    pub digest: u64,
    /// The number of lines.
    pub lines: u64,
}

impl Trace {
    /// Creates an empty trace. Times are `world`'s.
    #[must_use]
    pub fn new(world: Env, keep_text: bool) -> Self {
        let text = keep_text.then(String::new);
        let state = State {
            digest: 0xcbf2_9ce4_8422_2325,
            lines: 0,
            text,
            line: String::new(),
            counts: BTreeMap::new(),
        };
        Self(Arc::new(Shared { world, state: Lock::new(state) }))
    }

    /// Returns the time of the world.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.0.world.boot()
    }

    /// Adds a line.
    pub fn line(&self, what: fmt::Arguments<'_>) {
        let now = self.now();
        let mut guard = self.state();
        let state = &mut *guard;
        state.line.clear();
        // Writing to a `String` cannot fail.
        let _ = writeln!(state.line, "{:>12.6} {what}", now.as_secs_f64());
        for byte in state.line.bytes() {
            state.digest = (state.digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        state.lines += 1;
        if let Some(text) = &mut state.text {
            text.push_str(&state.line);
        }
    }

    /// Counts an event.
    pub fn count(&self, what: &'static str) {
        self.count_many(what, 1);
    }

    /// Counts an event several times.
    pub fn count_many(&self, what: &'static str, times: u64) {
        *self.state().counts.entry(what).or_default() += times;
    }

    /// Returns the counts.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.state().counts.clone()
    }

    /// Returns the digest of the trace so far.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let state = self.state();
        Digest { digest: state.digest, lines: state.lines }
    }

    /// Returns its lines, if they are kept.
    #[must_use]
    pub fn text(&self) -> String {
        self.state().text.clone().unwrap_or_default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }
}

/// Hashes a long payload, to identify it in a trace.
#[must_use]
pub fn brief(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
