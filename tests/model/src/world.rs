//! One state of the modelled world, and its possible next steps.

use std::hash::Hash;
use std::rc::Rc;

use dormouse_format::keys::{ManifestNumber, Nonce};
use dormouse_format::manifest::Manifest;
use dormouse_protocol::{Rev, Seq, Slot, Term};
use ulid::Ulid;

use crate::action::{Action, Job};
use crate::bucket::{Bucket, DetachedCreate, FolderObjects, LogObjects, log_id, subject};
use crate::hash::{Hash128, Part};
use crate::process::{Call, DrainStage, Leaving, Process, Revs, SealWant, Serving, SubjectRole, Want};
use crate::settings::{BrokenRule, MAX_REVS, MAX_SUBJECTS, Settings};

/// State of the world that no process knows, and the remaining budgets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ghost {
    /// The acknowledged writes, by subject.
    pub acknowledged: [Revs; MAX_SUBJECTS],
    /// The number of writes, by subject.
    pub written: [u8; MAX_SUBJECTS],
    /// The rest of each budget.
    pub compactions: u8,
    /// See [`Settings`].
    pub releases: u8,
    /// See [`Settings`].
    pub crashes: u8,
    /// See [`Settings`].
    pub reads: u8,
    /// See [`Settings`].
    pub evictions: u8,
    /// See [`Settings`].
    pub unknowns: u8,
    /// See [`Settings`].
    pub duplicates: u8,
    /// See [`Settings`].
    pub drains: u8,
    /// See [`Settings`].
    pub state_losses: u8,
    /// See [`Settings`].
    pub lapses: u8,
    /// Leases granted.
    pub leases: u8,
    /// Logs whose server the coordinator has declared dead, by bit.
    pub dead: u32,
    /// The same, including those that the coordinator has lost the record of.
    pub ever_dead: u32,
}

/// A state.
#[derive(Debug, Clone)]
pub struct World {
    /// The objects in the bucket and in flight.
    pub bucket: Bucket,
    /// The processes.
    pub processes: Vec<Part<Process>>,
    /// The rest.
    pub ghost: Part<Ghost>,
}

impl World {
    /// The initial state: the first process owns every subject by manifest 1, unless the subjects start without a
    /// manifest.
    #[must_use]
    pub fn begin(settings: &Settings) -> Self {
        let ghost = Ghost {
            acknowledged: [[0; MAX_REVS]; MAX_SUBJECTS],
            written: [0; MAX_SUBJECTS],
            compactions: settings.compactions,
            releases: settings.releases,
            crashes: settings.crashes,
            reads: settings.reads,
            evictions: settings.evictions,
            unknowns: settings.unknowns,
            duplicates: settings.duplicates,
            drains: settings.drains,
            state_losses: settings.state_losses,
            lapses: settings.lapses.unwrap_or(0),
            leases: 0,
            dead: 0,
            ever_dead: 0,
        };
        let mut processes = vec![Process::new(settings.opens); usize::from(settings.processes)];
        let mut logs = Vec::new();
        let mut folders = vec![FolderObjects::default(); usize::from(settings.subjects)];
        if !settings.empty {
            logs.push(Part::new(LogObjects::with_header()));
            processes[0].log = Some(0);
            for (index, folder) in folders.iter_mut().enumerate() {
                let manifest = first_manifest(index as u8);
                folder.manifests.push(Rc::new(manifest.clone()));
                processes[0].places[index] = SubjectRole::Serving(Box::new(Serving {
                    manifest: Box::new(manifest),
                    ops: Vec::new(),
                    leaving: Leaving::No,
                    publishing: None,
                }));
            }
        }
        let folders = folders.into_iter().map(Part::new).collect();
        Self {
            bucket: Bucket { logs, folders, network: Part::new(Vec::new()) },
            processes: processes.into_iter().map(Part::new).collect(),
            ghost: Part::new(ghost),
        }
    }

    /// Identifies the world. Processes do not know each other's numbers, so worlds that differ only in them are equal.
    #[must_use]
    pub fn hash(&self) -> u128 {
        let mut parts: Vec<u128> = self.processes.iter().map(Part::hash).collect();
        parts.sort_unstable();
        parts.extend(self.bucket.logs.iter().map(Part::hash));
        parts.extend(self.bucket.folders.iter().map(Part::hash));
        parts.push(self.bucket.network.hash());
        parts.push(self.ghost.hash());
        Hash128::of(&parts)
    }

