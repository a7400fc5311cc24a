//! Sends queued sets, with one task per subject that has sets in flight.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::data::{SetItem, SetOutcome, SetReply, SetResult};
use dormouse_protocol::{Op, Route, Subject};
use dormouse_runtime::Lock;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{Notify, oneshot};

use super::group::{CallerResult, SetGroup};
use super::queue::{Batching, QueuedSet, SetQueue};
use crate::call::{ClientShared, RequestBody};
use crate::error::{Error, IndeterminateCause};
use crate::exchange::whole;
use crate::source::ValueSource;
use crate::subject::Handle;

/// The outcome of the sets of one call: of each, or of all together.
pub(crate) type SetsOutcome = Result<Vec<Result<SetResult, Error>>, Error>;

type SetReplySender = oneshot::Sender<SetsOutcome>;

/// One subject may use this part of the total limit, so that a subject whose server is unavailable leaves
/// room for others.
const PART_OF_ONE_SUBJECT: usize = 4;

/// The queued and sent sets of all subjects.
#[derive(Debug)]
pub(crate) struct SetScheduler {
    limit_bytes: usize,
    state: Lock<SetSchedulerState>,
}

#[derive(Debug, Default)]
struct SetSchedulerState {
    /// Only subjects with sets that are queued or in flight.
    subjects: BTreeMap<Subject, SubjectSets>,
    used_bytes: usize,
}

/// The sets of one subject.
#[derive(Debug, Default)]
struct SubjectSets {
    queue: SetQueue<SetReplySender>,
    /// Bytes of sets that are queued or in flight.
    used_bytes: usize,
    /// The sender task continues at this time, or when the request in flight ends.
    next_wakeup: Option<Duration>,
    notify: Arc<Notify>,
}

