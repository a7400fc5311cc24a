//! The changes since a position, in order of rev: for each changed message its current state, for each
//! removed message its removal.
//!
//! A receiver that has the state at the requested position has the current state after the last page. It
//! applies the changes in order: a set replaces the receiver's message at that seq and the one with that key.
//! The originally replaced message is no longer known. A removal removes the message at the seq or with the
//! key.

use dormouse_protocol::data::{ChangesReply, ChangesRequest};
use dormouse_protocol::limits::{ENVELOPE_BYTES, MAX_PAGE_ITEMS};
use dormouse_protocol::message::{ConfigureChange, DeleteAllChange, DeleteChange, Removed, SetChange};
use dormouse_protocol::{Change, ErrorReply, Position, Rev, Seq};
use rusqlite::fallible_streaming_iterator::FallibleStreamingIterator;
use rusqlite::{Row, Rows};

use super::read::{check_limit, read_message, read_value, select_messages};
use super::{Database, DatabaseError, from_sql, to_sql};
use crate::plan::size;

/// Messages that were written after a rev and still exist.
const WRITTEN: &str = select_messages!("WHERE rev > ?1 ORDER BY rev, seq");

/// Removals after a rev.
const REMOVED: &str = "SELECT rev, seq, key, count FROM tombstones WHERE rev > ?1 ORDER BY rev, seq";

impl Database {
    /// Answers a request for changes with one page. The changes of one rev are never split over pages. If an
    /// atomic batch is too large for a page, its last values are omitted and can be fetched by seq.
    ///
    /// # Errors
    /// `bad_request` for a limit of 0; or the file cannot be read.
    pub fn changes(
        &self,
        request: &ChangesRequest,
        max_reply_bytes: usize,
    ) -> Result<ChangesReply, ErrorReply> {
        check_limit(request.limit)?;
        self.changes_page(request, max_reply_bytes).map_err(|error| self.unreadable(&error))
    }

    fn changes_page(
        &self,
        request: &ChangesRequest,
        max_reply_bytes: usize,
    ) -> Result<ChangesReply, DatabaseError> {
        let mut reply = ChangesReply {
            position: self.state.position(),
            term_base: self.state.term_base,
            resync: false,
            changes: Vec::new(),
            more: false,
        };
        if !self.is_in_history(request.after)? {
            reply.resync = true;
            return Ok(reply);
        }
        let limit = request.limit.unwrap_or(u64::MAX).min(MAX_PAGE_ITEMS as u64) as usize;
        let mut room = max_reply_bytes.saturating_sub(ENVELOPE_BYTES);
        let whole = room;
        let (mut written, mut removed) =
            (self.connection.prepare_cached(WRITTEN)?, self.connection.prepare_cached(REMOVED)?);
        let after = [to_sql(request.after.rev.get())];
        let mut sources =
            Sources { written: written.query(after)?, removed: removed.query(after)?, configured: None };
        if self.config_rev > request.after.rev {
            let config = self.state.config.clone();
            sources.configured = Some(ConfigureChange { rev: self.config_rev, config });
        }
        sources.begin()?;
        while let Some(rev) = sources.next_rev()? {
            let group = sources.take(rev, room)?;
            let full = !reply.changes.is_empty()
                && (group.bytes > room || reply.changes.len() + group.changes.len() > limit);
            if full {
                reply.position.rev = Rev::new(rev.get() - 1);
                reply.more = true;
                break;
            }
            let Some(group) = group.fit(whole) else {
                // The batch does not fit even without its values: a full read returns it in parts.
                return Ok(ChangesReply { resync: true, changes: Vec::new(), ..reply });
            };
            room = room.saturating_sub(group.bytes);
            reply.changes.extend(group.changes);
        }
        Ok(reply)
    }

    /// Whether `position` is in this state's history, and all removals since are still stored.
    fn is_in_history(&self, position: Position) -> Result<bool, DatabaseError> {
        let Position { term, rev } = position;
        if rev > self.state.rev || rev < self.removal_floor || term > self.state.term {
            return Ok(false);
        }
        // Every history starts at the empty state.
        if term == self.state.term || rev == Rev::new(0) {
            return Ok(true);
        }
        if self.base_of(term)?.is_none() {
            return Ok(false);
        }
        let next_base: i64 = self
            .connection
            .prepare_cached("SELECT term_base FROM terms WHERE term > ?1 ORDER BY term LIMIT 1")?
            .query_row([to_sql(term.get())], |row| row.get(0))?;
        Ok(rev.get() <= from_sql(next_base))
    }
}

