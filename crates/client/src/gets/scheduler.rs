//! The queued and sent gets of all subjects.

use std::collections::BTreeMap;
use std::sync::MutexGuard;

use dormouse_protocol::Subject;
use dormouse_runtime::Lock;
use tokio::runtime;
use tokio::sync::oneshot;

use super::group::{GetGroup, GetOutcome};
use super::queue::{GetPosition, GetQueue, PendingGet};

pub(super) type GetReplySender = oneshot::Sender<GetOutcome>;

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
pub(super) enum Admission {
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
    pub(super) fn admit(
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
    pub(super) fn remove(&self, subject: &Subject, position: GetPosition) {
        let mut state = self.state();
        let left = state.subjects.get_mut(subject).and_then(|at| at.queue.remove(position));
        drop(state);
        drop(left);
    }

    /// The timeout of the queued get at `position` has passed. `ended` is the number of ended requests at the
    /// last check.
    pub(super) fn is_stalled(&self, subject: &Subject, position: GetPosition, ended: &mut u64) -> bool {
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
    pub(super) fn end(&self, subject: &Subject, position: GetPosition) -> bool {
        self.end_with(subject, position, |_| {})
    }

    /// The request of `position` was answered except for `rest`. Returns whether gets are queued.
    pub(super) fn answered(
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
    pub(super) fn abandon(&self, subject: &Subject, position: GetPosition) {
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
    pub(super) fn next(
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
