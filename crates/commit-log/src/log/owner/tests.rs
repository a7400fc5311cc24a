use super::*;

fn slot(number: u64) -> Slot {
    Slot::new(number)
}

fn new_owner() -> LogOwner {
    LogOwner::new(slot(1))
}

const OURS: OwnerInput = OwnerInput::Put { outcome: PutOutcome::Ours, ready: false };

/// The log owner has at most one slot create in flight and advances after each success.
#[test]
fn log_owner_writes_one_slot_at_a_time() {
    let mut owner = new_owner();
    assert_eq!(owner.apply(OwnerInput::Ready), [OwnerEffect::Put { slot: slot(1) }]);
    assert_eq!(owner.apply(OwnerInput::Ready), []);
    assert_eq!(owner.next_slot(), slot(1));
    let more = OwnerInput::Put { outcome: PutOutcome::Ours, ready: true };
    assert_eq!(
        owner.apply(more),
        [OwnerEffect::Created { slot: slot(1) }, OwnerEffect::Put { slot: slot(2) }]
    );
    assert_eq!(owner.apply(OURS), [OwnerEffect::Created { slot: slot(2) }]);
    assert_eq!(owner.next_slot(), slot(3));
    assert!(!owner.has_put_in_flight());
}

/// If the next slot holds a foreign object, the log owner ends and ignores every later input.
#[test]
fn log_owner_is_fenced_by_foreign_next_slot() {
    let mut owner = new_owner();
    owner.apply(OwnerInput::Ready);
    let foreign = OwnerInput::Put { outcome: PutOutcome::Foreign, ready: true };
    assert_eq!(owner.apply(foreign), [OwnerEffect::End]);
    assert!(owner.has_ended());
    for input in [OwnerInput::Ready, OwnerInput::Read, OURS, OwnerInput::Unneeded { below: slot(9) }] {
        assert_eq!(owner.apply(input), [], "{input:?}");
    }
}

/// A probe that begins after a read confirms it; a read during the probe needs the next successful one.
#[test]
fn read_barrier_is_confirmed_by_later_probe() {
    let mut owner = new_owner();
    assert_eq!(owner.apply(OwnerInput::Read), [OwnerEffect::Probe { slot: slot(1) }]);
    // This read arrived after the probe began: it needs the next probe.
    assert_eq!(owner.apply(OwnerInput::Read), []);
    assert_eq!(
        owner.apply(OwnerInput::Probed(Probed::Absent)),
        [OwnerEffect::ReadsConfirmed { through: ReadNumber(1) }, OwnerEffect::Probe { slot: slot(1) }]
    );
    assert_eq!(owner.apply(OwnerInput::Probed(Probed::Failed)), [OwnerEffect::Probe { slot: slot(1) }]);
    assert_eq!(
        owner.apply(OwnerInput::Probed(Probed::Absent)),
        [OwnerEffect::ReadsConfirmed { through: ReadNumber(2) }]
    );
}

/// A slot create confirms only the reads that arrived before the create began.
#[test]
fn read_barrier_is_confirmed_by_later_create() {
    let mut owner = new_owner();
    owner.apply(OwnerInput::Ready);
    assert_eq!(owner.apply(OwnerInput::Read), [], "no probe while a create is in flight");
    // The create in flight does not confirm the read; the next one does.
    let more = OwnerInput::Put { outcome: PutOutcome::Ours, ready: true };
    assert_eq!(
        owner.apply(more),
        [OwnerEffect::Created { slot: slot(1) }, OwnerEffect::Put { slot: slot(2) }]
    );
    assert_eq!(
        owner.apply(OURS),
        [OwnerEffect::Created { slot: slot(2) }, OwnerEffect::ReadsConfirmed { through: ReadNumber(1) }]
    );
}

/// If no create follows, the log owner probes for a waiting read as soon as no create is in flight.
#[test]
fn read_barrier_without_create_is_probed_when_idle() {
    let mut owner = new_owner();
    owner.apply(OwnerInput::Ready);
    owner.apply(OwnerInput::Read);
    assert_eq!(
        owner.apply(OURS),
        [OwnerEffect::Created { slot: slot(1) }, OwnerEffect::Probe { slot: slot(2) }]
    );
}

/// A probe that can have found the log owner's own create neither ends the log nor confirms a read.
#[test]
fn slot_probe_that_may_see_own_create_is_ignored() {
    for landed_first in [false, true] {
        let mut owner = new_owner();
        owner.apply(OwnerInput::Read);
        owner.apply(OwnerInput::Ready);
        let landed =
            [OwnerEffect::Created { slot: slot(1) }, OwnerEffect::ReadsConfirmed { through: ReadNumber(1) }];
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

/// If a probe finds an object that the log owner never sent, the log owner ends.
#[test]
fn slot_probe_finding_foreign_object_fences_owner() {
    let mut owner = new_owner();
    owner.apply(OwnerInput::Read);
    assert_eq!(owner.apply(OwnerInput::Probed(Probed::Present)), [OwnerEffect::End]);
}

/// The log owner never deletes the highest slot, and a create in flight does not count as the highest.
#[test]
fn trim_never_deletes_highest_slot() {
    let mut owner = new_owner();
    assert_eq!(owner.apply(OwnerInput::Unneeded { below: slot(1) }), [], "slot 0 is the highest");
    owner.apply(OwnerInput::Ready);
    assert_eq!(
        owner.apply(OURS),
        [OwnerEffect::Created { slot: slot(1) }, OwnerEffect::Delete { from: slot(0), to: slot(1) }]
    );
    // A create in flight may not have succeeded: the slot before it stays.
    owner.apply(OwnerInput::Ready);
    assert_eq!(owner.apply(OwnerInput::Unneeded { below: slot(9) }), []);
    assert_eq!(
        owner.apply(OURS),
        [OwnerEffect::Created { slot: slot(2) }, OwnerEffect::Delete { from: slot(1), to: slot(2) }]
    );
    assert_eq!(owner.trimmed(), slot(2));
}
