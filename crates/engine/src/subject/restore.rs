//! Restores a subject's state: from the existing local file, or from snapshot and deltas, and from the log.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use dormouse_bucket::Bucket;
use dormouse_commit_log::log::{TailError, TailReader};
use dormouse_format::checksum::Crc64;
use dormouse_format::entry::LogEntry;
use dormouse_format::keys::{ManifestNumber, Nonce, SubjectKeys};
use dormouse_format::manifest::{Manifest, SnapshotRef, TermBase};
use dormouse_metrics::StepKind;
use dormouse_protocol::{ErrorReply, LogId, Rev, Subject};
use dormouse_runtime::Env;
use dormouse_runtime::disk::sync_folder;
use dormouse_runtime::pool::JobKind;
use dormouse_subject_state::database::{
    ApplyTransaction, Database, DatabaseError, InitialState, Slice, put_in_place, remove_files, sidecar_path,
};

use super::delta::{DeltaReader, DeltaWriter};
use crate::api::TenantId;
use crate::engine::EngineShared;
use crate::instruments::LocalFileUse;
use crate::ownership::local::{LocalFile, may_reuse};
use crate::ownership::terms;

/// Entries applied in one transaction.
const ENTRIES_AT_ONCE: usize = 1_000;

/// Why a state could not be restored.
pub(crate) enum RestoreError {
    /// A referenced object does not exist.
    Missing(String),
    /// Any other failure, as the reply to a caller.
    Failed(ErrorReply),
}

impl From<TailError> for RestoreError {
    fn from(error: TailError) -> Self {
        match error {
            TailError::Missing { object } => Self::Missing(object),
            TailError::Failed(reply) => Self::Failed(reply),
        }
    }
}

impl From<ErrorReply> for RestoreError {
    fn from(reply: ErrorReply) -> Self {
        Self::Failed(reply)
    }
}

/// The restore of one subject.
pub(crate) struct Restorer<'a> {
    pub(crate) bucket: &'a dyn Bucket,
    pub(crate) env: &'a Env,
    /// The engine that owns the file, and any file that exists at its path; `None` for a copy.
    pub(crate) engine: Option<&'a EngineShared>,
    pub(crate) subject: &'a Subject,
    /// Whose turns on the pool it uses.
    pub(crate) tenant: TenantId,
    pub(crate) path: PathBuf,
    /// The open file, between two attempts.
    pub(crate) database: Option<Database>,
}

