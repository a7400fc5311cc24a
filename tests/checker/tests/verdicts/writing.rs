//! Writes: each executes once, by one owner, and only if it was requested.

use dormouse_checker::{Burst, CallOutcome, Op, OpResult, Property, ServerFaultKind};
use dormouse_protocol::data::{ConfigureReply, ConfigureRequest, Expect, SetItem, SetOutcome, SetRequest};
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{ErrorCode, ErrorReply, Level, Position, Seq};

use crate::story::{Story, at, id, item, message, request, set_answer, set_of, written};

/// Two changes at one position are a violation.
#[test]
fn position_holds_one_change() {
    let mut story = Story::new();
    story.set("", "a", 1, at(1, 1)).set("", "b", 2, at(1, 2));
    story.is_clean();
    story.set("", "c", 2, at(1, 2));
    story.breaks(Property::OneOwner, 2);
}

/// Two events of one term that name different term bases are a violation.
#[test]
fn term_has_one_owner_and_one_base() {
    let mut story = Story::new();
    story.set("", "a", 1, at(1, 1)).beacon(at(2, 1), 1).beacon(at(2, 1), 1);
    story.is_clean();
    story.beacon(at(2, 1), 0);
    story.breaks(Property::OneOwner, 2);
}

/// An automatic seq that is assigned twice or skips a number is a violation.
#[test]
fn seq_is_assigned_once_without_gaps() {
    let mut story = Story::new();
    story.set("", "a", 1, at(1, 1)).set("", "b", 2, at(1, 2));
    story.is_clean();
    story.set("", "c", 2, at(1, 3));
    story.breaks(Property::OneName, 2);

    let mut story = Story::new();
    story.set("", "a", 1, at(1, 1)).set("", "b", 3, at(1, 2));
    story.breaks(Property::OneName, 1);
}

/// A set that names a seq writes exactly that seq, and the next automatic seq follows it.
#[test]
fn seq_requested_by_a_set_is_the_seq_written() {
    let given = |seq: u64, value: &str| SetItem { seq: Some(Seq::new(seq)), ..item("", value) };
    let mut story = Story::new();
    story.set("", "a", 1, at(1, 1));
    story.call(Op::Set(set_of(vec![given(1, "b")])), set_answer(vec![written(1, at(1, 2))]));
    story.call(Op::Set(set_of(vec![given(7, "c")])), set_answer(vec![written(7, at(1, 3))]));
    story.set("", "d", 8, at(1, 4));
    story.is_clean();
    story.call(Op::Set(set_of(vec![given(20, "e")])), set_answer(vec![written(9, at(1, 5))]));
    story.breaks(Property::ReadsTheState, 1);
}

/// A request repeated with its id gets the first result; a second result is a violation.
#[test]
fn request_repeated_with_one_id_executes_once() {
    let mut story = Story::new();
    story.set_as(1, "a", 1, at(1, 1)).set_as(1, "a", 1, at(1, 1)).set_as(2, "b", 2, at(1, 2));
    story.is_clean();
    story.set_as(1, "a", 3, at(1, 3));
    story.breaks(Property::OnceAtMost, 2);
}

/// A repeated destroy, or a repeat of a request from before it, must not execute again.
#[test]
fn destroy_executes_once_and_keeps_request_dedup() {
    let begin = || {
        let mut story = Story::new();
        story.term(1, 0, "persist-1").term(2, 2, "persist-1");
        story.set_as(1, "a", 1, at(1, 1)).destroy_as(2, at(1, 2)).set_as(3, "b", 2, at(2, 3));
        story.destroy_as(2, at(1, 2));
        story.is_clean();
        story
    };
    begin().destroy_as(2, at(2, 4)).breaks(Property::OnceAtMost, 2);
    begin().set_as(1, "a", 3, at(2, 4)).breaks(Property::OnceAtMost, 2);
}

/// A request whose write a takeover lost may execute once more, and only once.
#[test]
fn request_lost_in_a_takeover_may_execute_again() {
    let mut story = Story::of_level(Level::Memory);
    story.term(1, 0, "persist-1").term(2, 0, "persist-2");
    story.fault("persist-1", ServerFaultKind::Killed, 1, 3);
    story.set_as(1, "a", 1, at(1, 1)).set_as(1, "a", 1, at(2, 1));
    story.is_clean();
    story.set_as(1, "a", 2, at(2, 2));
    story.breaks(Property::OnceAtMost, 2);
}

/// An indeterminate write executes once or never.
#[test]
fn indeterminate_write_executes_at_most_once() {
    let mut story = Story::new();
    story.lost_set("", "a").lost_set("", "b").set("", "c", 2, at(1, 2));
    story.get_all(vec![message("", "a", 1, at(1, 1)), message("", "c", 2, at(1, 2))], at(1, 2));
    story.is_clean();
    let twice =
        vec![message("", "a", 1, at(1, 1)), message("", "c", 2, at(1, 2)), message("", "a", 3, at(1, 3))];
    story.get_all(twice, at(1, 3));
    story.breaks(Property::OnceAtMost, 3);
}

