mod random;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_bucket::{Bucket, ObjectStoreBucket};
use dormouse_format::entry::LogEntry;
use dormouse_format::keys::{LogKeys, Nonce};
use dormouse_format::record::{RecordOp, SetOperation};
use dormouse_format::segment::{self, Block, NO_PREVIOUS, SlotHeader, SlotKind, SlotObject};
use dormouse_format::{delta, frame};
use dormouse_protocol::{ErrorReply, LogId, Rev, Seq, Slot, Subject, Term, Timestamp};
use dormouse_runtime::disk::LocalDisk;
use dormouse_runtime::{Env, SeededEntropy, VirtualClock};
use dormouse_testkit::bucket::{FaultPlan, FaultyBucket};
use tempfile::TempDir;
use ulid::Ulid;

use super::machine::WalMatch;
use super::segments::{blocks, match_segment, next_batch};
use super::*;
use crate::log::seal::{SealEffect, SealInput, SealMachine, SealedSlotRead};
use crate::wal::{Lsn, Wal, WalAppend, list_logs};

fn log() -> LogId {
    "persist-1-01J9Z3ZZZZZZZZZZZZZZZZZZZZ".parse().unwrap()
}

fn subject(name: &str) -> Subject {
    Subject::new(name).unwrap()
}

fn entry(after: u64) -> LogEntry {
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
    LogEntry {
        term: Term::new(3),
        after: Rev::new(after),
        accept_time: Timestamp::from_micros(1),
        request: None,
        operations: vec![RecordOp::Set(set)],
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

/// The appends that the ended process accepted: two subjects in turn.
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

/// Seals a log, as a claim does.
struct Sealer(Arc<dyn Bucket>);

#[async_trait]
impl SealLog for Sealer {
    async fn seal(&self, log: &LogId) -> Result<(), ErrorReply> {
        let keys = LogKeys::new(log);
        let (mut machine, mut effect) = SealMachine::begin();
        loop {
            let input = match effect {
                SealEffect::List => {
                    let listed = self.0.list(keys.folder()).await.unwrap();
                    SealInput::Listed(keys.read_listing(&listed).last().copied())
                }
                SealEffect::ReadSlot(slot) => {
                    let bytes = self.0.get(&keys.slot(slot)).await.unwrap().unwrap();
                    let kind = segment::decode(log, slot, bytes).unwrap().header.kind;
                    SealInput::SlotRead(if kind == SlotKind::Seal {
                        SealedSlotRead::Seal
                    } else {
                        SealedSlotRead::Other
                    })
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
            disk: Arc::new(LocalDisk),
            wal: folder.path().join("wal"),
            lost: folder.path().join("lost"),
            bucket: Arc::new(ObjectStoreBucket::in_memory(env.clone())),
            env,
        };
        Self { folder, settings }
    }

    fn wal(&self, appends: &[WalAppend]) -> Wal {
        let mut wal = Wal::create(&self.settings.wal, &log(), self.settings.disk.clone()).unwrap();
        wal.write(appends).unwrap();
        wal
    }

    /// Creates the slots from 0 on: the log's first object, then one slot for each of `slots`.
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

    async fn recover(&self) -> Result<StrandedWrites, RecoveryError> {
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
        list_logs(self.settings.disk.as_ref(), &self.settings.wal).unwrap()
    }

    /// Each subject's entries in the whole log, whose last slot is a seal.
    async fn whole_log(&self) -> BTreeMap<Subject, Vec<LogEntry>> {
        let slots = self.slots().await;
        assert_eq!(slots.last().unwrap().header.kind, SlotKind::Seal);
        let mut entries: BTreeMap<Subject, Vec<LogEntry>> = BTreeMap::new();
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

fn everything() -> BTreeMap<Subject, Vec<LogEntry>> {
    let entries = |revs: [u64; 3]| revs.into_iter().map(entry).collect();
    [(subject("app.even"), entries([1, 2, 3])), (subject("app.odd"), entries([1, 2, 3]))].into()
}

/// Recovery ships all unshipped writes of an orphaned log, seals it and removes its WAL; a second run does nothing.
#[tokio::test(start_paused = true)]
async fn recovery_ships_unshipped_writes_and_seals_log() {
    let machine = Machine::new();
    let all = accepted();
    machine.ship(&[&all[..2]]).await;
    let mut wal = machine.wal(&all);
    wal.mark_shipped(Lsn::new(2), Slot::new(1)).unwrap();
    assert!(machine.recover().await.unwrap().is_empty());
    assert_eq!(machine.whole_log().await, everything());
    let slots = machine.slots().await;
    assert_eq!((slots.len(), slots[2].header.previous), (4, slots[1].checksum));
    assert_eq!(machine.waiting_logs(), []);
    // The second run has nothing to do.
    assert!(machine.recover().await.unwrap().is_empty());
    assert_eq!(machine.slots().await, slots);
}

/// Recovery ships no segment twice, even if the WAL lacks the mark that it shipped.
#[tokio::test(start_paused = true)]
async fn recovery_does_not_reship_segments_without_wal_mark() {
    let all = accepted();
    for (marked, shipped) in [(0, 2), (0, 4), (2, 6), (6, 6)] {
        let machine = Machine::new();
        let slots: Vec<&[WalAppend]> = all[..shipped].chunks(2).collect();
        machine.ship(&slots).await;
        let mut wal = machine.wal(&all);
        if marked > 0 {
            wal.mark_shipped(Lsn::new(marked), Slot::new(marked / 2)).unwrap();
        }
        assert!(machine.recover().await.unwrap().is_empty());
        assert_eq!(machine.whole_log().await, everything(), "marked {marked}, shipped {shipped}");
    }
}

/// If the log holds a segment beyond the WAL's end, recovery knows that all writes shipped.
#[tokio::test(start_paused = true)]
async fn recovery_with_segment_beyond_wal_end_ships_nothing() {
    let machine = Machine::new();
    let all = accepted();
    machine.ship(&[&all[..4], &all[4..]]).await;
    machine.wal(&all[..4]);
    assert!(machine.recover().await.unwrap().is_empty());
    assert_eq!(machine.whole_log().await, everything());
}

/// With a faulty bucket, recovery still puts every write into the log exactly once.
#[tokio::test(start_paused = true)]
async fn recovery_on_faulty_bucket_ships_each_write_once() {
    for seed in 0..40 {
        let mut machine = Machine::new();
        let all = accepted();
        machine.ship(&[&all[..3]]).await;
        machine.wal(&all);
        let inner = machine.settings.bucket.clone();
        let env = machine.settings.env.clone();
        let faulty = Arc::new(FaultyBucket::new(inner.clone(), seed, FaultPlan::frequent(), env));
        machine.settings.bucket = faulty.clone();
        let recovered = recover(&machine.settings, &Sealer(inner.clone())).await;
        faulty.apply_delayed().await;
        machine.settings.bucket = inner;
        assert!(recovered.unwrap().is_empty(), "seed {seed}");
        assert_eq!(machine.whole_log().await, everything(), "seed {seed}");
    }
}

/// If another process sealed the log, unshipped writes stay stranded until each subject resolves them or they move to
/// `lost/`.
#[tokio::test(start_paused = true)]
async fn recovery_of_foreign_sealed_log_keeps_stranded_writes() {
    let machine = Machine::new();
    let all = accepted();
    machine.ship(&[&all[..2]]).await;
    machine.wal(&all).mark_shipped(Lsn::new(2), Slot::new(1)).unwrap();
    machine.sealer().seal(&log()).await.unwrap();
    let before = machine.slots().await;

    let stranded = machine.recover().await.unwrap();
    let (even, odd) = (subject("app.even"), subject("app.odd"));
    assert_eq!(stranded.pending_subjects(), [(even.clone(), vec![log()]), (odd.clone(), vec![log()])]);
    assert_eq!(stranded.entries(&even, &log()).unwrap(), [entry(2), entry(3)]);
    stranded.mark_resolved(&even, &log()).await.unwrap();
    assert_eq!((stranded.logs_of(&even), stranded.logs_of(&odd)), (vec![], vec![log()]));
    assert_eq!(machine.slots().await, before);

    // The next process finds the unresolved subject.
    let stranded = machine.recover().await.unwrap();
    assert_eq!(stranded.pending_subjects(), [(odd.clone(), vec![log()])]);
    let kept = stranded.move_to_lost(&odd, &log(), |_| Rev::new(3)).await.unwrap();
    assert!(stranded.is_empty());
    assert_eq!(machine.waiting_logs(), []);

    let [file]: [PathBuf; 1] = kept.try_into().unwrap();
    assert_eq!(file.parent().unwrap(), machine.folder.path().join("lost/app.odd"));
    let here = Bytes::from(std::fs::read(&file).unwrap());
    let name = format!("lost/app.odd/{}", file.file_name().unwrap().to_str().unwrap());
    let there =
        machine.settings.bucket.get(&dormouse_format::keys::BucketKey::new(&name).unwrap()).await.unwrap();
    assert_eq!(there, Some(here.clone()));
    let (lost_subject, lost) = delta::read(&here).unwrap();
    assert_eq!((lost_subject, lost.after, lost.entries), (odd, Rev::new(3), vec![entry(3)]));
}

/// If the state holds all stranded writes, no file is created in `lost/`.
#[tokio::test(start_paused = true)]
async fn stranded_writes_already_in_state_are_not_kept_in_lost() {
    let machine = Machine::new();
    let all = accepted();
    machine.ship(&[]).await;
    machine.wal(&all);
    machine.sealer().seal(&log()).await.unwrap();
    let stranded = machine.recover().await.unwrap();
    assert_eq!(
        stranded.move_to_lost(&subject("app.odd"), &log(), |_| Rev::new(4)).await.unwrap(),
        Vec::<PathBuf>::new()
    );
    assert!(!machine.folder.path().join("lost/app.odd").exists());
}

/// Recovery ignores WAL records behind damage and keeps the damaged part in `lost/`.
#[tokio::test(start_paused = true)]
async fn recovery_keeps_damaged_wal_part_and_ignores_rest() {
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
    let recovered = machine.whole_log().await;
    assert_eq!(recovered[&subject("app.even")], [entry(1), entry(2)]);
    assert_eq!(recovered[&subject("app.odd")], [entry(1), entry(2)]);
    let kept = machine.folder.path().join("lost/=wal").join(log().to_string()).join("00000001.wal");
    assert_eq!(std::fs::read(kept).unwrap(), bytes);
    assert_eq!(machine.waiting_logs(), []);
}

/// Recovery of an empty WAL without any slot leaves no WAL and no object.
#[tokio::test(start_paused = true)]
async fn recovery_of_log_without_slots_leaves_nothing() {
    let machine = Machine::new();
    machine.wal(&[]);
    assert!(machine.recover().await.unwrap().is_empty());
    assert_eq!(machine.waiting_logs(), []);
    assert_eq!(machine.slots().await, []);
}

/// If the bucket lacks slots that the WAL marks as shipped, recovery fails and keeps the WAL.
#[tokio::test(start_paused = true)]
async fn recovery_with_wrong_bucket_fails_and_keeps_wal() {
    let all = accepted();
    for slots in [vec![], vec![&all[..2]]] {
        let machine = Machine::new();
        if !slots.is_empty() {
            machine.ship(&slots).await;
        }
        machine.wal(&all).mark_shipped(Lsn::new(4), Slot::new(2)).unwrap();
        let refused = machine.recover().await.err().unwrap();
        assert!(matches!(refused, RecoveryError::SlotsMissing { .. }), "{refused}");
        assert_eq!(machine.waiting_logs(), [log()]);
    }
}

/// A recovery segment ends before the size limit and before a gap in the revs of a subject.
#[test]
fn recovery_segment_ends_at_size_limit_or_rev_gap() {
    let sized = |lsn, after, bytes: usize| WalAppend {
        frames: Bytes::from(vec![0; bytes]),
        ..append(lsn, "app", after)
    };
    let long =
        [sized(1, 1, 10 << 20), sized(2, 2, 6 << 20), sized(3, 3, 1), sized(4, 4, 40 << 20), sized(5, 5, 1)];
    let batch = |appends: &[WalAppend], after| next_batch(appends, Lsn::new(after)).len();
    assert_eq!([0, 2, 3, 4, 5].map(|after| batch(&long, after)), [2, 1, 1, 1, 0]);
    let gap = [append(1, "app", 1), append(2, "other", 1), append(3, "app", 7), append(4, "app", 8)];
    assert_eq!([0, 2].map(|after| batch(&gap, after)), [2, 2]);
}

/// A segment shows how far its log shipped: through a certain WAL append or beyond the WAL's end.
#[test]
fn recovery_reads_shipped_position_from_segment() {
    let all = accepted();
    let object = |appends: &[WalAppend]| {
        segment::decode(&log(), Slot::new(1), slot_bytes(SlotKind::Data, 1, appends)).unwrap()
    };
    assert_eq!(match_segment(&object(&all[..3]), &all), WalMatch::Through(Lsn::new(3)));
    assert_eq!(match_segment(&object(&all[3..4]), &all), WalMatch::Through(Lsn::new(4)));
    assert_eq!(match_segment(&object(&all[2..5]), &all[..4]), WalMatch::Beyond);
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
    assert_eq!(
        match_segment(&object(&all[..1]), std::slice::from_ref(&both)),
        WalMatch::Through(Lsn::new(9))
    );
}
