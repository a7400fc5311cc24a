//! The task that owns the local write-ahead log: groups, syncs, shipped markers, and failed writes at the end of a log.

use std::sync::Arc;
use std::time::Duration;

use dormouse_metrics::StepKind;
use dormouse_protocol::{ErrorCode, ErrorReply, Slot};
use dormouse_runtime::fail_point;
use dormouse_runtime::injected_bug;

use super::LogEnd;
use super::handle::LogShared;
use super::state::taken_over;
use crate::wal::{Lsn, Wal, WalAppend, WalError};

/// The next work of the disk task.
#[derive(Debug)]
pub(super) enum DiskWork {
    /// Write a group; sync it if a writer waits for the sync or the sync is due.
    Group(Vec<WalAppend>, bool),
    /// Sync the writes so far.
    Sync,
    /// Record the shipped position.
    Mark(Lsn, Slot),
    /// Nothing to do, for this long or until notified.
    Wait(Option<Duration>),
    /// The log has ended.
    End(LogEnd),
}

/// Maximum number of groups between two shipped markers; each marker frees WAL space.
pub(super) const MAX_UNMARKED_GROUPS: u32 = 16;

/// Work that must not wait for an empty queue: under load the queue is never empty.
#[derive(Debug, Default)]
pub(super) struct DiskSchedule {
    /// When the first unsynced group was written.
    pub(super) unsynced_since: Option<Duration>,
    /// Groups written since the last shipped marker.
    pub(super) unmarked_groups: u32,
}

impl DiskSchedule {
    /// Records a written group, synced or not.
    fn wrote(&mut self, synced: bool, now: Duration) {
        self.unsynced_since = if synced { None } else { self.unsynced_since.or(Some(now)) };
        self.unmarked_groups = self.unmarked_groups.saturating_add(1);
    }
}

pub(super) async fn run(shared: Arc<LogShared>, mut wal: Wal) {
    let mut schedule = DiskSchedule::default();
    let end = loop {
        match next(&shared, &schedule) {
            DiskWork::End(end) => break end,
            DiskWork::Wait(pause) => shared.wait_for_work(&shared.wakers.disk, pause).await,
            DiskWork::Group(group, sync) => {
                wal = write(&shared, wal, group, sync).await;
                schedule.wrote(sync, shared.env.boot());
            }
            DiskWork::Sync => {
                wal = in_background(&shared, wal, sync_now).await;
                schedule.unsynced_since = None;
            }
            DiskWork::Mark(through, slot) => {
                schedule.unmarked_groups = 0;
                wal = in_background(&shared, wal, move |shared, wal| mark(shared, wal, through, slot)).await;
            }
        }
    };
    if end == LogEnd::Sealed {
        tracing::warn!(
            log = %shared.id, impact = "unacknowledged writes fail",
            "log fenced, closing all subjects"
        );
    }
    if end != LogEnd::Poisoned {
        in_background(&shared, wal, record_failed_writes).await;
    }
    shared.ended.set(end);
}

pub(super) fn next(shared: &LogShared, schedule: &DiskSchedule) -> DiskWork {
    let now = shared.env.boot();
    let mut state = shared.lock();
    if shared.stop.is_requested() {
        state.stop_now(&shared.wakers);
    }
    if let Some(end) = state.end.filter(|end| *end == LogEnd::Poisoned) {
        return DiskWork::End(end);
    }
    let sync_at = schedule.unsynced_since.map(|since| since + shared.settings.sync_interval);
    let sync_due = sync_at.is_some_and(|at| at <= now);
    if schedule.unmarked_groups >= MAX_UNMARKED_GROUPS
        && let Some((through, slot)) = state.marker.take()
    {
        return DiskWork::Mark(through, slot);
    }
    if let Some((group, sync)) = state.take_group(now) {
        return DiskWork::Group(group, sync || sync_due);
    }
    if let Some(end) = state.end {
        return DiskWork::End(end);
    }
    if sync_due {
        return DiskWork::Sync;
    }
    if let Some((through, slot)) = state.marker.take() {
        return DiskWork::Mark(through, slot);
    }
    let retry_at = state.full_until().filter(|_| state.has_queue());
    let wake_at = [sync_at, retry_at].into_iter().flatten().min();
    DiskWork::Wait(wake_at.map(|at| at.saturating_sub(now)))
}

