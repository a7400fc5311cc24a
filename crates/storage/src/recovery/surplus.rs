//! What was accepted, is in no log, and waits for the next claim of its subject.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_protocol::{LogId, Rev, Subject, Term};

use super::{RecoveryError, RecoverySettings};
use crate::entry::Entry;
use crate::fail_points::{Step as FailPoint, reach};
use crate::format::{FormatError, delta, frame};
use crate::keys::{Nonce, lost_delta_key};
use crate::wal::{SettledSubjects, WalAppend, WalError, remove_wal, write_all};

/// What earlier processes of this data directory acknowledged at levels below `bucket` and nobody took over, by log and
/// subject. Clones share it.
///
/// It may name entries that are in the log all the same: whoever uses it skips what the subject's state has.
#[derive(Clone)]
pub struct Surplus(Arc<Shared>);

struct Shared {
    settings: RecoverySettings,
    logs: Mutex<BTreeMap<LogId, OneLog>>,
    /// Held by who puts something into `lost/`: two at once would put it there twice.
    losing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct OneLog {
    subjects: BTreeMap<Subject, Vec<WalAppend>>,
    notes: Option<SettledSubjects>,
}

impl Surplus {
    pub(super) fn new(settings: RecoverySettings, logs: BTreeMap<LogId, Vec<WalAppend>>) -> Self {
        let by_subject = |appends: Vec<WalAppend>| {
            let mut subjects: BTreeMap<Subject, Vec<WalAppend>> = BTreeMap::new();
            for append in appends {
                subjects.entry(append.subject.clone()).or_default().push(append);
            }
            OneLog { subjects, notes: None }
        };
        let logs = logs.into_iter().map(|(log, appends)| (log, by_subject(appends))).collect();
        Self(Arc::new(Shared { settings, logs: Mutex::new(logs), losing: tokio::sync::Mutex::default() }))
    }

    /// Whether nothing waits any more.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.logs().is_empty()
    }

    /// Whether a subject waits for this log.
    #[must_use]
    pub fn holds(&self, log: &LogId) -> bool {
        self.0.logs().contains_key(log)
    }

    /// The subjects that wait, each with the logs that it waits for, oldest first. A few, however many subjects there
    /// are: those that had something unshipped when a process ended.
    #[must_use]
    pub fn waiting(&self) -> Vec<(Subject, Vec<LogId>)> {
        let mut waiting: BTreeMap<Subject, Vec<LogId>> = BTreeMap::new();
        for (log, one) in self.0.logs().iter() {
            for subject in one.subjects.keys() {
                waiting.entry(subject.clone()).or_default().push(log.clone());
            }
        }
        for logs in waiting.values_mut() {
            logs.sort_unstable_by_key(LogId::ulid);
        }
        waiting.into_iter().collect()
    }

    /// The logs that a subject waits for, oldest first.
    #[must_use]
    pub fn logs_of(&self, subject: &Subject) -> Vec<LogId> {
        let logs = self.0.logs();
        let holds = |(_, one): &(&LogId, &OneLog)| one.subjects.contains_key(subject);
        let mut found: Vec<LogId> = logs.iter().filter(holds).map(|(log, _)| log.clone()).collect();
        found.sort_unstable_by_key(LogId::ulid);
        found
    }

    /// What a log has of a subject, in order. It does not end there by being read.
    ///
    /// # Errors
    /// [`FormatError`] when it is not what was written.
    pub fn entries(&self, subject: &Subject, log: &LogId) -> Result<Vec<Entry>, FormatError> {
        let appends =
            self.0.logs().get(log).and_then(|one| one.subjects.get(subject)).cloned().unwrap_or_default();
        let mut entries = Vec::new();
        for append in appends {
            let decoded = frame::decode_all(&append.frames);
            entries.extend(
                decoded.map_err(|fault| fault.of(self.0.settings.wal.join(log.to_string()).display()))?,
            );
        }
        Ok(entries)
    }

    /// The subject needs nothing from this log any more: a manifest that is known to be the newest has it, or it is
    /// where it can be found. With the last subject the log's write-ahead log goes.
    ///
    /// Cancelling the call leaves open whether it is noted.
    ///
    /// # Errors
    /// [`WalError`]: the subject goes on waiting.
    pub async fn settle(&self, subject: &Subject, log: &LogId) -> Result<(), WalError> {
        let (shared, subject, log) = (self.0.clone(), subject.clone(), log.clone());
        self.0.settings.env.blocking(move || shared.settle(&subject, &log)).await
    }

