//! The gets to one subject: how many are in flight, which are queued, and which are sent next. A pure
//! machine.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_protocol::data::GetRequest;
use dormouse_protocol::limits::MAX_ITEMS_PER_REQUEST;
use dormouse_protocol::{Message, Seq};

use crate::sizes::{RequestSpace, key_size};

/// While fewer requests than this are in flight, a get is sent at once. With one request in flight, the
/// server would idle while its reply travels and the next request is built; with more, fewer gets share one.
pub(super) const IN_FLIGHT: usize = 2;

/// The most bytes of a seq in a list.
const SEQ_BYTES: usize = 9;

/// Identifies a request or a queued get, in the order in which they start. Each number is used once.
pub(super) type GetPosition = u64;

/// The message that a get requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum GetTarget {
    /// The message at a seq.
    Seq(Seq),
    /// The message under a key.
    Key(String),
}

impl GetTarget {
    /// The target of `request`, if it requests one message.
    pub(super) fn of(request: &GetRequest) -> Option<Self> {
        match request {
            GetRequest { v: _, seq: Some(seq), key: None, keys: None, seqs: None } => Some(Self::Seq(*seq)),
            GetRequest { v: _, seq: None, key: Some(key), keys: None, seqs: None } => {
                Some(Self::Key(key.clone()))
            }
            _ => None,
        }
    }

    /// Whether `message` is the requested one.
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

/// One get, and the ticket of its caller.
#[derive(Debug)]
pub(super) struct PendingGet<T> {
    pub(super) wanted: GetTarget,
    /// How long the caller waits (`deadline`), and until when (`expires_at`).
    pub(super) deadline: Duration,
    pub(super) expires_at: Duration,
    pub(super) ticket: T,
}

/// Gets in call order, which is the order in which they are sent.
pub(super) type PendingGets<T> = BTreeMap<GetPosition, PendingGet<T>>;

/// The gets to one subject. Gets are queued only while the maximum number of requests is in flight.
#[derive(Debug)]
pub(super) struct GetQueue<T> {
    /// The queued gets, separated by target: a request has either seqs or keys.
    seqs: PendingGets<T>,
    keys: PendingGets<T>,
    in_flight: usize,
    /// The requests in flight that are not slow.
    counted: usize,
    /// Requests that started before this one are slow.
    slow_before: GetPosition,
    /// How many requests have ended.
    ended: u64,
    /// No request holds more gets than this.
    at_most: usize,
}

impl<T> Default for GetQueue<T> {
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

impl<T> GetQueue<T> {
    /// Whether one more request may be sent now.
    pub(super) const fn is_free(&self) -> bool {
        self.counted < IN_FLIGHT
    }

    /// Whether nothing is queued or in flight, so that the queue can be removed.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0 && !self.is_waiting()
    }

    /// Whether a get is queued.
    pub(super) fn is_waiting(&self) -> bool {
        !self.seqs.is_empty() || !self.keys.is_empty()
    }

    /// How many requests have ended. A queued get passes it to [`is_stalled`](Self::is_stalled).
    pub(super) const fn ended(&self) -> u64 {
        self.ended
    }

    /// One more request starts.
    pub(super) const fn begin(&mut self) {
        self.in_flight += 1;
        self.counted += 1;
    }

    /// The request that started at `position` has ended, with any result.
    pub(super) const fn end(&mut self, position: GetPosition) {
        self.in_flight -= 1;
        self.ended += 1;
        if position >= self.slow_before {
            self.counted -= 1;
        }
    }

    /// Queues a get for the next request.
    pub(super) fn push(&mut self, position: GetPosition, get: PendingGet<T>) {
        match get.wanted {
            GetTarget::Seq(_) => self.seqs.insert(position, get),
            GetTarget::Key(_) => self.keys.insert(position, get),
        };
    }

    /// Removes a get, if it is still queued.
    pub(super) fn remove(&mut self, position: GetPosition) -> Option<PendingGet<T>> {
        self.seqs.remove(&position).or_else(|| self.keys.remove(&position))
    }

    /// Removes all queued gets.
    pub(super) fn clear(&mut self) -> [PendingGets<T>; 2] {
        [std::mem::take(&mut self.seqs), std::mem::take(&mut self.keys)]
    }

    /// Whether the get at `position` is queued and no request has ended since the count was `ended`: then the
    /// requests in flight are slow, and the get does not wait for them.
    pub(super) fn is_stalled(&self, position: GetPosition, ended: u64) -> bool {
        self.ended == ended && (self.seqs.contains_key(&position) || self.keys.contains_key(&position))
    }

    /// Requests that started before `now` are slow and no longer count: other requests are sent beside them.
    pub(super) const fn ignore_slow(&mut self, now: GetPosition) {
        self.slow_before = now;
        self.counted = 0;
    }

    /// A request was answered except for the gets `rest`. They are queued again at their old positions. Later
    /// requests hold no more gets than a reply answers, as far as known: each get in a request costs the
    /// server work, whether answered or not.
    pub(super) fn answered(&mut self, answered: usize, rest: Vec<(GetPosition, PendingGet<T>)>) {
        self.at_most = if rest.is_empty() {
            self.at_most.saturating_mul(2).min(MAX_ITEMS_PER_REQUEST)
        } else {
            answered.max(1)
        };
        rest.into_iter().for_each(|(position, get)| self.push(position, get));
    }

    /// Takes the gets of the next request, if one may be sent: the oldest get, and further ones of the same
    /// kind (seqs or keys) that fit in `budget_bytes`.
    pub(super) fn take(&mut self, budget_bytes: usize) -> Option<Vec<(GetPosition, PendingGet<T>)>> {
        if !self.is_free() {
            return None;
        }
        let first = |queue: &PendingGets<T>| {
            queue.first_key_value().map_or(GetPosition::MAX, |(position, _)| *position)
        };
        let queue = if first(&self.seqs) < first(&self.keys) { &mut self.seqs } else { &mut self.keys };
        let mut taken = Vec::new();
        let mut space = RequestSpace::new(self.at_most, budget_bytes);
        while let Some(next) = queue.first_entry()
            && space.add(next.get().wanted.size_bytes())
        {
            taken.push(next.remove_entry());
        }
        if taken.is_empty() {
            return None;
        }
        self.begin();
        Some(taken)
    }
}
