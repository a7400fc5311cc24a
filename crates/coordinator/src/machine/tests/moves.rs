use dormouse_protocol::admin::{HandOverOrder, MoveReply, MovesReply};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

impl World {
    fn move_subject(&mut self, name: &str, to: &str) -> Result<MoveReply, ErrorCode> {
        match self.ask(move_to(name, to)) {
            Ok(Answer::Move(reply)) => Ok(reply),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.code),
        }
    }

    pub(super) fn moves(&mut self) -> MovesReply {
        match self.ask(Input::Moves) {
            Ok(Answer::Moves(reply)) => reply,
            other => panic!("{other:?}"),
        }
    }

    /// Lets time pass and gives back what was ordered.
    pub(super) fn orders_within(&mut self, time: Duration, alive: &[&LogId]) -> Vec<HandOverOrder> {
        let end = self.now + time;
        let mut orders = Vec::new();
        while self.now < end {
            self.now += STEP;
            for log in alive {
                self.ask(heartbeat(log)).unwrap();
            }
            orders.extend(self.apply(Input::Tick).orders);
        }
        orders
    }
}

fn reply(from: &str, to: &str, done: bool) -> Result<MoveReply, ErrorCode> {
    let name = |name| ServerName::new(name).unwrap();
    Ok(MoveReply { from: Some(name(from)), to: name(to), done })
}

/// Two servers; one has `a`.
fn fleet() -> (World, LogId, LogId) {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.claim("a", &one, None).unwrap();
    let two = world.joined("two", 2);
    (world, one, two)
}

#[test]
fn a_subject_is_ordered_handed_over_and_then_the_targets() {
    let (mut world, one, two) = fleet();
    let effects = world.apply(move_to("a", "two"));
    let order = HandOverOrder { v: ProtocolVersion::CURRENT, log: one.clone(), subject: subject("a") };
    assert_eq!(effects.orders, std::slice::from_ref(&order), "at once");
    assert_eq!(
        effects.answer,
        Some(reply("one", "two", false).map(Answer::Move).map_err(|_| unreachable!()))
    );
    assert_eq!(world.orders_within(SECOND * 3, &[&one, &two]), [(); 3].map(|()| order.clone()));
    assert_eq!(
        world.move_subject("a", "two"),
        reply("one", "two", false),
        "asked again it tells how it stands"
    );
    assert_eq!(world.locate("a"), Ok("one".into()), "it still serves it");
    assert_eq!(world.claim("a", &two, Some(&one)), Err((ErrorCode::NotOwner, Some("one".into()))));
    assert_eq!(world.moves(), MovesReply { pending: 1, done: 0, given_up: 0 });
    world.ask(release("a", &one)).unwrap();
    assert_eq!(world.recorded("a"), Some("two".into()));
    assert_eq!(world.claim("a", &one, None), Err((ErrorCode::NotOwner, Some("two".into()))));
    assert_eq!(world.claim("a", &two, None), Ok(()));
    assert_eq!(world.move_subject("a", "two"), reply("two", "two", true));
    assert_eq!(world.moves(), MovesReply { pending: 0, done: 1, given_up: 0 });
    assert_eq!(world.orders_within(SECOND * 3, &[&one, &two]), []);
}

#[test]
fn a_move_that_is_not_carried_out_is_given_up_after_half_a_minute() {
    let (mut world, one, two) = fleet();
    world.move_subject("a", "two").unwrap();
    world.orders_within(SECOND * 29, &[&one, &two]);
    assert_eq!(world.moves().pending, 1);
    let orders = world.orders_within(SECOND * 10, &[&one, &two]);
    assert!(orders.len() <= 1, "{orders:?}");
    assert_eq!(world.moves(), MovesReply { pending: 0, done: 0, given_up: 1 });
    assert_eq!(world.locate("a"), Ok("one".into()));
    world.ask(release("a", &one)).unwrap();
    assert_eq!(world.recorded("a"), None, "a release after that is like any other");
}

#[test]
fn what_nobody_has_is_the_targets_at_once() {
    let (mut world, one, two) = fleet();
    let unassigned = MoveReply { from: None, to: ServerName::new("two").unwrap(), done: true };
    assert_eq!(world.move_subject("b", "two"), Ok(unassigned));
    assert_eq!(world.locate("b"), Ok("two".into()));
    // So is what a dead server had, and what it had when it dies during the move.
    assert_eq!(world.locate("c").map(drop), Ok(()));
    world.move_subject("a", "two").unwrap();
    world.pass_with(DEAD_AFTER, &[&two]);
    assert_eq!(world.recorded("a"), Some("two".into()));
    assert_eq!(world.moves(), MovesReply { pending: 0, done: 1, given_up: 0 });
    assert_eq!(world.claim("a", &two, Some(&one)), Ok(()));
    assert_eq!(
        world.server("one").unwrap().assigned_subjects + world.server("two").unwrap().assigned_subjects,
        3
    );
}

#[test]
fn a_target_must_be_there_and_willing() {
    let (mut world, _, two) = fleet();
    let three = world.joined("three", 3);
    assert_eq!(world.move_subject("a", "nobody"), Err(ErrorCode::BadRequest));
    world.ask(leave(&three)).unwrap();
    assert_eq!(world.move_subject("a", "three"), Err(ErrorCode::Unavailable));
    world.ask(draining(&two)).unwrap();
    assert_eq!(world.move_subject("a", "two"), Err(ErrorCode::Unavailable));
    world.ask(heartbeat(&two)).unwrap();
    world.move_subject("a", "two").unwrap();
    // It drains before the subject is released.
    world.ask(Input::Drain(two.server().clone())).unwrap();
    world.apply(Input::Tick);
    assert_eq!(world.moves(), MovesReply { pending: 0, done: 0, given_up: 1 });
}

#[test]
fn a_subject_whose_release_was_not_heard_of_goes_to_the_target_all_the_same() {
    let (mut world, one, two) = fleet();
    world.move_subject("a", "two").unwrap();
    // Nobody owns it by the bucket: the word of the release was lost, and a client came to the old owner.
    assert_eq!(world.claim("a", &one, None), Err((ErrorCode::NotOwner, Some("two".into()))));
    assert_eq!(world.locate("a"), Ok("two".into()));
    assert_eq!(world.claim("a", &two, None), Ok(()));
    world.apply(Input::Tick);
    assert_eq!(world.moves().pending, 0);
}

#[test]
fn the_newest_wish_counts() {
    let (mut world, one, _) = fleet();
    world.joined("three", 3);
    world.move_subject("a", "two").unwrap();
    assert_eq!(world.move_subject("a", "three"), reply("one", "three", false));
    world.ask(release("a", &one)).unwrap();
    assert_eq!(world.recorded("a"), Some("three".into()));
    world.move_subject("a", "two").unwrap();
    assert_eq!(world.move_subject("a", "three"), reply("three", "three", true));
    assert_eq!(world.moves().pending, 0);
}

#[test]
fn only_so_many_subjects_are_moved_at_once() {
    let (mut world, one, _) = fleet();
    for n in 0..300 {
        world.claim(&format!("s.{n}"), &one, None).unwrap();
    }
    let answers: Vec<_> = (0..300).map(|n| world.move_subject(&format!("s.{n}"), "two").is_ok()).collect();
    assert_eq!(answers.iter().filter(|ok| **ok).count(), 256);
    assert_eq!(world.move_subject("s.299", "two"), Err(ErrorCode::Overloaded));
    world.ask(release("s.0", &one)).unwrap();
    assert_eq!(world.move_subject("s.299", "two"), reply("one", "two", false));
}
