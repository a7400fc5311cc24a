//! Three processes on one subject, each with its log, under an authority that is often wrong and a network that loses,
//! delays and duplicates requests. Logs are sealed while their owners write, orphaned logs are reclaimed, and deletable
//! objects are deleted late. In every order of events, the bucket decides: these runs check its decisions.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use dormouse_format::checksum::Crc64;
use dormouse_format::keys::{BucketKey, DeltaName, Nonce, SnapshotName};
use dormouse_format::manifest::{DeltaRef, SnapshotRef, TermBase, TombstoneState};
use dormouse_protocol::{Seq, Slot};
use dormouse_runtime::{Entropy, SeededEntropy};
use ulid::Ulid;

use dormouse_commit_log::log::SlotUse;

use super::super::super::garbage;
use super::super::super::local::{LocalFile, diverged_above, may_reuse};
use super::super::super::publish::{Publication, Publish, PublishEffect, PublishInput};
use super::super::super::reclaim::{LogReclaim, ReclaimEffect, ReclaimInput, SubjectInLog};
use super::super::super::testing::{past, subject};
use super::super::super::{BaseKind, NewBase, base_kind, claim_base_kind};
use super::super::*;

/// An entry: a change, which makes a rev, or a reply, which makes none.
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

/// The content of a subject: rev n is the nth change.
#[derive(Clone, Default, PartialEq, Debug)]
struct Content {
    /// The rev at which it started empty.
    origin: u64,
    /// The tombstone state of the destroyed subject before it.
    past: Option<TombstoneState>,
    changes: Vec<u64>,
    replies: BTreeSet<u64>,
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
            self.replies.contains(&item.value)
        }
    }

    /// `false`: there is a gap before it.
    fn apply(&mut self, item: Item) -> bool {
        if !item.is_above(self.rev()) {
            return true;
        }
        if item.change && item.after == self.rev() {
            self.changes.push(item.value);
        } else if !item.change {
            self.replies.insert(item.value);
        }
        item.last_rev() == self.rev()
    }
}

enum Activity {
    Idle,
    Claiming(ClaimRun),
    Serving(Manifest),
    /// With the current manifest; `true`: requests are served meanwhile.
    Publishing(Manifest, Publish, PublishEffect, bool),
}

/// A claim in progress, and the result of its last restore.
struct ClaimRun {
    claim: Claim,
    effect: ClaimEffect,
    base: Option<Box<Manifest>>,
    content: Content,
    above: Vec<Item>,
}

impl ClaimRun {
    fn new((claim, effect): (Claim, ClaimEffect)) -> Self {
        Self { claim, effect, base: None, content: Content::default(), above: Vec::new() }
    }
}

struct Reclaiming {
    log: LogId,
    reclaim: LogReclaim,
    effect: ReclaimEffect,
    run: Option<ClaimRun>,
}

struct Process {
    log: LogId,
    next_slot: u64,
    activity: Activity,
    reclaiming: Option<Reclaiming>,
    /// Applied entries, acknowledged at any level.
    content: Content,
    /// The applied entries above the base of the newest manifest that it knows.
    above: Vec<Item>,
    /// Entries in the WAL that are not shipped; the marked ones are acknowledged and applied.
    pending: Vec<(Item, bool)>,
    file: Option<(LocalFile, Content)>,
    known: Option<ManifestNumber>,
    /// Acknowledged entries of earlier logs that other processes sealed.
    stranded: Vec<(LogId, Vec<Item>)>,
    lost: Vec<Item>,
}

