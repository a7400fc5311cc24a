use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_protocol::{ErrorReply, LogId, Rev, Seq, Slot, Subject, Term, Timestamp};
use dormouse_runtime::{Env, SeededEntropy, VirtualClock};
use tempfile::TempDir;
use ulid::Ulid;

use super::machine::Found;
use super::segments::{blocks, found_in, next_batch};
use super::*;
use crate::bucket::faults::{FaultPlan, FaultyBucket};
use crate::bucket::{Bucket, ObjectStoreBucket};
use crate::entry::Entry;
use crate::format::segment::{self, Block, NO_PREVIOUS, SlotHeader, SlotKind, SlotObject};
use crate::format::{delta, frame};
use crate::keys::{LogKeys, Nonce};
use crate::log::seal::{Looked, Seal, SealEffect, SealInput};
use crate::plan::{Operation, SetOperation};
use crate::wal::{FileSystem, Lsn, Wal, WalAppend, list_logs};

fn log() -> LogId {
    "persist-1-01J9Z3ZZZZZZZZZZZZZZZZZZZZ".parse().unwrap()
}

fn subject(name: &str) -> Subject {
    Subject::new(name).unwrap()
}

fn entry(after: u64) -> Entry {
    let set = SetOperation {
        seq: Seq::new(after + 1),
        key: None,
        value: Some(Bytes::from(format!("value {after}"))),
        blob: None,
        headers: dormouse_protocol::Headers::default(),
        timestamp: Timestamp::from_micros(1),
        replaces: None,
        expires_at: None,
        msg_id: None,
    };
    Entry {
        term: Term::new(3),
        after: Rev::new(after),
        accept_time: Timestamp::from_micros(1),
        request: None,
        operations: vec![Operation::Set(set)],
    }
}

fn append(lsn: u64, name: &str, after: u64) -> WalAppend {
    let entry = entry(after);
    WalAppend {
        lsn: Lsn::new(lsn),
        subject: subject(name),
        first_after: entry.after,
        last_rev: entry.last_rev(),
        entries: 1,
        frames: frame::encode(&entry).unwrap(),
    }
}

/// What the dead process accepted: two subjects in turn.
fn accepted() -> Vec<WalAppend> {
    (1..=6)
        .map(|lsn| append(lsn, if lsn % 2 == 0 { "app.even" } else { "app.odd" }, lsn.div_ceil(2)))
        .collect()
}

fn slot_bytes(kind: SlotKind, slot: u64, appends: &[WalAppend]) -> Bytes {
    let header = SlotHeader {
        kind,
        log: log(),
        slot: Slot::new(slot),
        nonce: Nonce::new(Ulid::from(u128::from(slot))),
        previous: NO_PREVIOUS,
    };
    segment::encode(&header, blocks(appends)).bytes
}

struct Machine {
    folder: TempDir,
    settings: RecoverySettings,
}

/// Seals as a claim does.
struct Sealer(Arc<dyn Bucket>);

#[async_trait]
impl SealLog for Sealer {
    async fn seal(&self, log: &LogId) -> Result<(), ErrorReply> {
        let keys = LogKeys::new(log);
        let (mut machine, mut effect) = Seal::begin();
        loop {
            let input = match effect {
                SealEffect::List => {
                    let listed = self.0.list(keys.folder()).await.unwrap();
                    SealInput::Listed(keys.read_listing(&listed).last().copied())
                }
                SealEffect::Look(slot) => {
                    let bytes = self.0.get(&keys.slot(slot)).await.unwrap().unwrap();
                    let kind = segment::decode(log, slot, bytes).unwrap().header.kind;
                    SealInput::Looked(if kind == SlotKind::Seal { Looked::Seal } else { Looked::Other })
                }
                SealEffect::Create(slot) => {
                    let bytes = slot_bytes(SlotKind::Seal, slot.get(), &[]);
                    self.0.create(&keys.slot(slot), bytes).await.unwrap();
                    SealInput::Created { ours: true }
                }
                SealEffect::Sealed(_) => return Ok(()),
                SealEffect::Absent => return Err(ErrorReply::unavailable("absent")),
            };
            effect = machine.apply(input).unwrap();
        }
    }
}

