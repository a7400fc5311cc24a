//! Three processes on one subject, under an authority that allows everything and a network that loses answers,
//! delivers late and delivers twice. Whatever the order, the bucket decides: these runs check what it must decide.
//! In other runs processes lose their leases and get new ones, and the authority allows claims only from those without:
//! then there are never two that answer.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dormouse_runtime::{Entropy, SeededEntropy};
use ulid::Ulid;

use super::*;
use crate::bucket::{BucketError, Operation};
use crate::checksum::Crc64;
use crate::keys::SnapshotName;

/// What a subject holds: the changes in order, so that rev n is the nth.
type Content = Vec<u64>;

/// The subject's file on a process's disk.
#[derive(Clone)]
struct DiskFile {
    meta: LocalFile,
    content: Content,
}

enum Activity {
    Idle,
    Claiming { claim: Claim, effect: ClaimEffect, base: Option<Nonce> },
    Serving(Manifest),
    Publishing { current: Manifest, publish: Publish, effect: PublishEffect, answers: bool },
}

struct Process {
    log: LogId,
    /// `None`: declared dead.
    lease: Option<LeaseGeneration>,
    /// The lease under which it last began to open the subject.
    opened_under: LeaseGeneration,
    leases: u64,
    activity: Activity,
    file: Option<DiskFile>,
    /// The state that a claim has prepared or a server serves.
    content: Content,
    lost: Vec<Content>,
}

/// How often each thing that the runs are about has happened.
#[derive(Default, Debug)]
struct Coverage {
    served: u64,
    reopened: u64,
    published: u64,
    lost_publications: u64,
    overtaken_after_creation: u64,
    landed_in_a_hole: u64,
    set_aside: u64,
    snapshots_missing: u64,
    rescued_by_snapshot: u64,
    destroyed: u64,
    resumed: u64,
    gave_up: u64,
    refused: u64,
    claimed_anew: u64,
}

struct World {
    leases: bool,
    /// The process that hardly gets on, if any: it lies long between what it was allowed and what it does.
    slow: usize,
    chance: SeededEntropy,
    keys: SubjectKeys,
    manifests: BTreeMap<ManifestNumber, Bytes>,
    snapshots: BTreeSet<SnapshotName>,
    /// What each snapshot that ever was held, and the file's own description in it.
    contents: HashMap<SnapshotName, DiskFile>,
    /// The state that each manifest that was ever sent stands for.
    meanings: HashMap<Nonce, Content>,
    /// Creations on their way.
    late: Vec<(ManifestNumber, Bytes)>,
    /// Deletions that somebody decided and has not carried out yet.
    deletions: Vec<BucketKey>,
    /// Who was ever told that a manifest is its own and the newest.
    verified: BTreeMap<ManifestNumber, Nonce>,
    highest: Option<ManifestNumber>,
    /// The snapshot that the newest manifest refers to.
    needed: Option<SnapshotName>,
    drawn: u128,
    processes: Vec<Process>,
    coverage: Coverage,
}

fn subject() -> Subject {
    Subject::new("a").unwrap()
}

impl World {
    fn new(seed: u64, leases: bool) -> Self {
        let mut world = Self {
            leases,
            slow: usize::MAX,
            chance: SeededEntropy::new(seed),
            keys: SubjectKeys::new(&subject()),
            manifests: BTreeMap::new(),
            snapshots: BTreeSet::new(),
            contents: HashMap::new(),
            meanings: HashMap::new(),
            late: Vec::new(),
            deletions: Vec::new(),
            verified: BTreeMap::new(),
            highest: None,
            needed: None,
            drawn: 0,
            processes: Vec::new(),
            coverage: Coverage::default(),
        };
        for server in ["a", "b", "c"] {
            let log = LogId::new(server.parse().unwrap(), world.ulid());
            let (activity, content) = (Activity::Idle, Content::new());
            world.processes.push(Process {
                log,
                lease: Some(LeaseGeneration(1)),
                opened_under: LeaseGeneration(1),
                leases: 1,
                activity,
                file: None,
                content,
                lost: Vec::new(),
            });
        }
        world
    }

    fn draw(&self, below: usize) -> usize {
        usize::try_from(self.chance.next_u64() % below as u64).unwrap()
    }

    fn ulid(&mut self) -> Ulid {
        self.drawn += 1;
        Ulid::from(self.drawn)
    }

