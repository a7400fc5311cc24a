//! Changes that are acknowledged and not in the file yet.
//!
//! The log is what keeps a change; the file is made from it. So nobody waits for the file but those who read it, and
//! many small changes of a subject share a transaction. What is in here is lost with the process, and replayed from
//! the log by whoever opens the subject next.

use std::collections::VecDeque;
use std::time::Duration;

use crate::entry::Entry;
use crate::plan::Operation;

/// How long a change waits at most for others to share a transaction with.
const DELAY: Duration = Duration::from_secs(5);

/// The same for one that has something to do with time: when a message expires is looked up in the file.
const SHORT_DELAY: Duration = Duration::from_millis(500);

/// So many changes of a subject wait at most, and so many bytes.
const MOST_CHANGES: usize = 1_024;
const MOST_BYTES: usize = 1_024 * 1_024;

/// So many bytes are brought into the file while there is nothing else to do.
const WORTH_BYTES: usize = 32 * 1_024;

/// Beyond so many bytes of all subjects together nothing waits any more.
const MOST_BYTES_OF_ALL: u64 = 64 * 1_024 * 1_024;

/// About what a change takes in memory beside its frame, in bytes: what is planned on it, too.
const CHANGE_BYTES: usize = 1_024;

/// At about this many bytes a transaction ends: it keeps its thread to itself.
const TRANSACTION_BYTES: usize = 4 * 1_024 * 1_024;

/// A change that is acknowledged.
pub(super) struct Acknowledged {
    pub(super) entry: Entry,
    /// Of its frame.
    pub(super) bytes: usize,
    /// Nobody has asked for it, and what is to go next is looked up once it is in the file.
    pub(super) is_upkeep: bool,
}

/// The acknowledged changes of one subject that are not in its file, in order of rev.
#[derive(Default)]
pub(super) struct Backlog {
    changes: VecDeque<Acknowledged>,
    bytes: usize,
    /// On the clock that never goes back; `None` while there are none.
    due_at: Option<Duration>,
}

impl Backlog {
    /// Lines up a change that was acknowledged at `now`. `expiring`: something in the file expires by itself, or will.
    pub(super) fn push(&mut self, change: Acknowledged, now: Duration, expiring: bool) {
        let delay = if change.is_upkeep {
            Duration::ZERO
        } else if expiring || expires(&change.entry) {
            SHORT_DELAY
        } else {
            DELAY
        };
        let at = now + delay;
        self.due_at = Some(self.due_at.map_or(at, |due_at| due_at.min(at)));
        self.bytes += change.bytes + CHANGE_BYTES;
        self.changes.push_back(change);
    }

    /// It is to be brought into the file now.
    pub(super) fn hurry(&mut self) {
        self.due_at = self.due_at.map(|_| Duration::ZERO);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// About what they take in memory, in bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.changes.iter().map(|change| &change.entry)
    }

    /// When it is brought into the file, should nobody ask earlier; `None`: there is nothing.
    pub(super) const fn due_at(&self) -> Option<Duration> {
        self.due_at
    }

    /// Whether it is to be brought into the file. `bytes_of_all`: what waits in all subjects.
    pub(super) fn is_due(&self, now: Duration, bytes_of_all: u64) -> bool {
        let is_much = self.changes.len() >= MOST_CHANGES || self.bytes >= MOST_BYTES;
        self.due_at.is_some_and(|at| is_much || at <= now || bytes_of_all > MOST_BYTES_OF_ALL)
    }

    /// Whether it is enough for a transaction that delays nobody.
    pub(super) const fn is_worth_a_transaction(&self) -> bool {
        self.bytes >= WORTH_BYTES
    }

    /// What the next transaction takes.
    pub(super) fn first(&self) -> impl Iterator<Item = &Acknowledged> {
        let mut bytes = 0;
        self.changes.iter().take_while(move |change| {
            let fits = bytes == 0 || bytes + change.bytes <= TRANSACTION_BYTES;
            bytes += change.bytes;
            fits
        })
    }