impl Machine {
    fn new() -> Self {
        let clock = VirtualClock::starting_at(Duration::from_secs(1_700_000_000));
        let env = Env::simulated(Arc::new(clock), Arc::new(SeededEntropy::new(1)));
        let folder = tempfile::tempdir().unwrap();
        let settings = RecoverySettings {
            storage: Arc::new(FileSystem),
            wal: folder.path().join("wal"),
            lost: folder.path().join("lost"),
            bucket: Arc::new(ObjectStoreBucket::in_memory(env.clone())),
            env,
        };
        Self { folder, settings }
    }

    fn wal(&self, appends: &[WalAppend]) -> Wal {
        let mut wal = Wal::create(&self.settings.wal, &log(), self.settings.storage.clone()).unwrap();
        wal.write(appends).unwrap();
        wal
    }

    /// Slots from 0 on: the birth, then one for each of these.
    async fn ship(&self, slots: &[&[WalAppend]]) {
        let mut objects = vec![slot_bytes(SlotKind::Birth, 0, &[])];
        objects
            .extend(slots.iter().zip(1..).map(|(appends, slot)| slot_bytes(SlotKind::Data, slot, appends)));
        for (bytes, slot) in objects.into_iter().zip(0..) {
            self.settings.bucket.create(&LogKeys::new(&log()).slot(Slot::new(slot)), bytes).await.unwrap();
        }
    }

    fn sealer(&self) -> Sealer {
        Sealer(self.settings.bucket.clone())
    }

    async fn recover(&self) -> Result<Surplus, RecoveryError> {
        recover(&self.settings, &self.sealer()).await
    }

    async fn slots(&self) -> Vec<SlotObject> {
        let keys = LogKeys::new(&log());
        let listed = self.settings.bucket.list(keys.folder()).await.unwrap();
        let mut objects = Vec::new();
        for slot in keys.read_listing(&listed) {
            let bytes = self.settings.bucket.get(&keys.slot(slot)).await.unwrap().unwrap();
            objects.push(segment::decode(&log(), slot, bytes).unwrap());
        }
        objects
    }

    fn waiting_logs(&self) -> Vec<LogId> {
        list_logs(self.settings.storage.as_ref(), &self.settings.wal).unwrap()
    }

    /// Each subject's entries in the whole log, which ends with a seal.
    async fn whole_log(&self) -> BTreeMap<Subject, Vec<Entry>> {
        let slots = self.slots().await;
        assert_eq!(slots.last().unwrap().header.kind, SlotKind::Seal);
        let mut entries: BTreeMap<Subject, Vec<Entry>> = BTreeMap::new();
        for slot in &slots {
            for line in &slot.lines {
                entries
                    .entry(line.subject.clone())
                    .or_default()
                    .extend(slot.entries_of(&line.subject).unwrap());
            }
        }
        entries
    }
}

fn everything() -> BTreeMap<Subject, Vec<Entry>> {
    let entries = |revs: [u64; 3]| revs.into_iter().map(entry).collect();
    [(subject("app.even"), entries([1, 2, 3])), (subject("app.odd"), entries([1, 2, 3]))].into()
}

#[tokio::test(start_paused = true)]
async fn what_was_not_shipped_goes_into_the_log_and_the_log_ends() {
    let machine = Machine::new();
    let all = accepted();
    machine.ship(&[&all[..2]]).await;
    let mut wal = machine.wal(&all);
    wal.shipped(Lsn::new(2), Slot::new(1)).unwrap();
    assert!(machine.recover().await.unwrap().is_empty());
    assert_eq!(machine.whole_log().await, everything());
    let slots = machine.slots().await;
    assert_eq!((slots.len(), slots[2].header.previous), (4, slots[1].checksum));
    assert_eq!(machine.waiting_logs(), []);
    // Again: nothing is left to do.
    assert!(machine.recover().await.unwrap().is_empty());
    assert_eq!(machine.slots().await, slots);
}

