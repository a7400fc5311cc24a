//! What outlives a destroy: how far each session had come, so that late copies of what it asked are known once the
//! subject has begun again.

use dormouse_protocol::data::DestroyReply;
use dormouse_protocol::limits::REMEMBERED_SESSIONS;
use dormouse_protocol::{Position, RequestId, SessionId, Timestamp};
use rusqlite::{Connection, params};

use super::remember::{IDLE_MICROS, REFRESH_MICROS};
use super::{Database, DatabaseError, from_sql, outcome, to_sql};
use crate::entry::Outcome;
use crate::manifest::{PastLife, PastSession};
use crate::mutations::{Mutation, is_there};

impl Database {
    /// What is to be remembered of the subject if `request` destroys it now: at `wall`, or at the subject's accept time
    /// if that is later. All of it is applied.
    ///
    /// # Errors
    /// [`DatabaseError`] when the file cannot be read.
    pub fn past_life(&self, request: Option<RequestId>, wall: Timestamp) -> Result<PastLife, DatabaseError> {
        let state = self.state();
        let accept_time = wall.max(state.accept_time);
        let mut sessions = self.sessions_heard_of(request.map(|id| id.session), accept_time)?;
        if let Some(id) = request {
            let at = sessions.iter().position(|known| known.session == id.session);
            let known = at.map(|at| to_sql(sessions.swap_remove(at).counter));
            // The higher one as SQLite orders them, by which they are forgotten, too.
            let counter = from_sql(known.unwrap_or(i64::MIN).max(to_sql(id.counter)));
            sessions.truncate(REMEMBERED_SESSIONS - 1);
            sessions.push(PastSession { session: id.session, counter, accept_time });
        }
        sessions.sort_unstable_by_key(|known| known.session);
        // A change like any other, with a rev of its own, so that watchers hear of it or notice that they did not.
        let position = Position { term: state.term, rev: state.rev.next() };
        Ok(PastLife { position, accept_time, request, sessions })
    }

    /// The sessions that were heard of last: `own` first, whenever it was heard of, if it ever was.
    fn sessions_heard_of(
        &self,
        own: Option<SessionId>,
        accept_time: Timestamp,
    ) -> Result<Vec<PastSession>, DatabaseError> {
        let own = own.map(|own| own.to_string());
        let idle = accept_time.as_micros().saturating_sub(IDLE_MICROS + REFRESH_MICROS);
        let mut select = self.connection.prepare_cached(
            "SELECT session, accept_time, floor,
                    (SELECT MAX(counter) FROM results WHERE results.session = sessions.session)
             FROM sessions WHERE accept_time >= ?1 OR session = ?2
             ORDER BY session IS ?2 DESC, accept_time DESC, session LIMIT ?3",
        )?;
        let mut rows = select.query(params![to_sql(idle), own, to_sql(REMEMBERED_SESSIONS as u64)])?;
        let mut sessions = Vec::new();
        while let Some(row) = rows.next()? {
            let (name, floor, highest): (String, Option<i64>, Option<i64>) =
                (row.get(0)?, row.get(2)?, row.get(3)?);
            // Nothing is known of a session without either.
            let Some(counter) = floor.max(highest) else { continue };
            let session =
                name.parse().map_err(|_| DatabaseError::Damaged(format!("the session {name:?}")))?;
            let accept_time = Timestamp::from_micros(from_sql(row.get(1)?));
            sessions.push(PastSession { session, counter: from_sql(counter), accept_time });
        }
        Ok(sessions)
    }
}

/// Writes down what a file that is being made remembers of the life before. Within a transaction.
pub(super) fn write(connection: &Connection, past: &PastLife) -> Result<(), DatabaseError> {
    if is_there(Mutation::DestroyForgets) {
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
    let outcome = outcome::encode(&Outcome::Destroy(reply))
        .map_err(|error| DatabaseError::Diverged(format!("an answer: {error}")))?;
    connection.execute(
        "INSERT INTO results(session, counter, rev, outcome) VALUES (?1, ?2, ?3, ?4)",
        params![id.session.to_string(), to_sql(id.counter), to_sql(past.position.rev.get()), outcome],
    )?;
    Ok(())
}

#[cfg(test)]
#[path = "past_tests.rs"]
mod tests;
