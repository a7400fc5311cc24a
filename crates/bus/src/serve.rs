//! Serving requests: a subscription whose messages come with a responder for the reply.
//!
//! ```text
//! subscription ──> Requests::next_many ──> Incoming { …, responder }
//!                                                        │ ok / error: one bounded queue, in turns
//!                                                        v
//!                                            one task ──> Bus::publish, many per wake-up
//! ```

mod reject_log;
mod replies;
mod stats;

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::{ErrorCode, ErrorReply, Headers, OverloadCause, Route, RoutePattern, encode};
use dormouse_runtime::{Env, Tasks};

use self::reject_log::RejectLog;
use self::replies::{QueuedReply, ReplyQueue};
pub use self::stats::{ANSWER_TIMES, EndpointBytes, EndpointSnapshot, EndpointStats};
use crate::{
    Bus, Caller, Callers, Delivery, InboxPrefixes, Outgoing, SubscribeError, SubscribeOptions, Subscription,
    validate,
};

/// Options of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeOptions {
    /// The queue group: each request goes to only one of its members.
    pub queue: Option<String>,
    /// Replies are sent only to addresses below these prefixes. Otherwise a client could make the service publish to
    /// any route.
    pub inbox_prefixes: InboxPrefixes,
    /// How the service identifies the caller of a request.
    pub callers: Callers,
    /// Maximum number of queued requests; above it, new ones are dropped.
    pub capacity: usize,
    /// Maximum number of queued replies; above it, new ones are dropped, and the caller waits until its deadline.
    pub reply_capacity: usize,
    /// Maximum bytes of queued replies; above it, the result of a read becomes `overloaded`: a slow connection must not
    /// fill the memory.
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

/// Subscribes to `pattern` for requests. When the call returns, the subscription is active.
///
/// The task that sends the replies runs in `tasks` until [`Requests`] and every [`Responder`] are dropped or the bus is
/// closed. It ignores the stop signal, so requests in progress still get a reply.
///
/// If the call is cancelled, there is no subscription.
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
    let replies = ReplyQueue::new(reply_capacity, reply_capacity_bytes);
    let (queued, sender, counted) = (Arc::clone(&replies), Arc::clone(bus), Arc::clone(&stats));
    tasks.spawn("replies", async move { queued.send(&*sender, &counted).await });
    let endpoint = Arc::new(Endpoint { replies, bus: Arc::clone(bus), env: env.clone(), stats });
    Ok(Requests {
        subscription,
        endpoint,
        inbox_prefixes,
        callers,
        reject_log: RejectLog::default(),
        arrived: Vec::new(),
    })
}

/// The requests on a pattern. A drop ends the subscription; queued replies are still sent.
pub struct Requests {
    subscription: Subscription,
    endpoint: Arc<Endpoint>,
    inbox_prefixes: InboxPrefixes,
    callers: Callers,
    reject_log: RejectLog,
    arrived: Vec<Delivery>,
}

impl Requests {
    /// The next request; `None` if the bus is closed. Cancelling the wait loses no request.
    pub async fn next(&mut self) -> Option<Incoming> {
        loop {
            let delivery = self.subscription.next().await?;
            let now = self.endpoint.env.boot();
            if let Some(incoming) = self.admit(delivery, now) {
                return Some(incoming);
            }
        }
    }

    /// Moves the queued requests into `buffer`, at most `limit`, and waits for the first. Returns their number; 0 if
    /// the bus is closed. One task wake-up handles a whole burst. Cancelling the wait loses no request.
    pub async fn next_many(&mut self, buffer: &mut Vec<Incoming>, limit: usize) -> usize {
        let before = buffer.len();
        while buffer.len() == before {
            let mut arrived = std::mem::take(&mut self.arrived);
            let number = self.subscription.next_many(&mut arrived, limit).await;
            let now = self.endpoint.env.boot();
            buffer.extend(arrived.drain(..).filter_map(|delivery| self.admit(delivery, now)));
            self.arrived = arrived;
            if number == 0 {
                break;
            }
        }
        buffer.len() - before
    }

    /// Unsubscribes; see [`Subscription::unsubscribe`]. Requests that were sent before can still be taken; after them
    /// this acts as if the bus were closed.
    pub fn unsubscribe(&mut self) {
        self.subscription.unsubscribe();
    }

