use dormouse_protocol::fleet::ServerState;

use super::super::Why;
use super::*;

#[test]
fn a_restart_keeps_members_and_assignments() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    assert_eq!(world.locate("a"), Ok("one".into()));
    let before = world.machine.incarnation();
    world.restart(TTL);
    assert_ne!(world.machine.incarnation(), before);
    let entry = world.server("one").unwrap();
    assert_eq!((entry.state, entry.heard_ms_ago, entry.assigned_subjects), (ServerState::Alive, None, 1));
    assert_eq!(world.locate("a"), Ok("one".into()), "recorded assignments are answered at once");
    world.ask(heartbeat(&one)).unwrap();
    world.pass_with(TTL * 3, &[&one]);
    assert!(world.gone.is_empty());
}

#[test]
fn who_was_not_heard_of_since_the_start_gets_nothing_new() {
    let mut world = World::new();
    world.joined("one", 1);
    let two = world.joined("two", 2);
    world.restart(TTL);
    assert_eq!(world.locate("new"), Err(ErrorCode::Unavailable));
    world.ask(heartbeat(&two)).unwrap();
    assert!((0..50).all(|n| world.locate(&format!("s.{n}")) == Ok("two".into())));
}

#[test]
fn who_is_not_heard_of_within_the_wait_is_dead_and_not_before() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.claim("a", &one, None).unwrap();
    let two = world.joined("two", 2);
    world.restart(TTL);
    world.pass_with(DEAD_AFTER - STEP, &[&two]);
    assert_eq!(world.claim("a", &two, Some(&one)), Err((ErrorCode::NotOwner, Some("one".into()))));
    assert!(world.gone.is_empty());
    world.pass_with(STEP, &[&two]);
    assert_eq!(world.gone, [Gone { log: one.clone(), why: Why::Silent }]);
    assert_eq!(world.claim("a", &two, Some(&one)), Ok(()));
}

#[test]
fn the_dead_stay_dead_over_a_restart() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.claim("a", &one, None).unwrap();
    world.pass(DEAD_AFTER);
    world.restart(TTL);
    assert_eq!(world.server("one").unwrap().state, ServerState::Dead);
    let two = world.joined("two", 2);
    assert_eq!(world.claim("a", &two, Some(&one)), Ok(()));
    // So do those whose name has passed on.
    let next = log("two", 3);
    world.ask(join_after(&next, &two)).unwrap();
    world.restart(TTL);
    world.ask(heartbeat(&next)).unwrap();
    assert_eq!(world.claim("a", &next, Some(&two)), Ok(()));
    // Also when it was by being silent.
    world.pass(DEAD_AFTER);
    let last = world.joined("two", 4);
    world.restart(TTL);
    world.ask(heartbeat(&last)).unwrap();
    assert_eq!(world.claim("b", &last, Some(&next)), Ok(()));
}

#[test]
fn a_name_stays_taken_over_a_restart() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.restart(TTL);
    assert_eq!(world.ask(join(&log("one", 2))).unwrap_err().holder, Some(one.clone()));
    world.ask(join_after(&log("one", 2), &one)).unwrap();
}

#[test]
fn the_wait_is_that_of_the_longest_lease_that_may_be_out_there() {
    let mut world = World::new();
    let long = Duration::from_secs(20);
    world.restart(long);
    let one = world.joined("one", 1);
    // The next run grants short leases; the long one may still be trusted.
    world.restart(TTL);
    world.pass(Duration::from_millis(25_900));
    assert!(world.gone.is_empty());
    // A restart in the middle of the wait must not shorten it.
    world.restart(TTL);
    world.pass(Duration::from_millis(25_900));
    assert!(world.gone.is_empty());
    world.pass(STEP);
    assert_eq!(world.gone, [Gone { log: one, why: Why::Silent }]);
    // Now only short leases are out there.
    world.joined("two", 2);
    world.restart(TTL);
    world.pass(DEAD_AFTER);
    assert_eq!(world.gone.len(), 2);
}

#[test]
fn a_longer_lease_is_not_cut_short_by_a_new_one_that_may_not_arrive() {
    let mut world = World::new();
    world.restart(Duration::from_secs(20));
    let one = world.joined("one", 1);
    world.restart(TTL);
    world.ask(heartbeat(&one)).unwrap();
    world.pass(Duration::from_millis(25_900));
    assert!(world.gone.is_empty());
    world.pass(STEP);
    assert_eq!(world.gone, [Gone { log: one, why: Why::Silent }]);
}

