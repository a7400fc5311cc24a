//! Opens a subject: drives the claim and performs its effects.

mod reclaim;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dormouse_commit_log::log::{SealedLog, TailReader, read_own_tail, read_own_tail_above_file};
use dormouse_format::keys::{ManifestNumber, Nonce};
use dormouse_format::manifest::Manifest;
use dormouse_protocol::{ErrorCode, ErrorReply, LogId, OverloadCause, Rev, Slot, Subject};
use dormouse_runtime::fail_point;
use dormouse_runtime::fair_permits::FairPermit;
use dormouse_subject_state::database::{Database, FileOwner};

use super::delta::DeltaWriter;
use super::publish;
use super::restore::{RestoreError, Restorer, unexpected_effect};
use crate::api::TenantId;
use crate::engine::EngineShared;
use crate::instruments::{LocalFileUse, OpenKind};
use crate::open_permits::{OpenTurn, SMALL_DOWNLOAD_BYTES};
use crate::ownership::claim::{Claim, ClaimEffect, ClaimInput, Restored, TailSource};
use crate::ownership::local::diverged_above;
use crate::ownership::{BaseKind, BaseObject, ManifestRead, Verified, claim_base_kind, terms};

pub(crate) use reclaim::reclaim_subject;

/// How long an open waits for a permit.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// A subject that this process owns, with its file open.
pub(super) struct Opened {
    pub(super) database: Database,
    /// The manifest under which it is served.
    pub(super) verified: Verified,
}

/// Waits for the turn of `tenant` to open a subject.
///
/// # Errors
/// The reply to the waiting requests.
pub(super) async fn wait_for_turn(shared: &EngineShared, tenant: TenantId) -> Result<OpenTurn, ErrorReply> {
    let turn = tokio::time::timeout(PERMIT_TIMEOUT, shared.opening.turn(tenant)).await;
    Ok(turn.unwrap_or(Err(OverloadCause::SubjectOpens))?)
}

/// Opens the subject. With `only_own`, opens it only if this process already owns it, and returns `None`
/// otherwise. The turn ends with the open.
///
/// # Errors
/// The reply to the waiting requests.
pub(super) async fn open(
    shared: &Arc<EngineShared>,
    subject: &Subject,
    only_own: bool,
    tenant: TenantId,
    turn: OpenTurn,
) -> Result<Option<Opened>, ErrorReply> {
    let started = shared.env.boot();
    let opened = open_measured(shared, subject, only_own, tenant, turn).await;
    let kind = match &opened {
        Ok(Some((_, kind))) => *kind,
        Ok(None) => return Ok(None),
        Err(_) => OpenKind::Failed,
    };
    shared.instruments.opens.of(kind).observe(shared.env.boot().saturating_sub(started));
    opened.map(|opened| opened.map(|(opened, _)| opened))
}

/// As [`open`], with the kind of the open.
async fn open_measured(
    shared: &Arc<EngineShared>,
    subject: &Subject,
    only_own: bool,
    tenant: TenantId,
    OpenTurn { local, calls }: OpenTurn,
) -> Result<Option<(Opened, OpenKind)>, ErrorReply> {
    let path = shared.data.subject_file(subject);
    let mut opener = Opener::new(shared, subject, tenant, path);
    let known = opener.restorer.find_local().await?;
    drop(local);
    opener.calls = Some(calls);
    let begin = if only_own { Claim::reopen } else { Claim::new };
    let (mut claim, mut effect) = begin(subject.clone(), shared.log.id().clone(), known);
    loop {
        // A claim of a log that has ended is void, whatever its effects return.
        if shared.has_log_ended() {
            return Err(shared.log_ended_reply());
        }
        let answer = match effect {
            ClaimEffect::GiveUp(reply) => {
                // A process that has sealed this log may trim its unneeded slots. So a missing object proves
                // corruption only if a barrier shows that the log has not ended.
                if reply.code == ErrorCode::Corrupt {
                    shared.read_lease.barrier().await?;
                }
                return Err(reply);
            }
            ClaimEffect::NotOwned => return Ok(None),
            ClaimEffect::Serve(verified) => {
                fail_point!(ClaimVerified);
                let database = opener.take_over(&verified.manifest)?;
                opener.resolve_stranded().await?;
                shared.counters.subject_opens.add(1);
                shared.log.base_published(subject, verified.manifest.base_rev, verified.manifest.first_slot);
                return Ok(Some((Opened { database, verified }, opener.kind)));
            }
            effect => {
                let now = shared.env.boot();
                if claim.is_creation() {
                    // Before the coordinator records an assignment.
                    shared.tenants.check_creation(tenant, now)?;
                }
                if let ClaimEffect::Create(manifest) = &effect {
                    if manifest.number == ManifestNumber::FIRST {
                        shared.tenants.count_creation(tenant, now)?;
                    }
                    shared.counters.claims.add(1);
                }
                opener.perform(effect).await
            }
        };
        effect = claim.apply(answer.unwrap_or_else(ClaimInput::Failed));
    }
}

