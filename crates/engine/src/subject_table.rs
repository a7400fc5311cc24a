//! The subject table: which subjects have a task, and the queues to these tasks.
//!
//! A subject has at most one task, and so at most one open file. A task leaves the table only while its queue is empty,
//! under the lock that also guards the queues. So a request either finds the task, which still serves it, or finds none
//! and starts one.

mod entries;
mod idle;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use dormouse_protocol::{ErrorReply, OverloadCause, Subject};
use dormouse_runtime::Lock;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};

use crate::api::{Submission, TenantId};
use crate::request_rate::RequestRate;
use crate::tenant_usage::TenantUsage;
use entries::{TableEntry, TableInner};

/// Maximum number of queued requests of one subject.
const QUEUE: usize = 1_024;

/// Arguments of a new subject task.
pub(crate) struct SubjectTaskArgs {
    /// The subject's requests.
    pub(crate) queue: mpsc::Receiver<Submission>,
    /// Notified when the subject must close because other subjects need its capacity.
    pub(crate) close: Arc<Notify>,
    /// Held by every user of the subject's file.
    pub(crate) file_guard: Arc<FileGuard>,
    /// The task before this one panicked: its calls may still be in progress.
    pub(crate) follows_panic: bool,
}

/// While a guard exists, no new task starts for its subject: the file is in use, perhaps by work that a panicked task
/// has left running.
#[derive(Debug, Default)]
pub(crate) struct FileGuard {
    /// Size of the file in bytes, as of the last check.
    bytes: AtomicU64,
}

impl FileGuard {
    /// Records the current size of the file.
    pub(crate) fn set_bytes(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }
}

/// An open subject and its load.
#[derive(Debug, Clone, PartialEq)]
pub struct SubjectLoad {
    /// The subject.
    pub subject: Subject,
    /// Recent requests per second.
    pub requests_per_second: f64,
    /// Bytes of its local file, as of its last snapshot.
    pub bytes: u64,
}

/// Result of submitting a request.
pub(crate) enum SubmitOutcome {
    /// The request is in the queue of the subject's task.
    Queued,
    /// The subject has no task: the caller must start one with these arguments.
    Start(SubjectTaskArgs),
    /// The caller no longer waits, and no task has the subject, so no copy of the request is queued or planned.
    Expired(Box<Submission>),
    /// The request was refused.
    Refused(Box<Submission>, ErrorReply),
}

/// See the [module](self).
pub(crate) struct SubjectTable {
    inner: Lock<TableInner>,
    left: Notify,
    /// Above this number, the subjects idle longest are asked to close.
    max_open: usize,
    /// At this number, no further subject opens.
    open_limit: usize,
}

impl SubjectTable {
    /// `open_limit`: twice `max_open` unless given.
    pub(crate) fn new(max_open: usize, open_limit: Option<usize>) -> Self {
        let max_open = max_open.max(1);
        let open_limit = open_limit.map_or(max_open.saturating_mul(2), |limit| limit.max(max_open));
        Self { inner: Lock::default(), left: Notify::new(), max_open, open_limit }
    }

