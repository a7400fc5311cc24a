use dormouse_protocol::fleet::ServerState;

use super::super::GoneReason;
use super::*;

/// A coordinator restart keeps members and assignments under a new incarnation.
#[test]
fn coordinator_restart_keeps_members_and_assignments() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    assert_eq!(world.open("a"), Ok("one".into()));
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

/// After a coordinator restart, only servers that sent a heartbeat get new subjects.
#[test]
fn server_not_heard_since_restart_gets_no_new_subject() {
    let mut world = World::new();
    world.joined("one", 1);
    let two = world.joined("two", 2);
    world.restart(TTL);
    assert_eq!(world.locate("new"), Err(ErrorCode::Unavailable));
    world.ask(heartbeat(&two)).unwrap();
    assert!((0..50).all(|n| world.locate(&format!("s.{n}")) == Ok("two".into())));
}

/// The coordinator declares a silent member dead at the end of the startup grace, and no earlier.
#[test]
fn server_silent_through_startup_grace_is_declared_dead() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.claim("a", &one, None).unwrap();
    let two = world.joined("two", 2);
    world.restart(TTL);
    world.pass_with(DEAD_AFTER - STEP, &[&two]);
    assert_eq!(world.claim("a", &two, Some(&one)), Err((ErrorCode::NotOwner, Some("one".into()))));
    assert!(world.gone.is_empty());
    world.pass_with(STEP, &[&two]);
    assert_eq!(world.gone, [GoneProcess { log: one.clone(), reason: GoneReason::LeaseExpired }]);
    assert_eq!(world.claim("a", &two, Some(&one)), Ok(()));
}

/// Processes that were declared dead or replaced stay dead after a coordinator restart.
#[test]
fn server_declared_dead_stays_dead_after_restart() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.claim("a", &one, None).unwrap();
    world.pass(DEAD_AFTER);
    world.restart(TTL);
    assert_eq!(world.server("one").unwrap().state, ServerState::Dead);
    let two = world.joined("two", 2);
    assert_eq!(world.claim("a", &two, Some(&one)), Ok(()));
    // Replaced processes stay dead as well.
    let next = log("two", 3);
    world.ask(join_after(&next, &two)).unwrap();
    world.restart(TTL);
    world.ask(heartbeat(&next)).unwrap();
    assert_eq!(world.claim("a", &next, Some(&two)), Ok(()));
    // Also if their lease expired before another process took the name.
    world.pass(DEAD_AFTER);
    let last = world.joined("two", 4);
    world.restart(TTL);
    world.ask(heartbeat(&last)).unwrap();
    assert_eq!(world.claim("b", &last, Some(&next)), Ok(()));
}

/// A server name stays in use after a coordinator restart; only a successor of the holder can take it.
#[test]
fn server_name_stays_taken_after_restart() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.restart(TTL);
    assert_eq!(world.ask(join(&log("one", 2))).unwrap_err().holder, Some(one.clone()));
    world.ask(join_after(&log("one", 2), &one)).unwrap();
}

/// The startup grace covers the longest lease that an earlier run granted, and a further restart does not shorten it.
#[test]
fn startup_grace_covers_longest_granted_lease() {
    let mut world = World::new();
    let long = Duration::from_secs(20);
    world.restart(long);
    let one = world.joined("one", 1);
    // The next run grants short leases; the long one may still be held.
    world.restart(TTL);
    world.pass(Duration::from_millis(25_900));
    assert!(world.gone.is_empty());
    // A restart during the grace must not shorten it.
    world.restart(TTL);
    world.pass(Duration::from_millis(25_900));
    assert!(world.gone.is_empty());
    world.pass(STEP);
    assert_eq!(world.gone, [GoneProcess { log: one, reason: GoneReason::LeaseExpired }]);
    // Now processes hold only short leases.
    world.joined("two", 2);
    world.restart(TTL);
    world.pass(DEAD_AFTER);
    assert_eq!(world.gone.len(), 2);
}

/// A shorter lease grant after a restart does not shorten a longer lease, because its reply can be lost.
#[test]
fn lease_grant_after_restart_does_not_shorten_longer_lease() {
    let mut world = World::new();
    world.restart(Duration::from_secs(20));
    let one = world.joined("one", 1);
    world.restart(TTL);
    world.ask(heartbeat(&one)).unwrap();
    world.pass(Duration::from_millis(25_900));
    assert!(world.gone.is_empty());
    world.pass(STEP);
    assert_eq!(world.gone, [GoneProcess { log: one, reason: GoneReason::LeaseExpired }]);
}

