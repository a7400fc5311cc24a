//! Three processes on one subject, each with its log, under an authority that is often wrong and a network that loses
//! answers, delivers late and delivers twice. Logs are sealed while their owners write, dead logs are drained, whatever
//! may be deleted is deleted late. Whatever the order, the bucket decides: these runs check what it must decide.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use dormouse_protocol::{Seq, Slot};
use dormouse_runtime::{Entropy, SeededEntropy};
use ulid::Ulid;

use super::super::drain::{Drain, DrainEffect, DrainInput, Holding};
use super::super::garbage::{self, Held};
use super::super::local::{LocalFile, lost_above, may_reuse};
use super::super::publish::{Publication, Publish, PublishEffect, PublishInput};
use super::super::testing::{past, subject};
use super::super::{BaseKind, NewBase, base_kind};
use super::*;
use crate::bucket::BucketKey;
use crate::checksum::Crc64;
use crate::keys::{DeltaName, Nonce, SnapshotName};
use crate::manifest::{DeltaRef, PastLife, SnapshotRef, TermBase};

/// An entry: a change, which makes a rev, or an answer, which makes none.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Item {
    term: Term,
    after: u64,
    change: bool,
    value: u64,
}

impl Item {
    fn is_above(&self, base: u64) -> bool {
        self.after >= base
    }

    fn last_rev(&self) -> u64 {
        self.after + u64::from(self.change)
    }
}

/// What a subject holds: rev n is the nth change.
#[derive(Clone, Default, PartialEq, Debug)]
struct Content {
    /// The rev at which it began empty.
    origin: u64,
    /// What it remembers of the life before.
    past: Option<PastLife>,
    changes: Vec<u64>,
    answers: BTreeSet<u64>,
    terms: Vec<TermBase>,
}

impl Content {
    fn rev(&self) -> u64 {
        self.origin + self.changes.len() as u64
    }

    fn at(&self, rev: u64) -> Option<u64> {
        let index = rev.checked_sub(self.origin + 1)?;
        self.changes.get(usize::try_from(index).unwrap()).copied()
    }

    fn holds(&self, item: &Item) -> bool {
        if item.change {
            self.at(item.last_rev()) == Some(item.value)
        } else {
            self.answers.contains(&item.value)
        }
    }

    /// `false`: there is a hole before it.
    fn apply(&mut self, item: Item) -> bool {
        if !item.is_above(self.rev()) {
            return true;
        }
        if item.change && item.after == self.rev() {
            self.changes.push(item.value);
        } else if !item.change {
            self.answers.insert(item.value);
        }
        item.last_rev() == self.rev()
    }
}

enum Activity {
    Idle,
    Claiming(Run),
    Serving(Manifest),
    /// With the manifest that counts meanwhile; `true`: requests are answered meanwhile.
    Publishing(Manifest, Publish, PublishEffect, bool),
}

/// A claim under way, and what its last restore brought.
struct Run {
    claim: Claim,
    effect: ClaimEffect,
    base: Option<Box<Manifest>>,
    content: Content,
    above: Vec<Item>,
}

impl Run {
    fn new((claim, effect): (Claim, ClaimEffect)) -> Self {
        Self { claim, effect, base: None, content: Content::default(), above: Vec::new() }
    }
}

struct Draining {
    log: LogId,
    drain: Drain,
    effect: DrainEffect,
    run: Option<Run>,
}

struct Process {
    log: LogId,
    next_slot: u64,
    activity: Activity,
    draining: Option<Draining>,
    /// Applied: acknowledged, at whatever level.
    content: Content,
    /// What is applied above the base of the newest manifest it knows.
    above: Vec<Item>,
    /// In the local write-ahead log and not shipped; the ones marked are acknowledged and applied.
    pending: Vec<(Item, bool)>,
    file: Option<(LocalFile, Content)>,
    known: Option<ManifestNumber>,
    /// Acknowledged entries of earlier logs that were sealed by others.
    surplus: Vec<(LogId, Vec<Item>)>,
    lost: Vec<Item>,
}

/// How often each thing that the runs are about has happened.
#[derive(Default, Debug, Clone, Copy)]
struct Coverage {
    served: u64,
    reopened: u64,
    published: u64,
    lost_publications: u64,
    overtaken_after_creation: u64,
    landed_in_a_hole: u64,
    sealed_while_alive: u64,
    late_slots: u64,
    objects_missing: u64,
    bases_put_by_claims: u64,
    answers_put_by_claims: u64,
    surplus_kept: u64,
    surplus_lost: u64,
    files_reused: u64,
    files_refused: u64,
    slots_deleted: u64,
    drained: u64,
    not_needed: u64,
    released: u64,
    destroyed: u64,
    gave_up: u64,
}

