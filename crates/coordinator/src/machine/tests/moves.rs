use dormouse_protocol::admin::{HandOverOrder, MoveReply, MovesReply};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

impl World {
    fn move_subject(&mut self, name: &str, to: &str) -> Result<MoveReply, ErrorCode> {
        match self.ask(move_to(name, to)) {
            Ok(CoordinatorReply::Move(reply)) => Ok(reply),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.code),
        }
    }

    pub(super) fn moves(&mut self) -> MovesReply {
        match self.ask(CoordinatorInput::Moves) {
            Ok(CoordinatorReply::Moves(reply)) => reply,
            other => panic!("{other:?}"),
        }
    }

    /// Lets time pass and returns the handover orders.
    pub(super) fn orders_within(&mut self, time: Duration, alive: &[&LogId]) -> Vec<HandOverOrder> {
        let end = self.now + time;
        let mut orders = Vec::new();
        while self.now < end {
            self.now += STEP;
            for log in alive {
                self.ask(heartbeat(log)).unwrap();
            }
            orders.extend(self.apply(CoordinatorInput::Tick).orders);
        }
        orders
    }
}

fn reply(from: &str, to: &str, done: bool) -> Result<MoveReply, ErrorCode> {
    let name = |name| ServerName::new(name).unwrap();
    Ok(MoveReply { from: Some(name(from)), to: name(to), done })
}

/// Two servers; `one` owns `a`.
fn fleet() -> (World, LogId, LogId) {
    let mut world = World::new();
    let one = world.joined("one", 1);
    world.claim("a", &one, None).unwrap();
    let two = world.joined("two", 2);
    (world, one, two)
}

/// A move repeats its handover order until the owner releases the subject, then assigns the subject to the target.
#[test]
fn move_orders_handover_until_release_then_assigns_target() {
    let (mut world, one, two) = fleet();
    let effects = world.apply(move_to("a", "two"));
    let order = HandOverOrder { v: ProtocolVersion::CURRENT, log: one.clone(), subject: subject("a") };
    assert_eq!(effects.orders, std::slice::from_ref(&order), "at once");
    assert_eq!(
        effects.answer,
        Some(reply("one", "two", false).map(CoordinatorReply::Move).map_err(|_| unreachable!()))
    );
    assert_eq!(world.orders_within(SECOND * 3, &[&one, &two]), [(); 3].map(|()| order.clone()));
    assert_eq!(
        world.move_subject("a", "two"),
        reply("one", "two", false),
        "the repeated request returns the progress"
    );
    assert_eq!(world.locate("a"), Ok("one".into()), "the owner still serves the subject");
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

/// If the owner does not release the subject within 30 seconds, the move fails and the assignment stays.
#[test]
fn move_without_release_fails_after_30_seconds() {
    let (mut world, one, two) = fleet();
    world.move_subject("a", "two").unwrap();
    world.orders_within(SECOND * 29, &[&one, &two]);
    assert_eq!(world.moves().pending, 1);
    let orders = world.orders_within(SECOND * 10, &[&one, &two]);
    assert!(orders.len() <= 1, "{orders:?}");
    assert_eq!(world.moves(), MovesReply { pending: 0, done: 0, given_up: 1 });
    assert_eq!(world.locate("a"), Ok("one".into()));
    world.ask(release("a", &one)).unwrap();
    assert_eq!(world.recorded("a"), None, "a later release removes the assignment");
}

/// A move of an unassigned subject completes at once, and a pending move completes when its owner is declared dead.
#[test]
fn move_of_unassigned_subject_completes_at_once() {
    let (mut world, one, two) = fleet();
    let unassigned = MoveReply { from: None, to: ServerName::new("two").unwrap(), done: true };
    assert_eq!(world.move_subject("b", "two"), Ok(unassigned));
    assert_eq!(world.locate("b"), Ok("two".into()));
    // A move also completes if the owner is dead, or is declared dead during the move.
    assert_eq!(world.open("c").map(drop), Ok(()));
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

/// The coordinator refuses a move to an unknown, dead or draining target, and fails a move whose target starts
/// draining.
#[test]
fn move_target_must_be_live_and_not_draining() {
    let (mut world, _, two) = fleet();
    let three = world.joined("three", 3);
    assert_eq!(world.move_subject("a", "unknown"), Err(ErrorCode::BadRequest));
    world.ask(leave(&three)).unwrap();
    assert_eq!(world.move_subject("a", "three"), Err(ErrorCode::Unavailable));
    world.ask(draining(&two)).unwrap();
    assert_eq!(world.move_subject("a", "two"), Err(ErrorCode::Unavailable));
    world.ask(heartbeat(&two)).unwrap();
    world.move_subject("a", "two").unwrap();
    // The target drains before the subject is released.
    world.ask(CoordinatorInput::Drain(two.server().clone())).unwrap();
    world.apply(CoordinatorInput::Tick);
    assert_eq!(world.moves(), MovesReply { pending: 0, done: 0, given_up: 1 });
}

/// If the release message is lost, the next claim redirects to the target and the move completes.
#[test]
fn move_completes_when_release_message_is_lost() {
    let (mut world, one, two) = fleet();
    world.move_subject("a", "two").unwrap();
    // By the manifest the subject has no owner: the release message was lost, and a client reached the old owner.
    assert_eq!(world.claim("a", &one, None), Err((ErrorCode::NotOwner, Some("two".into()))));
    assert_eq!(world.locate("a"), Ok("two".into()));
    assert_eq!(world.claim("a", &two, None), Ok(()));
    world.apply(CoordinatorInput::Tick);
    assert_eq!(world.moves().pending, 0);
}

/// A later move of the same subject replaces the target of the earlier move.
#[test]
fn move_with_new_target_replaces_earlier_move() {
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

/// At most 256 moves run at once; the next one gets `overloaded`.
#[test]
fn move_limit_rejects_excess_with_overloaded() {
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
