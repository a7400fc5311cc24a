//! Stranded writes: accepted, in no log, and pending until the next claim of their subject.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard};

use dormouse_format::entry::LogEntry;
use dormouse_format::keys::{Nonce, lost_delta_key};
use dormouse_format::{FormatError, delta, frame};
use dormouse_protocol::{LogId, Rev, Subject, Term};
use dormouse_runtime::Lock;
use dormouse_runtime::disk::write_all;
use dormouse_runtime::fail_point;

use super::{RecoveryError, RecoverySettings};
use crate::wal::{ResolvedSubjects, WalAppend, WalError, remove_wal};

/// Writes that earlier processes of this data directory acknowledged at levels below `bucket` and that no claim has
/// included, by log and subject. Clones share it.
///
/// It may contain entries that are in the log too: a user skips the entries that the subject's state has.
#[derive(Clone)]
pub struct StrandedWrites(Arc<StrandedShared>);

struct StrandedShared {
    settings: RecoverySettings,
    logs: Lock<BTreeMap<LogId, StrandedLog>>,
    /// Held during a move to `lost/`: two at once would store the same writes twice.
    lost_lock: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct StrandedLog {
    subjects: BTreeMap<Subject, Vec<WalAppend>>,
    resolved: Option<ResolvedSubjects>,
}

impl StrandedWrites {
    pub(super) fn new(settings: RecoverySettings, logs: BTreeMap<LogId, Vec<WalAppend>>) -> Self {
        let by_subject = |appends: Vec<WalAppend>| {
            let mut subjects: BTreeMap<Subject, Vec<WalAppend>> = BTreeMap::new();
            for append in appends {
                subjects.entry(append.subject.clone()).or_default().push(append);
            }
            StrandedLog { subjects, resolved: None }
        };
        let logs = logs.into_iter().map(|(log, appends)| (log, by_subject(appends))).collect();
        Self(Arc::new(StrandedShared {
            settings,
            logs: Lock::new(logs),
            lost_lock: tokio::sync::Mutex::default(),
        }))
    }

    /// Whether no stranded writes remain.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.logs().is_empty()
    }

    /// Whether a log has stranded writes.
    #[must_use]
    pub fn contains_log(&self, log: &LogId) -> bool {
        self.0.logs().contains_key(log)
    }

    /// The subjects with stranded writes, each with the logs that hold them, oldest first. The list is short, however
    /// many subjects exist: it has only subjects with unshipped writes at the end of a process.
    #[must_use]
    pub fn pending_subjects(&self) -> Vec<(Subject, Vec<LogId>)> {
        let mut waiting: BTreeMap<Subject, Vec<LogId>> = BTreeMap::new();
        for (log, stranded) in self.0.logs().iter() {
            for subject in stranded.subjects.keys() {
                waiting.entry(subject.clone()).or_default().push(log.clone());
            }
        }
        for logs in waiting.values_mut() {
            logs.sort_unstable_by_key(LogId::ulid);
        }
        waiting.into_iter().collect()
    }

    /// The logs that hold stranded writes of a subject, oldest first.
    #[must_use]
    pub fn logs_of(&self, subject: &Subject) -> Vec<LogId> {
        let logs = self.0.logs();
        let holds = |(_, stranded): &(&LogId, &StrandedLog)| stranded.subjects.contains_key(subject);
        let mut found: Vec<LogId> = logs.iter().filter(holds).map(|(log, _)| log.clone()).collect();
        found.sort_unstable_by_key(LogId::ulid);
        found
    }

    /// The stranded entries of a subject in a log, in order. Reading does not resolve them.
    ///
    /// # Errors
    /// [`FormatError`] when the WAL content is damaged.
    pub fn entries(&self, subject: &Subject, log: &LogId) -> Result<Vec<LogEntry>, FormatError> {
        let appends = self
            .0
            .logs()
            .get(log)
            .and_then(|stranded| stranded.subjects.get(subject))
            .cloned()
            .unwrap_or_default();
        let mut entries = Vec::new();
        for append in appends {
            let decoded = frame::decode_all(&append.frames);
            entries.extend(
                decoded.map_err(|fault| fault.of(self.0.settings.wal.join(log.to_string()).display()))?,
            );
        }
        Ok(entries)
    }

    /// Marks the subject as resolved for this log: a manifest known to be the newest includes its writes, or they are
    /// in `lost/`. After the last subject, the log's write-ahead log is removed.
    ///
    /// If the call is cancelled, the subject may or may not be marked.
    ///
    /// # Errors
    /// [`WalError`]: the subject stays pending.
    pub async fn mark_resolved(&self, subject: &Subject, log: &LogId) -> Result<(), WalError> {
        let (shared, subject, log) = (self.0.clone(), subject.clone(), log.clone());
        self.0.settings.env.blocking(move || shared.mark_resolved(&subject, &log)).await
    }

