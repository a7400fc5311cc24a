//! Sends gets: each by its caller while few are in flight, and queued ones by one task per request.

use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::data::{GetReply, GetRequest};
use dormouse_protocol::{Message, Op, Subject};
use tokio::sync::oneshot;

use super::group::{GetGroup, GetOutcome};
use super::queue::{GetPosition, GetTarget, PendingGet};
use super::scheduler::{Admission, GetReplySender};
use crate::call::ClientShared;
use crate::error::Error;
use crate::subject::Handle;

/// If no request ends while a get is queued this long, the get no longer waits for the requests in flight:
/// these may fetch values from the bucket, or look up a server. Doubled each time, for subjects that are
/// always slow.
const STALL_TIMEOUT: Duration = Duration::from_millis(20);

impl Handle {
    /// The one message that `request` names, if it exists. A value that does not fit in a reply of its own is
    /// omitted.
    pub(crate) async fn fetch(&self, request: &GetRequest) -> Result<Option<Message>, Error> {
        let expires_at = self.inner.env.boot().saturating_add(self.deadline);
        let entrance = match GetTarget::of(request) {
            None => return self.fetch_alone(request, self.deadline).await,
            Some(wanted) => self.inner.get_scheduler.admit(&self.subject, |ticket| PendingGet {
                wanted,
                deadline: self.deadline,
                expires_at,
                ticket,
            }),
        };
        let (position, ended, outcome) = match entrance {
            Admission::SendNow(position) => {
                let _alone = DirectGet { handle: self, position };
                return self.fetch_alone(request, self.deadline).await;
            }
            Admission::Queued { position, ended, outcome } => (position, ended, outcome),
        };
        let mut waiting = QueuedGet { handle: self, position, ended, is_done: false };
        match waiting.wait(outcome, expires_at).await? {
            GetOutcome::Outcome(outcome) => outcome,
            GetOutcome::SendAlone => {
                let left = expires_at.saturating_sub(self.inner.env.boot());
                let outcome = self.fetch_alone(request, left).await;
                outcome.map_err(|error| error.to_caller(self.deadline))
            }
        }
    }

    /// In a request of its own.
    async fn fetch_alone(&self, request: &GetRequest, deadline: Duration) -> Result<Option<Message>, Error> {
        let reply: GetReply = self.inner.call(&self.subject, Op::Get, request, deadline).await?;
        Ok(reply.messages.into_iter().next())
    }
}

/// A get that its caller sends, until it ends or is dropped.
struct DirectGet<'a> {
    handle: &'a Handle,
    position: GetPosition,
}

impl Drop for DirectGet<'_> {
    fn drop(&mut self) {
        let Handle { inner, subject, .. } = self.handle;
        if inner.get_scheduler.end(subject, self.position) {
            send_waiting(inner, subject);
        }
    }
}

/// A queued get, until it has a result or is dropped.
struct QueuedGet<'a> {
    handle: &'a Handle,
    position: GetPosition,
    /// The number of ended requests at the last check.
    ended: u64,
    is_done: bool,
}

impl QueuedGet<'_> {
    /// Waits for the result of the request that the get joins.
    async fn wait(
        &mut self,
        mut outcome: oneshot::Receiver<GetOutcome>,
        expires_at: Duration,
    ) -> Result<GetOutcome, Error> {
        let Handle { inner, subject, deadline, .. } = self.handle;
        let mut stall_timeout = STALL_TIMEOUT;
        loop {
            if inner.tasks.stop().is_requested() {
                return Err(Error::Closed);
            }
            let left = expires_at.saturating_sub(inner.env.boot());
            match tokio::time::timeout(left.min(stall_timeout), &mut outcome).await {
                Ok(outcome) => {
                    self.is_done = true;
                    // The sender ended without a result, which happens when its runtime shuts down.
                    return outcome.map_err(|_| Error::Closed);
                }
                Err(_) if left <= stall_timeout => {
                    return Err(Error::Deadline { deadline: *deadline, last: None });
                }
                Err(_) => {
                    if inner.get_scheduler.is_stalled(subject, self.position, &mut self.ended) {
                        send_waiting(inner, subject);
                    }
                    stall_timeout = stall_timeout.saturating_mul(2);
                }
            }
        }
    }
}

impl Drop for QueuedGet<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.handle.inner.get_scheduler.remove(&self.handle.subject, self.position);
        }
    }
}

/// Sends the queued gets that may be sent. Called whenever that may have become true.
fn send_waiting(inner: &Arc<ClientShared>, subject: &Subject) {
    while let Some((position, group, runtime)) = inner.get_scheduler.next(subject, inner.query_budget_bytes())
    {
        // The guard exists before the spawn: without a runtime, no queue is left without a request in flight.
        let shared =
            BatchSender { inner: Arc::clone(inner), subject: subject.clone(), position, is_done: false };
        let Some(runtime) = runtime else { continue };
        let _context = runtime.enter();
        inner.tasks.spawn("gets", shared.run(group));
    }
}

/// Sends one request of queued gets. If the task ends early, with its runtime or by a panic, the callers get
/// an error, and the next get starts with a new queue.
struct BatchSender {
    inner: Arc<ClientShared>,
    subject: Subject,
    position: GetPosition,
    is_done: bool,
}

impl BatchSender {
    async fn run(mut self, group: GetGroup<GetReplySender>) {
        let answer = self.ask(&group).await;
        let settled = group.resolve(answer);
        let answered = settled.outcomes.len();
        for (ticket, outcome) in settled.outcomes {
            // The caller may have dropped the get.
            let _ = ticket.send(outcome);
        }
        self.is_done = true;
        if self.inner.get_scheduler.answered(&self.subject, self.position, answered, settled.rest) {
            send_waiting(&self.inner, &self.subject);
        }
    }

    async fn ask(&self, group: &GetGroup<GetReplySender>) -> Result<GetReply, Error> {
        let deadline = group.last_expiry().saturating_sub(self.inner.env.boot());
        let request = group.request();
        tokio::select! {
            // If a reply and the deadline coincide, the reply counts.
            biased;
            answer = self.inner.call(&self.subject, Op::Get, &request, deadline) => answer,
            () = self.inner.tasks.stop().requested() => Err(Error::Closed),
        }
    }
}

impl Drop for BatchSender {
    fn drop(&mut self) {
        if !self.is_done {
            self.inner.get_scheduler.abandon(&self.subject, self.position);
        }
    }
}