/// Writers that need no sync are notified before it.
async fn write(shared: &Arc<LogShared>, wal: Wal, group: Vec<WalAppend>, sync: bool) -> Wal {
    in_background(shared, wal, move |shared, wal| {
        fail_point!(WalWriting);
        let instruments = &shared.instruments;
        let step = instruments.steps.start(&shared.env, StepKind::WalWrite);
        let written = wal.write(&group);
        drop(step);
        match written {
            Ok(()) => {
                instruments.wal_bytes.inc_by(group.iter().map(|append| append.frames.len() as u64).sum());
                fail_point!(WalWritten);
                shared.lock().group_written();
            }
            Err(error @ WalError::Poisoned { .. }) => return poisoned(shared, &error),
            Err(error) => {
                tracing::warn!(
                    log = %shared.id, error = &error as &dyn std::error::Error,
                    "WAL write failed"
                );
                let failure = ErrorReply::from(&error);
                shared.lock().group_refused(&failure, shared.env.boot(), &shared.wakers);
            }
        }
        shared.wakers.ship.notify_one();
        fail_point!(WalUnsynced);
        if sync {
            sync_now(shared, wal);
        }
    })
    .await
}

fn sync_now(shared: &LogShared, wal: &mut Wal) {
    let started = shared.env.boot();
    let synced = if injected_bug!(NoSync) { Ok(()) } else { wal.sync() };
    let (now, instruments) = (shared.env.boot(), &shared.instruments);
    let took = now.saturating_sub(started);
    instruments.wal_syncs.observe(took);
    instruments.steps.observe(StepKind::WalSync, took, now);
    match synced {
        Ok(()) => {
            fail_point!(WalSynced);
            shared.lock().synced();
        }
        Err(error) => poisoned(shared, &error),
    }
}

fn mark(shared: &LogShared, wal: &mut Wal, through: Lsn, slot: Slot) {
    match wal.mark_shipped(through, slot).and_then(|()| wal.discard_shipped()) {
        Ok(()) => {}
        Err(error @ WalError::Poisoned { .. }) => poisoned(shared, &error),
        // A missing marker costs bucket reads after a restart; a WAL part that stays costs disk space.
        Err(error) => tracing::debug!(log = %shared.id, %error, "WAL truncation failed"),
    }
}

fn poisoned(shared: &LogShared, error: &WalError) {
    tracing::error!(
        log = %shared.id, error = error as &dyn std::error::Error, impact = "no more acknowledgements",
        "WAL failed, restart required"
    );
    shared.lock().poison(&shared.wakers);
}

/// The failure of a write is made durable before its writer gets the error. Otherwise a restart would apply a write
/// that was reported as failed.
fn record_failed_writes(shared: &LogShared, wal: &mut Wal) {
    let (failed, marker) = {
        let mut state = shared.lock();
        (state.to_mark_failed.clone(), state.marker.take())
    };
    if let Some((through, slot)) = marker {
        mark(shared, wal, through, slot);
    }
    let lsns: Vec<Lsn> = failed.iter().map(|(lsn, _)| *lsn).collect();
    let recorded = wal.mark_failed(&lsns).and_then(|()| wal.sync());
    if let Err(error) = &recorded {
        tracing::warn!(
            log = %shared.id, error = error as &dyn std::error::Error, writes = lsns.len(),
            "failed writes not recorded in WAL"
        );
    }
    let unknown = ErrorReply::new(ErrorCode::Indeterminate, "write failed and may execute after a restart");
    let failure = if recorded.is_ok() { taken_over() } else { unknown };
    for (_, progress) in failed {
        progress.fail(&failure);
    }
    shared.lock().to_mark_failed.clear();
}

async fn in_background<F>(shared: &Arc<LogShared>, mut wal: Wal, work: F) -> Wal
where
    F: FnOnce(&LogShared, &mut Wal) + Send + 'static,
{
    let shared_clone = Arc::clone(shared);
    // Before the dispatch: work that finds no thread does not progress either.
    shared.wal_work.begin(shared.env.boot());
    shared
        .env
        .blocking(move || {
            work(&shared_clone, &mut wal);
            shared_clone.wal_work.end();
            wal
        })
        .await
}