#[tokio::test(start_paused = true)]
async fn what_was_shipped_without_a_note_of_it_is_not_shipped_twice() {
    let all = accepted();
    for (noted, shipped) in [(0, 2), (0, 4), (2, 6), (6, 6)] {
        let machine = Machine::new();
        let slots: Vec<&[WalAppend]> = all[..shipped].chunks(2).collect();
        machine.ship(&slots).await;
        let mut wal = machine.wal(&all);
        if noted > 0 {
            wal.shipped(Lsn::new(noted), Slot::new(noted / 2)).unwrap();
        }
        assert!(machine.recover().await.unwrap().is_empty());
        assert_eq!(machine.whole_log().await, everything(), "noted {noted}, shipped {shipped}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_outlived_its_place_in_the_write_ahead_log_shows_that_all_is_shipped() {
    let machine = Machine::new();
    let all = accepted();
    machine.ship(&[&all[..4], &all[4..]]).await;
    machine.wal(&all[..4]);
    assert!(machine.recover().await.unwrap().is_empty());
    assert_eq!(machine.whole_log().await, everything());
}

#[tokio::test(start_paused = true)]
async fn a_rough_bucket_changes_nothing() {
    for seed in 0..40 {
        let mut machine = Machine::new();
        let all = accepted();
        machine.ship(&[&all[..3]]).await;
        machine.wal(&all);
        let inner = machine.settings.bucket.clone();
        let env = machine.settings.env.clone();
        let faulty = Arc::new(FaultyBucket::new(inner.clone(), seed, FaultPlan::rough(), env));
        machine.settings.bucket = faulty.clone();
        let recovered = recover(&machine.settings, &Sealer(inner.clone())).await;
        faulty.settle().await;
        machine.settings.bucket = inner;
        assert!(recovered.unwrap().is_empty(), "seed {seed}");
        assert_eq!(machine.whole_log().await, everything(), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_left_when_another_ended_the_log_waits_for_its_subjects() {
    let machine = Machine::new();
    let all = accepted();
    machine.ship(&[&all[..2]]).await;
    machine.wal(&all).shipped(Lsn::new(2), Slot::new(1)).unwrap();
    machine.sealer().seal(&log()).await.unwrap();
    let before = machine.slots().await;

    let surplus = machine.recover().await.unwrap();
    let (even, odd) = (subject("app.even"), subject("app.odd"));
    assert_eq!(surplus.waiting(), [(even.clone(), vec![log()]), (odd.clone(), vec![log()])]);
    assert_eq!(surplus.entries(&even, &log()).unwrap(), [entry(2), entry(3)]);
    surplus.settle(&even, &log()).await.unwrap();
    assert_eq!((surplus.logs_of(&even), surplus.logs_of(&odd)), (vec![], vec![log()]));
    assert_eq!(machine.slots().await, before);

    // The next process finds what is not settled.
    let surplus = machine.recover().await.unwrap();
    assert_eq!(surplus.waiting(), [(odd.clone(), vec![log()])]);
    let kept = surplus.lose(&odd, &log(), |_| Rev::new(3)).await.unwrap();
    assert!(surplus.is_empty());
    assert_eq!(machine.waiting_logs(), []);

    let [file]: [PathBuf; 1] = kept.try_into().unwrap();
    assert_eq!(file.parent().unwrap(), machine.folder.path().join("lost/app.odd"));
    let here = Bytes::from(std::fs::read(&file).unwrap());
    let name = format!("lost/app.odd/{}", file.file_name().unwrap().to_str().unwrap());
    let there = machine.settings.bucket.get(&crate::bucket::BucketKey::new(&name).unwrap()).await.unwrap();
    assert_eq!(there, Some(here.clone()));
    let (lost_subject, lost) = delta::read(&here).unwrap();
    assert_eq!((lost_subject, lost.after, lost.entries), (odd, Rev::new(3), vec![entry(3)]));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_put_into_lost_when_the_state_has_it_all() {
    let machine = Machine::new();
    let all = accepted();
    machine.ship(&[]).await;
    machine.wal(&all);
    machine.sealer().seal(&log()).await.unwrap();
    let surplus = machine.recover().await.unwrap();
    assert_eq!(
        surplus.lose(&subject("app.odd"), &log(), |_| Rev::new(4)).await.unwrap(),
        Vec::<PathBuf>::new()
    );
    assert!(!machine.folder.path().join("lost/app.odd").exists());
}

#[tokio::test(start_paused = true)]
async fn what_stands_behind_damage_is_kept_and_not_believed() {
    let machine = Machine::new();
    let all = accepted();
    machine.ship(&[]).await;
    let mut wal = machine.wal(&all[..4]);
    let part = machine.settings.wal.join(log().to_string()).join("00000001.wal");
    let end = std::fs::metadata(&part).unwrap().len();
    wal.write(&all[4..5]).unwrap();
    wal.sync().unwrap();
    wal.write(&all[5..]).unwrap();
    let mut bytes = std::fs::read(&part).unwrap();
    bytes[usize::try_from(end).unwrap() + 30] ^= 1;
    std::fs::write(&part, &bytes).unwrap();

    machine.recover().await.unwrap();
    let believed = machine.whole_log().await;
    assert_eq!(believed[&subject("app.even")], [entry(1), entry(2)]);
    assert_eq!(believed[&subject("app.odd")], [entry(1), entry(2)]);
    let kept = machine.folder.path().join("lost/=wal").join(log().to_string()).join("00000001.wal");
    assert_eq!(std::fs::read(kept).unwrap(), bytes);
    assert_eq!(machine.waiting_logs(), []);
}

#[tokio::test(start_paused = true)]
async fn a_log_that_was_never_born_leaves_nothing() {
    let machine = Machine::new();
    machine.wal(&[]);
    assert!(machine.recover().await.unwrap().is_empty());
    assert_eq!(machine.waiting_logs(), []);
    assert_eq!(machine.slots().await, []);
}

#[tokio::test(start_paused = true)]
async fn another_bucket_is_refused_and_nothing_is_thrown_away() {
    let all = accepted();
    for slots in [vec![], vec![&all[..2]]] {
        let machine = Machine::new();
        if !slots.is_empty() {
            machine.ship(&slots).await;
        }
        machine.wal(&all).shipped(Lsn::new(4), Slot::new(2)).unwrap();
        let refused = machine.recover().await.err().unwrap();
        assert!(matches!(refused, RecoveryError::BucketLacks { .. }), "{refused}");
        assert_eq!(machine.waiting_logs(), [log()]);
    }
}

#[test]
fn a_batch_ends_where_a_segment_would_be_too_long_or_have_a_hole() {
    let sized = |lsn, after, bytes: usize| WalAppend {
        frames: Bytes::from(vec![0; bytes]),
        ..append(lsn, "app", after)
    };
    let long =
        [sized(1, 1, 10 << 20), sized(2, 2, 6 << 20), sized(3, 3, 1), sized(4, 4, 40 << 20), sized(5, 5, 1)];
    let batch = |appends: &[WalAppend], after| next_batch(appends, Lsn::new(after)).len();
    assert_eq!([0, 2, 3, 4, 5].map(|after| batch(&long, after)), [2, 1, 1, 1, 0]);
    let hole = [append(1, "app", 1), append(2, "other", 1), append(3, "app", 7), append(4, "app", 8)];
    assert_eq!([0, 2].map(|after| batch(&hole, after)), [2, 2]);
}

#[test]
fn a_segment_tells_how_far_its_log_came() {
    let all = accepted();
    let object = |appends: &[WalAppend]| {
        segment::decode(&log(), Slot::new(1), slot_bytes(SlotKind::Data, 1, appends)).unwrap()
    };
    assert_eq!(found_in(&object(&all[..3]), &all), Found::Through(Lsn::new(3)));
    assert_eq!(found_in(&object(&all[3..4]), &all), Found::Through(Lsn::new(4)));
    assert_eq!(found_in(&object(&all[2..5]), &all[..4]), Found::Beyond);
    let block = Block {
        subject: subject("app.odd"),
        first_after: Rev::new(1),
        last_rev: Rev::new(3),
        entries: 2,
        frames: [all[0].frames.clone(), all[2].frames.clone()].concat().into(),
    };
    let both = WalAppend {
        lsn: Lsn::new(9),
        frames: block.frames,
        entries: 2,
        last_rev: block.last_rev,
        ..all[0].clone()
    };
    assert_eq!(found_in(&object(&all[..1]), std::slice::from_ref(&both)), Found::Through(Lsn::new(9)));
}