    /// Puts into `lost/`, here and in the bucket, what the log has of the subject above a rev that depends on the term,
    /// and [settles](Self::settle) the subject. Says which files there are now. A bucket that does not answer is no
    /// reason to fail.
    ///
    /// Cancelling the call may leave files of which some are not whole; the subject then goes on waiting.
    ///
    /// # Errors
    /// [`RecoveryError`]: the subject goes on waiting.
    pub async fn lose(
        &self,
        subject: &Subject,
        log: &LogId,
        above: impl Fn(Term) -> Rev,
    ) -> Result<Vec<PathBuf>, RecoveryError> {
        let _losing = self.0.losing.lock().await;
        let mut entries = self.entries(subject, log)?;
        entries.retain(|entry| entry.is_above(above(entry.term)));
        let mut kept = Vec::new();
        for run in runs(&entries).filter(|run| run.iter().any(|entry| !entry.operations.is_empty())) {
            kept.push(self.keep(subject, run).await?);
        }
        if !kept.is_empty() {
            tracing::warn!(
                %subject, %log, ?kept,
                "changes accepted here never reached the bucket before another process went on with the subject; they \
                 are kept"
            );
        }
        reach(FailPoint::LostKept);
        self.settle(subject, log).await?;
        Ok(kept)
    }

    async fn keep(&self, subject: &Subject, run: &[Entry]) -> Result<PathBuf, RecoveryError> {
        let settings = &self.0.settings;
        let (term, after) = run.first().map_or_else(Default::default, |first| (first.term, first.after));
        let nonce = Nonce::new(settings.env.ulid());
        let folder = settings.lost.join(subject.escaped());
        let path = folder.join(format!("{}-{nonce}.delta", term.get()));
        let broken = |fault: crate::format::Fault| fault.of(path.display());
        let frames: Result<Vec<_>, _> = run.iter().map(frame::encode).collect();
        let frames = frames.map_err(|error| FormatError::Corrupt {
            object: path.display().to_string(),
            what: error.to_string(),
        })?;
        let bytes = delta::encode(subject, after, frames).map_err(broken)?.bytes;

        let (storage, target, content) = (settings.storage.clone(), path.clone(), bytes.clone());
        let write = move || {
            storage.create_folder(&folder)?;
            let mut file = storage.create(&target)?;
            write_all(file.as_mut(), &content)?;
            file.sync_data()
        };
        settings.env.blocking(write).await.map_err(WalError::access(&path))?;
        if let Err(error) = settings.bucket.create(&lost_delta_key(subject, term, nonce), bytes).await {
            tracing::warn!(%subject, %error, kept = %path.display(), "what was lost is kept here only");
        }
        Ok(path)
    }
}

/// Entries of one term that follow each other without a hole.
fn runs(entries: &[Entry]) -> impl Iterator<Item = &[Entry]> {
    entries.chunk_by(|one, next| one.term == next.term && one.last_rev() == next.after)
}

impl Shared {
    fn logs(&self) -> MutexGuard<'_, BTreeMap<LogId, OneLog>> {
        // Every change is one step; a panic elsewhere breaks nothing.
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, subject: &Subject, log: &LogId) -> Result<(), WalError> {
        let (storage, dir) = (self.settings.storage.as_ref(), &self.settings.wal);
        // Held while the disk is written: settling is rare, and notes must not mix.
        let mut logs = self.logs();
        let Some(one) = logs.get_mut(log).filter(|one| one.subjects.contains_key(subject)) else {
            return Ok(());
        };
        if one.subjects.len() == 1 {
            // Without its folder nothing waits, after a restart neither.
            reach(FailPoint::WalRemoving);
            remove_wal(storage, dir, log)?;
            reach(FailPoint::WalRemoved);
            logs.remove(log);
            return Ok(());
        }
        let mut notes = match one.notes.take() {
            Some(notes) => notes,
            None => SettledSubjects::begin(storage, dir, log)?,
        };
        // Notes behind one that failed could not be read: the next ones get a file of their own.
        notes.settle(subject)?;
        one.notes = Some(notes);
        one.subjects.remove(subject);
        Ok(())
    }
}
