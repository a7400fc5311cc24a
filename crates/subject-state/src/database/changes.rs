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
use dormouse_protocol::{Change, Position, Rev, Seq};
use rusqlite::fallible_streaming_iterator::FallibleStreamingIterator;
use rusqlite::{Row, Rows};

use super::floor::Floor;
use super::read::{read_message, read_value};
use super::slice::Slice;
use super::{Database, DatabaseError, from_sql, to_sql};
use crate::plan::size;

/// Messages after a rev, accept time and seq that still exist. All messages of a rev have the same accept time, so this
/// is their order by rev and seq, and the index has it.
const WRITTEN: &str = concat!(
    "SELECT seq, term, rev, key, timestamp, headers, size, expires_at, blob IS NOT NULL, value, accepted_at ",
    "FROM messages WHERE (rev, accepted_at, seq) > (?1, ?2, ?3) ORDER BY rev, accepted_at, seq"
);

/// Removals after a rev and seq.
const REMOVED: &str =
    "SELECT rev, seq, key, count FROM tombstones WHERE (rev, seq) > (?1, ?2) ORDER BY rev, seq";

/// A page of changes, as far as it has been read.
#[derive(Debug)]
pub(super) struct ChangesProgress {
    whole: usize,
    room: usize,
    /// `None` before the first slice.
    reply: Option<ChangesReply>,
    /// The last message that was read: rev, accept time and seq, as SQLite stores them.
    written: [i64; 3],
    /// The last removal that was read: rev and seq.
    removed: [i64; 2],
    /// The change of the configuration, until its rev is read.
    configured: Option<ConfigureChange>,
    /// The changes of the last rev that was read.
    group: Option<Group>,
}

impl ChangesProgress {
    pub(super) const fn new(max_reply_bytes: usize) -> Self {
        let whole = max_reply_bytes.saturating_sub(ENVELOPE_BYTES);
        Self {
            whole,
            room: whole,
            reply: None,
            written: [0; 3],
            removed: [0; 2],
            configured: None,
            group: None,
        }
    }
}

impl Database {
    /// Reads one slice of a page of changes; `None` until the page is complete.
    pub(super) fn changes_slice(
        &self,
        request: &ChangesRequest,
        progress: &mut ChangesProgress,
        slice: &mut Slice,
    ) -> Result<Option<ChangesReply>, DatabaseError> {
        let Some(mut reply) = self.begin_or_continue(request, progress)? else {
            return Ok(Some(ChangesReply { resync: true, ..self.no_changes() }));
        };
        let limit = request.limit.unwrap_or(u64::MAX).min(MAX_PAGE_ITEMS as u64) as usize;
        let (mut written, mut removed) =
            (self.connection.prepare_cached(WRITTEN)?, self.connection.prepare_cached(REMOVED)?);
        let mut sources =
            Sources { written: written.query(progress.written)?, removed: removed.query(progress.removed)? };
        sources.begin()?;
        loop {
            if let Some(hidden) = sources.hidden(self.floor)? {
                if slice.is_spent() {
                    progress.reply = Some(reply);
                    return Ok(None);
                }
                slice.count(0);
                progress.written = hidden;
                sources.written.advance()?;
                continue;
            }
            let next = sources.next_rev(progress.configured.as_ref())?;
            if let Some(group) = progress.group.take_if(|group| next != Some(group.rev)) {
                let rev = group.rev;
                let group = group.complete();
                let full = !reply.changes.is_empty()
                    && (group.bytes > progress.room || reply.changes.len() + group.changes.len() > limit);
                if full {
                    reply.position.rev = Rev::new(rev.get() - 1);
                    reply.more = true;
                    return Ok(Some(reply));
                }
                let Some(group) = group.fit(progress.whole) else {
                    // The batch does not fit even without its values: a full read returns it in parts.
                    return Ok(Some(ChangesReply { resync: true, changes: Vec::new(), ..reply }));
                };
                progress.room = progress.room.saturating_sub(group.bytes);
                reply.changes.extend(group.changes);
            }
            let Some(rev) = next else { return Ok(Some(reply)) };
            if slice.is_spent() {
                progress.reply = Some(reply);
                return Ok(None);
            }
            sources.take_one(rev, progress, slice)?;
        }
    }

    /// The reply so far; `None` if the requested position is not in the history.
    fn begin_or_continue(
        &self,
        request: &ChangesRequest,
        progress: &mut ChangesProgress,
    ) -> Result<Option<ChangesReply>, DatabaseError> {
        if let Some(reply) = progress.reply.take() {
            return Ok(Some(reply));
        }
        if !self.is_in_history(request.after)? {
            return Ok(None);
        }
        let after = to_sql(request.after.rev.get());
        // Below the rev that removed all messages there is none.
        let written_after = to_sql(request.after.rev.max(self.floor.cleared_rev).get());
        progress.written = [written_after, i64::MAX, i64::MAX];
        progress.removed = [after, i64::MAX];
        if self.config_rev > request.after.rev {
            let config = self.state.config.clone();
            progress.configured = Some(ConfigureChange { rev: self.config_rev, config });
        }
        Ok(Some(self.no_changes()))
    }