impl SetScheduler {
    /// A scheduler without sets, for at most `limit_bytes`.
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, state: Lock::default() }
    }

    fn state(&self) -> MutexGuard<'_, SetSchedulerState> {
        self.state.lock()
    }

    /// How many subjects have sets queued or in flight, and how many bytes these have.
    #[cfg(test)]
    pub(super) fn in_progress(&self) -> (usize, usize) {
        let state = self.state();
        (state.subjects.len(), state.used_bytes)
    }

    /// Queues the entry; `Some` is the notification of the sender task that must be started.
    fn push(
        &self,
        subject: &Subject,
        entry: QueuedSet<SetReplySender>,
    ) -> Result<Option<Arc<Notify>>, Error> {
        let mut state = self.state();
        let used_bytes = state.subjects.get(subject).map_or(0, |pending| pending.used_bytes);
        let size_bytes = entry.size_bytes;
        let limit_of_one = self.limit_bytes / PART_OF_ONE_SUBJECT;
        // A set on an empty queue is accepted at any size: otherwise it could never be sent.
        if (used_bytes > 0 && used_bytes + size_bytes > limit_of_one)
            || (state.used_bytes > 0 && state.used_bytes + size_bytes > self.limit_bytes)
        {
            return Err(Error::QueueFull {
                limit_bytes: if used_bytes > 0 { limit_of_one } else { self.limit_bytes },
            });
        }
        state.used_bytes += size_bytes;
        let is_new = !state.subjects.contains_key(subject);
        let pending = state.subjects.entry(subject.clone()).or_default();
        pending.used_bytes += size_bytes;
        let expires_at = entry.expires_at;
        pending.queue.push(entry);
        if is_new {
            return Ok(Some(Arc::clone(&pending.notify)));
        }
        if pending.next_wakeup.is_some_and(|next_wakeup| expires_at < next_wakeup) {
            pending.notify.notify_one();
        }
        Ok(None)
    }

    /// The next request. `None` if the queue is empty: then the subject is removed, and the next set starts a
    /// sender task.
    fn next(
        &self,
        subject: &Subject,
        now: Duration,
        budget_bytes: usize,
    ) -> Option<SetGroup<SetReplySender>> {
        self.expire(subject, now);
        let mut state = self.state();
        let pending = state.subjects.get_mut(subject)?;
        let entries = pending.queue.take(budget_bytes);
        if entries.is_empty() {
            state.subjects.remove(subject);
            return None;
        }
        let group = SetGroup::new(entries);
        pending.next_wakeup = Some(group.last_expiry());
        Some(group)
    }

    /// When the next caller expires before the request in flight ends by itself.
    fn next_expiry(&self, subject: &Subject, group: &SetGroup<SetReplySender>) -> Option<Duration> {
        let last = group.last_expiry();
        let mut state = self.state();
        let pending = state.subjects.get_mut(subject)?;
        let queued = pending.queue.next_expiry().filter(|expiry| *expiry < last);
        let next = queued.into_iter().chain(group.next_expiry()).min();
        pending.next_wakeup = Some(next.unwrap_or(last));
        next
    }

    /// Reports the deadline to the expired callers. Their sets were not sent.
    fn expire(&self, subject: &Subject, now: Duration) {
        let mut expired = Vec::new();
        {
            let mut state = self.state();
            if let Some(pending) = state.subjects.get_mut(subject) {
                expired = pending.queue.expire(now);
            }
        }
        let size_bytes = expired.iter().map(|entry| entry.size_bytes).sum();
        deliver(expired.into_iter().map(|QueuedSet { deadline, ticket, .. }| {
            (ticket, Err(Error::Deadline { deadline, last: None }))
        }));
        self.release(subject, size_bytes);
    }

    fn put_back(&self, subject: &Subject, again: Vec<(u64, QueuedSet<SetReplySender>)>) {
        let at_most = again.len() / 2;
        let mut state = self.state();
        if let Some(pending) = state.subjects.get_mut(subject) {
            pending.queue.put_back(again, at_most);
        }
    }

    /// Drops the sets of the subject whose sender task is gone. The callers' channels close, which they
    /// detect.
    fn abandon(&self, subject: &Subject) {
        let pending = {
            let mut state = self.state();
            let pending = state.subjects.remove(subject);
            state.used_bytes -= pending.as_ref().map_or(0, |pending| pending.used_bytes);
            pending
        };
        drop(pending);
    }

    fn release(&self, subject: &Subject, size_bytes: usize) {
        let mut state = self.state();
        state.used_bytes -= size_bytes;
        if let Some(pending) = state.subjects.get_mut(subject) {
            pending.used_bytes -= size_bytes;
        }
    }
}

fn deliver(results: impl IntoIterator<Item = CallerResult<SetReplySender>>) {
    for (ticket, outcome) in results {
        // The caller may have dropped the acknowledgement.
        let _ = ticket.send(outcome);
    }
}

impl ClientShared {
    /// Queues `entry` after all earlier sets of `subject`; the receiver gets its outcome.
    ///
    /// # Errors
    /// [`Error::QueueFull`]; [`Error::Closed`].
    pub(crate) fn queue(
        self: &Arc<Self>,
        subject: &Subject,
        entry: QueuedSet<()>,
    ) -> Result<oneshot::Receiver<SetsOutcome>, Error> {
        if self.tasks.stop().is_requested() {
            return Err(Error::Closed);
        }
        let (ticket, outcome) = oneshot::channel();
        let QueuedSet { sets, batching, level, deadline, size_bytes, .. } = entry;
        let expires_at = match batching {
            // An upload has a deadline for each step.
            Batching::Large => Duration::MAX,
            Batching::Shared | Batching::Alone | Batching::Atomic => self.env.boot().saturating_add(deadline),
        };
        let entry = QueuedSet { sets, batching, level, deadline, expires_at, size_bytes, ticket };
        if let Some(notify) = self.set_scheduler.push(subject, entry)? {
            // The guard exists before the spawn: even a call outside a runtime, which panics here, leaves no
            // queue without a sender task.
            let sender = SetSender { inner: Arc::clone(self), subject: subject.clone(), is_done: false };
            self.tasks.spawn("sets", sender.run(notify));
        }
        Ok(outcome)
    }
}