    fn lock(&self) -> MutexGuard<'_, TableInner> {
        // The state is consistent after each step under the lock, so a panic elsewhere breaks nothing.
        self.inner.lock()
    }

    /// Queues a request for its subject.
    pub(crate) fn submit(
        &self,
        subject: &Subject,
        submission: Submission,
        now: Duration,
        tenants: &TenantUsage,
    ) -> SubmitOutcome {
        let mut inner = self.lock();
        if inner.shut {
            return SubmitOutcome::Refused(Box::new(submission), shutting_down());
        }
        if submission.is_expired(now) && !inner.entries.contains_key(subject) {
            return SubmitOutcome::Expired(Box::new(submission));
        }
        let mut follows_panic = false;
        inner.used(subject, now);
        let submission = match inner.entries.get_mut(subject) {
            None => submission,
            Some(entry) => {
                match entry.queue.try_send(submission) {
                    Ok(()) => return SubmitOutcome::Queued,
                    Err(TrySendError::Full(submission)) => {
                        let reply = ErrorReply::from(OverloadCause::SubjectQueue);
                        return SubmitOutcome::Refused(Box::new(submission), reply);
                    }
                    // Its task has panicked; a new task replaces it once the file is not in use.
                    Err(TrySendError::Closed(submission)) if entry.file_guard.strong_count() > 0 => {
                        let reply = ErrorReply::from(OverloadCause::SubjectClosing);
                        return SubmitOutcome::Refused(Box::new(submission), reply);
                    }
                    Err(TrySendError::Closed(submission)) => {
                        follows_panic = true;
                        submission
                    }
                }
            }
        };
        let open = inner.entries.len();
        let tenant = submission.tenant;
        let own = inner.open_of(tenant);
        let is_over_limit = tenants.max_open_subjects(tenant).is_some_and(|most| own as u64 >= most);
        let is_over_share = is_over_limit || self.is_over_share(own, open);
        let is_full = (open >= self.open_limit || is_over_share) && !follows_panic;
        if open >= self.max_open || is_over_share {
            // A tenant with most of the open subjects makes room among its own.
            let of = (is_over_share || own * 2 > open).then_some(tenant);
            let number = (open + 1).saturating_sub(self.max_open) + self.max_open / 16;
            inner.ask_idle_to_close(number, is_full, of);
        }
        if is_full {
            let reply = ErrorReply::from(OverloadCause::OpenSubjects);
            return SubmitOutcome::Refused(Box::new(submission), reply);
        }
        let (sender, queue) = mpsc::channel(QUEUE);
        // The channel is new and empty.
        let _ = sender.try_send(submission);
        let close = Arc::new(Notify::new());
        let guard = Arc::new(FileGuard::default());
        let mut rate = RequestRate::default();
        rate.count(now);
        // A panicked task leaves its entry to the next.
        inner.remove(subject);
        let entry = TableEntry {
            queue: sender,
            close: Arc::clone(&close),
            file_guard: Arc::downgrade(&guard),
            tenant,
            used_at: now,
            rate,
            asked_to_close: false,
            idle_since: None,
        };
        inner.insert(subject, entry);
        SubmitOutcome::Start(SubjectTaskArgs { queue, close, file_guard: guard, follows_panic })
    }

    /// Whether a tenant that has `own` of the `open` subjects may open no further one. The last eighth of the limit is for
    /// tenants that have less than their share, which is half of what others leave.
    fn is_over_share(&self, own: usize, open: usize) -> bool {
        let share = self.open_limit.saturating_sub(open - own) / 2;
        open + self.open_limit / 8 >= self.open_limit && own >= share.max(1)
    }

    /// The number of open subjects of each tenant that has some.
    pub(crate) fn open_by_tenant(&self) -> BTreeMap<TenantId, usize> {
        self.lock().tenants.iter().map(|(tenant, of_tenant)| (*tenant, of_tenant.open)).collect()
    }

    /// Removes the task of `subject` if its queue is empty. `false`: the queue is not empty.
    pub(crate) fn remove_if_queue_empty(
        &self,
        subject: &Subject,
        queue: &mpsc::Receiver<Submission>,
    ) -> bool {
        let mut inner = self.lock();
        if !queue.is_empty() {
            // The subject has closed, and opens again.
            inner.clear_close_request(subject);
            return false;
        }
        inner.remove(subject);
        drop(inner);
        self.left.notify_waiters();
        true
    }

    /// Runs `work` on a subject's file unless the subject has a task, which may use the file. Holds the lock, so `work`
    /// must be short.
    pub(crate) fn run_unless_open<T>(&self, subject: &Subject, work: impl FnOnce() -> T) -> Option<T> {
        let inner = self.lock();
        (!inner.entries.contains_key(subject)).then(work)
    }

    /// Records that a subject was released at shutdown, or why not.
    pub(crate) fn record_release(&self, subject: &Subject, released: Result<(), String>) {
        let mut inner = self.lock();
        match released {
            Ok(()) => inner.released += 1,
            Err(why) => inner.unreleased.push((subject.clone(), why)),
        }
    }

    /// Refuses every request from now on.
    pub(crate) fn stop_accepting(&self) {
        self.lock().shut = true;
    }

    /// Waits until no task is left.
    pub(crate) async fn wait_until_empty(&self) {
        loop {
            let mut left = std::pin::pin!(self.left.notified());
            // Listening begins before the check, so that no removal is missed.
            left.as_mut().enable();
            if self.lock().entries.is_empty() {
                return;
            }
            left.await;
        }
    }

    /// Result of a shutdown: the number of released subjects, and each unreleased subject with the reason.
    pub(crate) fn releases(&self) -> (u64, Vec<(Subject, String)>) {
        let inner = self.lock();
        let mut unreleased = inner.unreleased.clone();
        unreleased
            .extend(inner.entries.keys().map(|subject| (subject.clone(), "not finished in time".to_owned())));
        unreleased.sort();
        unreleased.dedup_by(|one, other| one.0 == other.0);
        (inner.released, unreleased)
    }

    /// Every subject that has a task, ascending, so that callers process them in a deterministic order.
    pub(crate) fn subjects(&self) -> Vec<Subject> {
        let mut subjects: Vec<Subject> = self.lock().entries.keys().cloned().collect();
        subjects.sort_unstable();
        subjects
    }

    /// At most `most` subjects that have a task, the busiest first. Examines every subject under the lock.
    pub(crate) fn busiest(&self, most: usize, now: Duration) -> Vec<SubjectLoad> {
        let inner = self.lock();
        let mut busy: Vec<_> = inner
            .entries
            .iter()
            .map(|(subject, entry)| {
                let bytes = entry.file_guard.upgrade().map_or(0, |guard| guard.bytes.load(Ordering::Relaxed));
                (entry.rate.per_second(now), bytes, subject)
            })
            .collect();
        let by_load = |one: &(f64, u64, &Subject), other: &(f64, u64, &Subject)| {
            other.0.total_cmp(&one.0).then(other.1.cmp(&one.1)).then(one.2.cmp(other.2))
        };
        if busy.len() > most && most > 0 {
            busy.select_nth_unstable_by(most - 1, by_load);
        }
        busy.truncate(most);
        busy.sort_unstable_by(by_load);
        busy.into_iter()
            .map(|(requests_per_second, bytes, subject)| SubjectLoad {
                subject: subject.clone(),
                requests_per_second,
                bytes,
            })
            .collect()
    }

    /// How many subjects have a task.
    pub(crate) fn len(&self) -> usize {
        self.lock().entries.len()
    }
}

/// The reply to requests after the shutdown began.
pub(crate) fn shutting_down() -> ErrorReply {
    ErrorReply::unavailable("the server is shutting down")
}

#[cfg(test)]
mod tests;
