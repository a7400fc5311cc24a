//! What is carried out: once, by one owner, and only what somebody asked for.

use dormouse_checker::{Answer, Burst, HarmKind, Op, Outcome, Property};
use dormouse_protocol::data::{ConfigureReply, ConfigureRequest, Expect, SetItem, SetOutcome, SetRequest};
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{ErrorCode, ErrorReply, Level, Position, Seq};

use crate::story::{Story, at, id, item, message, request, set_answer, set_of, written};

#[test]
fn one_place_holds_one_change() {
    let mut story = Story::new();
    story.set("", "a", 1, at(1, 1)).set("", "b", 2, at(1, 2));
    story.is_clean();
    story.set("", "c", 2, at(1, 2));
    story.breaks(Property::OneOwner, 2);
}

#[test]
fn one_term_has_one_server_and_one_beginning() {
    let mut story = Story::new();
    story.set("", "a", 1, at(1, 1)).beacon(at(2, 1), 1).beacon(at(2, 1), 1);
    story.is_clean();
    story.beacon(at(2, 1), 0);
    story.breaks(Property::OneOwner, 2);
}

#[test]
fn one_seq_is_handed_out_once() {
    let mut story = Story::new();
    story.set("", "a", 1, at(1, 1)).set("", "b", 2, at(1, 2));
    story.is_clean();
    story.set("", "c", 2, at(1, 3));
    story.breaks(Property::OneName, 2);

    let mut story = Story::new();
    story.set("", "a", 1, at(1, 1)).set("", "b", 3, at(1, 2));
    story.breaks(Property::OneName, 1);
}