    fn nonce(&mut self) -> Nonce {
        Nonce::new(self.ulid())
    }

    fn folder(&self) -> Folder {
        Folder {
            manifests: self.manifests.keys().copied().collect(),
            snapshots: self.snapshots.iter().copied().collect(),
            ..Folder::default()
        }
    }

    fn step(&mut self) {
        let who = self.draw(self.processes.len());
        match self.draw(16) {
            0 => self.deliver_late(),
            1 | 2 => self.delete_one(),
            3 if !self.leases || self.draw(16) == 0 => self.disturb(who),
            4 if self.leases => self.change_lease(who),
            5 if self.leases && self.draw(8) == 0 => self.slow = self.draw(self.processes.len() + 1),
            _ if self.leases && who == self.slow && self.draw(32) > 0 => {}
            _ => self.act(who),
        }
        self.check();
    }

    /// A process falls silent and is declared dead, or comes back.
    fn change_lease(&mut self, who: usize) {
        // Whoever is away comes back first, and often before others have finished what that allowed them.
        let away = self.processes.iter().position(|process| process.lease.is_none());
        let process = &mut self.processes[away.unwrap_or(who)];
        process.lease = match process.lease {
            Some(_) => None,
            None => {
                process.leases += 1;
                Some(LeaseGeneration(process.leases))
            }
        };
    }

    fn is_allowed(&self, owner: Option<&LogId>) -> bool {
        let live = |owner: &LogId| {
            self.processes.iter().any(|process| process.log == *owner && process.lease.is_some())
        };
        !self.leases || !owner.is_some_and(live)
    }

    /// What holds at every moment.
    fn check(&mut self) {
        let answering = self.processes.iter().filter(|process| {
            process.lease == Some(process.opened_under)
                && matches!(
                    process.activity,
                    Activity::Serving(_) | Activity::Publishing { answers: true, .. }
                )
        });
        assert!(!self.leases || answering.count() <= 1, "two processes with leases answer for the subject");
        let newest = self.manifests.keys().next_back().copied();
        assert!(
            newest >= self.highest,
            "the newest manifest went back from {:?} to {newest:?}",
            self.highest
        );
        if newest > self.highest {
            self.highest = newest;
            self.check_newest();
        }
        assert!(
            self.needed.is_none_or(|needed| self.snapshots.contains(&needed)),
            "{newest:?} lacks its snapshot"
        );
    }

    fn check_newest(&mut self) {
        let Some((&number, bytes)) = self.manifests.last_key_value() else { return };
        let manifest = Manifest::decode(&subject(), number, bytes).unwrap();
        let meaning = &self.meanings[&manifest.nonce];
        assert_eq!(meaning.len() as u64, manifest.base_rev.get());
        self.needed = manifest.snapshot.map(|snapshot| snapshot.name);
        if let Some(name) = &self.needed {
            assert_eq!(self.contents[name].content, *meaning);
        }
    }

    /// Somebody was told that `manifest` is its own and the newest: nobody else ever is, and nothing that was told
    /// so before is missing in it.
    fn verify(&mut self, manifest: &Manifest) {
        let earlier = self.verified.insert(manifest.number, manifest.nonce);
        assert!(
            earlier.is_none_or(|earlier| earlier == manifest.nonce),
            "{} has two owners",
            manifest.number
        );
        let meaning = &self.meanings[&manifest.nonce];
        if let Some((number, before)) = self.verified.range(..manifest.number).next_back() {
            assert!(
                meaning.starts_with(&self.meanings[before]),
                "{} lacks what {number} holds",
                manifest.number
            );
        }
    }

    fn land(&mut self, number: ManifestNumber, bytes: Bytes) -> CreateOutcome {
        match self.manifests.get(&number) {
            Some(there) if *there == bytes => CreateOutcome::Ours,
            Some(_) => CreateOutcome::Anothers,
            None => {
                if self.highest.is_some_and(|highest| highest > number) {
                    self.coverage.landed_in_a_hole += 1;
                }
                self.manifests.insert(number, bytes);
                CreateOutcome::Ours
            }
        }
    }

