//! Opening and claiming a subject, as a machine that decides and does nothing.
//!
//! A process serves a subject only while the subject's newest manifest names its log. [`Claim`] brings that about:
//! it reads the newest manifest, asks the authority where another process may be the owner, has the subject's state
//! brought here, creates the next manifest and looks once more whether that one is still the newest. [`Publish`]
//! takes an owned subject from one manifest to the next. Whoever drives them performs each effect and answers with
//! the input that belongs to it; every rule about who owns what is here.
//!
//! After a gap in its leases a process claims its own subjects anew: somebody may have been allowed to take them over,
//! and only the number of the next manifest, taken first, stops that.
//!
//! Why the second look: numbers of manifests that were collected as garbage can be created a second time, by an
//! answer that was late or a process that slept. Such a manifest is never the newest, so the listing tells.

mod publish;
#[cfg(test)]
mod random_tests;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use dormouse_protocol::{ErrorReply, LogId, Rev, Seq, Slot, Subject, Term};

use crate::api::LeaseGeneration;
use crate::bucket::{BucketKey, CreateOutcome};
use crate::keys::{Folder, ManifestNumber, Nonce, SubjectKeys};
use crate::manifest::{Manifest, SnapshotRef};

pub use publish::{NewBase, Publication, Publish, PublishEffect, PublishInput, garbage, is_newest};

/// How often a claim begins again before it answers `unavailable`. Each time, another process was faster, or an
/// object was collected between listing and reading.
const MAX_RESTARTS: u32 = 8;

/// What the subject's file on the local disk says about itself, from its `meta` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    /// The log of the process that last served the file.
    pub log: LogId,
    /// The lease under which that process claimed the subject; `None`: the file is a copy from the bucket.
    pub lease: Option<LeaseGeneration>,
    /// The term under which it did.
    pub term: Term,
    /// The highest manifest that process knew to be its own and the newest: recorded once it was verified.
    pub manifest: ManifestNumber,
    /// The rev up to which the file holds every change.
    pub applied_rev: Rev,
    /// The rev up to which the bucket is known to hold every change of this file.
    pub in_bucket_rev: Rev,
}

impl LocalFile {
    /// The file holds changes that may be nowhere else.
    fn has_unshipped_changes(&self) -> bool {
        self.applied_rev > self.in_bucket_rev
    }

    /// The file continues what the manifest says: its last writer is the manifest's owner under the same term, and
    /// it holds everything up to the base, so it can be at most ahead.
    fn continues(&self, manifest: &Manifest) -> bool {
        !manifest.tombstone
            && self.log == manifest.owner
            && self.term == manifest.term
            && self.applied_rev >= manifest.base_rev
    }
}

/// What a [`Claim`] is told.
#[derive(Debug)]
pub enum ClaimInput {
    /// The answer to [`ClaimEffect::List`].
    Listed(Folder),
    /// The answer to [`ClaimEffect::Get`]; `None`: there is no such object (any more).
    Got(Option<Bytes>),
    /// The authority allows the claim.
    Allowed,
    /// The authority does not, and this is what the caller is told.
    Refused(ErrorReply),
    /// The local file is set aside.
    LocalSetAside,
    /// The local file is ready to be served from ([`ClaimEffect::ReuseLocal`], [`ClaimEffect::PullSnapshot`],
    /// [`ClaimEffect::StartEmpty`]). `nonce` is fresh, for the manifest that may follow.
    LocalReady {
        /// For the next manifest.
        nonce: Nonce,
    },
    /// The snapshot to be pulled does not exist.
    SnapshotMissing,
    /// The answer to [`ClaimEffect::SnapshotLocal`]: the snapshot is in the bucket, and the local file is ready.
    SnapshotTaken {
        /// The snapshot; its name carries the number and rev asked for.
        snapshot: SnapshotRef,
        /// The seq that a message without one gets next, as of the snapshot.
        next_seq: Seq,
        /// For the next manifest.
        nonce: Nonce,
    },
    /// The answer to [`ClaimEffect::Create`].
    Created(CreateOutcome),
    /// What was asked cannot be done, and this is what the caller is told: the bucket failed, an object is not what
    /// its checksum says, the disk is full.
    Failed(ErrorReply),
}