enum SlotObject {
    Data(Vec<Item>),
    Seal,
}

#[derive(PartialEq)]
enum Deletion {
    Object(BucketKey),
    Slot(LogId, u64),
}

struct World {
    chance: SeededEntropy,
    /// The process that hardly gets on, if any.
    slow: usize,
    drawn: u128,
    keys: SubjectKeys,
    manifests: BTreeMap<ManifestNumber, Manifest>,
    snapshots: BTreeMap<SnapshotName, Content>,
    deltas: BTreeMap<DeltaName, Vec<Item>>,
    logs: HashMap<LogId, BTreeMap<u64, SlotObject>>,
    late: Vec<Manifest>,
    late_slots: Vec<(LogId, u64, Vec<Item>)>,
    deletions: Vec<Deletion>,
    /// The terms that led to the newest manifest.
    chain: Vec<TermBase>,
    /// What the last tombstone among them remembers.
    past: Option<PastLife>,
    highest: Option<ManifestNumber>,
    /// What was acknowledged at level `bucket`: the change at each rev, and the answers.
    changes: BTreeMap<u64, u64>,
    answers: BTreeSet<u64>,
    /// What was acknowledged at a weaker level and must be somewhere as long as the disk is.
    weak: Vec<(usize, Item)>,
    /// What each tombstone that was ever sent stands for.
    destroyed: HashMap<Nonce, Content>,
    processes: Vec<Process>,
    coverage: Coverage,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            chance: SeededEntropy::new(seed),
            slow: usize::MAX,
            drawn: 0,
            keys: SubjectKeys::new(&subject()),
            manifests: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            deltas: BTreeMap::new(),
            logs: HashMap::new(),
            late: Vec::new(),
            late_slots: Vec::new(),
            deletions: Vec::new(),
            chain: Vec::new(),
            past: None,
            highest: None,
            changes: BTreeMap::new(),
            answers: BTreeSet::new(),
            weak: Vec::new(),
            destroyed: HashMap::new(),
            processes: Vec::new(),
            coverage: Coverage::default(),
        };
        for server in ["a", "b", "c"] {
            let log = world.new_log(server);
            world.processes.push(Process {
                log,
                next_slot: 1,
                activity: Activity::Idle,
                draining: None,
                content: Content::default(),
                above: Vec::new(),
                pending: Vec::new(),
                file: None,
                known: None,
                surplus: Vec::new(),
                lost: Vec::new(),
            });
        }
        world
    }

    fn draw(&self, below: usize) -> usize {
        usize::try_from(self.chance.next_u64() % below as u64).unwrap()
    }

    fn nonce(&mut self) -> Nonce {
        self.drawn += 1;
        Nonce::new(Ulid::from(self.drawn))
    }

    fn value(&mut self) -> u64 {
        self.drawn += 1;
        u64::try_from(self.drawn).unwrap()
    }

    fn new_log(&mut self, server: &str) -> LogId {
        self.drawn += 1;
        let log = LogId::new(server.parse().unwrap(), Ulid::from(self.drawn));
        self.logs.insert(log.clone(), BTreeMap::from([(0, SlotObject::Data(Vec::new()))]));
        log
    }

    fn folder(&self) -> Folder {
        Folder {
            manifests: self.manifests.keys().copied().collect(),
            snapshots: self.snapshots.keys().copied().collect(),
            deltas: self.deltas.keys().copied().collect(),
            ..Folder::default()
        }
    }

    fn step(&mut self) {
        let who = self.draw(self.processes.len());
        match self.draw(24) {
            0 => self.deliver_late(),
            1..=3 => self.delete_one(),
            4 => match self.draw(6) {
                0 | 1 => self.crash(who),
                2 => {
                    // Whoever seals it need not have been asked to.
                    let log = self.processes[who].log.clone();
                    self.seal(&log);
                }
                3 => self.slow = self.draw(2 * self.processes.len()),
                _ => {}
            },
            _ if who == self.slow && self.draw(24) > 0 => {}
            5..=8 => (0..3).for_each(|_| self.drain(who)),
            _ => self.act(who),
        }
        self.check();
    }

    // The bucket.

    fn land(&mut self, manifest: Manifest) -> Creation {
        let number = manifest.number;
        match self.manifests.get(&number) {
            Some(there) if *there == manifest => return Creation::Ours,
            Some(_) => return Creation::Anothers,
            None => {}
        }
        if self.highest >= Some(number) {
            self.coverage.landed_in_a_hole += 1;
        } else {
            self.highest = Some(number);
            let own = TermBase { term: manifest.term, term_base: manifest.term_base };
            if manifest.tombstone {
                self.chain.clear();
                self.past.clone_from(&manifest.past);
                self.changes.clear();
                self.answers.clear();
                let destroyed = &self.destroyed[&manifest.nonce];
                self.weak.retain(|(_, item)| !destroyed.holds(item));
            } else if self.chain.last() != Some(&own) {
                self.chain.push(own);
            }
        }
        assert_eq!(Manifest::decode(&subject(), number, &manifest.encode()).as_ref(), Ok(&manifest));
        self.manifests.insert(number, manifest);
        Creation::Ours
    }

    fn create(&mut self, manifest: &Manifest) -> Creation {
        match self.draw(12) {
            // The answer is lost; the creation arrives now, later, later and again, or never.
            0 => drop(self.land(manifest.clone())),
            1 | 2 => self.late.push(manifest.clone()),
            3 => {}
            4 => {
                self.late.push(manifest.clone());
                return self.land(manifest.clone());
            }
            _ => return self.land(manifest.clone()),
        }
        Creation::Unknown(ErrorReply::unavailable("no answer"))
    }

    fn deliver_late(&mut self) {
        if !self.late_slots.is_empty() {
            let (log, slot, items) = self.late_slots.swap_remove(self.draw(self.late_slots.len()));
            self.logs.get_mut(&log).unwrap().entry(slot).or_insert(SlotObject::Data(items));
            self.coverage.late_slots += 1;
        }
        if !self.late.is_empty() {
            let manifest = self.late.swap_remove(self.draw(self.late.len()));
            self.land(manifest);
        }
    }

    fn delete_one(&mut self) {
        if self.deletions.is_empty() {
            return;
        }
        match self.deletions.swap_remove(self.draw(self.deletions.len())) {
            Deletion::Object(key) => {
                let keys = &self.keys;
                self.manifests.retain(|&number, _| keys.manifest(number) != key);
                self.snapshots.retain(|name, _| keys.snapshot(name) != key);
                self.deltas.retain(|name, _| keys.delta(name) != key);
            }
            Deletion::Slot(log, slot) => {
                self.coverage.slots_deleted += 1;
                self.logs.get_mut(&log).unwrap().remove(&slot);
            }
        }
    }

    fn delete(&mut self, deletions: impl IntoIterator<Item = Deletion>) {
        for deletion in deletions {
            if !self.deletions.contains(&deletion) {
                self.deletions.push(deletion);
            }
        }
    }

    fn is_sealed(&self, log: &LogId) -> bool {
        matches!(self.logs[log].last_key_value(), Some((_, SlotObject::Seal)))
    }

    fn seal(&mut self, log: &LogId) {
        if self.is_sealed(log) {
            return;
        }
        if self.processes.iter().any(|process| process.log == *log) {
            self.coverage.sealed_while_alive += 1;
        }
        let slots = self.logs.get_mut(log).unwrap();
        let highest = *slots.last_key_value().unwrap().0;
        slots.insert(highest + 1, SlotObject::Seal);
    }

    /// The entries of a log from a slot on, in order.
    fn items(&self, log: &LogId, first: Slot) -> Vec<Item> {
        let data = self.logs[log].range(first.get()..).filter_map(|(_, object)| match object {
            SlotObject::Data(items) => Some(items),
            SlotObject::Seal => None,
        });
        data.flatten().copied().collect()
    }

    // What holds at every moment.

    fn check(&self) {
        let newest = self.manifests.keys().next_back().copied();
        assert_eq!(newest, self.highest, "the newest manifest went back");
        let Some(manifest) = newest.map(|newest| &self.manifests[&newest]) else { return };
        let mut content = self.base(manifest).expect("the newest manifest lacks an object");
        assert_eq!(content.rev(), manifest.base_rev.get());
        if !manifest.released {
            for item in self.items(&manifest.owner, manifest.first_slot) {
                assert!(content.apply(item), "a hole in what the newest manifest needs");
            }
        }
        self.check_acknowledged(&content);
    }

    fn check_acknowledged(&self, content: &Content) {
        for (rev, value) in &self.changes {
            assert_eq!(content.at(*rev), Some(*value), "rev {rev} was acknowledged");
        }
        assert!(content.answers.is_superset(&self.answers), "an answer that was given is forgotten");
    }

    /// The state up to the base of a manifest; the name of what is missing.
    fn base(&self, manifest: &Manifest) -> Result<Content, String> {
        let mut content = Content::default();
        if let Some(snapshot) = manifest.snapshot {
            let found = self.snapshots.get(&snapshot.name);
            content = found.cloned().ok_or_else(|| snapshot.name.to_string())?;
        }
        if manifest.snapshot.is_none() {
            let first = manifest.deltas.first().map(|delta| self.deltas.get(&delta.name).ok_or("a delta"));
            content.past.clone_from(&manifest.past);
            content.origin = first.transpose()?.map_or(manifest.base_rev.get(), |items| items[0].after);
        }
        for known in terms(manifest) {
            if content.terms.last().is_none_or(|last| last.term < known.term) {
                content.terms.push(known);
            }
        }
        for delta in &manifest.deltas {
            let items = self.deltas.get(&delta.name).ok_or_else(|| delta.name.to_string())?;
            assert!(items.iter().all(|item| content.apply(*item)), "a delta does not follow its base");
        }
        Ok(content)
    }

    // A process.

    /// Killed, perhaps with the power or the disk, and started again.
    fn crash(&mut self, who: usize) {
        let (kind, process) = (self.draw(6), &mut self.processes[who]);
        if kind == 0 {
            process.file = None;
            process.known = None;
            process.surplus.clear();
        }
        if kind < 2 {
            // What was only in memory is gone; the file need not be.
            process.pending.clear();
            self.weak.retain(|(owner, _)| *owner != who);
        }
        let log = process.log.clone();
        let pending: Vec<Item> = process.pending.drain(..).map(|(item, _)| item).collect();
        if self.draw(3) == 0 && !pending.is_empty() {
            // A creation of the dead process may still land.
            let slot = self.processes[who].next_slot;
            self.late_slots.push((log.clone(), slot, pending.clone()));
            if self.draw(2) == 0 {
                self.deliver_late();
            }
        }
        self.recover(who, &log, pending);
    }

    /// What recovery does at once: ship what is not shipped, or find the seal; go on with a fresh log.
    fn recover(&mut self, who: usize, log: &LogId, pending: Vec<Item>) {
        let next_slot = self.processes[who].next_slot;
        let slots = self.logs.get_mut(log).unwrap();
        let shipped = matches!(slots.get(&next_slot), Some(SlotObject::Data(_)));
        if !shipped && !pending.is_empty() {
            if let Entry::Vacant(vacant) = slots.entry(next_slot) {
                vacant.insert(SlotObject::Data(pending));
            } else {
                self.processes[who].surplus.push((log.clone(), pending));
            }
        }
        self.seal(log);
        self.start_fresh(who);
    }

    fn start_fresh(&mut self, who: usize) {
        let server = self.processes[who].log.server().to_string();
        let log = self.new_log(&server);
        let process = &mut self.processes[who];
        process.log = log;
        process.next_slot = 1;
        process.activity = Activity::Idle;
        process.draining = None;
    }

    /// The next slot has a seal.
    fn meet_seal(&mut self, who: usize) {
        let process = &mut self.processes[who];
        let log = process.log.clone();
        let kept: Vec<Item> =
            process.pending.drain(..).filter(|(_, applied)| *applied).map(|(item, _)| item).collect();
        if !kept.is_empty() {
            process.surplus.push((log, kept));
        }
        self.start_fresh(who);
    }

    fn act(&mut self, who: usize) {
        match std::mem::replace(&mut self.processes[who].activity, Activity::Idle) {
            Activity::Idle if self.draw(6) > 0 => {}
            Activity::Idle => {
                // Whatever was shipped after the subject was closed is no concern of its next opening.
                if !self.ship(who) {
                    return;
                }
                let process = &mut self.processes[who];
                let run = Run::new(Claim::new(subject(), process.log.clone(), process.known));
                process.activity = Activity::Claiming(run);
            }
            Activity::Claiming(mut run) => match self.drive(who, &mut run, true) {
                None => self.processes[who].activity = Activity::Claiming(run),
                Some(ClaimEffect::Serve(verified)) => self.start_serving(who, run, verified),
                Some(ClaimEffect::GiveUp(reply)) => self.gave_up(&reply),
                Some(effect) => panic!("{effect:?}"),
            },
            Activity::Serving(manifest) => self.serve(who, manifest),
            Activity::Publishing(current, publish, effect, answers) => {
                if answers && self.draw(3) == 0 {
                    self.processes[who].activity =
                        Activity::Publishing(current.clone(), publish, effect, true);
                    self.write(who, current.term);
                } else {
                    self.publish(who, current, publish, effect, answers);
                }
            }
        }
    }

    fn gave_up(&mut self, reply: &ErrorReply) {
        assert_eq!(reply.code, dormouse_protocol::ErrorCode::Unavailable, "{reply}");
        self.coverage.gave_up += 1;
    }

    /// One step of a claim; its last effect once it has ended.
    fn drive(&mut self, who: usize, run: &mut Run, serves: bool) -> Option<ClaimEffect> {
        let input = match run.effect.clone() {
            ClaimEffect::List => ClaimInput::Listed(self.folder()),
            ClaimEffect::Get(number) => ClaimInput::Got(match self.manifests.get(&number) {
                Some(manifest) => Found::Manifest(Box::new(manifest.clone())),
                None => Found::Missing,
            }),
            ClaimEffect::AskAuthority { owner: Some(owner) }
                if self.processes.iter().any(|process| process.log == owner) && self.draw(4) > 0 =>
            {
                ClaimInput::Refused(ErrorReply::unavailable("its owner is alive"))
            }
            ClaimEffect::AskAuthority { .. } => ClaimInput::Allowed,
            ClaimEffect::Seal(log) => {
                self.seal(&log);
                ClaimInput::Sealed
            }
            ClaimEffect::Restore { manifest, tail } => {
                match self.restore(who, run, manifest, &tail, serves) {
                    Ok(restored) => ClaimInput::Restored(restored),
                    Err(object) => {
                        self.coverage.objects_missing += 1;
                        ClaimInput::ObjectMissing { object }
                    }
                }
            }
            ClaimEffect::PutBase { made_for } => {
                self.coverage.bases_put_by_claims += 1;
                if run.base.as_ref().is_some_and(|base| base.base_rev.get() == run.content.rev()) {
                    self.coverage.answers_put_by_claims += 1;
                }
                let base = run.base.clone();
                ClaimInput::BasePut(self.upload(base.as_deref(), made_for, &run.content, &run.above))
            }
            ClaimEffect::Create(manifest) => {
                let outcome = self.create(&manifest);
                if outcome == Creation::Ours && self.highest > Some(manifest.number) {
                    self.coverage.overtaken_after_creation += 1;
                }
                ClaimInput::Created(outcome)
            }
            effect => return Some(effect),
        };
        run.effect = run.claim.apply(input);
        None
    }

    fn restore(
        &mut self,
        who: usize,
        run: &mut Run,
        manifest: Option<Box<Manifest>>,
        tail: &Tail,
        serves: bool,
    ) -> Result<Restored, String> {
        let mut content = manifest.as_deref().map_or(Ok(Content::default()), |base| self.base(base))?;
        let base_rev = content.rev();
        let first_slot = manifest.as_ref().map_or(Slot::default(), |manifest| manifest.first_slot);
        let mut items = match tail {
            Tail::None => Vec::new(),
            Tail::Own => self.items(&self.processes[who].log, first_slot),
            Tail::Sealed(log) => self.items(log, first_slot),
        };
        if let Tail::Sealed(log) = tail {
            let mine = self.processes[who].surplus.iter().filter(|(surplus, _)| surplus == log);
            items.extend(mine.flat_map(|(_, items)| items.iter().copied()));
        }
        items.retain(|item| item.is_above(base_rev));
        if !items.iter().all(|item| content.apply(*item)) {
            return Err("a hole".to_owned());
        }
        if serves {
            self.compare_with_file(who, manifest.as_deref(), &content, &items);
        }
        let restored = Restored {
            rev: Rev::new(content.rev()),
            next_seq: Seq::new(content.rev() + 1),
            above_base: !items.is_empty(),
            first_slot: Slot::new(self.processes[who].next_slot),
            nonce: self.nonce(),
        };
        (run.base, run.content, run.above) = (manifest, content, items);
        Ok(restored)
    }

    /// A local file that may be reused leads to the very state that the bucket leads to.
    fn compare_with_file(&mut self, who: usize, base: Option<&Manifest>, content: &Content, items: &[Item]) {
        let (Some((file, on_disk)), Some(base)) = (&self.processes[who].file, base) else { return };
        if !may_reuse(file, base, Rev::new(content.rev())) {
            self.coverage.files_refused += 1;
            return;
        }
        self.coverage.files_reused += 1;
        let mut reused = on_disk.clone();
        assert!(items.iter().all(|item| reused.apply(*item)));
        assert_eq!((reused.origin, &reused.changes), (content.origin, &content.changes));
        assert_eq!(reused.past, content.past);
        // It may remember answers that went with the power and were only ever in memory.
        assert!(reused.answers.is_superset(&content.answers));
    }

    fn upload(
        &mut self,
        base: Option<&Manifest>,
        made_for: ManifestNumber,
        content: &Content,
        above: &[Item],
    ) -> BaseObject {
        let (nonce, rev) = (self.nonce(), Rev::new(content.rev()));
        let (size_bytes, crc64) = (3_000 * above.len() as u64, Crc64::of(b""));
        match base_kind(base, size_bytes) {
            BaseKind::Snapshot => {
                let name = SnapshotName { made_for, rev, nonce };
                self.snapshots.insert(name, content.clone());
                BaseObject::Snapshot(SnapshotRef { name, size_bytes: 40_000, crc64 })
            }
            BaseKind::Delta => {
                let name = DeltaName { made_for, rev, nonce };
                self.deltas.insert(name, above.to_vec());
                BaseObject::Delta(DeltaRef { name, size_bytes, crc64 })
            }
        }
    }

    fn start_serving(&mut self, who: usize, run: Run, verified: Verified) {
        let manifest = *verified.manifest;
        assert_eq!((&manifest.owner, manifest.released), (&self.processes[who].log, false));
        self.coverage.served += 1;
        let reopened = run.base.as_ref().is_some_and(|base| **base == manifest);
        self.coverage.reopened += u64::from(reopened);
        // Whoever was overtaken since that listing has nothing to acknowledge: its log is sealed.
        if self.highest == Some(manifest.number) {
            self.check_acknowledged(&run.content);
        }
        let process = &mut self.processes[who];
        process.content = run.content;
        process.above = if reopened { run.above } else { Vec::new() };
        process.known = process.known.max(Some(manifest.number));
        let own = TermBase { term: manifest.term, term_base: manifest.term_base };
        if process.content.terms.last() != Some(&own) {
            process.content.terms.push(own);
        }
        if self.highest == Some(manifest.number) {
            assert_eq!(process.content.terms, self.chain, "the terms that led here");
            assert_eq!(process.content.past, self.past, "what is remembered of the life before");
        }
        self.settle_surplus(who, &manifest);
        self.write_file(who, &manifest);
        self.delete(verified.garbage.into_iter().map(Deletion::Object));
        self.processes[who].activity = Activity::Serving(manifest);
    }

    /// What earlier logs held is in the state, or it is lost and kept.
    fn settle_surplus(&mut self, who: usize, manifest: &Manifest) {
        let process = &mut self.processes[who];
        for item in process.surplus.drain(..).flat_map(|(_, items)| items) {
            if !item.change {
                continue;
            }
            let lost = Rev::new(item.last_rev()) > lost_above(item.term, manifest, &process.content.terms);
            if self.chain.first().is_some_and(|first| first.term <= item.term) {
                assert_eq!(lost, !process.content.holds(&item), "{item:?}");
            }
            if lost {
                process.lost.push(item);
                self.coverage.surplus_lost += 1;
            } else {
                self.coverage.surplus_kept += 1;
            }
        }
        let process = &self.processes[who];
        let is_kept = |item: &Item| process.lost.contains(item) || process.content.holds(item);
        for (_, item) in self.weak.iter().filter(|(owner, item)| *owner == who && item.change) {
            assert!(is_kept(item), "{item:?} was acknowledged, and the disk is there");
        }
    }

    fn write_file(&mut self, who: usize, manifest: &Manifest) {
        let process = &mut self.processes[who];
        let file = LocalFile {
            log: manifest.owner.clone(),
            term: manifest.term,
            applied_rev: Rev::new(process.content.rev()),
        };
        process.file = Some((file, process.content.clone()));
    }

    fn serve(&mut self, who: usize, manifest: Manifest) {
        match self.draw(10) {
            0..=4 => {
                self.processes[who].activity = Activity::Serving(manifest.clone());
                self.write(who, manifest.term);
            }
            5 | 6 => {
                self.processes[who].activity = Activity::Serving(manifest);
                self.ship(who);
            }
            // Closed and left as it is, with nothing in flight.
            7 if self.processes[who].pending.is_empty() => {}
            kind => {
                let process = &self.processes[who];
                let unapplied = process.pending.iter().any(|(_, applied)| !applied);
                let (rev, next_seq) = (process.content.rev(), Seq::new(process.content.rev() + 1));
                let publication = match kind {
                    8 | 9 if unapplied => None,
                    8 if self.draw(6) == 0 => {
                        let past = Box::new(past(manifest.term.get(), rev));
                        Some(Publication::Destroy { past, next_seq })
                    }
                    8 if process.above.is_empty() => Some(Publication::Release(None)),
                    8 => Some(Publication::Release(Some(self.new_base(who, &manifest)))),
                    _ => None,
                };
                if publication.is_none() && self.processes[who].above.is_empty() {
                    self.processes[who].activity = Activity::Serving(manifest);
                    return;
                }
                let publication =
                    publication.unwrap_or_else(|| Publication::Base(self.new_base(who, &manifest)));
                let nonce = self.nonce();
                self.destroyed.insert(nonce, self.processes[who].content.clone());
                let answers = matches!(publication, Publication::Base(_));
                let (publish, effect) = Publish::new(&manifest, publication, nonce);
                self.processes[who].activity = Activity::Publishing(manifest, publish, effect, answers);
            }
        }
    }

    fn new_base(&mut self, who: usize, manifest: &Manifest) -> NewBase {
        let (content, above) = (self.processes[who].content.clone(), self.processes[who].above.clone());
        let object = self.upload(Some(manifest), manifest.number.next(), &content, &above);
        let first_slot = Slot::new(self.processes[who].next_slot);
        NewBase { object, first_slot, next_seq: Seq::new(content.rev() + 1) }
    }

    /// A change or an answer, at level `bucket` or a weaker one.
    fn write(&mut self, who: usize, term: Term) {
        let (value, change, weak) = (self.value(), self.draw(4) > 0, self.draw(2) == 0);
        let process = &mut self.processes[who];
        let after = process.pending.last().map_or(process.content.rev(), |(last, _)| last.last_rev());
        let item = Item { term, after, change, value };
        let weak = weak && process.pending.iter().all(|(_, applied)| *applied);
        process.pending.push((item, weak));
        if weak {
            assert!(process.content.apply(item));
            process.above.push(item);
            self.weak.push((who, item));
            if let Some((file, content)) = &mut process.file {
                assert!(content.apply(item));
                file.applied_rev = Rev::new(content.rev());
            }
        }
    }

    /// Puts everything that is pending into the next slot; `false`: this is the end of the log.
    fn ship(&mut self, who: usize) -> bool {
        let process = &mut self.processes[who];
        let slots = self.logs.get_mut(&process.log).unwrap();
        if process.pending.is_empty() {
            return true;
        }
        if slots.contains_key(&process.next_slot) {
            self.meet_seal(who);
            return false;
        }
        let pending = std::mem::take(&mut process.pending);
        slots.insert(process.next_slot, SlotObject::Data(pending.iter().map(|(item, _)| *item).collect()));
        process.next_slot += 1;
        for (item, applied) in pending {
            if applied && !self.weak.contains(&(who, item)) {
                // Destroyed since.
                continue;
            }
            self.weak.retain(|(_, weak)| *weak != item);
            if !applied {
                assert!(process.content.apply(item));
                process.above.push(item);
                if let Some((file, content)) = &mut process.file {
                    assert!(content.apply(item));
                    file.applied_rev = Rev::new(content.rev());
                }
            }
            if item.change {
                let before = self.changes.insert(item.last_rev(), item.value);
                assert_eq!(before, None, "two changes were acknowledged as rev {}", item.last_rev());
            } else {
                self.answers.insert(item.value);
            }
        }
        true
    }

    fn publish(
        &mut self,
        who: usize,
        current: Manifest,
        mut publish: Publish,
        effect: PublishEffect,
        answers: bool,
    ) {
        let input = match effect {
            PublishEffect::Create(manifest) => PublishInput::Created(self.create(&manifest)),
            PublishEffect::Get(number) => PublishInput::Got(match self.manifests.get(&number) {
                Some(manifest) => Found::Manifest(Box::new(manifest.clone())),
                None => Found::Missing,
            }),
            PublishEffect::List => PublishInput::Listed(self.folder()),
            PublishEffect::Undecided(_) => PublishInput::Resume,
            PublishEffect::Failed(reply) => panic!("nothing here fails for certain: {reply}"),
            PublishEffect::Lost { .. } => {
                self.coverage.lost_publications += 1;
                return;
            }
            PublishEffect::Published(verified) => return self.published(who, verified, answers),
        };
        let effect = publish.apply(input);
        self.processes[who].activity = Activity::Publishing(current, publish, effect, answers);
    }

    fn published(&mut self, who: usize, verified: Verified, answers: bool) {
        let manifest = *verified.manifest;
        self.coverage.published += 1;
        self.coverage.released += u64::from(manifest.released);
        self.coverage.destroyed += u64::from(manifest.tombstone);
        self.delete(verified.garbage.into_iter().map(Deletion::Object));
        // What the manifest covers is no more needed in the log.
        let log = self.processes[who].log.clone();
        let slots = self.deletable(&log, &manifest);
        self.delete(slots.into_iter().map(|slot| Deletion::Slot(log.clone(), slot.get())));
        let process = &mut self.processes[who];
        process.known = process.known.max(Some(manifest.number));
        process.above.retain(|item| item.is_above(manifest.base_rev.get()));
        assert!(answers != manifest.released);
        if !manifest.released {
            process.activity = Activity::Serving(manifest);
        }
    }

    fn deletable(&self, log: &LogId, manifest: &Manifest) -> Vec<Slot> {
        let listed: Vec<Slot> = self.logs[log].keys().map(|&slot| Slot::new(slot)).collect();
        garbage::slots(&listed, |slot| match &self.logs[log][&slot.get()] {
            SlotObject::Data(items) => items.last().is_some_and(|last| {
                garbage::needs(manifest, log, Held { slot, last_rev: Rev::new(last.last_rev()) })
            }),
            SlotObject::Seal => false,
        })
    }

    // Draining.

    fn drain(&mut self, who: usize) {
        let Some(mut draining) = self.processes[who].draining.take() else {
            // Any log that is not a living process's, sealed or not.
            let live: Vec<&LogId> = self.processes.iter().map(|process| &process.log).collect();
            let mut dead: Vec<LogId> = self.logs.keys().filter(|log| !live.contains(log)).cloned().collect();
            dead.sort();
            if !dead.is_empty() {
                let owner = self.highest.map(|highest| self.manifests[&highest].owner.clone());
                let log = match owner.filter(|owner| dead.contains(owner)) {
                    Some(owner) => owner,
                    None => dead[dead.len() - 1 - self.draw(dead.len().min(4))].clone(),
                };
                let (drain, effect) = Drain::new(&log, &self.processes[who].log, false);
                self.processes[who].draining = Some(Draining { log, drain, effect, run: None });
            }
            return;
        };
        if let Some(mut run) = draining.run.take() {
            let input = match self.drive(who, &mut run, false) {
                None => {
                    draining.run = Some(run);
                    self.processes[who].draining = Some(draining);
                    return;
                }
                Some(ClaimEffect::Drained(Drained::Released(verified))) => {
                    self.coverage.drained += 1;
                    self.delete(verified.garbage.iter().cloned().map(Deletion::Object));
                    DrainInput::Settled(Drained::Released(verified))
                }
                Some(ClaimEffect::Drained(drained)) => {
                    self.coverage.not_needed += 1;
                    DrainInput::Settled(drained)
                }
                Some(ClaimEffect::GiveUp(reply)) => {
                    self.gave_up(&reply);
                    DrainInput::Left
                }
                Some(effect) => panic!("{effect:?}"),
            };
            draining.effect = draining.drain.apply(input);
            self.processes[who].draining = Some(draining);
            return;
        }
        let log = draining.log.clone();
        let listed = || self.logs[&log].keys().map(|&slot| Slot::new(slot));
        let input = match &draining.effect {
            DrainEffect::Seal => {
                self.seal(&log);
                DrainInput::Sealed(true)
            }
            DrainEffect::Next { after: None } if self.items(&log, Slot::default()).is_empty() => {
                DrainInput::Next(None)
            }
            DrainEffect::Next { after: None } => {
                DrainInput::Next(Some(Holding { subject: subject(), slots: listed().collect() }))
            }
            DrainEffect::Next { after: Some(_) } => DrainInput::Next(None),
            DrainEffect::Settle(subject) => {
                let claim = Claim::drain(subject.clone(), self.processes[who].log.clone(), log, false);
                draining.run = Some(Run::new(claim));
                self.processes[who].draining = Some(draining);
                return;
            }
            DrainEffect::List => DrainInput::Listed(listed().collect()),
            DrainEffect::Delete(deletions) => {
                let slots: Vec<_> = deletions.slots.iter().map(|slot| slot.get()).collect();
                self.delete(slots.into_iter().map(|slot| Deletion::Slot(log.clone(), slot)));
                DrainInput::Deleted
            }
            DrainEffect::Done(_) => return,
            effect => panic!("{effect:?}"),
        };
        draining.effect = draining.drain.apply(input);
        self.processes[who].draining = Some(draining);
    }
}

