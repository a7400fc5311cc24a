//! Bringing a subject here: drives the claim, and does what it asks for.

use std::path::{Path, PathBuf};

use dormouse_protocol::{ErrorReply, Subject};

use super::{lost, publish};
use crate::api::LeaseGeneration;
use crate::bucket::BucketKey;
use crate::claim::{Claim, ClaimEffect, ClaimInput, LocalFile};
use crate::database::{Database, DatabaseError, Origin, Tenure, companion, put_in_place, remove_files};
use crate::engine::Shared;
use crate::keys::{ManifestNumber, Nonce, SubjectKeys};
use crate::manifest::{Manifest, SnapshotRef};

/// A subject that this process owns, with its file open.
pub(super) struct Opened {
    pub(super) database: Database,
    pub(super) manifest: Manifest,
    /// The lease under which the claim began.
    pub(super) generation: LeaseGeneration,
    pub(super) garbage: Vec<BucketKey>,
}

/// Opens the subject.
///
/// # Errors
/// The answer to the requests that wait for it.
pub(super) async fn open(shared: &Shared, subject: &Subject) -> Result<Opened, ErrorReply> {
    let generation = shared.authority.lease().ok_or_else(super::no_lease)?;
    let _permit = shared.opening.acquire().await;
    let path = shared.data.subject_file(subject);
    let mut opener = Opener { shared, subject, path, generation, database: None, base: None };
    let local = opener.find_local().await?;
    let (mut claim, mut effect) = Claim::new(subject.clone(), shared.log.clone(), generation, local);
    loop {
        let answer = match effect {
            ClaimEffect::GiveUp(reply) => return Err(reply),
            ClaimEffect::Serve { manifest, garbage } => {
                let database = opener.take_over(&manifest)?;
                shared.counters.opens.add(1);
                return Ok(Opened { database, manifest: *manifest, generation, garbage });
            }
            ClaimEffect::SnapshotLocal { .. } if !opener.local_is_whole().await? => {
                // Without it, the subject goes on from what the bucket has.
                (claim, effect) = Claim::new(subject.clone(), shared.log.clone(), generation, None);
                continue;
            }
            effect => opener.perform(effect).await,
        };
        effect = claim.apply(answer.unwrap_or_else(ClaimInput::Failed));
    }
}

struct Opener<'a> {
    shared: &'a Shared,
    subject: &'a Subject,
    path: PathBuf,
    /// The lease under which the claim began.
    generation: LeaseGeneration,
    database: Option<Database>,
    /// The manifest that the claim last read.
    base: Option<ManifestNumber>,
}

