//! The queued and sent sets of all subjects, within a limit of bytes.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use dormouse_protocol::Subject;
use dormouse_protocol::data::SetResult;
use dormouse_runtime::Lock;
use tokio::sync::{Notify, oneshot};

use super::group::{CallerResult, SetGroup};
use super::queue::{QueuedSet, SetQueue};
use crate::error::Error;

/// The outcome of the sets of one call: of each, or of all together.
pub(crate) type SetsOutcome = Result<Vec<Result<SetResult, Error>>, Error>;

pub(super) type SetReplySender = oneshot::Sender<SetsOutcome>;

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
    pub(super) fn push(
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
    pub(super) fn next(
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
    pub(super) fn next_expiry(
        &self,
        subject: &Subject,
        group: &SetGroup<SetReplySender>,
    ) -> Option<Duration> {
        let last = group.last_expiry();
        let mut state = self.state();
        let pending = state.subjects.get_mut(subject)?;
        let queued = pending.queue.next_expiry().filter(|expiry| *expiry < last);
        let next = queued.into_iter().chain(group.next_expiry()).min();
        pending.next_wakeup = Some(next.unwrap_or(last));
        next
    }

    /// Reports the deadline to the expired callers. Their sets were not sent.
    pub(super) fn expire(&self, subject: &Subject, now: Duration) {
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

    pub(super) fn put_back(&self, subject: &Subject, again: Vec<(u64, QueuedSet<SetReplySender>)>) {
        let at_most = again.len() / 2;
        let mut state = self.state();
        if let Some(pending) = state.subjects.get_mut(subject) {
            pending.queue.put_back(again, at_most);
        }
    }

    /// Drops the sets of the subject whose sender task is gone. The callers' channels close, which they
    /// detect.
    pub(super) fn abandon(&self, subject: &Subject) {
        let pending = {
            let mut state = self.state();
            let pending = state.subjects.remove(subject);
            state.used_bytes -= pending.as_ref().map_or(0, |pending| pending.used_bytes);
            pending
        };
        drop(pending);
    }

    pub(super) fn release(&self, subject: &Subject, size_bytes: usize) {
        let mut state = self.state();
        state.used_bytes -= size_bytes;
        if let Some(pending) = state.subjects.get_mut(subject) {
            pending.used_bytes -= size_bytes;
        }
    }
}

/// Gives each caller its result.
pub(super) fn deliver(results: impl IntoIterator<Item = CallerResult<SetReplySender>>) {
    for (ticket, outcome) in results {
        // The caller may have dropped the acknowledgement.
        let _ = ticket.send(outcome);
    }
}
