//! The apply backlog: changes that are acknowledged and not in the file yet.
//!
//! The log stores a change; the file is derived from it. So only reads wait for the file, and many small
//! changes of a subject share a transaction. The backlog is lost with the process, and the next open of the
//! subject replays it from the log.

use std::collections::VecDeque;
use std::time::Duration;

use dormouse_format::entry::LogEntry;
use dormouse_format::record::RecordOp;

/// Maximum time that a change waits for other changes to share a transaction.
const DELAY: Duration = Duration::from_secs(5);

/// The same for a change that affects expiry: the next expiry is read from the file.
const SHORT_DELAY: Duration = Duration::from_millis(500);

/// Maximum number of waiting changes of a subject, and maximum bytes.
const MAX_CHANGES: usize = 1_024;
const MAX_BYTES: usize = 1_024 * 1_024;

/// From this size on, an idle subject applies its backlog, in bytes.
const IDLE_APPLY_BYTES: usize = 32 * 1_024;

/// If the backlogs of all subjects together exceed this size, each is due, in bytes.
const MAX_BYTES_OF_ALL: u64 = 64 * 1_024 * 1_024;

/// Approximate memory of a change in addition to its frame, in bytes. Includes its overlay.
const CHANGE_BYTES: usize = 1_024;

/// At about this many bytes a transaction ends: it blocks its thread.
const TRANSACTION_BYTES: usize = 4 * 1_024 * 1_024;

/// An acknowledged change.
pub(super) struct AckedChange {
    pub(super) entry: LogEntry,
    /// Size of its frame.
    pub(super) bytes: usize,
    /// Whether retention made it. The next due messages are read from the file once it is applied.
    pub(super) is_retention: bool,
}

/// The acknowledged changes of one subject that are not in its file, in order of rev.
#[derive(Default)]
pub(super) struct ApplyBacklog {
    changes: VecDeque<AckedChange>,
    /// Bytes of the changes whose entries are being applied, and whether retention made them.
    applying: Vec<(usize, bool)>,
    bytes: usize,
    /// On the monotonic clock; `None` while there are no changes.
    due_at: Option<Duration>,
}