/// The sources of changes, each in order of rev and positioned at its next change.
struct Sources<'statements> {
    written: Rows<'statements>,
    removed: Rows<'statements>,
    configured: Option<ConfigureChange>,
}

impl Sources<'_> {
    fn begin(&mut self) -> Result<(), DatabaseError> {
        self.written.advance()?;
        Ok(self.removed.advance()?)
    }

    /// The lowest next rev of the sources.
    fn next_rev(&self) -> Result<Option<Rev>, DatabaseError> {
        let written = self.written.get().map(rev_of_written).transpose()?;
        let removed = self.removed.get().map(rev_of_removed).transpose()?;
        let configured = self.configured.as_ref().map(|change| change.rev);
        Ok([written, removed, configured].into_iter().flatten().min())
    }

    /// Takes all changes of `rev`, with as many values as fit in `room`.
    fn take(&mut self, rev: Rev, room: usize) -> Result<Group, DatabaseError> {
        let mut group = Group { changes: Vec::new(), bytes: 0 };
        self.take_written(rev, room, &mut group)?;
        self.take_removed(rev, &mut group)?;
        if self.configured.as_ref().is_some_and(|change| change.rev == rev)
            && let Some(change) = self.configured.take()
        {
            group.push(Change::Configure(change), 0);
        }
        Ok(group)
    }

    fn take_written(&mut self, rev: Rev, room: usize, group: &mut Group) -> Result<(), DatabaseError> {
        while let Some(row) = self.written.get() {
            if rev_of_written(row)? != rev {
                break;
            }
            let mut message = read_message(row)?;
            let value_bytes = if message.value_omitted { 0 } else { message.size as usize };
            let change = |message| Change::Set(SetChange { message, replaces: None });
            if group.bytes + size::FRAMING_BYTES + size::of_message(&message) + value_bytes <= room {
                message.value = read_value(row)?;
                group.push(change(message), 0);
            } else {
                message.value_omitted |= value_bytes > 0;
                group.push(change(message), value_bytes);
            }
            self.written.advance()?;
        }
        Ok(())
    }

    fn take_removed(&mut self, rev: Rev, group: &mut Group) -> Result<(), DatabaseError> {
        let mut removed = Vec::new();
        while let Some(row) = self.removed.get() {
            if rev_of_removed(row)? != rev {
                break;
            }
            let seq = Seq::new(from_sql(row.get(1)?));
            match row.get::<_, Option<i64>>(3)? {
                None => removed.push(Removed { seq, key: row.get(2)? }),
                Some(count) => {
                    let count = from_sql(count);
                    group.push(Change::DeleteAll(DeleteAllChange { rev, end_seq: seq, count }), 0);
                }
            }
            self.removed.advance()?;
        }
        if !removed.is_empty() {
            group.push(Change::Delete(DeleteChange { rev, removed }), 0);
        }
        Ok(())
    }
}

fn rev_of_written(row: &Row<'_>) -> Result<Rev, DatabaseError> {
    Ok(Rev::new(from_sql(row.get(2)?)))
}

fn rev_of_removed(row: &Row<'_>) -> Result<Rev, DatabaseError> {
    Ok(Rev::new(from_sql(row.get(0)?)))
}

/// The changes of one rev.
struct Group {
    changes: Vec<Change>,
    /// Their size with all values, including omitted ones.
    bytes: usize,
}

impl Group {
    fn push(&mut self, change: Change, omitted_bytes: usize) {
        self.bytes += size::of_change(&change) + omitted_bytes;
        self.changes.push(change);
    }

    /// Omits values, starting with the last, until the rest fits. `None` if it never fits.
    fn fit(mut self, whole: usize) -> Option<Self> {
        if self.bytes <= whole {
            return Some(self);
        }
        self.bytes = self.changes.iter().map(size::of_change).sum();
        for change in self.changes.iter_mut().rev() {
            if self.bytes <= whole {
                break;
            }
            if let Change::Set(set) = change
                && let Some(value) = set.message.value.take()
            {
                self.bytes -= value.len();
                set.message.value_omitted = true;
            }
        }
        (self.bytes <= whole).then_some(self)
    }
}
