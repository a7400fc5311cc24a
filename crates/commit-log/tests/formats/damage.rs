//! The check of the WAL decoder on valid and on random bytes.

use proptest::prelude::*;

use crate::fuzzing::{self, repair};
use crate::golden::golden_file;

/// The checksum repair of the fuzz check leaves a valid WAL part unchanged.
#[test]
fn wal_checksum_repair_keeps_valid_bytes_unchanged() {
    let part = golden_file("part.wal");
    assert_eq!(repair::wal(&part), part);
}

proptest! {
    /// The check of the WAL decoder does not panic on random bytes, alone or behind a valid start.
    #[test]
    fn wal_check_never_panics_on_random_bytes(tail: Vec<u8>) {
        fuzzing::wal(&tail);
        let part = golden_file("part.wal");
        fuzzing::wal(&[&part[..tail.len().min(part.len())], &tail[..]].concat());
    }

    /// If some bytes of a valid part change and all its checksums are repaired, the check does not panic.
    #[test]
    fn wal_check_never_panics_on_changed_part(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut part = golden_file("part.wal");
        for (at, byte) in &changes {
            let at = at.index(part.len());
            part[at] = *byte;
        }
        fuzzing::wal(&part);
    }
}
