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

/// The result of events after rev 7 of term 1: revs, `gap` once and then no more, or nothing.
fn run(events: &[Event]) -> Vec<String> {
    let mut seen = Position { term: Term::new(1), rev: Rev::new(7) };
    let mut log = Vec::new();
    for event in events {
        match classify_event(seen, event.clone()) {
            EventOrder::Old => {}
            EventOrder::Next(changes) => {
                seen = event.position();
                log.extend(changes.iter().map(|change| change.rev().get().to_string()));
            }
            EventOrder::Gap => {
                log.push("gap".to_owned());
                break;
            }
        }
    }
    log
}

/// Contiguous events and a beacon at the current rev pass.
#[test]
fn event_order_contiguous_events_pass() {
    assert_eq!(
        run(&[event(1, 0, 9, &[8, 9]), event(1, 0, 10, &[10]), event(1, 0, 10, &[])]),
        ["8", "9", "10"]
    );
}

/// Known changes are dropped, and the new changes of the same event are kept.
#[test]
fn event_order_drops_known_changes_and_keeps_new_ones() {
    let events =
        [event(1, 0, 7, &[7]), event(1, 0, 7, &[]), event(1, 0, 5, &[5]), event(1, 0, 9, &[6, 7, 8, 9])];
    assert_eq!(run(&events), ["8", "9"]);
}

/// Several changes of one batch share one rev and pass.
#[test]
fn event_order_batch_with_one_rev_passes() {
    assert_eq!(run(&[event(1, 0, 8, &[8, 8, 8]), event(1, 0, 9, &[9])]), ["8", "8", "8", "9"]);
}

/// A missing event is a gap; if the last event is missing, the next beacon shows the gap.
#[test]
fn event_order_missing_event_or_last_event_is_gap() {
    assert_eq!(run(&[event(1, 0, 8, &[8]), event(1, 0, 10, &[10])]), ["8", "gap"]);
    assert_eq!(run(&[event(1, 0, 8, &[8]), event(1, 0, 9, &[])]), ["8", "gap"]);
}

/// If the next term starts at the current rev, its events pass and later events of the old term are ignored.
#[test]
fn event_order_next_term_continues_and_old_term_is_ignored() {
    let events =
        [event(2, 7, 7, &[]), event(2, 7, 8, &[8]), event(1, 0, 8, &[8]), event(1, 0, 12, &[10, 11, 12])];
    assert_eq!(run(&events), ["8"]);
    assert_eq!(run(&[event(2, 7, 8, &[8])]), ["8"]);
}

/// If the base of the next term is above or below the current rev, the event is a gap.
#[test]
fn event_order_next_term_with_other_base_is_gap() {
    assert_eq!(run(&[event(2, 9, 9, &[])]), ["gap"]);
    assert_eq!(run(&[event(2, 8, 9, &[9])]), ["gap"]);
    assert_eq!(run(&[event(2, 5, 6, &[6])]), ["gap"]);
    assert_eq!(run(&[event(2, 5, 8, &[8])]), ["gap"]);
}

/// If a term was skipped, the event is a gap even if the revs are contiguous.
#[test]
fn event_order_skipped_term_is_gap_even_if_revs_match() {
    assert_eq!(run(&[event(3, 7, 8, &[8])]), ["gap"]);
}
