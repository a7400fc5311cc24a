use dormouse_format::keys::ManifestNumber;
use dormouse_protocol::Term;

use super::super::testing::*;
use super::*;

/// Collection deletes objects that the newest manifest does not need; an owner with an older manifest collects nothing.
#[test]
fn collection_deletes_objects_unneeded_by_newest_manifest() {
    let keys = SubjectKeys::new(&subject());
    let newest = manifest(mine());
    let folder = Folder {
        manifests: [2, 4, 5].map(ManifestNumber::new).to_vec(),
        snapshots: [snapshot(1, 3), snapshot(3, 30), snapshot(3, 31), snapshot(5, 50), snapshot(6, 50)]
            .map(|snapshot| snapshot.name)
            .to_vec(),
        deltas: [delta(2, 9), delta(4, 40), delta(4, 41), delta(5, 50), delta(6, 50)]
            .map(|delta| delta.name)
            .to_vec(),
        blobs: vec![BlobName { term: Term::new(1), nonce: nonce(1) }],
        unknown: vec![keys.manifest(ManifestNumber::new(99))],
    };
    let expected = [
        keys.manifest(ManifestNumber::new(2)),
        keys.manifest(ManifestNumber::new(4)),
        keys.snapshot(&snapshot(1, 3).name),
        keys.snapshot(&snapshot(3, 31).name),
        keys.snapshot(&snapshot(5, 50).name),
        keys.delta(&delta(2, 9).name),
        keys.delta(&delta(4, 41).name),
        keys.delta(&delta(5, 50).name),
    ];
    assert_eq!(objects(&folder, &newest), expected);

    // A fenced owner collects nothing, and neither does an owner whose bucket was rolled back.
    for numbers in [&[2, 4, 5, 6][..], &[2, 4]] {
        let manifests = numbers.iter().map(|&number| ManifestNumber::new(number)).collect();
        assert_eq!(objects(&Folder { manifests, ..folder.clone() }, &newest), []);
    }
}

/// Collection deletes a blob only if no state that can be restored refers to it; a released subject collects none.
#[test]
fn collection_deletes_blobs_no_restorable_state_needs() {
    let blob = |term: u64, number: u64| BlobName { term: Term::new(term), nonce: nonce(number) };
    let [removed_below, removed_above, referred, forgotten, uploading, lower_removed_above, later] =
        [blob(3, 1), blob(3, 2), blob(2, 3), blob(2, 4), blob(3, 5), blob(2, 6), blob(4, 7)];
    let listed = [removed_below, removed_above, referred, forgotten, uploading, lower_removed_above, later];
    let removed = |name: &BlobName| {
        [(removed_below, 40), (removed_above, 41), (lower_removed_above, 41)]
            .iter()
            .find_map(|(there, rev)| (there == name).then(|| Rev::new(*rev)))
    };
    let refers = |name: &BlobName| *name == referred;
    assert_eq!(blobs(&manifest(mine()), &listed, removed, refers), [removed_below, forgotten]);
    // After a release, the process owns nothing of the subject.
    assert_eq!(blobs(&released(mine()), &listed, removed, refers), []);
    // Of a destroyed subject, only objects of a later owner stay.
    let ended = blobs(&tombstone(mine()), &listed, |_| None, |_| true);
    assert_eq!(ended, listed[..6]);
}

/// The owner's manifest needs a slot if it is at or after the first slot and its last rev reaches the base.
#[test]
fn slot_is_needed_until_base_passes_last_rev() {
    let held = |slot, last_rev| SlotUse { slot: Slot::new(slot), last_rev: Rev::new(last_rev) };
    let (owned, log) = (manifest(mine()), mine());
    assert!(needs(&owned, &log, held(7, 41)));
    // It may end in a dedup record at the base's rev.
    assert!(needs(&owned, &log, held(7, 40)));
    assert!(!needs(&owned, &log, held(7, 39)));
    assert!(!needs(&owned, &log, held(6, 41)), "slots before the first belong to an earlier term");
    assert!(!needs(&owned, &other(), held(7, 41)));
    assert!(!needs(&released(mine()), &log, held(7, 41)));
}

/// Collection of slots keeps needed slots and the highest slot, and missing slots do not matter.
#[test]
fn collection_keeps_highest_slot_and_allows_missing_ones() {
    let slots_of = |numbers: &[u64]| numbers.iter().map(|&number| Slot::new(number)).collect::<Vec<_>>();
    let needed = |slot: Slot| slot == Slot::new(5);
    assert_eq!(slots(&slots_of(&[0, 2, 5, 6, 9]), needed), slots_of(&[0, 2, 6]));
    assert_eq!(slots(&slots_of(&[0]), |_| false), []);
    assert_eq!(slots(&[], |_| false), []);
}
