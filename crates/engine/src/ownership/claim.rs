//! Opening and claiming a subject.
//!
//! The order of the steps ensures that no acknowledged write is lost:
//!
//! 1. List, and read the newest manifest.
//! 2. If it names this process's own log and is not released: the state is rebuilt from it and from the log, and a
//!    second listing shows that no newer manifest exists. Without that listing, a process could serve a subject that it
//!    does not own: because of a late duplicate of a rejected manifest, or of a takeover during the rebuild.
//! 3. If it is released: nothing of its owner's log is needed. If it names another log: that log is sealed first, and
//!    can never grow afterwards. (The sealer has asked the authority, and asks again after the seal, for the sake of
//!    reads: see [`Authority::may_claim`](crate::api::Authority::may_claim).)
//! 4. The entries of that log above the base are copied into an object of the subject, so that a manifest refers only
//!    to its owner's log and the subject's own objects.
//! 5. The next manifest is created conditionally: of all processes that read the same manifest, one succeeds.
//! 6. A second listing: a number that was deleted by collection can be created again, but never as the newest.
//!
//! A claim that restarts repeats every step, with new names and a new nonce. Only a manifest whose create is
//! indeterminate is sent again unchanged.

mod steps;
#[cfg(test)]
mod tests;

use dormouse_format::keys::{Folder, LogKeys, ManifestNumber, SubjectKeys};
use dormouse_format::manifest::Manifest;
use dormouse_protocol::{ErrorReply, LogId, Rev, Subject, Term};
use dormouse_runtime::injected_bug;

use super::{BaseObject, CreateResult, ManifestRead, Verified, contract_broken, no_successor, terms};

pub use steps::{ClaimEffect, ClaimInput, ReclaimOutcome, Restored, TailSource};

/// Maximum restarts before a claim answers `unavailable`. Each restart means that another process was faster.
pub const MAX_RESTARTS: u32 = 8;

/// Purpose of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Purpose {
    Serve,
    /// Only if the newest manifest is this process's own.
    ServeOwn,
    /// To reclaim `log`, which was seen sealed before the claim began.
    Reclaim {
        log: LogId,
        dry_run: bool,
    },
}

/// The input that the machine waits for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum ClaimState {
    Listing,
    Reading(ManifestNumber),
    AwaitingPermission(Option<Box<Manifest>>),
    Sealing(Box<Manifest>),
    Restoring(Option<Box<Manifest>>, TailSource),
    PuttingBase(Option<Box<Manifest>>, Restored),
    Creating(Box<Manifest>),
    /// A listing checks whether it is still the newest.
    Verifying(Box<Manifest>, VerifiedAs),
    Done,
}

/// Result of the claim if the manifest is the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum VerifiedAs {
    Serve,
    NotNeeded,
    Needed,
    Released,
}

/// Opens a subject: see the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claim {
    subject: Subject,
    my_log: LogId,
    purpose: Purpose,
    /// The highest manifest that is known to have existed: the newest is never lower.
    highest: Option<ManifestNumber>,
    restarts_left: u32,
    /// Our manifest whose create is indeterminate. The restored state is the one that belongs to it.
    indeterminate: Option<Box<Manifest>>,
    /// The newest manifest, and the missing object that it refers to.
    missing: Option<(ManifestNumber, String)>,
    state: ClaimState,
}

impl Claim {
    /// Whether the effect that was returned last begins the first claim of a subject without any manifest.
    #[must_use]
    pub const fn is_creation(&self) -> bool {
        matches!(self.state, ClaimState::AwaitingPermission(None))
    }

    /// Starts to open `subject` for the process that writes `my_log` now. `known` is the highest manifest of the
    /// subject that this data directory has recorded. Returns the first effect too.
    ///
    /// At that moment this process must have no unfinished work on the subject: every entry that it appended to
    /// `my_log` is shipped or will never be, and every manifest that it sent while it owned the subject has a known
    /// outcome. (A manifest of an earlier *claim* may be in flight: nothing was served under it.)
    #[must_use]
    pub const fn new(subject: Subject, my_log: LogId, known: Option<ManifestNumber>) -> (Self, ClaimEffect) {
        Self::begin(subject, my_log, known, Purpose::Serve)
    }

