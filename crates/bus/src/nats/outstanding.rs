//! The requests that wait for a reply, by the last token of their reply address.

use std::collections::BTreeMap;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicU64, Ordering};

use async_nats::{Message, StatusCode};
use dormouse_protocol::Route;
use dormouse_runtime::Lock;
use tokio::sync::oneshot;

use super::convert;
use crate::{Reply, RequestError};

type RequestReply = Result<Reply, RequestError>;

struct PendingMap {
    route: Route,
    answer: oneshot::Sender<RequestReply>,
}

pub(super) struct RequestTable {
    /// The prefix of every reply address, dot included.
    prefix: String,
    last_token: AtomicU64,
    waiting: Lock<BTreeMap<u64, PendingMap>>,
}

impl RequestTable {
    pub(super) fn new(prefix: String) -> Self {
        Self { prefix, last_token: AtomicU64::new(0), waiting: Lock::new(BTreeMap::new()) }
    }

    /// Whether `route` is a reply address of this connection, or the pattern of all of them.
    pub(super) fn owns(&self, route: &str) -> bool {
        route.starts_with(&self.prefix)
    }

    /// Adds a request to `route`. Without a route it is a round-trip message, whose route is the reply address itself.
    pub(super) fn register(&self, route: Option<&Route>) -> RequestGuard<'_> {
        let token = self.last_token.fetch_add(1, Ordering::Relaxed);
        let reply_to = format!("{}{token}", self.prefix);
        let route = route.cloned().unwrap_or_else(|| Route::new(reply_to.as_str()));
        let (answer, receiver) = oneshot::channel();
        self.lock().insert(token, PendingMap { route, answer });
        RequestGuard { outstanding: self, token, reply_to, answer: receiver }
    }

    /// Completes the request of a reply. A late or repeated reply is discarded.
    pub(super) fn complete(&self, message: Message) {
        let token = message.subject.strip_prefix(self.prefix.as_str()).and_then(|token| token.parse().ok());
        let Some(waiting) = token.and_then(|token: u64| self.lock().remove(&token)) else { return };
        let answer = if message.status == Some(StatusCode::NO_RESPONDERS) {
            Err(RequestError::NoResponders(waiting.route))
        } else {
            Ok(convert::reply(message))
        };
        // An error means that the caller stopped waiting.
        let _ = waiting.answer.send(answer);
    }

    /// Fails every request to `route`: the server denies the publish.
    pub(super) fn deny(&self, route: &Route) {
        let mut waiting = self.lock();
        let denied = waiting.extract_if(.., |_, request| request.route == *route);
        for (_, request) in denied {
            let _ = request.answer.send(Err(RequestError::PermissionDenied(route.clone())));
        }
    }

    /// Fails every request: the bus is closed.
    pub(super) fn close(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, PendingMap>> {
        // Entries are independent, so a panic cannot leave a partial change.
        self.waiting.lock()
    }
}

/// An entry of the table. A drop removes it, also for a cancelled call.
pub(super) struct RequestGuard<'o> {
    outstanding: &'o RequestTable,
    token: u64,
    /// The reply address.
    pub(super) reply_to: String,
    answer: oneshot::Receiver<RequestReply>,
}

impl RequestGuard<'_> {
    /// Waits for the reply, without a deadline.
    pub(super) async fn answer(mut self) -> RequestReply {
        // The other end is dropped unused only when the bus is closed.
        (&mut self.answer).await.unwrap_or(Err(RequestError::Closed { sent: true }))
    }
}

impl Drop for RequestGuard<'_> {
    fn drop(&mut self) {
        self.outstanding.lock().remove(&self.token);
    }
}
