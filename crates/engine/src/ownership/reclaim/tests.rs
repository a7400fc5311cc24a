use super::super::testing::*;
use super::*;

fn in_log(subject: &str, slots: &[u64]) -> SubjectInLog {
    SubjectInLog { subject: subject.parse().unwrap(), slots: slots_of(slots) }
}

fn slots_of(slots: &[u64]) -> Vec<Slot> {
    slots.iter().map(|&slot| Slot::new(slot)).collect()
}

/// Names and rebases these subjects, then lists slots 0 to 4 and the seal at 5.
fn run(dry_run: bool, subjects: Vec<(SubjectInLog, Option<ReclaimOutcome>)>) -> Vec<ReclaimEffect> {
    let (mut reclaim, effect) = LogReclaim::new(&other(), &mine(), dry_run);
    let mut effects = vec![effect, reclaim.apply(ReclaimInput::Sealed(true))];
    for (in_log, outcome) in subjects {
        effects.push(reclaim.apply(ReclaimInput::Next(Some(in_log))));
        effects.push(reclaim.apply(outcome.map_or(ReclaimInput::Skipped, ReclaimInput::Rebased)));
    }
    effects.push(reclaim.apply(ReclaimInput::Next(None)));
    let listed = reclaim.apply(ReclaimInput::Listed(slots_of(&[0, 1, 2, 3, 4, 5])));
    if matches!(listed, ReclaimEffect::Delete(_)) {
        effects.push(listed);
        effects.push(reclaim.apply(ReclaimInput::Deleted));
    } else {
        effects.push(listed);
    }
    effects
}

fn next(after: Option<&str>) -> ReclaimEffect {
    ReclaimEffect::Next { after: after.map(|subject| subject.parse().unwrap()) }
}

fn rebase(subject: &str) -> ReclaimEffect {
    ReclaimEffect::Rebase(subject.parse().unwrap())
}

/// When all subjects of a log are resolved, the reclamation deletes its index and all slots below the seal.
#[test]
fn reclaim_deletes_log_once_subjects_are_resolved() {
    let manifest = Box::new(released(mine()));
    let verified = super::super::Verified { manifest, garbage: Vec::new(), blobs: Vec::new() };
    let effects = run(
        false,
        vec![
            (in_log("a", &[1, 2]), Some(ReclaimOutcome::NotNeeded)),
            (in_log("b", &[2]), Some(ReclaimOutcome::Released(verified))),
        ],
    );
    let deletions = Deletions { slots: slots_of(&[0, 1, 2, 3, 4]), index: true };
    let report = ReclaimReport { sealed: true, needed: 1, skipped: 0, deletions: deletions.clone() };
    let expected = [
        ReclaimEffect::Seal,
        next(None),
        rebase("a"),
        next(Some("a")),
        rebase("b"),
        next(Some("b")),
        ReclaimEffect::List,
        ReclaimEffect::Delete(deletions),
        ReclaimEffect::Done(report),
    ];
    assert_eq!(effects, expected);
}

/// If a subject cannot be resolved, the reclamation keeps its slots and the index and deletes the other slots.
#[test]
fn reclaim_keeps_slots_and_index_of_unresolved_subjects() {
    let effects = run(
        false,
        vec![(in_log("a", &[1, 3]), None), (in_log("b", &[1, 2, 4]), Some(ReclaimOutcome::NotNeeded))],
    );
    let deletions = Deletions { slots: slots_of(&[0, 2, 4]), index: false };
    assert!(effects.contains(&ReclaimEffect::Delete(deletions.clone())), "{effects:?}");
    let report = ReclaimReport { sealed: true, needed: 0, skipped: 1, deletions };
    assert_eq!(effects.last(), Some(&ReclaimEffect::Done(report)));
}

/// A dry run reports the same deletions and issues no seal and no delete.
#[test]
fn reclaim_dry_run_reports_same_result_and_changes_nothing() {
    let effects = run(
        true,
        vec![
            (in_log("a", &[1]), Some(ReclaimOutcome::Needed)),
            (in_log("b", &[2]), None),
            (in_log("c", &[3]), Some(ReclaimOutcome::NotNeeded)),
        ],
    );
    assert_eq!(effects.first(), Some(&ReclaimEffect::CheckSeal));
    assert!(!effects.iter().any(|effect| matches!(effect, ReclaimEffect::Delete(_) | ReclaimEffect::Seal)));
    let deletions = Deletions { slots: slots_of(&[0, 1, 3, 4]), index: false };
    let report = ReclaimReport { sealed: true, needed: 1, skipped: 1, deletions };
    assert_eq!(effects.last(), Some(&ReclaimEffect::Done(report)));
}

/// A reclamation ends before it reads a manifest if the seal is missing or fails or the log is its own.
#[test]
fn reclaim_reads_no_manifest_before_the_seal() {
    let (mut reclaim, effect) = LogReclaim::new(&other(), &mine(), true);
    assert_eq!(effect, ReclaimEffect::CheckSeal);
    assert_eq!(reclaim.apply(ReclaimInput::Sealed(false)), ReclaimEffect::Done(ReclaimReport::default()));
    let (mut reclaim, effect) = LogReclaim::new(&other(), &mine(), false);
    assert_eq!(effect, ReclaimEffect::Seal);
    let reply = ErrorReply::unavailable("the bucket does not answer");
    assert_eq!(reclaim.apply(ReclaimInput::Failed(reply.clone())), ReclaimEffect::GiveUp(reply));
    assert!(matches!(LogReclaim::new(&mine(), &mine(), false).1, ReclaimEffect::GiveUp(_)));
}
