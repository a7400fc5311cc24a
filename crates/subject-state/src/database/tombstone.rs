//! The dedup state that survives a destroy: the last counter of each session. Late copies of earlier requests
//! are recognized after the subject is created again.

use dormouse_format::entry::WriteOutcome;
use dormouse_format::manifest::{TombstoneSession, TombstoneState};
use dormouse_protocol::data::DestroyReply;
use dormouse_protocol::limits::TOMBSTONE_SESSIONS;
use dormouse_protocol::{Position, RequestId, SessionId, Timestamp};
use dormouse_runtime::injected_bug;
use rusqlite::{Connection, params};

use super::dedup::{IDLE_MICROS, REFRESH_MICROS};
use super::{Database, DatabaseError, from_sql, outcome, to_sql};

impl Database {
    /// The tombstone state if `request` destroys the subject now: at `wall`, or at the subject's accept time
    /// if that is later. All changes must be applied.
    ///
    /// # Errors
    /// [`DatabaseError`] when the file cannot be read.
    pub fn tombstone_state(
        &self,
        request: Option<RequestId>,
        wall: Timestamp,
    ) -> Result<TombstoneState, DatabaseError> {
        let state = self.state();
        let accept_time = wall.max(state.accept_time);
        let mut sessions = self.recent_sessions(request.map(|id| id.session), accept_time)?;
        if let Some(id) = request {
            let at = sessions.iter().position(|known| known.session == id.session);
            let known = at.map(|at| to_sql(sessions.swap_remove(at).counter));
            // The higher counter in SQLite's order, which also decides their expiry.
            let counter = from_sql(known.unwrap_or(i64::MIN).max(to_sql(id.counter)));
            sessions.truncate(TOMBSTONE_SESSIONS - 1);
            sessions.push(TombstoneSession { session: id.session, counter, accept_time });
        }
        sessions.sort_unstable_by_key(|known| known.session);
        // A destroy is a change with its own rev, so that watchers get it or detect the gap.
        let position = Position { term: state.term, rev: state.rev.next() };
        Ok(TombstoneState { position, accept_time, request, sessions })
    }

    /// The most recently used sessions: `own` first if it exists, whatever its last use.
    fn recent_sessions(
        &self,
        own: Option<SessionId>,
        accept_time: Timestamp,
    ) -> Result<Vec<TombstoneSession>, DatabaseError> {
        let own = own.map(|own| own.to_string());
        let idle = accept_time.as_micros().saturating_sub(IDLE_MICROS + REFRESH_MICROS);
        let mut select = self.connection.prepare_cached(
            "SELECT session, accept_time, floor,
                    (SELECT MAX(counter) FROM results WHERE results.session = sessions.session)
             FROM sessions WHERE accept_time >= ?1 OR session = ?2
             ORDER BY session IS ?2 DESC, accept_time DESC, session LIMIT ?3",
        )?;
        let mut rows = select.query(params![to_sql(idle), own, to_sql(TOMBSTONE_SESSIONS as u64)])?;
        let mut sessions = Vec::new();
        while let Some(row) = rows.next()? {
            let (name, floor, highest): (String, Option<i64>, Option<i64>) =
                (row.get(0)?, row.get(2)?, row.get(3)?);
            // A session without either has no known counter.
            let Some(counter) = floor.max(highest) else { continue };
            let session =
                name.parse().map_err(|_| DatabaseError::Damaged(format!("the session {name:?}")))?;
            let accept_time = Timestamp::from_micros(from_sql(row.get(1)?));
            sessions.push(TombstoneSession { session, counter: from_sql(counter), accept_time });
        }
        Ok(sessions)
    }
}

/// Writes the dedup state of the destroyed predecessor into a new file. Within a transaction.
pub(super) fn write(connection: &Connection, past: &TombstoneState) -> Result<(), DatabaseError> {
    if injected_bug!(DedupLostOnDestroy) {
        return Ok(());
    }
    let mut insert = connection
        .prepare("INSERT INTO sessions(session, accept_time, floor, kept) VALUES (?1, ?2, ?3, ?4)")?;
    for known in &past.sessions {
        let kept = past.request.is_some_and(|id| id.session == known.session);
        insert.execute(params![
            known.session.to_string(),
            to_sql(known.accept_time.as_micros()),
            to_sql(known.counter),
            i64::from(kept),
        ])?;
    }
    let Some(id) = past.request else { return Ok(()) };
    let reply = DestroyReply { position: past.position, duplicate: false };
    let outcome = outcome::encode(&WriteOutcome::Destroy(reply))
        .map_err(|error| DatabaseError::Diverged(format!("an answer: {error}")))?;
    connection.execute(
        "INSERT INTO results(session, counter, rev, outcome) VALUES (?1, ?2, ?3, ?4)",
        params![id.session.to_string(), to_sql(id.counter), to_sql(past.position.rev.get()), outcome],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests;