    fn create(&mut self, manifest: &Manifest) -> CreateOutcome {
        let bytes = manifest.encode();
        let fate = self.draw(10);
        match fate {
            // The answer is lost; the creation arrives now, later, later and again, or never.
            0 => drop(self.land(manifest.number, bytes)),
            1 | 2 => self.late.push((manifest.number, bytes)),
            3 => {}
            4 => {
                self.late.push((manifest.number, bytes.clone()));
                return self.land(manifest.number, bytes);
            }
            _ => return self.land(manifest.number, bytes),
        }
        CreateOutcome::Unknown(BucketError::Interrupted { operation: Operation::Create, name: String::new() })
    }

    fn deliver_late(&mut self) {
        if self.late.is_empty() {
            return;
        }
        let (number, bytes) = self.late.swap_remove(self.draw(self.late.len()));
        self.land(number, bytes);
    }

    fn delete_one(&mut self) {
        if self.deletions.is_empty() {
            return;
        }
        let key = self.deletions.swap_remove(self.draw(self.deletions.len()));
        let keys = self.keys.clone();
        self.manifests.retain(|&number, _| keys.manifest(number) != key);
        self.snapshots.retain(|name| keys.snapshot(name) != key);
    }

    /// A crash and a restart, an idle close, or a disk that is lost.
    fn disturb(&mut self, who: usize) {
        let ulid = self.ulid();
        let kind = self.draw(8);
        let process = &mut self.processes[who];
        process.activity = Activity::Idle;
        if kind > 1 {
            process.log = LogId::new(process.log.server().clone(), ulid);
        }
        if kind == 7 {
            process.file = None;
        }
    }

    fn upload(&mut self, who: usize, made_for: ManifestNumber) -> SnapshotRef {
        let nonce = self.nonce();
        let process = &self.processes[who];
        let (content, mut file) = (process.content.clone(), process.file.clone().unwrap());
        let name = SnapshotName { made_for, rev: Rev::new(content.len() as u64), nonce };
        file.content = content;
        self.contents.insert(name, file);
        self.snapshots.insert(name);
        SnapshotRef { name, size_bytes: 1, crc64: Crc64::of(b"") }
    }

    fn act(&mut self, who: usize) {
        match std::mem::replace(&mut self.processes[who].activity, Activity::Idle) {
            Activity::Idle => {
                let process = &mut self.processes[who];
                let Some(lease) = process.lease else { return };
                process.opened_under = lease;
                let local = process.file.as_ref().map(|file| file.meta.clone());
                let (claim, effect) = Claim::new(subject(), process.log.clone(), lease, local);
                process.activity = Activity::Claiming { claim, effect, base: None };
            }
            Activity::Claiming { claim, effect, base } => self.claim(who, claim, effect, base),
            Activity::Serving(manifest) => self.serve(who, manifest),
            Activity::Publishing { current, publish, effect, answers } => {
                self.publish(who, current, publish, effect, answers);
            }
        }
    }

