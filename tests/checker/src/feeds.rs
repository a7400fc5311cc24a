//! Feeds: checks that a reader that applies the output of a feed has the state at each position that the feed names.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use dormouse_protocol::{Message, Position, Seq};

use crate::history::{Assumptions, Feed, FeedBegins, FeedKeys, FeedOutputKind};
use crate::replay::Replay;
use crate::slots::is_same;
use crate::verdict::{Findings, Property, Source};

/// A moment at which a feed names its reader's position: the index in [`Feed::outputs`], or the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark {
    feed: usize,
    output: Option<usize>,
}

/// A reader at the current point of the replay.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// The messages that the reader holds; `None` if they cannot be known.
    held: Option<BTreeMap<Seq, Message>>,
    /// How many outputs of the feed are applied.
    applied: usize,
}

/// Returns the marks of all feeds by the position that they name.
pub(crate) fn marks(feeds: &[Feed], findings: &mut Findings<'_>) -> BTreeMap<Position, Vec<Mark>> {
    let mut marks: BTreeMap<Position, Vec<Mark>> = BTreeMap::new();
    for (index, feed) in feeds.iter().enumerate() {
        let begins = match feed.begins {
            FeedBegins::After(position) => Some((position, None)),
            FeedBegins::Beginning | FeedBegins::Now => None,
        };
        let output = feed.outputs.iter().enumerate();
        let output = output.filter_map(|(number, output)| Some((output.position?, Some(number))));
        let mut last = Position::default();
        for (position, output) in begins.into_iter().chain(output) {
            if position < last {
                let sentence = format!("a feed at {last} goes back to {position}");
                findings.report(Property::FeedsAreExact, sentence, [Source::Feed(index)]);
                break;
            }
            last = position;
            marks.entry(position).or_default().push(Mark { feed: index, output });
        }
    }
    marks
}

impl Replay<'_, '_> {
    /// Compares the messages of a reader with the state at the position of the mark.
    pub(crate) fn check_feed(&mut self, mark: Mark, position: Position) {
        if self.rules.assumptions == Assumptions::Broken {
            return;
        }
        let history = self.history;
        let feed = &history.feeds[mark.feed];
        let mut reader = self.readers.remove(&mark.feed).unwrap_or_else(|| Reader::of(feed));
        let begins_here = match feed.begins {
            FeedBegins::Beginning => false,
            FeedBegins::After(_) => mark.output.is_none(),
            FeedBegins::Now => reader.applied == 0,
        };
        if begins_here {
            // An uncertain state is no valid start for a reader.
            let is_sure = !self.is_uncertain && self.path.iter().all(|step| !step.is_gap);
            reader.held = is_sure.then(|| self.matching(&feed.keys));
        }
        if let Some(output) = mark.output {
            reader.apply(feed, mark.feed, output, self.findings);
            if let Some(held) = &reader.held {
                self.findings.coverage.add("feed positions");
                self.compare_feed(mark.feed, position, held);
            }
        }
        self.readers.insert(mark.feed, reader);
    }

    fn matching(&self, keys: &FeedKeys) -> BTreeMap<Seq, Message> {
        let matching = self.model.messages().filter(|message| keys.wants(message.key.as_deref()));
        matching.map(|message| (message.seq, (**message).clone())).collect()
    }

    fn compare_feed(&mut self, feed: usize, position: Position, held: &BTreeMap<Seq, Message>) {
        let there = self.matching(&self.history.feeds[feed].keys);
        let seqs: BTreeSet<Seq> = held.keys().chain(there.keys()).copied().collect();
        let by = self.history.feeds[feed].outputs.last().map(|output| output.at).unwrap_or_default();
        for seq in seqs {
            let sentence = match (held.get(&seq), there.get(&seq)) {
                (Some(held), Some(there)) if is_same(held, there) => continue,
                (None, Some(there)) if self.may_be_gone(there, by) => {
                    self.correct_model(|model| {
                        model.remove(seq);
                    });
                    continue;
                }
                (Some(held), None) if self.is_uncertain => {
                    let message = Rc::new(held.clone());
                    self.correct_model(|model| model.write(&message));
                    continue;
                }
                (held, there) => {
                    let say = |message: Option<&Message>| {
                        message.map_or_else(
                            || "no message".to_owned(),
                            |message| format!("the message of {} of {}", message.rev, message.term),
                        )
                    };
                    format!(
                        "a reader that applies the feed up to {position} has {} at {seq}, but the subject has {}",
                        say(held),
                        say(there)
                    )
                }
            };
            let wrote =
                there.get(&seq).and_then(|there| self.source_of(there)).or_else(|| self.last_change_at(seq));
            self.report_violation(Property::FeedsAreExact, sentence, Source::Feed(feed), wrote);
            return;
        }
    }
}

impl Reader {
    fn of(feed: &Feed) -> Self {
        let held = (feed.begins == FeedBegins::Beginning).then(BTreeMap::new);
        Self { held, applied: 0 }
    }

    /// Applies the output of the feed up to and including index `end`.
    fn apply(&mut self, feed: &Feed, index: usize, end: usize, findings: &mut Findings<'_>) {
        for output in &feed.outputs[self.applied..=end] {
            if output.kind == FeedOutputKind::Reset {
                self.held = Some(BTreeMap::new());
                if feed.begins == FeedBegins::Beginning {
                    let sentence = "a feed from the beginning resets its reader";
                    findings.report(Property::FeedsAreExact, sentence, [Source::Feed(index)]);
                }
            }
            let Some(held) = &mut self.held else { continue };
            if let Some(sentence) = apply_output(held, &output.kind) {
                findings.report(Property::FeedsAreExact, sentence, [Source::Feed(index)]);
            }
        }
        self.applied = end + 1;
    }
}

/// Applies one output of a feed to the messages of a reader. Returns a sentence if the output is wrong.
fn apply_output(held: &mut BTreeMap<Seq, Message>, kind: &FeedOutputKind) -> Option<String> {
    match kind {
        FeedOutputKind::Set { message, replaces } => {
            if held.get(&message.seq).is_some_and(|held| is_same(message, held)) {
                return Some(format!("{} of {} is repeated", message.rev, message.term));
            }
            let under = |held: &&Message| message.key.is_some() && held.key == message.key;
            let before = held.values().find(under).map(|held| held.seq);
            let lacks = replaces.filter(|seq| !held.contains_key(seq));
            if let Some(seq) = before {
                held.remove(&seq);
            }
            held.insert(message.seq, message.clone());
            lacks.map(|seq| {
                format!(
                    "{} of {} replaces {seq}, but the reader has no such message",
                    message.rev, message.term
                )
            })
        }
        FeedOutputKind::Removed { seq, key } => {
            held.remove(seq);
            if key.is_some() {
                held.retain(|_, held| held.key != *key);
            }
            None
        }
        FeedOutputKind::Cleared { end_seq } => {
            *held = held.split_off(&end_seq.next());
            None
        }
        FeedOutputKind::Configured | FeedOutputKind::CaughtUp(_) | FeedOutputKind::Reset => None,
    }
}
