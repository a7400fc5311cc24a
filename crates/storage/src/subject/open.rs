//! Opening a subject: drives the claim, and does what it asks for.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::{ErrorCode, ErrorReply, LogId, Rev, Subject};

use super::garbage::Garbage;
use super::publish;
use super::restore::{RestoreError, Restorer, out_of_step};
use crate::database::{Database, Tenure};
use crate::engine::Shared;
use crate::entry::Entry;
use crate::fail_points::{Step as FailPoint, reach};
use crate::keys::{ManifestNumber, Nonce};
use crate::log::{TailError, read_own_tail};
use crate::manifest::Manifest;
use crate::ownership::claim::{Claim, ClaimEffect, ClaimInput, Drained, Restored, Tail};
use crate::ownership::local::lost_above;
use crate::ownership::{BaseKind, BaseObject, Found, Verified, base_kind, terms};

/// How long a subject waits for its turn to be opened.
const QUEUE_PATIENCE: Duration = Duration::from_secs(5);

/// When a caller that was turned away may come again.
const RETRY_AFTER_MS: u64 = 500;

/// A subject that this process owns, with its file open.
pub(super) struct Opened {
    pub(super) database: Database,
    /// The manifest that it serves under.
    pub(super) verified: Verified,
}

/// Opens the subject; with `only_own`, only where it is this process's already: `None` where it is not.
///
/// # Errors
/// The answer to the requests that wait for it.
pub(super) async fn open(
    shared: &Arc<Shared>,
    subject: &Subject,
    only_own: bool,
) -> Result<Option<Opened>, ErrorReply> {
    let _permit = tokio::time::timeout(QUEUE_PATIENCE, shared.opening.acquire())
        .await
        .map_err(|_| ErrorReply::overloaded("too many subjects are being opened", RETRY_AFTER_MS))?;
    let path = shared.data.subject_file(subject);
    let restorer = restorer(shared, subject, path);
    let mut opener = Opener { shared, restorer, base: None, above: Vec::new(), taken: None };
    let known = opener.restorer.find_local().await?;
    let begin = if only_own { Claim::own } else { Claim::new };
    let (mut claim, mut effect) = begin(subject.clone(), shared.log.id().clone(), known);
    loop {
        // A claim of a log that is over is void, whatever its answers say.
        if shared.has_log_ended() {
            return Err(shared.log_ended_reply());
        }
        let answer = match effect {
            ClaimEffect::GiveUp(reply) => {
                // Whoever has ended this log takes away its slots that no subject needs. So what is missing there says
                // nothing, unless the log is known to go on.
                if reply.code == ErrorCode::Corrupt {
                    shared.trust.barrier().await?;
                }
                return Err(reply);
            }
            ClaimEffect::NotOwned => return Ok(None),
            ClaimEffect::Serve(verified) => {
                reach(FailPoint::ClaimVerified);
                let database = opener.take_over(&verified.manifest)?;
                opener.settle_surplus().await?;
                shared.counters.opens.add(1);
                shared.log.based(subject, verified.manifest.base_rev, verified.manifest.first_slot);
                return Ok(Some(Opened { database, verified }));
            }
            effect => {
                if matches!(effect, ClaimEffect::Create(_)) {
                    shared.counters.claims.add(1);
                }
                opener.perform(effect).await
            }
        };
        effect = claim.apply(answer.unwrap_or_else(ClaimInput::Failed));
    }
}

/// Frees a subject of a dead log: where its newest manifest needs entries of it, the next one does not, and is released.
/// A subject that is open here is freed by whoever has it open.
///
/// # Errors
/// Why it could not be done this time.
pub(crate) async fn drain_subject(
    shared: &Arc<Shared>,
    subject: &Subject,
    log: &LogId,
) -> Result<Drained, ErrorReply> {
    // Its file is made in a place of its own, so that it gets in nobody's way.
    let path = shared.data.drain_file(subject, Nonce::new(shared.env.ulid()));
    let restorer = restorer(shared, subject, path.clone());
    let mut opener = Opener { shared, restorer, base: None, above: Vec::new(), taken: None };
    let (mut claim, mut effect) = Claim::drain(subject.clone(), shared.log.id().clone(), log.clone(), false);
    let drained = loop {
        let answer = match effect {
            ClaimEffect::GiveUp(reply) => break Err(reply),
            ClaimEffect::Drained(drained) => break Ok(drained),
            effect => opener.perform(effect).await,
        };
        effect = claim.apply(answer.unwrap_or_else(ClaimInput::Failed));
    };
    drop(opener);
    let removed = shared.env.blocking(move || crate::database::remove_files(&path)).await;
    if let Err(error) = removed {
        tracing::debug!(%subject, %error, "a file that served to drain a log stays behind");
    }
    if let Ok(Drained::Released(verified)) = &drained {
        // A full queue drops it: what lies about is found again by a later listing.
        let _ = shared.garbage.try_send(Garbage::objects(subject, verified.garbage.clone()));
    }
    drained
}