/// What a [`Claim`] wants next. Exactly one effect is outstanding at any time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimEffect {
    /// List the subject's folder.
    List,
    /// Read this manifest.
    Get(ManifestNumber),
    /// Ask the authority whether this process may claim the subject from `owner` (`None`: nobody's).
    AskAuthority {
        /// The owner by the newest manifest.
        owner: Option<LogId>,
    },
    /// Move the local file to `lost/`: it holds changes that never reached the bucket, and the subject has gone on
    /// without them.
    SetAsideLocal,
    /// Open the local file as it is.
    ReuseLocal,
    /// Bring this snapshot here, check it, and let it take the place of any local file, which holds nothing that
    /// would be missed.
    PullSnapshot(SnapshotRef),
    /// Put an empty file in the place of any local file, which holds nothing that would be missed.
    StartEmpty {
        /// The rev at which the subject goes on; 0 for a new one.
        base_rev: Rev,
        /// The seq that a message without one gets next.
        next_seq: Seq,
    },
    /// Open the local file, which is ahead of everything in the bucket, and put a snapshot of it there.
    SnapshotLocal {
        /// For the snapshot's name.
        made_for: ManifestNumber,
    },
    /// Create this manifest. Asked for again after an unknown outcome, with the same bytes.
    Create(Box<Manifest>),
    /// The subject is this process's: serve it under this manifest. The local file takes over the manifest's log,
    /// term, term base and number, and its base as the rev known to be in the bucket, before the first change.
    Serve {
        /// The newest manifest, verified.
        manifest: Box<Manifest>,
        /// Objects that nothing refers to any more.
        garbage: Vec<BucketKey>,
    },
    /// The claim has failed, and this is what the caller is told. Nothing local was lost.
    GiveUp(ErrorReply),
}

/// What the machine waits for.
#[derive(Debug)]
enum State {
    Listing,
    Reading(Folder, ManifestNumber),
    Asking(Option<Manifest>),
    SettingAside(Option<Manifest>),
    /// The file goes on under the manifest that is there.
    Reopening(Manifest),
    /// The file is to be followed by a new manifest.
    Preparing(Option<Manifest>),
    Creating(Manifest),
    Verifying(Manifest),
    Done,
}

/// Opens a subject: see the [module](self).
#[derive(Debug)]
pub struct Claim {
    subject: Subject,
    my_log: LogId,
    lease: LeaseGeneration,
    local: Option<LocalFile>,
    restarts: u32,
    /// Our manifest whose creation has no known outcome. The local file is ready for it.
    undecided: Option<Manifest>,
    state: State,
}

impl Claim {
    /// Begins to open `subject` for the process that writes `my_log` and holds `lease` now, at the beginning. `local`
    /// describes the file that lies on the local disk, if any. The first effect comes with it.
    #[must_use]
    pub const fn new(
        subject: Subject,
        my_log: LogId,
        lease: LeaseGeneration,
        local: Option<LocalFile>,
    ) -> (Self, ClaimEffect) {
        let claim =
            Self { subject, my_log, lease, local, restarts: 0, undecided: None, state: State::Listing };
        (claim, ClaimEffect::List)
    }

    /// Takes the answer to the outstanding effect and says what to do next.
    pub fn apply(&mut self, input: ClaimInput) -> ClaimEffect {
        if let ClaimInput::Refused(reply) | ClaimInput::Failed(reply) = input {
            return self.give_up(reply);
        }
        match (std::mem::replace(&mut self.state, State::Done), input) {
            (State::Listing, ClaimInput::Listed(folder)) => self.listed(folder),
            (State::Reading(folder, number), ClaimInput::Got(bytes)) => self.got(&folder, number, bytes),
            (State::Asking(base), ClaimInput::Allowed) => self.allowed(base),
            (State::SettingAside(base), ClaimInput::LocalSetAside) => {
                self.local = None;
                self.prepare(base)
            }
            (State::Reopening(manifest), ClaimInput::LocalReady { .. }) => self.verify(manifest),
            (State::Preparing(base), ClaimInput::LocalReady { nonce }) => {
                let manifest = self.next_manifest(base.as_ref(), nonce);
                self.create(manifest)
            }
            (State::Preparing(Some(base)), ClaimInput::SnapshotTaken { snapshot, next_seq, nonce }) => {
                let manifest = Manifest {
                    base_rev: snapshot.rev(),
                    term_base: snapshot.rev(),
                    next_seq,
                    snapshot: Some(snapshot),
                    ..self.next_manifest(Some(&base), nonce)
                };
                self.create(manifest)
            }
            (State::Preparing(_), ClaimInput::SnapshotMissing) => {
                self.restart("the snapshot that the newest manifest refers to is missing")
            }
            (State::Creating(manifest), ClaimInput::Created(outcome)) => self.created(manifest, outcome),
            (State::Verifying(manifest), ClaimInput::Listed(folder)) => self.verified(manifest, &folder),
            (state, input) => {
                debug_assert!(false, "{input:?} is no answer in {state:?}");
                self.give_up(ErrorReply::internal("a claim was driven out of step"))
            }
        }
    }