    /// Starts to open `subject` as [`Claim::new`] does, but only if its newest manifest names `my_log` and is not
    /// released: otherwise the end is [`ClaimEffect::NotOwned`], nothing is claimed, and the authority is not asked.
    #[must_use]
    pub const fn reopen(
        subject: Subject,
        my_log: LogId,
        known: Option<ManifestNumber>,
    ) -> (Self, ClaimEffect) {
        Self::begin(subject, my_log, known, Purpose::ServeOwn)
    }

    /// Starts to reclaim `log`, whose seal has been seen *before*, for `subject`: if the newest manifest needs entries
    /// of it, they are copied into the next one, which is created as released. With `dry_run`, nothing is changed.
    /// Nothing is served, and the authority is not asked: `log` has no owner any more.
    #[must_use]
    pub const fn reclaim(subject: Subject, my_log: LogId, log: LogId, dry_run: bool) -> (Self, ClaimEffect) {
        Self::begin(subject, my_log, None, Purpose::Reclaim { log, dry_run })
    }

    const fn begin(
        subject: Subject,
        my_log: LogId,
        highest: Option<ManifestNumber>,
        purpose: Purpose,
    ) -> (Self, ClaimEffect) {
        let claim = Self {
            subject,
            my_log,
            purpose,
            highest,
            restarts_left: MAX_RESTARTS,
            indeterminate: None,
            missing: None,
            state: ClaimState::Listing,
        };
        (claim, ClaimEffect::List)
    }

    /// Limits the restarts to `restarts` instead of [`MAX_RESTARTS`].
    #[must_use]
    pub fn with_restarts(mut self, restarts: u32) -> Self {
        self.restarts_left = restarts;
        self
    }

    /// Applies the answer to the outstanding effect and returns the next effect.
    pub fn apply(&mut self, input: ClaimInput) -> ClaimEffect {
        if let ClaimInput::Refused(reply) | ClaimInput::Failed(reply) = input {
            return self.give_up(reply);
        }
        match (std::mem::replace(&mut self.state, ClaimState::Done), input) {
            (ClaimState::Listing, ClaimInput::Listed(folder)) => self.listed(folder.newest()),
            (ClaimState::Reading(number), ClaimInput::Got(found)) => self.got(number, found),
            (ClaimState::AwaitingPermission(base), ClaimInput::Allowed) => self.allowed(base),
            (ClaimState::Sealing(base), ClaimInput::Sealed) => {
                let tail = TailSource::Sealed(base.owner.clone());
                self.restore(Some(base), tail)
            }
            (ClaimState::Restoring(base, tail), ClaimInput::Restored(restored)) => {
                self.restored(base, &tail, restored)
            }
            (ClaimState::Restoring(Some(base), _), ClaimInput::ObjectMissing { object }) => {
                self.object_missing(base.number, object)
            }
            (ClaimState::PuttingBase(base, restored), ClaimInput::BasePut(object)) => {
                self.claim(base.as_deref(), restored, Some(object))
            }
            (ClaimState::Creating(manifest), ClaimInput::Created(outcome)) => self.created(manifest, outcome),
            (ClaimState::Verifying(manifest, end), ClaimInput::Listed(folder)) => {
                self.verified(manifest, folder, end)
            }
            (state, input) => {
                debug_assert!(false, "unexpected input {input:?} in state {state:?}");
                self.give_up(ErrorReply::internal("unexpected input to the claim machine"))
            }
        }
    }

    /// Step 1: find the newest manifest.
    fn listed(&mut self, newest: Option<ManifestNumber>) -> ClaimEffect {
        if newest < self.highest {
            return self.reject_rolled_back_bucket(newest);
        }
        self.highest = newest;
        if let Some(manifest) = self.indeterminate.take()
            && newest <= Some(manifest.number)
        {
            // It may exist or not: the create reads back the owner. Anything higher has superseded it.
            return self.create(manifest);
        }
        if let Some((number, object)) = self.missing.take()
            && newest == Some(number)
        {
            let text = format!("missing, although {number}, which refers to it, is the newest");
            return self.give_up(ErrorReply::corrupt(object, text));
        }
        match (newest, &self.purpose) {
            (Some(number), _) => {
                self.state = ClaimState::Reading(number);
                ClaimEffect::Get(number)
            }
            (None, Purpose::Serve) => {
                self.state = ClaimState::AwaitingPermission(None);
                ClaimEffect::AskAuthority { owner: None }
            }
            (None, Purpose::ServeOwn) => ClaimEffect::NotOwned,
            (None, Purpose::Reclaim { log, .. }) => {
                let object = LogKeys::new(log).folder().to_string();
                let text = format!("holds entries of {}, which has no manifest", self.subject);
                self.give_up(ErrorReply::corrupt(object, text))
            }
        }
    }

