//! The logic of a feed: a pure machine without clock, randomness or I/O.
//!
//! It has a position in the subject's history and listens for events. It emits the next event in order. If an
//! event is out of order, or events may be lost, it queries the changes since its position. If the server
//! cannot list these changes, it reads everything, emits the differences from what the reader holds, and
//! continues from there.
//!
//! ```text
//!                  gap, loss, server gone, or a minute without a query
//!   listening ────────────────────────────────────────────────────────────► querying changes
//!       ▲                                                                      │        │
//!       │  the last page of changes                                            │        │ resync
//!       ├──────────────────────────────────────────────────────────────────────┘        ▼
//!       │                                                                        reading everything
//!       └──────────────── nothing changed meanwhile; else: querying changes ───────────┘
//! ```
//!
//! While it queries, events are buffered outside. Events that the reply already covers are old when they are
//! processed.

use std::collections::BTreeSet;
use std::time::Duration;

use dormouse_protocol::data::{ChangesReply, GetAllReply, InfoReply};
use dormouse_protocol::{Event, Executed, Position, RetryAdvice, Seq, Term};
use dormouse_runtime::injected_bug;

use super::gap::{EventOrder, classify_event};
use super::known::KnownMessages;
use super::output::{FeedOutput, OutputBuffer};
use super::update::{FeedFrom, FeedKeys};
use crate::error::{Error, MalformedCause};

/// How long a feed without any alarm waits until it queries all the same; jitter adds up to half of it.
const CHECK_EVERY: Duration = Duration::from_secs(45);

/// The interval over which the feeds of a subject spread their queries after a loss that affects all of them.
const SPREAD_AFTER_LOSS: Duration = Duration::from_millis(100);

/// The same after the server of many subjects is gone.
const SPREAD_AFTER_GONE: Duration = Duration::from_millis(500);

/// The first pause after a failed query; doubled each time. Jitter adds up to the same time again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause without jitter.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// An input of a feed.
#[derive(Debug)]
pub(crate) enum FeedInput {
    /// An event.
    Event(Event),
    /// Events may be lost.
    Lost,
    /// The subject's server is gone.
    ServerGone,
    /// The time to query has come.
    Due,
    /// The reply to [`FeedQuery::Info`].
    Info(Box<InfoReply>),
    /// The reply to [`FeedQuery::Changes`].
    Changes(ChangesReply),
    /// The reply to [`FeedQuery::Page`].
    Page(GetAllReply),
    /// The query failed.
    Failed(Error),
}

/// A query to the subject's server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FeedQuery {
    /// The position of the subject, and its configuration.
    Info,
    /// The changes since this position.
    Changes(Position),
    /// The messages that the feed covers, from this seq on.
    Page(Seq),
}

/// The next action of a feed, after its updates are emitted.
#[derive(Debug)]
pub(crate) enum FeedAction {
    /// Query, after a pause.
    Ask(FeedQuery, Duration),
    /// Listen, at most until this time.
    Listen(Duration),
    /// Report the error and end.
    End(Error),
}

/// The updates and the next action after an input.
#[derive(Debug)]
pub(crate) struct FeedStep {
    pub(crate) outputs: Vec<FeedOutput>,
    pub(crate) next: FeedAction,
}

/// A full read in progress.
#[derive(Debug)]
struct FullRead {
    /// The position to continue from afterwards: the one known before the first page was read.
    from: Option<Position>,
    /// The start of the next page.
    start: Seq,
    /// All pages so far show the same position.
    is_steady: bool,
    /// Messages that the reader holds and no page had. Their removal is emitted at the end, since a message
    /// may have moved under its key.
    missing: BTreeSet<Seq>,
}

