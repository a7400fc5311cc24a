//! Feeds: whether whoever applies what a feed told has the state, each time the feed says where he is.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use dormouse_protocol::{Message, Position, Seq};

use crate::history::{Assumptions, Feed, FeedBegins, FeedKeys, FeedTells};
use crate::replay::Replay;
use crate::slots::is_same;
use crate::verdict::{Findings, Property, Source};

/// A moment at which a feed says where its reader is: the place in [`Feed::told`], or the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark {
    feed: usize,
    told: Option<usize>,
}

/// A reader, as far as the walk has come.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// What it holds; `None` where that cannot be known.
    held: Option<BTreeMap<Seq, Message>>,
    /// What of the feed has been applied.
    applied: usize,
}

/// The marks of every feed at the positions that they name.
pub(crate) fn marks(feeds: &[Feed], findings: &mut Findings<'_>) -> BTreeMap<Position, Vec<Mark>> {
    let mut marks: BTreeMap<Position, Vec<Mark>> = BTreeMap::new();
    for (place, feed) in feeds.iter().enumerate() {
        let begins = match feed.begins {
            FeedBegins::After(position) => Some((position, None)),
            FeedBegins::Beginning | FeedBegins::Now => None,
        };
        let told = feed.told.iter().enumerate();
        let told = told.filter_map(|(number, told)| Some((told.position?, Some(number))));
        let mut last = Position::default();
        for (position, told) in begins.into_iter().chain(told) {
            if position < last {
                let sentence = format!("a feed that had come to {last} says that it has come to {position}");
                findings.wrong(Property::FeedsAreExact, sentence, [Source::Feed(place)]);
                break;
            }
            last = position;
            marks.entry(position).or_default().push(Mark { feed: place, told });
        }
    }
    marks
}

impl Replay<'_, '_> {
    /// Holds what the reader of a feed has against the state, which is now at the position of the mark.
    pub(crate) fn look_at_feed(&mut self, mark: Mark, position: Position) {
        if self.rules.assumptions == Assumptions::Broken {
            return;
        }
        let history = self.history;
        let feed = &history.feeds[mark.feed];
        let mut reader = self.readers.remove(&mark.feed).unwrap_or_else(|| Reader::of(feed));
        let begins_here = match feed.begins {
            FeedBegins::Beginning => false,
            FeedBegins::After(_) => mark.told.is_none(),
            FeedBegins::Now => reader.applied == 0,
        };
        if begins_here {
            // What is not certain is no ground to stand on.
            let is_sure = !self.is_vague && self.path.iter().all(|step| !step.is_hole);
            reader.held = is_sure.then(|| self.wanted(&feed.keys));
        }
        if let Some(told) = mark.told {
            reader.apply(feed, mark.feed, told, self.findings);
            if let Some(held) = &reader.held {
                self.findings.coverage.add("places in feeds");
                self.compare_feed(mark.feed, position, held);
            }
        }
        self.readers.insert(mark.feed, reader);
    }

    fn wanted(&self, keys: &FeedKeys) -> BTreeMap<Seq, Message> {
        let wanted = self.model.messages().filter(|message| keys.wants(message.key.as_deref()));
        wanted.map(|message| (message.seq, (**message).clone())).collect()
    }

    fn compare_feed(&mut self, feed: usize, position: Position, held: &BTreeMap<Seq, Message>) {
        let there = self.wanted(&self.history.feeds[feed].keys);
        let seqs: BTreeSet<Seq> = held.keys().chain(there.keys()).copied().collect();
        let by = self.history.feeds[feed].told.last().map(|told| told.at).unwrap_or_default();
        for seq in seqs {
            let sentence = match (held.get(&seq), there.get(&seq)) {
                (Some(held), Some(there)) if is_same(held, there) => continue,
                (None, Some(there)) if self.may_be_gone(there, by) => {
                    self.learn(|model| {
                        model.remove(seq);
                    });
                    continue;
                }
                (Some(held), None) if self.is_vague => {
                    let message = Rc::new(held.clone());
                    self.learn(|model| model.write(&message));
                    continue;
                }
                (held, there) => {
                    let say = |message: Option<&Message>| {
                        message.map_or_else(
                            || "nothing".to_owned(),
                            |message| format!("what {} of {} wrote", message.rev, message.term),
                        )
                    };
                    format!(
                        "whoever applies the feed up to {position} has {} at {seq}, where there is {}",
                        say(held),
                        say(there)
                    )
                }
            };
            let wrote =
                there.get(&seq).and_then(|there| self.source_of(there)).or_else(|| self.who_changed(seq));
            self.complain(Property::FeedsAreExact, sentence, Source::Feed(feed), wrote);
            return;
        }
    }
}

impl Reader {
    fn of(feed: &Feed) -> Self {
        let held = (feed.begins == FeedBegins::Beginning).then(BTreeMap::new);
        Self { held, applied: 0 }
    }

    /// Applies what the feed told up to and including the one at `end`.
    fn apply(&mut self, feed: &Feed, place: usize, end: usize, findings: &mut Findings<'_>) {
        for told in &feed.told[self.applied..=end] {
            if told.what == FeedTells::Reset {
                self.held = Some(BTreeMap::new());
                if feed.begins == FeedBegins::Beginning {
                    let sentence = "a feed from the beginning begins anew";
                    findings.wrong(Property::FeedsAreExact, sentence, [Source::Feed(place)]);
                }
            }
            let Some(held) = &mut self.held else { continue };
            if let Some(sentence) = hold(held, &told.what) {
                findings.wrong(Property::FeedsAreExact, sentence, [Source::Feed(place)]);
            }
        }
        self.applied = end + 1;
    }
}

/// Changes what a reader holds as the feed tells. What is wrong with that, if anything.
fn hold(held: &mut BTreeMap<Seq, Message>, what: &FeedTells) -> Option<String> {
    match what {
        FeedTells::Set { message, replaces } => {
            if held.get(&message.seq).is_some_and(|held| is_same(message, held)) {
                return Some(format!("{} of {} is told and was held", message.rev, message.term));
            }
            let under = |held: &&Message| message.key.is_some() && held.key == message.key;
            let before = held.values().find(under).map(|held| held.seq);
            let lacks = replaces.filter(|seq| !held.contains_key(seq));
            if let Some(seq) = before {
                held.remove(&seq);
            }
            held.insert(message.seq, message.clone());
            lacks.map(|seq| format!("{} of {} replaces {seq}, where nothing was", message.rev, message.term))
        }
        FeedTells::Removed { seq, key } => {
            held.remove(seq);
            if key.is_some() {
                held.retain(|_, held| held.key != *key);
            }
            None
        }
        FeedTells::Cleared { end_seq } => {
            *held = held.split_off(&end_seq.next());
            None
        }
        FeedTells::Configured | FeedTells::CaughtUp(_) | FeedTells::Reset => None,
    }
}