    /// The number of requests that were dropped because the queue was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.subscription.dropped()
    }

    /// The shared statistics of this endpoint.
    #[must_use]
    pub fn stats(&self) -> &Arc<EndpointStats> {
        &self.endpoint.stats
    }

    fn admit(&mut self, delivery: Delivery, now: Duration) -> Option<Incoming> {
        let Delivery { route, reply_to, headers, payload } = delivery;
        let Some(reply_to) = reply_to else {
            self.endpoint.stats.count_unanswerable();
            return None;
        };
        if !self.inbox_prefixes.allow(&reply_to) {
            self.endpoint.stats.count_refused();
            self.reject_log.record(&route, &reply_to, now);
            return None;
        }
        let responder = Responder {
            reply_to,
            received: now,
            endpoint: Arc::clone(&self.endpoint),
            counted_in: None,
            changes: false,
            user: 0,
            held: None,
            request_bytes: payload.len(),
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
    /// The route of the request.
    pub route: Route,
    /// The caller.
    pub caller: Caller,
    /// The content.
    pub payload: Bytes,
    /// Headers of the transport.
    pub headers: Headers,
    /// Takes the reply.
    pub responder: Responder,
}

/// Takes the reply to a request. If it is dropped without a reply, the caller waits until its deadline.
#[must_use = "a request without a reply makes its caller wait"]
pub struct Responder {
    reply_to: Route,
    received: Duration,
    endpoint: Arc<Endpoint>,
    counted_in: Option<Arc<EndpointStats>>,
    changes: bool,
    request_bytes: usize,
    user: u32,
    held: Option<Box<dyn Any + Send + Sync>>,
}

impl Responder {
    /// The reply leaves in the turns of `user`. Without this, in those of user 0.
    pub const fn in_turn_of(mut self, user: u32) -> Self {
        self.user = user;
        self
    }

    /// Keeps `held` until the reply is sent or dropped, such as what the request holds of a limit.
    pub fn hold(mut self, held: impl Any + Send + Sync) -> Self {
        self.held = Some(Box::new(held));
        self
    }

    /// Declares that the request may change the subject. Then a result that is too large becomes `indeterminate`,
    /// because `too_large` would mean that nothing was changed.
    pub fn changing(mut self) -> Self {
        self.changes = true;
        self
    }

    /// Counts the reply in `stats` instead of in the statistics of the pattern: a pattern may have several endpoints.
    pub fn counted_in(mut self, stats: &Arc<EndpointStats>) -> Self {
        self.counted_in = Some(Arc::clone(stats));
        self
    }

    /// Replies with a result. Never waits: if the reply queue is full, the reply is dropped and counted. A result above
    /// the maximum payload becomes the error `too_large`, or `indeterminate` after [`changing`](Self::changing).
    pub fn ok(self, payload: Bytes) {
        let limit_bytes = self.endpoint.bus.max_payload();
        if payload.len() > limit_bytes {
            let too_large = ErrorReply::too_large("max_payload", payload.len(), limit_bytes);
            if !self.changes {
                return self.error(&too_large);
            }
            let text =
                format!("the request was executed, but its result cannot be sent: {}", too_large.message);
            return self.error(&ErrorReply::new(ErrorCode::Indeterminate, text));
        }
        // An executed change must get its short result.
        if !self.changes && !self.endpoint.replies.has_room_for(payload.len()) {
            return self.error(&OverloadCause::ReplyQueueBytes.into());
        }
        self.stats().count_answer(self.elapsed());
        self.send(Headers::default(), payload);
    }

    /// Replies with an error: code and text in the headers of the NATS services API, the complete error in the body.
    /// Never waits, like [`ok`](Self::ok).
    pub fn error(self, error: &ErrorReply) {
        self.stats().count_error(self.elapsed(), error);
        let (headers, body) = encode_error(error, self.endpoint.bus.max_payload());
        self.send(headers, body);
    }

    /// When the request was taken from the subscription, on the clock of [`Env::boot`]. Requests that were taken together
    /// have the same time.
    #[must_use]
    pub const fn received(&self) -> Duration {
        self.received
    }

    fn stats(&self) -> &EndpointStats {
        self.counted_in.as_ref().unwrap_or(&self.endpoint.stats)
    }

    fn elapsed(&self) -> Duration {
        self.endpoint.env.boot().saturating_sub(self.received)
    }

    fn send(self, headers: Headers, payload: Bytes) {
        let size_bytes = payload.len();
        self.stats().count_bytes(self.request_bytes, size_bytes);
        let outgoing = Outgoing { route: self.reply_to, headers, payload };
        if !self.endpoint.replies.push(self.user, QueuedReply { outgoing, held: self.held }) {
            self.endpoint.stats.count_dropped();
        }
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder").field("reply_to", &self.reply_to).finish_non_exhaustive()
    }
}

/// State shared by the requests and all responders of one endpoint. Its end closes the reply queue.
struct Endpoint {
    replies: Arc<ReplyQueue>,
    bus: Arc<dyn Bus>,
    env: Env,
    stats: Arc<EndpointStats>,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.replies.close();
    }
}

/// Headers and body of an error. An error above the limit is cut to its code.
pub(crate) fn encode_error(error: &ErrorReply, limit_bytes: usize) -> (Headers, Bytes) {
    let headers = |text: &str| {
        // The header has one short line. The body has the complete text.
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