/// Puts what an earlier process accepted and could not ship into `lost/`, as far as `newest`, the newest manifest of the
/// subject, has gone on without it.
///
/// # Errors
/// The answer to who cannot be served because of it; it is tried again.
pub(crate) async fn lose_surplus(
    shared: &Shared,
    subject: &Subject,
    log: &LogId,
    newest: Option<&Manifest>,
) -> Result<(), ErrorReply> {
    let terms = newest.map(terms).unwrap_or_default();
    let above = |term| newest.map_or(Rev::default(), |newest| lost_above(term, newest, &terms));
    shared.surplus.lose(subject, log, above).await.map(drop).map_err(|error| cannot_settle(&error))
}

/// The newest manifest of a subject, as of some moment during the call.
///
/// # Errors
/// What a caller is told when the bucket does not say.
pub(crate) async fn newest_manifest(
    shared: &Shared,
    subject: &Subject,
) -> Result<Option<Manifest>, ErrorReply> {
    let Some(number) = publish::list(shared, subject).await?.newest() else { return Ok(None) };
    match publish::get_manifest(shared, subject, number).await? {
        Found::Manifest(manifest) => Ok(Some(*manifest)),
        Found::Missing => Err(ErrorReply::unavailable("the newest manifest was replaced while it was read")),
        Found::Unreadable(reply) => Err(reply),
    }
}

fn cannot_settle(error: &dyn std::error::Error) -> ErrorReply {
    ErrorReply::unavailable(format!("changes that an earlier process accepted cannot be kept: {error}"))
}

fn restorer<'a>(shared: &'a Arc<Shared>, subject: &'a Subject, path: PathBuf) -> Restorer<'a> {
    let (bucket, env, home) = (shared.bucket.as_ref(), &shared.env, Some(shared.as_ref()));
    Restorer { bucket, env, home, subject, path, database: None }
}

struct Opener<'a> {
    shared: &'a Arc<Shared>,
    restorer: Restorer<'a>,
    /// The manifest that the state was restored from.
    base: Option<Manifest>,
    /// What of the tail is above its base.
    above: Vec<Entry>,
    /// The log whose surplus the state holds.
    taken: Option<LogId>,
}

