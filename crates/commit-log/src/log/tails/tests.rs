use super::*;

const A: &str = "a";
const B: &str = "b";

fn shipped(slot: u64, last_rev: u64) -> ShippedEntries {
    ShippedEntries {
        slot: Slot::new(slot),
        last_rev: Rev::new(last_rev),
        ends_in_dedup_record: false,
        bytes: 10,
        entries: 1,
        at: Duration::from_secs(slot),
    }
}

fn tail_of(subject: &'static str, slots: impl IntoIterator<Item = u64>) -> Tails<&'static str> {
    let mut tails = Tails::new();
    for slot in slots {
        tails.shipped(&subject, shipped(slot, slot * 10));
    }
    tails
}

fn first_slot(tails: &Tails<&'static str>, subject: &'static str) -> Option<u64> {
    tails.tail(&subject).map(|tail| tail.first_slot.get())
}

/// A base releases the tail slots of its subject up to its rev and keeps later ones.
#[test]
fn base_covers_tail_slots_up_to_base_rev() {
    let mut tails = tail_of(A, [1, 2, 5]);
    tails.shipped(&B, shipped(4, 7));
    assert_eq!(tails.lowest_needed(), Some(Slot::new(1)));
    tails.base_published(&A, Rev::new(20), Slot::new(0));
    assert_eq!((first_slot(&tails, A), tails.lowest_needed()), (Some(5), Some(Slot::new(4))));
    assert_eq!(tails.oldest(1)[0].0, B);
    tails.base_published(&B, Rev::new(7), Slot::new(0));
    tails.base_published(&A, Rev::new(49), Slot::new(0));
    assert_eq!(first_slot(&tails, A), Some(5), "rev 50 is not covered");
    tails.base_published(&A, Rev::new(50), Slot::new(0));
    assert_eq!((tails.lowest_needed(), tails.len()), (None, 0));
}

/// If a slot ends in a dedup record without its own rev, only a higher first slot releases it.
#[test]
fn tail_slot_ending_in_dedup_record_needs_first_slot() {
    let mut tails = tail_of(A, [1]);
    // A dedup record was stored at the same rev, and a base at that rev may lack it.
    tails.shipped(&A, ShippedEntries { ends_in_dedup_record: true, ..shipped(3, 10) });
    tails.base_published(&A, Rev::new(10), Slot::new(0));
    assert_eq!(first_slot(&tails, A), Some(3));
    tails.base_published(&A, Rev::new(10), Slot::new(4));
    assert_eq!(first_slot(&tails, A), None);
}

/// A tail names exactly the slots with its entries, far above the number at which compaction is due.
#[test]
fn tail_names_exactly_its_slots() {
    let slots: Vec<u64> = (1..=2 * SubjectTail::DUE_SLOTS).map(|number| number * 7).collect();
    let mut tails = tail_of(A, slots.clone());
    tails.shipped(&B, shipped(15_000, 3));
    assert_eq!(tails.slots_above(&A, Rev::new(0)), slots.iter().copied().map(Slot::new).collect::<Vec<_>>());
    assert_eq!(tails.tail(&A).unwrap().slots, 2 * SubjectTail::DUE_SLOTS);
    assert_eq!((tails.last_rev(&A), tails.last_rev(&B)), (Some(Rev::new(143_360)), Some(Rev::new(3))));
    assert_eq!(tails.all_runs(), slots.len() + 1);
    tails.base_published(&A, Rev::new(700), Slot::new(0));
    let tail = tails.tail(&A).unwrap();
    assert_eq!((tail.slots, tail.bytes, tail.entries), (2_038, 20_380, 2_038));
    assert_eq!(tails.slots_above(&A, Rev::new(143_350)), [Slot::new(14_336)]);
    tails.base_published(&A, Rev::new(143_360), Slot::new(0));
    assert_eq!((tails.last_rev(&A), tails.all_runs()), (None, 1));
}

/// A complete local file needs no slot before its close, although its last entry may have no operations.
#[test]
fn tail_above_complete_file_names_later_slots_only() {
    let mut tails = tail_of(A, [1]);
    tails.shipped(&A, ShippedEntries { ends_in_dedup_record: true, ..shipped(3, 10) });
    assert_eq!(tails.slots_above_file(&A, Rev::new(10)), [Slot::new(3)]);
    tails.file_complete(&A, Slot::new(4));
    tails.file_complete(&B, Slot::new(4));
    assert_eq!(tails.slots_above_file(&A, Rev::new(10)), []);
    assert_eq!(tails.slots_above(&A, Rev::new(10)), [Slot::new(3)], "a rebuilt file needs it");
    tails.shipped(&A, shipped(5, 20));
    assert_eq!(tails.slots_above_file(&A, Rev::new(10)), [Slot::new(5)]);
}

/// A tail keeps a bounded number of slot runs and never omits a slot that is still needed.
#[test]
fn tail_memory_is_bounded_and_omits_no_needed_slot() {
    let count = MAX_RUNS as u64 + 200;
    let slots: Vec<u64> = (1..=count).map(|number| number * 3).collect();
    let mut tails = tail_of(A, slots.clone());
    let whole = tails.tail(&A).unwrap();
    assert_eq!((whole.bytes, whole.entries, whole.first_slot), (count * 10, count, Slot::new(3)));
    assert_eq!(whole.slots, count);
    assert_eq!(whole.since, Duration::from_secs(3));
    assert_eq!((tails.runs[A].runs.len(), tails.all_runs()), (MAX_RUNS, MAX_RUNS));
    for base in (0..=count * 30).step_by(1_007).chain([count * 30]).map(Rev::new) {
        let needed = slots.iter().copied().map(Slot::new).filter(|slot| slot.get() * 10 > base.get());
        let named = tails.slots_above(&A, base);
        assert!(needed.clone().all(|slot| named.contains(&slot)), "{base}");
        tails.base_published(&A, base, Slot::new(0));
        assert!(needed.clone().next().is_none_or(|first| tails.lowest_needed().unwrap() <= first), "{base}");
    }
    assert_eq!(tails.lowest_needed(), None);
}