#[test]
fn a_seq_that_was_asked_for_is_the_one_that_is_written() {
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

#[test]
fn the_same_request_is_carried_out_once() {
    let mut story = Story::new();
    story.set_as(1, "a", 1, at(1, 1)).set_as(1, "a", 1, at(1, 1)).set_as(2, "b", 2, at(1, 2));
    story.is_clean();
    story.set_as(1, "a", 3, at(1, 3));
    story.breaks(Property::OnceAtMost, 2);
}

#[test]
fn a_destroy_is_carried_out_once_and_nothing_is_again_because_of_it() {
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

#[test]
fn what_was_lost_may_be_carried_out_again() {
    let mut story = Story::of_level(Level::Memory);
    story.term(1, 0, "persist-1").term(2, 0, "persist-2");
    story.harm("persist-1", HarmKind::Killed, 1, 3);
    story.set_as(1, "a", 1, at(1, 1)).set_as(1, "a", 1, at(2, 1));
    story.is_clean();
    story.set_as(1, "a", 2, at(2, 2));
    story.breaks(Property::OnceAtMost, 2);
}

#[test]
fn what_nobody_knows_happened_once_or_never() {
    let mut story = Story::new();
    story.lost_set("", "a").lost_set("", "b").set("", "c", 2, at(1, 2));
    story.get_all(vec![message("", "a", 1, at(1, 1)), message("", "c", 2, at(1, 2))], at(1, 2));
    story.is_clean();
    let twice =
        vec![message("", "a", 1, at(1, 1)), message("", "c", 2, at(1, 2)), message("", "a", 3, at(1, 3))];
    story.get_all(twice, at(1, 3));
    story.breaks(Property::OnceAtMost, 3);
}

#[test]
fn what_nobody_knows_may_have_removed_something() {
    let mut story = Story::new();
    story.set("k", "a", 1, at(1, 1)).lost_delete("k").set("", "b", 2, at(1, 3));
    story.get("k", vec![], at(1, 3));
    story.is_clean();
    // Once it is gone it is gone.
    story.get("k", vec![message("k", "a", 1, at(1, 1))], at(1, 3));
    story.breaks(Property::ReadsTheState, 3);
}

#[test]
fn a_rev_is_made_by_somebody() {
    let mut story = Story::new();
    story.set("", "a", 1, at(1, 1)).lost_set("", "x").set("", "b", 3, at(1, 3));
    story.is_clean();
    story.set("", "c", 4, at(1, 5));
    story.breaks(Property::NothingFromNothing, 2);
}

#[test]
fn nothing_happens_before_it_is_asked_for_and_nothing_that_nobody_asked_for() {
    let mut story = Story::new();
    story.get("k", vec![message("k", "a", 1, at(1, 1))], at(1, 1));
    story.breaks(Property::NothingFromNothing, 1);

    story.set("k", "a", 1, at(1, 1));
    story.breaks(Property::RealTime, 2);
    let mut story = Story::new();
    story.get("k", vec![message("k", "a", 1, at(1, 1))], at(1, 1)).lost_set("k", "a");
    story.breaks(Property::NothingFromNothing, 2);
}

#[test]
fn what_was_refused_is_not_there() {
    let mut story = Story::new();
    let refused = ErrorReply::new(ErrorCode::Overloaded, "later");
    story.call(Op::Set(set_of(vec![item("k", "a")])), Outcome::Refused(refused));
    story.get("k", vec![], at(1, 0));
    story.is_clean();
    story.get("k", vec![message("k", "a", 1, at(1, 1))], at(1, 1));
    story.breaks(Property::RefusedIsNotDone, 2);

    let mut story = Story::new();
    let unsaid = ErrorReply::new(ErrorCode::Indeterminate, "who knows");
    story.call(Op::Set(set_of(vec![item("k", "a")])), Outcome::Refused(unsaid));
    story.get("k", vec![message("k", "a", 1, at(1, 1))], at(1, 1));
    story.is_clean();
}

#[test]
fn an_expectation_held_when_its_set_was_carried_out() {
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

#[test]
fn a_batch_is_there_as_a_whole_or_not_at_all() {
    let batch =
        || SetRequest { request: request(9), atomic: true, ..set_of(vec![item("k", "a"), item("l", "b")]) };
    let (a, b) = (|| message("k", "a", 1, at(1, 1)), || message("l", "b", 2, at(1, 1)));
    let mut story = Story::new();
    story.call(Op::Set(batch()), Outcome::Unknown);
    story.get("k", vec![a()], at(1, 1)).get_all(vec![a(), b()], at(1, 1));
    story.is_clean();
    story.get("l", vec![], at(1, 1));
    story.breaks(Property::ReadsTheState, 2);
}

#[test]
fn a_removal_tells_what_it_removed() {
    let mut story = Story::new();
    story.set("k", "a", 1, at(1, 1)).delete("l", &[], at(1, 1)).delete("k", &[1], at(1, 2));
    story.is_clean();
    story.delete("k", &[1], at(1, 3));
    story.breaks(Property::ReadsTheState, 2);

    let mut story = Story::new();
    story.set("k", "a", 1, at(1, 1)).delete("k", &[], at(1, 1));
    story.breaks(Property::ReadsTheState, 2);
}

#[test]
fn how_many_are_kept_is_not_certain_after_something_nobody_was_told_of() {
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

#[test]
fn sets_that_nobody_waited_for_between_stand_in_the_order_of_the_calls() {
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

#[test]
fn a_refusal_is_repeated_as_it_was_unless_it_may_be_lost() {
    let story = |harm: Option<(u64, u64)>, again: ErrorCode| {
        let mut story = Story::of_level(Level::Memory);
        story.set("k", "a", 1, at(1, 1));
        let create = SetItem { expect: Some(Expect::Key(None)), ..item("k", "b") };
        let op = Op::Set(SetRequest { request: request(7), ..set_of(vec![create]) });
        for code in [ErrorCode::KeyExists, again] {
            let error = ErrorReply { actual: Some(id(1, 1)), ..ErrorReply::new(code, "no") };
            story.call(op.clone(), set_answer(vec![SetOutcome::Error(error)]));
        }
        if let Some((since, until)) = harm {
            story.harm("one", HarmKind::Killed, since, until);
        }
        story
    };
    story(None, ErrorCode::KeyExists).is_clean();
    story(None, ErrorCode::LimitExceeded).breaks(Property::OnceAtMost, 2);
    // A harm that was over before, and one in between.
    story(Some((0, 1)), ErrorCode::LimitExceeded).breaks(Property::OnceAtMost, 2);
    story(Some((4, 5)), ErrorCode::LimitExceeded).is_clean();
}

#[test]
fn of_a_request_without_an_answer_some_sets_may_have_been_refused_where_there_are_limits() {
    let story = |max_msg_size: Option<u64>| {
        let mut story = Story::new();
        let config = SubjectConfig { max_msg_size, ..SubjectConfig::default() };
        let op = Op::Configure(ConfigureRequest { config, ..ConfigureRequest::default() });
        let reply = ConfigureReply { position: at(1, 1), duplicate: false };
        story.call(op, Outcome::Answered(Answer::Configure(reply)));
        // The second was too large.
        let sets = vec![item("", "a"), item("", "too large"), item("k", "b"), item("k", "c")];
        story.call(Op::Set(set_of(sets)), Outcome::Unknown);
        let held = vec![message("", "a", 1, at(1, 2)), message("k", "c", 3, at(1, 4))];
        story.get_all(held, at(1, 4));
        story
    };
    story(Some(5)).is_clean();
    story(None).breaks(Property::ReadsTheState, 3);

    // Between two that stand as far apart as they were asked for, none was.
    let mut between = story(Some(5));
    let sets = ["d", "e", "f"].map(|value| item("", value));
    between.call(Op::Set(set_of(sets.to_vec())), Outcome::Unknown);
    let with = |middle: &str| {
        let held = [("", "a", 1, 2), ("k", "c", 3, 4), ("", "d", 4, 5), ("", middle, 5, 6), ("", "f", 6, 7)];
        held.map(|(key, value, seq, rev)| message(key, value, seq, at(1, rev))).to_vec()
    };
    let without: Vec<_> = with("e").into_iter().filter(|message| message.seq != Seq::new(5)).collect();
    let mut whole = between.clone();
    whole.get_all(with("e"), at(1, 7)).is_clean();
    between.get_all(without, at(1, 7)).breaks(Property::ReadsTheState, 3);
}
