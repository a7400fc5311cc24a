//! Executes a step: the effect of an [`Action`] on a world. The parts for logs, claims, publishes and collectors are in
//! their own files.

use std::rc::Rc;

use dormouse_format::keys::{Folder, Nonce};
use dormouse_format::manifest::Manifest;
use dormouse_protocol::Slot;
use ulid::Ulid;

use crate::action::{Action, Job};
use crate::bucket::{BaseName, DetachedCreate, LogObjects, SlotObject};
use crate::check::Violation;
use crate::hash::Part;
use crate::process::{Call, DrainStage, Process, Publishing, SealWant, SubjectRole, Want};
use crate::settings::{BrokenRule, Coverage, Settings};
use crate::world::World;

/// A world between two states.
#[derive(Debug)]
pub struct Stepper<'a> {
    /// The world.
    pub world: World,
    /// The bounds.
    pub settings: &'a Settings,
    /// Counts of the covered cases.
    pub coverage: &'a mut Coverage,
    /// The first violated guarantee.
    pub broken: Option<Violation>,
}

/// An awaited create.
#[derive(Debug, Clone)]
pub enum Creating {
    /// Of a slot.
    Slot(u8, Slot, SlotObject),
    /// Of a manifest.
    Manifest(u8, Rc<Manifest>),
}