    fn claim(&mut self, who: usize, mut claim: Claim, effect: ClaimEffect, mut base: Option<Nonce>) {
        let input = match effect {
            ClaimEffect::List => {
                base = None;
                ClaimInput::Listed(self.folder())
            }
            ClaimEffect::Get(number) => {
                let bytes = self.manifests.get(&number).cloned();
                base = bytes.as_ref().map(|bytes| Manifest::decode(&subject(), number, bytes).unwrap().nonce);
                ClaimInput::Got(bytes)
            }
            ClaimEffect::AskAuthority { owner } if self.is_allowed(owner.as_ref()) => {
                if self.draw(2) == 0 {
                    self.slow = who;
                }
                ClaimInput::Allowed
            }
            ClaimEffect::AskAuthority { .. } => {
                self.coverage.refused += 1;
                ClaimInput::Refused(ErrorReply::unavailable("its owner is alive"))
            }
            ClaimEffect::SetAsideLocal => {
                let file = self.processes[who].file.take().unwrap();
                self.processes[who].lost.push(file.content);
                self.coverage.set_aside += 1;
                ClaimInput::LocalSetAside
            }
            ClaimEffect::ReuseLocal => {
                self.processes[who].content = self.processes[who].file.as_ref().unwrap().content.clone();
                ClaimInput::LocalReady { nonce: self.nonce() }
            }
            ClaimEffect::StartEmpty { base_rev, .. } => {
                let content = base.map(|base| self.meanings[&base].clone()).unwrap_or_default();
                assert_eq!(content.len() as u64, base_rev.get());
                self.replace_file(who, content, None);
                ClaimInput::LocalReady { nonce: self.nonce() }
            }
            ClaimEffect::PullSnapshot(snapshot) if self.snapshots.contains(&snapshot.name) => {
                let mut pulled = self.contents[&snapshot.name].clone();
                assert_eq!(
                    pulled.content,
                    self.meanings[&base.unwrap()],
                    "the snapshot is the manifest's state"
                );
                pulled.meta.applied_rev = snapshot.rev();
                pulled.meta.in_bucket_rev = snapshot.rev();
                self.replace_file(who, pulled.content.clone(), Some(pulled));
                ClaimInput::LocalReady { nonce: self.nonce() }
            }
            ClaimEffect::PullSnapshot(_) => {
                self.coverage.snapshots_missing += 1;
                ClaimInput::SnapshotMissing
            }
            ClaimEffect::SnapshotLocal { made_for } => {
                self.coverage.rescued_by_snapshot += 1;
                self.processes[who].content = self.processes[who].file.as_ref().unwrap().content.clone();
                let snapshot = self.upload(who, made_for);
                let (next_seq, nonce) = (Seq::new(1), self.nonce());
                ClaimInput::SnapshotTaken { snapshot, next_seq, nonce }
            }
            ClaimEffect::Create(manifest) => {
                self.meanings.insert(manifest.nonce, self.processes[who].content.clone());
                let outcome = self.create(&manifest);
                if matches!(outcome, CreateOutcome::Ours) && self.highest > Some(manifest.number) {
                    self.coverage.overtaken_after_creation += 1;
                }
                ClaimInput::Created(outcome)
            }
            ClaimEffect::Serve { manifest, garbage } => return self.start_serving(who, *manifest, garbage),
            ClaimEffect::GiveUp(reply) => {
                assert_eq!(reply.code, dormouse_protocol::ErrorCode::Unavailable, "{reply}");
                self.coverage.gave_up += 1;
                return;
            }
        };
        let effect = claim.apply(input);
        self.processes[who].activity = Activity::Claiming { claim, effect, base };
    }

    /// A file takes the place of another, which must hold nothing that would be missed.
    fn replace_file(&mut self, who: usize, content: Content, file: Option<DiskFile>) {
        if let Some(old) = &self.processes[who].file {
            let shipped = usize::try_from(old.meta.in_bucket_rev.get()).unwrap();
            assert!(old.content.len() <= shipped, "changes that are nowhere else were written over");
        }
        self.processes[who].content = content;
        self.processes[who].file = file;
    }

    fn start_serving(&mut self, who: usize, manifest: Manifest, garbage: Vec<BucketKey>) {
        self.deletions.extend(garbage);
        let process = &mut self.processes[who];
        assert_eq!(manifest.owner, process.log);
        if self.verified.contains_key(&manifest.number) {
            self.coverage.reopened += 1;
        }
        self.coverage.served += 1;
        let local = process.file.as_ref().map(|file| &file.meta);
        if local.is_some_and(|local| {
            local.log == process.log && local.lease.is_some_and(|lease| lease < process.opened_under)
        }) {
            self.coverage.claimed_anew += 1;
        }
        let content = process.content.clone();
        assert!(
            content.starts_with(&self.meanings[&manifest.nonce]),
            "served without what the manifest holds"
        );
        let meta = LocalFile {
            log: manifest.owner.clone(),
            lease: Some(process.opened_under),
            term: manifest.term,
            manifest: manifest.number,
            applied_rev: Rev::new(content.len() as u64),
            in_bucket_rev: manifest.base_rev,
        };
        process.file = Some(DiskFile { meta, content });
        self.verify(&manifest);
        self.processes[who].activity = Activity::Serving(manifest);
    }

