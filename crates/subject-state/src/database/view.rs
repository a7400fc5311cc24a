//! Implements the queries of planning on a file.

use dormouse_protocol::data::SetResult;
use dormouse_protocol::limits::MAX_SEQ;
use dormouse_protocol::{ErrorReply, MessageId, RequestId, Seq, Term, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row};

use super::{Database, from_sql, to_sql};
use crate::plan::{DedupLookup, ExpiryCursor, StoredMessage, SubjectState, SubjectView};

pub(super) const ID_BY_KEY: &str = "SELECT term, seq FROM messages WHERE key = ?1";

impl SubjectView for Database {
    fn state(&self) -> &SubjectState {
        &self.state
    }

    fn at(&self, seq: Seq) -> Result<Option<StoredMessage>, ErrorReply> {
        if self.floor.hides(seq) {
            return Ok(None);
        }
        let read = |connection: &Connection| {
            connection
                .prepare_cached("SELECT seq, term, key, size FROM messages WHERE seq = ?1")?
                .query_row([to_sql(seq.get().min(MAX_SEQ + 1))], read_stored_message)
                .optional()
        };
        read(&self.connection).map_err(|error| self.unreadable(&error.into()))
    }

    fn by_key(&self, key: &str) -> Result<Option<MessageId>, ErrorReply> {
        let read = |connection: &Connection| {
            connection
                .prepare_cached(ID_BY_KEY)?
                .query_row([key], |row| {
                    let term = Term::new(from_sql(row.get(0)?));
                    Ok(MessageId { term, seq: Seq::new(from_sql(row.get(1)?)) })
                })
                .optional()
        };
        let found = read(&self.connection).map_err(|error| self.unreadable(&error.into()))?;
        Ok(found.filter(|id: &MessageId| !self.floor.hides(id.seq)))
    }

    fn bytes(&self) -> Option<u64> {
        Some(self.state.bytes)
    }

    fn oldest(&self, from: Seq, limit: usize) -> Result<Vec<StoredMessage>, ErrorReply> {
        let read = |connection: &Connection| {
            let mut select = connection.prepare_cached(
                "SELECT seq, term, key, size FROM messages WHERE seq >= ?1 ORDER BY seq LIMIT ?2",
            )?;
            let from = to_sql(from.max(self.floor.next()).get().min(MAX_SEQ + 1));
            select.query_map([from, to_sql(limit as u64)], read_stored_message)?.collect::<Result<_, _>>()
        };
        read(&self.connection).map_err(|error: rusqlite::Error| self.unreadable(&error.into()))
    }

    fn expired(
        &self,
        now: Timestamp,
        max_age_ms: Option<u64>,
        cursor: &mut ExpiryCursor,
        limit: usize,
    ) -> Result<Vec<StoredMessage>, ErrorReply> {
        self.find_expired(now, max_age_ms, cursor, limit).map_err(|error| self.unreadable(&error))
    }

    fn count_up_to(&self, end_seq: Seq) -> Result<u64, ErrorReply> {
        self.count_messages(end_seq).map_err(|error| self.unreadable(&error))
    }

    fn newest_beyond(&self, keep: u64) -> Result<Option<Seq>, ErrorReply> {
        if keep >= self.state.count {
            return Ok(None);
        }
        self.find_beyond(keep).map_err(|error| self.unreadable(&error))
    }

    fn counts_are_exact(&self) -> bool {
        true
    }

    fn remembered(&self, id: RequestId) -> Result<DedupLookup, ErrorReply> {
        self.find_request(id).map_err(|error| self.unreadable(&error))
    }

    fn by_msg_id(&self, msg_id: &str) -> Result<Option<(SetResult, Timestamp)>, ErrorReply> {
        self.find_msg_id(msg_id).map_err(|error| self.unreadable(&error))
    }
}

/// Reads a row of seq, term, key and size.
pub(super) fn read_stored_message(row: &Row<'_>) -> Result<StoredMessage, rusqlite::Error> {
    let (seq, term) = (Seq::new(from_sql(row.get(0)?)), Term::new(from_sql(row.get(1)?)));
    Ok(StoredMessage { id: MessageId { term, seq }, key: row.get(2)?, size: from_sql(row.get(3)?) })
}
