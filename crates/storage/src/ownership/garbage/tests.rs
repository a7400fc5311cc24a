use dormouse_protocol::Term;

use super::super::testing::*;
use super::*;
use crate::keys::ManifestNumber;

#[test]
fn objects_go_that_the_newest_manifest_does_not_need() {
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

    // An owner that was overtaken collects nothing, whatever it believes; nor does one whose bucket went back.
    for numbers in [&[2, 4, 5, 6][..], &[2, 4]] {
        let manifests = numbers.iter().map(|&number| ManifestNumber::new(number)).collect();
        assert_eq!(objects(&Folder { manifests, ..folder.clone() }, &newest), []);
    }
}

#[test]
fn large_values_go_when_no_state_that_may_come_back_refers_to_them() {
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
    // Whoever gave the subject back owns nothing of it.
    assert_eq!(blobs(&released(mine()), &listed, removed, refers), []);
    // Nothing is left of a destroyed one, but what a later owner has begun.
    let ended = blobs(&tombstone(mine()), &listed, |_| None, |_| true);
    assert_eq!(ended, listed[..6]);
}

#[test]
fn a_slot_is_needed_from_the_first_on_while_it_may_hold_more_than_the_base() {
    let held = |slot, last_rev| Held { slot: Slot::new(slot), last_rev: Rev::new(last_rev) };
    let (owned, log) = (manifest(mine()), mine());
    assert!(needs(&owned, &log, held(7, 41)));
    // It may end in an answer that was given at the base's rev.
    assert!(needs(&owned, &log, held(7, 40)));
    assert!(!needs(&owned, &log, held(7, 39)));
    assert!(!needs(&owned, &log, held(6, 41)), "slots before the first hold an earlier tenure");
    assert!(!needs(&owned, &other(), held(7, 41)));
    assert!(!needs(&released(mine()), &log, held(7, 41)));
}

#[test]
fn the_highest_slot_stays_and_holes_do_no_harm() {
    let slots_of = |numbers: &[u64]| numbers.iter().map(|&number| Slot::new(number)).collect::<Vec<_>>();
    let needed = |slot: Slot| slot == Slot::new(5);
    assert_eq!(slots(&slots_of(&[0, 2, 5, 6, 9]), needed), slots_of(&[0, 2, 6]));
    assert_eq!(slots(&slots_of(&[0]), |_| false), []);
    assert_eq!(slots(&[], |_| false), []);
}