impl Opener<'_> {
    async fn perform(&mut self, effect: ClaimEffect) -> Result<ClaimInput, ErrorReply> {
        let (shared, subject) = (self.shared, self.restorer.subject);
        match effect {
            ClaimEffect::List => publish::list(shared, subject).await.map(ClaimInput::Listed),
            ClaimEffect::Get(number) => {
                publish::get_manifest(shared, subject, number).await.map(ClaimInput::Got)
            }
            ClaimEffect::AskAuthority { owner } => {
                Ok(match shared.authority.may_claim(subject, owner.as_ref()).await {
                    Ok(()) => ClaimInput::Allowed,
                    Err(reply) => ClaimInput::Refused(reply),
                })
            }
            ClaimEffect::Seal(log) => shared.seal(subject, &log).await.map(|_| ClaimInput::Sealed),
            ClaimEffect::Restore { manifest, tail } => {
                self.restore(manifest.map(|manifest| *manifest), tail).await
            }
            ClaimEffect::PutBase { made_for } => {
                let base = self.put_base(made_for).await?;
                reach(FailPoint::ClaimBaseUp);
                Ok(ClaimInput::BasePut(base))
            }
            ClaimEffect::Create(manifest) => {
                let created = publish::create(shared, &manifest).await?;
                reach(FailPoint::ClaimCreated);
                Ok(ClaimInput::Created(created))
            }
            ClaimEffect::Serve(_)
            | ClaimEffect::NotOwned
            | ClaimEffect::Drained(_)
            | ClaimEffect::GiveUp(_) => Err(out_of_step()),
        }
    }

    async fn restore(&mut self, manifest: Option<Manifest>, tail: Tail) -> Result<ClaimInput, ErrorReply> {
        let (shared, subject) = (self.shared, self.restorer.subject);
        let base = manifest.as_ref().map_or(Rev::default(), |manifest| manifest.base_rev);
        let first_slot = manifest.as_ref().map_or_else(Default::default, |manifest| manifest.first_slot);
        self.taken = None;
        let entries = match &tail {
            Tail::None => Vec::new(),
            Tail::Own => {
                match read_own_tail(&shared.log, shared.bucket.as_ref(), subject, first_slot, base).await {
                    Ok(entries) => entries,
                    Err(TailError::Missing { object }) => return Ok(ClaimInput::ObjectMissing { object }),
                    Err(TailError::Failed(reply)) => return Err(reply),
                }
            }
            Tail::Sealed(log) => {
                let mut entries = match shared.sealed.seal(log).await?.tail(subject, first_slot, base).await {
                    Ok(entries) => entries,
                    Err(TailError::Missing { object }) => return Ok(ClaimInput::ObjectMissing { object }),
                    Err(TailError::Failed(reply)) => return Err(reply),
                };
                let reached = entries.last().map_or(base, Entry::last_rev);
                let surplus = shared.surplus.entries(subject, log)?;
                entries.extend(surplus.into_iter().filter(|entry| entry.is_above(reached)));
                self.taken = Some(log.clone());
                entries
            }
        };
        if let Err(fault) = crate::format::frame::check_run(&entries) {
            return Ok(ClaimInput::ObjectMissing {
                object: format!("a part of the log of {subject} ({fault})"),
            });
        }
        self.above = entries.iter().filter(|entry| entry.is_above(base)).cloned().collect();
        match self.restorer.restore(manifest.as_ref(), entries).await {
            Ok(()) => {}
            Err(RestoreError::Missing(object)) => return Ok(ClaimInput::ObjectMissing { object }),
            Err(RestoreError::Failed(reply)) => return Err(reply),
        }
        self.base = manifest;
        let database = self.restorer.database.as_ref().ok_or_else(out_of_step)?;
        Ok(ClaimInput::Restored(Restored {
            rev: database.state().rev,
            next_seq: database.state().next_seq,
            above_base: !self.above.is_empty(),
            first_slot: shared.log.next_slot(),
            nonce: Nonce::new(shared.env.ulid()),
        }))
    }

    /// Uploads what the base lacks.
    async fn put_base(&mut self, made_for: ManifestNumber) -> Result<BaseObject, ErrorReply> {
        let (shared, subject) = (self.shared, self.restorer.subject);
        let (rev, base) = {
            let database = self.restorer.database.as_ref().ok_or_else(out_of_step)?;
            (database.state().rev, self.base.as_ref().map_or(Rev::default(), |base| base.base_rev))
        };
        let bytes = self
            .above
            .iter()
            .map(|entry| crate::format::frame::encode(entry).map_or(0, |frame| frame.len() as u64))
            .sum();
        if rev > base && base_kind(self.base.as_ref(), bytes) == BaseKind::Delta {
            let delta = publish::upload_delta(shared, subject, made_for, base, &self.above).await?;
            return Ok(BaseObject::Delta(delta));
        }
        self.restorer.on_file(Database::checkpoint).await?;
        let path = self.restorer.path.clone();
        let snapshot = publish::upload_snapshot(shared, subject, made_for, rev, path).await?;
        Ok(BaseObject::Snapshot(snapshot))
    }

    /// What an earlier process of this data directory accepted and could not ship is in the claim's base now, or the
    /// subject has gone on without it.
    async fn settle_surplus(&mut self) -> Result<(), ErrorReply> {
        let (shared, subject) = (self.shared, self.restorer.subject);
        for log in shared.surplus.logs_of(subject) {
            if self.taken.as_ref() == Some(&log) {
                shared.surplus.settle(subject, &log).await.map_err(|error| cannot_settle(&error))?;
            } else {
                lose_surplus(shared, subject, &log, self.base.as_ref()).await?;
            }
        }
        Ok(())
    }

    /// The claim stands: the file is now of its term.
    fn take_over(&mut self, manifest: &Manifest) -> Result<Database, ErrorReply> {
        let mut database = self.restorer.database.take().ok_or_else(out_of_step)?;
        let tenure = Tenure {
            log: manifest.owner.clone(),
            term: manifest.term,
            term_base: manifest.term_base,
            manifest: manifest.number,
            bucket_rev: manifest.base_rev,
        };
        database.take_over(&tenure).map_err(|error| error.not_begun().reply(self.restorer.subject))?;
        Ok(database)
    }
}
