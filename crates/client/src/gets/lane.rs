//! The way of gets to one subject: what is in flight, what waits, and what goes next. A pure machine.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_protocol::data::GetRequest;
use dormouse_protocol::limits::MAX_ITEMS_PER_REQUEST;
use dormouse_protocol::{Message, Seq};

use crate::subject::key_size;

/// While fewer requests than this are in flight, a get goes at once. One would leave the server idle while its answer is
/// on its way and the next request is put together; with more, fewer gets share one.
pub(super) const IN_FLIGHT: usize = 2;

/// Bytes of a seq in a list, at most.
const SEQ_BYTES: usize = 9;

/// Names a request or a get that waits, in the order in which they began. None is used twice.
pub(super) type Place = u64;

/// What a get asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The message at a seq.
    Seq(Seq),
    /// The message under a key.
    Key(String),
}

impl Wanted {
    /// What `request` asks for, if that is one message.
    pub(super) fn of(request: &GetRequest) -> Option<Self> {
        match request {
            GetRequest { v: _, seq: Some(seq), key: None, keys: None, seqs: None } => Some(Self::Seq(*seq)),
            GetRequest { v: _, seq: None, key: Some(key), keys: None, seqs: None } => {
                Some(Self::Key(key.clone()))
            }
            _ => None,
        }
    }

    /// Whether it is this message.
    pub(super) fn is(&self, message: &Message) -> bool {
        match self {
            Self::Seq(seq) => message.seq == *seq,
            Self::Key(key) => message.key.as_ref() == Some(key),
        }
    }

    const fn size_bytes(&self) -> usize {
        match self {
            Self::Seq(_) => SEQ_BYTES,
            Self::Key(key) => key_size(key.as_str()),
        }
    }
}

/// One get, and who waits for its answer.
#[derive(Debug)]
pub(super) struct Get<T> {
    pub(super) wanted: Wanted,
    /// How long the caller waits, and until when.
    pub(super) deadline: Duration,
    pub(super) expires_at: Duration,
    pub(super) ticket: T,
}

/// Gets in the order in which they were called, which is that in which they go.
pub(super) type Queue<T> = BTreeMap<Place, Get<T>>;

/// The way of gets to one subject. Something waits only while as many requests are in flight as may be.
#[derive(Debug)]
pub(super) struct Lane<T> {
    /// What waits, apart by what it asks for: a request asks for seqs or for keys.
    seqs: Queue<T>,
    keys: Queue<T>,
    in_flight: usize,
    /// Those in flight that are not slow.
    counted: usize,
    /// What began before this is slow.
    slow_before: Place,
    /// How many requests have ended.
    ended: u64,
    /// No request holds more gets than this.
    at_most: usize,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self {
            seqs: BTreeMap::new(),
            keys: BTreeMap::new(),
            in_flight: 0,
            counted: 0,
            slow_before: 0,
            ended: 0,
            at_most: MAX_ITEMS_PER_REQUEST,
        }
    }
}

impl<T> Lane<T> {
    /// Whether one more request may go now.
    pub(super) const fn is_free(&self) -> bool {
        self.counted < IN_FLIGHT
    }

    /// Whether nothing is on its way, so that the lane is not needed any more.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0 && !self.is_waiting()
    }

    /// Whether a get waits.
    pub(super) fn is_waiting(&self) -> bool {
        !self.seqs.is_empty() || !self.keys.is_empty()
    }

    /// How many requests have ended. Whoever waits shows it to [`is_stalled`](Self::is_stalled).
    pub(super) const fn ended(&self) -> u64 {
        self.ended
    }

    /// One more request goes.
    pub(super) const fn begin(&mut self) {
        self.in_flight += 1;
        self.counted += 1;
    }

    /// The request that began at `place` has come to its end, whatever that was.
    pub(super) const fn end(&mut self, place: Place) {
        self.in_flight -= 1;
        self.ended += 1;
        if place >= self.slow_before {
            self.counted -= 1;
        }
    }

    /// Waits for the next request.
    pub(super) fn push(&mut self, place: Place, get: Get<T>) {
        match get.wanted {
            Wanted::Seq(_) => self.seqs.insert(place, get),
            Wanted::Key(_) => self.keys.insert(place, get),
        };
    }

    /// Waits no longer, if it still did.
    pub(super) fn leave(&mut self, place: Place) -> Option<Get<T>> {
        self.seqs.remove(&place).or_else(|| self.keys.remove(&place))
    }

    /// Nobody waits any longer.
    pub(super) fn clear(&mut self) -> [Queue<T>; 2] {
        [std::mem::take(&mut self.seqs), std::mem::take(&mut self.keys)]
    }

    /// Whether what waits at `place` has seen no request end since there were `ended`: what is in flight is slow, and not
    /// to be waited for.
    pub(super) fn is_stalled(&self, place: Place, ended: u64) -> bool {
        self.ended == ended && (self.seqs.contains_key(&place) || self.keys.contains_key(&place))
    }

    /// What began before `now` is slow: others go beside it, as if it were not there.
    pub(super) const fn pass_by(&mut self, now: Place) {
        self.slow_before = now;
        self.counted = 0;
    }

    /// A request was answered, but for these of its gets. They wait again, where they waited before; and no more go at once
    /// than an answer holds, as far as that is known. A request costs the server something for each get in it, answered or
    /// not.
    pub(super) fn answered(&mut self, answered: usize, rest: Vec<(Place, Get<T>)>) {
        self.at_most = if rest.is_empty() {
            self.at_most.saturating_mul(2).min(MAX_ITEMS_PER_REQUEST)
        } else {
            answered.max(1)
        };
        rest.into_iter().for_each(|(place, get)| self.push(place, get));
    }

    /// Takes what goes with the next request, if one may go: what was called first, and what asks for the same, seqs or
    /// keys, as far as it fits in `budget_bytes`.
    pub(super) fn take(&mut self, budget_bytes: usize) -> Option<Vec<(Place, Get<T>)>> {
        if !self.is_free() {
            return None;
        }
        let first = |queue: &Queue<T>| queue.first_key_value().map_or(Place::MAX, |(place, _)| *place);
        let queue = if first(&self.seqs) < first(&self.keys) { &mut self.seqs } else { &mut self.keys };
        let mut taken = Vec::new();
        let mut used_bytes = 0;
        while let Some(next) = queue.first_entry() {
            let size_bytes = next.get().wanted.size_bytes();
            let fits = taken.len() < self.at_most && used_bytes + size_bytes <= budget_bytes;
            if !taken.is_empty() && !fits {
                break;
            }
            used_bytes += size_bytes;
            taken.push(next.remove_entry());
        }
        if taken.is_empty() {
            return None;
        }
        self.begin();
        Some(taken)
    }
}
