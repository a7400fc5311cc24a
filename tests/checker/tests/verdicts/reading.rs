//! Reads, rejections, changes.

use dormouse_checker::{Assumptions, CallOutcome, Op, Property, ServerFaultKind};
use dormouse_protocol::data::{Expect, GetRequest};
use dormouse_protocol::message::{DeleteChange, Removed};
use dormouse_protocol::{Change, ErrorReply, Level, Rev, Seq};

use crate::story::{Story, at, id, message, set_change};

/// A read must show the state at its position; an older value is a violation.
#[test]
fn read_must_show_the_state_at_the_read_position() {
    let mut story = Story::new();
    story.set("k", "a", 1, at(1, 1)).set("k", "b", 2, at(1, 2)).set("l", "c", 3, at(1, 3));
    story.get("k", vec![message("k", "b", 2, at(1, 2))], at(1, 3));
    story.get_all(vec![message("k", "b", 2, at(1, 2)), message("l", "c", 3, at(1, 3))], at(1, 3));
    story.is_clean();

    story.get("k", vec![message("k", "a", 1, at(1, 1))], at(1, 3));
    story.breaks(Property::ReadsTheState, 3);
}

/// A get or a page that omits a stored message is a violation.
#[test]
fn read_that_omits_a_message_is_violation() {
    let mut story = Story::new();
    story.set("k", "a", 1, at(1, 1));
    story.get("k", vec![], at(1, 1));
    story.breaks(Property::ReadsTheState, 2);

    let mut story = Story::new();
    story.set("", "a", 1, at(1, 1)).set("", "b", 2, at(1, 2));
    story.get_all(vec![message("", "b", 2, at(1, 2))], at(1, 2));
    story.breaks(Property::ReadsTheState, 2);
}

/// A read that shows a message after its removal is a violation.
#[test]
fn read_of_a_removed_message_is_violation() {
    let mut story = Story::new();
    story.set("k", "a", 1, at(1, 1)).delete("k", &[1], at(1, 2)).get("k", vec![], at(1, 2));
    story.is_clean();
    story.get("k", vec![message("k", "a", 1, at(1, 1))], at(1, 2));
    story.breaks(Property::ReadsTheState, 3);
}

/// A read must include every write acknowledged before the read starts, unless the assumptions are broken.
#[test]
fn read_older_than_an_earlier_ack_is_violation() {
    let mut story = Story::new();
    story.set("k", "a", 1, at(1, 1));
    let read = story.begin(Op::Get(GetRequest::key("k")));
    story.set("k", "b", 2, at(1, 2));
    let old = vec![message("k", "a", 1, at(1, 1))];
    let reply = dormouse_protocol::data::GetReply { position: at(1, 1), messages: old.clone(), answered: 1 };
    story.end(read, CallOutcome::Answered(dormouse_checker::OpResult::Get(reply)));
    story.is_clean();

    story.get("k", old, at(1, 1));
    story.breaks(Property::RealTime, 2);
    story.history.rules.assumptions = Assumptions::Broken;
    story.is_clean();
}

/// A write must take a position after every write acknowledged before it starts.
#[test]
fn write_placed_before_an_earlier_ack_is_violation() {
    let mut story = Story::of_level(Level::Disk);
    story.term(1, 0, "persist-1").term(2, 1, "persist-2");
    story.fault("persist-1", ServerFaultKind::Paused, 1, 20);
    story.set("", "a", 1, at(1, 1)).set("", "b", 2, at(2, 2));
    story.is_clean();
    story.set("", "c", 2, at(1, 2));
    story.breaks(Property::RealTime, 2);
}

/// A rejection and the id that it reports must match the state at some moment of the call.
#[test]
fn rejection_must_fit_a_state_during_the_call() {
    let mut story = Story::new();
    story.set("k", "a", 1, at(1, 1)).set("k", "b", 2, at(1, 2));
    story.refused_set("k", "x", Expect::Key(None), ErrorReply::key_exists(id(1, 2)));
    story.refused_set("k", "y", Expect::Last(Some(id(1, 1))), ErrorReply::wrong_last(Some(id(1, 2))));
    story.refused_set("l", "z", Expect::Key(Some(id(1, 1))), ErrorReply::wrong_last(None));
    story.is_clean();

    story.refused_set("k", "w", Expect::Key(None), ErrorReply::key_exists(id(1, 1)));
    story.breaks(Property::RefusedRightly, 2);
}

/// A rejection may report a message that another client writes during the call.
#[test]
fn rejection_may_report_a_concurrent_write() {
    let mut story = Story::new();
    story.set("k", "a", 1, at(1, 1));
    let item = dormouse_protocol::data::SetItem {
        expect: Some(Expect::Key(Some(id(1, 1)))),
        ..crate::story::item("k", "x")
    };
    let call = story.begin(Op::Set(crate::story::set_of(vec![item])));
    story.set("k", "b", 2, at(1, 2));
    story.end(call, CallOutcome::Refused(ErrorReply::wrong_last(Some(id(1, 2)))));
    story.is_clean();
    story.refused_set("k", "y", Expect::Key(None), ErrorReply::wrong_last(None));
    story.breaks(Property::RefusedRightly, 2);
}

/// A changes reply must turn the state at its start position into the state at its end position.
#[test]
fn changes_reply_must_lead_to_the_named_position() {
    let mut story = Story::new();
    story.set("k", "a", 1, at(1, 1)).set("l", "b", 2, at(1, 2)).set("k", "c", 3, at(1, 3));
    let c = || set_change(message("k", "c", 3, at(1, 3)));
    let b = || set_change(message("l", "b", 2, at(1, 2)));
    story.changes(at(1, 1), vec![b(), c()], at(1, 3)).changes(at(0, 0), vec![b(), c()], at(1, 3));
    story.delete("l", &[2], at(1, 4));
    let gone = || {
        let removed = vec![Removed { seq: Seq::new(2), key: Some("l".to_owned()) }];
        Change::Delete(DeleteChange { rev: Rev::new(4), removed })
    };
    story.changes(at(1, 2), vec![c(), gone()], at(1, 4)).changes(at(1, 4), vec![], at(1, 4));
    story.is_clean();

    story.changes(at(1, 2), vec![c()], at(1, 4));
    story.breaks(Property::ChangesLeadThere, 2);
}

/// A changes reply that omits a message after its start position is a violation.
#[test]
fn changes_reply_that_omits_a_message_is_violation() {
    let mut story = Story::new();
    story.set("", "a", 1, at(1, 1)).set("", "b", 2, at(1, 2));
    story.changes(at(1, 0), vec![set_change(message("", "b", 2, at(1, 2)))], at(1, 2));
    story.breaks(Property::ChangesLeadThere, 2);
}

/// A changes reply that continues from a diverged position without a resync is a violation.
#[test]
fn changes_after_a_diverged_position_must_resync() {
    let mut story = Story::of_level(Level::Disk);
    story.term(1, 0, "persist-1").term(2, 1, "persist-2");
    story.fault("persist-1", ServerFaultKind::Killed, 1, 5);
    story.set("", "a", 1, at(1, 1)).set("", "b", 2, at(1, 2)).set("", "c", 2, at(2, 2));
    let c = || set_change(message("", "c", 2, at(2, 2)));
    story.changes(at(1, 1), vec![c()], at(2, 2));
    story.is_clean();
    story.changes(at(1, 2), vec![], at(2, 2));
    story.breaks(Property::ChangesLeadThere, 2);
}