impl Restorer<'_> {
    /// Opens the existing local file, if it is usable. Returns the highest manifest number that it stores.
    pub(super) async fn find_local(&mut self) -> Result<Option<ManifestNumber>, ErrorReply> {
        let Some(home) = self.engine else { return Ok(None) };
        let (path, subject) = (self.path.clone(), self.subject.clone());
        let kept = home.data.lost_file(&subject, Default::default(), Nonce::new(self.env.ulid()));
        let found = self
            .env
            .blocking(move || {
                if !path.exists() {
                    return Ok(None);
                }
                match Database::open(&path, &subject) {
                    Ok(database) => Ok(Some(database)),
                    Err(DatabaseError::Empty) => Ok(None),
                    Err(error) if error.is_unfit_file() => {
                        quarantine(&path, &kept, &subject, &error).map(|()| None).map_err(|_| error)
                    }
                    Err(error) => Err(error),
                }
            })
            .await
            .map_err(|error| error.reply(self.subject))?;
        self.database = found;
        Ok(self
            .database
            .as_ref()
            .map(|database| database.provenance().manifest)
            .filter(|number| number.get() > 0))
    }

    /// Restores the state of `manifest` with `tail` on top of its base; for a new subject, an empty state. `highest` is the
    /// highest rev that the base and its log lead to. The tail may begin above the base if the local file
    /// [can be reused](Self::file_rev). `copy` gets its entries, too. Returns whether the file was reused.
    ///
    /// After an error, the file may have the first entries of the tail.
    pub(crate) async fn restore(
        &mut self,
        manifest: Option<&Manifest>,
        highest: Rev,
        tail: Option<&mut TailReader<'_>>,
        mut copy: Option<&mut DeltaWriter<'_>>,
    ) -> Result<LocalFileUse, RestoreError> {
        let Some(manifest) = manifest else {
            self.start_empty(InitialState::default()).await?;
            return Ok(LocalFileUse::Rebuilt);
        };
        let file = if self.local_fits(manifest, highest) && self.is_sound().await? {
            LocalFileUse::Reused
        } else {
            self.rebuild(manifest).await?;
            LocalFileUse::Rebuilt
        };
        if let Some(engine) = self.engine {
            engine.instruments.local_files.of(file).inc();
        }
        let Some(tail) = tail else { return Ok(file) };
        while let Some(entries) = tail.next().await? {
            if let Some(copy) = &mut copy {
                copy.push_all(&entries).await?;
            }
            self.apply(entries).await?;
        }
        Ok(file)
    }

    /// The rev of the local file, if this process has served it under the term of `manifest`, and it can be reused.
    pub(super) fn file_rev(&self, manifest: &Manifest, highest: Rev) -> Option<Rev> {
        let (database, home) = self.database.as_ref().zip(self.engine)?;
        let is_own = manifest.owner == *home.log.id() && self.local_fits(manifest, highest);
        is_own.then(|| database.state().rev)
    }

    /// Whether the local file can be reused, if it is sound.
    pub(super) fn local_fits(&self, manifest: &Manifest, highest: Rev) -> bool {
        let local = self.database.as_ref().and_then(|database| {
            let log: LogId = database.provenance().log.clone()?;
            let state = database.state();
            Some(LocalFile { log, term: state.term, applied_rev: state.rev })
        });
        local.is_some_and(|local| may_reuse(&local, manifest, highest))
    }

    /// Checks a whole file that an earlier process left, and quarantines it if it is damaged. A file that
    /// this process has written is assumed to be sound.
    async fn is_sound(&mut self) -> Result<bool, ErrorReply> {
        let Some((database, home)) = self.database.take().zip(self.engine) else { return Ok(false) };
        if database.provenance().log.as_ref() == Some(home.log.id()) {
            self.database = Some(database);
            return Ok(true);
        }
        let (path, subject) = (self.path.clone(), self.subject.clone());
        let term = database.state().term;
        let kept = home.data.lost_file(&subject, term, Nonce::new(self.env.ulid()));
        let entry = home.pool.reserve_internal(self.tenant.get()).await;
        let checked = entry.run(JobKind::Indivisible, move || match database.check_integrity() {
            Ok(()) => Ok(Some(database)),
            Err(error) if error.is_unfit_file() => {
                drop(database);
                quarantine(&path, &kept, &subject, &error).map(|()| None).map_err(|_| error)
            }
            Err(error) => Err(error),
        });
        self.database = checked.await.map_err(|error| error.reply(self.subject))?;
        Ok(self.database.is_some())
    }

    async fn rebuild(&mut self, manifest: &Manifest) -> Result<(), RestoreError> {
        let terms = terms(manifest);
        let mut deltas = manifest.deltas.iter();
        let mut first = None;
        match &manifest.snapshot {
            Some(snapshot) => self.pull(snapshot, terms).await?,
            // The deltas start where the subject did: at an empty state, or at a tombstone.
            None => {
                let mut rev = manifest.base_rev;
                if let Some(reference) = deltas.next() {
                    let mut delta = DeltaReader::new(self.bucket, self.subject, reference);
                    let entries = delta.next().await?;
                    rev = delta.after().unwrap_or(rev);
                    first = Some((delta, entries));
                }
                let past = manifest.tombstone_state.clone();
                self.start_empty(InitialState { rev, next_seq: manifest.next_seq, tombstone: past }).await?;
                self.on_file(move |database| database.inherit(&terms)).await?;
            }
        }
        if let Some((delta, entries)) = first {
            self.apply_delta(delta, entries).await?;
        }
        for reference in deltas {
            let mut delta = DeltaReader::new(self.bucket, self.subject, reference);
            let entries = delta.next().await?;
            self.apply_delta(delta, entries).await?;
        }
        match self.database.as_ref().map(|database| database.state().rev) {
            Some(rev) if rev == manifest.base_rev => Ok(()),
            rev => {
                let object = SubjectKeys::new(self.subject).manifest(manifest.number).to_string();
                let what = format!("its objects end at {rev:?}, not at {}", manifest.base_rev);
                Err(ErrorReply::corrupt(object, what).into())
            }
        }
    }

    /// Applies these entries of a delta, and all that follow.
    async fn apply_delta(
        &mut self,
        mut delta: DeltaReader<'_>,
        mut entries: Option<Vec<LogEntry>>,
    ) -> Result<(), RestoreError> {
        while let Some(some) = entries {
            self.apply(some).await?;
            entries = delta.next().await?;
        }
        Ok(())
    }

    async fn pull(&mut self, snapshot: &SnapshotRef, terms: Vec<TermBase>) -> Result<(), RestoreError> {
        let key = SubjectKeys::new(self.subject).snapshot(&snapshot.name);
        let incoming = sidecar_path(&self.path, "-incoming");
        // Left by a process that was killed during a download.
        if incoming.exists() {
            remove(self.env, &incoming).await?;
        }
        let found = self.bucket.get_file(&key, &incoming).await.map_err(|error| ErrorReply::from(&error))?;
        let Some(summary) = found else { return Err(RestoreError::Missing(key.to_string())) };
        if (summary.size_bytes, summary.crc64) != (snapshot.size_bytes, snapshot.crc64) {
            let what = differs(summary.size_bytes, summary.crc64, snapshot.size_bytes, snapshot.crc64);
            // Only the local copy is removed. If this fails, the next download removes it.
            let _ = remove(self.env, &incoming).await;
            return Err(ErrorReply::corrupt(key.to_string(), what).into());
        }
        self.database = None;
        let (path, subject, rev) = (self.path.clone(), self.subject.clone(), snapshot.rev());
        let opened = self
            .env
            .blocking(move || {
                put_in_place(&incoming, &path).map_err(LocalError::File)?;
                let mut database = Database::open(&path, &subject).map_err(LocalError::Database)?;
                let inherited = if database.state().rev == rev { database.inherit(&terms) } else { Ok(()) };
                Ok((database, inherited))
            })
            .await;
        let (database, inherited) = match opened {
            Ok(database) => database,
            Err(LocalError::File(error)) => return Err(cannot_write(&self.path, &error).into()),
            Err(LocalError::Database(error @ DatabaseError::NewerSchema { .. })) => {
                return Err(ErrorReply::unavailable(format!("{key}: {error}")).into());
            }
            Err(LocalError::Database(error)) if error.is_unfit_file() => {
                return Err(ErrorReply::corrupt(key.to_string(), error).into());
            }
            Err(LocalError::Database(error)) => {
                return Err(
                    ErrorReply::unavailable(format!("the local file of {}: {error}", self.subject)).into()
                );
            }
        };
        if database.state().rev != rev {
            let what = format!("holds {}, its name says {rev}", database.state().rev);
            return Err(ErrorReply::corrupt(key.to_string(), what).into());
        }
        self.database = Some(database);
        inherited.map_err(|error| error.not_started().reply(self.subject).into())
    }

    async fn start_empty(&mut self, origin: InitialState) -> Result<(), ErrorReply> {
        self.database = None;
        let (path, subject) = (self.path.clone(), self.subject.clone());
        let created = self
            .env
            .blocking(move || {
                remove_files(&path).map_err(LocalError::File)?;
                Database::create(&path, &subject, &origin).map_err(LocalError::Database)
            })
            .await;
        match created {
            Ok(database) => {
                self.database = Some(database);
                Ok(())
            }
            Err(LocalError::File(error)) => Err(cannot_write(&self.path, &error)),
            Err(LocalError::Database(error)) => Err(error.reply(self.subject)),
        }
    }

    /// Applies the entries that the state lacks, in slices.
    async fn apply(&mut self, mut entries: Vec<LogEntry>) -> Result<(), ErrorReply> {
        while !entries.is_empty() {
            let later = entries.split_off(entries.len().min(ENTRIES_AT_ONCE));
            let mut transaction = ApplyTransaction::replay(std::mem::replace(&mut entries, later));
            loop {
                let (same, complete) = self
                    .run(JobKind::Slice, move |database| {
                        let applied = transaction.apply_slice(database, &mut Slice::new());
                        if applied.is_err() {
                            database.rollback()?;
                        }
                        applied.map(|complete| (transaction, complete))
                    })
                    .await?;
                transaction = same;
                if complete {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Runs one call on the file, which cannot be divided, without blocking other tasks.
    pub(crate) async fn on_file<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Database) -> Result<T, DatabaseError> + Send + 'static,
    ) -> Result<T, ErrorReply> {
        self.run(JobKind::Indivisible, work).await
    }

    /// If the call is cancelled, the restore has no file.
    async fn run<T: Send + 'static>(
        &mut self,
        kind: JobKind,
        work: impl FnOnce(&mut Database) -> Result<T, DatabaseError> + Send + 'static,
    ) -> Result<T, ErrorReply> {
        let mut database = self.database.take().ok_or_else(unexpected_effect)?;
        let env = self.env.clone();
        let job = move || {
            let started = env.boot();
            let done = work(&mut database);
            (database, done, env.boot().saturating_sub(started))
        };
        let (database, done, took) = match self.engine {
            Some(engine) => {
                let entry = engine.pool.reserve_internal(self.tenant.get()).await;
                entry.run(kind, job).await
            }
            None => self.env.blocking(job).await,
        };
        self.database = Some(database);
        if let Some(engine) = self.engine {
            engine.instruments.steps().observe(StepKind::Restore, took, self.env.boot());
        }
        done.map_err(|error| error.not_started().reply(self.subject))
    }
}

