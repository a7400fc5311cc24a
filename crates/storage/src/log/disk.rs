//! The task that owns the local write-ahead log: groups, syncs, markers, and the last words of a log.

use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::{ErrorCode, ErrorReply, Slot};

use super::LogEnd;
use super::handle::Shared;
use super::state::taken_over;
use crate::fail_points::{Step as FailPoint, reach};
use crate::mutations::{Mutation, is_there};
use crate::wal::{Lsn, Wal, WalAppend, WalError};

/// What the local disk is asked to do next.
#[derive(Debug)]
pub(super) enum Work {
    /// Write a group, and sync it if somebody waits for that or it is time.
    Group(Vec<WalAppend>, bool),
    /// Sync what was written.
    Sync,
    /// Note what is shipped.
    Mark(Lsn, Slot),
    /// Nothing, for so long or until woken.
    Wait(Option<Duration>),
    /// The log is at its end.
    Over(LogEnd),
}

/// So many groups are written at most before what is shipped is noted, and the room that it takes given back.
pub(super) const MOST_GROUPS_UNMARKED: u32 = 16;

/// What must not wait until there is nothing to write: under load there always is.
#[derive(Debug, Default)]
pub(super) struct DiskPace {
    /// When the first group was written that is not synced.
    pub(super) unsynced_since: Option<Duration>,
    /// Groups written since the last note of what is shipped.
    pub(super) unmarked_groups: u32,
}

impl DiskPace {
    /// A group was written, and synced or not.
    fn wrote(&mut self, synced: bool, now: Duration) {
        self.unsynced_since = if synced { None } else { self.unsynced_since.or(Some(now)) };
        self.unmarked_groups = self.unmarked_groups.saturating_add(1);
    }
}

pub(super) async fn run(shared: Arc<Shared>, mut wal: Wal) {
    let mut pace = DiskPace::default();
    let end = loop {
        match next(&shared, &pace) {
            Work::Over(end) => break end,
            Work::Wait(pause) => shared.rest(&shared.wakers.disk, pause).await,
            Work::Group(group, sync) => {
                wal = write(&shared, wal, group, sync).await;
                pace.wrote(sync, shared.env.boot());
            }
            Work::Sync => {
                wal = in_background(&shared, wal, sync_now).await;
                pace.unsynced_since = None;
            }
            Work::Mark(through, slot) => {
                pace.unmarked_groups = 0;
                wal = in_background(&shared, wal, move |shared, wal| mark(shared, wal, through, slot)).await;
            }
        }
    };
    if end == LogEnd::Sealed {
        tracing::warn!(
            log = %shared.id,
            "another process has ended this log: what is not acknowledged fails, all subjects are given up"
        );
    }
    if end != LogEnd::Poisoned {
        in_background(&shared, wal, last_words).await;
    }
    shared.ended.say(end);
}

pub(super) fn next(shared: &Shared, pace: &DiskPace) -> Work {
    let now = shared.env.boot();
    let mut state = shared.lock();
    if shared.stop.is_given() {
        state.cut_short(&shared.wakers);
    }
    if let Some(end) = state.end.filter(|end| *end == LogEnd::Poisoned) {
        return Work::Over(end);
    }
    let sync_at = pace.unsynced_since.map(|since| since + shared.settings.sync_interval);
    let sync_due = sync_at.is_some_and(|at| at <= now);
    if pace.unmarked_groups >= MOST_GROUPS_UNMARKED
        && let Some((through, slot)) = state.marker.take()
    {
        return Work::Mark(through, slot);
    }
    if let Some((group, sync)) = state.take_group(now) {
        return Work::Group(group, sync || sync_due);
    }
    if let Some(end) = state.end {
        return Work::Over(end);
    }
    if sync_due {
        return Work::Sync;
    }
    if let Some((through, slot)) = state.marker.take() {
        return Work::Mark(through, slot);
    }
    let retry_at = state.full_until().filter(|_| state.has_queue());
    let wake_at = [sync_at, retry_at].into_iter().flatten().min();
    Work::Wait(wake_at.map(|at| at.saturating_sub(now)))
}

/// Writers that wait for less than a sync are woken before it.
async fn write(shared: &Arc<Shared>, wal: Wal, group: Vec<WalAppend>, sync: bool) -> Wal {
    in_background(shared, wal, move |shared, wal| {
        match wal.write(&group) {
            Ok(()) => {
                reach(FailPoint::WalWritten);
                shared.lock().group_written();
            }
            Err(error @ WalError::Poisoned { .. }) => return poisoned(shared, &error),
            Err(error) => {
                tracing::warn!(
                    log = %shared.id, error = &error as &dyn std::error::Error,
                    "the local disk takes no writes"
                );
                let failure = ErrorReply::from(&error);
                shared.lock().group_refused(&failure, shared.env.boot(), &shared.wakers);
            }
        }
        shared.wakers.ship.notify_one();
        reach(FailPoint::WalUnsynced);
        if sync {
            sync_now(shared, wal);
        }
    })
    .await
}

fn sync_now(shared: &Shared, wal: &mut Wal) {
    let synced = if is_there(Mutation::NoSync) { Ok(()) } else { wal.sync() };
    match synced {
        Ok(()) => {
            reach(FailPoint::WalSynced);
            shared.lock().synced();
        }
        Err(error) => poisoned(shared, &error),
    }
}

fn mark(shared: &Shared, wal: &mut Wal, through: Lsn, slot: Slot) {
    match wal.shipped(through, slot).and_then(|()| wal.discard_shipped()) {
        Ok(()) => {}
        Err(error @ WalError::Poisoned { .. }) => poisoned(shared, &error),
        // A note that is missing costs a look into the bucket after a restart, a part that stays costs room.
        Err(error) => tracing::debug!(log = %shared.id, %error, "what is shipped stays on the local disk"),
    }
}

fn poisoned(shared: &Shared, error: &WalError) {
    tracing::error!(
        log = %shared.id, error = error as &dyn std::error::Error,
        "the local disk failed: nothing is acknowledged from here on, restart this server"
    );
    shared.lock().poison(&shared.wakers);
}

/// What has failed is noted for good, and only then said: else a restart would carry it out after its writer was told
/// that it did not happen.
fn last_words(shared: &Shared, wal: &mut Wal) {
    let (failed, marker) = {
        let mut state = shared.lock();
        (state.to_mark_failed.clone(), state.marker.take())
    };
    if let Some((through, slot)) = marker {
        mark(shared, wal, through, slot);
    }
    let lsns: Vec<Lsn> = failed.iter().map(|(lsn, _)| *lsn).collect();
    let noted = wal.failed(&lsns).and_then(|()| wal.sync());
    if let Err(error) = &noted {
        tracing::warn!(
            log = %shared.id, error = error as &dyn std::error::Error, writes = lsns.len(),
            "what failed at the end of the log could not be noted on the local disk"
        );
    }
    let unknown =
        ErrorReply::new(ErrorCode::Indeterminate, "the write failed and may be carried out after a restart");
    let failure = if noted.is_ok() { taken_over() } else { unknown };
    for (_, ticket) in failed {
        ticket.fail(&failure);
    }
    shared.lock().to_mark_failed.clear();
}

async fn in_background<F>(shared: &Arc<Shared>, mut wal: Wal, work: F) -> Wal
where
    F: FnOnce(&Shared, &mut Wal) + Send + 'static,
{
    let there = Arc::clone(shared);
    shared
        .env
        .blocking(move || {
            work(&there, &mut wal);
            wal
        })
        .await
}
