//! Answering requests: a subscription whose messages come with somebody who takes the answer.
//!
//! ```text
//! subscription ──> Requests::next_many ──> Incoming { …, responder }
//!                                                        │ ok / error: one bounded queue for all of them
//!                                                        v
//!                                            one task ──> Bus::publish, many per wake-up
//! ```

mod complaints;
mod stats;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::{ErrorCode, ErrorReply, Headers, Route, RoutePattern, encode};
use dormouse_runtime::{Env, Tasks};
use tokio::sync::mpsc;

use self::complaints::Complaints;
pub use self::stats::{EndpointFigures, EndpointStats};
use crate::{
    Bus, Caller, Callers, Delivery, InboxPrefixes, Outgoing, PublishError, SubscribeError, SubscribeOptions,
    Subscription, validate,
};

/// How many replies are sent per wake-up of the task that sends them.
const REPLIES_PER_WAKE_UP: usize = 256;

/// What a caller is told to wait whose answer finds no room, in milliseconds.
const RETRY_AFTER_MS: u64 = 100;

/// How to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeOptions {
    /// Each request goes to one member of this group only.
    pub queue: Option<String>,
    /// Answers are sent only to addresses under these. Otherwise a client could make us publish for it wherever we may.
    pub inbox_prefixes: InboxPrefixes,
    /// Whose subjects a request may be about.
    pub callers: Callers,
    /// How many requests wait to be taken before new ones are dropped.
    pub capacity: usize,
    /// How many answers wait to be sent before new ones are dropped; the caller then waits out its deadline.
    pub reply_capacity: usize,
    /// How many bytes of answers wait to be sent before results of reads are refused with `overloaded`: a slow
    /// connection must not fill the memory. In bytes.
    pub reply_capacity_bytes: usize,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            queue: None,
            inbox_prefixes: InboxPrefixes::default(),
            callers: Callers::default(),
            capacity: 65_536,
            reply_capacity: 65_536,
            reply_capacity_bytes: 128 * 1_024 * 1_024,
        }
    }
}

/// Listens to `pattern` for requests. When the call returns, the subscription is in force.
///
/// The task that sends the answers runs in `tasks` until [`Requests`] and every [`Responder`] are dropped or the bus
/// is closed; it heeds no stop signal, so that what was begun can still be answered.
///
/// Cancelling the call leaves no subscription.
///
/// # Errors
/// [`SubscribeError`].
pub async fn serve(
    bus: &Arc<dyn Bus>,
    env: &Env,
    tasks: &Tasks,
    pattern: RoutePattern,
    options: ServeOptions,
) -> Result<Requests, SubscribeError> {
    let ServeOptions { queue, inbox_prefixes, callers, capacity, reply_capacity, reply_capacity_bytes } =
        options;
    let subscription = bus.subscribe(pattern, SubscribeOptions { queue, capacity }).await?;
    let stats = Arc::new(EndpointStats::default());
    let (replies, queued) = mpsc::channel(reply_capacity.max(1));
    let waiting = Arc::new(Waiting { limit_bytes: reply_capacity_bytes, bytes: AtomicUsize::new(0) });
    tasks.spawn("replies", send_replies(Arc::clone(bus), queued, Arc::clone(&waiting), Arc::clone(&stats)));
    let outbox = Outbox { replies, waiting, bus: Arc::clone(bus), env: env.clone(), stats };
    let outbox = Arc::new(outbox);
    Ok(Requests {
        subscription,
        outbox,
        inbox_prefixes,
        callers,
        complaints: Complaints::default(),
        arrived: Vec::new(),
    })
}

/// The requests on a pattern. Listening ends when dropped; answers already given are still sent.
pub struct Requests {
    subscription: Subscription,
    outbox: Arc<Outbox>,
    inbox_prefixes: InboxPrefixes,
    callers: Callers,
    complaints: Complaints,
    arrived: Vec<Delivery>,
}

