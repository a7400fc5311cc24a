use super::*;

fn not_owner(server: &str) -> Result<(), (ErrorCode, Option<String>)> {
    Err((ErrorCode::NotOwner, Some(server.to_owned())))
}

#[test]
fn without_a_server_nothing_can_be_located() {
    let mut world = World::new();
    assert_eq!(world.locate("a"), Err(ErrorCode::Unavailable));
    let one = world.joined("one", 1);
    assert_eq!(world.locate("a"), Ok("one".into()));
    world.ask(leave(&one)).unwrap();
    assert_eq!(world.locate("a"), Err(ErrorCode::Unavailable));
}

#[test]
fn an_assignment_stays_put_when_servers_come_and_moves_when_its_server_goes() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let names: Vec<_> = (0..200).map(|n| format!("s.{n}")).collect();
    assert!(names.iter().all(|name| world.locate(name) == Ok("one".into())));
    let two = world.joined("two", 2);
    assert!(names.iter().all(|name| world.locate(name) == Ok("one".into())));
    let new = (200..300).filter(|n| world.locate(&format!("s.{n}")) == Ok("two".into())).count();
    assert!((1..100).contains(&new), "what is new is shared");
    world.pass_with(DEAD_AFTER, &[&two]);
    assert!(names.iter().all(|name| world.locate(name) == Ok("two".into())));
    // Back again, it gets nothing back by itself.
    world.ask(join_after(&log("one", 3), &one)).unwrap();
    assert!(names.iter().all(|name| world.locate(name) == Ok("two".into())));
    assert_eq!(
        world.server("two").unwrap().assigned_subjects + world.server("one").unwrap().assigned_subjects,
        300
    );
}

#[test]
fn a_restarted_server_keeps_its_subjects() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    assert_eq!(world.locate("a"), Ok("one".into()));
    for n in 2..10 {
        world.joined(&format!("other-{n}"), n);
    }
    world.ask(join_after(&log("one", 20), &one)).unwrap();
    assert_eq!(world.locate("a"), Ok("one".into()));
}

#[test]
fn a_draining_server_gets_nothing_new_and_keeps_what_it_has_until_it_releases_it() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    assert_eq!(world.locate("a"), Ok("one".into()));
    let two = world.joined("two", 2);
    world.ask(draining(&one)).unwrap();
    assert_eq!(world.locate("a"), Ok("one".into()), "it may own it, and serves it until it is handed over");
    assert!((0..100).all(|n| world.locate(&format!("s.{n}")) == Ok("two".into())));
    world.ask(release("a", &one)).unwrap();
    assert_eq!(world.locate("a"), Ok("two".into()));
    world.ask(draining(&two)).unwrap();
    assert_eq!(world.locate("new"), Err(ErrorCode::Unavailable));
    world.ask(heartbeat(&two)).unwrap();
    assert_eq!(world.locate("new"), Ok("two".into()));
}

#[test]
fn a_claim_is_recorded_and_granted_when_nobody_has_the_subject() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let two = world.joined("two", 2);
    assert_eq!(world.claim("a", &one, None), Ok(()));
    assert_eq!(world.recorded("a"), Some("one".into()));
    assert_eq!(world.claim("a", &two, None), not_owner("one"));
    assert_eq!(world.claim("a", &one, None), Ok(()), "a repeat is granted again");
    assert_eq!(world.recorded("a"), Some("one".into()));
}

#[test]
fn who_is_no_member_claims_nothing() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let stranger = log("two", 2);
    assert_eq!(world.claim("a", &stranger, None), Err((ErrorCode::UnknownServer, None)));
    let next = log("one", 3);
    world.ask(join_after(&next, &one)).unwrap();
    assert_eq!(world.claim("a", &one, None), Err((ErrorCode::UnknownServer, None)));
    assert_eq!(world.recorded("a"), None);
}

#[test]
fn the_bucket_knows_better_who_the_owner_is() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let two = world.joined("two", 2);
    assert_eq!(world.claim("a", &one, None), Ok(()));
    // The manifest says that two owns it, and two is alive: the record was wrong.
    assert_eq!(world.claim("a", &one, Some(&two)), not_owner("two"));
    assert_eq!(world.locate("a"), Ok("two".into()));
    // And who owns it by the manifest may go on with it, whatever is recorded.
    assert_eq!(world.claim("a", &one, Some(&one)), Ok(()));
    assert_eq!(world.locate("a"), Ok("one".into()));
}

