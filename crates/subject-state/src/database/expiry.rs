//! Expiry by accept time: of messages with their own time to live, and of all messages by the subject's
//! `max_age`.

use std::collections::BTreeMap;

use dormouse_protocol::{Seq, Timestamp};
use rusqlite::params_from_iter;

use super::view::read_stored_message;
use super::{Database, DatabaseError, from_sql, to_sql};
use crate::plan::StoredMessage;

const FIRST_BY_TTL: &str = "SELECT expires_at FROM messages WHERE expires_at IS NOT NULL AND seq > ?1
     ORDER BY expires_at LIMIT 1";

/// Revs and accept times increase together, so the first message by rev is the oldest.
const FIRST_BY_AGE: &str =
    "SELECT accepted_at FROM messages WHERE rev > ?2 AND seq > ?1 ORDER BY rev LIMIT 1";

const BY_TTL: &str = "SELECT seq, term, key, size FROM messages WHERE expires_at <= ?2 AND seq > ?1 ORDER BY expires_at, seq LIMIT ?3";

const BY_AGE: &str = "SELECT seq, term, key, size, accepted_at FROM messages WHERE rev > ?2 AND seq > ?1 ORDER BY rev, seq LIMIT ?3";

impl Database {
    /// The accept time at which a message expires next; `None`: none does.
    #[must_use]
    pub const fn next_expiry(&self) -> Option<Timestamp> {
        self.next_expiry
    }

    /// Reads again when a message expires next.
    pub(super) fn update_next_expiry(&mut self) -> Result<(), DatabaseError> {
        let floor = to_sql(self.floor.seq.get());
        let read = |sql: &str, parameters: &[i64]| -> Result<Option<Timestamp>, rusqlite::Error> {
            let mut select = self.connection.prepare_cached(sql)?;
            let mut rows = select.query(params_from_iter(parameters))?;
            let first: Option<i64> = rows.next()?.map(|row| row.get(0)).transpose()?.flatten();
            Ok(first.map(|at| Timestamp::from_micros(from_sql(at))))
        };
        let by_age = match self.state.config.max_age_ms {
            None => None,
            Some(max_age_ms) => read(FIRST_BY_AGE, &[floor, to_sql(self.floor.cleared_rev.get())])?
                .map(|at| at.plus_millis(max_age_ms)),
        };
        // Most subjects have no such message, and then the rows below a floor are not searched for one.
        let by_ttl = if self.counts.expiring == 0 { None } else { read(FIRST_BY_TTL, &[floor])? };
        self.next_expiry = by_ttl.into_iter().chain(by_age).min();
        Ok(())
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
        let mut select = self.connection.prepare_cached(BY_TTL)?;
        let now_micros = now.as_micros().min(i64::MAX.unsigned_abs());
        let floor = to_sql(self.floor.seq.get());
        let mut rows = select.query([floor, to_sql(now_micros), to_sql(limit as u64)])?;
        while let Some(row) = rows.next()? {
            let held = read_stored_message(row)?;
            found.insert(held.id.seq, held);
        }
        if let Some(max_age_ms) = max_age_ms {
            let mut select = self.connection.prepare_cached(BY_AGE)?;
            let cleared_rev = to_sql(self.floor.cleared_rev.get());
            let mut rows = select.query([floor, cleared_rev, to_sql(limit as u64)])?;
            while let Some(row) = rows.next()? {
                let accepted_at = Timestamp::from_micros(from_sql(row.get(4)?));
                if found.len() >= limit || accepted_at.plus_millis(max_age_ms) > now {
                    break;
                }
                let held = read_stored_message(row)?;
                found.insert(held.id.seq, held);
            }
        }
        Ok(found.into_values().collect())
    }
}