impl Requests {
    /// The next request; `None` once the bus is closed. Cancelling the wait loses no request.
    pub async fn next(&mut self) -> Option<Incoming> {
        loop {
            let delivery = self.subscription.next().await?;
            if let Some(incoming) = self.admit(delivery) {
                return Some(incoming);
            }
        }
    }

    /// Moves what has arrived into `buffer`, at most `limit` requests, waiting for the first. Returns their number; 0
    /// once the bus is closed. One wake-up for a whole burst. Cancelling the wait loses no request.
    pub async fn next_many(&mut self, buffer: &mut Vec<Incoming>, limit: usize) -> usize {
        let before = buffer.len();
        while buffer.len() == before {
            let mut arrived = std::mem::take(&mut self.arrived);
            let number = self.subscription.next_many(&mut arrived, limit).await;
            buffer.extend(arrived.drain(..).filter_map(|delivery| self.admit(delivery)));
            self.arrived = arrived;
            if number == 0 {
                break;
            }
        }
        buffer.len() - before
    }

    /// Stops listening; see [`Subscription::unsubscribe`]. Requests that were sent before can still be taken; after that
    /// it is as if the bus were closed.
    pub fn unsubscribe(&mut self) {
        self.subscription.unsubscribe();
    }

    /// The figures of this endpoint, shared.
    #[must_use]
    pub fn stats(&self) -> &Arc<EndpointStats> {
        &self.outbox.stats
    }

    fn admit(&mut self, delivery: Delivery) -> Option<Incoming> {
        let Delivery { route, reply_to, headers, payload } = delivery;
        let Some(reply_to) = reply_to else {
            self.outbox.stats.count_unanswerable();
            return None;
        };
        let now = self.outbox.env.boot();
        if !self.inbox_prefixes.allow(&reply_to) {
            self.outbox.stats.count_refused();
            self.complaints.about(&route, &reply_to, now);
            return None;
        }
        let responder = Responder {
            reply_to,
            received: now,
            outbox: Arc::clone(&self.outbox),
            counted_in: None,
            changes: false,
        };
        let caller = self.callers.identify(&headers);
        Some(Incoming { route, caller, payload, headers, responder })
    }
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("subscription", &self.subscription).finish_non_exhaustive()
    }
}

/// A request that has arrived.
#[derive(Debug)]
pub struct Incoming {
    /// Where it was sent to.
    pub route: Route,
    /// Who sent it.
    pub caller: Caller,
    /// The content.
    pub payload: Bytes,
    /// Headers of the transport.
    pub headers: Headers,
    /// Takes the answer.
    pub responder: Responder,
}

/// Takes the one answer to a request. Dropped without one, the caller waits out its deadline.
#[must_use = "a request that gets no answer leaves its caller waiting"]
pub struct Responder {
    reply_to: Route,
    received: Duration,
    outbox: Arc<Outbox>,
    counted_in: Option<Arc<EndpointStats>>,
    changes: bool,
}

impl Responder {
    /// Declares that the request may have changed something by the time a result is there: a result that does not fit
    /// then becomes `indeterminate`, since `too_large` would say that nothing happened.
    pub fn changing(mut self) -> Self {
        self.changes = true;
        self
    }

    /// Counts the answer in `stats` instead of in the figures of the whole pattern: a pattern may hold several
    /// endpoints.
    pub fn counted_in(mut self, stats: &Arc<EndpointStats>) -> Self {
        self.counted_in = Some(Arc::clone(stats));
        self
    }

    /// Answers with a result. Never waits: where the queue of answers is full, this one is dropped and counted. A
    /// result larger than the largest payload becomes the error `too_large`, or `indeterminate` after
    /// [`changing`](Self::changing).
    pub fn ok(self, payload: Bytes) {
        let limit_bytes = self.outbox.bus.max_payload();
        if payload.len() > limit_bytes {
            let too_large = ErrorReply::too_large("max_payload", payload.len(), limit_bytes);
            if !self.changes {
                return self.error(&too_large);
            }
            let text = format!("it was carried out, but its result cannot be sent: {}", too_large.message);
            return self.error(&ErrorReply::new(ErrorCode::Indeterminate, text));
        }
        // A change was carried out, and its short result must get through.
        if !self.changes && !self.outbox.waiting.has_room_for(payload.len()) {
            let text = "more answers wait to be sent than the server keeps";
            return self.error(&ErrorReply::overloaded(text, RETRY_AFTER_MS));
        }
        self.stats().count_answer(self.elapsed());
        self.send(Headers::default(), payload);
    }

