use super::*;

fn slot(number: u64) -> Slot {
    Slot::new(number)
}

fn born() -> Owner {
    Owner::new(slot(1))
}

const OURS: OwnerInput = OwnerInput::Put { outcome: PutOutcome::Ours, ready: false };

#[test]
fn slots_are_written_one_at_a_time() {
    let mut owner = born();
    assert_eq!(owner.apply(OwnerInput::Ready), [OwnerEffect::Put { slot: slot(1) }]);
    assert_eq!(owner.apply(OwnerInput::Ready), []);
    assert_eq!(owner.next_slot(), slot(1));
    let more = OwnerInput::Put { outcome: PutOutcome::Ours, ready: true };
    assert_eq!(
        owner.apply(more),
        [OwnerEffect::Landed { slot: slot(1) }, OwnerEffect::Put { slot: slot(2) }]
    );
    assert_eq!(owner.apply(OURS), [OwnerEffect::Landed { slot: slot(2) }]);
    assert_eq!(owner.next_slot(), slot(3));
    assert!(!owner.is_putting());
}

#[test]
fn anything_foreign_in_the_next_slot_is_the_end() {
    let mut owner = born();
    owner.apply(OwnerInput::Ready);
    let anothers = OwnerInput::Put { outcome: PutOutcome::Anothers, ready: true };
    assert_eq!(owner.apply(anothers), [OwnerEffect::End]);
    assert!(owner.has_ended());
    for input in [OwnerInput::Ready, OwnerInput::Read, OURS, OwnerInput::Unneeded { below: slot(9) }] {
        assert_eq!(owner.apply(input), [], "{input:?}");
    }
}

#[test]
fn a_read_is_proved_by_a_look_that_began_after_it() {
    let mut owner = born();
    assert_eq!(owner.apply(OwnerInput::Read), [OwnerEffect::Probe { slot: slot(1) }]);
    // Too late for the look under way: this one needs the next.
    assert_eq!(owner.apply(OwnerInput::Read), []);
    assert_eq!(
        owner.apply(OwnerInput::Probed(Probed::Absent)),
        [OwnerEffect::Proven { through: ReadNumber(1) }, OwnerEffect::Probe { slot: slot(1) }]
    );
    assert_eq!(owner.apply(OwnerInput::Probed(Probed::Failed)), [OwnerEffect::Probe { slot: slot(1) }]);
    assert_eq!(
        owner.apply(OwnerInput::Probed(Probed::Absent)),
        [OwnerEffect::Proven { through: ReadNumber(2) }]
    );
}

#[test]
fn a_create_proves_the_reads_that_came_before_it_began_and_no_others() {
    let mut owner = born();
    owner.apply(OwnerInput::Ready);
    assert_eq!(owner.apply(OwnerInput::Read), [], "no look while a create is in flight");
    // The create in flight says nothing about the read; the next one does.
    let more = OwnerInput::Put { outcome: PutOutcome::Ours, ready: true };
    assert_eq!(
        owner.apply(more),
        [OwnerEffect::Landed { slot: slot(1) }, OwnerEffect::Put { slot: slot(2) }]
    );
    assert_eq!(
        owner.apply(OURS),
        [OwnerEffect::Landed { slot: slot(2) }, OwnerEffect::Proven { through: ReadNumber(1) }]
    );
}

#[test]
fn a_read_that_no_create_can_carry_is_looked_for_as_soon_as_nothing_is_in_flight() {
    let mut owner = born();
    owner.apply(OwnerInput::Ready);
    owner.apply(OwnerInput::Read);
    assert_eq!(
        owner.apply(OURS),
        [OwnerEffect::Landed { slot: slot(1) }, OwnerEffect::Probe { slot: slot(2) }]
    );
}

#[test]
fn a_look_that_may_have_found_our_own_create_says_nothing() {
    for landed_first in [false, true] {
        let mut owner = born();
        owner.apply(OwnerInput::Read);
        owner.apply(OwnerInput::Ready);
        let landed = [OwnerEffect::Landed { slot: slot(1) }, OwnerEffect::Proven { through: ReadNumber(1) }];
        if landed_first {
            assert_eq!(owner.apply(OURS), landed);
            assert_eq!(owner.apply(OwnerInput::Probed(Probed::Present)), []);
        } else {
            assert_eq!(owner.apply(OwnerInput::Probed(Probed::Present)), []);
            assert_eq!(owner.apply(OURS), landed);
        }
        assert!(!owner.has_ended());
    }
}

#[test]
fn a_look_that_finds_what_we_never_sent_is_the_end() {
    let mut owner = born();
    owner.apply(OwnerInput::Read);
    assert_eq!(owner.apply(OwnerInput::Probed(Probed::Present)), [OwnerEffect::End]);
}

#[test]
fn the_highest_slot_is_never_given_up() {
    let mut owner = born();
    assert_eq!(owner.apply(OwnerInput::Unneeded { below: slot(1) }), [], "slot 0 is the highest");
    owner.apply(OwnerInput::Ready);
    assert_eq!(
        owner.apply(OURS),
        [OwnerEffect::Landed { slot: slot(1) }, OwnerEffect::Delete { from: slot(0), to: slot(1) }]
    );
    // A create in flight may not have landed: what is before it stays.
    owner.apply(OwnerInput::Ready);
    assert_eq!(owner.apply(OwnerInput::Unneeded { below: slot(9) }), []);
    assert_eq!(
        owner.apply(OURS),
        [OwnerEffect::Landed { slot: slot(2) }, OwnerEffect::Delete { from: slot(1), to: slot(2) }]
    );
    assert_eq!(owner.trimmed(), slot(2));
}
