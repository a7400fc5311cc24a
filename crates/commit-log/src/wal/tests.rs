use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use dormouse_protocol::{LogId, Rev, Slot, Subject};
use dormouse_runtime::disk::LocalDisk;
use dormouse_testkit::disk::FaultyDisk;
use proptest::prelude::*;
use tempfile::TempDir;

use super::write::part_name;
use super::*;

fn log() -> LogId {
    "persist-1-01J9Z3ZZZZZZZZZZZZZZZZZZZZ".parse().unwrap()
}

fn append(lsn: u64, frames: impl Into<Vec<u8>>) -> WalAppend {
    WalAppend {
        lsn: Lsn::new(lsn),
        subject: Subject::new(if lsn.is_multiple_of(2) { "app.even" } else { "app.odd" }).unwrap(),
        first_after: Rev::new(lsn * 10),
        last_rev: Rev::new(lsn * 10 + 1),
        entries: 1,
        frames: Bytes::from(frames.into()),
    }
}

fn appends(lsns: impl IntoIterator<Item = u64>) -> Vec<WalAppend> {
    lsns.into_iter().map(|lsn| append(lsn, format!("frames of {lsn}"))).collect()
}

fn lsns(contents: &WalContents) -> Vec<u64> {
    contents.appends.iter().map(|append| append.lsn.get()).collect()
}

struct TestDisk {
    folder: TempDir,
    faulty: FaultyDisk,
}

impl TestDisk {
    fn new(seed: u64) -> Self {
        let faulty = FaultyDisk::new(Arc::new(LocalDisk), seed);
        Self { folder: tempfile::tempdir().unwrap(), faulty }
    }

    fn dir(&self) -> &Path {
        self.folder.path()
    }

    fn part(&self, number: u64) -> PathBuf {
        self.dir().join(log().to_string()).join(part_name(number))
    }

    fn create(&self) -> Wal {
        Wal::create(self.dir(), &log(), Arc::new(self.faulty.clone())).unwrap()
    }

    fn read(&self) -> WalContents {
        read_wal(&self.faulty, self.dir(), &log()).unwrap()
    }
}

/// The WAL reader returns the appends that neither shipped nor failed and the last shipped slot.
#[test]
fn wal_read_returns_appends_not_shipped_or_failed() {
    let disk = TestDisk::new(1);
    let mut wal = disk.create();
    wal.write(&appends(1..=4)).unwrap();
    wal.mark_shipped(Lsn::new(2), Slot::new(7)).unwrap();
    wal.write(&appends(5..=9)).unwrap();
    wal.mark_failed(&[9, 6, 7].map(Lsn::new)).unwrap();
    let expected = WalContents {
        appends: appends([3, 4, 5, 8]),
        shipped_through: Lsn::new(2),
        last_slot: Some(Slot::new(7)),
        torn: false,
        damaged: None,
    };
    assert_eq!(disk.read(), expected);
}

/// The WAL rejects an append with a number that does not increase and a second WAL for the same log.
#[test]
fn wal_number_is_never_used_twice() {
    let disk = TestDisk::new(1);
    let mut wal = disk.create();
    wal.write(&appends([1, 5])).unwrap();
    for wrong in [appends([5]), appends([4]), appends([6, 6])] {
        assert!(matches!(wal.write(&wrong), Err(WalError::Refused { .. })), "{wrong:?}");
    }
    wal.write(&appends([6])).unwrap();
    assert_eq!(lsns(&disk.read()), [1, 5, 6]);
    assert!(matches!(
        Wal::create(disk.dir(), &log(), Arc::new(disk.faulty.clone())),
        Err(WalError::Access { .. })
    ));
}