    /// Answers with an error: its code and text in the headers of the NATS services API, all of it in the body. Never
    /// waits, as [`ok`](Self::ok).
    pub fn error(self, error: &ErrorReply) {
        self.stats().count_error(self.elapsed(), error);
        let (headers, body) = encode_error(error, self.outbox.bus.max_payload());
        self.send(headers, body);
    }

    fn stats(&self) -> &EndpointStats {
        self.counted_in.as_ref().unwrap_or(&self.outbox.stats)
    }

    fn elapsed(&self) -> Duration {
        self.outbox.env.boot().saturating_sub(self.received)
    }

    fn send(self, headers: Headers, payload: Bytes) {
        let size_bytes = payload.len();
        let reply = Outgoing { route: self.reply_to, headers, payload };
        self.outbox.waiting.enter(size_bytes);
        if self.outbox.replies.try_send(reply).is_err() {
            self.outbox.waiting.leave(size_bytes);
            self.outbox.stats.count_dropped();
        }
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder").field("reply_to", &self.reply_to).finish_non_exhaustive()
    }
}

/// What all responders of one endpoint share.
struct Outbox {
    replies: mpsc::Sender<Outgoing>,
    waiting: Arc<Waiting>,
    bus: Arc<dyn Bus>,
    env: Env,
    stats: Arc<EndpointStats>,
}

/// The bytes of the answers that wait to be sent.
struct Waiting {
    limit_bytes: usize,
    bytes: AtomicUsize,
}

impl Waiting {
    /// Whether one more of this size may wait. One alone always may.
    fn has_room_for(&self, size_bytes: usize) -> bool {
        let held = self.bytes.load(Ordering::Relaxed);
        held == 0 || held.saturating_add(size_bytes) <= self.limit_bytes
    }

    fn enter(&self, size_bytes: usize) {
        self.bytes.fetch_add(size_bytes, Ordering::Relaxed);
    }

    fn leave(&self, size_bytes: usize) {
        self.bytes.fetch_sub(size_bytes, Ordering::Relaxed);
    }
}

async fn send_replies(
    bus: Arc<dyn Bus>,
    mut queued: mpsc::Receiver<Outgoing>,
    waiting: Arc<Waiting>,
    stats: Arc<EndpointStats>,
) {
    let mut replies = Vec::with_capacity(REPLIES_PER_WAKE_UP);
    while queued.recv_many(&mut replies, REPLIES_PER_WAKE_UP).await > 0 {
        for reply in replies.drain(..) {
            let size_bytes = reply.payload.len();
            let sent = bus.publish(reply).await;
            waiting.leave(size_bytes);
            match sent {
                Ok(()) => {}
                Err(PublishError::Closed) => return,
                // Only a largest payload that shrank since the answer was given leads here.
                Err(PublishError::TooLarge { .. } | PublishError::Invalid { .. }) => stats.count_dropped(),
            }
        }
    }
}

/// Headers and body of an error. One that does not fit is cut to its code.
fn encode_error(error: &ErrorReply, limit_bytes: usize) -> (Headers, Bytes) {
    let headers = |text: &str| {
        // A header is one line and no place for a long story; the whole text is in the body.
        let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(256).collect();
        Headers(vec![
            (ErrorReply::STATUS_HEADER.to_owned(), error.code.status().to_string()),
            (ErrorReply::TEXT_HEADER.to_owned(), line),
        ])
    };
    let whole = headers(&error.to_string());
    match encode(error) {
        Ok(body) if validate::size_bytes(&whole, &body) <= limit_bytes => (whole, body),
        _ => {
            let short = ErrorReply::new(ErrorCode::clone(&error.code), "");
            (headers(error.code.as_str()), encode(&short).unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests;