/// Moves stranded writes of an earlier process to `lost/`, as far as they diverge from `newest`, the newest
/// manifest of the subject.
///
/// # Errors
/// The reply to a request that cannot be served because of it. The move is retried.
pub(crate) async fn move_stranded_to_lost(
    shared: &EngineShared,
    subject: &Subject,
    log: &LogId,
    newest: Option<&Manifest>,
) -> Result<(), ErrorReply> {
    let terms = newest.map(terms).unwrap_or_default();
    let above = |term| newest.map_or(Rev::default(), |newest| diverged_above(term, newest, &terms));
    shared
        .stranded
        .move_to_lost(subject, log, above)
        .await
        .map(drop)
        .map_err(|error| stranded_not_saved(&error))
}

/// The newest manifest of a subject, as of some moment during the call.
///
/// # Errors
/// The reply to a caller if the bucket does not answer.
pub(crate) async fn newest_manifest(
    shared: &EngineShared,
    subject: &Subject,
) -> Result<Option<Manifest>, ErrorReply> {
    let Some(number) = publish::list(shared, subject).await?.newest() else { return Ok(None) };
    match publish::get_manifest(shared, subject, number).await? {
        ManifestRead::Manifest(manifest) => Ok(Some(*manifest)),
        ManifestRead::Missing => {
            Err(ErrorReply::unavailable("the newest manifest was replaced while it was read"))
        }
        ManifestRead::Unreadable(reply) => Err(reply),
    }
}

/// Reads the entries of a subject above `base` in a sealed log, and the stranded writes of this data directory that follow.
fn sealed_tail<'a>(
    shared: &EngineShared,
    subject: &Subject,
    sealed: &'a SealedLog,
    first_slot: Slot,
    base: Rev,
) -> Result<TailReader<'a>, ErrorReply> {
    let stranded = shared.stranded.entries(subject, sealed.log())?;
    Ok(sealed.tail(subject, first_slot, base).followed_by(stranded))
}

fn stranded_not_saved(error: &dyn std::error::Error) -> ErrorReply {
    ErrorReply::unavailable(format!("stranded writes cannot be saved: {error}"))
}

fn restorer<'a>(
    shared: &'a Arc<EngineShared>,
    subject: &'a Subject,
    tenant: TenantId,
    path: PathBuf,
) -> Restorer<'a> {
    let (bucket, env, home) = (shared.bucket.as_ref(), &shared.env, Some(shared.as_ref()));
    Restorer { bucket, env, engine: home, subject, tenant, path, database: None }
}

fn open_kind(exists: bool, tail: &TailSource, file: LocalFileUse) -> OpenKind {
    match (tail, file) {
        (TailSource::Sealed(_), _) => OpenKind::Takeover,
        _ if !exists => OpenKind::Fresh,
        (_, LocalFileUse::Reused) => OpenKind::Reused,
        (_, LocalFileUse::Rebuilt) => OpenKind::Rebuilt,
    }
}

struct Opener<'a> {
    shared: &'a Arc<EngineShared>,
    restorer: Restorer<'a>,
    /// The manifest that the state was restored from.
    base: Option<Manifest>,
    /// The entries of a sealed log above its base, for the claim's delta.
    copy: Option<DeltaWriter<'a>>,
    /// The log whose stranded writes the state includes.
    stranded_log: Option<LogId>,
    /// `None` for a reclamation, and during a download.
    calls: Option<FairPermit>,
    /// How the last restore was done.
    kind: OpenKind,
}