#[test]
fn whatever_the_network_does_nothing_acknowledged_is_lost() {
    let mut total: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..400 {
        let mut world = World::new(seed);
        for _ in 0..600 {
            world.step();
        }
        for (name, count) in world.coverage.counts() {
            *total.entry(name).or_default() += count;
        }
    }
    // A run that never gets where it is dangerous proves nothing.
    let rare: Vec<_> = total.iter().filter(|(_, count)| **count < 20).collect();
    assert!(rare.is_empty(), "{rare:?} of {total:?}");
}

impl Coverage {
    fn counts(&self) -> [(&'static str, u64); 21] {
        [
            ("served", self.served),
            ("reopened", self.reopened),
            ("published", self.published),
            ("lost publications", self.lost_publications),
            ("overtaken after creation", self.overtaken_after_creation),
            ("landed in a hole", self.landed_in_a_hole),
            ("sealed while alive", self.sealed_while_alive),
            ("late slots", self.late_slots),
            ("objects missing", self.objects_missing),
            ("bases put by claims", self.bases_put_by_claims),
            ("answers put by claims", self.answers_put_by_claims),
            ("surplus kept", self.surplus_kept),
            ("surplus lost", self.surplus_lost),
            ("files reused", self.files_reused),
            ("files refused", self.files_refused),
            ("slots deleted", self.slots_deleted),
            ("drained", self.drained),
            ("not needed", self.not_needed),
            ("released", self.released),
            ("destroyed", self.destroyed),
            ("gave up", self.gave_up),
        ]
    }
}
