//! Which subjects have a task, and how requests reach it.
//!
//! A subject has at most one task, and so at most one open file. Its task leaves the directory only when its queue
//! is empty, under the same lock that requests are queued under: a request either finds the task, which will still
//! serve it, or finds none and starts one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use dormouse_protocol::{ErrorReply, Subject};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};

use crate::activity::Rate;
use crate::api::Submission;

/// Requests that wait for one subject at most.
const QUEUE: usize = 1_024;

/// When a caller that was turned away may come again.
const RETRY_AFTER_MS: u64 = 50;

/// What a new task is given.
pub(crate) struct Seat {
    /// The subject's requests.
    pub(crate) queue: mpsc::Receiver<Submission>,
    /// Told when the subject shall close for the sake of others.
    pub(crate) close: Arc<Notify>,
    /// Kept by everybody who uses the subject's file.
    pub(crate) hold: Arc<Hold>,
    /// The task before this one panicked: what it had under way is still on its way.
    pub(crate) follows_panic: bool,
}

/// As long as one lives, no new task is started for its subject: the file is in use, be it by what a task that
/// panicked has left running.
#[derive(Debug, Default)]
pub(crate) struct Hold {
    /// Bytes of the file, as of the last look.
    bytes: AtomicU64,
}

impl Hold {
    /// The file has so many bytes now.
    pub(crate) fn set_bytes(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }
}

/// An open subject and what there is to do for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Busy {
    /// The subject.
    pub subject: Subject,
    /// Requests per second, lately.
    pub requests_per_second: f64,
    /// Bytes of its local file, as of its last snapshot.
    pub bytes: u64,
}

/// What became of a request.
pub(crate) enum Offered {
    /// The subject's task has it.
    Queued,
    /// It is the first of its subject: a task must be started with this.
    Start(Seat),
    /// It was turned away.
    Refused(Box<Submission>, ErrorReply),
}

/// See the [module](self).
pub(crate) struct Directory {
    inner: Mutex<Inner>,
    left: Notify,
    /// Above it, those idle longest are asked to close.
    max_open: usize,
    /// At it, no other one is opened.
    open_limit: usize,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<Subject, Entry>,
    shut: bool,
    unreleased: Vec<(Subject, String)>,
    released: u64,
}

struct Entry {
    queue: mpsc::Sender<Submission>,
    close: Arc<Notify>,
    hold: Weak<Hold>,
    used_at: Duration,
    rate: Rate,
    /// And not used since.
    asked_to_close: bool,
}