/// Sends all queued sets of a subject. If the task ends early, with its runtime or by a panic, it removes the
/// queue, and the next set starts a new one.
struct SetSender {
    inner: Arc<ClientShared>,
    subject: Subject,
    is_done: bool,
}

impl SetSender {
    /// Sends one request after the other.
    async fn run(mut self, notify: Arc<Notify>) {
        loop {
            let budget_bytes = self.inner.budget_bytes();
            let now = self.inner.env.boot();
            let Some(group) = self.inner.set_scheduler.next(&self.subject, now, budget_bytes) else {
                // The subject was removed with its last set; a new one may exist by now.
                self.is_done = true;
                return;
            };
            send(&self.inner, &self.subject, &notify, group).await;
            // Callers that have just got their results may write again: sets that they queue at once join the
            // next request.
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for SetSender {
    fn drop(&mut self) {
        if !self.is_done {
            self.inner.set_scheduler.abandon(&self.subject);
        }
    }
}

/// Sends one request and gives each caller its result, at the latest at the caller's deadline.
async fn send(
    inner: &Arc<ClientShared>,
    subject: &Subject,
    notify: &Notify,
    mut group: SetGroup<SetReplySender>,
) {
    let size_bytes = group.size_bytes();
    let deadline = group.last_expiry().saturating_sub(inner.env.boot());
    let upload = group.large().map(|item| upload(inner, subject, &group, item));
    let group = Lock::new(group);
    let content = BatchBody { inner, group: &group };
    let answer = {
        let mut call = std::pin::pin!(async {
            match upload {
                Some(upload) => upload.await,
                None => inner.call_with(subject, Op::Set, &content, deadline, whole).await,
            }
        });
        loop {
            let next = inner.set_scheduler.next_expiry(subject, &group.lock());
            tokio::select! {
                // If a reply and the deadline coincide, the reply counts.
                biased;
                answer = &mut call => break Some(answer),
                () = notify.notified() => {}
                () = until(inner, next) => {}
            }
            let now = inner.env.boot();
            inner.set_scheduler.expire(subject, now);
            deliver(group.lock().expire(now));
            if group.lock().is_abandoned() {
                break None;
            }
        }
    };
    let group = group.into_inner();
    let mut left_bytes = 0;
    if let Some(answer) = answer {
        let settled = group.resolve(answer);
        deliver(settled.outcomes);
        left_bytes = settled.retry.iter().map(|(_, entry)| entry.size_bytes).sum();
        inner.set_scheduler.put_back(subject, settled.retry);
    }
    inner.set_scheduler.release(subject, size_bytes - left_bytes);
}

/// Writes one set whose value is uploaded in chunks, at its position in the order.
fn upload(
    inner: &Arc<ClientShared>,
    subject: &Subject,
    group: &SetGroup<SetReplySender>,
    mut item: SetItem,
) -> BoxFuture<'static, Result<SetReply, Error>> {
    let (deadline, level) = group.terms();
    let handle = Handle { inner: Arc::clone(inner), subject: subject.clone(), deadline, level };
    async move {
        let value = item.value.take().unwrap_or_default();
        let result = handle.set_from(item, ValueSource::bytes(value)).await?;
        Ok(SetReply { results: vec![SetOutcome::Ok(result)] })
    }
    .boxed()
}

async fn until(inner: &ClientShared, time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time.saturating_sub(inner.env.boot())).await,
        None => std::future::pending().await,
    }
}

/// A request body made from a group.
struct BatchBody<'a> {
    inner: &'a ClientShared,
    group: &'a Lock<SetGroup<SetReplySender>>,
}

impl RequestBody for BatchBody<'_> {
    fn next_attempt(&self, route: &Route) -> Bytes {
        self.group.lock().next_attempt(route, || self.inner.next_request())
    }

    fn failed(&self, cause: Option<&IndeterminateCause>) {
        self.group.lock().failed(cause.cloned());
    }
}