/// An indeterminate delete may remove a message; once a read shows the removal, the message must not come back.
#[test]
fn indeterminate_delete_may_remove_a_message() {
    let mut story = Story::new();
    story.set("k", "a", 1, at(1, 1)).lost_delete("k").set("", "b", 2, at(1, 3));
    story.get("k", vec![], at(1, 3));
    story.is_clean();
    // After the removal, the message must stay removed.
    story.get("k", vec![message("k", "a", 1, at(1, 1))], at(1, 3));
    story.breaks(Property::ReadsTheState, 3);
}

/// Each rev between two acks needs a call that can have made it.
#[test]
fn rev_without_a_causing_call_is_violation() {
    let mut story = Story::new();
    story.set("", "a", 1, at(1, 1)).lost_set("", "x").set("", "b", 3, at(1, 3));
    story.is_clean();
    story.set("", "c", 4, at(1, 5));
    story.breaks(Property::NothingFromNothing, 2);
}

/// A read that shows a message before any call writes it is a violation.
#[test]
fn message_without_an_earlier_call_is_violation() {
    let mut story = Story::new();
    story.get("k", vec![message("k", "a", 1, at(1, 1))], at(1, 1));
    story.breaks(Property::NothingFromNothing, 1);

    story.set("k", "a", 1, at(1, 1));
    story.breaks(Property::RealTime, 2);
    let mut story = Story::new();
    story.get("k", vec![message("k", "a", 1, at(1, 1))], at(1, 1)).lost_set("k", "a");
    story.breaks(Property::NothingFromNothing, 2);
}

/// A rejected write must stay invisible, while a write with error `indeterminate` may become visible.
#[test]
fn rejected_write_is_never_visible() {
    let mut story = Story::new();
    let refused = ErrorReply::new(ErrorCode::Overloaded, "later");
    story.call(Op::Set(set_of(vec![item("k", "a")])), CallOutcome::Refused(refused));
    story.get("k", vec![], at(1, 0));
    story.is_clean();
    story.get("k", vec![message("k", "a", 1, at(1, 1))], at(1, 1));
    story.breaks(Property::RefusedIsNotDone, 2);

    let mut story = Story::new();
    let indeterminate = ErrorReply::new(ErrorCode::Indeterminate, "unknown");
    story.call(Op::Set(set_of(vec![item("k", "a")])), CallOutcome::Refused(indeterminate));
    story.get("k", vec![message("k", "a", 1, at(1, 1))], at(1, 1));
    story.is_clean();
}

/// An acknowledged set with an expectation is a violation if the expectation is false at its position.
#[test]
fn expectation_must_hold_when_the_set_executes() {
    let expecting = |expect| {
        let op = |value| Op::Set(set_of(vec![SetItem { expect: Some(expect), ..item("k", value) }]));
        let mut story = Story::new();
        story.set("k", "a", 1, at(1, 1));
        story.call(op("b"), set_answer(vec![written(2, at(1, 2))]));
        story
    };
    expecting(Expect::Key(Some(id(1, 1)))).is_clean();
    expecting(Expect::Last(Some(id(1, 1)))).is_clean();
    expecting(Expect::Key(None)).breaks(Property::ReadsTheState, 2);
    expecting(Expect::Last(Some(id(1, 7)))).breaks(Property::ReadsTheState, 2);
}

/// A read that shows a part of a batch is a violation.
#[test]
fn batch_must_be_visible_whole_or_not_at_all() {
    let batch =
        || SetRequest { request: request(9), atomic: true, ..set_of(vec![item("k", "a"), item("l", "b")]) };
    let (a, b) = (|| message("k", "a", 1, at(1, 1)), || message("l", "b", 2, at(1, 1)));
    let mut story = Story::new();
    story.call(Op::Set(batch()), CallOutcome::Unknown);
    story.get("k", vec![a()], at(1, 1)).get_all(vec![a(), b()], at(1, 1));
    story.is_clean();
    story.get("l", vec![], at(1, 1));
    story.breaks(Property::ReadsTheState, 2);
}

/// A delete reply must name exactly the seqs that it removes.
#[test]
fn delete_reply_must_name_the_removed_seqs() {
    let mut story = Story::new();
    story.set("k", "a", 1, at(1, 1)).delete("l", &[], at(1, 1)).delete("k", &[1], at(1, 2));
    story.is_clean();
    story.delete("k", &[1], at(1, 3));
    story.breaks(Property::ReadsTheState, 2);

    let mut story = Story::new();
    story.set("k", "a", 1, at(1, 1)).delete("k", &[], at(1, 1));
    story.breaks(Property::ReadsTheState, 2);
}