    /// Returns every possible next step.
    #[must_use]
    pub fn actions(&self, settings: &Settings) -> Vec<Action> {
        let mut actions = Vec::new();
        for p in 0..self.processes.len() as u8 {
            self.log_actions(p, &mut actions);
            for x in 0..settings.subjects {
                self.subject_actions(settings, p, x, &mut actions);
            }
            self.drain_actions(p, &mut actions);
        }
        self.bucket_actions(settings, &mut actions);
        if settings.lapses.is_some() {
            self.lease_actions(settings, &mut actions);
        }
        actions
    }

    fn log_actions(&self, p: u8, actions: &mut Vec<Action>) {
        let process = &self.processes[usize::from(p)];
        match process.put.as_ref().map(|put| put.call) {
            Some(Call::Sent) => {
                actions.push(Action::LandSegment(p));
                if self.ghost.duplicates > 0 {
                    actions.push(Action::DuplicateSegment(p));
                }
            }
            Some(Call::Answered(_)) => {
                actions.extend([Action::SegmentAnswered(p), Action::LoseSegmentAnswer(p)]);
            }
            None => {}
        }
        match process.probe.map(|probe| probe.found) {
            Some(None) => actions.push(Action::Probe(p)),
            Some(Some(_)) => actions.push(Action::ProbeAnswered(p)),
            None => {}
        }
        match process.rogue_probe.map(|probe| probe.found) {
            Some(None) => actions.push(Action::RogueProbe(p)),
            Some(Some(_)) => actions.push(Action::RogueProbeAnswered(p)),
            None => {}
        }
        if self.ghost.crashes > 0 && process.log.is_some() {
            actions.push(Action::Crash(p));
        }
    }

    /// Time is not modelled. The model assumes that a process stops using its lease before the coordinator declares its
    /// server dead.
    fn lease_actions(&self, settings: &Settings, actions: &mut Vec<Action>) {
        let is_dead = |log: u8| self.ghost.dead & 1 << log != 0;
        let ignores_leases = settings.broken_rule == Some(BrokenRule::DeadDespiteLease);
        for (p, process) in self.processes.iter().enumerate() {
            let Some(log) = process.log else { continue };
            match process.lease {
                Some(_) if self.ghost.lapses > 0 => actions.push(Action::LoseLease(p as u8)),
                None if !is_dead(log) => actions.push(Action::GrantLease(p as u8)),
                _ => {}
            }
        }
        for log in 0..self.bucket.logs.len() as u8 {
            let leased =
                self.processes.iter().any(|process| process.log == Some(log) && process.lease.is_some());
            if !is_dead(log)
                && (ignores_leases || !leased)
                && !self.bucket.logs[usize::from(log)].slots.is_empty()
            {
                actions.push(Action::DeclareDead(log));
            }
        }
        if self.ghost.state_losses > 0 && self.ghost.dead != 0 {
            actions.push(Action::Forget);
        }
    }

    fn call_actions(&self, p: u8, job: Job, call: Call, may_give_up: bool, actions: &mut Vec<Action>) {
        match call {
            Call::Sent => {
                actions.push(Action::Land(p, job));
                if self.ghost.duplicates > 0 {
                    actions.push(Action::Duplicate(p, job));
                }
            }
            Call::Answered(_) => actions.extend([Action::Answered(p, job), Action::LoseAnswer(p, job)]),
        }
        if may_give_up && self.ghost.unknowns > 0 {
            actions.push(Action::GiveUp(p, job));
        }
    }

    fn want_actions(&self, p: u8, job: Job, want: &Want, actions: &mut Vec<Action>) {
        match want {
            Want::Seal(sealing) => self.seal_actions(p, job, &sealing.want, actions),
            Want::Create(_, call) => self.call_actions(p, job, *call, true, actions),
            Want::Ended => {}
            Want::List | Want::Get(_) | Want::Restore(..) => actions.push(Action::Step(p, job)),
        }
    }

    fn seal_actions(&self, p: u8, job: Job, want: &SealWant, actions: &mut Vec<Action>) {
        match want {
            SealWant::Create(_, _, call) => self.call_actions(p, job, *call, true, actions),
            SealWant::List | SealWant::Read(_) => actions.push(Action::Step(p, job)),
        }
    }