    /// Step 1: find the newest manifest.
    fn listed(&mut self, folder: Folder) -> ClaimEffect {
        let newest = folder.newest();
        if let Some(effect) = self.refuse_a_bucket_that_went_back(newest) {
            return effect;
        }
        if let Some(effect) = self.settle_undecided(newest) {
            return effect;
        }
        match newest {
            None => {
                self.state = State::Asking(None);
                ClaimEffect::AskAuthority { owner: None }
            }
            Some(number) => {
                self.state = State::Reading(folder, number);
                ClaimEffect::Get(number)
            }
        }
    }

    /// The newest manifest is never deleted, so numbers never go down. Where they have, the bucket was emptied, rolled
    /// back or mistaken for another, and to go on would fork the subject's history.
    fn refuse_a_bucket_that_went_back(&mut self, newest: Option<ManifestNumber>) -> Option<ClaimEffect> {
        let known = self.local.as_ref()?.manifest;
        if newest.is_some_and(|newest| newest >= known) {
            return None;
        }
        let object = SubjectKeys::new(&self.subject).manifest(known);
        let what = format!(
            "missing, and nothing newer is there, but this server has served the subject under it: is this the \
             bucket it used before? ({} is the newest)",
            newest.map_or("none".to_owned(), |newest| newest.to_string())
        );
        Some(self.give_up(ErrorReply::corrupt(object.to_string(), what)))
    }

    /// A manifest of ours whose creation had no known outcome: not there yet → the same again; overtaken → forget it.
    fn settle_undecided(&mut self, newest: Option<ManifestNumber>) -> Option<ClaimEffect> {
        let manifest = self.undecided.take()?;
        if newest.is_some_and(|newest| newest > manifest.number) {
            return None;
        }
        // Also when its number is taken: the creation reads back whose it is.
        Some(self.create(manifest))
    }

    /// Steps 2 and 3: whose is it?
    fn got(&mut self, folder: &Folder, number: ManifestNumber, bytes: Option<Bytes>) -> ClaimEffect {
        let Some(bytes) = bytes else {
            return self.restart("the newest manifest was replaced while it was read");
        };
        let manifest = match Manifest::decode(&self.subject, number, &bytes) {
            Ok(manifest) => manifest,
            Err(error) => return self.give_up(error.into()),
        };
        debug_assert_eq!(folder.newest(), Some(number));
        if manifest.released || manifest.owner != self.my_log {
            let owner = (!manifest.released).then(|| manifest.owner.clone());
            self.state = State::Asking(Some(manifest));
            return ClaimEffect::AskAuthority { owner };
        }
        let lease = self.lease;
        if self.local.as_ref().is_some_and(|local| local.lease == Some(lease) && local.continues(&manifest)) {
            self.state = State::Reopening(manifest);
            return ClaimEffect::ReuseLocal;
        }
        // Mine, and yet to be claimed anew, for one of two reasons. Changes that I made after the base may have gone
        // with the file; they had revs under this term, which must not be given to others. Or there was a gap in my
        // leases since I claimed it: somebody may have been allowed to take the subject over from this very manifest
        // and be about to do so, which no listing tells. The next manifest takes the number that they need.
        self.allowed(Some(manifest))
    }