/// A coordinator without stored state refuses claims on unknown owners for 30 seconds; restarts do not shorten this
/// time.
#[test]
fn startup_grace_is_30_seconds_without_stored_state() {
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

/// A coordinator that lost its state learns the owners again from the claims of the servers.
#[test]
fn coordinator_without_state_relearns_owners_from_claims() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let two = world.joined("two", 2);
    world.claim("of-one", &one, None).unwrap();
    world.claim("of-two", &two, None).unwrap();
    world.disk.wipe();
    world.restart(TTL);
    assert_eq!(world.ask(heartbeat(&one)).unwrap_err().code, ErrorCode::UnknownServer);
    world.ask(join(&one)).unwrap();
    // Only `one` has joined again, so all subjects are assigned to it; the manifests name the real owners.
    assert_eq!(world.locate("of-two"), Ok("one".into()));
    assert_eq!(world.claim("of-two", &one, Some(&two)), Err((ErrorCode::NotOwner, Some("two".into()))));
    assert_eq!(world.locate("of-two"), Ok("two".into()));
    world.ask(join(&two)).unwrap();
    assert_eq!(world.locate("of-two"), Ok("two".into()));
    assert_eq!(world.claim("of-one", &two, Some(&one)), Err((ErrorCode::NotOwner, Some("one".into()))));
    assert_eq!(world.claim("of-one", &one, Some(&one)), Ok(()));
}

/// If the owner is an unknown process with the claimant's server name, the claim is refused for 30 seconds.
#[test]
fn claim_on_unknown_process_of_same_name_waits_for_grace() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.claim("a", &one, None).unwrap();
    world.disk.wipe();
    world.restart(TTL);
    // Another process joins under the name first. It must not get subjects that the first process may still serve.
    let second = world.joined("one", 2);
    assert_eq!(world.claim("a", &second, Some(&one)), Err((ErrorCode::Unavailable, None)));
    world.pass_with(Duration::from_secs(30), &[&second]);
    assert_eq!(world.claim("a", &second, Some(&one)), Ok(()));
}

/// If a coordinator with known members restarts, a silent member is declared dead when its lease time ends.
#[test]
fn startup_grace_of_known_members_is_their_lease_time() {
    let mut world = World::just_started();
    let one = world.joined("one", 1);
    let two = world.joined("two", 2);
    world.claim("a", &one, None).unwrap();
    world.pass_with(TTL, &[&one, &two]);
    world.restart(TTL);
    world.ask(heartbeat(&one)).unwrap();
    world.pass_with(DEAD_AFTER, &[&two]);
    assert_eq!(world.gone, [GoneProcess { log: one.clone(), reason: GoneReason::LeaseExpired }]);
    assert_eq!(world.claim("a", &two, Some(&one)), Ok(()));
}

/// After another coordinator ran, claims on servers recorded as dead or unknown wait 30 seconds, even across a restart.
#[test]
fn startup_grace_after_other_coordinator_covers_dead_servers() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.claim("a", &one, None).unwrap();
    let two = world.joined("two", 2);
    world.pass_with(DEAD_AFTER, &[&two]);
    assert_eq!(world.server("one").unwrap().state, ServerState::Dead);
    // The other coordinator let `one` join again, and also a process that is unknown here.
    let unknown = log("three", 3);
    world.start_after_other_coordinator();
    world.ask(heartbeat(&two)).unwrap();
    let refused = |name: &str| Err((ErrorCode::NotOwner, Some(name.to_owned())));
    assert_eq!(world.claim("a", &two, Some(&one)), refused("one"));
    assert_eq!(world.claim("b", &two, Some(&unknown)), refused("three"));
    // A restart during the grace does not shorten it.
    world.pass_with(Duration::from_secs(10), &[&two]);
    world.restart(TTL);
    world.ask(heartbeat(&two)).unwrap();
    assert_eq!(world.claim("a", &two, Some(&one)), refused("one"));
    world.pass_with(Duration::from_millis(29_900), &[&two]);
    assert_eq!(world.claim("a", &two, Some(&one)), refused("one"));
    world.pass_with(STEP, &[&two]);
    assert_eq!(world.claim("a", &two, Some(&one)), Ok(()));
    assert_eq!(world.claim("b", &two, Some(&unknown)), Ok(()));
}

/// A claim on a process that was replaced in this run is granted; a claim on an unknown process waits.
#[test]
fn claim_on_process_replaced_in_this_run_is_granted() {
    let mut world = World::just_started();
    let first = world.joined("one", 1);
    for number in [2, 3] {
        world.pass_with(DEAD_AFTER, &[]);
        // With a new data directory, which names no predecessor.
        world.joined("one", number);
    }
    assert!(world.machine.is_in_startup_grace());
    let third = log("one", 3);
    assert_eq!(world.claim("a", &third, Some(&first)), Ok(()));
    let refused = Err((ErrorCode::Unavailable, None));
    assert_eq!(world.claim("b", &third, Some(&log("one", 9))), refused, "an unknown process");
}
