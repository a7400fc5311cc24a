//! What a feed does: a pure machine without clock, chance or I/O.
//!
//! It stands somewhere in the subject's history and listens. What comes next there is told; what comes out of order, or
//! may have come and was not heard, makes it ask what has changed since. Where no way leads from where it stands to
//! where the subject is, it reads everything, tells what differs from what the reader holds, and goes on from there.
//!
//! ```text
//!                 a hole, a loss, a server that is gone, a minute gone by
//!   listening ────────────────────────────────────────────────────────────► asking for changes
//!       ▲                                                                      │        │
//!       │  the last page of changes                                            │        │ resync
//!       ├──────────────────────────────────────────────────────────────────────┘        ▼
//!       │                                                                        reading everything
//!       └──────────────── nothing changed meanwhile; else: asking for changes ──────────┘
//! ```
//!
//! While it asks, events wait outside. Those that the answer has overtaken are old when they are looked at.

use std::collections::BTreeSet;
use std::time::Duration;

use dormouse_protocol::data::{ChangesReply, GetAllReply, InfoReply};
use dormouse_protocol::{Event, Happened, Position, Retry, Seq, Term};

use super::memory::Memory;
use super::splice::{Splice, splice};
use super::tell::{Teller, Told};
use super::{FeedFrom, FeedKeys};
use crate::error::{Error, MalformedCause};
use crate::mutations::{Mutation, is_there};

/// How long a feed that hears nothing alarming waits until it asks all the same; up to half as much again.
const CHECK_EVERY: Duration = Duration::from_secs(45);

/// Over how long the feeds of a subject spread their questions when all of them have missed the same.
const SPREAD_AFTER_LOSS: Duration = Duration::from_millis(100);

/// The same when the server of many subjects is gone.
const SPREAD_AFTER_GONE: Duration = Duration::from_millis(500);

/// The first pause after a question that failed; doubled each time, and as much again by chance.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause before chance.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a feed hears.
#[derive(Debug)]
pub(crate) enum Input {
    /// An event.
    Event(Event),
    /// Something may have been missed.
    Lost,
    /// The subject's server is gone.
    ServerGone,
    /// It is time to ask.
    Due,
    /// The answer to [`Question::Info`].
    Info(Box<InfoReply>),
    /// The answer to [`Question::Changes`].
    Changes(ChangesReply),
    /// The answer to [`Question::Page`].
    Page(GetAllReply),
    /// The question was not answered.
    Failed(Error),
}

/// What a feed asks of the subject's server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    /// Where the subject is, and its configuration.
    Info,
    /// What has changed since.
    Changes(Position),
    /// The messages it is about, from this seq on.
    Page(Seq),
}

/// What a feed does next, after it has told what there is to tell.
#[derive(Debug)]
pub(crate) enum Next {
    /// Ask, after a pause.
    Ask(Question, Duration),
    /// Listen, but no longer than until this time.
    Listen(Duration),
    /// Report the error and end.
    End(Error),
}

/// What an input leads to.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) tell: Vec<Told>,
    pub(crate) next: Next,
}

/// Everything is being read.
#[derive(Debug)]
struct Reading {
    /// From where to go on afterwards: what was known before the first page was read.
    from: Option<Position>,
    /// Where the next page starts.
    start: Seq,
    /// No page shows another state than the first.
    is_steady: bool,
    /// What the reader holds and no page had. Told in the end, since it may have moved on under its key.
    missing: BTreeSet<Seq>,
}

#[derive(Debug)]
pub(crate) struct Machine {
    teller: Teller,
    /// Whether it keeps track of what the reader holds, so that it can tell a difference.
    remembers: bool,
    seen: Position,
    reading: Option<Reading>,
    /// The term of the answers of which only all together make a state, once the first of them is here.
    ///
    /// What a page of changes leaves out, since a later change made it void, comes back when that change is lost with its
    /// server; and what a page of messages shows may be lost. Both leave the position where the page begins on the path: nobody
    /// would ever notice.
    pages_of: Option<Term>,
    /// What was asked last.
    asked: Question,
    /// How often in a row that failed.
    failures: u32,
    /// The reader is to be told when it has caught up.
    owes_mark: bool,
    /// When to ask, if nothing else happens before.
    check_at: Duration,
}

impl Machine {
    /// A feed that begins at `from`; [`FeedFrom::Now`] is where the subject was when the feed had just begun to listen.
    pub(crate) fn begin(keys: FeedKeys, from: FeedFrom) -> (Self, Step) {
        let remembers = from == FeedFrom::Beginning;
        let mut machine = Self {
            teller: Teller::new(keys, remembers.then(Memory::default)),
            remembers,
            seen: Position::default(),
            reading: None,
            pages_of: None,
            asked: Question::Info,
            failures: 0,
            owes_mark: true,
            check_at: Duration::ZERO,
        };
        let next = match from {
            FeedFrom::Beginning => machine.read_everything(None),
            FeedFrom::After(position) => {
                machine.seen = position;
                machine.ask(Question::Changes(position), Duration::ZERO)
            }
            FeedFrom::Now => machine.ask(Question::Info, Duration::ZERO),
        };
        (machine, Step { tell: Vec::new(), next })
    }

    /// Takes the next input. `luck` is any number.
    pub(crate) fn apply(&mut self, input: Input, now: Duration, luck: u64) -> Step {
        if !matches!(input, Input::Failed(_)) {
            self.failures = 0;
        }
        let next = match input {
            Input::Event(event) => self.event(event, luck),
            Input::Lost => self.ask_changes(within(SPREAD_AFTER_LOSS, luck)),
            Input::ServerGone => self.ask_changes(within(SPREAD_AFTER_GONE, luck)),
            Input::Due => self.ask_changes(Duration::ZERO),
            Input::Info(info) => self.info(*info, now, luck),
            Input::Changes(reply) => self.changes(reply, now, luck),
            Input::Page(reply) => self.page(reply, now, luck),
            Input::Failed(error) => self.failed(error, luck),
        };
        Step { tell: self.teller.take(), next }
    }

