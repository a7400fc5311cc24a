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

/// A tail keeps a bounded number of slot runs and never omits a slot that is still needed.
#[test]
fn tail_memory_is_bounded_and_omits_no_needed_slot() {
    let slots: Vec<u64> = (1..200).map(|number| number * 3).collect();
    let mut tails = tail_of(A, slots.clone());
    let whole = tails.tail(&A).unwrap();
    assert_eq!((whole.bytes, whole.entries, whole.first_slot), (1_990, 199, Slot::new(3)));
    assert_eq!(whole.since, Duration::from_secs(3));
    assert_eq!(tails.runs[A].len(), MAX_RUNS);
    for base in (0..=6_000).step_by(7).map(Rev::new) {
        let needed = slots.iter().copied().map(Slot::new).filter(|slot| slot.get() * 10 > base.get());
        let named = tails.slots_above(&A, base);
        assert!(needed.clone().all(|slot| named.contains(&slot)), "{base}");
        tails.base_published(&A, base, Slot::new(0));
        assert!(needed.clone().next().is_none_or(|first| tails.lowest_needed().unwrap() <= first), "{base}");
    }
    assert_eq!(tails.lowest_needed(), None);
}