    /// The claim may go on. First of all, nothing that exists only here may be written over.
    fn allowed(&mut self, base: Option<Manifest>) -> ClaimEffect {
        let continues = |local: &LocalFile| base.as_ref().is_some_and(|base| local.continues(base));
        if self.local.as_ref().is_some_and(|local| local.has_unshipped_changes() && !continues(local)) {
            self.state = State::SettingAside(base);
            return ClaimEffect::SetAsideLocal;
        }
        self.prepare(base)
    }

    /// Step 4: have the state of the base here, and everything of it in the bucket.
    fn prepare(&mut self, base: Option<Manifest>) -> ClaimEffect {
        let effect = match &base {
            None => ClaimEffect::StartEmpty { base_rev: Rev::default(), next_seq: Seq::new(1) },
            Some(base) => match &self.local {
                Some(local) if local.continues(base) && local.applied_rev > base.base_rev => {
                    ClaimEffect::SnapshotLocal { made_for: base.number.next() }
                }
                Some(local) if local.continues(base) => ClaimEffect::ReuseLocal,
                _ => match base.snapshot {
                    Some(snapshot) => ClaimEffect::PullSnapshot(snapshot),
                    None => ClaimEffect::StartEmpty { base_rev: base.base_rev, next_seq: base.next_seq },
                },
            },
        };
        if matches!(effect, ClaimEffect::PullSnapshot(_) | ClaimEffect::StartEmpty { .. }) {
            self.local = None;
        }
        self.state = State::Preparing(base);
        effect
    }

    /// The manifest of a claim that inherits what `base` refers to.
    fn next_manifest(&self, base: Option<&Manifest>, nonce: Nonce) -> Manifest {
        let inherited = base.map_or(Rev::default(), |base| base.base_rev);
        Manifest {
            subject: self.subject.clone(),
            number: base.map_or(ManifestNumber::FIRST, |base| base.number.next()),
            term: base.map_or(Term::default(), |base| base.term).next(),
            term_base: inherited,
            owner: self.my_log.clone(),
            base_rev: inherited,
            next_seq: base.map_or(Seq::new(1), |base| base.next_seq),
            first_slot: Slot::default(),
            snapshot: base.and_then(|base| base.snapshot),
            deltas: Vec::new(),
            terms: Vec::new(),
            released: false,
            tombstone: false,
            nonce,
        }
    }

    /// Step 5: the exclusive creation that decides between claims from the same base.
    fn create(&mut self, manifest: Manifest) -> ClaimEffect {
        self.state = State::Creating(manifest.clone());
        ClaimEffect::Create(Box::new(manifest))
    }

    fn created(&mut self, manifest: Manifest, outcome: CreateOutcome) -> ClaimEffect {
        match outcome {
            CreateOutcome::Ours => self.verify(manifest),
            CreateOutcome::Anothers => self.restart("another process claimed the subject first"),
            CreateOutcome::Unknown(error) => {
                self.undecided = Some(manifest);
                self.restart(&error.to_string())
            }
        }
    }

    /// Step 6: look again.
    fn verify(&mut self, manifest: Manifest) -> ClaimEffect {
        self.state = State::Verifying(manifest);
        ClaimEffect::List
    }

    fn verified(&mut self, manifest: Manifest, folder: &Folder) -> ClaimEffect {
        match folder.newest() {
            Some(newest) if newest == manifest.number => {
                ClaimEffect::Serve { garbage: garbage(folder, &manifest), manifest: Box::new(manifest) }
            }
            Some(newest) if newest > manifest.number => {
                self.restart("another process claimed the subject at the same time")
            }
            _ => self.give_up(ErrorReply::corrupt(
                SubjectKeys::new(&self.subject).manifest(manifest.number).to_string(),
                "written, but a listing does not show it: the bucket does not keep its contract",
            )),
        }
    }

    fn restart(&mut self, why: &str) -> ClaimEffect {
        self.restarts += 1;
        if self.restarts > MAX_RESTARTS {
            return self.give_up(ErrorReply::unavailable(format!(
                "could not claim the subject in {} attempts, lastly: {why}",
                self.restarts
            )));
        }
        self.state = State::Listing;
        ClaimEffect::List
    }

    fn give_up(&mut self, reply: ErrorReply) -> ClaimEffect {
        self.state = State::Done;
        ClaimEffect::GiveUp(reply)
    }
}