/// If a write is cut at any byte, the reader returns the complete records before the cut and reports no damage.
#[test]
fn wal_write_cut_anywhere_keeps_complete_records() {
    let disk = TestDisk::new(1);
    let mut wal = disk.create();
    let header = fs::metadata(disk.part(1)).unwrap().len();
    let mut ends = vec![header];
    for lsn in 1..=4 {
        wal.write(&appends([lsn])).unwrap();
        ends.push(fs::metadata(disk.part(1)).unwrap().len());
    }
    let bytes = fs::read(disk.part(1)).unwrap();
    for length in 0..=bytes.len() {
        fs::write(disk.part(1), &bytes[..length]).unwrap();
        let contents = disk.read();
        let whole = ends.iter().filter(|end| **end <= length as u64).count().saturating_sub(1);
        assert_eq!(contents.appends, appends(1..=whole as u64), "cut at {length}");
        assert_eq!(contents.torn, !ends.contains(&(length as u64)), "cut at {length}");
        assert_eq!(contents.damaged, None, "cut at {length}");
    }
}

/// A flipped bit ends the readable records, and it counts as damage only in the synced part.
#[test]
fn wal_flipped_bit_ends_read_and_is_damage_if_synced() {
    let disk = TestDisk::new(1);
    let mut wal = disk.create();
    wal.write(&appends(1..=3)).unwrap();
    wal.sync().unwrap();
    let synced = fs::metadata(disk.part(1)).unwrap().len() as usize;
    wal.write(&appends(4..=5)).unwrap();
    let bytes = fs::read(disk.part(1)).unwrap();
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(disk.part(1), &flipped).unwrap();
        let contents = disk.read();
        let whole = contents.appends.len();
        assert!(whole < 5, "bit at {at}");
        assert_eq!(contents.appends, appends(1..=whole as u64), "bit at {at}");
        assert_eq!(contents.damaged.is_some(), at < synced, "bit at {at}");
        assert_eq!(contents.torn, at >= synced, "bit at {at}");
    }
}

/// WAL records of another log inside a value do not count as records of this log.
#[test]
fn wal_ignores_records_of_another_log_inside_a_value() {
    let (disk, other) = (TestDisk::new(1), TestDisk::new(1));
    let name = "persist-1-01J9Z3ZZZZZZZZZZZZZZZZZZZ0".parse().unwrap();
    let mut foreign = Wal::create(other.dir(), &name, Arc::new(other.faulty.clone())).unwrap();
    foreign.write(&[append(1, vec![0; 1_000])]).unwrap();
    foreign.sync().unwrap();
    foreign.write(&appends(2..=3)).unwrap();
    let value = fs::read(other.dir().join(name.to_string()).join(part_name(1))).unwrap();

    let mut wal = disk.create();
    wal.write(&appends(1..=3)).unwrap();
    wal.sync().unwrap();
    wal.write(&[append(4, value)]).unwrap();
    let bytes = fs::read(disk.part(1)).unwrap();
    // The value is complete on the disk, but its own record is not.
    fs::write(disk.part(1), &bytes[..bytes.len() - 1]).unwrap();
    let contents = disk.read();
    assert_eq!((lsns(&contents), contents.torn, contents.damaged), (vec![1, 2, 3], true, None));
}

/// A full disk fails a group commit and removes the whole group; once space is free, writes succeed.
#[test]
fn wal_disk_full_removes_whole_group_and_recovers() {
    let disk = TestDisk::new(1);
    let mut wal = disk.create();
    wal.write(&appends(1..=2)).unwrap();
    disk.faulty.limit_free_space(Some(200));
    let full = wal.write(&appends(3..=20)).unwrap_err();
    assert!(matches!(full, WalError::DiskFull { .. }), "{full}");
    assert_eq!(lsns(&disk.read()), [1, 2]);
    disk.faulty.limit_free_space(None);
    wal.write(&appends(21..=22)).unwrap();
    wal.sync().unwrap();
    disk.faulty.power_loss().unwrap();
    assert_eq!(lsns(&disk.read()), [1, 2, 21, 22]);
}

/// If the disk is full at the start of a part, later writes succeed once space is free.
#[test]
fn wal_disk_full_at_part_start_recovers() {
    let disk = TestDisk::new(1);
    let mut wal = disk.create().with_part_bytes(1);
    disk.faulty.limit_free_space(Some(10));
    for _ in 0..2 {
        assert!(matches!(wal.write(&appends(1..=2)), Err(WalError::DiskFull { .. })));
    }
    disk.faulty.limit_free_space(None);
    wal.write(&appends(3..=4)).unwrap();
    assert_eq!(disk.read(), WalContents { appends: appends(3..=4), ..WalContents::default() });
}