impl ApplyBacklog {
    /// Queues a change that was acknowledged at `now`. `expiring`: a message in the file expires, or will.
    pub(super) fn push(&mut self, change: AckedChange, now: Duration, expiring: bool) {
        let delay = if change.is_retention {
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

    /// Makes the backlog due now.
    pub(super) fn apply_soon(&mut self) {
        self.due_at = self.due_at.map(|_| Duration::ZERO);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Approximate memory of the changes, in bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &LogEntry> {
        self.changes.iter().map(|change| &change.entry)
    }

    /// When the backlog is applied, if no read applies it earlier; `None` if it is empty.
    pub(super) const fn due_at(&self) -> Option<Duration> {
        self.due_at
    }

    /// Whether the backlog is due. `bytes_of_all`: the size of all subjects' backlogs.
    pub(super) fn is_due(&self, now: Duration, bytes_of_all: u64) -> bool {
        let is_much = self.changes.len() >= MAX_CHANGES || self.bytes >= MAX_BYTES;
        self.due_at.is_some_and(|at| is_much || at <= now || bytes_of_all > MAX_BYTES_OF_ALL)
    }

    /// Whether the backlog is large enough for an idle subject to apply it.
    pub(super) const fn exceeds_idle_apply_size(&self) -> bool {
        self.bytes >= IDLE_APPLY_BYTES
    }

    /// Takes the entries of the next transaction out of the first changes; `None` if there are no changes. They
    /// count until [`ApplyBacklog::applied`], or [`ApplyBacklog::put_back`] puts them back.
    pub(super) fn take_first(&mut self) -> Option<Vec<LogEntry>> {
        let number = self.first();
        let entries: Vec<_> = self.changes.drain(..number).collect();
        self.applying = entries.iter().map(|change| (change.bytes, change.is_retention)).collect();
        (number > 0).then(|| entries.into_iter().map(|change| change.entry).collect())
    }

    /// The number of changes in the next transaction.
    fn first(&self) -> usize {
        let mut bytes = 0;
        let fits = |change: &&AckedChange| {
            let fits = bytes == 0 || bytes + change.bytes <= TRANSACTION_BYTES;
            bytes += change.bytes;
            fits
        };
        self.changes.iter().take_while(fits).count()
    }

    /// Puts entries back that were not applied.
    pub(super) fn put_back(&mut self, entries: Vec<LogEntry>) {
        let applying = std::mem::take(&mut self.applying);
        for (entry, (bytes, is_retention)) in entries.into_iter().zip(applying).rev() {
            self.changes.push_front(AckedChange { entry, bytes, is_retention });
        }
    }

    /// The entries that were taken are in the file now. Returns the bytes of their changes.
    pub(super) fn applied(&mut self) -> usize {
        let changes = std::mem::take(&mut self.applying);
        let bytes = changes.iter().map(|(bytes, _)| bytes).sum();
        self.bytes -= bytes + changes.len() * CHANGE_BYTES;
        if self.changes.is_empty() {
            self.due_at = None;
        }
        bytes
    }
}

/// Whether an entry writes messages that expire.
fn expires(entry: &LogEntry) -> bool {
    entry.operations.iter().any(|operation| match operation {
        RecordOp::Set(set) => set.expires_at.is_some(),
        RecordOp::Batch { sets } => sets.iter().any(|set| set.expires_at.is_some()),
        // The new configuration may set a maximum age.
        RecordOp::Configure { .. } => true,
        RecordOp::Delete { .. } | RecordOp::DeleteAll { .. } => false,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use dormouse_format::record::SetOperation;
    use dormouse_protocol::{Headers, Rev, Seq, Term, Timestamp};

    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn change(bytes: usize, expires_at: Option<Timestamp>) -> AckedChange {
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
        let entry = LogEntry {
            term: Term::new(1),
            after: Rev::new(0),
            accept_time: Timestamp::default(),
            request: None,
            operations: vec![RecordOp::Set(set)],
        };
        AckedChange { entry, bytes, is_retention: false }
    }

    fn backlog(changes: impl IntoIterator<Item = AckedChange>) -> ApplyBacklog {
        let mut backlog = ApplyBacklog::default();
        for change in changes {
            backlog.push(change, NOW, false);
        }
        backlog
    }

    /// The apply backlog is due at the earliest deadline of its changes: expiry and retention come sooner.
    #[test]
    fn apply_backlog_is_due_at_earliest_deadline() {
        let due_at = |changes| backlog(changes).due_at().map(|at| at - NOW);
        assert_eq!(due_at(vec![]), None);
        assert_eq!(due_at(vec![change(1, None)]), Some(DELAY));
        let expires = change(1, Some(Timestamp::default()));
        assert_eq!(due_at(vec![change(1, None), expires, change(1, None)]), Some(SHORT_DELAY));
        let retention = AckedChange { is_retention: true, ..change(1, None) };
        assert_eq!(due_at(vec![change(1, None), retention]), Some(Duration::ZERO));
        let mut backlog = ApplyBacklog::default();
        backlog.apply_soon();
        backlog.push(change(1, None), NOW, true);
        assert_eq!(backlog.due_at(), Some(NOW + SHORT_DELAY));
        assert!(!backlog.is_due(NOW, 0) && backlog.is_due(NOW + SHORT_DELAY, 0));
        backlog.apply_soon();
        assert!(backlog.is_due(NOW, 0));
        assert_eq!(backlog.take_first().map(|entries| entries.len()), Some(1));
        backlog.applied();
        assert_eq!((backlog.due_at(), backlog.bytes()), (None, 0));
    }

    /// The apply backlog is due at once if it exceeds its count or bytes, or if all backlogs together exceed their
    /// bytes.
    #[test]
    fn apply_backlog_over_limit_is_due_at_once() {
        let few = backlog((1..MAX_CHANGES).map(|_| change(1, None)));
        assert!(!few.is_due(NOW, MAX_BYTES_OF_ALL) && few.is_due(NOW, MAX_BYTES_OF_ALL + 1));
        assert!(backlog((0..MAX_CHANGES).map(|_| change(1, None))).is_due(NOW, 0));
        assert!(backlog([change(MAX_BYTES, None)]).is_due(NOW, 0));
        assert!(!backlog([]).is_due(NOW + DELAY, u64::MAX));
        assert!(!backlog([change(1, None)]).exceeds_idle_apply_size());
        assert!(backlog([change(IDLE_APPLY_BYTES, None)]).exceeds_idle_apply_size());
    }

    /// One transaction takes at least one change and otherwise no more bytes than its limit.
    #[test]
    fn apply_backlog_transaction_is_bounded_and_not_empty() {
        let large = || change(TRANSACTION_BYTES + 1, None);
        assert_eq!(backlog([large(), change(1, None)]).first(), 1);
        assert_eq!(backlog([change(1, None), large()]).first(), 1);
        assert_eq!(backlog((0..5).map(|_| change(TRANSACTION_BYTES / 4, None))).first(), 4);
    }
}
