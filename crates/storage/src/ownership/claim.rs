//! Opening and claiming a subject.
//!
//! The order of the steps is the proof that no acknowledged write is lost:
//!
//! 1. List, and read the newest manifest.
//! 2. It names this process's own log and is not released: the state is rebuilt from it and from the log, and a second
//!    listing shows that nobody has gone on from it meanwhile. Without that listing, a late duplicate of a refused
//!    manifest, or a takeover during the rebuilding, would make a process serve what it does not own.
//! 3. It is released: nothing of its owner's log is needed. It names another log: that log is sealed first, and from
//!    then on can never grow. (Who seals has asked the authority, and asks again when the seal is there, for the sake of
//!    reads: see [`Authority::may_claim`](crate::api::Authority::may_claim).)
//! 4. What that log holds above the base goes into an object of the subject's own, so that a manifest never refers to
//!    anything but its owner's log and the subject's own objects.
//! 5. The next manifest is created, exclusively: of all who read the same manifest, one goes on from it.
//! 6. A second listing: numbers that were collected as garbage can be created a second time, but never as the newest.
//!
//! A claim that begins again does everything again, with fresh names and a fresh nonce. Only a manifest whose creation
//! has no known outcome is sent again as it is.

#[cfg(test)]
mod random_tests;
mod steps;
#[cfg(test)]
mod tests;

use dormouse_protocol::{ErrorReply, LogId, Rev, Subject, Term};

use super::{BaseObject, Creation, Found, Verified, contract_broken, terms};
use crate::keys::{Folder, LogKeys, ManifestNumber, SubjectKeys};
use crate::manifest::Manifest;
use crate::mutations::{Mutation, is_there};

pub use steps::{ClaimEffect, ClaimInput, Drained, Restored, Tail};

/// How often a claim begins again before it answers `unavailable`. Each time, another process was faster.
pub const MAX_RESTARTS: u32 = 8;

/// What a claim is made for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Purpose {
    Serve,
    /// Only where the newest manifest is this process's own.
    ServeOwn,
    /// So that `log`, which was seen sealed before the claim began, is needed no more.
    Drain {
        log: LogId,
        dry_run: bool,
    },
}

/// What the machine waits for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State {
    Listing,
    Reading(ManifestNumber),
    Asking(Option<Box<Manifest>>),
    Sealing(Box<Manifest>),
    Restoring(Option<Box<Manifest>>, Tail),
    PuttingBase(Option<Box<Manifest>>, Restored),
    Creating(Box<Manifest>),
    /// Is it the newest still?
    Verifying(Box<Manifest>, End),
    Done,
}

/// What is true once the manifest has turned out to be the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum End {
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
    /// The highest manifest that is known to have existed: there is never a lower newest one.
    highest: Option<ManifestNumber>,
    restarts_left: u32,
    /// Our manifest whose creation has no known outcome. The restored state is the one that belongs to it.
    undecided: Option<Box<Manifest>>,
    /// The newest manifest, and what was missing of what it refers to.
    missing: Option<(ManifestNumber, String)>,
    state: State,
}

impl Claim {
    /// Begins to open `subject` for the process that writes `my_log` now. `known` is the highest manifest of the subject
    /// that this data directory remembers. The first effect comes with it.
    ///
    /// At that moment nothing that this process ever did with the subject may be unfinished: every entry that it
    /// appended to `my_log` is shipped or will never be, and every manifest that it sent while it owned the subject has
    /// a known outcome. (One that an earlier *claim* sent may be on its way: nothing was served under it.)
    #[must_use]
    pub const fn new(subject: Subject, my_log: LogId, known: Option<ManifestNumber>) -> (Self, ClaimEffect) {
        Self::begin(subject, my_log, known, Purpose::Serve)
    }

    /// Begins to open `subject` as [`Claim::new`] does, but only where its newest manifest names `my_log` and is not
    /// released: anything else is [`ClaimEffect::NotOwned`], nothing is claimed, and the authority is not asked.
    #[must_use]
    pub const fn own(subject: Subject, my_log: LogId, known: Option<ManifestNumber>) -> (Self, ClaimEffect) {
        Self::begin(subject, my_log, known, Purpose::ServeOwn)
    }

