use dormouse_protocol::fleet::ServerState;

use super::super::GoneReason;
use super::*;

/// The coordinator answers a join and a heartbeat with the same lease.
#[test]
fn join_and_heartbeat_return_lease() {
    let mut world = World::new();
    let lease = Ok(CoordinatorReply::Lease(LeaseReply {
        incarnation: world.machine.incarnation(),
        ttl_ms: 3_000,
        draining: false,
        limits: dormouse_protocol::tenant::LimitsRevision::NONE,
    }));
    let one = log("one", 1);
    assert_eq!(world.ask(join(&one)), lease);
    assert_eq!(world.ask(heartbeat(&one)), lease);
}

/// A heartbeat of a process that is no member gets `unknown_server`.
#[test]
fn heartbeat_of_unknown_process_gets_unknown_server() {
    let mut world = World::new();
    let error = world.ask(heartbeat(&log("one", 1))).unwrap_err();
    assert_eq!(error.code, ErrorCode::UnknownServer);
}

/// The coordinator declares a server dead exactly 1.3 TTL after its last lease grant; the server can join again.
#[test]
fn server_is_declared_dead_1_3_ttl_after_last_grant() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.pass_with(TTL * 3, &[&one]);
    world.ask(heartbeat(&one)).unwrap();
    world.pass(DEAD_AFTER - Duration::from_millis(1));
    assert_eq!(world.server("one").unwrap().state, ServerState::Alive);
    world.pass(Duration::from_millis(1));
    assert_eq!(world.server("one").unwrap().state, ServerState::Dead);
    world.pass(TTL * 3);
    assert_eq!(world.gone, [GoneProcess { log: one.clone(), reason: GoneReason::LeaseExpired }]);
    assert_eq!(world.ask(heartbeat(&one)).unwrap_err().code, ErrorCode::UnknownServer);
    // The server can join again.
    world.ask(join(&one)).unwrap();
    assert_eq!(world.server("one").unwrap().state, ServerState::Alive);
}

/// A second process gets `name_in_use` until the holder of the name is declared dead.
#[test]
fn server_name_belongs_to_one_live_process() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let other = log("one", 2);
    let error = world.ask(join(&other)).unwrap_err();
    assert_eq!((error.code, error.holder), (ErrorCode::NameInUse, Some(one.clone())));
    // A predecessor that is not the holder of the name makes no difference.
    let error = world.ask(join_after(&other, &log("one", 7))).unwrap_err();
    assert_eq!(error.code, ErrorCode::NameInUse);
    assert_eq!(world.server("one").unwrap().log, one);
    assert!(world.gone.is_empty());
    world.pass(DEAD_AFTER);
    world.ask(join(&other)).unwrap();
    assert_eq!(world.server("one").unwrap().log, other);
}

/// A join that names the holder of the server name as its predecessor replaces the holder at once.
#[test]
fn join_naming_holder_as_predecessor_replaces_it_at_once() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let next = log("one", 2);
    world.ask(join_after(&next, &one)).unwrap();
    assert_eq!(world.gone, [GoneProcess { log: one.clone(), reason: GoneReason::Replaced }]);
    assert_eq!(world.ask(heartbeat(&one)).unwrap_err().code, ErrorCode::UnknownServer);
    // Repeating the join changes nothing.
    assert!(world.apply(join_after(&next, &one)).changes.is_empty());
    assert!(world.apply(join(&next)).changes.is_empty());
    assert_eq!(world.gone.len(), 1);
    world.ask(heartbeat(&next)).unwrap();
}

/// A leave ends a membership at once; late heartbeats and joins fail, and a late leave does not affect the successor.
#[test]
fn leave_is_final_and_late_heartbeat_does_not_revive() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    assert_eq!(world.ask(leave(&one)), Ok(CoordinatorReply::Acknowledged));
    assert_eq!(world.gone, [GoneProcess { log: one.clone(), reason: GoneReason::Left }]);
    assert_eq!(world.server("one").unwrap().state, ServerState::Dead);
    assert_eq!(world.ask(heartbeat(&one)).unwrap_err().code, ErrorCode::UnknownServer);
    assert_eq!(world.ask(leave(&one)), Ok(CoordinatorReply::Acknowledged));
    world.pass(TTL * 2);
    assert_eq!(world.gone.len(), 1);
    // A late join, or a join of the process that left, fails as well.
    let error = world.ask(join(&one)).unwrap_err();
    assert_eq!(error.code, ErrorCode::BadRequest);
    assert_eq!(world.server("one").unwrap().state, ServerState::Dead);
    // A late leave of a replaced process is ignored.
    let next = world.joined("one", 2);
    world.ask(leave(&one)).unwrap();
    world.ask(heartbeat(&next)).unwrap();
}

/// The server list shows state, load and last heartbeat; a successor process does not inherit the reported load or
/// drain.
#[test]
fn server_list_shows_state_load_and_last_heartbeat() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let two = world.joined("two", 2);
    world.ask(draining(&two)).unwrap();
    world.pass(Duration::from_millis(300));
    let CoordinatorInput::Heartbeat(request) = heartbeat(&one) else { unreachable!() };
    let load = ServerLoad { open_subjects: 5, requests: 77, local_bytes: 1_024 };
    world.ask(CoordinatorInput::Heartbeat(HeartbeatRequest { load, ..request })).unwrap();
    assert_eq!(world.open("a"), Ok("one".into()));
    let entry = world.server("one").unwrap();
    assert_eq!((entry.state, entry.heard_ms_ago, entry.load), (ServerState::Alive, Some(0), load));
    assert_eq!((entry.log, entry.assigned_subjects, entry.capacity), (one, 1, 100));
    let entry = world.server("two").unwrap();
    assert_eq!((entry.state, entry.heard_ms_ago), (ServerState::Draining, Some(300)));
    let counts = world.machine.member_counts();
    assert_eq!((counts.alive, counts.draining, counts.dead), (1, 1, 0));
    // The successor does not inherit the reported load or drain of the earlier process.
    world.ask(join_after(&log("one", 3), &log("one", 1))).unwrap();
    world.ask(join_after(&log("two", 4), &log("two", 2))).unwrap();
    assert_eq!(world.server("one").unwrap().load, ServerLoad::default());
    assert_eq!(world.server("two").unwrap().state, ServerState::Alive);
}

/// A disconnected coordinator declares no server dead; after it reconnects, each server has time to send a heartbeat.
#[test]
fn lease_expiry_pauses_while_coordinator_is_disconnected() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.apply(CoordinatorInput::Disconnected);
    world.pass(TTL * 10);
    assert!(world.gone.is_empty());
    world.apply(CoordinatorInput::Connected);
    world.pass(TTL - STEP);
    assert!(world.gone.is_empty());
    world.ask(heartbeat(&one)).unwrap();
    world.pass(DEAD_AFTER);
    assert_eq!(world.gone, [GoneProcess { log: one, reason: GoneReason::LeaseExpired }]);
}

/// After a long pause of its own process, the coordinator waits for heartbeats before it declares a server dead.
#[test]
fn coordinator_paused_waits_before_declaring_server_dead() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.now += TTL * 10;
    world.apply(CoordinatorInput::Tick);
    assert!(world.gone.is_empty());
    world.pass(TTL);
    assert_eq!(world.gone, [GoneProcess { log: one, reason: GoneReason::LeaseExpired }]);
}
