//! Expiry by accept time: of messages with their own time to live, and of all messages by the subject's
//! `max_age`.

use dormouse_protocol::{Rev, Timestamp};
use rusqlite::{Row, params_from_iter};

use super::slice::SLICE_ROWS;
use super::view::read_stored_message;
use super::{Database, DatabaseError, from_sql, to_sql};
use crate::plan::{ExpiryCursor, StoredMessage};

const FIRST_BY_TTL: &str =
    "SELECT expires_at, seq FROM messages WHERE expires_at IS NOT NULL ORDER BY expires_at, seq";

/// Revs and accept times increase together, so the first message by rev is the oldest.
const FIRST_BY_AGE: &str =
    "SELECT accepted_at, seq FROM messages WHERE rev > ?1 ORDER BY rev, accepted_at, seq";

const BY_TTL: &str = "SELECT seq, term, key, size, expires_at FROM messages
     WHERE expires_at <= ?1 AND (expires_at, seq) > (?2, ?3) ORDER BY expires_at, seq";

const BY_AGE: &str = "SELECT seq, term, key, size, accepted_at, rev FROM messages
     WHERE rev > ?1 AND (rev, accepted_at, seq) > (?2, ?3, ?4) ORDER BY rev, accepted_at, seq";

/// Maximum number of rows below the floor that one call passes over. Behind more of them, messages expire when these rows
/// are deleted.
const MAX_HIDDEN_ROWS: usize = SLICE_ROWS;

/// All of them.
#[cfg(test)]
pub(super) const QUERIES: [&str; 4] = [FIRST_BY_TTL, FIRST_BY_AGE, BY_TTL, BY_AGE];

impl Database {
    /// The accept time at which a message expires next; `None`: none does.
    #[must_use]
    pub const fn next_expiry(&self) -> Option<Timestamp> {
        self.next_expiry
    }

    /// Reads again when a message expires next.
    pub(super) fn update_next_expiry(&mut self) -> Result<(), DatabaseError> {
        let by_age = match self.state.config.max_age_ms {
            None => None,
            Some(max_age_ms) => self
                .first_time(FIRST_BY_AGE, &[to_sql(self.floor.cleared_rev.get())])?
                .map(|at| at.plus_millis(max_age_ms)),
        };
        // Most subjects have no such message, and then the rows below a floor are not searched for one.
        let by_ttl = if self.counts.expiring == 0 { None } else { self.first_time(FIRST_BY_TTL, &[])? };
        self.next_expiry = by_ttl.into_iter().chain(by_age).min();
        Ok(())
    }

    /// The time in the first row of a message that exists. Rows have a time and a seq.
    fn first_time(&self, sql: &str, parameters: &[i64]) -> Result<Option<Timestamp>, rusqlite::Error> {
        let mut select = self.connection.prepare_cached(sql)?;
        let mut rows = select.query(params_from_iter(parameters))?;
        for _ in 0..=MAX_HIDDEN_ROWS {
            let Some(row) = rows.next()? else { break };
            if !self.is_below_floor(row.get(1)?) {
                return Ok(Some(Timestamp::from_micros(from_sql(row.get(0)?))));
            }
        }
        Ok(None)
    }

    const fn is_below_floor(&self, seq: i64) -> bool {
        from_sql(seq) <= self.floor.seq.get()
    }

    /// The next messages after `cursor` that have expired at `now`, by their own time to live or by this maximum age: at
    /// most `limit`. More follow until the cursor has ended.
    pub(super) fn find_expired(
        &self,
        now: Timestamp,
        max_age_ms: Option<u64>,
        cursor: &mut ExpiryCursor,
        limit: usize,
    ) -> Result<Vec<StoredMessage>, DatabaseError> {
        let mut found = Vec::new();
        if !cursor.ttl_ended {
            let (at, seq) = cursor.by_ttl.unwrap_or_default();
            let parameters = [micros(now), micros(at), to_sql(seq.get())];
            cursor.ttl_ended = self.each_message(BY_TTL, &parameters, limit, |row, held| {
                cursor.by_ttl = Some((Timestamp::from_micros(from_sql(row.get(4)?)), held.id.seq));
                found.push(held);
                Ok(true)
            })?;
        }
        let Some(max_age_ms) = max_age_ms else {
            cursor.age_ended = true;
            return Ok(found);
        };
        if cursor.ttl_ended && !cursor.age_ended && found.len() < limit {
            let (rev, at, seq) = cursor.by_age.unwrap_or_default();
            let cleared_rev = to_sql(self.floor.cleared_rev.get());
            let parameters = [cleared_rev, to_sql(rev.get()), micros(at), to_sql(seq.get())];
            let limit = limit - found.len();
            cursor.age_ended = self.each_message(BY_AGE, &parameters, limit, |row, held| {
                let accepted_at = Timestamp::from_micros(from_sql(row.get(4)?));
                if accepted_at.plus_millis(max_age_ms) > now {
                    return Ok(false);
                }
                cursor.by_age = Some((Rev::new(from_sql(row.get(5)?)), accepted_at, held.id.seq));
                found.push(held);
                Ok(true)
            })?;
        }
        Ok(found)
    }

    /// Passes at most `limit` messages that exist to `take`, until it returns `false`. Returns whether there are no more,
    /// or too many rows below the floor before them.
    fn each_message(
        &self,
        sql: &str,
        parameters: &[i64],
        limit: usize,
        mut take: impl FnMut(&Row<'_>, StoredMessage) -> Result<bool, rusqlite::Error>,
    ) -> Result<bool, DatabaseError> {
        let mut select = self.connection.prepare_cached(sql)?;
        let mut rows = select.query(params_from_iter(parameters))?;
        let (mut taken, mut hidden) = (0, 0);
        while taken < limit {
            let Some(row) = rows.next()? else { return Ok(true) };
            if self.is_below_floor(row.get(0)?) {
                hidden += 1;
                if hidden > MAX_HIDDEN_ROWS {
                    return Ok(true);
                }
                continue;
            }
            if !take(row, read_stored_message(row)?)? {
                return Ok(true);
            }
            taken += 1;
        }
        Ok(false)
    }
}

/// A time as SQLite stores it.
fn micros(at: Timestamp) -> i64 {
    to_sql(at.as_micros().min(i64::MAX.unsigned_abs()))
}
