use super::super::testing::*;
use super::*;

fn holding(subject: &str, slots: &[u64]) -> Holding {
    Holding { subject: subject.parse().unwrap(), slots: slots_of(slots) }
}

fn slots_of(slots: &[u64]) -> Vec<Slot> {
    slots.iter().map(|&slot| Slot::new(slot)).collect()
}

/// Names and settles these subjects, then lists slots 0 to 4 and the seal at 5.
fn run(dry_run: bool, subjects: Vec<(Holding, Option<Drained>)>) -> Vec<DrainEffect> {
    let (mut drain, effect) = Drain::new(&other(), &mine(), dry_run);
    let mut effects = vec![effect, drain.apply(DrainInput::Sealed(true))];
    for (holding, drained) in subjects {
        effects.push(drain.apply(DrainInput::Next(Some(holding))));
        effects.push(drain.apply(drained.map_or(DrainInput::Left, DrainInput::Settled)));
    }
    effects.push(drain.apply(DrainInput::Next(None)));
    let listed = drain.apply(DrainInput::Listed(slots_of(&[0, 1, 2, 3, 4, 5])));
    if matches!(listed, DrainEffect::Delete(_)) {
        effects.push(listed);
        effects.push(drain.apply(DrainInput::Deleted));
    } else {
        effects.push(listed);
    }
    effects
}

fn next(after: Option<&str>) -> DrainEffect {
    DrainEffect::Next { after: after.map(|subject| subject.parse().unwrap()) }
}

fn settle(subject: &str) -> DrainEffect {
    DrainEffect::Settle(subject.parse().unwrap())
}

#[test]
fn a_log_is_emptied_once_its_subjects_are_settled() {
    let manifest = Box::new(released(mine()));
    let verified = super::super::Verified { manifest, garbage: Vec::new(), blobs: Vec::new() };
    let effects = run(
        false,
        vec![
            (holding("a", &[1, 2]), Some(Drained::NotNeeded)),
            (holding("b", &[2]), Some(Drained::Released(verified))),
        ],
    );
    let deletions = Deletions { slots: slots_of(&[0, 1, 2, 3, 4]), index: true };
    let report = DrainReport { sealed: true, needed: 1, left: 0, deletions: deletions.clone() };
    let expected = [
        DrainEffect::Seal,
        next(None),
        settle("a"),
        next(Some("a")),
        settle("b"),
        next(Some("b")),
        DrainEffect::List,
        DrainEffect::Delete(deletions),
        DrainEffect::Done(report),
    ];
    assert_eq!(effects, expected);
}

#[test]
fn what_could_not_be_settled_keeps_its_slots_and_the_index() {
    let effects =
        run(false, vec![(holding("a", &[1, 3]), None), (holding("b", &[1, 2, 4]), Some(Drained::NotNeeded))]);
    let deletions = Deletions { slots: slots_of(&[0, 2, 4]), index: false };
    assert!(effects.contains(&DrainEffect::Delete(deletions.clone())), "{effects:?}");
    let report = DrainReport { sealed: true, needed: 0, left: 1, deletions };
    assert_eq!(effects.last(), Some(&DrainEffect::Done(report)));
}

#[test]
fn a_dry_run_decides_the_same_and_changes_nothing() {
    let effects = run(
        true,
        vec![
            (holding("a", &[1]), Some(Drained::Needed)),
            (holding("b", &[2]), None),
            (holding("c", &[3]), Some(Drained::NotNeeded)),
        ],
    );
    assert_eq!(effects.first(), Some(&DrainEffect::LookForSeal));
    assert!(!effects.iter().any(|effect| matches!(effect, DrainEffect::Delete(_) | DrainEffect::Seal)));
    let deletions = Deletions { slots: slots_of(&[0, 1, 3, 4]), index: false };
    let report = DrainReport { sealed: true, needed: 1, left: 1, deletions };
    assert_eq!(effects.last(), Some(&DrainEffect::Done(report)));
}

#[test]
fn no_manifest_is_looked_at_before_the_seal_is_seen() {
    let (mut drain, effect) = Drain::new(&other(), &mine(), true);
    assert_eq!(effect, DrainEffect::LookForSeal);
    assert_eq!(drain.apply(DrainInput::Sealed(false)), DrainEffect::Done(DrainReport::default()));
    let (mut drain, effect) = Drain::new(&other(), &mine(), false);
    assert_eq!(effect, DrainEffect::Seal);
    let reply = ErrorReply::unavailable("the bucket does not answer");
    assert_eq!(drain.apply(DrainInput::Failed(reply.clone())), DrainEffect::GiveUp(reply));
    assert!(matches!(Drain::new(&mine(), &mine(), false).1, DrainEffect::GiveUp(_)));
}
