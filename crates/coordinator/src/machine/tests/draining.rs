use dormouse_protocol::fleet::ServerState;

use super::*;

fn drain(server: &str) -> Input {
    Input::Drain(ServerName::new(server).unwrap())
}

fn undrain(server: &str) -> Input {
    Input::Undrain(ServerName::new(server).unwrap())
}

impl World {
    fn ordered(&mut self, input: Input) -> ServerState {
        match self.ask(input) {
            Ok(Answer::Drain(reply)) => reply.server.state,
            other => panic!("{other:?}"),
        }
    }

    /// Whether the lease tells the process to hand its subjects over.
    fn told_to_drain(&mut self, log: &LogId) -> bool {
        match self.ask(heartbeat(log)) {
            Ok(Answer::Lease(lease)) => lease.draining,
            other => panic!("{other:?}"),
        }
    }

    fn state(&mut self, name: &str) -> ServerState {
        self.server(name).unwrap().state
    }
}

#[test]
fn an_order_to_drain_is_told_in_every_lease_until_it_is_taken_back() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.joined("two", 2);
    assert!(!world.told_to_drain(&one));
    assert_eq!(world.ordered(drain("one")), ServerState::Draining);
    assert_eq!(world.ordered(drain("one")), ServerState::Draining, "to say it again is to ask");
    assert!(world.told_to_drain(&one));
    let Ok(Answer::Lease(lease)) = world.ask(join(&one)) else { panic!("a lease") };
    assert!(lease.draining);
    assert!((0..50).all(|n| world.locate(&format!("s.{n}")) == Ok("two".into())));
    assert_eq!(world.ordered(undrain("one")), ServerState::Alive);
    assert!(!world.told_to_drain(&one));
    assert!((50..100).any(|n| world.locate(&format!("s.{n}")) == Ok("one".into())));
    assert_eq!(world.ask(drain("three")).unwrap_err().code, ErrorCode::BadRequest);
}

#[test]
fn an_order_to_drain_outlives_the_coordinator_and_the_process() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let two = world.joined("two", 2);
    world.ordered(drain("one"));
    world.restart(TTL);
    world.ask(heartbeat(&two)).unwrap();
    assert!(world.told_to_drain(&one));
    world.pass_with(DEAD_AFTER, &[&two]);
    assert_eq!(world.state("one"), ServerState::Dead);
    let next = log("one", 3);
    world.ask(join_after(&next, &one)).unwrap();
    assert_eq!(world.state("one"), ServerState::Drained);
    assert!(world.told_to_drain(&next));
    assert!((0..50).all(|n| world.locate(&format!("s.{n}")) == Ok("two".into())));
}

#[test]
fn a_server_with_a_fresh_log_is_drained_and_what_was_its_own_is_anybodys() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.claim("a", &one, None).unwrap();
    world.claim("b", &one, None).unwrap();
    let two = world.joined("two", 2);
    world.ordered(drain("one"));
    world.ask(release("a", &one)).unwrap();
    assert_eq!(world.server("one").unwrap().assigned_subjects, 1);
    // It went on with a fresh log without having handed over b.
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

#[test]
fn while_nobody_else_could_take_its_subjects_a_server_is_not_told_to_hand_them_over() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.claim("a", &one, None).unwrap();
    world.ordered(drain("one"));
    assert!(!world.told_to_drain(&one));
    assert_eq!(world.locate("a"), Ok("one".into()));
    // Better it than nobody; also when it was empty already, which it is not any more then.
    assert_eq!(world.locate("new"), Ok("one".into()));
    let fresh = log("one", 2);
    world.ask(join_after(&fresh, &one)).unwrap();
    assert_eq!(world.state("one"), ServerState::Drained);
    assert_eq!(world.locate("a"), Ok("one".into()));
    assert_eq!(world.state("one"), ServerState::Draining);
    assert_eq!(world.claim("a", &fresh, Some(&one)), Ok(()));
    // As soon as somebody else is there, it goes on.
    world.joined("two", 3);
    assert!(world.told_to_drain(&fresh));
    assert_eq!(world.locate("a"), Ok("one".into()));
    assert_eq!(world.locate("newer"), Ok("two".into()));
}

#[test]
fn right_after_a_restart_nothing_new_goes_to_who_is_ordered_to_drain() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.joined("two", 2);
    world.ordered(drain("one"));
    world.restart(TTL);
    world.ask(heartbeat(&one)).unwrap();
    assert_eq!(world.locate("new"), Err(ErrorCode::Unavailable), "two may be about to be heard of");
}

#[test]
fn an_emptied_server_that_owns_something_after_all_is_to_be_emptied_anew() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    let two = world.joined("two", 2);
    world.ordered(drain("one"));
    let fresh = log("one", 3);
    world.ask(join_after(&fresh, &one)).unwrap();
    // The bucket says so: its claim was allowed by a coordinator that has forgotten it.
    assert_eq!(
        world.claim("a", &two, Some(&fresh)),
        Err((ErrorCode::NotOwner, Some("one".into()))),
        "it is alive and owns it"
    );
    assert_eq!(world.state("one"), ServerState::Draining);
    assert_eq!(world.locate("a"), Ok("one".into()));
    world.ask(release("a", &fresh)).unwrap();
    assert_eq!(world.locate("a"), Ok("two".into()));
}

#[test]
fn orders_that_were_lost_with_the_disk_are_gone() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.joined("two", 2);
    world.ordered(drain("one"));
    world.disk.wipe();
    world.restart(TTL);
    world.ask(join(&one)).unwrap();
    assert_eq!(world.state("one"), ServerState::Alive);
}
