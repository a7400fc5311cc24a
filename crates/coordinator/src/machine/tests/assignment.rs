use super::*;

fn not_owner(server: &str) -> Result<(), (ErrorCode, Option<String>)> {
    Err((ErrorCode::NotOwner, Some(server.to_owned())))
}

/// If no server is a member, the coordinator answers a locate with `unavailable`.
#[test]
fn locate_without_live_server_is_unavailable() {
    let mut world = World::new();
    assert_eq!(world.locate("a"), Err(ErrorCode::Unavailable));
    let one = world.joined("one", 1);
    assert_eq!(world.locate("a"), Ok("one".into()));
    world.ask(leave(&one)).unwrap();
    assert_eq!(world.locate("a"), Err(ErrorCode::Unavailable));
}

/// A new server gets only new subjects; assignments move when their server is declared dead, and do not return.
#[test]
fn assignment_is_kept_until_server_is_declared_dead() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let names: Vec<_> = (0..200).map(|n| format!("s.{n}")).collect();
    assert!(names.iter().all(|name| world.open(name) == Ok("one".into())));
    let two = world.joined("two", 2);
    assert!(names.iter().all(|name| world.open(name) == Ok("one".into())));
    let new = (200..300).filter(|n| world.open(&format!("s.{n}")) == Ok("two".into())).count();
    assert!((1..100).contains(&new), "new subjects are shared");
    world.pass_with(DEAD_AFTER, &[&two]);
    assert!(names.iter().all(|name| world.open(name) == Ok("two".into())));
    // The returning server does not get its old subjects back.
    world.ask(join_after(&log("one", 3), &one)).unwrap();
    assert!(names.iter().all(|name| world.open(name) == Ok("two".into())));
    assert_eq!(
        world.server("two").unwrap().assigned_subjects + world.server("one").unwrap().assigned_subjects,
        300
    );
}

/// A server that restarts on the same data directory keeps its assignments.
#[test]
fn server_restart_keeps_assignments() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    assert_eq!(world.open("a"), Ok("one".into()));
    for n in 2..10 {
        world.joined(&format!("other-{n}"), n);
    }
    world.ask(join_after(&log("one", 20), &one)).unwrap();
    assert_eq!(world.locate("a"), Ok("one".into()));
}

/// A draining server gets no new subjects and keeps each subject that it has until it releases the subject.
#[test]
fn drain_stops_new_assignments_and_keeps_owned_until_release() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    assert_eq!(world.open("a"), Ok("one".into()));
    let two = world.joined("two", 2);
    world.ask(draining(&one)).unwrap();
    assert_eq!(
        world.locate("a"),
        Ok("one".into()),
        "it may own the subject, and serves it until the handover"
    );
    assert!((0..100).all(|n| world.locate(&format!("s.{n}")) == Ok("two".into())));
    world.ask(release("a", &one)).unwrap();
    assert_eq!(world.locate("a"), Ok("two".into()));
    world.ask(draining(&two)).unwrap();
    assert_eq!(world.locate("new"), Err(ErrorCode::Unavailable));
    world.ask(heartbeat(&two)).unwrap();
    assert_eq!(world.locate("new"), Ok("two".into()));
}

/// The coordinator grants and records a claim of an unassigned subject, grants its repeat, and redirects other servers.
#[test]
fn claim_of_unassigned_subject_is_granted_and_recorded() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let two = world.joined("two", 2);
    assert_eq!(world.claim("a", &one, None), Ok(()));
    assert_eq!(world.recorded("a"), Some("one".into()));
    assert_eq!(world.claim("a", &two, None), not_owner("one"));
    assert_eq!(world.claim("a", &one, None), Ok(()), "a repeat is granted again");
    assert_eq!(world.recorded("a"), Some("one".into()));
}

/// A process that never joined, or that its successor replaced, gets `unknown_server` for a claim.
#[test]
fn claim_by_non_member_gets_unknown_server() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let unknown = log("two", 2);
    assert_eq!(world.claim("a", &unknown, None), Err((ErrorCode::UnknownServer, None)));
    let next = log("one", 3);
    world.ask(join_after(&next, &one)).unwrap();
    assert_eq!(world.claim("a", &one, None), Err((ErrorCode::UnknownServer, None)));
    assert_eq!(world.recorded("a"), None);
}

/// If the manifest names a live owner, that owner wins over the recorded assignment.
#[test]
fn claim_owner_in_manifest_overrides_recorded_assignment() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let two = world.joined("two", 2);
    assert_eq!(world.claim("a", &one, None), Ok(()));
    // The manifest names two as owner, and two is alive: the recorded assignment was wrong.
    assert_eq!(world.claim("a", &one, Some(&two)), not_owner("two"));
    assert_eq!(world.locate("a"), Ok("two".into()));
    // The owner in the manifest may continue to serve, regardless of the recorded assignment.
    assert_eq!(world.claim("a", &one, Some(&one)), Ok(()));
    assert_eq!(world.locate("a"), Ok("one".into()));
}

/// After the owner is declared dead, the first claim is granted; other servers and a returning owner are redirected.
#[test]
fn claim_on_dead_owner_is_granted_to_first_claimant() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    assert_eq!(world.open("a"), Ok("one".into()));
    let two = world.joined("two", 2);
    let three = world.joined("three", 3);
    assert_eq!(world.claim("a", &two, Some(&one)), not_owner("one"));
    world.pass_with(DEAD_AFTER, &[&two, &three]);
    // A client was sent to one server, and another server claims first.
    let located = world.locate("a").unwrap();
    let (slow, first) = if located == "two" { (two, three) } else { (three, two) };
    assert_eq!(world.claim("a", &first, Some(&one)), Ok(()));
    assert_eq!(world.claim("a", &slow, Some(&one)), not_owner(first.server().as_str()));
    assert_eq!(world.locate("a"), Ok(first.server().to_string()));
    // The old process returns and is redirected to the new owner.
    world.ask(join(&one)).unwrap();
    assert_eq!(world.claim("a", &one, Some(&first)), not_owner(first.server().as_str()));
}