    fn serve(&mut self, who: usize, manifest: Manifest) {
        let (lease, opened_under) = (self.processes[who].lease, self.processes[who].opened_under);
        if lease.is_some_and(|lease| lease != opened_under) {
            // After a gap: opened anew, whatever a listing says.
            return;
        }
        match self.draw(8) {
            0..=4 if lease.is_none() => self.processes[who].activity = Activity::Serving(manifest),
            0..=3 => {
                let change = u64::try_from(self.ulid().0).unwrap();
                let process = &mut self.processes[who];
                process.content.push(change);
                let file = process.file.as_mut().unwrap();
                file.content.push(change);
                file.meta.applied_rev = file.meta.applied_rev.next();
                process.activity = Activity::Serving(manifest);
            }
            // A look at who is the owner.
            4 => {
                if is_newest(&self.folder(), &manifest) {
                    self.verify(&manifest);
                    self.processes[who].activity = Activity::Serving(manifest);
                }
            }
            kind => {
                let (unchanged, rev) = {
                    let content = &self.processes[who].content;
                    (content.len() as u64 == manifest.base_rev.get(), Rev::new(content.len() as u64))
                };
                let publication = match kind {
                    5 if self.draw(4) == 0 => Publication::Destroy { rev, next_seq: Seq::new(9) },
                    6 if unchanged => Publication::Release(None),
                    _ => {
                        let snapshot = self.upload(who, manifest.number.next());
                        let base = NewBase { snapshot, next_seq: Seq::new(1) };
                        if kind == 6 { Publication::Release(Some(base)) } else { Publication::Snapshot(base) }
                    }
                };
                let (publish, effect) = Publish::new(&manifest, publication, self.nonce());
                let PublishEffect::Create(next) = &effect else { panic!("{effect:?}") };
                let answers = !next.released;
                self.meanings.insert(next.nonce, self.processes[who].content.clone());
                self.processes[who].activity =
                    Activity::Publishing { current: manifest, publish, effect, answers };
            }
        }
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
            PublishEffect::Get(number) => PublishInput::Got(self.manifests.get(&number).cloned()),
            PublishEffect::List => PublishInput::Listed(self.folder()),
            PublishEffect::Undecided(_) => {
                self.coverage.resumed += 1;
                PublishInput::Resume
            }
            PublishEffect::Failed(reply) => panic!("nothing here fails for certain: {reply}"),
            PublishEffect::Lost => {
                self.coverage.lost_publications += 1;
                return;
            }
            PublishEffect::Published { manifest, garbage } => {
                self.coverage.published += 1;
                self.deletions.extend(garbage);
                self.verify(&manifest);
                let file = self.processes[who].file.as_mut().unwrap();
                file.meta.manifest = manifest.number;
                file.meta.in_bucket_rev = manifest.base_rev;
                if manifest.tombstone {
                    self.coverage.destroyed += 1;
                }
                if !manifest.released {
                    self.processes[who].activity = Activity::Serving(*manifest);
                }
                return;
            }
        };
        let effect = publish.apply(input);
        self.processes[who].activity = Activity::Publishing { current, publish, effect, answers };
    }
}

#[test]
fn whatever_the_network_does_the_bucket_decides() {
    let mut total = Coverage::default();
    for seed in 0..400 {
        let mut world = World::new(seed, false);
        for _ in 0..400 {
            world.step();
        }
        let seen = world.coverage;
        total.served += seen.served;
        total.reopened += seen.reopened;
        total.published += seen.published;
        total.lost_publications += seen.lost_publications;
        total.overtaken_after_creation += seen.overtaken_after_creation;
        total.landed_in_a_hole += seen.landed_in_a_hole;
        total.set_aside += seen.set_aside;
        total.snapshots_missing += seen.snapshots_missing;
        total.rescued_by_snapshot += seen.rescued_by_snapshot;
        total.destroyed += seen.destroyed;
        total.resumed += seen.resumed;
        total.gave_up += seen.gave_up;
    }
    // A run that never gets where it is dangerous proves nothing.
    let seen = [
        total.served,
        total.reopened,
        total.published,
        total.lost_publications,
        total.overtaken_after_creation,
        total.landed_in_a_hole,
        total.set_aside,
        total.snapshots_missing,
        total.rescued_by_snapshot,
        total.destroyed,
        total.resumed,
    ];
    assert!(seen.iter().all(|&count| count >= 20), "{total:?}");
}

#[test]
fn of_all_who_hold_a_lease_one_answers() {
    let (mut served, mut refused, mut claimed_anew) = (0, 0, 0);
    for seed in 0..400 {
        let mut world = World::new(seed, true);
        for _ in 0..400 {
            world.step();
        }
        served += world.coverage.served;
        refused += world.coverage.refused;
        claimed_anew += world.coverage.claimed_anew;
    }
    assert!(
        [served, refused, claimed_anew].iter().all(|&count| count >= 100),
        "{served} {refused} {claimed_anew}"
    );
}