/// If the disk writes only a part of the bytes, the WAL continues until all are written.
#[test]
fn wal_short_write_is_continued() {
    let disk = TestDisk::new(3);
    let mut wal = disk.create();
    disk.faulty.short_writes(2);
    wal.write(&appends(1..=50)).unwrap();
    assert_eq!(disk.read().appends, appends(1..=50));
}

/// After a failed sync, every WAL operation returns a poisoned error.
#[test]
fn wal_failed_sync_poisons_every_operation() {
    let disk = TestDisk::new(1);
    let mut wal = disk.create();
    wal.write(&appends([1])).unwrap();
    disk.faulty.fail_syncs(1);
    let poisoned = |result: Result<(), WalError>| assert!(matches!(result, Err(WalError::Poisoned { .. })));
    poisoned(wal.sync());
    poisoned(wal.sync());
    poisoned(wal.write(&appends([2])));
    poisoned(wal.mark_shipped(Lsn::new(1), Slot::new(1)));
    poisoned(wal.mark_failed(&[Lsn::new(1)]));
    assert_eq!(lsns(&disk.read()), [1]);
}

/// A write error other than a full disk poisons the WAL.
#[test]
fn wal_write_error_other_than_full_disk_poisons() {
    let disk = TestDisk::new(1);
    let mut wal = disk.create();
    disk.faulty.fail_writes(1);
    assert!(matches!(wal.write(&appends([1])), Err(WalError::Poisoned { .. })));
    assert!(matches!(wal.write(&appends([2])), Err(WalError::Poisoned { .. })));
}

/// Creates three parts with three appends each.
fn three_parts(disk: &TestDisk) -> Wal {
    let mut wal = disk.create().with_part_bytes(200);
    for first in [1, 4, 7] {
        wal.write(&appends(first..first + 3)).unwrap();
    }
    assert!(disk.part(3).exists() && !disk.part(4).exists());
    wal
}

/// The WAL deletes a part once everything in it has shipped and keeps the rest readable.
#[test]
fn wal_part_is_deleted_once_all_appends_shipped() {
    let disk = TestDisk::new(1);
    let mut wal = three_parts(&disk);
    assert_eq!(disk.read().appends, appends(1..=9));
    wal.mark_shipped(Lsn::new(5), Slot::new(1)).unwrap();
    wal.discard_shipped().unwrap();
    assert_eq!([1, 2, 3].map(|part| disk.part(part).exists()), [false, true, true]);
    assert_eq!((lsns(&disk.read()), disk.read().damaged), (vec![6, 7, 8, 9], None));

    wal.mark_shipped(Lsn::new(9), Slot::new(2)).unwrap();
    wal.discard_shipped().unwrap();
    disk.faulty.power_loss().unwrap();
    let contents = disk.read();
    assert_eq!((lsns(&contents), contents.last_slot), (vec![], Some(Slot::new(2))));
    assert_eq!(contents.damaged, None);
}

/// The WAL can delete a part that holds the only mark that its appends shipped, and the rest stays undamaged.
#[test]
fn wal_part_with_the_only_shipped_mark_can_be_deleted() {
    let disk = TestDisk::new(1);
    let mut wal = disk.create();
    wal.write(&appends(1..=3)).unwrap();
    let mut wal = wal.with_part_bytes(fs::metadata(disk.part(1)).unwrap().len() + 1);
    wal.mark_shipped(Lsn::new(3), Slot::new(1)).unwrap();
    wal.write(&appends([4])).unwrap();
    wal.discard_shipped().unwrap();
    assert!(!disk.part(1).exists() && disk.part(2).exists());
    disk.faulty.power_loss().unwrap();
    assert_eq!((lsns(&disk.read()), disk.read().damaged), (vec![4], None));
}

