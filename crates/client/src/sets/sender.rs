//! Sends queued sets, with one task per subject that has sets in flight.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::data::{SetItem, SetOutcome, SetReply};
use dormouse_protocol::{Op, RequestId, Route, Subject};
use dormouse_runtime::Lock;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{Notify, oneshot};

use super::group::SetGroup;
use super::queue::{Batching, QueuedSet};
use super::scheduler::{SetReplySender, SetsOutcome, deliver};
use crate::call::{ClientShared, RequestBody};
use crate::error::{Error, IndeterminateCause};
use crate::exchange::whole;
use crate::request_ids::IdUse;
use crate::source::ValueSource;
use crate::subject::Handle;

impl ClientShared {
    /// Queues `entry` after all earlier sets of `subject`; the receiver gets its outcome.
    ///
    /// # Errors
    /// [`Error::QueueFull`]; [`Error::Closed`].
    pub(super) fn queue(
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
    let answer = {
        let mut call = std::pin::pin!(async {
            match upload {
                Some(upload) => upload.await,
                None => send_group(inner, subject, &group, deadline).await,
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

/// Sends one request of sets under one id.
async fn send_group(
    inner: &ClientShared,
    subject: &Subject,
    group: &Lock<SetGroup<SetReplySender>>,
    deadline: Duration,
) -> Result<SetReply, Error> {
    let (id, left) = inner.request_id(subject, IdUse::Shared, deadline).await?;
    let content = BatchBody { id: id.id(), group };
    inner.call_with(subject, Op::Set, &content, left, whole).await
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
    id: RequestId,
    group: &'a Lock<SetGroup<SetReplySender>>,
}

impl RequestBody for BatchBody<'_> {
    fn next_attempt(&self, route: &Route) -> Bytes {
        self.group.lock().next_attempt(route, self.id)
    }

    fn failed(&self, reached: bool, cause: Option<&IndeterminateCause>) {
        self.group.lock().failed(reached, cause.cloned());
    }
}