impl Opener<'_> {
    /// Opens the file that lies here from earlier, if it is fit for use.
    async fn find_local(&mut self) -> Result<Option<LocalFile>, ErrorReply> {
        let (path, subject) = (self.path.clone(), self.subject.clone());
        let kept = self.shared.data.lost_file(&subject, Default::default(), self.nonce());
        let found = self
            .shared
            .env
            .blocking(move || {
                if !path.exists() {
                    return Ok(None);
                }
                match Database::open(&path, &subject) {
                    Ok(database) => Ok(Some(database)),
                    Err(DatabaseError::Empty) => Ok(None),
                    Err(error) if error.is_unfit_file() => {
                        match lost::quarantine(&path, &kept, &subject, &error.to_string()) {
                            Ok(()) => Ok(None),
                            Err(_) => Err(error),
                        }
                    }
                    Err(error) => Err(error),
                }
            })
            .await
            .map_err(|error| error.reply(self.subject))?;
        self.database = found;
        // A file that was never claimed holds nothing that anybody was told of.
        Ok(self.database.as_ref().and_then(|database| {
            let provenance = database.provenance();
            Some(LocalFile {
                log: provenance.log.clone()?,
                // What a file says proves no claim: its subject is claimed anew.
                lease: None,
                term: database.state().term,
                manifest: provenance.manifest,
                applied_rev: database.state().rev,
                in_bucket_rev: provenance.bucket_rev,
            })
        }))
    }

    async fn perform(&mut self, effect: ClaimEffect) -> Result<ClaimInput, ErrorReply> {
        match effect {
            ClaimEffect::List => publish::list(self.shared, self.subject).await.map(ClaimInput::Listed),
            ClaimEffect::Get(number) => {
                self.base = Some(number);
                publish::get_manifest(self.shared, self.subject, number).await.map(ClaimInput::Got)
            }
            ClaimEffect::AskAuthority { owner } => {
                Ok(match self.shared.authority.may_claim(self.subject, owner.as_ref()).await {
                    Ok(()) => ClaimInput::Allowed,
                    Err(reply) => ClaimInput::Refused(reply),
                })
            }
            ClaimEffect::SetAsideLocal => {
                let database = self.database.take().ok_or_else(out_of_step)?;
                lost::set_aside(self.shared, self.subject, database).await?;
                Ok(ClaimInput::LocalSetAside)
            }
            ClaimEffect::ReuseLocal => match self.database {
                Some(_) => Ok(ClaimInput::LocalReady { nonce: self.nonce() }),
                None => Err(out_of_step()),
            },
            ClaimEffect::PullSnapshot(snapshot) => self.pull(snapshot).await,
            ClaimEffect::StartEmpty { base_rev, next_seq } => {
                self.start_empty(Origin { rev: base_rev, next_seq }).await
            }
            ClaimEffect::SnapshotLocal { made_for } => self.snapshot_local(made_for).await,
            ClaimEffect::Create(manifest) => publish::create(self.shared, &manifest)
                .await
                .map(ClaimInput::Created)
                .map_err(|error| ErrorReply::from(&error)),
            ClaimEffect::Serve { .. } | ClaimEffect::GiveUp(_) => Err(out_of_step()),
        }
    }

    async fn pull(&mut self, snapshot: SnapshotRef) -> Result<ClaimInput, ErrorReply> {
        let key = SubjectKeys::new(self.subject).snapshot(&snapshot.name);
        let incoming = companion(&self.path, "-incoming");
        // Left behind by a process that was killed while it pulled.
        remove(self.shared, &incoming).await.map_err(|error| cannot_write(&incoming, &error))?;
        let Some(summary) =
            self.shared.bucket.get_file(&key, &incoming).await.map_err(|error| ErrorReply::from(&error))?
        else {
            return Ok(ClaimInput::SnapshotMissing);
        };
        if (summary.size_bytes, summary.crc64) != (snapshot.size_bytes, snapshot.crc64) {
            let what = format!(
                "{} bytes with checksum {} where the manifest says {} bytes with checksum {}",
                summary.size_bytes, summary.crc64, snapshot.size_bytes, snapshot.crc64
            );
            // Only the copy of it goes; what is left of it, the next pull removes.
            let _ = remove(self.shared, &incoming).await;
            return Err(ErrorReply::corrupt(key.to_string(), what));
        }
        self.database = None;
        let (path, subject) = (self.path.clone(), self.subject.clone());
        let base = self.base.unwrap_or(snapshot.name.made_for);
        let opened = self
            .shared
            .env
            .blocking(move || {
                put_in_place(&incoming, &path).map_err(LocalError::File)?;
                let mut database = Database::open(&path, &subject).map_err(LocalError::Database)?;
                database.set_in_bucket(base, database.state().rev).map_err(LocalError::Database)?;
                Ok(database)
            })
            .await;
        let database = match opened {
            Ok(database) => database,
            Err(LocalError::File(error)) => return Err(cannot_write(&self.path, &error)),
            Err(LocalError::Database(error)) => return Err(self.unfit_snapshot(&key, &error)),
        };
        if database.state().rev != snapshot.rev() {
            let what = format!("holds {}, its name says {}", database.state().rev, snapshot.rev());
            return Err(ErrorReply::corrupt(key.to_string(), what));
        }
        self.database = Some(database);
        Ok(ClaimInput::LocalReady { nonce: self.nonce() })
    }

    fn unfit_snapshot(&self, key: &BucketKey, error: &DatabaseError) -> ErrorReply {
        match error {
            DatabaseError::Newer { .. } => ErrorReply::unavailable(format!("{key}: {error}")),
            error if error.is_unfit_file() => ErrorReply::corrupt(key.to_string(), error),
            error => ErrorReply::unavailable(format!("the local file of {}: {error}", self.subject)),
        }
    }

    async fn start_empty(&mut self, origin: Origin) -> Result<ClaimInput, ErrorReply> {
        self.database = None;
        let (path, subject) = (self.path.clone(), self.subject.clone());
        let created = self
            .shared
            .env
            .blocking(move || {
                remove_files(&path).map_err(LocalError::File)?;
                Database::create(&path, &subject, origin).map_err(LocalError::Database)
            })
            .await;
        match created {
            Ok(database) => {
                self.database = Some(database);
                Ok(ClaimInput::LocalReady { nonce: self.nonce() })
            }
            Err(LocalError::File(error)) => Err(cannot_write(&self.path, &error)),
            Err(LocalError::Database(error)) => Err(error.reply(self.subject)),
        }
    }

    /// Looks through a file that another process left behind before it becomes the only snapshot there is. One that is
    /// damaged is kept in `lost/`, and there is no local file any more.
    async fn local_is_whole(&mut self) -> Result<bool, ErrorReply> {
        let database = self.database.take().ok_or_else(out_of_step)?;
        let (path, subject) = (self.path.clone(), self.subject.clone());
        let kept = self.shared.data.lost_file(&subject, database.state().term, self.nonce());
        let checked = self
            .shared
            .env
            .blocking(move || match database.check_whole() {
                Ok(()) => Ok(Some(database)),
                Err(error) if error.is_unfit_file() => {
                    drop(database);
                    lost::quarantine(&path, &kept, &subject, &error.to_string())
                        .map(|()| None)
                        .map_err(LocalError::File)
                }
                Err(error) => Err(LocalError::Database(error)),
            })
            .await;
        self.database = match checked {
            Ok(checked) => checked,
            Err(LocalError::File(error)) => return Err(cannot_write(&self.path, &error)),
            Err(LocalError::Database(error)) => return Err(error.not_begun().reply(self.subject)),
        };
        Ok(self.database.is_some())
    }

    async fn snapshot_local(&mut self, made_for: ManifestNumber) -> Result<ClaimInput, ErrorReply> {
        let mut database = self.database.take().ok_or_else(out_of_step)?;
        let (database, done) = self
            .shared
            .env
            .blocking(move || {
                let done = database.checkpoint();
                (database, done)
            })
            .await;
        let (rev, next_seq) = (database.state().rev, database.state().next_seq);
        self.database = Some(database);
        done.map_err(|error| error.not_begun().reply(self.subject))?;
        let state = publish::State { path: self.path.clone(), rev, next_seq };
        let snapshot = publish::upload(self.shared, self.subject, made_for, state).await?;
        Ok(ClaimInput::SnapshotTaken { snapshot, next_seq, nonce: self.nonce() })
    }

    /// The claim stands: the file is now of its term.
    fn take_over(&mut self, manifest: &Manifest) -> Result<Database, ErrorReply> {
        let mut database = self.database.take().ok_or_else(out_of_step)?;
        let tenure = Tenure {
            log: manifest.owner.clone(),
            term: manifest.term,
            term_base: manifest.term_base,
            manifest: manifest.number,
            bucket_rev: manifest.base_rev,
        };
        database.take_over(&tenure).map_err(|error| error.not_begun().reply(self.subject))?;
        Ok(database)
    }

    fn nonce(&self) -> Nonce {
        Nonce::new(self.shared.env.ulid())
    }
}

/// What goes wrong with the local file.
enum LocalError {
    File(std::io::Error),
    Database(DatabaseError),
}

async fn remove(shared: &Shared, path: &Path) -> std::io::Result<()> {
    let path = path.to_owned();
    shared.env.blocking(move || remove_files(&path)).await
}

fn cannot_write(path: &Path, error: &std::io::Error) -> ErrorReply {
    // Where the data directory lies is none of a caller's business.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    ErrorReply::unavailable(format!("the server cannot write its local file {name}: {error}"))
}

/// The claim asks only for what it has prepared.
fn out_of_step() -> ErrorReply {
    ErrorReply::internal("a claim was driven out of step")
}
