use super::*;

fn with_slots(number: u64, bytes: u64) -> SlotSizes {
    let mut sizes = SlotSizes::new();
    (0..number).for_each(|slot| sizes.created(Slot::new(slot), bytes));
    sizes
}

/// Released slots count until they are deleted, in any order, and no longer ask for a compaction.
#[test]
fn slot_counts_until_it_is_deleted() {
    let mut sizes = with_slots(10, 100);
    assert_eq!((sizes.total(), sizes.retained()), (1_000, 1_000));
    sizes.deleted(Slot::new(3));
    assert_eq!(sizes.total(), 1_000, "a slot that was not released is not deleted");
    sizes.released(Slot::new(4));
    assert_eq!((sizes.total(), sizes.retained()), (1_000, 600));
    for slot in [3, 0, 3, 1] {
        sizes.deleted(Slot::new(slot));
    }
    assert_eq!((sizes.total(), sizes.retained()), (700, 600));
    sizes.released(Slot::new(2));
    assert_eq!((sizes.total(), sizes.retained()), (700, 600));
}

/// Above three quarters of the limit, the cut leaves at most half of the limit above it.
#[test]
fn cut_leaves_half_of_the_limit() {
    for (number, cut) in [(7, None), (8, Some(3)), (12, Some(7))] {
        assert_eq!(with_slots(number, 100).cut(1_000), cut.map(Slot::new), "{number}");
    }
    let mut sizes = with_slots(12, 100);
    sizes.released(Slot::new(3));
    assert_eq!(sizes.cut(1_000), Some(Slot::new(7)));
    sizes.released(Slot::new(5));
    assert_eq!(sizes.cut(1_000), None);
    assert_eq!(with_slots(1, 5_000).cut(1_000), Some(Slot::new(1)), "one slot may exceed the limit");
}

/// The number of sizes is bounded, and merged sizes keep the sums.
#[test]
fn number_of_sizes_is_bounded() {
    let mut sizes = with_slots(1_001, 1);
    sizes.released(Slot::new(501));
    for slot in 1_001..200_000 {
        sizes.created(Slot::new(slot), 1);
    }
    assert!(sizes.sizes.len() <= MAX_SIZES);
    assert_eq!((sizes.total(), sizes.retained()), (200_000, 200_000 - 501));
    let cut = sizes.cut(200_000).unwrap().get();
    assert!((100_000..100_064).contains(&cut), "{cut}");
    sizes.released(Slot::new(200_000));
    (0..200_000).for_each(|slot| sizes.deleted(Slot::new(slot)));
    assert_eq!((sizes.total(), sizes.sizes.len()), (0, 0));
}