/// A locate of an unassigned subject records nothing, and the claim that follows records the assignment.
#[test]
fn locate_records_nothing_and_claim_records_assignment() {
    let mut world = World::new();
    let logs = [world.joined("one", 1), world.joined("two", 2)];
    for n in 0..10_000 {
        let effects = world.machine.apply(
            CoordinatorInput::Locate(subject(&format!("s.{n}"))),
            world.now,
            &world.store,
        );
        assert!(matches!(effects.answer, Some(Ok(CoordinatorReply::Located(_)))));
        assert_eq!(Effects { answer: None, ..effects }, Effects::default());
    }
    assert_eq!(world.store.counts().total(), 0);
    let located = world.locate("s.0").unwrap();
    let [claimant, other] = if located == "one" { [&logs[0], &logs[1]] } else { [&logs[1], &logs[0]] };
    assert_eq!(world.claim("s.0", claimant, None), Ok(()));
    assert_eq!(world.recorded("s.0"), Some(located.clone()));
    assert_eq!(world.claim("s.0", other, None), not_owner(&located));
}

/// If the claim is refused in favour of another server, that assignment is recorded.
#[test]
fn claim_refused_for_another_server_records_that_server() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let two = world.joined("two", 2);
    assert_eq!(world.claim("owned", &one, Some(&two)), not_owner("two"));
    assert_eq!(world.recorded("owned"), Some("two".into()));
    world.ask(draining(&one)).unwrap();
    assert_eq!(world.claim("new", &one, None), not_owner("two"));
    assert_eq!(world.recorded("new"), Some("two".into()));
}

/// A process that names the owner as its predecessor gets the claim at once.
#[test]
fn claim_by_successor_of_owner_is_granted() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    assert_eq!(world.claim("a", &one, None), Ok(()));
    let next = log("one", 2);
    world.ask(join_after(&next, &one)).unwrap();
    assert_eq!(world.claim("a", &next, Some(&one)), Ok(()));
}

/// A draining server gets a claim only if it owns the subject or if no other server can take the subject.
#[test]
fn claim_by_draining_server_needs_ownership_or_no_other_server() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.ask(draining(&one)).unwrap();
    assert_eq!(world.claim("a", &one, None), Ok(()), "there is no other server");
    let two = world.joined("two", 2);
    assert_eq!(world.claim("a", &one, Some(&one)), Ok(()), "it is the owner");
    assert_eq!(world.claim("b", &one, None), not_owner("two"));
    assert_eq!(world.claim("b", &two, None), Ok(()));
    // Claims are redirected to it until it has released the subject.
    assert_eq!(world.claim("a", &two, Some(&one)), not_owner("one"));
    world.ask(release("a", &one)).unwrap();
    assert_eq!(world.claim("a", &two, None), Ok(()));
}

/// While the owner drains, locates and claims name it and change no assignment until it releases the subject.
#[test]
fn locate_and_claim_during_drain_change_no_assignment() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.claim("a", &one, None).unwrap();
    let two = world.joined("two", 2);
    world.ask(draining(&one)).unwrap();
    for _ in 0..3 {
        assert_eq!(world.locate("a"), Ok("one".into()));
        assert_eq!(world.claim("a", &two, Some(&one)), not_owner("one"));
        assert_eq!(world.recorded("a"), Some("one".into()));
        assert_eq!(world.apply(CoordinatorInput::Locate(subject("a"))).changes, []);
    }
    world.ask(release("a", &one)).unwrap();
    assert_eq!(world.claim("a", &two, None), Ok(()));
}

/// If a draining server does not own an assigned subject, the next claim assigns the subject to another server.
#[test]
fn drain_gives_unowned_subject_to_another_server_at_claim() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    // Claimed and released; the release message was lost.
    assert!(["a", "b"].iter().all(|name| world.open(name) == Ok("one".into())));
    let two = world.joined("two", 2);
    world.ask(draining(&one)).unwrap();
    assert_eq!(world.claim("a", &two, None), Ok(()));
    assert_eq!(world.locate("a"), Ok("two".into()));
    assert_eq!(world.locate("b"), Ok("one".into()));
    assert_eq!(world.claim("b", &one, None), not_owner("two"));
    assert_eq!(world.locate("b"), Ok("two".into()));
}

/// Only a release by the assigned process removes the assignment; a release by another server or process changes
/// nothing.
#[test]
fn release_by_assigned_process_removes_assignment() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let two = world.joined("two", 2);
    world.claim("a", &one, None).unwrap();
    world.ask(release("a", &two)).unwrap();
    assert_eq!(world.recorded("a"), Some("one".into()), "two is not the assigned server");
    world.ask(release("a", &log("one", 9))).unwrap();
    assert_eq!(world.recorded("a"), Some("one".into()), "not the assigned process");
    world.ask(release("a", &one)).unwrap();
    assert_eq!(world.recorded("a"), None);
    assert_eq!(world.server("one").unwrap().assigned_subjects, 0);
    assert_eq!(world.claim("a", &two, None), Ok(()));
}
