use dormouse_protocol::fleet::ServerState;

use super::super::Why;
use super::*;

#[test]
fn a_join_and_a_heartbeat_are_answered_with_a_lease() {
    let mut world = World::new();
    let lease = Ok(Answer::Lease(LeaseReply {
        incarnation: world.machine.incarnation(),
        ttl_ms: 3_000,
        draining: false,
    }));
    let one = log("one", 1);
    assert_eq!(world.ask(join(&one)), lease);
    assert_eq!(world.ask(heartbeat(&one)), lease);
}

#[test]
fn a_heartbeat_of_a_stranger_is_told_to_join() {
    let mut world = World::new();
    let error = world.ask(heartbeat(&log("one", 1))).unwrap_err();
    assert_eq!(error.code, ErrorCode::UnknownServer);
}

#[test]
fn a_process_is_dead_1_3_ttl_after_its_last_grant_and_not_before() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.pass_with(TTL * 3, &[&one]);
    world.ask(heartbeat(&one)).unwrap();
    world.pass(DEAD_AFTER - Duration::from_millis(1));
    assert_eq!(world.server("one").unwrap().state, ServerState::Alive);
    world.pass(Duration::from_millis(1));
    assert_eq!(world.server("one").unwrap().state, ServerState::Dead);
    world.pass(TTL * 3);
    assert_eq!(world.gone, [Gone { log: one.clone(), why: Why::Silent }]);
    assert_eq!(world.ask(heartbeat(&one)).unwrap_err().code, ErrorCode::UnknownServer);
    // It may come back by joining again.
    world.ask(join(&one)).unwrap();
    assert_eq!(world.server("one").unwrap().state, ServerState::Alive);
}

#[test]
fn a_name_belongs_to_one_live_process() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let other = log("one", 2);
    let error = world.ask(join(&other)).unwrap_err();
    assert_eq!((error.code, error.holder), (ErrorCode::NameInUse, Some(one.clone())));
    // Naming another process than the holder helps nobody.
    let error = world.ask(join_after(&other, &log("one", 7))).unwrap_err();
    assert_eq!(error.code, ErrorCode::NameInUse);
    assert_eq!(world.server("one").unwrap().log, one);
    assert!(world.gone.is_empty());
    world.pass(DEAD_AFTER);
    world.ask(join(&other)).unwrap();
    assert_eq!(world.server("one").unwrap().log, other);
}

#[test]
fn who_holds_the_data_directory_of_the_holder_takes_over_at_once() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let next = log("one", 2);
    world.ask(join_after(&next, &one)).unwrap();
    assert_eq!(world.gone, [Gone { log: one.clone(), why: Why::Replaced }]);
    assert_eq!(world.ask(heartbeat(&one)).unwrap_err().code, ErrorCode::UnknownServer);
    // Repeating the join changes nothing.
    assert!(world.apply(join_after(&next, &one)).changes.is_empty());
    assert!(world.apply(join(&next)).changes.is_empty());
    assert_eq!(world.gone.len(), 1);
    world.ask(heartbeat(&next)).unwrap();
}

#[test]
fn who_leaves_is_gone_at_once_and_a_late_heartbeat_does_not_revive_it() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    assert_eq!(world.ask(leave(&one)), Ok(Answer::Acknowledged));
    assert_eq!(world.gone, [Gone { log: one.clone(), why: Why::Left }]);
    assert_eq!(world.server("one").unwrap().state, ServerState::Dead);
    assert_eq!(world.ask(heartbeat(&one)).unwrap_err().code, ErrorCode::UnknownServer);
    assert_eq!(world.ask(leave(&one)), Ok(Answer::Acknowledged));
    world.pass(TTL * 2);
    assert_eq!(world.gone.len(), 1);
    // Nor does a join that was under way, or a process that does not know that it is over.
    let error = world.ask(join(&one)).unwrap_err();
    assert_eq!(error.code, ErrorCode::BadRequest);
    assert_eq!(world.server("one").unwrap().state, ServerState::Dead);
    // The leave of a process whose name has passed on is of the past.
    let next = world.joined("one", 2);
    world.ask(leave(&one)).unwrap();
    world.ask(heartbeat(&next)).unwrap();
}

#[test]
fn operators_see_every_server() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let two = world.joined("two", 2);
    world.ask(draining(&two)).unwrap();
    world.pass(Duration::from_millis(300));
    let Input::Heartbeat(request) = heartbeat(&one) else { unreachable!() };
    let load = ServerLoad { open_subjects: 5, requests: 77, local_bytes: 1_024 };
    world.ask(Input::Heartbeat(HeartbeatRequest { load, ..request })).unwrap();
    assert_eq!(world.locate("a"), Ok("one".into()));
    let entry = world.server("one").unwrap();
    assert_eq!((entry.state, entry.heard_ms_ago, entry.load), (ServerState::Alive, Some(0), load));
    assert_eq!((entry.log, entry.assigned_subjects, entry.capacity), (one, 1, 100));
    let entry = world.server("two").unwrap();
    assert_eq!((entry.state, entry.heard_ms_ago), (ServerState::Draining, Some(300)));
    let census = world.machine.census();
    assert_eq!((census.alive, census.draining, census.dead), (1, 1, 0));
    // What the process before said about itself does not stick to its successor.
    world.ask(join_after(&log("one", 3), &log("one", 1))).unwrap();
    world.ask(join_after(&log("two", 4), &log("two", 2))).unwrap();
    assert_eq!(world.server("one").unwrap().load, ServerLoad::default());
    assert_eq!(world.server("two").unwrap().state, ServerState::Alive);
}

#[test]
fn nobody_is_called_silent_while_the_coordinator_is_deaf() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.apply(Input::Disconnected);
    world.pass(TTL * 10);
    assert!(world.gone.is_empty());
    world.apply(Input::Connected);
    world.pass(TTL - STEP);
    assert!(world.gone.is_empty());
    world.ask(heartbeat(&one)).unwrap();
    world.pass(DEAD_AFTER);
    assert_eq!(world.gone, [Gone { log: one, why: Why::Silent }]);
}

#[test]
fn a_coordinator_that_stood_still_listens_before_it_calls_anybody_silent() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.now += TTL * 10;
    world.apply(Input::Tick);
    assert!(world.gone.is_empty());
    world.pass(TTL);
    assert_eq!(world.gone, [Gone { log: one, why: Why::Silent }]);
}