    fn subject_actions(&self, settings: &Settings, p: u8, x: u8, actions: &mut Vec<Action>) {
        let process = &self.processes[usize::from(p)];
        let ghost = &self.ghost;
        match &process.places[usize::from(x)] {
            SubjectRole::Closed => {
                let settled = process.unshipped(x) == 0
                    || settings.broken_rule == Some(BrokenRule::EvictWithWritesInFlight);
                if process.opens[usize::from(x)] > 0 && settled {
                    actions.push(Action::Open(p, x));
                }
            }
            SubjectRole::Opening(opening) => self.want_actions(p, Job::Subject(x), &opening.want, actions),
            SubjectRole::Serving(serving) => {
                if let Some(publishing) = &serving.publishing {
                    match &publishing.call {
                        Some((_, call)) => self.call_actions(p, Job::Subject(x), *call, true, actions),
                        None => actions.push(Action::Resume(p, x)),
                    }
                }
                let reads_anyway = settings.broken_rule == Some(BrokenRule::ReadsUntilReleased)
                    && serving.leaving == Leaving::Released;
                if ghost.reads > 0 && (serving.leaving == Leaving::No || reads_anyway) {
                    actions.push(Action::Read(p, x));
                }
                if serving.leaving != Leaving::No {
                    return;
                }
                if ghost.written[usize::from(x)] < settings.writes[usize::from(x)] {
                    actions.push(Action::Write(p, x));
                }
                if serving.publishing.is_none() {
                    self.closing_actions(settings, p, x, serving, actions);
                }
            }
        }
    }

    fn closing_actions(
        &self,
        settings: &Settings,
        p: u8,
        x: u8,
        serving: &Serving,
        actions: &mut Vec<Action>,
    ) {
        let process = &self.processes[usize::from(p)];
        let above = serving.ops.len() as u64 > serving.manifest.base_rev.get();
        if self.ghost.compactions > 0 && above {
            actions.push(Action::Compact(p, x));
        }
        let settled = process.unshipped(x) == 0;
        if self.ghost.releases > 0 && settled {
            actions.push(Action::Release(p, x));
        }
        let may_evict = settled || settings.broken_rule == Some(BrokenRule::EvictWithWritesInFlight);
        if self.ghost.evictions > 0 && may_evict {
            actions.push(Action::Evict(p, x));
        }
    }

    fn drain_actions(&self, p: u8, actions: &mut Vec<Action>) {
        let process = &self.processes[usize::from(p)];
        match process.drain.as_ref().map(|drain| &drain.stage) {
            Some(DrainStage::Sealing(sealing)) => self.seal_actions(p, Job::Drain, &sealing.want, actions),
            Some(DrainStage::Settling(opening)) => self.want_actions(p, Job::Drain, &opening.want, actions),
            None if self.ghost.drains > 0 => {
                let dead = |log: &u8| {
                    process.log != Some(*log) && !self.bucket.logs[usize::from(*log)].slots.is_empty()
                };
                let logs = (0..self.bucket.logs.len() as u8).filter(dead);
                actions.extend(logs.map(|log| Action::Drain(p, log)));
            }
            None => {}
        }
    }

    fn bucket_actions(&self, settings: &Settings, actions: &mut Vec<Action>) {
        for (at, orphan) in self.bucket.network.iter().enumerate() {
            // If the target exists, landing only removes the request.
            let free = match orphan {
                DetachedCreate::Slot { log, slot, .. } => {
                    self.bucket.logs[usize::from(*log)].get(*slot).is_none()
                }
                DetachedCreate::Manifest { subject, manifest } => {
                    self.bucket.folders[usize::from(*subject)].get(manifest.number).is_none()
                }
            };
            if free {
                actions.push(Action::LandDetached(at as u8));
            }
        }
        for x in 0..settings.subjects {
            let folder = &self.bucket.folders[usize::from(x)];
            let Some(newest) = folder.newest() else { continue };
            for manifest in &folder.manifests[..folder.manifests.len() - 1] {
                actions.push(Action::DeleteManifest(x, manifest.number.get() as u8));
            }
            if folder.bases.iter().any(|base| {
                base.name.made_for() <= newest.number && !FolderObjects::refers(newest, &base.name)
            }) {
                actions.push(Action::DeleteBases(x));
            }
        }
        for (number, log) in self.bucket.logs.iter().enumerate() {
            let deletable = log.owner_may_delete | log.collector_may_delete;
            for slot in log.listed().filter(|slot| deletable & 1 << slot.get() != 0) {
                actions.push(Action::DeleteSlot(number as u8, slot.get() as u8));
            }
        }
    }
}

/// Returns the manifest by which the first process owns a subject at the start.
fn first_manifest(index: u8) -> Manifest {
    Manifest {
        subject: subject(index),
        number: ManifestNumber::FIRST,
        term: Term::new(1),
        term_base: Rev::new(0),
        owner: log_id(0),
        base_rev: Rev::new(0),
        next_seq: Seq::new(1),
        first_slot: Slot::new(1),
        snapshot: None,
        deltas: Vec::new(),
        terms: Vec::new(),
        released: false,
        tombstone: false,
        tombstone_state: None,
        nonce: Nonce::new(Ulid(0)),
    }
}