#[test]
fn what_a_dead_process_owned_goes_to_who_is_recorded() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    assert_eq!(world.locate("a"), Ok("one".into()));
    assert_eq!(world.claim("a", &one, None), Ok(()));
    let two = world.joined("two", 2);
    let three = world.joined("three", 3);
    assert_eq!(world.claim("a", &two, Some(&one)), not_owner("one"));
    world.pass_with(DEAD_AFTER, &[&two, &three]);
    let chosen = world.locate("a").unwrap();
    let (chosen, other) = if chosen == "two" { (two, three) } else { (three, two) };
    assert_eq!(world.claim("a", &other, Some(&one)), not_owner(chosen.server().as_str()));
    assert_eq!(world.claim("a", &chosen, Some(&one)), Ok(()));
    // The old process comes back to life and is sent to the new owner.
    world.ask(join(&one)).unwrap();
    assert_eq!(world.claim("a", &one, Some(&chosen)), not_owner(chosen.server().as_str()));
}

#[test]
fn a_successor_claims_what_its_predecessor_owned() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    assert_eq!(world.claim("a", &one, None), Ok(()));
    let next = log("one", 2);
    world.ask(join_after(&next, &one)).unwrap();
    assert_eq!(world.claim("a", &next, Some(&one)), Ok(()));
}

#[test]
fn a_draining_server_claims_only_what_nobody_else_can_take() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.ask(draining(&one)).unwrap();
    assert_eq!(world.claim("a", &one, None), Ok(()), "better than nobody");
    let two = world.joined("two", 2);
    assert_eq!(world.claim("a", &one, Some(&one)), Ok(()), "it is the owner");
    assert_eq!(world.claim("b", &one, None), not_owner("two"));
    assert_eq!(world.claim("b", &two, None), Ok(()));
    // As long as it has not released the subject it is the one to ask.
    assert_eq!(world.claim("a", &two, Some(&one)), not_owner("one"));
    world.ask(release("a", &one)).unwrap();
    assert_eq!(world.claim("a", &two, None), Ok(()));
}

#[test]
fn clients_that_ask_while_the_owner_drains_change_nothing() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.claim("a", &one, None).unwrap();
    let two = world.joined("two", 2);
    world.ask(draining(&one)).unwrap();
    for _ in 0..3 {
        assert_eq!(world.locate("a"), Ok("one".into()));
        assert_eq!(world.claim("a", &two, Some(&one)), not_owner("one"));
        assert_eq!(world.recorded("a"), Some("one".into()));
        assert_eq!(world.apply(Input::Locate(subject("a"))).changes, []);
    }
    world.ask(release("a", &one)).unwrap();
    assert_eq!(world.claim("a", &two, None), Ok(()));
}

#[test]
fn what_a_draining_server_does_not_own_goes_to_the_next_who_asks() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    // Recorded, and never claimed; or released, and the word of it was lost.
    assert!(["a", "b"].iter().all(|name| world.locate(name) == Ok("one".into())));
    let two = world.joined("two", 2);
    world.ask(draining(&one)).unwrap();
    assert_eq!(world.claim("a", &two, None), Ok(()));
    assert_eq!(world.locate("a"), Ok("two".into()));
    assert_eq!(world.locate("b"), Ok("one".into()));
    assert_eq!(world.claim("b", &one, None), not_owner("two"));
    assert_eq!(world.locate("b"), Ok("two".into()));
}

#[test]
fn a_release_by_the_recorded_server_makes_the_subject_anybodys() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let two = world.joined("two", 2);
    world.claim("a", &one, None).unwrap();
    world.ask(release("a", &two)).unwrap();
    assert_eq!(world.recorded("a"), Some("one".into()), "not two's to release");
    world.ask(release("a", &log("one", 9))).unwrap();
    assert_eq!(world.recorded("a"), Some("one".into()), "not the process that has it");
    world.ask(release("a", &one)).unwrap();
    assert_eq!(world.recorded("a"), None);
    assert_eq!(world.server("one").unwrap().assigned_subjects, 0);
    assert_eq!(world.claim("a", &two, None), Ok(()));
}
