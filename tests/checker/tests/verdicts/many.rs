//! Long histories that are as they should be, and what is noticed in them when one word is changed.

use std::collections::BTreeMap;

use dormouse_checker::{Answer, Outcome};
use dormouse_protocol::Message;

use crate::story::{Story, at, message, told};

/// Chance that follows from a number (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// So many calls to a store that does what it should, with a new term now and then.
fn long(seed: u64, calls: u64) -> Story {
    let mut dice = Dice(seed * 2 + 1);
    let mut story = Story::new();
    let mut held: BTreeMap<String, Message> = BTreeMap::new();
    let (mut term, mut rev, mut seq) = (1, 0, 0);
    story.term(1, 0, "persist-1");
    for number in 0..calls {
        let key = format!("k{}", dice.below(8));
        match dice.below(20) {
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
                story.changes(at(0, 0), all.into_iter().map(told).collect(), at(term, rev));
            }
            _ => {
                story.get(&key, held.get(&key).cloned().into_iter().collect(), at(term, rev));
            }
        }
    }
    story
}

#[test]
fn long_histories_that_are_as_they_should_be_are_clean() {
    for seed in 1..300 {
        long(seed, 300).is_clean();
    }
}

#[test]
fn whatever_read_is_forged_is_noticed() {
    let mut forged = 0;
    for seed in 1..100 {
        let mut story = long(seed, 120);
        let reads = story.subject.calls.iter_mut().filter_map(|call| match call.returned.as_mut()?.outcome {
            Outcome::Answered(Answer::Get(ref mut reply)) if !reply.messages.is_empty() => Some(reply),
            _ => None,
        });
        let Some(read) = reads.last() else { continue };
        read.messages.clear();
        forged += 1;
        assert!(!story.verdict().is_clean(), "{seed}");
    }
    assert!(forged > 50, "{forged}");
}

#[test]
fn whatever_acknowledgement_a_successor_lacks_is_noticed() {
    for seed in 1..100 {
        let mut story = long(seed, 120);
        let (&last, facts) = story.subject.terms.iter().next_back().unwrap();
        let base = facts.base.unwrap().get();
        if base < 2 {
            continue;
        }
        // A later owner that begins one rev too early.
        story.term(last.get() + 1, base - 1, "persist-9").beacon(at(last.get() + 1, base - 1), base - 1);
        assert!(!story.verdict().is_clean(), "{seed}");
    }
}