    /// Moves the log's entries of the subject above a rev, which depends on the term, to `lost/`, here and in the
    /// bucket. Then [marks](Self::mark_resolved) the subject as resolved. Returns the paths of the files. An error of
    /// the bucket does not fail the call.
    ///
    /// Cancelling the call may leave incomplete files; the subject then stays pending.
    ///
    /// # Errors
    /// [`RecoveryError`]: the subject stays pending.
    pub async fn move_to_lost(
        &self,
        subject: &Subject,
        log: &LogId,
        above: impl Fn(Term) -> Rev,
    ) -> Result<Vec<PathBuf>, RecoveryError> {
        let _guard = self.0.lost_lock.lock().await;
        let mut entries = self.entries(subject, log)?;
        entries.retain(|entry| entry.is_above(above(entry.term)));
        let mut kept = Vec::new();
        for run in runs(&entries).filter(|run| run.iter().any(|entry| !entry.operations.is_empty())) {
            kept.push(self.keep(subject, run).await?);
        }
        if !kept.is_empty() {
            tracing::warn!(
                %subject, %log, ?kept,
                "diverged writes saved to lost/"
            );
        }
        fail_point!(LostSaved);
        self.mark_resolved(subject, log).await?;
        Ok(kept)
    }

    async fn keep(&self, subject: &Subject, run: &[LogEntry]) -> Result<PathBuf, RecoveryError> {
        let settings = &self.0.settings;
        let (term, after) = run.first().map_or_else(Default::default, |first| (first.term, first.after));
        let nonce = Nonce::new(settings.env.ulid());
        let folder = settings.lost.join(subject.escaped());
        let path = folder.join(format!("{}-{nonce}.delta", term.get()));
        let corrupt = |fault: dormouse_format::DecodeFault| fault.of(path.display());
        let frames: Result<Vec<_>, _> = run.iter().map(frame::encode).collect();
        let frames = frames.map_err(|error| FormatError::Corrupt {
            object: path.display().to_string(),
            what: error.to_string(),
        })?;
        let bytes = delta::encode(subject, after, frames).map_err(corrupt)?.bytes;

        let (disk, target, content) = (settings.disk.clone(), path.clone(), bytes.clone());
        let write = move || {
            disk.create_folder(&folder)?;
            let mut file = disk.create(&target)?;
            write_all(file.as_mut(), &content)?;
            file.sync_data()
        };
        settings.env.blocking(write).await.map_err(WalError::access(&path))?;
        if let Err(error) = settings.bucket.create(&lost_delta_key(subject, term, nonce), bytes).await {
            tracing::warn!(%subject, %error, kept = %path.display(), "diverged writes kept on local disk only");
        }
        Ok(path)
    }
}

/// Entries of one term that follow each other without a gap.
fn runs(entries: &[LogEntry]) -> impl Iterator<Item = &[LogEntry]> {
    entries.chunk_by(|one, next| one.term == next.term && one.last_rev() == next.after)
}

impl StrandedShared {
    fn logs(&self) -> MutexGuard<'_, BTreeMap<LogId, StrandedLog>> {
        // Every change is one step; a panic elsewhere leaves it consistent.
        self.logs.lock()
    }

    fn mark_resolved(&self, subject: &Subject, log: &LogId) -> Result<(), WalError> {
        let (disk, dir) = (self.settings.disk.as_ref(), &self.settings.wal);
        // Held while the disk is written: resolving is rare, and records must not mix.
        let mut logs = self.logs();
        let Some(stranded) = logs.get_mut(log).filter(|stranded| stranded.subjects.contains_key(subject))
        else {
            return Ok(());
        };
        if stranded.subjects.len() == 1 {
            // Without its folder the log has no stranded writes, also after a restart.
            fail_point!(WalRemoving);
            remove_wal(disk, dir, log)?;
            fail_point!(WalRemoved);
            logs.remove(log);
            return Ok(());
        }
        let mut resolved = match stranded.resolved.take() {
            Some(resolved) => resolved,
            None => ResolvedSubjects::create(disk, dir, log)?,
        };
        // Records after a failed one are not readable: the next ones get a new file.
        resolved.mark_resolved(subject)?;
        stranded.resolved = Some(resolved);
        stranded.subjects.remove(subject);
        Ok(())
    }
}