/// How often each event of interest has occurred.
#[derive(Default, Debug, Clone, Copy)]
struct Coverage {
    served: u64,
    reopened: u64,
    published: u64,
    lost_publications: u64,
    superseded_after_create: u64,
    created_in_gap: u64,
    sealed_while_running: u64,
    late_slots: u64,
    objects_missing: u64,
    bases_put_by_claims: u64,
    replies_put_by_claims: u64,
    stranded_kept: u64,
    stranded_diverged: u64,
    files_reused: u64,
    files_refused: u64,
    slots_deleted: u64,
    reclaimed: u64,
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
    rng: SeededEntropy,
    /// The process that runs slowly, if any.
    slow: usize,
    counter: u128,
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
    /// The tombstone state of the last tombstone among them.
    past: Option<TombstoneState>,
    highest: Option<ManifestNumber>,
    /// Entries acknowledged at level `bucket`: the change at each rev, and the replies.
    changes: BTreeMap<u64, u64>,
    replies: BTreeSet<u64>,
    /// Entries acknowledged at a weaker level, which must exist as long as the disk does.
    weak: Vec<(usize, Item)>,
    /// The content that each tombstone ever sent destroys.
    destroyed: HashMap<Nonce, Content>,
    processes: Vec<Process>,
    coverage: Coverage,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            rng: SeededEntropy::new(seed),
            slow: usize::MAX,
            counter: 0,
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
            replies: BTreeSet::new(),
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
                reclaiming: None,
                content: Content::default(),
                above: Vec::new(),
                pending: Vec::new(),
                file: None,
                known: None,
                stranded: Vec::new(),
                lost: Vec::new(),
            });
        }
        world
    }

    fn random(&self, below: usize) -> usize {
        usize::try_from(self.rng.next_u64() % below as u64).unwrap()
    }

    fn nonce(&mut self) -> Nonce {
        self.counter += 1;
        Nonce::new(Ulid::from(self.counter))
    }

    fn value(&mut self) -> u64 {
        self.counter += 1;
        u64::try_from(self.counter).unwrap()
    }

    fn new_log(&mut self, server: &str) -> LogId {
        self.counter += 1;
        let log = LogId::new(server.parse().unwrap(), Ulid::from(self.counter));
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
        let index = self.random(self.processes.len());
        match self.random(24) {
            0 => self.deliver_late(),
            1..=3 => self.delete_one(),
            4 => match self.random(6) {
                0 | 1 => self.crash(index),
                2 => {
                    // The sealer may do so without permission.
                    let log = self.processes[index].log.clone();
                    self.seal(&log);
                }
                3 => self.slow = self.random(2 * self.processes.len()),
                _ => {}
            },
            _ if index == self.slow && self.random(24) > 0 => {}
            5..=8 => (0..3).for_each(|_| self.reclaim(index)),
            _ => self.act(index),
        }
        self.check();
    }

    // The bucket.

    fn create_now(&mut self, manifest: Manifest) -> CreateResult {
        let number = manifest.number;
        match self.manifests.get(&number) {
            Some(there) if *there == manifest => return CreateResult::Ours,
            Some(_) => return CreateResult::Foreign,
            None => {}
        }
        if self.highest >= Some(number) {
            self.coverage.created_in_gap += 1;
        } else {
            self.highest = Some(number);
            let own = TermBase { term: manifest.term, term_base: manifest.term_base };
            if manifest.tombstone {
                self.chain.clear();
                self.past.clone_from(&manifest.tombstone_state);
                self.changes.clear();
                self.replies.clear();
                let destroyed = &self.destroyed[&manifest.nonce];
                self.weak.retain(|(_, item)| !destroyed.holds(item));
            } else if self.chain.last() != Some(&own) {
                self.chain.push(own);
            }
        }
        assert_eq!(Manifest::decode(&subject(), number, &manifest.encode()).as_ref(), Ok(&manifest));
        self.manifests.insert(number, manifest);
        CreateResult::Ours
    }

    fn create(&mut self, manifest: &Manifest) -> CreateResult {
        match self.random(12) {
            // The reply is lost; the create arrives now, later, twice, or never.
            0 => drop(self.create_now(manifest.clone())),
            1 | 2 => self.late.push(manifest.clone()),
            3 => {}
            4 => {
                self.late.push(manifest.clone());
                return self.create_now(manifest.clone());
            }
            _ => return self.create_now(manifest.clone()),
        }
        CreateResult::Unknown(ErrorReply::unavailable("no answer"))
    }

    fn deliver_late(&mut self) {
        if !self.late_slots.is_empty() {
            let (log, slot, items) = self.late_slots.swap_remove(self.random(self.late_slots.len()));
            self.logs.get_mut(&log).unwrap().entry(slot).or_insert(SlotObject::Data(items));
            self.coverage.late_slots += 1;
        }
        if !self.late.is_empty() {
            let manifest = self.late.swap_remove(self.random(self.late.len()));
            self.create_now(manifest);
        }
    }

    fn delete_one(&mut self) {
        if self.deletions.is_empty() {
            return;
        }
        match self.deletions.swap_remove(self.random(self.deletions.len())) {
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
            self.coverage.sealed_while_running += 1;
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

    // Invariants at every moment.

    fn check(&self) {
        let newest = self.manifests.keys().next_back().copied();
        assert_eq!(newest, self.highest, "the newest manifest number decreased");
        let Some(manifest) = newest.map(|newest| &self.manifests[&newest]) else { return };
        let mut content = self.base(manifest).expect("the newest manifest lacks an object");
        assert_eq!(content.rev(), manifest.base_rev.get());
        if !manifest.released {
            for item in self.items(&manifest.owner, manifest.first_slot) {
                assert!(content.apply(item), "a gap in the entries that the newest manifest needs");
            }
        }
        self.check_acknowledged(&content);
    }

    fn check_acknowledged(&self, content: &Content) {
        for (rev, value) in &self.changes {
            assert_eq!(content.at(*rev), Some(*value), "rev {rev} was acknowledged");
        }
        assert!(content.replies.is_superset(&self.replies), "an acknowledged reply is missing");
    }

    /// The state up to the base of a manifest; the error is the name of a missing object.
    fn base(&self, manifest: &Manifest) -> Result<Content, String> {
        let mut content = Content::default();
        if let Some(snapshot) = manifest.snapshot {
            let found = self.snapshots.get(&snapshot.name);
            content = found.cloned().ok_or_else(|| snapshot.name.to_string())?;
        }
        if manifest.snapshot.is_none() {
            let first = manifest.deltas.first().map(|delta| self.deltas.get(&delta.name).ok_or("a delta"));
            content.past.clone_from(&manifest.tombstone_state);
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

    /// Kills the process, perhaps with a loss of power or of the disk, and starts it again.
    fn crash(&mut self, index: usize) {
        let (kind, process) = (self.random(6), &mut self.processes[index]);
        if kind == 0 {
            process.file = None;
            process.known = None;
            process.stranded.clear();
        }
        if kind < 2 {
            // Data in memory is lost; the file may survive.
            process.pending.clear();
            self.weak.retain(|(owner, _)| *owner != index);
        }
        let log = process.log.clone();
        let pending: Vec<Item> = process.pending.drain(..).map(|(item, _)| item).collect();
        if self.random(3) == 0 && !pending.is_empty() {
            // A create of the ended process may still succeed.
            let slot = self.processes[index].next_slot;
            self.late_slots.push((log.clone(), slot, pending.clone()));
            if self.random(2) == 0 {
                self.deliver_late();
            }
        }
        self.recover(index, &log, pending);
    }

    /// Recovery: ships the unshipped entries or finds the seal, and continues with a new log.
    fn recover(&mut self, index: usize, log: &LogId, pending: Vec<Item>) {
        let next_slot = self.processes[index].next_slot;
        let slots = self.logs.get_mut(log).unwrap();
        let shipped = matches!(slots.get(&next_slot), Some(SlotObject::Data(_)));
        if !shipped && !pending.is_empty() {
            if let Entry::Vacant(vacant) = slots.entry(next_slot) {
                vacant.insert(SlotObject::Data(pending));
            } else {
                self.processes[index].stranded.push((log.clone(), pending));
            }
        }
        self.seal(log);
        self.start_new_log(index);
    }

    fn start_new_log(&mut self, index: usize) {
        let server = self.processes[index].log.server().to_string();
        let log = self.new_log(&server);
        let process = &mut self.processes[index];
        process.log = log;
        process.next_slot = 1;
        process.activity = Activity::Idle;
        process.reclaiming = None;
    }

    /// Handles a seal in the next slot.
    fn on_fenced(&mut self, index: usize) {
        let process = &mut self.processes[index];
        let log = process.log.clone();
        let kept: Vec<Item> =
            process.pending.drain(..).filter(|(_, applied)| *applied).map(|(item, _)| item).collect();
        if !kept.is_empty() {
            process.stranded.push((log, kept));
        }
        self.start_new_log(index);
    }

    fn act(&mut self, index: usize) {
        match std::mem::replace(&mut self.processes[index].activity, Activity::Idle) {
            Activity::Idle if self.random(6) > 0 => {}
            Activity::Idle => {
                // Entries shipped after the subject was closed do not concern its next opening.
                if !self.ship(index) {
                    return;
                }
                let process = &mut self.processes[index];
                let run = ClaimRun::new(Claim::new(subject(), process.log.clone(), process.known));
                process.activity = Activity::Claiming(run);
            }
            Activity::Claiming(mut run) => match self.drive(index, &mut run, true) {
                None => self.processes[index].activity = Activity::Claiming(run),
                Some(ClaimEffect::Serve(verified)) => self.start_serving(index, run, verified),
                Some(ClaimEffect::GiveUp(reply)) => self.gave_up(&reply),
                Some(effect) => panic!("{effect:?}"),
            },
            Activity::Serving(manifest) => self.serve(index, manifest),
            Activity::Publishing(current, publish, effect, serving) => {
                if serving && self.random(3) == 0 {
                    self.processes[index].activity =
                        Activity::Publishing(current.clone(), publish, effect, true);
                    self.write(index, current.term);
                } else {
                    self.publish(index, current, publish, effect, serving);
                }
            }
        }
    }

    fn gave_up(&mut self, reply: &ErrorReply) {
        assert_eq!(reply.code, dormouse_protocol::ErrorCode::Unavailable, "{reply}");
        self.coverage.gave_up += 1;
    }

    /// One step of a claim; its last effect when it has ended.
    fn drive(&mut self, index: usize, run: &mut ClaimRun, serves: bool) -> Option<ClaimEffect> {
        let input = match run.effect.clone() {
            ClaimEffect::List => ClaimInput::Listed(self.folder()),
            ClaimEffect::Get(number) => ClaimInput::Got(match self.manifests.get(&number) {
                Some(manifest) => ManifestRead::Manifest(Box::new(manifest.clone())),
                None => ManifestRead::Missing,
            }),
            ClaimEffect::AskAuthority { owner: Some(owner) }
                if self.processes.iter().any(|process| process.log == owner) && self.random(4) > 0 =>
            {
                ClaimInput::Refused(ErrorReply::unavailable("its owner is running"))
            }
            ClaimEffect::AskAuthority { .. } => ClaimInput::Allowed,
            ClaimEffect::Seal(log) => {
                self.seal(&log);
                ClaimInput::Sealed
            }
            ClaimEffect::Restore { manifest, tail } => {
                match self.restore(index, run, manifest, &tail, serves) {
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
                    self.coverage.replies_put_by_claims += 1;
                }
                let base = run.base.clone();
                let kind = claim_base_kind(base.as_deref());
                ClaimInput::BasePut(self.upload(kind, made_for, &run.content, &run.above))
            }
            ClaimEffect::Create(manifest) => {
                let outcome = self.create(&manifest);
                if outcome == CreateResult::Ours && self.highest > Some(manifest.number) {
                    self.coverage.superseded_after_create += 1;
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
        index: usize,
        run: &mut ClaimRun,
        manifest: Option<Box<Manifest>>,
        tail: &TailSource,
        serves: bool,
    ) -> Result<Restored, String> {
        let mut content = manifest.as_deref().map_or(Ok(Content::default()), |base| self.base(base))?;
        let base_rev = content.rev();
        let first_slot = manifest.as_ref().map_or(Slot::default(), |manifest| manifest.first_slot);
        let mut items = match tail {
            TailSource::None => Vec::new(),
            TailSource::Own => self.items(&self.processes[index].log, first_slot),
            TailSource::Sealed(log) => self.items(log, first_slot),
        };
        if let TailSource::Sealed(log) = tail {
            let mine = self.processes[index].stranded.iter().filter(|(stranded, _)| stranded == log);
            items.extend(mine.flat_map(|(_, items)| items.iter().copied()));
        }
        items.retain(|item| item.is_above(base_rev));
        if !items.iter().all(|item| content.apply(*item)) {
            return Err("a gap".to_owned());
        }
        if serves {
            self.compare_with_file(index, manifest.as_deref(), &content, &items);
        }
        let restored = Restored {
            rev: Rev::new(content.rev()),
            next_seq: Seq::new(content.rev() + 1),
            above_base: !items.is_empty(),
            first_slot: Slot::new(self.processes[index].next_slot),
            nonce: self.nonce(),
        };
        (run.base, run.content, run.above) = (manifest, content, items);
        Ok(restored)
    }

    /// A local file that may be reused leads to the same state as the bucket.
    fn compare_with_file(
        &mut self,
        index: usize,
        base: Option<&Manifest>,
        content: &Content,
        items: &[Item],
    ) {
        let (Some((file, on_disk)), Some(base)) = (&self.processes[index].file, base) else { return };
        if !may_reuse(file, base, Rev::new(content.rev())) {
            self.coverage.files_refused += 1;
            return;
        }
        self.coverage.files_reused += 1;
        let mut reused = on_disk.clone();
        assert!(items.iter().all(|item| reused.apply(*item)));
        assert_eq!((reused.origin, &reused.changes), (content.origin, &content.changes));
        assert_eq!(reused.past, content.past);
        // It may hold replies that were only in memory before a loss of power.
        assert!(reused.replies.is_superset(&content.replies));
    }

    fn upload(
        &mut self,
        kind: BaseKind,
        made_for: ManifestNumber,
        content: &Content,
        above: &[Item],
    ) -> BaseObject {
        let (nonce, rev) = (self.nonce(), Rev::new(content.rev()));
        let (size_bytes, crc64) = (size_bytes(above), Crc64::of(b""));
        match kind {
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

    fn start_serving(&mut self, index: usize, run: ClaimRun, verified: Verified) {
        let manifest = *verified.manifest;
        assert_eq!((&manifest.owner, manifest.released), (&self.processes[index].log, false));
        self.coverage.served += 1;
        let reopened = run.base.as_ref().is_some_and(|base| **base == manifest);
        self.coverage.reopened += u64::from(reopened);
        // A process fenced since that listing acknowledges nothing: its log is sealed.
        if self.highest == Some(manifest.number) {
            self.check_acknowledged(&run.content);
        }
        let process = &mut self.processes[index];
        process.content = run.content;
        process.above = if reopened { run.above } else { Vec::new() };
        process.known = process.known.max(Some(manifest.number));
        let own = TermBase { term: manifest.term, term_base: manifest.term_base };
        if process.content.terms.last() != Some(&own) {
            process.content.terms.push(own);
        }
        if self.highest == Some(manifest.number) {
            assert_eq!(process.content.terms, self.chain, "the terms that led here");
            assert_eq!(process.content.past, self.past, "the tombstone state");
        }
        self.resolve_stranded(index, &manifest);
        self.write_file(index, &manifest);
        self.delete(verified.garbage.into_iter().map(Deletion::Object));
        self.processes[index].activity = Activity::Serving(manifest);
    }

    /// The writes of earlier logs are in the state, or they have diverged and are kept.
    fn resolve_stranded(&mut self, index: usize, manifest: &Manifest) {
        let process = &mut self.processes[index];
        for item in process.stranded.drain(..).flat_map(|(_, items)| items) {
            if !item.change {
                continue;
            }
            let lost =
                Rev::new(item.last_rev()) > diverged_above(item.term, manifest, &process.content.terms);
            if self.chain.first().is_some_and(|first| first.term <= item.term) {
                assert_eq!(lost, !process.content.holds(&item), "{item:?}");
            }
            if lost {
                process.lost.push(item);
                self.coverage.stranded_diverged += 1;
            } else {
                self.coverage.stranded_kept += 1;
            }
        }
        let process = &self.processes[index];
        let is_kept = |item: &Item| process.lost.contains(item) || process.content.holds(item);
        for (_, item) in self.weak.iter().filter(|(owner, item)| *owner == index && item.change) {
            assert!(is_kept(item), "{item:?} was acknowledged, and the disk survived");
        }
    }

    fn write_file(&mut self, index: usize, manifest: &Manifest) {
        let process = &mut self.processes[index];
        let file = LocalFile {
            log: manifest.owner.clone(),
            term: manifest.term,
            applied_rev: Rev::new(process.content.rev()),
        };
        process.file = Some((file, process.content.clone()));
    }

    fn serve(&mut self, index: usize, manifest: Manifest) {
        match self.random(10) {
            0..=4 => {
                self.processes[index].activity = Activity::Serving(manifest.clone());
                self.write(index, manifest.term);
            }
            5 | 6 => {
                self.processes[index].activity = Activity::Serving(manifest);
                self.ship(index);
            }
            // Closed without a release, with nothing in flight.
            7 if self.processes[index].pending.is_empty() => {}
            kind => {
                let process = &self.processes[index];
                let unapplied = process.pending.iter().any(|(_, applied)| !applied);
                let (rev, next_seq) = (process.content.rev(), Seq::new(process.content.rev() + 1));
                let publication = match kind {
                    8 | 9 if unapplied => None,
                    8 if self.random(6) == 0 => {
                        let past = Box::new(past(manifest.term.get(), rev));
                        Some(Publication::Destroy { past, next_seq })
                    }
                    8 if process.above.is_empty() => Some(Publication::Release(None)),
                    8 => Some(Publication::Release(Some(self.new_base(index, &manifest)))),
                    _ => None,
                };
                if publication.is_none() && self.processes[index].above.is_empty() {
                    self.processes[index].activity = Activity::Serving(manifest);
                    return;
                }
                let publication =
                    publication.unwrap_or_else(|| Publication::Base(self.new_base(index, &manifest)));
                let nonce = self.nonce();
                self.destroyed.insert(nonce, self.processes[index].content.clone());
                let serving = matches!(publication, Publication::Base(_));
                let (publish, effect) = Publish::new(&manifest, publication, nonce);
                self.processes[index].activity = Activity::Publishing(manifest, publish, effect, serving);
            }
        }
    }

    fn new_base(&mut self, index: usize, manifest: &Manifest) -> NewBase {
        let (content, above) = (self.processes[index].content.clone(), self.processes[index].above.clone());
        let kind = base_kind(manifest, size_bytes(&above));
        let object = self.upload(kind, manifest.number.next(), &content, &above);
        let first_slot = Slot::new(self.processes[index].next_slot);
        NewBase { object, first_slot, next_seq: Seq::new(content.rev() + 1) }
    }

    /// Writes a change or a reply, at level `bucket` or a weaker one.
    fn write(&mut self, index: usize, term: Term) {
        let (value, change, weak) = (self.value(), self.random(4) > 0, self.random(2) == 0);
        let process = &mut self.processes[index];
        let after = process.pending.last().map_or(process.content.rev(), |(last, _)| last.last_rev());
        let item = Item { term, after, change, value };
        let weak = weak && process.pending.iter().all(|(_, applied)| *applied);
        process.pending.push((item, weak));
        if weak {
            assert!(process.content.apply(item));
            process.above.push(item);
            self.weak.push((index, item));
            if let Some((file, content)) = &mut process.file {
                assert!(content.apply(item));
                file.applied_rev = Rev::new(content.rev());
            }
        }
    }

    /// Ships all pending entries into the next slot; `false`: the log has ended.
    fn ship(&mut self, index: usize) -> bool {
        let process = &mut self.processes[index];
        let slots = self.logs.get_mut(&process.log).unwrap();
        if process.pending.is_empty() {
            return true;
        }
        if slots.contains_key(&process.next_slot) {
            self.on_fenced(index);
            return false;
        }
        let pending = std::mem::take(&mut process.pending);
        slots.insert(process.next_slot, SlotObject::Data(pending.iter().map(|(item, _)| *item).collect()));
        process.next_slot += 1;
        for (item, applied) in pending {
            if applied && !self.weak.contains(&(index, item)) {
                // Destroyed meanwhile.
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
                self.replies.insert(item.value);
            }
        }
        true
    }

    fn publish(
        &mut self,
        index: usize,
        current: Manifest,
        mut publish: Publish,
        effect: PublishEffect,
        serving: bool,
    ) {
        let input = match effect {
            PublishEffect::Create(manifest) => PublishInput::Created(self.create(&manifest)),
            PublishEffect::Get(number) => PublishInput::Got(match self.manifests.get(&number) {
                Some(manifest) => ManifestRead::Manifest(Box::new(manifest.clone())),
                None => ManifestRead::Missing,
            }),
            PublishEffect::List => PublishInput::Listed(self.folder()),
            PublishEffect::Indeterminate(_) => PublishInput::Resume,
            PublishEffect::Failed(reply) => panic!("no definite failures in this test: {reply}"),
            PublishEffect::NotOwner { .. } => {
                self.coverage.lost_publications += 1;
                return;
            }
            PublishEffect::Published(verified) => return self.published(index, verified, serving),
        };
        let effect = publish.apply(input);
        self.processes[index].activity = Activity::Publishing(current, publish, effect, serving);
    }

    fn published(&mut self, index: usize, verified: Verified, serving: bool) {
        let manifest = *verified.manifest;
        self.coverage.published += 1;
        self.coverage.released += u64::from(manifest.released);
        self.coverage.destroyed += u64::from(manifest.tombstone);
        self.delete(verified.garbage.into_iter().map(Deletion::Object));
        // The log no longer needs the entries that the manifest covers.
        let log = self.processes[index].log.clone();
        let slots = self.deletable(&log, &manifest);
        self.delete(slots.into_iter().map(|slot| Deletion::Slot(log.clone(), slot.get())));
        let process = &mut self.processes[index];
        process.known = process.known.max(Some(manifest.number));
        process.above.retain(|item| item.is_above(manifest.base_rev.get()));
        assert!(serving != manifest.released);
        if !manifest.released {
            process.activity = Activity::Serving(manifest);
        }
    }

    fn deletable(&self, log: &LogId, manifest: &Manifest) -> Vec<Slot> {
        let listed: Vec<Slot> = self.logs[log].keys().map(|&slot| Slot::new(slot)).collect();
        garbage::slots(&listed, |slot| match &self.logs[log][&slot.get()] {
            SlotObject::Data(items) => items.last().is_some_and(|last| {
                garbage::needs(manifest, log, SlotUse { slot, last_rev: Rev::new(last.last_rev()) })
            }),
            SlotObject::Seal => false,
        })
    }

    // Reclamation.

    fn reclaim(&mut self, index: usize) {
        let Some(mut reclaiming) = self.processes[index].reclaiming.take() else {
            // Any log that no running process owns, sealed or not.
            let running: Vec<&LogId> = self.processes.iter().map(|process| &process.log).collect();
            let mut orphaned: Vec<LogId> =
                self.logs.keys().filter(|log| !running.contains(log)).cloned().collect();
            orphaned.sort();
            if !orphaned.is_empty() {
                let owner = self.highest.map(|highest| self.manifests[&highest].owner.clone());
                let log = match owner.filter(|owner| orphaned.contains(owner)) {
                    Some(owner) => owner,
                    None => orphaned[orphaned.len() - 1 - self.random(orphaned.len().min(4))].clone(),
                };
                let (reclaim, effect) = LogReclaim::new(&log, &self.processes[index].log, false);
                self.processes[index].reclaiming = Some(Reclaiming { log, reclaim, effect, run: None });
            }
            return;
        };
        if let Some(mut run) = reclaiming.run.take() {
            let input = match self.drive(index, &mut run, false) {
                None => {
                    reclaiming.run = Some(run);
                    self.processes[index].reclaiming = Some(reclaiming);
                    return;
                }
                Some(ClaimEffect::Reclaimed(ReclaimOutcome::Released(verified))) => {
                    self.coverage.reclaimed += 1;
                    self.delete(verified.garbage.iter().cloned().map(Deletion::Object));
                    ReclaimInput::Rebased(ReclaimOutcome::Released(verified))
                }
                Some(ClaimEffect::Reclaimed(outcome)) => {
                    self.coverage.not_needed += 1;
                    ReclaimInput::Rebased(outcome)
                }
                Some(ClaimEffect::GiveUp(reply)) => {
                    self.gave_up(&reply);
                    ReclaimInput::Skipped
                }
                Some(effect) => panic!("{effect:?}"),
            };
            reclaiming.effect = reclaiming.reclaim.apply(input);
            self.processes[index].reclaiming = Some(reclaiming);
            return;
        }
        let log = reclaiming.log.clone();
        let listed = || self.logs[&log].keys().map(|&slot| Slot::new(slot));
        let input = match &reclaiming.effect {
            ReclaimEffect::Seal => {
                self.seal(&log);
                ReclaimInput::Sealed(true)
            }
            ReclaimEffect::Next { after: None } if self.items(&log, Slot::default()).is_empty() => {
                ReclaimInput::Next(None)
            }
            ReclaimEffect::Next { after: None } => {
                ReclaimInput::Next(Some(SubjectInLog { subject: subject(), slots: listed().collect() }))
            }
            ReclaimEffect::Next { after: Some(_) } => ReclaimInput::Next(None),
            ReclaimEffect::Rebase(subject) => {
                let claim = Claim::reclaim(subject.clone(), self.processes[index].log.clone(), log, false);
                reclaiming.run = Some(ClaimRun::new(claim));
                self.processes[index].reclaiming = Some(reclaiming);
                return;
            }
            ReclaimEffect::List => ReclaimInput::Listed(listed().collect()),
            ReclaimEffect::Delete(deletions) => {
                let slots: Vec<_> = deletions.slots.iter().map(|slot| slot.get()).collect();
                self.delete(slots.into_iter().map(|slot| Deletion::Slot(log.clone(), slot)));
                ReclaimInput::Deleted
            }
            ReclaimEffect::Done(_) => return,
            effect => panic!("{effect:?}"),
        };
        reclaiming.effect = reclaiming.reclaim.apply(input);
        self.processes[index].reclaiming = Some(reclaiming);
    }
}

/// Three processes claim, write and reclaim under random faults, and the newest manifest always leads to every acked
/// `bucket` write.
#[test]
fn claim_under_random_faults_loses_no_acked_write() {
    let mut total: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..800 {
        let mut world = World::new(seed);
        for _ in 0..600 {
            world.step();
        }
        for (name, count) in world.coverage.counts() {
            *total.entry(name).or_default() += count;
        }
    }
    // A run that never reaches the critical interleavings proves nothing.
    let rare: Vec<_> = total.iter().filter(|(_, count)| **count < 20).collect();
    assert!(rare.is_empty(), "{rare:?} of {total:?}");
}

/// The size of a delta with these items.
fn size_bytes(above: &[Item]) -> u64 {
    3_000 * above.len() as u64
}

impl Coverage {
    fn counts(&self) -> [(&'static str, u64); 21] {
        [
            ("served", self.served),
            ("reopened", self.reopened),
            ("published", self.published),
            ("lost publications", self.lost_publications),
            ("superseded after create", self.superseded_after_create),
            ("created in a gap", self.created_in_gap),
            ("sealed while running", self.sealed_while_running),
            ("late slots", self.late_slots),
            ("objects missing", self.objects_missing),
            ("bases put by claims", self.bases_put_by_claims),
            ("replies put by claims", self.replies_put_by_claims),
            ("stranded kept", self.stranded_kept),
            ("stranded diverged", self.stranded_diverged),
            ("files reused", self.files_reused),
            ("files refused", self.files_refused),
            ("slots deleted", self.slots_deleted),
            ("reclaimed", self.reclaimed),
            ("not needed", self.not_needed),
            ("released", self.released),
            ("destroyed", self.destroyed),
            ("gave up", self.gave_up),
        ]
    }
}