impl Directory {
    /// `open_limit`: twice `max_open` unless given.
    pub(crate) fn new(max_open: usize, open_limit: Option<usize>) -> Self {
        let max_open = max_open.max(1);
        let open_limit = open_limit.map_or(max_open.saturating_mul(2), |limit| limit.max(max_open));
        Self { inner: Mutex::default(), left: Notify::new(), max_open, open_limit }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change under the lock is complete at each step; a panic elsewhere breaks nothing.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a request for its subject.
    pub(crate) fn offer(&self, subject: &Subject, submission: Submission, now: Duration) -> Offered {
        let mut inner = self.lock();
        if inner.shut {
            return Offered::Refused(Box::new(submission), shutting_down());
        }
        let mut follows_panic = false;
        let submission = match inner.entries.get_mut(subject) {
            None => submission,
            Some(entry) => {
                entry.used_at = now;
                entry.rate.count(now);
                entry.asked_to_close = false;
                match entry.queue.try_send(submission) {
                    Ok(()) => return Offered::Queued,
                    Err(TrySendError::Full(submission)) => {
                        let reply = ErrorReply::overloaded("the subject's queue is full", RETRY_AFTER_MS);
                        return Offered::Refused(Box::new(submission), reply);
                    }
                    // Its task has panicked; another one takes its place, as soon as the file is in nobody's hands.
                    Err(TrySendError::Closed(submission)) if entry.hold.strong_count() > 0 => {
                        let reply =
                            ErrorReply::overloaded("the subject is still being closed", RETRY_AFTER_MS);
                        return Offered::Refused(Box::new(submission), reply);
                    }
                    Err(TrySendError::Closed(submission)) => {
                        follows_panic = true;
                        submission
                    }
                }
            }
        };
        let open = inner.entries.len();
        let is_full = open >= self.open_limit && !follows_panic;
        if open >= self.max_open {
            inner.ask_idle_to_close(open + 1 - self.max_open + self.max_open / 16, is_full);
        }
        if is_full {
            let reply = ErrorReply::overloaded("too many subjects are open", RETRY_AFTER_MS);
            return Offered::Refused(Box::new(submission), reply);
        }
        let (sender, queue) = mpsc::channel(QUEUE);
        // The channel is new and empty.
        let _ = sender.try_send(submission);
        let close = Arc::new(Notify::new());
        let hold = Arc::new(Hold::default());
        let mut rate = Rate::default();
        rate.count(now);
        let entry = Entry {
            queue: sender,
            close: Arc::clone(&close),
            hold: Arc::downgrade(&hold),
            used_at: now,
            rate,
            asked_to_close: false,
        };
        inner.entries.insert(subject.clone(), entry);
        Offered::Start(Seat { queue, close, hold, follows_panic })
    }

    /// Takes the task of `subject` out, if nothing is queued for it. `false`: there is more to do.
    pub(crate) fn leave(&self, subject: &Subject, queue: &mpsc::Receiver<Submission>) -> bool {
        let mut inner = self.lock();
        if !queue.is_empty() {
            // It did close, and opens again.
            if let Some(entry) = inner.entries.get_mut(subject) {
                entry.asked_to_close = false;
            }
            return false;
        }
        inner.entries.remove(subject);
        drop(inner);
        self.left.notify_waiters();
        true
    }

    /// Does something with a subject's file, unless the subject has a task, which might be using it. The lock is held
    /// meanwhile, so it has to be quick.
    pub(crate) fn unless_open<T>(&self, subject: &Subject, work: impl FnOnce() -> T) -> Option<T> {
        let inner = self.lock();
        (!inner.entries.contains_key(subject)).then(work)
    }

    /// Takes down that a subject was handed back at shutdown, or why not.
    pub(crate) fn record_release(&self, subject: &Subject, released: Result<(), String>) {
        let mut inner = self.lock();
        match released {
            Ok(()) => inner.released += 1,
            Err(why) => inner.unreleased.push((subject.clone(), why)),
        }
    }

    /// From now on every request is turned away.
    pub(crate) fn shut(&self) {
        self.lock().shut = true;
    }

    /// Waits until no task is left.
    pub(crate) async fn empty(&self) {
        loop {
            let mut left = std::pin::pin!(self.left.notified());
            // Listening begins before the look, so that no departure falls in between.
            left.as_mut().enable();
            if self.lock().entries.is_empty() {
                return;
            }
            left.await;
        }
    }

    /// What shutdown achieved: the number released, and each other subject with what held it up.
    pub(crate) fn releases(&self) -> (u64, Vec<(Subject, String)>) {
        let inner = self.lock();
        let mut unreleased = inner.unreleased.clone();
        unreleased
            .extend(inner.entries.keys().map(|subject| (subject.clone(), "not finished in time".to_owned())));
        unreleased.sort();
        unreleased.dedup_by(|one, other| one.0 == other.0);
        (inner.released, unreleased)
    }

    /// Every subject that has a task, ascending: what is done with them is done in this order.
    pub(crate) fn subjects(&self) -> Vec<Subject> {
        let mut subjects: Vec<Subject> = self.lock().entries.keys().cloned().collect();
        subjects.sort_unstable();
        subjects
    }

    /// At most `most` subjects that have a task, those with the most to do first. Looks at each, under the lock.
    pub(crate) fn busiest(&self, most: usize, now: Duration) -> Vec<Busy> {
        let inner = self.lock();
        let mut busy: Vec<_> = inner
            .entries
            .iter()
            .map(|(subject, entry)| {
                let bytes = entry.hold.upgrade().map_or(0, |hold| hold.bytes.load(Ordering::Relaxed));
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
            .map(|(requests_per_second, bytes, subject)| Busy {
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

impl Inner {
    /// Asks the `number` subjects idle longest to close. Some extra each time, so that the search is rare; and one `more`
    /// than were asked already where somebody is turned away: those may have something to do that takes long. A task that
    /// has panicked closes nothing.
    fn ask_idle_to_close(&mut self, number: usize, more: bool) {
        let can_close = |entry: &&mut Entry| !entry.queue.is_closed();
        let asked = self.entries.values_mut().filter(can_close).filter(|entry| entry.asked_to_close).count();
        let can_be_asked = |(_, entry): &(&Subject, &mut Entry)| !entry.asked_to_close && can_close(entry);
        let mut open: Vec<_> = self.entries.iter_mut().filter(can_be_asked).collect();
        let number = number.saturating_sub(asked).max(usize::from(more)).min(open.len());
        if number == 0 {
            return;
        }
        // By their names, too: which ones, and in which order, is not left to the map.
        let idle_longest = |one: &(&Subject, &mut Entry), other: &(&Subject, &mut Entry)| {
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

/// The answer to whoever comes too late.
pub(crate) fn shutting_down() -> ErrorReply {
    ErrorReply::unavailable("the server is shutting down")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Request;

    fn submission() -> Submission {
        Submission { request: Request::Info, max_reply_bytes: 0, respond: Box::new(drop) }
    }

    fn name(name: &str) -> Subject {
        name.parse().unwrap()
    }

    fn start(directory: &Directory, subject: &str, at: u64) -> Seat {
        match directory.offer(&name(subject), submission(), Duration::from_secs(at)) {
            Offered::Start(seat) => seat,
            Offered::Queued => panic!("{subject} has a task"),
            Offered::Refused(_, reply) => panic!("{reply}"),
        }
    }

    fn is_asked(directory: &Directory, subject: &str) -> bool {
        directory.lock().entries[&name(subject)].asked_to_close
    }

    #[test]
    fn whoever_is_used_or_opens_again_may_be_asked_to_close_once_more() {
        let directory = Directory::new(2, None);
        let mut seats: Vec<_> = ["a", "b", "c"]
            .into_iter()
            .zip(0..)
            .map(|(subject, at)| start(&directory, subject, at))
            .collect();
        assert!(is_asked(&directory, "a") && !is_asked(&directory, "b"));
        assert!(matches!(directory.offer(&name("a"), submission(), Duration::from_secs(9)), Offered::Queued));
        assert!(!is_asked(&directory, "a"));
        // Now others are idle longer, and the one used is in nobody's way.
        seats.push(start(&directory, "d", 10));
        assert!(is_asked(&directory, "b") && is_asked(&directory, "c") && !is_asked(&directory, "a"));
        // Something is queued: it opens again.
        assert!(!directory.leave(&name("b"), &seats[1].queue));
        assert!(!is_asked(&directory, "b"));
        // At the brim too, somebody is asked.
        assert!(matches!(
            directory.offer(&name("e"), submission(), Duration::from_secs(11)),
            Offered::Refused(..)
        ));
        assert!(is_asked(&directory, "b"));
    }

    #[test]
    fn where_there_is_room_for_few_more_the_next_is_turned_away_until_one_has_left() {
        let directory = Directory::new(2, Some(3));
        let seats: Vec<_> = ["a", "b", "c"].map(|subject| start(&directory, subject, 0)).into();
        let refused = directory.offer(&name("d"), submission(), Duration::from_secs(1));
        assert!(matches!(refused, Offered::Refused(_, reply) if reply.retry_after_ms.is_some()));
        assert!(is_asked(&directory, "a"));
        let Seat { mut queue, .. } = seats.into_iter().next().unwrap();
        queue.try_recv().unwrap();
        assert!(directory.leave(&name("a"), &queue));
        start(&directory, "d", 2);
    }

    #[test]
    fn whoever_is_turned_away_has_one_more_asked_and_a_task_that_panicked_is_not_kept_out() {
        let directory = Directory::new(2, Some(3));
        let mut seats: Vec<_> = ["a", "b", "c"].map(|subject| start(&directory, subject, 0)).into();
        let asked = || ["a", "b", "c"].map(|subject| is_asked(&directory, subject));
        let is_refused = || {
            let offered = directory.offer(&name("d"), submission(), Duration::ZERO);
            matches!(offered, Offered::Refused(..))
        };
        assert!(is_refused());
        assert_eq!(asked(), [true, true, false]);
        assert!(is_refused());
        assert_eq!(asked(), [true, true, true]);
        drop(seats.remove(0));
        let _again = start(&directory, "a", 1);
        assert_eq!(asked(), [false, true, true]);
        // One that has panicked leaves to others what it would not do.
        seats.remove(0);
        assert!(is_refused());
        assert_eq!(asked(), [true, true, true]);
    }

    #[test]
    fn the_busiest_come_first_and_the_rest_is_not_named() {
        let directory = Directory::new(10, None);
        let seats: Vec<_> = ["a", "b", "c", "d"].map(|subject| start(&directory, subject, 0)).into();
        for (subject, requests) in [("b", 30), ("d", 60), ("a", 2)] {
            for _ in 0..requests {
                let offered = directory.offer(&name(subject), submission(), Duration::ZERO);
                assert!(matches!(offered, Offered::Queued));
            }
        }
        seats[3].hold.set_bytes(4_096);
        let busiest = directory.busiest(3, Duration::ZERO);
        let names: Vec<_> = busiest.iter().map(|busy| busy.subject.as_str()).collect();
        assert_eq!((names, busiest[0].bytes), (vec!["d", "b", "a"], 4_096));
        assert!(directory.busiest(0, Duration::ZERO).is_empty());
    }

    #[test]
    fn no_task_follows_one_that_panicked_as_long_as_the_file_is_in_use() {
        let directory = Directory::new(2, None);
        let Seat { queue, hold, .. } = start(&directory, "a", 0);
        let publishing = Arc::clone(&hold);
        drop((queue, hold));
        let refused = directory.offer(&name("a"), submission(), Duration::ZERO);
        assert!(matches!(refused, Offered::Refused(_, reply) if reply.retry_after_ms.is_some()));
        drop(publishing);
        start(&directory, "a", 0);
    }
}