    /// The newest manifest is never deleted, so numbers never decrease. If they have, the bucket was emptied, rolled
    /// back or confused with another, and to continue would diverge from the subject's history.
    fn reject_rolled_back_bucket(&mut self, newest: Option<ManifestNumber>) -> ClaimEffect {
        let known = self.highest.unwrap_or(ManifestNumber::FIRST);
        let object = SubjectKeys::new(&self.subject).manifest(known);
        let newest = newest.map_or("none".to_owned(), |newest| newest.to_string());
        let text = format!(
            "missing, and nothing newer is there, but this server has seen it: is this the bucket it used before? \
             ({newest} is the newest)"
        );
        self.give_up(ErrorReply::corrupt(object.to_string(), text))
    }

    /// Steps 2 and 3: find the owner.
    fn got(&mut self, number: ManifestNumber, found: ManifestRead) -> ClaimEffect {
        let manifest = match found {
            ManifestRead::Manifest(manifest) => manifest,
            ManifestRead::Missing => {
                let object = SubjectKeys::new(&self.subject).manifest(number).to_string();
                return self.object_missing(number, object);
            }
            ManifestRead::Unreadable(reply) => return self.give_up(reply),
        };
        if manifest.is_last() {
            return self.give_up(no_successor(&manifest));
        }
        match &self.purpose {
            Purpose::Reclaim { log, .. } if manifest.released || manifest.owner != *log => {
                self.verify(manifest, VerifiedAs::NotNeeded)
            }
            Purpose::Reclaim { log, .. } => {
                let tail = TailSource::Sealed(log.clone());
                self.restore(Some(manifest), tail)
            }
            Purpose::Serve | Purpose::ServeOwn
                if manifest.owner == self.my_log
                    && (!manifest.released || injected_bug!(ReopenAfterRelease)) =>
            {
                self.restore(Some(manifest), TailSource::Own)
            }
            Purpose::ServeOwn => ClaimEffect::NotOwned,
            Purpose::Serve => {
                let owner = (!manifest.released).then(|| manifest.owner.clone());
                self.state = ClaimState::AwaitingPermission(Some(manifest));
                ClaimEffect::AskAuthority { owner }
            }
        }
    }

    fn allowed(&mut self, base: Option<Box<Manifest>>) -> ClaimEffect {
        match base {
            Some(base) if !base.released => {
                let log = base.owner.clone();
                self.state = ClaimState::Sealing(base);
                ClaimEffect::Seal(log)
            }
            base => self.restore(base, TailSource::None),
        }
    }

    fn restore(&mut self, base: Option<Box<Manifest>>, tail: TailSource) -> ClaimEffect {
        self.state = ClaimState::Restoring(base.clone(), tail.clone());
        ClaimEffect::Restore { manifest: base, tail }
    }

    /// Step 4: everything above the base must be copied into it.
    fn restored(
        &mut self,
        base: Option<Box<Manifest>>,
        tail: &TailSource,
        restored: Restored,
    ) -> ClaimEffect {
        let base_rev = base.as_ref().map_or(Rev::default(), |base| base.base_rev);
        if restored.rev < base_rev || (restored.rev > base_rev && !restored.above_base) {
            return self.give_up(ErrorReply::internal("restored state does not match its manifest"));
        }
        match (base, tail, &self.purpose) {
            (Some(base), TailSource::Own, _) => self.verify(base, VerifiedAs::Serve),
            (Some(base), _, Purpose::Reclaim { .. }) if !restored.above_base => {
                self.verify(base, VerifiedAs::NotNeeded)
            }
            (Some(base), _, Purpose::Reclaim { dry_run: true, .. }) => self.verify(base, VerifiedAs::Needed),
            (base, ..) if restored.above_base => {
                let made_for = next_number(base.as_deref());
                self.state = ClaimState::PuttingBase(base, restored);
                ClaimEffect::PutBase { made_for }
            }
            (base, ..) => self.claim(base.as_deref(), restored, None),
        }
    }

