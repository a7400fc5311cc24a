//! Reads, refusals, changes.

use dormouse_checker::{Assumptions, HarmKind, Op, Outcome, Property};
use dormouse_protocol::data::{Expect, GetRequest};
use dormouse_protocol::message::{DeleteChange, Removed};
use dormouse_protocol::{Change, ErrorReply, Level, Rev, Seq};

use crate::story::{Story, at, id, message, told};

#[test]
fn a_read_shows_the_state_at_its_position() {
    let mut story = Story::new();
    story.set("k", "a", 1, at(1, 1)).set("k", "b", 2, at(1, 2)).set("l", "c", 3, at(1, 3));
    story.get("k", vec![message("k", "b", 2, at(1, 2))], at(1, 3));
    story.get_all(vec![message("k", "b", 2, at(1, 2)), message("l", "c", 3, at(1, 3))], at(1, 3));
    story.is_clean();

    story.get("k", vec![message("k", "a", 1, at(1, 1))], at(1, 3));
    story.breaks(Property::ReadsTheState, 3);
}

#[test]
fn a_read_that_lacks_a_message_is_noticed() {
    let mut story = Story::new();
    story.set("k", "a", 1, at(1, 1));
    story.get("k", vec![], at(1, 1));
    story.breaks(Property::ReadsTheState, 2);

    let mut story = Story::new();
    story.set("", "a", 1, at(1, 1)).set("", "b", 2, at(1, 2));
    story.get_all(vec![message("", "b", 2, at(1, 2))], at(1, 2));
    story.breaks(Property::ReadsTheState, 2);
}

#[test]
fn a_removed_message_is_not_shown_any_more() {
    let mut story = Story::new();
    story.set("k", "a", 1, at(1, 1)).delete("k", &[1], at(1, 2)).get("k", vec![], at(1, 2));
    story.is_clean();
    story.get("k", vec![message("k", "a", 1, at(1, 1))], at(1, 2));
    story.breaks(Property::ReadsTheState, 3);
}

#[test]
fn a_read_is_no_older_than_what_was_acknowledged_before_it_was_asked_for() {
    let mut story = Story::new();
    story.set("k", "a", 1, at(1, 1));
    let read = story.begin(Op::Get(GetRequest::key("k")));
    story.set("k", "b", 2, at(1, 2));
    let old = vec![message("k", "a", 1, at(1, 1))];
    let reply = dormouse_protocol::data::GetReply { position: at(1, 1), messages: old.clone(), answered: 1 };
    story.end(read, Outcome::Answered(dormouse_checker::Answer::Get(reply)));
    story.is_clean();

    story.get("k", old, at(1, 1));
    story.breaks(Property::RealTime, 2);
    story.history.rules.assumptions = Assumptions::Broken;
    story.is_clean();
}

#[test]
fn a_write_comes_after_what_was_told_of_before_it_was_asked_for() {
    let mut story = Story::of_level(Level::Disk);
    story.term(1, 0, "persist-1").term(2, 1, "persist-2");
    story.harm("persist-1", HarmKind::Paused, 1, 20);
    story.set("", "a", 1, at(1, 1)).set("", "b", 2, at(2, 2));
    story.is_clean();
    story.set("", "c", 2, at(1, 2));
    story.breaks(Property::RealTime, 2);
}

#[test]
fn a_refusal_is_right_at_some_moment_of_the_call() {
    let mut story = Story::new();
    story.set("k", "a", 1, at(1, 1)).set("k", "b", 2, at(1, 2));
    story.refused_set("k", "x", Expect::Key(None), ErrorReply::key_exists(id(1, 2)));
    story.refused_set("k", "y", Expect::Last(Some(id(1, 1))), ErrorReply::wrong_last(Some(id(1, 2))));
    story.refused_set("l", "z", Expect::Key(Some(id(1, 1))), ErrorReply::wrong_last(None));
    story.is_clean();

    story.refused_set("k", "w", Expect::Key(None), ErrorReply::key_exists(id(1, 1)));
    story.breaks(Property::RefusedRightly, 2);
}

#[test]
fn a_refusal_may_tell_of_what_is_written_meanwhile() {
    let mut story = Story::new();
    story.set("k", "a", 1, at(1, 1));
    let item = dormouse_protocol::data::SetItem {
        expect: Some(Expect::Key(Some(id(1, 1)))),
        ..crate::story::item("k", "x")
    };
    let call = story.begin(Op::Set(crate::story::set_of(vec![item])));
    story.set("k", "b", 2, at(1, 2));
    story.end(call, Outcome::Refused(ErrorReply::wrong_last(Some(id(1, 2)))));
    story.is_clean();
    story.refused_set("k", "y", Expect::Key(None), ErrorReply::wrong_last(None));
    story.breaks(Property::RefusedRightly, 2);
}

#[test]
fn changes_lead_to_the_state_they_name() {
    let mut story = Story::new();
    story.set("k", "a", 1, at(1, 1)).set("l", "b", 2, at(1, 2)).set("k", "c", 3, at(1, 3));
    let c = || told(message("k", "c", 3, at(1, 3)));
    let b = || told(message("l", "b", 2, at(1, 2)));
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

#[test]
fn changes_do_not_leave_out_a_message() {
    let mut story = Story::new();
    story.set("", "a", 1, at(1, 1)).set("", "b", 2, at(1, 2));
    story.changes(at(1, 0), vec![told(message("", "b", 2, at(1, 2)))], at(1, 2));
    story.breaks(Property::ChangesLeadThere, 2);
}

#[test]
fn from_what_was_lost_no_changes_lead_on() {
    let mut story = Story::of_level(Level::Disk);
    story.term(1, 0, "persist-1").term(2, 1, "persist-2");
    story.harm("persist-1", HarmKind::Killed, 1, 5);
    story.set("", "a", 1, at(1, 1)).set("", "b", 2, at(1, 2)).set("", "c", 2, at(2, 2));
    let c = || told(message("", "c", 2, at(2, 2)));
    story.changes(at(1, 1), vec![c()], at(2, 2));
    story.is_clean();
    story.changes(at(1, 2), vec![], at(2, 2));
    story.breaks(Property::ChangesLeadThere, 2);
}
