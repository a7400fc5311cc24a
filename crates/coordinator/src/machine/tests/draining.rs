use dormouse_protocol::fleet::ServerState;

use super::*;

fn drain(server: &str) -> CoordinatorInput {
    CoordinatorInput::Drain(ServerName::new(server).unwrap())
}

fn undrain(server: &str) -> CoordinatorInput {
    CoordinatorInput::Undrain(ServerName::new(server).unwrap())
}

impl World {
    fn ordered(&mut self, input: CoordinatorInput) -> ServerState {
        match self.ask(input) {
            Ok(CoordinatorReply::Drain(reply)) => reply.server.state,
            other => panic!("{other:?}"),
        }
    }

    /// Whether the lease carries the drain order.
    fn lease_orders_drain(&mut self, log: &LogId) -> bool {
        match self.ask(heartbeat(log)) {
            Ok(CoordinatorReply::Lease(lease)) => lease.draining,
            other => panic!("{other:?}"),
        }
    }

    fn state(&mut self, name: &str) -> ServerState {
        self.server(name).unwrap().state
    }
}

/// Each lease reply carries the drain order until an undrain; a drain of an unknown server gets `bad_request`.
#[test]
fn drain_order_repeats_in_each_lease_until_undrain() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.joined("two", 2);
    assert!(!world.lease_orders_drain(&one));
    assert_eq!(world.ordered(drain("one")), ServerState::Draining);
    assert_eq!(world.ordered(drain("one")), ServerState::Draining, "a repeated order returns the state");
    assert!(world.lease_orders_drain(&one));
    let Ok(CoordinatorReply::Lease(lease)) = world.ask(join(&one)) else { panic!("a lease") };
    assert!(lease.draining);
    assert!((0..50).all(|n| world.locate(&format!("s.{n}")) == Ok("two".into())));
    assert_eq!(world.ordered(undrain("one")), ServerState::Alive);
    assert!(!world.lease_orders_drain(&one));
    assert!((50..100).any(|n| world.locate(&format!("s.{n}")) == Ok("one".into())));
    assert_eq!(world.ask(drain("three")).unwrap_err().code, ErrorCode::BadRequest);
}

/// A drain order survives a restart of the coordinator and of the server process.
#[test]
fn drain_order_survives_coordinator_and_server_restart() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let two = world.joined("two", 2);
    world.ordered(drain("one"));
    world.restart(TTL);
    world.ask(heartbeat(&two)).unwrap();
    assert!(world.lease_orders_drain(&one));
    world.pass_with(DEAD_AFTER, &[&two]);
    assert_eq!(world.state("one"), ServerState::Dead);
    let next = log("one", 3);
    world.ask(join_after(&next, &one)).unwrap();
    assert_eq!(world.state("one"), ServerState::Drained);
    assert!(world.lease_orders_drain(&next));
    assert!((0..50).all(|n| world.locate(&format!("s.{n}")) == Ok("two".into())));
}

/// When a draining server joins with a new log it is drained, and other servers can claim its remaining subjects.
#[test]
fn drain_is_complete_when_server_joins_with_new_log() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.claim("a", &one, None).unwrap();
    world.claim("b", &one, None).unwrap();
    let two = world.joined("two", 2);
    world.ordered(drain("one"));
    world.ask(release("a", &one)).unwrap();
    assert_eq!(world.server("one").unwrap().assigned_subjects, 1);
    // The server joins with a new log without having released b.
    let fresh = log("one", 3);
    world.ask(join_after(&fresh, &one)).unwrap();
    let entry = world.server("one").unwrap();
    assert_eq!((entry.state, entry.assigned_subjects), (ServerState::Drained, 0));
    assert_eq!(world.claim("b", &fresh, Some(&one)), Err((ErrorCode::NotOwner, Some("two".into()))));
    assert_eq!(world.locate("b"), Ok("two".into()));
    assert_eq!(world.claim("b", &two, Some(&one)), Ok(()));
    assert_eq!(world.ordered(undrain("one")), ServerState::Alive);
    assert!((0..50).any(|n| world.locate(&format!("s.{n}")) == Ok("one".into())));
}

/// If no other server can take its subjects, a draining server keeps serving and gets the drain order later.
#[test]
fn drain_order_waits_until_another_server_can_take_subjects() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.claim("a", &one, None).unwrap();
    world.ordered(drain("one"));
    assert!(!world.lease_orders_drain(&one));
    assert_eq!(world.locate("a"), Ok("one".into()));
    // Without another server it gets new subjects, also if it is drained; then it is draining again.
    assert_eq!(world.open("new"), Ok("one".into()));
    let fresh = log("one", 2);
    world.ask(join_after(&fresh, &one)).unwrap();
    assert_eq!(world.state("one"), ServerState::Drained);
    assert_eq!(world.locate("a"), Ok("one".into()));
    assert_eq!(world.state("one"), ServerState::Drained, "a locate changes nothing");
    assert_eq!(world.claim("a", &fresh, Some(&one)), Ok(()));
    assert_eq!(world.state("one"), ServerState::Draining);
    // When another server joins, the drain continues.
    world.joined("two", 3);
    assert!(world.lease_orders_drain(&fresh));
    assert_eq!(world.locate("a"), Ok("one".into()));
    assert_eq!(world.locate("newer"), Ok("two".into()));
}

/// Right after a coordinator restart, a draining server gets no new subject; another server may still send a heartbeat.
#[test]
fn drain_blocks_new_subjects_right_after_restart() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.joined("two", 2);
    world.ordered(drain("one"));
    world.restart(TTL);
    world.ask(heartbeat(&one)).unwrap();
    assert_eq!(world.locate("new"), Err(ErrorCode::Unavailable), "two may still send a heartbeat");
}

/// If the manifest shows that a drained server owns a subject, the server returns to draining.
#[test]
fn server_drained_but_owning_a_subject_drains_again() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let two = world.joined("two", 2);
    world.ordered(drain("one"));
    let fresh = log("one", 3);
    world.ask(join_after(&fresh, &one)).unwrap();
    // The manifest names it as owner: the coordinator granted its claim and then lost its state.
    assert_eq!(
        world.claim("a", &two, Some(&fresh)),
        Err((ErrorCode::NotOwner, Some("one".into()))),
        "the owner is alive"
    );
    assert_eq!(world.state("one"), ServerState::Draining);
    assert_eq!(world.locate("a"), Ok("one".into()));
    world.ask(release("a", &fresh)).unwrap();
    assert_eq!(world.locate("a"), Ok("two".into()));
}

/// If the coordinator loses its stored state, it forgets its drain orders.
#[test]
fn drain_orders_are_lost_with_coordinator_state() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.joined("two", 2);
    world.ordered(drain("one"));
    world.disk.wipe();
    world.restart(TTL);
    world.ask(join(&one)).unwrap();
    assert_eq!(world.state("one"), ServerState::Alive);
}
