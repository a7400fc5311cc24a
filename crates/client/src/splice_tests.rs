use dormouse_protocol::message::DeleteAllChange;
use dormouse_protocol::{ProtocolVersion, Seq, Term};

use super::*;

/// An event of `term` with base `base` that holds the changes `revs` and leaves the subject at `rev`.
fn event(term: u64, base: u64, rev: u64, revs: &[u64]) -> Event {
    let change = |&rev: &u64| {
        Change::DeleteAll(DeleteAllChange { rev: Rev::new(rev), end_seq: Seq::new(rev), count: 1 })
    };
    Event {
        v: ProtocolVersion::CURRENT,
        term: Term::new(term),
        term_base: Rev::new(base),
        rev: Rev::new(rev),
        changes: revs.iter().map(change).collect(),
    }
}

/// What comes out of events after rev 6 of term 1: `gap` with its positions, or a rev.
fn run(events: &[Event]) -> Vec<String> {
    run_after(Some(Position { term: Term::new(1), rev: Rev::new(6) }), events)
}

fn run_after(seen: Option<Position>, events: &[Event]) -> Vec<String> {
    let mut splicer = Splicer::starting_after(seen);
    let mut log = Vec::new();
    for event in events {
        let spliced = splicer.apply(event.clone());
        match spliced.hole {
            Some(Hole { seen: Some(seen), now: Some(now) }) => log.push(format!("gap {seen} -> {now}")),
            Some(Hole { seen: None, now: Some(now) }) => log.push(format!("gap ? -> {now}")),
            Some(hole) => panic!("{hole:?}"),
            None => {}
        }
        log.extend(spliced.changes.iter().map(|change| change.rev().get().to_string()));
    }
    log
}

#[test]
fn contiguous_events_pass() {
    assert_eq!(run(&[event(1, 0, 8, &[7, 8]), event(1, 0, 9, &[9]), event(1, 0, 9, &[])]), ["7", "8", "9"]);
}

#[test]
fn the_loss_of_the_very_first_change_is_a_hole() {
    assert_eq!(run(&[event(1, 0, 8, &[8])]), ["gap rev 6 of term 1 -> rev 8 of term 1", "8"]);
    assert_eq!(run(&[event(1, 0, 7, &[])]), ["gap rev 6 of term 1 -> rev 7 of term 1"]);
    assert_eq!(run(&[event(2, 7, 8, &[8])]), ["gap rev 6 of term 1 -> rev 8 of term 2", "8"]);
}

#[test]
fn without_a_beginning_only_the_very_first_change_is_no_hole() {
    assert_eq!(run_after(None, &[event(1, 0, 2, &[1, 2]), event(1, 0, 3, &[3])]), ["1", "2", "3"]);
    assert_eq!(run_after(None, &[event(1, 0, 0, &[]), event(1, 0, 1, &[1])]), ["1"]);
    let log = run_after(None, &[event(1, 0, 7, &[7]), event(1, 0, 8, &[8])]);
    assert_eq!(log, ["gap ? -> rev 7 of term 1", "7", "8"]);
    assert_eq!(run_after(None, &[event(1, 0, 7, &[]), event(1, 0, 8, &[8])])[0], "gap ? -> rev 7 of term 1");
}

#[test]
fn a_destroyed_subject_goes_on_in_the_next_term() {
    // Rev 8 destroys.
    let destroyed = [event(1, 0, 7, &[7]), event(1, 0, 8, &[8])];
    let used_again = event(2, 8, 9, &[9]);
    assert_eq!(run(&[&destroyed[..], std::slice::from_ref(&used_again)].concat()), ["7", "8", "9"]);
    let unheard = run(&[destroyed[0].clone(), used_again]);
    assert_eq!(unheard, ["7", "gap rev 7 of term 1 -> rev 9 of term 2", "9"]);
}

#[test]
fn what_was_seen_is_dropped_and_the_rest_of_an_event_kept() {
    let events =
        [event(1, 0, 7, &[7]), event(1, 0, 7, &[7]), event(1, 0, 5, &[5]), event(1, 0, 9, &[6, 7, 8, 9])];
    assert_eq!(run(&events), ["7", "8", "9"]);
}

#[test]
fn a_batch_shares_one_rev() {
    assert_eq!(run(&[event(1, 0, 7, &[7]), event(1, 0, 8, &[8, 8, 8])]), ["7", "8", "8", "8"]);
}

#[test]
fn a_hole_is_reported_before_the_changes_after_it() {
    let log = run(&[event(1, 0, 7, &[7]), event(1, 0, 9, &[9]), event(1, 0, 8, &[8])]);
    assert_eq!(log, ["7", "gap rev 7 of term 1 -> rev 9 of term 1", "9"]);
}

#[test]
fn a_beacon_ahead_reports_the_loss_of_the_last_event() {
    let log = run(&[event(1, 0, 7, &[7]), event(1, 0, 8, &[]), event(1, 0, 8, &[]), event(1, 0, 9, &[9])]);
    assert_eq!(log, ["7", "gap rev 7 of term 1 -> rev 8 of term 1", "9"]);
}

#[test]
fn the_next_term_goes_on_where_we_are() {
    assert_eq!(
        run(&[event(1, 0, 7, &[7]), event(2, 7, 7, &[]), event(2, 7, 8, &[8]), event(1, 0, 8, &[8])]),
        ["7", "8"]
    );
}

#[test]
fn a_term_that_inherited_more_than_we_saw_is_a_hole() {
    assert_eq!(
        run(&[event(1, 0, 7, &[7]), event(2, 9, 9, &[])]),
        ["7", "gap rev 7 of term 1 -> rev 9 of term 2"]
    );
}

#[test]
fn a_term_that_inherited_less_than_we_saw_is_a_hole_and_its_changes_are_new() {
    let log = run(&[event(1, 0, 7, &[7]), event(2, 5, 6, &[6])]);
    assert_eq!(log, ["7", "gap rev 7 of term 1 -> rev 6 of term 2", "6"]);
}

#[test]
fn a_term_that_nobody_saw_is_a_hole_even_when_the_revs_fit() {
    let log = run(&[event(1, 0, 7, &[7]), event(3, 7, 8, &[8])]);
    assert_eq!(log, ["7", "gap rev 7 of term 1 -> rev 8 of term 3", "8"]);
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Of one term's events, in order, with any of them lost, repeated or late: every change comes at most once
        /// and in order, and whatever is missing in between was reported before what follows it.
        #[test]
        fn exactly_once_or_reported(order in proptest::collection::vec(1_u64..30, 1..60)) {
            let mut splicer = Splicer::starting_after(Some(Position::default()));
            let mut last: u64 = 0;
            for rev in order {
                let spliced = splicer.apply(event(0, 0, rev, &[rev]));
                for change in &spliced.changes {
                    let rev = change.rev().get();
                    prop_assert!(rev > last);
                    prop_assert_eq!(spliced.hole.is_some(), rev != last + 1);
                    last = rev;
                }
            }
        }
    }
}