    /// Begins to free `log`, whose seal has been seen *before*, of `subject`: where the newest manifest needs entries
    /// of it, they are put into the next one, which is released as soon as it is there. With `dry_run`, nothing is
    /// changed. Nothing is served, and the authority is not asked: `log` is nobody's any more.
    #[must_use]
    pub const fn drain(subject: Subject, my_log: LogId, log: LogId, dry_run: bool) -> (Self, ClaimEffect) {
        Self::begin(subject, my_log, None, Purpose::Drain { log, dry_run })
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
            undecided: None,
            missing: None,
            state: State::Listing,
        };
        (claim, ClaimEffect::List)
    }

    /// The same claim, which begins again at most `restarts` times instead of [`MAX_RESTARTS`].
    #[must_use]
    pub fn with_restarts(mut self, restarts: u32) -> Self {
        self.restarts_left = restarts;
        self
    }

    /// Takes the answer to the outstanding effect and says what to do next.
    pub fn apply(&mut self, input: ClaimInput) -> ClaimEffect {
        if let ClaimInput::Refused(reply) | ClaimInput::Failed(reply) = input {
            return self.give_up(reply);
        }
        match (std::mem::replace(&mut self.state, State::Done), input) {
            (State::Listing, ClaimInput::Listed(folder)) => self.listed(folder.newest()),
            (State::Reading(number), ClaimInput::Got(found)) => self.got(number, found),
            (State::Asking(base), ClaimInput::Allowed) => self.allowed(base),
            (State::Sealing(base), ClaimInput::Sealed) => {
                let tail = Tail::Sealed(base.owner.clone());
                self.restore(Some(base), tail)
            }
            (State::Restoring(base, tail), ClaimInput::Restored(restored)) => {
                self.restored(base, &tail, restored)
            }
            (State::Restoring(Some(base), _), ClaimInput::ObjectMissing { object }) => {
                self.miss(base.number, object)
            }
            (State::PuttingBase(base, restored), ClaimInput::BasePut(object)) => {
                self.claim(base.as_deref(), restored, Some(object))
            }
            (State::Creating(manifest), ClaimInput::Created(outcome)) => self.created(manifest, outcome),
            (State::Verifying(manifest, end), ClaimInput::Listed(folder)) => {
                self.verified(manifest, folder, end)
            }
            (state, input) => {
                debug_assert!(false, "{input:?} is no answer in {state:?}");
                self.give_up(ErrorReply::internal("a claim was driven out of step"))
            }
        }
    }

    /// Step 1: find the newest manifest.
    fn listed(&mut self, newest: Option<ManifestNumber>) -> ClaimEffect {
        if newest < self.highest {
            return self.refuse_a_bucket_that_went_back(newest);
        }
        self.highest = newest;
        if let Some(manifest) = self.undecided.take()
            && newest <= Some(manifest.number)
        {
            // Not there yet, or there: the creation reads back whose it is. Anything higher has overtaken it.
            return self.create(manifest);
        }
        if let Some((number, object)) = self.missing.take()
            && newest == Some(number)
        {
            let what = format!("missing, although {number}, which refers to it, is the newest");
            return self.give_up(ErrorReply::corrupt(object, what));
        }
        match (newest, &self.purpose) {
            (Some(number), _) => {
                self.state = State::Reading(number);
                ClaimEffect::Get(number)
            }
            (None, Purpose::Serve) => {
                self.state = State::Asking(None);
                ClaimEffect::AskAuthority { owner: None }
            }
            (None, Purpose::ServeOwn) => ClaimEffect::NotOwned,
            (None, Purpose::Drain { log, .. }) => {
                let object = LogKeys::new(log).folder().to_string();
                let what = format!("holds entries of {}, which has no manifest", self.subject);
                self.give_up(ErrorReply::corrupt(object, what))
            }
        }
    }

    /// The newest manifest is never deleted, so numbers never go down. Where they have, the bucket was emptied, rolled
    /// back or mistaken for another, and to go on would fork the subject's history.
    fn refuse_a_bucket_that_went_back(&mut self, newest: Option<ManifestNumber>) -> ClaimEffect {
        let known = self.highest.unwrap_or(ManifestNumber::FIRST);
        let object = SubjectKeys::new(&self.subject).manifest(known);
        let newest = newest.map_or("none".to_owned(), |newest| newest.to_string());
        let what = format!(
            "missing, and nothing newer is there, but this server has seen it: is this the bucket it used before? \
             ({newest} is the newest)"
        );
        self.give_up(ErrorReply::corrupt(object.to_string(), what))
    }

    /// Steps 2 and 3: whose is it?
    fn got(&mut self, number: ManifestNumber, found: Found) -> ClaimEffect {
        let manifest = match found {
            Found::Manifest(manifest) => manifest,
            Found::Missing => {
                let object = SubjectKeys::new(&self.subject).manifest(number).to_string();
                return self.miss(number, object);
            }
            Found::Unreadable(reply) => return self.give_up(reply),
        };
        match &self.purpose {
            Purpose::Drain { log, .. } if manifest.released || manifest.owner != *log => {
                self.verify(manifest, End::NotNeeded)
            }
            Purpose::Drain { log, .. } => {
                let tail = Tail::Sealed(log.clone());
                self.restore(Some(manifest), tail)
            }
            Purpose::Serve | Purpose::ServeOwn
                if manifest.owner == self.my_log
                    && (!manifest.released || is_there(Mutation::ReleasedIsStillOurs)) =>
            {
                self.restore(Some(manifest), Tail::Own)
            }
            Purpose::ServeOwn => ClaimEffect::NotOwned,
            Purpose::Serve => {
                let owner = (!manifest.released).then(|| manifest.owner.clone());
                self.state = State::Asking(Some(manifest));
                ClaimEffect::AskAuthority { owner }
            }
        }
    }

    fn allowed(&mut self, base: Option<Box<Manifest>>) -> ClaimEffect {
        match base {
            Some(base) if !base.released => {
                let log = base.owner.clone();
                self.state = State::Sealing(base);
                ClaimEffect::Seal(log)
            }
            base => self.restore(base, Tail::None),
        }
    }

    fn restore(&mut self, base: Option<Box<Manifest>>, tail: Tail) -> ClaimEffect {
        self.state = State::Restoring(base.clone(), tail.clone());
        ClaimEffect::Restore { manifest: base, tail }
    }

    /// Step 4: everything that is not in the base must come into it.
    fn restored(&mut self, base: Option<Box<Manifest>>, tail: &Tail, restored: Restored) -> ClaimEffect {
        let base_rev = base.as_ref().map_or(Rev::default(), |base| base.base_rev);
        if restored.rev < base_rev || (restored.rev > base_rev && !restored.above_base) {
            return self
                .give_up(ErrorReply::internal("a state was restored that is not that of its manifest"));
        }
        match (base, tail, &self.purpose) {
            (Some(base), Tail::Own, _) => self.verify(base, End::Serve),
            (Some(base), _, Purpose::Drain { .. }) if !restored.above_base => {
                self.verify(base, End::NotNeeded)
            }
            (Some(base), _, Purpose::Drain { dry_run: true, .. }) => self.verify(base, End::Needed),
            (base, ..) if restored.above_base => {
                let made_for = next_number(base.as_deref());
                self.state = State::PuttingBase(base, restored);
                ClaimEffect::PutBase { made_for }
            }
            (base, ..) => self.claim(base.as_deref(), restored, None),
        }
    }

    /// The manifest that follows `base`, whose entries it inherits up to the state that was restored.
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
            released: matches!(self.purpose, Purpose::Drain { .. }),
            tombstone: false,
            past: base.and_then(|base| base.past.clone()),
            nonce: restored.nonce,
        };
        if let Some(object) = object {
            object.extend(&mut manifest);
            if object.made_for() != manifest.number || object.rev() != restored.rev {
                return self.give_up(ErrorReply::internal("an object was put that is not the one asked for"));
            }
        }
        match manifest.contradiction() {
            Some(what) => {
                self.give_up(ErrorReply::internal(format!("a claim came to a manifest that {what}")))
            }
            None => self.create(Box::new(manifest)),
        }
    }

    /// Step 5: the exclusive creation that decides between claims from the same base.
    fn create(&mut self, manifest: Box<Manifest>) -> ClaimEffect {
        self.state = State::Creating(manifest.clone());
        ClaimEffect::Create(manifest)
    }

    fn created(&mut self, manifest: Box<Manifest>, outcome: Creation) -> ClaimEffect {
        match outcome {
            Creation::Ours => {
                self.highest = self.highest.max(Some(manifest.number));
                if !manifest.released && is_there(Mutation::NoListAfterClaim) {
                    return ClaimEffect::Serve(Verified::new(manifest, Folder::default()));
                }
                let end = if manifest.released { End::Released } else { End::Serve };
                self.verify(manifest, end)
            }
            Creation::Anothers => self.restart("another process claimed the subject first"),
            Creation::Unknown(reply) => {
                self.undecided = Some(manifest);
                self.restart(&reply.message)
            }
        }
    }

    /// Step 6: look again.
    fn verify(&mut self, manifest: Box<Manifest>, end: End) -> ClaimEffect {
        self.state = State::Verifying(manifest, end);
        ClaimEffect::List
    }

    fn verified(&mut self, manifest: Box<Manifest>, folder: Folder, end: End) -> ClaimEffect {
        let newest = folder.newest();
        if newest > Some(manifest.number) {
            return self.restart("another process claimed the subject at the same time");
        }
        if newest < Some(manifest.number) {
            return self.give_up(contract_broken(&manifest));
        }
        match end {
            End::Serve => ClaimEffect::Serve(Verified::new(manifest, folder)),
            End::NotNeeded => ClaimEffect::Drained(Drained::NotNeeded),
            End::Needed => ClaimEffect::Drained(Drained::Needed),
            End::Released => ClaimEffect::Drained(Drained::Released(Verified::new(manifest, folder))),
        }
    }

    /// What `number` refers to is not there. A newer manifest explains that; while there is none, nothing does.
    fn miss(&mut self, number: ManifestNumber, object: String) -> ClaimEffect {
        let why = format!("{object} is missing");
        self.missing = Some((number, object));
        self.restart(&why)
    }

    fn restart(&mut self, why: &str) -> ClaimEffect {
        let Some(left) = self.restarts_left.checked_sub(1) else {
            return self.give_up(ErrorReply::unavailable(format!(
                "could not claim the subject, too often there was something in the way, lastly: {why}"
            )));
        };
        self.restarts_left = left;
        self.state = State::Listing;
        ClaimEffect::List
    }

    fn give_up(&mut self, reply: ErrorReply) -> ClaimEffect {
        self.state = State::Done;
        ClaimEffect::GiveUp(reply)
    }
}

fn next_number(base: Option<&Manifest>) -> ManifestNumber {
    base.map_or(ManifestNumber::FIRST, |base| base.number.next())
}
