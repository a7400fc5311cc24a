//! The dedup window, so that no request is executed twice: the results of each session's last requests, and
//! the message ids of the last minutes. Its content depends on the entries alone: the same entries give the
//! same window everywhere.

use dormouse_format::entry::{DedupRecord, LogEntry};
use dormouse_format::record::SetOperation;
use dormouse_protocol::data::SetResult;
use dormouse_protocol::limits::{MSG_ID_WINDOW_MS, SESSION_IDLE_MS, SESSION_RESULTS};
use dormouse_protocol::{RequestId, Rev, Seq, Term, Timestamp};
use rusqlite::{OptionalExtension, params};

use super::{Database, DatabaseError, from_sql, outcome, to_sql};
use crate::plan::DedupLookup;

pub(super) const IDLE_MICROS: u64 = SESSION_IDLE_MS * 1_000;
const WINDOW_MICROS: u64 = MSG_ID_WINDOW_MS * 1_000;

/// Minimum time between two updates of a session's last use: each update moves it in an index.
pub(super) const REFRESH_MICROS: u64 = 60 * 1_000_000;

/// How many results of an idle session, and how many message ids, expire with one entry. This is more than an
/// entry adds, so they do not accumulate, and few enough that no write is delayed.
const EXPIRED_AT_ONCE: u64 = 64;

impl Database {
    /// Looks up a request.
    pub(super) fn find_request(&self, id: RequestId) -> Result<DedupLookup, DatabaseError> {
        let session = id.session.to_string();
        let counter = to_sql(id.counter);
        let outcome: Option<Vec<u8>> = self
            .connection
            .prepare_cached("SELECT outcome FROM results WHERE session = ?1 AND counter = ?2")?
            .query_row(params![session, counter], |row| row.get(0))
            .optional()?;
        if let Some(outcome) = outcome {
            return outcome::decode(&outcome)
                .map(DedupLookup::Done)
                .map_err(|error| DatabaseError::Damaged(format!("a recorded reply: {error}")));
        }
        let held = self.session(&session)?;
        let forgotten = held.and_then(|held| held.floor).is_some_and(|floor| counter <= floor);
        Ok(if forgotten { DedupLookup::Forgotten } else { DedupLookup::New })
    }

    /// The result of a message id, and its accept time.
    pub(super) fn find_msg_id(&self, msg_id: &str) -> Result<Option<(SetResult, Timestamp)>, DatabaseError> {
        let found = self
            .connection
            .prepare_cached("SELECT seq, term, rev, timestamp, accept_time FROM msg_ids WHERE msg_id = ?1")?
            .query_row([msg_id], |row| {
                let number = |column: usize| row.get::<_, i64>(column).map(from_sql);
                let result = SetResult {
                    seq: Seq::new(number(0)?),
                    term: Term::new(number(1)?),
                    rev: Rev::new(number(2)?),
                    timestamp: Timestamp::from_micros(number(3)?),
                    duplicate: false,
                };
                Ok((result, Timestamp::from_micros(number(4)?)))
            })
            .optional()?;
        Ok(found)
    }

    /// Whether an entry that only records a reply has been applied before, even if the record has expired
    /// since.
    pub(super) fn is_recorded(&self, entry: &LogEntry) -> Result<bool, DatabaseError> {
        let Some(request) = &entry.request else { return Ok(true) };
        // Its session may have expired as a whole, but only after this idle time.
        let idle = self.state.accept_time.as_micros().saturating_sub(entry.accept_time.as_micros());
        Ok(idle > IDLE_MICROS || self.find_request(request.id)? != DedupLookup::New)
    }

