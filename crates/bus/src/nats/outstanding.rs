//! The requests that wait for an answer, by the last token of their reply address.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_nats::{Message, StatusCode};
use dormouse_protocol::Route;
use tokio::sync::oneshot;

use super::convert;
use crate::{Reply, RequestError};

type Answer = Result<Reply, RequestError>;

struct Waiting {
    route: Route,
    answer: oneshot::Sender<Answer>,
}

pub(super) struct Outstanding {
    /// What every reply address begins with, dot included.
    prefix: String,
    last_token: AtomicU64,
    waiting: Mutex<BTreeMap<u64, Waiting>>,
}

impl Outstanding {
    pub(super) fn new(prefix: String) -> Self {
        Self { prefix, last_token: AtomicU64::new(0), waiting: Mutex::new(BTreeMap::new()) }
    }

    /// Whether `route` is one of our own reply addresses, or the pattern of all of them.
    pub(super) fn owns(&self, route: &str) -> bool {
        route.starts_with(&self.prefix)
    }

    /// Enters a request to `route`. Without a route it is a message from us to ourselves, whose route is the reply
    /// address itself.
    pub(super) fn enter(&self, route: Option<&Route>) -> Ticket<'_> {
        let token = self.last_token.fetch_add(1, Ordering::Relaxed);
        let reply_to = format!("{}{token}", self.prefix);
        let route = route.cloned().unwrap_or_else(|| Route::new(reply_to.as_str()));
        let (answer, receiver) = oneshot::channel();
        self.lock().insert(token, Waiting { route, answer });
        Ticket { outstanding: self, token, reply_to, answer: receiver }
    }

    /// Hands an answer to whoever waits for it. A late or repeated one finds nobody.
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

    /// Fails every request to `route`: the server lets nothing from us through to there.
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

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Waiting>> {
        // Entries are independent of each other: a panic between two leaves nothing half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One's place in the table; left when dropped, also by a cancelled call.
pub(super) struct Ticket<'o> {
    outstanding: &'o Outstanding,
    token: u64,
    /// Where the answer is expected.
    pub(super) reply_to: String,
    answer: oneshot::Receiver<Answer>,
}

impl Ticket<'_> {
    /// The answer, whenever it comes.
    pub(super) async fn answer(mut self) -> Answer {
        // The other end is dropped unused only when the bus is closed.
        (&mut self.answer).await.unwrap_or(Err(RequestError::Closed { sent: true }))
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.outstanding.lock().remove(&self.token);
    }
}