/// If a part is missing, the reader returns only the records before it and reports the next part as damaged.
#[test]
fn wal_missing_part_is_damage() {
    for (missing, readable) in [(1, vec![]), (2, vec![1, 2, 3])] {
        let disk = TestDisk::new(1);
        three_parts(&disk);
        fs::remove_file(disk.part(missing)).unwrap();
        let contents = disk.read();
        assert_eq!(lsns(&contents), readable);
        assert_eq!(contents.damaged.unwrap().path, disk.part(missing + 1));
    }
}

/// If a part other than the last is cut at any byte, the reader reports damage.
#[test]
fn wal_earlier_part_cut_anywhere_is_damage() {
    let disk = TestDisk::new(1);
    three_parts(&disk);
    let bytes = fs::read(disk.part(2)).unwrap();
    for length in 0..bytes.len() {
        fs::write(disk.part(2), &bytes[..length]).unwrap();
        let contents = disk.read();
        assert!(contents.damaged.is_some() && !contents.torn, "cut at {length}");
        assert!(contents.appends.len() < 6, "cut at {length}");
    }
}

/// The damaged part and the parts after it are copied unchanged, and the WAL can then be removed.
#[test]
fn wal_damaged_parts_are_kept_and_wal_is_removed() {
    let disk = TestDisk::new(1);
    three_parts(&disk);
    let mut bytes = fs::read(disk.part(2)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(disk.part(2), &bytes).unwrap();
    let damage = disk.read().damaged.unwrap();
    let kept = disk.dir().join("lost/wal");
    for _ in 0..2 {
        keep_damaged(&disk.faulty, disk.dir(), &log(), &damage, &kept).unwrap();
    }
    assert_eq!(fs::read(kept.join(part_name(2))).unwrap(), bytes);
    assert_eq!(fs::read(kept.join(part_name(3))).unwrap(), fs::read(disk.part(3)).unwrap());
    assert!(!kept.join(part_name(1)).exists());

    assert_eq!(list_logs(&disk.faulty, disk.dir()).unwrap(), [log()]);
    remove_wal(&disk.faulty, disk.dir(), &log()).unwrap();
    assert_eq!(list_logs(&disk.faulty, disk.dir()).unwrap(), []);
    assert!(!disk.part(1).parent().unwrap().exists());
}

/// Listing the logs completes an interrupted removal of a WAL.
#[test]
fn wal_interrupted_removal_is_completed() {
    let disk = TestDisk::new(1);
    disk.create();
    let half = disk.dir().join(format!("{}.removed", log()));
    fs::rename(disk.part(1).parent().unwrap(), &half).unwrap();
    assert_eq!(list_logs(&disk.faulty, disk.dir()).unwrap(), []);
    assert!(!half.exists());
}

/// The WAL reader omits the appends of subjects that are marked as resolved, even after a power loss.
#[test]
fn wal_read_omits_resolved_subjects() {
    let disk = TestDisk::new(1);
    disk.create().write(&appends(1..=4)).unwrap();
    let mark_resolved = |name: &str| {
        let mut resolved = ResolvedSubjects::create(&disk.faulty, disk.dir(), &log()).unwrap();
        resolved.mark_resolved(&Subject::new(name).unwrap()).unwrap();
    };
    mark_resolved("app.even");
    assert_eq!(lsns(&disk.read()), [1, 3]);
    mark_resolved("app.odd");
    disk.faulty.power_loss().unwrap();
    assert_eq!((lsns(&disk.read()), disk.read().damaged), (vec![], None));
}

/// A WAL part of a newer format gives a newer-version error and does not decode.
#[test]
fn wal_part_of_newer_format_is_rejected() {
    let disk = TestDisk::new(1);
    let mut wal = disk.create();
    wal.write(&appends([1])).unwrap();
    let mut bytes = fs::read(disk.part(1)).unwrap();
    bytes[8] = 2;
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes[..12]) as u32;
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    fs::write(disk.part(1), &bytes).unwrap();
    let refused = read_wal(&disk.faulty, disk.dir(), &log()).unwrap_err();
    assert!(matches!(refused, WalError::NewerVersion { found: 2, supported: 1, .. }), "{refused}");
    assert_eq!(decode_part(&bytes), None);
}