    /// Records the reply to a request.
    pub(super) fn record_reply(
        &mut self,
        entry: &LogEntry,
        request: &DedupRecord,
    ) -> Result<(), DatabaseError> {
        let session = request.id.session.to_string();
        let outcome = outcome::encode(&request.outcome)
            .map_err(|error| DatabaseError::Diverged(format!("an answer: {error}")))?;
        let added = self
            .connection
            .prepare_cached(
                "INSERT OR IGNORE INTO results(session, counter, rev, outcome) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![session, to_sql(request.id.counter), to_sql(entry.last_rev().get()), outcome])?;
        let known = self.session(&session)?;
        let mut held = known.unwrap_or(SessionRow { accept_time: entry.accept_time, floor: None, kept: 0 });
        held.kept += added as u64;
        if held.kept > SESSION_RESULTS as u64 {
            self.expire_results(&session, &mut held, 1)?;
        }
        if known.is_none() {
            self.connection
                .prepare_cached(
                    "INSERT INTO sessions(session, accept_time, floor, kept) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![session, micros(held.accept_time), held.floor, to_sql(held.kept)])?;
        } else {
            self.update_session(&session, held)?;
        }
        let idle = entry.accept_time.as_micros().saturating_sub(held.accept_time.as_micros());
        if idle > REFRESH_MICROS {
            self.connection
                .prepare_cached("UPDATE sessions SET accept_time = ?2 WHERE session = ?1")?
                .execute(params![session, micros(entry.accept_time)])?;
        }
        self.schedule_expiry(entry.accept_time, IDLE_MICROS);
        Ok(())
    }

    /// Records the message id of a set, if it has one.
    pub(super) fn record_msg_id(
        &mut self,
        entry: &LogEntry,
        rev: Rev,
        set: &SetOperation,
    ) -> Result<(), DatabaseError> {
        let Some(msg_id) = &set.msg_id else { return Ok(()) };
        self.connection
            .prepare_cached(
                "INSERT OR REPLACE INTO msg_ids(msg_id, accept_time, seq, term, rev, timestamp)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                msg_id,
                micros(entry.accept_time),
                to_sql(set.seq.get()),
                to_sql(entry.term.get()),
                to_sql(rev.get()),
                micros(set.timestamp),
            ])?;
        self.schedule_expiry(entry.accept_time, WINDOW_MICROS);
        Ok(())
    }

    fn schedule_expiry(&mut self, accept_time: Timestamp, after: u64) {
        let due = Timestamp::from_micros(accept_time.as_micros().saturating_add(after));
        self.dedup_expires_at = self.dedup_expires_at.min(due);
    }

    /// Expires records that are due by the state's accept time, up to a bound. `added` is the number of
    /// message ids of the entry.
    pub(super) fn expire_dedup(&mut self, added: u64) -> Result<(), DatabaseError> {
        let now = self.state.accept_time.as_micros();
        if now <= self.dedup_expires_at.as_micros() {
            return Ok(());
        }
        if let Some(past) = now.checked_sub(IDLE_MICROS + REFRESH_MICROS) {
            self.expire_idle_session(past)?;
        }
        if let Some(past) = now.checked_sub(WINDOW_MICROS) {
            self.connection
                .prepare_cached(
                    "DELETE FROM msg_ids WHERE msg_id IN (SELECT msg_id FROM msg_ids WHERE accept_time < ?1
                                                          ORDER BY accept_time, msg_id LIMIT ?2)",
                )?
                .execute(params![to_sql(past), to_sql(EXPIRED_AT_ONCE + 2 * added)])?;
        }
        self.dedup_expires_at = Timestamp::from_micros(u64::MAX);
        for (table, after) in [("sessions", IDLE_MICROS + REFRESH_MICROS), ("msg_ids", WINDOW_MICROS)] {
            let oldest: Option<i64> = self
                .connection
                .prepare_cached(&format!("SELECT MIN(accept_time) FROM {table}"))?
                .query_row([], |row| row.get(0))?;
            if let Some(oldest) = oldest {
                self.schedule_expiry(Timestamp::from_micros(from_sql(oldest)), after);
            }
        }
        Ok(())
    }

    /// Expires the session that has been idle for longest, if its last request was accepted before `past`. If
    /// it has many results, only the oldest expire: a repeat of them counts as too old.
    fn expire_idle_session(&mut self, past: u64) -> Result<(), DatabaseError> {
        let idle: Option<String> = self
            .connection
            .prepare_cached(
                "SELECT session FROM sessions WHERE accept_time < ?1 ORDER BY accept_time, session LIMIT 1",
            )?
            .query_row([to_sql(past)], |row| row.get(0))
            .optional()?;
        let Some(session) = idle else { return Ok(()) };
        let Some(mut held) = self.session(&session)? else { return Ok(()) };
        if held.kept > EXPIRED_AT_ONCE {
            self.expire_results(&session, &mut held, EXPIRED_AT_ONCE)?;
            return self.update_session(&session, held);
        }
        for table in ["results", "sessions"] {
            self.connection
                .prepare_cached(&format!("DELETE FROM {table} WHERE session = ?1"))?
                .execute([&session])?;
        }
        Ok(())
    }

    /// Expires the oldest results of a session.
    fn expire_results(&self, session: &str, held: &mut SessionRow, count: u64) -> Result<(), DatabaseError> {
        let last: i64 = self
            .connection
            .prepare_cached(
                "SELECT counter FROM results WHERE session = ?1 ORDER BY counter LIMIT 1 OFFSET ?2",
            )?
            .query_row(params![session, to_sql(count - 1)], |row| row.get(0))?;
        let gone = self
            .connection
            .prepare_cached("DELETE FROM results WHERE session = ?1 AND counter <= ?2")?
            .execute(params![session, last])?;
        held.kept = held.kept.saturating_sub(gone as u64);
        held.floor = held.floor.max(Some(last));
        Ok(())
    }

    fn session(&self, session: &str) -> Result<Option<SessionRow>, DatabaseError> {
        let found = self
            .connection
            .prepare_cached("SELECT accept_time, floor, kept FROM sessions WHERE session = ?1")?
            .query_row([session], |row| {
                Ok(SessionRow {
                    accept_time: Timestamp::from_micros(from_sql(row.get(0)?)),
                    floor: row.get(1)?,
                    kept: from_sql(row.get(2)?),
                })
            })
            .optional()?;
        Ok(found)
    }

    fn update_session(&self, session: &str, held: SessionRow) -> Result<(), DatabaseError> {
        self.connection
            .prepare_cached("UPDATE sessions SET floor = ?2, kept = ?3 WHERE session = ?1")?
            .execute(params![session, held.floor, to_sql(held.kept)])?;
        Ok(())
    }
}

/// A row of a session, without its results.
#[derive(Debug, Clone, Copy)]
struct SessionRow {
    accept_time: Timestamp,
    /// In SQLite's order of counters: the same order applies to keeping and to expiring results.
    floor: Option<i64>,
    kept: u64,
}

const fn micros(timestamp: Timestamp) -> i64 {
    to_sql(timestamp.as_micros())
}
