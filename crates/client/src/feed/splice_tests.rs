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

/// What comes out of events after rev 7 of term 1: revs, `hole` once and then no more, or nothing.
fn run(events: &[Event]) -> Vec<String> {
    let mut seen = Position { term: Term::new(1), rev: Rev::new(7) };
    let mut log = Vec::new();
    for event in events {
        match splice(seen, event.clone()) {
            Splice::Old => {}
            Splice::Next(changes) => {
                seen = event.position();
                log.extend(changes.iter().map(|change| change.rev().get().to_string()));
            }
            Splice::Hole => {
                log.push("hole".to_owned());
                break;
            }
        }
    }
    log
}

#[test]
fn contiguous_events_pass() {
    assert_eq!(
        run(&[event(1, 0, 9, &[8, 9]), event(1, 0, 10, &[10]), event(1, 0, 10, &[])]),
        ["8", "9", "10"]
    );
}

#[test]
fn what_was_seen_is_dropped_and_the_rest_of_an_event_kept() {
    let events =
        [event(1, 0, 7, &[7]), event(1, 0, 7, &[]), event(1, 0, 5, &[5]), event(1, 0, 9, &[6, 7, 8, 9])];
    assert_eq!(run(&events), ["8", "9"]);
}

#[test]
fn a_batch_shares_one_rev() {
    assert_eq!(run(&[event(1, 0, 8, &[8, 8, 8]), event(1, 0, 9, &[9])]), ["8", "8", "8", "9"]);
}

#[test]
fn a_lost_event_is_a_hole_and_so_is_a_lost_last_one() {
    assert_eq!(run(&[event(1, 0, 8, &[8]), event(1, 0, 10, &[10])]), ["8", "hole"]);
    assert_eq!(run(&[event(1, 0, 8, &[8]), event(1, 0, 9, &[])]), ["8", "hole"]);
}

#[test]
fn the_next_term_goes_on_where_we_are_and_the_old_server_is_not_listened_to() {
    let events =
        [event(2, 7, 7, &[]), event(2, 7, 8, &[8]), event(1, 0, 8, &[8]), event(1, 0, 12, &[10, 11, 12])];
    assert_eq!(run(&events), ["8"]);
    assert_eq!(run(&[event(2, 7, 8, &[8])]), ["8"]);
}

#[test]
fn a_term_that_inherited_more_or_less_than_we_saw_is_a_hole() {
    assert_eq!(run(&[event(2, 9, 9, &[])]), ["hole"]);
    assert_eq!(run(&[event(2, 8, 9, &[9])]), ["hole"]);
    assert_eq!(run(&[event(2, 5, 6, &[6])]), ["hole"]);
    assert_eq!(run(&[event(2, 5, 8, &[8])]), ["hole"]);
}

#[test]
fn a_term_that_nobody_saw_is_a_hole_even_when_the_revs_fit() {
    assert_eq!(run(&[event(3, 7, 8, &[8])]), ["hole"]);
}
