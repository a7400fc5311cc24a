//! Sends gets: each by its caller while few are in flight, and queued ones by one task per request.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use dormouse_protocol::data::{GetReply, GetRequest};
use dormouse_protocol::{Message, Op, Subject};
use dormouse_runtime::Lock;
use tokio::runtime;
use tokio::sync::oneshot;

use super::group::{GetGroup, GetOutcome};
use super::queue::{GetPosition, GetQueue, GetTarget, PendingGet};
use crate::call::ClientShared;
use crate::error::Error;
use crate::subject::Handle;

/// If no request ends while a get is queued this long, the get no longer waits for the requests in flight:
/// these may fetch values from the bucket, or look up a server. Doubled each time, for subjects that are
/// always slow.
const STALL_TIMEOUT: Duration = Duration::from_millis(20);

type GetReplySender = oneshot::Sender<GetOutcome>;

/// The queued and sent gets of all subjects.
#[derive(Debug, Default)]
pub(crate) struct GetScheduler {
    state: Lock<GetSchedulerState>,
}

#[derive(Debug, Default)]
struct GetSchedulerState {
    /// Only subjects with requests in flight. The queues need no bound here: each queued get has a waiting
    /// caller.
    subjects: BTreeMap<Subject, SubjectGets>,
    next_position: GetPosition,
}

#[derive(Debug, Default)]
struct SubjectGets {
    queue: GetQueue<GetReplySender>,
    /// The runtime that sends queued gets: a caller may end outside a runtime.
    runtime: Option<runtime::Handle>,
}

impl GetSchedulerState {
    const fn next_ticket(&mut self) -> GetPosition {
        self.next_position += 1;
        self.next_position
    }
}

/// How a get is sent.
enum Admission {
    /// At once, as the request with this ticket.
    SendNow(GetPosition),
    /// In another request; it is queued at this position.
    Queued { position: GetPosition, ended: u64, outcome: oneshot::Receiver<GetOutcome> },
}

impl GetScheduler {
    fn state(&self) -> MutexGuard<'_, GetSchedulerState> {
        self.state.lock()
    }

    /// How many subjects have requests in flight.
    #[cfg(test)]
    pub(super) fn in_progress(&self) -> usize {
        self.state().subjects.len()
    }

    /// Admits a get at once, if possible; otherwise queues `get`.
    fn admit(
        &self,
        subject: &Subject,
        get: impl FnOnce(GetReplySender) -> PendingGet<GetReplySender>,
    ) -> Admission {
        let mut state = self.state();
        let position = state.next_ticket();
        let Some(SubjectGets { queue, runtime }) = state.subjects.get_mut(subject) else {
            let mut new = SubjectGets::default();
            new.queue.begin();
            state.subjects.insert(subject.clone(), new);
            return Admission::SendNow(position);
        };
        if queue.is_free() {
            queue.begin();
            return Admission::SendNow(position);
        }
        let (ticket, outcome) = oneshot::channel();
        queue.push(position, get(ticket));
        *runtime = runtime::Handle::try_current().ok();
        Admission::Queued { position, ended: queue.ended(), outcome }
    }

    /// Removes the queued get at `position`.
    fn remove(&self, subject: &Subject, position: GetPosition) {
        let mut state = self.state();
        let left = state.subjects.get_mut(subject).and_then(|at| at.queue.remove(position));
        drop(state);
        drop(left);
    }

    /// The timeout of the queued get at `position` has passed. `ended` is the number of ended requests at the
    /// last check.
    fn is_stalled(&self, subject: &Subject, position: GetPosition, ended: &mut u64) -> bool {
        let mut state = self.state();
        let now = state.next_ticket();
        let Some(SubjectGets { queue, .. }) = state.subjects.get_mut(subject) else { return false };
        let is_stalled = queue.is_stalled(position, *ended);
        *ended = queue.ended();
        if is_stalled {
            queue.ignore_slow(now);
        }
        is_stalled
    }

    /// The request of `position` has ended for all its callers. Returns whether gets are queued.
    fn end(&self, subject: &Subject, position: GetPosition) -> bool {
        self.end_with(subject, position, |_| {})
    }

    /// The request of `position` was answered except for `rest`. Returns whether gets are queued.
    fn answered(
        &self,
        subject: &Subject,
        position: GetPosition,
        answered: usize,
        mut rest: Vec<(GetPosition, PendingGet<GetReplySender>)>,
    ) -> bool {
        self.end_with(subject, position, |queue| {
            // A caller closes its channel and then removes its get: the get is dropped here, or is found in
            // the queue.
            rest.retain(|(_, get)| !get.ticket.is_closed());
            queue.answered(answered, rest);
        })
    }

    /// The sender of the request of `position` ended without a result. The callers' channels close, which they
    /// detect.
    fn abandon(&self, subject: &Subject, position: GetPosition) {
        let mut abandoned = None;
        self.end_with(subject, position, |queue| abandoned = Some(queue.clear()));
        drop(abandoned);
    }

    /// A subject without queued gets and requests in flight is removed.
    fn end_with(
        &self,
        subject: &Subject,
        position: GetPosition,
        also: impl FnOnce(&mut GetQueue<GetReplySender>),
    ) -> bool {
        let mut state = self.state();
        let Some(SubjectGets { queue, .. }) = state.subjects.get_mut(subject) else { return false };
        queue.end(position);
        also(queue);
        let is_waiting = queue.is_waiting();
        if queue.is_idle() {
            state.subjects.remove(subject);
        }
        is_waiting
    }

    /// The next request and its ticket; `None` if none may be sent, or no get is queued.
    fn next(
        &self,
        subject: &Subject,
        budget_bytes: usize,
    ) -> Option<(GetPosition, GetGroup<GetReplySender>, Option<runtime::Handle>)> {
        let mut state = self.state();
        let position = state.next_ticket();
        let SubjectGets { queue, runtime } = state.subjects.get_mut(subject)?;
        Some((position, GetGroup::new(queue.take(budget_bytes)?), runtime.clone()))
    }
}

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
    while let Some((position, group, runtime)) = inner.get_scheduler.next(subject, inner.budget_bytes()) {
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
