//! Taking a step: what an [`Action`] does to a world. The parts that belong to a log, to claims, to publications and to
//! collectors are in files of their own.

use std::rc::Rc;

use dormouse_protocol::Slot;
use dormouse_storage::keys::{Folder, Nonce};
use dormouse_storage::manifest::Manifest;
use ulid::Ulid;

use crate::action::{Action, Job};
use crate::bucket::{BaseName, LogObjects, Orphan, SlotObject};
use crate::check::Violation;
use crate::hash::Part;
use crate::process::{Call, DrainStage, Place, Process, Publishing, SealWant, Want};
use crate::settings::{Coverage, Lie, Settings};
use crate::world::World;

/// A world on its way from one state to the next.
#[derive(Debug)]
pub struct Stepper<'a> {
    /// The world.
    pub world: World,
    /// The bounds.
    pub settings: &'a Settings,
    /// What was come by.
    pub coverage: &'a mut Coverage,
    /// The first promise that was broken.
    pub broken: Option<Violation>,
}

/// A creation that somebody waits for.
#[derive(Debug, Clone)]
pub enum Creating {
    /// Of a slot.
    Slot(u8, Slot, SlotObject),
    /// Of a manifest.
    Manifest(u8, Rc<Manifest>),
}

impl World {
    /// The world after a step.
    ///
    /// # Errors
    /// The promise that the step broke.
    pub fn step(
        &self,
        settings: &Settings,
        action: Action,
        coverage: &mut Coverage,
    ) -> Result<Self, Violation> {
        let mut stepper = Stepper { world: self.clone(), settings, coverage, broken: None };
        stepper.take(action);
        stepper.tidy();
        stepper.check_rebuilding();
        match stepper.broken {
            Some(violation) => Err(violation),
            None => Ok(stepper.world),
        }
    }
}