impl<'a> Opener<'a> {
    fn new(shared: &'a Arc<EngineShared>, subject: &'a Subject, tenant: TenantId, path: PathBuf) -> Self {
        let restorer = restorer(shared, subject, tenant, path);
        Self {
            shared,
            restorer,
            base: None,
            copy: None,
            stranded_log: None,
            calls: None,
            kind: OpenKind::Fresh,
        }
    }

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
                fail_point!(ClaimBaseUploaded);
                Ok(ClaimInput::BasePut(base))
            }
            ClaimEffect::Create(manifest) => {
                let created = publish::create(shared, &manifest).await?;
                fail_point!(ClaimCreated);
                Ok(ClaimInput::Created(created))
            }
            ClaimEffect::Serve(_)
            | ClaimEffect::NotOwned
            | ClaimEffect::Reclaimed(_)
            | ClaimEffect::GiveUp(_) => Err(unexpected_effect()),
        }
    }

    async fn restore(
        &mut self,
        manifest: Option<Manifest>,
        tail: TailSource,
    ) -> Result<ClaimInput, ErrorReply> {
        let (shared, subject) = (self.shared, self.restorer.subject);
        let base = manifest.as_ref().map_or(Rev::default(), |manifest| manifest.base_rev);
        let first_slot = manifest.as_ref().map_or_else(Default::default, |manifest| manifest.first_slot);
        (self.stranded_log, self.copy) = (None, None);
        // Known without the slots, in this process's own log.
        let shipped = shared.log.last_shipped_rev(subject).map_or(base, |rev| rev.max(base));
        let sealed;
        let (mut reader, highest) = match &tail {
            TailSource::None => (None, base),
            TailSource::Own => (manifest.as_ref().map(|manifest| self.read_own(manifest, shipped)), shipped),
            TailSource::Sealed(log) => {
                sealed = shared.sealed.seal(log).await?;
                let reader = sealed_tail(shared, subject, &sealed, first_slot, base)?;
                let highest = reader.highest().map_or(base, |highest| highest.max(base));
                self.stranded_log = Some(log.clone());
                self.copy = Some(DeltaWriter::new(shared, subject, base));
                (Some(reader), highest)
            }
        };
        let download_bytes = self.download_bytes(manifest.as_ref(), highest, reader.as_ref());
        let download = self.begin_download(download_bytes).await?;
        let restored = self.restorer.restore(manifest.as_ref(), highest, reader.as_mut(), self.copy.as_mut());
        let restored = restored.await;
        self.end_download(download).await;
        match restored {
            Ok(file) => self.kind = open_kind(manifest.is_some(), &tail, file),
            Err(RestoreError::Missing(object)) => return Ok(ClaimInput::ObjectMissing { object }),
            Err(RestoreError::Failed(reply)) => return Err(reply),
        }
        self.base = manifest;
        let database = self.restorer.database.as_ref().ok_or_else(unexpected_effect)?;
        let rev = database.state().rev;
        let has_copy = self.copy.as_ref().is_some_and(|copy| copy.reached().is_some());
        Ok(ClaimInput::Restored(Restored {
            rev,
            next_seq: database.state().next_seq,
            // A reused file of this process may hold entries that were not read again.
            above_base: has_copy || (tail == TailSource::Own && rev > base),
            first_slot: shared.log.next_slot(),
            nonce: Nonce::new(shared.env.ulid()),
        }))
    }

    /// About how many bytes the restore reads from the bucket.
    fn download_bytes(
        &self,
        manifest: Option<&Manifest>,
        highest: Rev,
        tail: Option<&TailReader<'_>>,
    ) -> u64 {
        let Some(manifest) = manifest else { return 0 };
        let base = if self.restorer.local_fits(manifest, highest) { 0 } else { manifest.base_bytes() };
        let own_tail = || self.shared.log.tail(self.restorer.subject).map_or(0, |tail| tail.bytes);
        base.saturating_add(tail.map_or(0, |tail| tail.size_bytes().unwrap_or_else(own_tail)))
    }

    /// Exchanges the permit for calls for one for a download, if the download is large.
    ///
    /// # Errors
    /// Too many downloads run.
    async fn begin_download(&mut self, size_bytes: u64) -> Result<Option<FairPermit>, ErrorReply> {
        if size_bytes <= SMALL_DOWNLOAD_BYTES {
            return Ok(None);
        }
        self.calls = None;
        let download =
            tokio::time::timeout(PERMIT_TIMEOUT, self.shared.opening.download(self.restorer.tenant));
        Ok(Some(download.await.map_err(|_| ErrorReply::from(OverloadCause::SubjectOpens))?))
    }

    /// Exchanges the permits back. The calls of others have time-outs, so the wait ends; and what is restored is not lost.
    async fn end_download(&mut self, download: Option<FairPermit>) {
        if let Some(download) = download {
            drop(download);
            self.calls = Some(self.shared.opening.calls(self.restorer.tenant).await);
        }
    }

    /// Reads the entries of this process's own log that the local file lacks, or without a fit one, those above the base.
    fn read_own(&self, manifest: &Manifest, shipped: Rev) -> TailReader<'a> {
        let (log, bucket, subject) = (&self.shared.log, self.shared.bucket.as_ref(), self.restorer.subject);
        match self.restorer.file_rev(manifest, shipped) {
            Some(rev) => read_own_tail_above_file(log, bucket, subject, manifest.first_slot, rev),
            None => read_own_tail(log, bucket, subject, manifest.first_slot, manifest.base_rev),
        }
    }

    /// Uploads the changes above the current base as a delta, or the whole state as a snapshot.
    async fn put_base(&mut self, made_for: ManifestNumber) -> Result<BaseObject, ErrorReply> {
        let (shared, subject) = (self.shared, self.restorer.subject);
        let (rev, base) = {
            let database = self.restorer.database.as_ref().ok_or_else(unexpected_effect)?;
            (database.state().rev, self.base.as_ref().map_or(Rev::default(), |base| base.base_rev))
        };
        // A delta leads to a rev above the base; only a snapshot holds replies without one.
        let copy = self.copy.take().filter(|_| rev > base);
        if let Some(copy) = copy
            && claim_base_kind(self.base.as_ref()) == BaseKind::Delta
        {
            return Ok(BaseObject::Delta(publish::upload_delta(shared, subject, made_for, copy).await?));
        }
        let complete = |database: &mut Database| {
            // A snapshot has no rows of removed messages.
            while database.delete_hidden_rows()? {}
            database.checkpoint()
        };
        self.restorer.on_file(complete).await?;
        let path = self.restorer.path.clone();
        let snapshot = publish::upload_snapshot(shared, subject, made_for, rev, path).await?;
        Ok(BaseObject::Snapshot(snapshot))
    }

    /// Resolves the stranded writes of earlier processes of this data directory: they are in the claim's base
    /// now, or the subject has diverged from them.
    async fn resolve_stranded(&mut self) -> Result<(), ErrorReply> {
        let (shared, subject) = (self.shared, self.restorer.subject);
        for log in shared.stranded.logs_of(subject) {
            if self.stranded_log.as_ref() == Some(&log) {
                shared
                    .stranded
                    .mark_resolved(subject, &log)
                    .await
                    .map_err(|error| stranded_not_saved(&error))?;
            } else {
                move_stranded_to_lost(shared, subject, &log, self.base.as_ref()).await?;
            }
        }
        Ok(())
    }

    /// The claim has succeeded: the file now belongs to its term.
    fn take_over(&mut self, manifest: &Manifest) -> Result<Database, ErrorReply> {
        let mut database = self.restorer.database.take().ok_or_else(unexpected_effect)?;
        let owner = FileOwner {
            log: manifest.owner.clone(),
            term: manifest.term,
            term_base: manifest.term_base,
            manifest: manifest.number,
            bucket_rev: manifest.base_rev,
        };
        database.take_over(&owner).map_err(|error| error.not_started().reply(self.restorer.subject))?;
        Ok(database)
    }
}