    const fn ask(&mut self, question: Question, pause: Duration) -> Next {
        self.asked = question;
        Next::Ask(question, pause)
    }

    const fn ask_changes(&mut self, pause: Duration) -> Next {
        self.ask(Question::Changes(self.seen), pause)
    }

    fn event(&mut self, event: Event, luck: u64) -> Next {
        let position = event.position();
        match splice(self.seen, event) {
            Splice::Old => {}
            Splice::Next(changes) => {
                self.seen = position;
                self.teller.event(changes, position);
            }
            Splice::Hole => return self.ask_changes(within(SPREAD_AFTER_LOSS, luck)),
        }
        Next::Listen(self.check_at)
    }

    /// The reader has everything up to `position`.
    fn caught_up(&mut self, position: Position, now: Duration, luck: u64) -> Next {
        self.seen = position;
        self.pages_of = None;
        if std::mem::take(&mut self.owes_mark) {
            self.teller.caught_up(position);
        } else {
            self.teller.reached(position);
        }
        if !self.remembers {
            self.teller.forget();
        }
        self.check_at = now + CHECK_EVERY + within(CHECK_EVERY / 2, luck);
        Next::Listen(self.check_at)
    }

    fn info(&mut self, info: InfoReply, now: Duration, luck: u64) -> Next {
        if self.reading.is_none() {
            return self.caught_up(info.position, now, luck);
        }
        self.teller.configured(info.config);
        self.pages_of = Some(info.position.term);
        self.read_everything(Some(info.position))
    }

    fn changes(&mut self, reply: ChangesReply, now: Duration, luck: u64) -> Next {
        if reply.resync || !self.belongs(reply.position.term) {
            return self.begin_anew();
        }
        for change in reply.changes {
            self.teller.change(change);
        }
        self.owes_mark |= self.teller.has_told();
        if !reply.more {
            return self.caught_up(reply.position, now, luck);
        }
        if reply.position <= self.seen {
            return Next::End(Error::Malformed { cause: MalformedCause::StuckCursor });
        }
        self.seen = reply.position;
        self.ask_changes(Duration::ZERO)
    }

    /// Whether an answer of `term` goes with the pages before it.
    fn belongs(&mut self, term: Term) -> bool {
        *self.pages_of.get_or_insert(term) == term
    }

    /// No way leads on from here, or none that is sure.
    fn begin_anew(&mut self) -> Next {
        self.owes_mark = true;
        self.pages_of = None;
        self.teller.begin_anew();
        if *self.teller.keys() != FeedKeys::All {
            return self.read_everything(None);
        }
        // The configuration may have changed as well.
        self.reading = Some(Reading::from(None));
        self.ask(Question::Info, Duration::ZERO)
    }

    /// Begins to read everything there is; to go on `from` there afterwards, if that is known already.
    fn read_everything(&mut self, from: Option<Position>) -> Next {
        self.reading = Some(Reading::from(from));
        self.ask(Question::Page(Seq::new(0)), Duration::ZERO)
    }

    fn page(&mut self, reply: GetAllReply, now: Duration, luck: u64) -> Next {
        let mut reading = self.reading.take().unwrap_or(Reading::from(None));
        if !self.belongs(reply.position.term) {
            return self.begin_anew();
        }
        let from = *reading.from.get_or_insert(reply.position);
        reading.is_steady &= reply.position == from;
        let end = match reply.cursor {
            Some(cursor) if cursor <= reading.start => {
                return Next::End(Error::Malformed { cause: MalformedCause::StuckCursor });
            }
            Some(cursor) => Seq::new(cursor.get() - 1),
            None => Seq::new(u64::MAX),
        };
        let shown: BTreeSet<Seq> = reply.messages.iter().map(|message| message.seq).collect();
        let held = self.teller.held(reading.start, end);
        reading.missing.extend(held.into_iter().filter(|seq| !shown.contains(seq)));
        for message in reply.messages {
            self.teller.set(message, None);
        }
        if let Some(cursor) = reply.cursor {
            reading.start = cursor;
            self.reading = Some(reading);
            return self.ask(Question::Page(cursor), Duration::ZERO);
        }
        for seq in reading.missing {
            if !is_there(Mutation::DifferenceUntold) {
                self.teller.remove(seq);
            }
        }
        if reading.is_steady {
            return self.caught_up(from, now, luck);
        }
        self.seen = from;
        self.ask_changes(Duration::ZERO)
    }

    fn failed(&mut self, error: Error, luck: u64) -> Next {
        if is_final(&error) {
            return Next::End(error);
        }
        self.failures = self.failures.saturating_add(1);
        self.ask(self.asked, pause(self.failures, luck))
    }
}

impl Reading {
    const fn from(from: Option<Position>) -> Self {
        Self { from, start: Seq::new(0), is_steady: true, missing: BTreeSet::new() }
    }
}

/// Whether asking again is of no use. A question changes nothing, so one whose outcome is not known is asked again.
pub(crate) fn is_final(error: &Error) -> bool {
    error.retry() == Retry::Never && error.happened() == Happened::No
}

/// How long to wait after this many failures in a row.
pub(crate) fn pause(failures: u32, luck: u64) -> Duration {
    let pause = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_PAUSE);
    pause + within(pause, luck)
}

/// Some time below `most`.
fn within(most: Duration, luck: u64) -> Duration {
    let most = u64::try_from(most.as_micros()).unwrap_or(u64::MAX).max(1);
    Duration::from_micros(luck % most)
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