/// Frozen: every WAL part ever written stays readable.
#[test]
fn wal_bytes_match_golden_file() {
    let disk = TestDisk::new(1);
    let mut wal = disk.create();
    wal.write(&appends(1..=2)).unwrap();
    wal.sync().unwrap();
    wal.mark_shipped(Lsn::new(1), Slot::new(3)).unwrap();
    wal.mark_failed(&[Lsn::new(2)]).unwrap();
    let bytes = fs::read(disk.part(1)).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/part.wal");
    if std::env::var_os("DORMOUSE_WRITE_GOLDEN").is_some() {
        fs::write(&golden, &bytes).unwrap();
    }
    assert!(fs::read(&golden).unwrap() == bytes, "the bytes of a part have changed");
    let part = decode_part(&bytes).unwrap();
    assert_eq!((part.log, part.number, part.before, part.end), (log(), 1, Lsn::ZERO, PartEnd::Whole));
    let expected = [
        PartRecord::Append(append(1, "frames of 1")),
        PartRecord::Append(append(2, "frames of 2")),
        PartRecord::Shipped(ShippedUpTo { through: Lsn::new(1), slot: Slot::new(3) }),
        PartRecord::Failed(vec![(Lsn::new(2), Lsn::new(2))]),
    ];
    assert_eq!(part.records, expected);
}

#[derive(Debug, Clone)]
enum Step {
    Write { count: u64, bytes: usize },
    Sync,
    Ship,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..5_u64, 0..1_500_usize).prop_map(|(count, bytes)| Step::Write { count, bytes }),
        2 => Just(Step::Sync),
        1 => Just(Step::Ship),
    ]
}

proptest! {
    #![proptest_config(dormouse_testkit::cases(64))]

    /// After a loss of power, all synced appends are read, in order, up to some append; nothing else is read, and
    /// nothing counts as damage.
    #[test]
    fn wal_power_loss_keeps_synced_appends(
        seed in any::<u64>(), part_bytes in 100..4_000_u64, steps in prop::collection::vec(step(), 1..30),
    ) {
        let disk = TestDisk::new(seed);
        let mut wal = disk.create().with_part_bytes(part_bytes);
        disk.faulty.short_writes(5);
        let (mut written, mut synced, mut shipped) = (Vec::new(), 0, 0);
        for step in steps {
            match step {
                Step::Write { count, bytes } => {
                    let next = written.len() as u64 + 1;
                    let group: Vec<_> = (next..next + count).map(|lsn| append(lsn, vec![0xd0; bytes])).collect();
                    wal.write(&group).unwrap();
                    written.extend(group);
                }
                Step::Sync => {
                    wal.sync().unwrap();
                    synced = written.len();
                }
                Step::Ship => {
                    shipped = written.len();
                    wal.mark_shipped(Lsn::new(shipped as u64), Slot::new(1)).unwrap();
                    wal.discard_shipped().unwrap();
                }
            }
        }
        disk.faulty.power_loss().unwrap();
        let contents = disk.read();
        prop_assert_eq!(&contents.damaged, &None);
        let known = usize::try_from(contents.shipped_through.get()).unwrap();
        prop_assert!(known <= shipped);
        let last = contents.appends.last().map_or(known, |append| usize::try_from(append.lsn.get()).unwrap());
        prop_assert!(last >= synced, "{} of {} synced", last, synced);
        let expected = written.get(known..last).unwrap_or_default();
        prop_assert_eq!(contents.appends.as_slice(), expected);
    }

    /// The WAL part decoder never panics on random bytes, alone or behind valid records.
    #[test]
    fn wal_reader_accepts_random_bytes_without_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0..100_usize) {
        let _ = decode_part(&bytes);
        let disk = TestDisk::new(1);
        disk.create().write(&appends(1..=2)).unwrap();
        let mut part = fs::read(disk.part(1)).unwrap();
        let at = at.min(part.len());
        part.truncate(at);
        part.append(&mut bytes);
        let _ = decode_part(&part);
    }
}
