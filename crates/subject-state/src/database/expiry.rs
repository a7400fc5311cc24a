//! Expiry by accept time: of messages with their own time to live, and of all messages by the subject's
//! `max_age`.

use std::collections::BTreeMap;

use dormouse_protocol::{Seq, Timestamp};
use rusqlite::params_from_iter;

use super::slice::SLICE_ROWS;
use super::view::read_stored_message;
use super::{Database, DatabaseError, from_sql, to_sql};
use crate::plan::StoredMessage;

const FIRST_BY_TTL: &str =
    "SELECT expires_at, seq FROM messages WHERE expires_at IS NOT NULL ORDER BY expires_at, seq";

/// Revs and accept times increase together, so the first message by rev is the oldest.
const FIRST_BY_AGE: &str =
    "SELECT accepted_at, seq FROM messages WHERE rev > ?1 ORDER BY rev, accepted_at, seq";

const BY_TTL: &str =
    "SELECT seq, term, key, size FROM messages WHERE expires_at <= ?1 ORDER BY expires_at, seq";

const BY_AGE: &str =
    "SELECT seq, term, key, size, accepted_at FROM messages WHERE rev > ?1 ORDER BY rev, accepted_at, seq";

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

    /// Messages that have expired at `now`, by their own time to live or by this maximum age: at most
    /// `limit`.
    pub(super) fn find_expired(
        &self,
        now: Timestamp,
        max_age_ms: Option<u64>,
        limit: usize,
    ) -> Result<Vec<StoredMessage>, DatabaseError> {
        let mut found: BTreeMap<Seq, StoredMessage> = BTreeMap::new();
        let mut collect = |sql: &str, from: u64, max_age_ms: Option<u64>| -> Result<(), DatabaseError> {
            let mut select = self.connection.prepare_cached(sql)?;
            let mut rows = select.query([to_sql(from)])?;
            let (mut taken, mut hidden) = (0, 0);
            while taken < limit && hidden <= MAX_HIDDEN_ROWS {
                let Some(row) = rows.next()? else { break };
                if self.is_below_floor(row.get(0)?) {
                    hidden += 1;
                    continue;
                }
                if let Some(max_age_ms) = max_age_ms
                    && (found.len() >= limit
                        || Timestamp::from_micros(from_sql(row.get(4)?)).plus_millis(max_age_ms) > now)
                {
                    break;
                }
                let held = read_stored_message(row)?;
                found.insert(held.id.seq, held);
                taken += 1;
            }
            Ok(())
        };
        collect(BY_TTL, now.as_micros().min(i64::MAX.unsigned_abs()), None)?;
        if max_age_ms.is_some() {
            collect(BY_AGE, self.floor.cleared_rev.get(), max_age_ms)?;
        }
        Ok(found.into_values().collect())
    }
}