    fn no_changes(&self) -> ChangesReply {
        ChangesReply {
            position: self.state.position(),
            term_base: self.state.term_base,
            resync: false,
            changes: Vec::new(),
            more: false,
        }
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

/// The stored sources of changes, each in order of rev and positioned at its next change.
struct Sources<'statements> {
    written: Rows<'statements>,
    removed: Rows<'statements>,
}

impl Sources<'_> {
    fn begin(&mut self) -> Result<(), DatabaseError> {
        self.written.advance()?;
        Ok(self.removed.advance()?)
    }

    /// The next message, as in [`ChangesProgress::written`], if it is removed and only its row exists.
    fn hidden(&self, floor: Floor) -> Result<Option<[i64; 3]>, DatabaseError> {
        let Some(row) = self.written.get() else { return Ok(None) };
        let seq: i64 = row.get(0)?;
        Ok(if floor.hides(Seq::new(from_sql(seq))) { Some([row.get(2)?, row.get(10)?, seq]) } else { None })
    }

    /// The lowest next rev of the sources and of the change of the configuration.
    fn next_rev(&self, configured: Option<&ConfigureChange>) -> Result<Option<Rev>, DatabaseError> {
        let written = self.written.get().map(rev_of_written).transpose()?;
        let removed = self.removed.get().map(rev_of_removed).transpose()?;
        let configured = configured.map(|change| change.rev);
        Ok([written, removed, configured].into_iter().flatten().min())
    }

    /// Takes one change of `rev`, the next one: first the messages, with as many values as fit, then the removals.
    fn take_one(
        &mut self,
        rev: Rev,
        progress: &mut ChangesProgress,
        slice: &mut Slice,
    ) -> Result<(), DatabaseError> {
        let room = progress.room;
        let group = progress.group.get_or_insert_with(|| Group::new(rev));
        if let Some(row) = self.written.get()
            && rev_of_written(row)? == rev
        {
            let taken = group.add_written(row, room)?;
            slice.count(taken);
            progress.written = [row.get(2)?, row.get(10)?, row.get(0)?];
            return Ok(self.written.advance()?);
        }
        if let Some(row) = self.removed.get()
            && rev_of_removed(row)? == rev
        {
            let taken = group.add_removed(row)?;
            slice.count(taken);
            progress.removed = [row.get(0)?, row.get(1)?];
            return Ok(self.removed.advance()?);
        }
        group.configured = progress.configured.take();
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
#[derive(Debug)]
struct Group {
    rev: Rev,
    changes: Vec<Change>,
    /// The removed messages, one change at the end.
    removed: Vec<Removed>,
    configured: Option<ConfigureChange>,
    /// The size of the changes with all values, including omitted ones.
    bytes: usize,
}

impl Group {
    const fn new(rev: Rev) -> Self {
        Self { rev, changes: Vec::new(), removed: Vec::new(), configured: None, bytes: 0 }
    }

    fn push(&mut self, change: Change, omitted_bytes: usize) {
        self.bytes += size::of_change(&change) + omitted_bytes;
        self.changes.push(change);
    }

    /// Adds a written message, with its value if it fits. Returns the bytes that were read.
    fn add_written(&mut self, row: &Row<'_>, room: usize) -> Result<usize, DatabaseError> {
        let mut message = read_message(row)?;
        let value_bytes = if message.value_omitted { 0 } else { message.size as usize };
        let mut omitted_bytes = 0;
        if self.bytes + size::FRAMING_BYTES + size::of_message(&message) + value_bytes <= room {
            message.value = read_value(row)?;
        } else {
            message.value_omitted |= value_bytes > 0;
            omitted_bytes = value_bytes;
        }
        let read = size::of_message(&message);
        self.push(Change::Set(SetChange { message, replaces: None }), omitted_bytes);
        Ok(read)
    }

    /// Adds a removal. Returns the bytes that were read.
    fn add_removed(&mut self, row: &Row<'_>) -> Result<usize, DatabaseError> {
        let seq = Seq::new(from_sql(row.get(1)?));
        let count: Option<i64> = row.get(3)?;
        let key: Option<String> = row.get(2)?;
        let read = key.as_ref().map_or(0, String::len);
        match count.map(from_sql) {
            None => self.removed.push(Removed { seq, key }),
            Some(count) => {
                self.push(Change::DeleteAll(DeleteAllChange { rev: self.rev, end_seq: seq, count }), 0);
            }
        }
        Ok(read)
    }

    /// Adds the removals, and the change of the configuration.
    fn complete(mut self) -> Self {
        if !self.removed.is_empty() {
            let removed = std::mem::take(&mut self.removed);
            self.push(Change::Delete(DeleteChange { rev: self.rev, removed }), 0);
        }
        if let Some(change) = self.configured.take() {
            self.push(Change::Configure(change), 0);
        }
        self
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
