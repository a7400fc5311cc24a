//! Long valid histories, and the violations in them after one change.

use std::collections::BTreeMap;

use dormouse_checker::{CallOutcome, OpResult};
use dormouse_protocol::Message;

use crate::story::{Story, at, message, set_change};

/// Pseudo-random numbers from a seed (xorshift).
struct SeededRng(u64);

impl SeededRng {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// A history of `calls` calls to a correct store, with some new terms.
fn long(seed: u64, calls: u64) -> Story {
    let mut rng = SeededRng(seed * 2 + 1);
    let mut story = Story::new();
    let mut held: BTreeMap<String, Message> = BTreeMap::new();
    let (mut term, mut rev, mut seq) = (1, 0, 0);
    story.term(1, 0, "persist-1");
    for number in 0..calls {
        let key = format!("k{}", rng.below(8));
        match rng.below(20) {
            0..8 => {
                (rev, seq) = (rev + 1, seq + 1);
                let value = format!("v{number}");
                story.set(&key, &value, seq, at(term, rev));
                held.insert(key.clone(), message(&key, &value, seq, at(term, rev)));
            }
            8..10 => {
                if let Some(gone) = held.remove(&key) {
                    rev += 1;
                    story.delete(&key, &[gone.seq.get()], at(term, rev));
                } else {
                    story.delete(&key, &[], at(term, rev));
                }
            }
            10 => {
                term += 1;
                story.term(term, rev, &format!("persist-{}", term % 3)).beacon(at(term, rev), rev);
            }
            11..13 => {
                let mut all: Vec<Message> = held.values().cloned().collect();
                all.sort_by_key(|message| message.seq);
                story.get_all(all, at(term, rev));
            }
            13 => {
                let mut all: Vec<Message> = held.values().cloned().collect();
                all.sort_by_key(|message| message.rev);
                story.changes(at(0, 0), all.into_iter().map(set_change).collect(), at(term, rev));
            }
            _ => {
                story.get(&key, held.get(&key).cloned().into_iter().collect(), at(term, rev));
            }
        }
    }
    story
}

/// The checker finds no violation in long random valid histories.
#[test]
fn checker_accepts_long_valid_histories() {
    for seed in 1..300 {
        long(seed, 300).is_clean();
    }
}

/// If one read of a long valid history is emptied, the checker finds a violation.
#[test]
fn checker_finds_each_forged_read() {
    let mut forged = 0;
    for seed in 1..100 {
        let mut story = long(seed, 120);
        let reads = story.subject.calls.iter_mut().filter_map(|call| match call.returned.as_mut()?.outcome {
            CallOutcome::Answered(OpResult::Get(ref mut reply)) if !reply.messages.is_empty() => Some(reply),
            _ => None,
        });
        let Some(read) = reads.last() else { continue };
        read.messages.clear();
        forged += 1;
        assert!(!story.verdict().is_clean(), "{seed}");
    }
    assert!(forged > 50, "{forged}");
}

/// If a new term begins one rev too early, the checker finds a violation in a long valid history.
#[test]
fn checker_finds_an_ack_missing_in_the_next_term() {
    for seed in 1..100 {
        let mut story = long(seed, 120);
        let (&last, facts) = story.subject.terms.iter().next_back().unwrap();
        let base = facts.base.unwrap().get();
        if base < 2 {
            continue;
        }
        // The next owner begins one rev too early.
        story.term(last.get() + 1, base - 1, "persist-9").beacon(at(last.get() + 1, base - 1), base - 1);
        assert!(!story.verdict().is_clean(), "{seed}");
    }
}