    /// The oldest change is in the file.
    pub(super) fn pop(&mut self) -> Option<Acknowledged> {
        let change = self.changes.pop_front()?;
        self.bytes -= change.bytes + CHANGE_BYTES;
        if self.changes.is_empty() {
            self.due_at = None;
        }
        Some(change)
    }
}

/// Whether an entry writes what expires by itself.
fn expires(entry: &Entry) -> bool {
    entry.operations.iter().any(|operation| match operation {
        Operation::Set(set) => set.expires_at.is_some(),
        Operation::Batch { sets } => sets.iter().any(|set| set.expires_at.is_some()),
        // From now on messages may be too old.
        Operation::Configure { .. } => true,
        Operation::Delete { .. } | Operation::DeleteAll { .. } => false,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use dormouse_protocol::{Headers, Rev, Seq, Term, Timestamp};

    use super::*;
    use crate::plan::SetOperation;

    const NOW: Duration = Duration::from_secs(100);

    fn change(bytes: usize, expires_at: Option<Timestamp>) -> Acknowledged {
        let set = SetOperation {
            seq: Seq::new(1),
            key: None,
            value: Some(Bytes::new()),
            headers: Headers::default(),
            timestamp: Timestamp::default(),
            replaces: None,
            expires_at,
            blob: None,
            msg_id: None,
        };
        let entry = Entry {
            term: Term::new(1),
            after: Rev::new(0),
            accept_time: Timestamp::default(),
            request: None,
            operations: vec![Operation::Set(set)],
        };
        Acknowledged { entry, bytes, is_upkeep: false }
    }

    fn backlog(changes: impl IntoIterator<Item = Acknowledged>) -> Backlog {
        let mut backlog = Backlog::default();
        for change in changes {
            backlog.push(change, NOW, false);
        }
        backlog
    }

    #[test]
    fn the_first_to_be_due_decides() {
        let due_at = |changes| backlog(changes).due_at().map(|at| at - NOW);
        assert_eq!(due_at(vec![]), None);
        assert_eq!(due_at(vec![change(1, None)]), Some(DELAY));
        let expires = change(1, Some(Timestamp::default()));
        assert_eq!(due_at(vec![change(1, None), expires, change(1, None)]), Some(SHORT_DELAY));
        let upkeep = Acknowledged { is_upkeep: true, ..change(1, None) };
        assert_eq!(due_at(vec![change(1, None), upkeep]), Some(Duration::ZERO));
        let mut backlog = Backlog::default();
        backlog.hurry();
        backlog.push(change(1, None), NOW, true);
        assert_eq!(backlog.due_at(), Some(NOW + SHORT_DELAY));
        assert!(!backlog.is_due(NOW, 0) && backlog.is_due(NOW + SHORT_DELAY, 0));
        backlog.hurry();
        assert!(backlog.is_due(NOW, 0));
        backlog.pop().unwrap();
        assert_eq!((backlog.due_at(), backlog.bytes()), (None, 0));
    }

    #[test]
    fn many_changes_wait_for_nobody() {
        let few = backlog((1..MOST_CHANGES).map(|_| change(1, None)));
        assert!(!few.is_due(NOW, MOST_BYTES_OF_ALL) && few.is_due(NOW, MOST_BYTES_OF_ALL + 1));
        assert!(backlog((0..MOST_CHANGES).map(|_| change(1, None))).is_due(NOW, 0));
        assert!(backlog([change(MOST_BYTES, None)]).is_due(NOW, 0));
        assert!(!backlog([]).is_due(NOW + DELAY, u64::MAX));
        assert!(!backlog([change(1, None)]).is_worth_a_transaction());
        assert!(backlog([change(WORTH_BYTES, None)]).is_worth_a_transaction());
    }

    #[test]
    fn a_transaction_takes_at_least_one_change_and_no_more_than_fit() {
        let large = || change(TRANSACTION_BYTES + 1, None);
        assert_eq!(backlog([large(), change(1, None)]).first().count(), 1);
        assert_eq!(backlog([change(1, None), large()]).first().count(), 1);
        assert_eq!(backlog((0..5).map(|_| change(TRANSACTION_BYTES / 4, None))).first().count(), 4);
    }
}