#[derive(Debug)]
pub(crate) struct FeedMachine {
    output: OutputBuffer,
    /// Whether it keeps track of the messages that the reader holds, so that it can emit differences.
    tracks_known: bool,
    seen: Position,
    reading: Option<FullRead>,
    /// The term of a set of replies that give a state only together, once the first of them has arrived.
    ///
    /// A page of changes omits a change that a later change made void; the first change is in effect again if
    /// the later one is lost with its server. A page of messages may show changes that are lost. In both
    /// cases the position at the start of the page stays on the history, so no other check would detect it.
    pages_term: Option<Term>,
    /// The last query.
    asked: FeedQuery,
    /// How many times in a row it failed.
    failures: u32,
    /// The feed must report when it has caught up.
    must_report_caught_up: bool,
    /// When to query, if nothing else happens before.
    check_at: Duration,
}

impl FeedMachine {
    /// A feed that starts at `from`. [`FeedFrom::Now`] is the subject's position when the feed has just
    /// subscribed.
    pub(crate) fn begin(keys: FeedKeys, from: FeedFrom) -> (Self, FeedStep) {
        let tracks_known = from == FeedFrom::Beginning;
        let mut machine = Self {
            output: OutputBuffer::new(keys, tracks_known.then(KnownMessages::default)),
            tracks_known,
            seen: Position::default(),
            reading: None,
            pages_term: None,
            asked: FeedQuery::Info,
            failures: 0,
            must_report_caught_up: true,
            check_at: Duration::ZERO,
        };
        let next = match from {
            FeedFrom::Beginning => machine.read_everything(None),
            FeedFrom::After(position) => {
                machine.seen = position;
                machine.ask(FeedQuery::Changes(position), Duration::ZERO)
            }
            FeedFrom::Now => machine.ask(FeedQuery::Info, Duration::ZERO),
        };
        (machine, FeedStep { outputs: Vec::new(), next })
    }

    /// Processes the next input. `random` is any number.
    pub(crate) fn apply(&mut self, input: FeedInput, now: Duration, random: u64) -> FeedStep {
        if !matches!(input, FeedInput::Failed(_)) {
            self.failures = 0;
        }
        let next = match input {
            FeedInput::Event(event) => self.event(event, random),
            FeedInput::Lost => self.ask_changes(within(SPREAD_AFTER_LOSS, random)),
            FeedInput::ServerGone => self.ask_changes(within(SPREAD_AFTER_GONE, random)),
            FeedInput::Due => self.ask_changes(Duration::ZERO),
            FeedInput::Info(info) => self.info(*info, now, random),
            FeedInput::Changes(reply) => self.changes(reply, now, random),
            FeedInput::Page(reply) => self.page(reply, now, random),
            FeedInput::Failed(error) => self.failed(error, random),
        };
        FeedStep { outputs: self.output.take(), next }
    }

    const fn ask(&mut self, query: FeedQuery, pause: Duration) -> FeedAction {
        self.asked = query;
        FeedAction::Ask(query, pause)
    }

    const fn ask_changes(&mut self, pause: Duration) -> FeedAction {
        self.ask(FeedQuery::Changes(self.seen), pause)
    }

    fn event(&mut self, event: Event, random: u64) -> FeedAction {
        let position = event.position();
        match classify_event(self.seen, event) {
            EventOrder::Old => {}
            EventOrder::Next(changes) => {
                self.seen = position;
                self.output.event(changes, position);
            }
            EventOrder::Gap => return self.ask_changes(within(SPREAD_AFTER_LOSS, random)),
        }
        FeedAction::Listen(self.check_at)
    }

    /// The reader has everything up to `position`.
    fn caught_up(&mut self, position: Position, now: Duration, random: u64) -> FeedAction {
        self.seen = position;
        self.pages_term = None;
        if std::mem::take(&mut self.must_report_caught_up) {
            self.output.caught_up(position);
        } else {
            self.output.reached(position);
        }
        if !self.tracks_known {
            self.output.forget();
        }
        self.check_at = now + CHECK_EVERY + within(CHECK_EVERY / 2, random);
        FeedAction::Listen(self.check_at)
    }

    fn info(&mut self, info: InfoReply, now: Duration, random: u64) -> FeedAction {
        if self.reading.is_none() {
            return self.caught_up(info.position, now, random);
        }
        self.output.configured(info.config);
        self.pages_term = Some(info.position.term);
        self.read_everything(Some(info.position))
    }