    /// The manifest that follows `base`, whose entries it includes up to the restored state.
    fn claim(
        &mut self,
        base: Option<&Manifest>,
        restored: Restored,
        object: Option<BaseObject>,
    ) -> ClaimEffect {
        let mut manifest = Manifest {
            subject: self.subject.clone(),
            number: next_number(base),
            term: base.map_or(Term::default(), |base| base.term).next(),
            term_base: restored.rev,
            owner: self.my_log.clone(),
            base_rev: restored.rev,
            next_seq: restored.next_seq,
            first_slot: restored.first_slot,
            snapshot: base.and_then(|base| base.snapshot),
            deltas: base.map(|base| base.deltas.clone()).unwrap_or_default(),
            terms: base.map(terms).unwrap_or_default(),
            released: matches!(self.purpose, Purpose::Reclaim { .. }),
            tombstone: false,
            tombstone_state: base.and_then(|base| base.tombstone_state.clone()),
            nonce: restored.nonce,
        };
        if let Some(object) = object {
            object.extend(&mut manifest);
            if object.made_for() != manifest.number || object.rev() != restored.rev {
                return self.give_up(ErrorReply::internal("uploaded base object is not the requested one"));
            }
        }
        match manifest.contradiction() {
            Some(text) => {
                self.give_up(ErrorReply::internal(format!("claim produced a manifest that {text}")))
            }
            None => self.create(Box::new(manifest)),
        }
    }

    /// Step 5: the conditional create that decides between claims from the same base.
    fn create(&mut self, manifest: Box<Manifest>) -> ClaimEffect {
        self.state = ClaimState::Creating(manifest.clone());
        ClaimEffect::Create(manifest)
    }

    fn created(&mut self, manifest: Box<Manifest>, outcome: CreateResult) -> ClaimEffect {
        match outcome {
            CreateResult::Ours => {
                self.highest = self.highest.max(Some(manifest.number));
                if !manifest.released && injected_bug!(NoListAfterClaim) {
                    return ClaimEffect::Serve(Verified::new(manifest, Folder::default()));
                }
                let end = if manifest.released { VerifiedAs::Released } else { VerifiedAs::Serve };
                self.verify(manifest, end)
            }
            CreateResult::Foreign => self.restart("another process claimed the subject first"),
            CreateResult::Unknown(reply) => {
                self.indeterminate = Some(manifest);
                self.restart(&reply.message)
            }
        }
    }

    /// Step 6: list again.
    fn verify(&mut self, manifest: Box<Manifest>, end: VerifiedAs) -> ClaimEffect {
        self.state = ClaimState::Verifying(manifest, end);
        ClaimEffect::List
    }

    fn verified(&mut self, manifest: Box<Manifest>, folder: Folder, end: VerifiedAs) -> ClaimEffect {
        let newest = folder.newest();
        if newest > Some(manifest.number) {
            return self.restart("another process claimed the subject at the same time");
        }
        if newest < Some(manifest.number) {
            return self.give_up(contract_broken(&manifest));
        }
        match end {
            VerifiedAs::Serve => ClaimEffect::Serve(Verified::new(manifest, folder)),
            VerifiedAs::NotNeeded => ClaimEffect::Reclaimed(ReclaimOutcome::NotNeeded),
            VerifiedAs::Needed => ClaimEffect::Reclaimed(ReclaimOutcome::Needed),
            VerifiedAs::Released => {
                ClaimEffect::Reclaimed(ReclaimOutcome::Released(Verified::new(manifest, folder)))
            }
        }
    }

    /// An object that `number` refers to is missing. A newer manifest explains that; without one, the bucket is
    /// corrupt.
    fn object_missing(&mut self, number: ManifestNumber, object: String) -> ClaimEffect {
        let reason = format!("{object} is missing");
        self.missing = Some((number, object));
        self.restart(&reason)
    }

    fn restart(&mut self, reason: &str) -> ClaimEffect {
        let Some(left) = self.restarts_left.checked_sub(1) else {
            return self.give_up(ErrorReply::unavailable(format!(
                "claim failed after too many restarts, last reason: {reason}"
            )));
        };
        self.restarts_left = left;
        self.state = ClaimState::Listing;
        ClaimEffect::List
    }

    fn give_up(&mut self, reply: ErrorReply) -> ClaimEffect {
        self.state = ClaimState::Done;
        ClaimEffect::GiveUp(reply)
    }
}

fn next_number(base: Option<&Manifest>) -> ManifestNumber {
    base.map_or(ManifestNumber::FIRST, |base| base.number.next())
}