#[test]
fn a_coordinator_that_knows_nothing_waits_thirty_seconds() {
    for restarts in 0..3 {
        let mut world = World::just_started();
        for _ in 0..restarts {
            world.pass(Duration::from_secs(10));
            world.restart(TTL);
        }
        let one = world.joined("one", 1);
        let unknown = log("two", 2);
        let refused = Err((ErrorCode::NotOwner, Some("two".into())));
        world.pass_with(Duration::from_millis(29_900), &[&one]);
        assert_eq!(world.claim("a", &one, Some(&unknown)), refused);
        world.pass_with(STEP, &[&one]);
        assert_eq!(world.claim("a", &one, Some(&unknown)), Ok(()));
    }
}

#[test]
fn a_coordinator_that_forgot_everything_learns_it_again_from_claims() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let two = world.joined("two", 2);
    world.claim("of-one", &one, None).unwrap();
    world.claim("of-two", &two, None).unwrap();
    world.disk.wipe();
    world.restart(TTL);
    assert_eq!(world.ask(heartbeat(&one)).unwrap_err().code, ErrorCode::UnknownServer);
    world.ask(join(&one)).unwrap();
    // Only one is back yet, so everything seems to be its; the bucket says otherwise.
    assert_eq!(world.locate("of-two"), Ok("one".into()));
    assert_eq!(world.claim("of-two", &one, Some(&two)), Err((ErrorCode::NotOwner, Some("two".into()))));
    assert_eq!(world.locate("of-two"), Ok("two".into()));
    world.ask(join(&two)).unwrap();
    assert_eq!(world.locate("of-two"), Ok("two".into()));
    assert_eq!(world.claim("of-one", &two, Some(&one)), Err((ErrorCode::NotOwner, Some("one".into()))));
    assert_eq!(world.claim("of-one", &one, Some(&one)), Ok(()));
}

#[test]
fn a_forgotten_process_of_the_same_name_may_be_alive() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.claim("a", &one, None).unwrap();
    world.disk.wipe();
    world.restart(TTL);
    // Another process is first to use the name. It must not be given what the other may still serve.
    let intruder = world.joined("one", 2);
    assert_eq!(world.claim("a", &intruder, Some(&one)), Err((ErrorCode::Unavailable, None)));
    world.pass_with(Duration::from_secs(30), &[&intruder]);
    assert_eq!(world.claim("a", &intruder, Some(&one)), Ok(()));
}

#[test]
fn members_of_a_young_coordinator_are_not_waited_for_longer_than_their_leases() {
    let mut world = World::just_started();
    let one = world.joined("one", 1);
    let two = world.joined("two", 2);
    world.claim("a", &one, None).unwrap();
    world.pass_with(TTL, &[&one, &two]);
    world.restart(TTL);
    world.ask(heartbeat(&one)).unwrap();
    world.pass_with(DEAD_AFTER, &[&two]);
    assert_eq!(world.gone, [Gone { log: one.clone(), why: Why::Silent }]);
    assert_eq!(world.claim("a", &two, Some(&one)), Ok(()));
}

#[test]
fn after_another_coordinator_the_dead_may_be_alive_and_leases_may_be_long() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.claim("a", &one, None).unwrap();
    let two = world.joined("two", 2);
    world.pass_with(DEAD_AFTER, &[&two]);
    assert_eq!(world.server("one").unwrap().state, ServerState::Dead);
    // The other one has let it join again, and somebody of whom nothing is known here.
    let stranger = log("three", 3);
    world.follow_another();
    world.ask(heartbeat(&two)).unwrap();
    let refused = |name: &str| Err((ErrorCode::NotOwner, Some(name.to_owned())));
    assert_eq!(world.claim("a", &two, Some(&one)), refused("one"));
    assert_eq!(world.claim("b", &two, Some(&stranger)), refused("three"));
    // A restart in the middle shortens nothing.
    world.pass_with(Duration::from_secs(10), &[&two]);
    world.restart(TTL);
    world.ask(heartbeat(&two)).unwrap();
    assert_eq!(world.claim("a", &two, Some(&one)), refused("one"));
    world.pass_with(Duration::from_millis(29_900), &[&two]);
    assert_eq!(world.claim("a", &two, Some(&one)), refused("one"));
    world.pass_with(STEP, &[&two]);
    assert_eq!(world.claim("a", &two, Some(&one)), Ok(()));
    assert_eq!(world.claim("b", &two, Some(&stranger)), Ok(()));
}

#[test]
fn who_was_replaced_in_this_run_is_no_stranger() {
    let mut world = World::just_started();
    let first = world.joined("one", 1);
    for number in [2, 3] {
        world.pass_with(DEAD_AFTER, &[]);
        // With a fresh data directory, which knows no predecessor.
        world.joined("one", number);
    }
    assert!(world.machine.is_waiting());
    let third = log("one", 3);
    assert_eq!(world.claim("a", &third, Some(&first)), Ok(()));
    let refused = Err((ErrorCode::Unavailable, None));
    assert_eq!(world.claim("b", &third, Some(&log("one", 9))), refused, "of whom nothing is known");
}