    fn changes(&mut self, reply: ChangesReply, now: Duration, random: u64) -> FeedAction {
        if reply.resync || !self.belongs(reply.position.term) {
            return self.resync();
        }
        for change in reply.changes {
            self.output.change(change);
        }
        self.must_report_caught_up |= self.output.has_output();
        if !reply.more {
            return self.caught_up(reply.position, now, random);
        }
        if reply.position <= self.seen {
            return FeedAction::End(Error::Malformed { cause: MalformedCause::StuckCursor });
        }
        self.seen = reply.position;
        self.ask_changes(Duration::ZERO)
    }

    /// Whether a reply of `term` belongs to the pages before it.
    fn belongs(&mut self, term: Term) -> bool {
        *self.pages_term.get_or_insert(term) == term
    }

    /// The changes from the current position are unavailable, or not certain.
    fn resync(&mut self) -> FeedAction {
        self.must_report_caught_up = true;
        self.pages_term = None;
        self.output.start_full_read();
        if *self.output.keys() != FeedKeys::All {
            return self.read_everything(None);
        }
        // The configuration may have changed as well.
        self.reading = Some(FullRead::from(None));
        self.ask(FeedQuery::Info, Duration::ZERO)
    }

    /// Starts to read everything; continues from `from` afterwards, if that is known already.
    fn read_everything(&mut self, from: Option<Position>) -> FeedAction {
        self.reading = Some(FullRead::from(from));
        self.ask(FeedQuery::Page(Seq::new(0)), Duration::ZERO)
    }

    fn page(&mut self, reply: GetAllReply, now: Duration, random: u64) -> FeedAction {
        let mut reading = self.reading.take().unwrap_or(FullRead::from(None));
        if !self.belongs(reply.position.term) {
            return self.resync();
        }
        let from = *reading.from.get_or_insert(reply.position);
        reading.is_steady &= reply.position == from;
        let end = match reply.cursor {
            Some(cursor) if cursor <= reading.start => {
                return FeedAction::End(Error::Malformed { cause: MalformedCause::StuckCursor });
            }
            Some(cursor) => Seq::new(cursor.get() - 1),
            None => Seq::new(u64::MAX),
        };
        let shown: BTreeSet<Seq> = reply.messages.iter().map(|message| message.seq).collect();
        let held = self.output.known_seqs(reading.start, end);
        reading.missing.extend(held.into_iter().filter(|seq| !shown.contains(seq)));
        for message in reply.messages {
            self.output.set(message, None);
        }
        if let Some(cursor) = reply.cursor {
            reading.start = cursor;
            self.reading = Some(reading);
            return self.ask(FeedQuery::Page(cursor), Duration::ZERO);
        }
        for seq in reading.missing {
            if !injected_bug!(RemovalNotEmitted) {
                self.output.remove(seq);
            }
        }
        if reading.is_steady {
            return self.caught_up(from, now, random);
        }
        self.seen = from;
        self.ask_changes(Duration::ZERO)
    }

    fn failed(&mut self, error: Error, random: u64) -> FeedAction {
        if is_final(&error) {
            return FeedAction::End(error);
        }
        self.failures = self.failures.saturating_add(1);
        self.ask(self.asked, pause(self.failures, random))
    }
}

impl FullRead {
    const fn from(from: Option<Position>) -> Self {
        Self { from, start: Seq::new(0), is_steady: true, missing: BTreeSet::new() }
    }
}

/// Whether a repeated query is useless. A query changes nothing, so one with an unknown outcome is repeated.
pub(crate) fn is_final(error: &Error) -> bool {
    error.retry() == RetryAdvice::Never && error.executed() == Executed::No
}

/// How long to wait after this many failures in a row.
pub(crate) fn pause(failures: u32, random: u64) -> Duration {
    let pause = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_PAUSE);
    pause + within(pause, random)
}

/// A duration below `most`.
fn within(most: Duration, random: u64) -> Duration {
    let most = u64::try_from(most.as_micros()).unwrap_or(u64::MAX).max(1);
    Duration::from_micros(random % most)
}

#[cfg(test)]
mod tests;
