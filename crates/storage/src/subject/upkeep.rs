//! What an open subject does because time passes: what has expired goes, and what is above its limits.
//!
//! A message exists until the entry that removes it is applied, so a read never asks the clock. That entry goes through
//! the log as a write does, at the subject's level, and says which messages go: whoever replays it, whenever and wherever,
//! removes the same.

use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::{ErrorReply, Subject, Timestamp};

use super::Inbox;
use super::pipeline::{Change, Group, Pipeline, Step};
use super::serve::{End, Serving};
use crate::database::Database;
use crate::engine::Shared;
use crate::format::frame;
use crate::plan::{self, Context, SubjectView};
use crate::values::Uploaded;

/// The clock that people read may be set: how long a subject sleeps at most before it looks at it again.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// When it is tried again, after the log has taken no more or the state could not be read.
const RETRY: Duration = Duration::from_secs(1);

/// How long those who wake a subject wait for what came due while it slept.
const WAKING: Duration = Duration::from_secs(2);

/// As long as nobody has said how much the bus carries, in bytes: less than any does.
pub(super) const CAUTIOUS_BYTES: usize = 64 * 1_024;

/// The server's clock.
pub(super) fn wall(shared: &Shared) -> Timestamp {
    Timestamp::from_micros(shared.env.wall_micros())
}

/// The entry under way that removes what has to go.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// Where it leads; it is applied once the subject is there.
    until: Option<dormouse_protocol::Rev>,
    /// Not before this time on the clock that never goes back.
    retry_at: Option<Duration>,
}

impl Upkeep {
    /// Everything under way has failed.
    pub(super) const fn failed(&mut self) {
        self.until = None;
    }
}

impl Pipeline {
    /// Removes what has to go by now, as far as one entry reaches.
    pub(super) fn keep_up(&mut self, shared: &Shared, subject: &Subject, database: &Database) {
        let (now, boot) = (wall(shared), shared.env.boot());
        if !self.may_keep_up(database) || self.upkeep.retry_at.is_some_and(|at| at > boot) {
            return;
        }
        self.upkeep.retry_at = None;
        let view = self.pending.view(database);
        if !is_due(database, now) && !plan::is_above_limits(&view) {
            return;
        }
        let context = Context { accept_time: now, max_message_bytes: self.bus_bytes, blobs: &[] };
        let planned = plan::upkeep(&view, context);
        let level = self.level_of(shared, &view.state().config);
        match planned {
            Ok(None) => {}
            Ok(Some(entry)) => {
                let until = entry.last_rev();
                let is_taken = match frame::encode(&entry) {
                    Ok(frame) => {
                        self.pending.push(&entry, database);
                        let bytes = frame.len();
                        let change =
                            Change { entry, bytes, level, ticket: None, uploaded: Uploaded::default() };
                        let group = Group::of(frame, level, Step::unasked(change, self.bus_bytes));
                        self.append(shared, subject, database, group)
                    }
                    Err(error) => {
                        tracing::error!(%subject, %error, "what has to go cannot be written down");
                        false
                    }
                };
                if is_taken {
                    self.upkeep.until = Some(until);
                } else {
                    self.upkeep.retry_at = Some(boot + RETRY);
                }
            }
            // It is logged where it is found.
            Err(_) => self.upkeep.retry_at = Some(boot + RETRY),
        }
    }

    fn may_keep_up(&self, database: &Database) -> bool {
        let is_under_way =
            !self.is_applied() && self.upkeep.until.is_some_and(|until| database.state().rev < until);
        !is_under_way && !self.is_held_up()
    }

    /// When to look next, on the clock that never goes back; `None`: not before something else happens.
    pub(super) fn keep_up_at(&self, shared: &Shared, database: &Database) -> Option<Duration> {
        if !self.may_keep_up(database) {
            return None;
        }
        let (now, boot) = (wall(shared), shared.env.boot());
        let is_due = is_due(database, now) || plan::is_above_limits(&self.pending.view(database));
        if is_due {
            // What stands in the way is under way itself, or was refused; or it is gone, and the file does not know yet.
            let behind = self.is_concluded().then(|| self.backlog().due_at()).flatten();
            return behind.or(self.is_applied().then(|| self.upkeep.retry_at.unwrap_or(boot + RETRY)));
        }
        let left = database.next_expiry()?.as_micros().saturating_sub(now.as_micros());
        Some(boot + Duration::from_micros(left).min(LONGEST_SLEEP))
    }
}

/// Whether a message's time is over: by accept time, which is the clock's unless that has gone back.
fn is_due(database: &Database, now: Timestamp) -> bool {
    let accept_time = now.max(database.state().accept_time);
    database.next_expiry().is_some_and(|at| at <= accept_time)
}

impl Serving<'_> {
    /// When a message expires next, on the clock that never goes back, as far as it can be foreseen.
    pub(super) fn expires_at(&mut self) -> Option<Duration> {
        let (now, boot) = (wall(self.shared), self.shared.env.boot());
        let at = self.database().next_expiry()?;
        Some(boot + Duration::from_micros(at.as_micros().saturating_sub(now.as_micros())))
    }

    /// What came due while the subject slept goes before anybody is answered, as long as that does not take too long.
    pub(super) async fn wake(&mut self, inbox: &mut Inbox) -> Option<End> {
        let woke = wall(self.shared);
        let until = self.shared.env.boot() + WAKING;
        let moved = self.pipeline.waker();
        loop {
            if let Err(broken) = self.advance() {
                return Some(self.fail(&broken, inbox).await);
            }
            if !is_due(self.database(), woke) {
                return None;
            }
            self.keep_up();
            let left = until.saturating_sub(self.shared.env.boot());
            if self.pipeline.is_applied() || left.is_zero() {
                return None;
            }
            let shared = Arc::clone(self.shared);
            tokio::select! {
                biased;
                () = shared.stopping() => return None,
                () = moved.notified() => {}
                () = tokio::time::sleep(left) => {}
            }
        }
    }

    /// Removes what has to go by now.
    pub(super) fn keep_up(&mut self) {
        let (shared, subject) = (self.shared, self.subject);
        let (pipeline, database) = self.pipeline_and_file();
        pipeline.keep_up(shared, subject, database);
    }
}

/// An answer that nobody waits for.
pub(super) fn unasked() -> super::Answer {
    Err(ErrorReply::internal("nobody has asked for it"))
}
