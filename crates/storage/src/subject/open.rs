//! Opening a subject: drives the claim, and does what it asks for.

use std::sync::Arc;

use dormouse_protocol::{ErrorReply, Rev, Subject};

use super::publish;
use super::restore::{RestoreError, Restorer, out_of_step};
use crate::bucket::BucketKey;
use crate::database::{Database, Tenure};
use crate::engine::Shared;
use crate::entry::Entry;
use crate::keys::{ManifestNumber, Nonce};
use crate::log::read_own_tail;
use crate::manifest::Manifest;
use crate::ownership::claim::{Claim, ClaimEffect, ClaimInput, Restored, Tail};
use crate::ownership::{BaseKind, BaseObject, base_kind};

/// A subject that this process owns, with its file open.
pub(super) struct Opened {
    pub(super) database: Database,
    pub(super) manifest: Manifest,
    pub(super) garbage: Vec<BucketKey>,
}

/// Opens the subject.
///
/// # Errors
/// The answer to the requests that wait for it.
pub(super) async fn open(shared: &Arc<Shared>, subject: &Subject) -> Result<Opened, ErrorReply> {
    // Nothing of an earlier life of the subject may be under way.
    shared.log.settled(subject).await?;
    let _permit = shared.opening.acquire().await;
    let path = shared.data.subject_file(subject);
    let restorer = Restorer { shared, subject, path, database: None };
    let mut opener = Opener { restorer, base: None, above: Vec::new() };
    let known = opener.restorer.find_local().await?;
    let (mut claim, mut effect) = Claim::new(subject.clone(), shared.log.id().clone(), known);
    loop {
        let answer = match effect {
            ClaimEffect::GiveUp(reply) => return Err(reply),
            ClaimEffect::Serve(verified) => {
                let database = opener.take_over(&verified.manifest)?;
                if shared.has_log_ended() {
                    return Err(shared.log_ended_reply());
                }
                shared.counters.opens.add(1);
                shared.surplus.settled(subject);
                shared.log.based(subject, verified.manifest.base_rev, verified.manifest.first_slot);
                return Ok(Opened { database, manifest: *verified.manifest, garbage: verified.garbage });
            }
            effect => opener.perform(effect).await,
        };
        effect = claim.apply(answer.unwrap_or_else(ClaimInput::Failed));
    }
}

struct Opener<'a> {
    restorer: Restorer<'a>,
    /// The manifest that the state was restored from.
    base: Option<Manifest>,
    /// What of the tail is above its base.
    above: Vec<Entry>,
}

impl Opener<'_> {
    async fn perform(&mut self, effect: ClaimEffect) -> Result<ClaimInput, ErrorReply> {
        let (shared, subject) = (self.restorer.shared, self.restorer.subject);
        match effect {
            ClaimEffect::List => publish::list(shared, subject).await.map(ClaimInput::Listed),
            ClaimEffect::Get(number) => publish::get_manifest(shared, subject, number).await.map(ClaimInput::Got),
            ClaimEffect::AskAuthority { owner } => {
                Ok(match shared.authority.may_claim(subject, owner.as_ref()).await {
                    Ok(()) => ClaimInput::Allowed,
                    Err(reply) => ClaimInput::Refused(reply),
                })
            }
            ClaimEffect::Seal(log) => shared.sealed.seal(&log).await.map(|_| ClaimInput::Sealed),
            ClaimEffect::Restore { manifest, tail } => self.restore(manifest.map(|manifest| *manifest), tail).await,
            ClaimEffect::PutBase { made_for } => self.put_base(made_for).await.map(ClaimInput::BasePut),
            ClaimEffect::Create(manifest) => publish::create(shared, &manifest).await.map(ClaimInput::Created),
            ClaimEffect::Serve(_) | ClaimEffect::Drained(_) | ClaimEffect::GiveUp(_) => Err(out_of_step()),
        }
    }

    async fn restore(&mut self, manifest: Option<Manifest>, tail: Tail) -> Result<ClaimInput, ErrorReply> {
        let (shared, subject) = (self.restorer.shared, self.restorer.subject);
        let base = manifest.as_ref().map_or(Rev::default(), |manifest| manifest.base_rev);
        let first_slot = manifest.as_ref().map_or_else(Default::default, |manifest| manifest.first_slot);
        let entries = match &tail {
            Tail::None => Vec::new(),
            Tail::Own => {
                read_own_tail(&shared.log, shared.bucket.as_ref(), subject, first_slot, base).await?
            }
            Tail::Sealed(log) => {
                let sealed = shared.sealed.seal(log).await?;
                let mut entries = sealed.tail(subject, first_slot, base).await?;
                let reached = entries.last().map_or(base, Entry::last_rev);
                entries.extend(shared.surplus.above(log, subject, reached));
                entries
            }
        };
        if let Err(fault) = crate::format::frame::check_run(&entries) {
            return Ok(ClaimInput::ObjectMissing { object: format!("a part of the log of {subject} ({fault})") });
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
        let (shared, subject) = (self.restorer.shared, self.restorer.subject);
        let (rev, base) = {
            let database = self.restorer.database.as_ref().ok_or_else(out_of_step)?;
            (database.state().rev, self.base.as_ref().map_or(Rev::default(), |base| base.base_rev))
        };
        let bytes = self.above.iter().map(|entry| crate::format::frame::encode(entry).map_or(0, |frame| frame.len() as u64)).sum();
        if rev > base && base_kind(self.base.as_ref(), bytes) == BaseKind::Delta {
            let delta = publish::upload_delta(shared, subject, made_for, base, &self.above).await?;
            return Ok(BaseObject::Delta(delta));
        }
        self.restorer.on_file(Database::checkpoint).await?;
        let path = self.restorer.path.clone();
        let snapshot = publish::upload_snapshot(shared, subject, made_for, rev, path).await?;
        Ok(BaseObject::Snapshot(snapshot))
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
