//! The subject table: which subjects have a task, and the queues to these tasks.
//!
//! A subject has at most one task, and so at most one open file. A task leaves the table only while its queue is empty,
//! under the lock that also guards the queues. So a request either finds the task, which still serves it, or finds none
//! and starts one.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, Weak};
use std::time::Duration;

use dormouse_protocol::{ErrorReply, OverloadCause, Subject};
use dormouse_runtime::Lock;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};

use crate::api::{Submission, TenantId};
use crate::request_rate::RequestRate;
use crate::tenant_usage::TenantUsage;

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

#[derive(Default)]
struct TableInner {
    entries: HashMap<Subject, TableEntry>,
    /// Number of entries of each tenant that has some.
    open: BTreeMap<TenantId, usize>,
    shut: bool,
    unreleased: Vec<(Subject, String)>,
    released: u64,
}

struct TableEntry {
    queue: mpsc::Sender<Submission>,
    close: Arc<Notify>,
    file_guard: Weak<FileGuard>,
    /// The tenant whose request opened it.
    tenant: TenantId,
    used_at: Duration,
    rate: RequestRate,
    /// Asked to close, and not used since.
    asked_to_close: bool,
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
        let submission = match inner.entries.get_mut(subject) {
            None => submission,
            Some(entry) => {
                entry.used_at = now;
                entry.rate.count(now);
                entry.asked_to_close = false;
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
        let entry = TableEntry {
            queue: sender,
            close: Arc::clone(&close),
            file_guard: Arc::downgrade(&guard),
            tenant,
            used_at: now,
            rate,
            asked_to_close: false,
        };
        // A panicked task leaves its entry to the next.
        inner.remove(subject);
        *inner.open.entry(tenant).or_default() += 1;
        inner.entries.insert(subject.clone(), entry);
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
        self.lock().open.clone()
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
            if let Some(entry) = inner.entries.get_mut(subject) {
                entry.asked_to_close = false;
            }
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

impl TableInner {
    fn open_of(&self, tenant: TenantId) -> usize {
        self.open.get(&tenant).copied().unwrap_or_default()
    }

    fn remove(&mut self, subject: &Subject) {
        let Some(entry) = self.entries.remove(subject) else { return };
        if let Some(open) = self.open.get_mut(&entry.tenant) {
            *open -= 1;
            if *open == 0 {
                self.open.remove(&entry.tenant);
            }
        }
    }

    /// Asks the `number` subjects idle longest to close. The caller adds a reserve each time, so that this search is
    /// rare. If `more`, a request is refused: then at least one further subject is asked, because those asked earlier
    /// may have long work to finish. A panicked task cannot close, so it is not asked. With `of`, only subjects of that
    /// tenant are asked.
    fn ask_idle_to_close(&mut self, number: usize, more: bool, of: Option<TenantId>) {
        let can_close = |entry: &&mut TableEntry| {
            !entry.queue.is_closed() && of.is_none_or(|tenant| entry.tenant == tenant)
        };
        let asked = self.entries.values_mut().filter(can_close).filter(|entry| entry.asked_to_close).count();
        let can_be_asked =
            |(_, entry): &(&Subject, &mut TableEntry)| !entry.asked_to_close && can_close(entry);
        let mut open: Vec<_> = self.entries.iter_mut().filter(can_be_asked).collect();
        let number = number.saturating_sub(asked).max(usize::from(more)).min(open.len());
        if number == 0 {
            return;
        }
        // Ties are ordered by name, so that the choice and the order do not depend on the map.
        let idle_longest = |one: &(&Subject, &mut TableEntry), other: &(&Subject, &mut TableEntry)| {
            (one.1.used_at, one.0).cmp(&(other.1.used_at, other.0))
        };
        open.select_nth_unstable_by(number - 1, idle_longest);
        let asked = &mut open[..number];
        asked.sort_unstable_by(idle_longest);
        for (_, entry) in asked {
            entry.asked_to_close = true;
            entry.close.notify_one();
        }
    }
}

/// The reply to requests after the shutdown began.
pub(crate) fn shutting_down() -> ErrorReply {
    ErrorReply::unavailable("the server is shutting down")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::SubjectRequest;

    fn submission() -> Submission {
        Submission {
            tenant: TenantId::SHARED,
            deadline: Submission::NO_DEADLINE,
            received: Duration::ZERO,
            request: SubjectRequest::Info,
            max_reply_bytes: 0,
            respond: Box::new(drop),
        }
    }

    fn submit_to(table: &SubjectTable, subject: &Subject, one: Submission, now: Duration) -> SubmitOutcome {
        table.submit(subject, one, now, &TenantUsage::default())
    }

    fn name(name: &str) -> Subject {
        name.parse().unwrap()
    }

    fn start(table: &SubjectTable, subject: &str, at: u64) -> SubjectTaskArgs {
        match submit_to(table, &name(subject), submission(), Duration::from_secs(at)) {
            SubmitOutcome::Start(args) => args,
            SubmitOutcome::Queued => panic!("{subject} already has a task"),
            SubmitOutcome::Expired(_) => panic!("{subject} is dormant, and its request expired"),
            SubmitOutcome::Refused(_, reply) => panic!("{reply}"),
        }
    }

    fn is_asked(table: &SubjectTable, subject: &str) -> bool {
        table.lock().entries[&name(subject)].asked_to_close
    }

    /// A request or a reopen clears the close request of a subject, and the table can ask it again later.
    #[test]
    fn subject_used_or_reopened_can_be_asked_to_close_again() {
        let table = SubjectTable::new(2, None);
        let mut tasks: Vec<_> =
            ["a", "b", "c"].into_iter().zip(0..).map(|(subject, at)| start(&table, subject, at)).collect();
        assert!(is_asked(&table, "a") && !is_asked(&table, "b"));
        assert!(matches!(
            submit_to(&table, &name("a"), submission(), Duration::from_secs(9)),
            SubmitOutcome::Queued
        ));
        assert!(!is_asked(&table, "a"));
        // Now the other subjects are idle longer, and the used one stays open.
        tasks.push(start(&table, "d", 10));
        assert!(is_asked(&table, "b") && is_asked(&table, "c") && !is_asked(&table, "a"));
        // A request is queued, so the subject opens again.
        assert!(!table.remove_if_queue_empty(&name("b"), &tasks[1].queue));
        assert!(!is_asked(&table, "b"));
        // At the limit too, a further subject is asked.
        assert!(matches!(
            submit_to(&table, &name("e"), submission(), Duration::from_secs(11)),
            SubmitOutcome::Refused(..)
        ));
        assert!(is_asked(&table, "b"));
    }

    /// A full subject table rejects an open with a retry delay until another subject has closed.
    #[test]
    fn subject_table_full_rejects_opens_until_one_closes() {
        let table = SubjectTable::new(2, Some(3));
        let tasks: Vec<_> = ["a", "b", "c"].map(|subject| start(&table, subject, 0)).into();
        let refused = submit_to(&table, &name("d"), submission(), Duration::from_secs(1));
        assert!(matches!(refused, SubmitOutcome::Refused(_, reply) if reply.retry_after_ms.is_some()));
        assert!(is_asked(&table, "a"));
        let SubjectTaskArgs { mut queue, .. } = tasks.into_iter().next().unwrap();
        queue.try_recv().unwrap();
        assert!(table.remove_if_queue_empty(&name("a"), &queue));
        start(&table, "d", 2);
    }

    /// Each rejected open asks one more subject to close, and a subject with a panicked task can open again.
    #[test]
    fn subject_table_rejected_open_asks_one_more_to_close() {
        let table = SubjectTable::new(2, Some(3));
        let mut tasks: Vec<_> = ["a", "b", "c"].map(|subject| start(&table, subject, 0)).into();
        let asked = || ["a", "b", "c"].map(|subject| is_asked(&table, subject));
        let is_refused = || {
            let offered = submit_to(&table, &name("d"), submission(), Duration::ZERO);
            matches!(offered, SubmitOutcome::Refused(..))
        };
        assert!(is_refused());
        assert_eq!(asked(), [true, true, false]);
        assert!(is_refused());
        assert_eq!(asked(), [true, true, true]);
        drop(tasks.remove(0));
        let _again = start(&table, "a", 1);
        assert_eq!(asked(), [false, true, true]);
        // A panicked task is not asked; another subject is.
        tasks.remove(0);
        assert!(is_refused());
        assert_eq!(asked(), [true, true, true]);
    }

    fn submit_of(table: &SubjectTable, tenant: u32, subject: &str) -> SubmitOutcome {
        let submission = Submission { tenant: TenantId::new(tenant), ..submission() };
        submit_to(table, &name(subject), submission, Duration::from_secs(1))
    }

    /// The last eighth of the limit stays free for tenants below their share, and a tenant above it makes room among its
    /// own subjects.
    #[test]
    fn subject_table_keeps_room_for_other_tenants() {
        let table = SubjectTable::new(8, Some(16));
        let polite = start(&table, "polite", 0);
        let greedy: Vec<_> = (0..20).map(|number| submit_of(&table, 1, &format!("greedy{number}"))).collect();
        let opened = greedy.iter().filter(|one| matches!(one, SubmitOutcome::Start(_))).count();
        assert_eq!(opened, 13, "with the other one, 14 of 16");
        assert!(
            matches!(greedy.last(), Some(SubmitOutcome::Refused(_, reply)) if reply.retry_after_ms.is_some())
        );
        assert!(!is_asked(&table, "polite"), "it is idle longest, but the room is needed by another tenant");
        let more = (2..10).map(|tenant| submit_of(&table, tenant, &format!("other{tenant}")));
        assert_eq!(more.filter(|one| matches!(one, SubmitOutcome::Start(_))).count(), 2);
        assert_eq!(table.open_by_tenant()[&TenantId::new(1)], 13);
        let SubjectTaskArgs { mut queue, .. } = polite;
        queue.try_recv().unwrap();
        assert!(table.remove_if_queue_empty(&name("polite"), &queue));
        assert!(!table.open_by_tenant().contains_key(&TenantId::SHARED));
    }

    /// The table lists the busiest subjects first, with their file sizes, up to the requested number.
    #[test]
    fn subject_table_lists_busiest_subjects_first() {
        let table = SubjectTable::new(10, None);
        let tasks: Vec<_> = ["a", "b", "c", "d"].map(|subject| start(&table, subject, 0)).into();
        for (subject, requests) in [("b", 30), ("d", 60), ("a", 2)] {
            for _ in 0..requests {
                let offered = submit_to(&table, &name(subject), submission(), Duration::ZERO);
                assert!(matches!(offered, SubmitOutcome::Queued));
            }
        }
        tasks[3].file_guard.set_bytes(4_096);
        let busiest = table.busiest(3, Duration::ZERO);
        let names: Vec<_> = busiest.iter().map(|busy| busy.subject.as_str()).collect();
        assert_eq!((names, busiest[0].bytes), (vec!["d", "b", "a"], 4_096));
        assert!(table.busiest(0, Duration::ZERO).is_empty());
    }

    /// After a panic, no new task of the subject starts while the file is in use.
    #[test]
    fn subject_task_starts_after_panicked_task_frees_file() {
        let table = SubjectTable::new(2, None);
        let SubjectTaskArgs { queue, file_guard: hold, .. } = start(&table, "a", 0);
        let publishing = Arc::clone(&hold);
        drop((queue, hold));
        let refused = submit_to(&table, &name("a"), submission(), Duration::ZERO);
        assert!(matches!(refused, SubmitOutcome::Refused(_, reply) if reply.retry_after_ms.is_some()));
        drop(publishing);
        start(&table, "a", 0);
    }
}