async fn remove(env: &Env, path: &Path) -> Result<(), ErrorReply> {
    let owned = path.to_owned();
    let removed = env.blocking(move || remove_files(&owned)).await;
    removed.map_err(|error| cannot_write(path, &error))
}

/// An error of the local file.
enum LocalError {
    File(io::Error),
    Database(DatabaseError),
}

pub(super) fn differs(size_bytes: u64, crc64: Crc64, expected_bytes: u64, expected: Crc64) -> String {
    format!(
        "{size_bytes} bytes with checksum {crc64} where the manifest says {expected_bytes} bytes with checksum {expected}"
    )
}

fn cannot_write(path: &Path, error: &io::Error) -> ErrorReply {
    // The reply must not contain the path of the data directory.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    ErrorReply::unavailable(format!("the server cannot write its local file {name}: {error}"))
}

/// The reply if a claim asks for an effect that it has not prepared.
pub(super) fn unexpected_effect() -> ErrorReply {
    ErrorReply::internal("unexpected effect of a claim")
}

/// Moves an unusable file to `lost/`: its content is in the log, and the file is kept for analysis.
fn quarantine(path: &Path, target: &Path, subject: &Subject, why: &DatabaseError) -> io::Result<()> {
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder)?;
    }
    for (from, to) in
        [(sidecar_path(path, "-wal"), sidecar_path(target, "-wal")), (path.to_owned(), target.to_owned())]
    {
        match link_or_copy(&from, &to) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    // The file has not been synced so far.
    File::open(target)
        .or_else(|_| File::open(sidecar_path(target, "-wal")))
        .and_then(|file| file.sync_all())?;
    target.parent().map_or(Ok(()), sync_folder)?;
    remove_files(path)?;
    tracing::warn!(%subject, error = %why, kept = %target.display(), "unusable local file quarantined");
    Ok(())
}

/// If the file system does not support hard links, the file is copied.
fn link_or_copy(path: &Path, target: &Path) -> io::Result<()> {
    match fs::hard_link(path, target) {
        Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied) => {
            fs::copy(path, target).and_then(|_| File::open(target)?.sync_all())
        }
        linked => linked,
    }
}