/// The count of a keep-last delete may depend on an indeterminate delete, and only on one.
#[test]
fn keep_last_result_may_follow_an_indeterminate_delete() {
    let kept = |unknown: bool| {
        let mut story = Story::new();
        for number in 1..=4 {
            story.set(&format!("k{number}"), &format!("v{number}"), number, at(1, number));
        }
        let rev = if unknown {
            story.lost_delete("k3");
            6
        } else {
            5
        };
        story.keep_last(2, 1, at(1, rev));
        let rest = [2, 4].map(|n| message(&format!("k{n}"), &format!("v{n}"), n, at(1, n)));
        story.get_all(rest.to_vec(), at(1, rev));
        story
    };
    kept(true).is_clean();
    kept(false).breaks(Property::ReadsTheState, 3);
}

/// Sets that a client sends without waiting must take distinct positions in call order.
#[test]
fn burst_of_sets_keeps_the_order_of_the_calls() {
    let story = |written: [Option<Position>; 3]| {
        let mut story = Story::new();
        story.set("k", "a", 1, at(1, 1)).set("l", "b", 2, at(1, 2)).set("k", "c", 3, at(1, 3));
        let now = story.tick();
        story.subject.bursts.push(Burst { client: 1, at: now, written: written.to_vec() });
        story
    };
    story([Some(at(1, 1)), Some(at(1, 2)), Some(at(1, 3))]).is_clean();
    story([Some(at(1, 1)), None, Some(at(1, 3))]).is_clean();
    story([Some(at(1, 2)), None, Some(at(1, 1))]).breaks(Property::CallersOrder, 1);
    story([Some(at(1, 1)), Some(at(1, 1)), None]).breaks(Property::CallersOrder, 1);
}

/// A repeated request gets the same rejection, unless a fault between the two attempts can lose the dedup record.
#[test]
fn rejection_repeats_unless_a_fault_intervenes() {
    let story = |fault: Option<(u64, u64)>, again: ErrorCode| {
        let mut story = Story::of_level(Level::Memory);
        story.set("k", "a", 1, at(1, 1));
        let create = SetItem { expect: Some(Expect::Key(None)), ..item("k", "b") };
        let op = Op::Set(SetRequest { request: request(7), ..set_of(vec![create]) });
        for code in [ErrorCode::KeyExists, again] {
            let error = ErrorReply { actual: Some(id(1, 1)), ..ErrorReply::new(code, "no") };
            story.call(op.clone(), set_answer(vec![SetOutcome::Error(error)]));
        }
        if let Some((since, until)) = fault {
            story.fault("one", ServerFaultKind::Killed, since, until);
        }
        story
    };
    story(None, ErrorCode::KeyExists).is_clean();
    story(None, ErrorCode::LimitExceeded).breaks(Property::OnceAtMost, 2);
    // A fault that ended before the requests, and one between them.
    story(Some((0, 1)), ErrorCode::LimitExceeded).breaks(Property::OnceAtMost, 2);
    story(Some((4, 5)), ErrorCode::LimitExceeded).is_clean();
}

/// An unanswered request may lack single sets only if a limit can reject them and the revs leave room.
#[test]
fn indeterminate_request_may_skip_sets_over_a_limit() {
    let story = |max_msg_size: Option<u64>| {
        let mut story = Story::new();
        let config = SubjectConfig { max_msg_size, ..SubjectConfig::default() };
        let op = Op::Configure(ConfigureRequest { config, ..ConfigureRequest::default() });
        let reply = ConfigureReply { position: at(1, 1), duplicate: false };
        story.call(op, CallOutcome::Answered(OpResult::Configure(reply)));
        // The second value is too large.
        let sets = vec![item("", "a"), item("", "too large"), item("k", "b"), item("k", "c")];
        story.call(Op::Set(set_of(sets)), CallOutcome::Unknown);
        let held = vec![message("", "a", 1, at(1, 2)), message("k", "c", 3, at(1, 4))];
        story.get_all(held, at(1, 4));
        story
    };
    story(Some(5)).is_clean();
    story(None).breaks(Property::ReadsTheState, 3);

    // If two sets have the distance of their request, no set between them was rejected.
    let mut between = story(Some(5));
    let sets = ["d", "e", "f"].map(|value| item("", value));
    between.call(Op::Set(set_of(sets.to_vec())), CallOutcome::Unknown);
    let with = |middle: &str| {
        let held = [("", "a", 1, 2), ("k", "c", 3, 4), ("", "d", 4, 5), ("", middle, 5, 6), ("", "f", 6, 7)];
        held.map(|(key, value, seq, rev)| message(key, value, seq, at(1, rev))).to_vec()
    };
    let without: Vec<_> = with("e").into_iter().filter(|message| message.seq != Seq::new(5)).collect();
    let mut whole = between.clone();
    whole.get_all(with("e"), at(1, 7)).is_clean();
    between.get_all(without, at(1, 7)).breaks(Property::ReadsTheState, 3);
}