impl World {
    /// Returns the world after a step.
    ///
    /// # Errors
    /// The guarantee that the step violates.
    pub fn step(
        &self,
        settings: &Settings,
        action: Action,
        coverage: &mut Coverage,
    ) -> Result<Self, Violation> {
        let mut stepper = Stepper { world: self.clone(), settings, coverage, broken: None };
        stepper.take(action);
        stepper.canonicalize();
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
            Action::Probe(p) => self.probe(p, false),
            Action::ProbeAnswered(p) => self.probe_answered(p),
            Action::RogueProbe(p) => self.probe(p, true),
            Action::RogueProbeAnswered(p) => self.rogue_probe_answered(p),
            Action::Open(p, x) => self.open(p, x),
            Action::Step(p, job) => self.continue_job(p, job),
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
                    self.detach(creating);
                }
            }
            Action::DuplicateSegment(p) => {
                self.world.ghost.change().duplicates -= 1;
                if let Some(creating) = self.segment_of(p) {
                    self.detach(creating);
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
                ghost.state_losses -= 1;
                ghost.dead = 0;
            }
            Action::LandDetached(at) => self.land_detached(at),
            Action::DeleteManifest(x, number) => self.delete_manifest(x, number),
            Action::DeleteBases(x) => self.delete_bases(x),
            Action::DeleteSlot(log, slot) => self.delete_slot(log, slot),
            Action::Drain(p, log) => self.begin_drain(p, log),
        }
    }

    /// Returns a process for a change.
    pub fn process(&mut self, p: u8) -> &mut Process {
        self.world.processes[usize::from(p)].change()
    }

    /// Returns a process for reading.
    #[must_use]
    pub fn peek(&self, p: u8) -> &Process {
        &self.world.processes[usize::from(p)]
    }

    /// Returns a log for reading.
    #[must_use]
    pub fn log(&self, log: u8) -> &LogObjects {
        &self.world.bucket.logs[usize::from(log)]
    }

    /// Returns whether the driver breaks this rule.
    #[must_use]
    pub fn breaks_rule(&self, rule: BrokenRule) -> bool {
        self.settings.broken_rule == Some(rule)
    }

    /// Records a violated guarantee; the first one counts.
    pub fn violate(&mut self, violation: Violation) {
        self.broken.get_or_insert(violation);
    }

    /// Returns an unused nonce.
    pub fn nonce(&mut self, p: u8) -> Nonce {
        let process = self.process(p);
        process.nonces += 1;
        let log = process.log.unwrap_or(u8::MAX);
        Nonce::new(Ulid(u128::from(log) << 8 | u128::from(process.nonces)))
    }

    /// Lists a subject's folder. The machines read only the newest manifest of it.
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

    /// Returns the log of a process, which is created if need be.
    pub fn log_of(&mut self, p: u8) -> u8 {
        if let Some(log) = self.peek(p).log {
            return log;
        }
        let log = self.world.bucket.logs.len() as u8;
        self.world.bucket.logs.push(Part::new(LogObjects::with_header()));
        self.process(p).log = Some(log);
        log
    }

    /// Lets a request reach the bucket. Returns whether it created an object.
    pub fn create(&mut self, creating: &Creating) -> bool {
        match creating {
            Creating::Slot(log, slot, object) => {
                let objects = &self.world.bucket.logs[usize::from(*log)];
                let hole = objects.highest().is_some_and(|highest| highest > *slot);
                if objects.get(*slot).is_some() {
                    return false;
                }
                match object {
                    SlotObject::Data(_) => self.coverage.segments_in_gaps += u64::from(hole),
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

    /// Returns the meaning of the reply "object exists" to a create: production's `create_once` reads the object back.
    /// `None`: no object is there, or it is gone, so the create is sent again.
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

    /// Returns the definite meaning of a reply; `None`: the create is sent again.
    pub fn outcome(&mut self, creating: &Creating, created: bool) -> Option<bool> {
        if created { Some(true) } else { self.read_back(creating) }
    }

    /// Leaves a request without a waiting sender in the network.
    pub fn detach(&mut self, creating: Creating) {
        let orphan = match creating {
            Creating::Slot(log, slot, object) => DetachedCreate::Slot { log, slot, object },
            Creating::Manifest(subject, manifest) => DetachedCreate::Manifest { subject, manifest },
        };
        if !self.world.bucket.network.contains(&orphan) {
            self.world.bucket.network.change().push(orphan);
        }
    }

    fn land_detached(&mut self, at: u8) {
        let orphan = self.world.bucket.network.change().remove(usize::from(at));
        let creating = match orphan {
            DetachedCreate::Slot { log, slot, object } => {
                match object {
                    SlotObject::Seal(_) => self.coverage.late_seals += 1,
                    _ => self.coverage.late_segments += 1,
                }
                Creating::Slot(log, slot, object)
            }
            DetachedCreate::Manifest { subject, manifest } => {
                self.coverage.late_manifests += 1;
                Creating::Manifest(subject, manifest)
            }
        };
        self.create(&creating);
    }

    /// Returns the segment of a process in flight.
    #[must_use]
    pub fn segment_of(&self, p: u8) -> Option<Creating> {
        let process = self.peek(p);
        let (put, log) = process.put.as_ref().zip(process.log)?;
        Some(Creating::Slot(log, put.slot, SlotObject::Data(Rc::clone(&put.entries))))
    }

    /// Returns the object that a job creates, and the progress of the create.
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
                SubjectRole::Opening(opening) => of_want(x, &opening.want),
                SubjectRole::Serving(serving) => {
                    let (manifest, call) = serving.publishing.as_ref()?.call.as_ref()?;
                    Some((Creating::Manifest(x, Rc::clone(manifest)), *call))
                }
                SubjectRole::Closed => None,
            },
            Job::Drain => match &process.drain.as_ref()?.stage {
                DrainStage::Sealing(sealing) => of_seal(sealing.log, &sealing.want),
                DrainStage::Settling(opening) => of_want(opening.subject, &opening.want),
            },
        }
    }

    /// Sets the progress of a job's create.
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
                SubjectRole::Opening(opening) => in_want(&mut opening.want),
                SubjectRole::Serving(serving) => match &mut serving.publishing {
                    Some(Publishing { call: Some((_, call)), .. }) => Some(call),
                    _ => None,
                },
                SubjectRole::Closed => None,
            },
            Job::Drain => process.drain.as_mut().and_then(|drain| match &mut drain.stage {
                DrainStage::Sealing(sealing) => in_seal(&mut sealing.want),
                DrainStage::Settling(opening) => in_want(&mut opening.want),
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
        self.report_created(p, job, Some(ours));
    }

    fn give_up(&mut self, p: u8, job: Job) {
        self.world.ghost.change().unknowns -= 1;
        let Some((creating, call)) = self.call_of(p, job) else { return };
        if call == Call::Sent {
            self.detach(creating);
        }
        self.report_created(p, job, None);
    }

    /// Reports the result of its create to a job's machine; `None`: indeterminate.
    fn report_created(&mut self, p: u8, job: Job, ours: Option<bool>) {
        match job {
            Job::Subject(x) if self.peek(p).served(x).is_some() => self.publication_created(p, x, ours),
            _ => self.job_created(p, job, ours),
        }
    }
}