impl Stepper<'_> {
    fn take(&mut self, action: Action) {
        match action {
            Action::Write(p, x) => self.write(p, x),
            Action::Read(p, x) => self.read(p, x),
            Action::LandSegment(p) => self.land_segment(p),
            Action::SegmentAnswered(p) => self.segment_answered(p),
            Action::LoseSegmentAnswer(p) => {
                self.coverage.lost_answers += 1;
                if let Some(put) = &mut self.process(p).put {
                    put.call = Call::Sent;
                }
            }
            Action::Look(p) => self.look(p, false),
            Action::Looked(p) => self.looked(p),
            Action::RogueLook(p) => self.look(p, true),
            Action::RogueLooked(p) => self.rogue_looked(p),
            Action::Open(p, x) => self.open(p, x),
            Action::Step(p, job) => self.go_on(p, job),
            Action::Land(p, job) => self.land(p, job),
            Action::Answered(p, job) => self.answered(p, job),
            Action::LoseAnswer(p, job) => {
                self.coverage.lost_answers += 1;
                self.set_call(p, job, Call::Sent);
            }
            Action::GiveUp(p, job) => self.give_up(p, job),
            Action::Duplicate(p, job) => {
                self.world.ghost.change().duplicates -= 1;
                if let Some((creating, _)) = self.call_of(p, job) {
                    self.orphan(creating);
                }
            }
            Action::DuplicateSegment(p) => {
                self.world.ghost.change().duplicates -= 1;
                if let Some(creating) = self.segment_of(p) {
                    self.orphan(creating);
                }
            }
            Action::Compact(p, x) => self.compact(p, x),
            Action::Release(p, x) => self.release(p, x),
            Action::Resume(p, x) => self.resume(p, x),
            Action::Evict(p, x) => self.evict(p, x),
            Action::Crash(p) => {
                self.world.ghost.change().crashes -= 1;
                self.end_log(p, true);
            }
            Action::LoseLease(p) => {
                self.world.ghost.change().lapses -= 1;
                self.process(p).lease = None;
            }
            Action::GrantLease(p) => self.grant_lease(p),
            Action::DeclareDead(log) => {
                let ghost = self.world.ghost.change();
                ghost.dead |= 1 << log;
                ghost.ever_dead |= 1 << log;
            }
            Action::Forget => {
                let ghost = self.world.ghost.change();
                ghost.oblivions -= 1;
                ghost.dead = 0;
            }
            Action::LandOrphan(at) => self.land_orphan(at),
            Action::DeleteManifest(x, number) => self.delete_manifest(x, number),
            Action::DeleteBases(x) => self.delete_bases(x),
            Action::DeleteSlot(log, slot) => self.delete_slot(log, slot),
            Action::Drain(p, log) => self.begin_drain(p, log),
        }
    }

    /// A process, to be changed.
    pub fn process(&mut self, p: u8) -> &mut Process {
        self.world.processes[usize::from(p)].change()
    }

    /// A process, to be looked at.
    #[must_use]
    pub fn peek(&self, p: u8) -> &Process {
        &self.world.processes[usize::from(p)]
    }

    /// A log, to be looked at.
    #[must_use]
    pub fn log(&self, log: u8) -> &LogObjects {
        &self.world.bucket.logs[usize::from(log)]
    }

    /// Whether the driver tells this lie.
    #[must_use]
    pub fn lies(&self, lie: Lie) -> bool {
        self.settings.lie == Some(lie)
    }

    /// Takes note of a broken promise; the first one counts.
    pub fn violate(&mut self, violation: Violation) {
        self.broken.get_or_insert(violation);
    }

    /// A nonce that nobody has drawn before.
    pub fn nonce(&mut self, p: u8) -> Nonce {
        let process = self.process(p);
        process.nonces += 1;
        let log = process.log.unwrap_or(u8::MAX);
        Nonce::new(Ulid(u128::from(log) << 8 | u128::from(process.nonces)))
    }

    /// The listing of a subject's folder. Of the manifests, machines look at the newest only.
    #[must_use]
    pub fn listing(&self, x: u8) -> Folder {
        let folder = &self.world.bucket.folders[usize::from(x)];
        let newest = folder.newest().map(|manifest| manifest.number);
        let mut listing = Folder { manifests: newest.into_iter().collect(), ..Folder::default() };
        for base in &folder.bases {
            match base.name {
                BaseName::Snapshot(name) => listing.snapshots.push(name),
                BaseName::Delta(name) => listing.deltas.push(name),
            }
        }
        listing
    }

    /// The log of a process, born now if need be.
    pub fn log_of(&mut self, p: u8) -> u8 {
        if let Some(log) = self.peek(p).log {
            return log;
        }
        let log = self.world.bucket.logs.len() as u8;
        self.world.bucket.logs.push(Part::new(LogObjects::born()));
        self.process(p).log = Some(log);
        log
    }

    /// Lets a request reach the bucket: whether it created something.
    pub fn create(&mut self, creating: &Creating) -> bool {
        match creating {
            Creating::Slot(log, slot, object) => {
                let objects = &self.world.bucket.logs[usize::from(*log)];
                let hole = objects.highest().is_some_and(|highest| highest > *slot);
                if objects.get(*slot).is_some() {
                    return false;
                }
                match object {
                    SlotObject::Data(_) => self.coverage.segments_in_holes += u64::from(hole),
                    SlotObject::Seal(_) => {
                        self.coverage.seals += 1;
                        self.coverage.void_seals += u64::from(hole);
                    }
                    SlotObject::Birth => {}
                }
                self.world.bucket.logs[usize::from(*log)].change().create(*slot, object.clone())
            }
            Creating::Manifest(x, manifest) => {
                let folder = &mut self.world.bucket.folders[usize::from(*x)];
                if folder.get(manifest.number).is_some() {
                    return false;
                }
                folder.change().create(manifest)
            }
        }
    }

    /// What a creation means that was answered "there is something": production's `create_once` reads it back.
    /// `None`: nothing is there (any more), so it is sent again.
    fn read_back(&mut self, creating: &Creating) -> Option<bool> {
        let ours = match creating {
            Creating::Slot(log, slot, object) => self.log(*log).get(*slot).map(|there| there == object),
            Creating::Manifest(x, manifest) => {
                let folder = &self.world.bucket.folders[usize::from(*x)];
                folder.get(manifest.number).map(|there| there == manifest)
            }
        };
        self.coverage.own_nonce += u64::from(ours == Some(true));
        ours
    }

    /// The definite meaning of an answer; `None`: it is sent again.
    pub fn outcome(&mut self, creating: &Creating, created: bool) -> Option<bool> {
        if created { Some(true) } else { self.read_back(creating) }
    }

    /// Leaves a request in the network that nobody waits for.
    pub fn orphan(&mut self, creating: Creating) {
        let orphan = match creating {
            Creating::Slot(log, slot, object) => Orphan::Slot { log, slot, object },
            Creating::Manifest(subject, manifest) => Orphan::Manifest { subject, manifest },
        };
        if !self.world.bucket.network.contains(&orphan) {
            self.world.bucket.network.change().push(orphan);
        }
    }

    fn land_orphan(&mut self, at: u8) {
        let orphan = self.world.bucket.network.change().remove(usize::from(at));
        let creating = match orphan {
            Orphan::Slot { log, slot, object } => {
                match object {
                    SlotObject::Seal(_) => self.coverage.late_seals += 1,
                    _ => self.coverage.late_segments += 1,
                }
                Creating::Slot(log, slot, object)
            }
            Orphan::Manifest { subject, manifest } => {
                self.coverage.late_manifests += 1;
                Creating::Manifest(subject, manifest)
            }
        };
        self.create(&creating);
    }

    /// The segment of a process that is in flight.
    #[must_use]
    pub fn segment_of(&self, p: u8) -> Option<Creating> {
        let process = self.peek(p);
        let (put, log) = process.put.as_ref().zip(process.log)?;
        Some(Creating::Slot(log, put.slot, SlotObject::Data(Rc::clone(&put.entries))))
    }

    /// What a job creates, and how far that has come.
    #[must_use]
    pub fn call_of(&self, p: u8, job: Job) -> Option<(Creating, Call)> {
        let of_seal = |log: u8, want: &SealWant| match want {
            SealWant::Create(slot, nonce, call) => {
                Some((Creating::Slot(log, *slot, SealWant::object(*nonce)), *call))
            }
            _ => None,
        };
        let of_want = |x: u8, want: &Want| match want {
            Want::Seal(sealing) => of_seal(sealing.log, &sealing.want),
            Want::Create(manifest, call) => Some((Creating::Manifest(x, Rc::clone(manifest)), *call)),
            _ => None,
        };
        let process = self.peek(p);
        match job {
            Job::Subject(x) => match &process.places[usize::from(x)] {
                Place::Opening(opening) => of_want(x, &opening.want),
                Place::Serving(serving) => {
                    let (manifest, call) = serving.publishing.as_ref()?.call.as_ref()?;
                    Some((Creating::Manifest(x, Rc::clone(manifest)), *call))
                }
                Place::Closed => None,
            },
            Job::Drain => match &process.drain.as_ref()?.stage {
                DrainStage::Seals(sealing) => of_seal(sealing.log, &sealing.want),
                DrainStage::Settles(opening) => of_want(opening.subject, &opening.want),
            },
        }
    }

    /// Takes note of how far a job's creation has come.
    pub fn set_call(&mut self, p: u8, job: Job, now: Call) {
        fn in_want(want: &mut Want) -> Option<&mut Call> {
            match want {
                Want::Seal(sealing) => in_seal(&mut sealing.want),
                Want::Create(_, call) => Some(call),
                _ => None,
            }
        }
        const fn in_seal(want: &mut SealWant) -> Option<&mut Call> {
            match want {
                SealWant::Create(_, _, call) => Some(call),
                _ => None,
            }
        }
        let process = self.process(p);
        let call = match job {
            Job::Subject(x) => match &mut process.places[usize::from(x)] {
                Place::Opening(opening) => in_want(&mut opening.want),
                Place::Serving(serving) => match &mut serving.publishing {
                    Some(Publishing { call: Some((_, call)), .. }) => Some(call),
                    _ => None,
                },
                Place::Closed => None,
            },
            Job::Drain => process.drain.as_mut().and_then(|drain| match &mut drain.stage {
                DrainStage::Seals(sealing) => in_seal(&mut sealing.want),
                DrainStage::Settles(opening) => in_want(&mut opening.want),
            }),
        };
        if let Some(call) = call {
            *call = now;
        }
    }

    fn land(&mut self, p: u8, job: Job) {
        let Some((creating, _)) = self.call_of(p, job) else { return };
        let created = self.create(&creating);
        if created && let Creating::Manifest(x, manifest) = &creating {
            let newest = self.world.bucket.folders[usize::from(*x)].newest().map(|newest| newest.number);
            if newest > Some(manifest.number) {
                let releases = manifest.released;
                let publishes = self.peek(p).served(*x).is_some() && job != Job::Drain;
                match (publishes, releases) {
                    (false, _) => self.coverage.recycled_by_claim += 1,
                    (true, false) => self.coverage.recycled_by_compaction += 1,
                    (true, true) => self.coverage.recycled_by_release += 1,
                }
            }
        }
        self.set_call(p, job, Call::Answered(created));
    }

    fn answered(&mut self, p: u8, job: Job) {
        let Some((creating, Call::Answered(created))) = self.call_of(p, job) else { return };
        let Some(ours) = self.outcome(&creating, created) else {
            return self.set_call(p, job, Call::Sent);
        };
        self.tell_created(p, job, Some(ours));
    }

    fn give_up(&mut self, p: u8, job: Job) {
        self.world.ghost.change().unknowns -= 1;
        let Some((creating, call)) = self.call_of(p, job) else { return };
        if call == Call::Sent {
            self.orphan(creating);
        }
        self.tell_created(p, job, None);
    }

    /// Tells a job's machine how its creation ended; `None`: not known.
    fn tell_created(&mut self, p: u8, job: Job, ours: Option<bool>) {
        match job {
            Job::Subject(x) if self.peek(p).served(x).is_some() => self.publication_created(p, x, ours),
            _ => self.job_created(p, job, ours),
        }
    }
}
