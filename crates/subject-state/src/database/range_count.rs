//! Counts that the plan of a bounded `delete_all` needs. Of a large subject they are made ahead, where a scan may block.

use dormouse_protocol::data::DeleteAllRequest;
use dormouse_protocol::limits::MAX_SEQ;
use dormouse_protocol::{ErrorReply, Rev, Seq};
use rusqlite::OptionalExtension;

use super::{Database, DatabaseError, from_sql, to_sql};

/// A subject with at most this many messages is counted while the request is planned.
const FEW_MESSAGES: u64 = 4_096;

/// What was counted, at this rev of the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct RangeCount {
    rev: Rev,
    /// The newest messages to keep, and the seq of the newest one beyond them.
    beyond: Option<(u64, Option<Seq>)>,
    /// The messages up to a seq, and how many there are.
    up_to: Option<(Seq, u64)>,
}

impl Database {
    /// Whether the plan of `request` would scan many messages, unless they are [counted ahead](Self::count_ahead).
    #[must_use]
    pub fn needs_count(&self, request: &DeleteAllRequest) -> bool {
        let newest = Seq::new(self.state.next_seq.get().saturating_sub(1));
        let scans = match (request.end_seq, request.keep_last) {
            (Some(end_seq), None) => end_seq < newest,
            (None, Some(keep)) => keep > 0 && keep < self.state.count,
            _ => false,
        };
        scans && self.state.count > FEW_MESSAGES && !self.is_counted(request)
    }

    fn is_counted(&self, request: &DeleteAllRequest) -> bool {
        self.counted_now().is_some_and(|counted| match (request.end_seq, request.keep_last) {
            (Some(end_seq), _) => counted.up_to.is_some_and(|(seq, _)| seq == end_seq),
            (None, Some(keep)) => counted.beyond.is_some_and(|(kept, _)| kept == keep),
            (None, None) => true,
        })
    }

    /// Counts what the plan of `request` needs. The result holds until the next change of the file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn count_ahead(&mut self, request: &DeleteAllRequest) -> Result<(), ErrorReply> {
        let count = || -> Result<RangeCount, DatabaseError> {
            let beyond = match request.keep_last {
                Some(keep) if request.end_seq.is_none() => Some((keep, self.find_beyond(keep)?)),
                _ => None,
            };
            let end_seq = request.end_seq.or(beyond.and_then(|(_, seq)| seq));
            let up_to = match end_seq {
                Some(end_seq) => Some((end_seq, self.count_messages(end_seq)?)),
                None => None,
            };
            Ok(RangeCount { rev: self.state.rev, beyond, up_to })
        };
        let counted = count().map_err(|error| self.unreadable(&error))?;
        self.counted = Some(counted);
        Ok(())
    }

    fn counted_now(&self) -> Option<RangeCount> {
        self.counted.filter(|counted| counted.rev == self.state.rev)
    }

    /// The number of messages up to `end_seq`.
    pub(super) fn count_messages(&self, end_seq: Seq) -> Result<u64, DatabaseError> {
        let counted = self.counted_now().and_then(|counted| counted.up_to);
        if let Some((_, count)) = counted.filter(|(seq, _)| *seq == end_seq) {
            return Ok(count);
        }
        let count = self
            .connection
            .prepare_cached("SELECT COUNT(*) FROM messages WHERE seq > ?1 AND seq <= ?2")?
            .query_row([to_sql(self.floor.seq.get()), to_sql(end_seq.get().min(MAX_SEQ))], |row| {
                row.get(0).map(from_sql)
            })?;
        Ok(count)
    }

    /// The seq of the newest message beyond the newest `keep`.
    pub(super) fn find_beyond(&self, keep: u64) -> Result<Option<Seq>, DatabaseError> {
        let counted = self.counted_now().and_then(|counted| counted.beyond);
        if let Some((_, seq)) = counted.filter(|(kept, _)| *kept == keep) {
            return Ok(seq);
        }
        let found = self
            .connection
            .prepare_cached("SELECT seq FROM messages WHERE seq > ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2")?
            .query_row([to_sql(self.floor.seq.get()), to_sql(keep)], |row| {
                row.get(0).map(|seq| Seq::new(from_sql(seq)))
            })
            .optional()?;
        Ok(found)
    }
}
