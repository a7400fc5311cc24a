//! Which subjects are handed over, and when: a pure machine without clock, chance or I/O.
//!
//! There are three reasons: the coordinator orders one subject to be handed over; an operator wants the server emptied;
//! the process is to end. In each case the rest is served meanwhile, so only a few subjects are under way at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use dormouse_protocol::Subject;

/// Subjects under way at a time.
const AT_ONCE: usize = 8;
/// The same for a process that is to end.
const AT_ONCE_AT_THE_END: usize = 16;
/// The pause between two that begin: it leaves the bucket to those who are served. A process that is to end takes none.
const PAUSE: Duration = Duration::from_millis(10);
/// How often it is looked which subjects are open while the server is being emptied.
const LOOK: Duration = Duration::from_millis(200);
/// For how long nothing must have been open before the server counts as empty.
const QUIET: Duration = Duration::from_secs(1);
/// For how long a subject rests that could not be handed over.
const REST: Duration = Duration::from_secs(1);
/// Orders that wait at most. The coordinator repeats those that find no room.
const MOST_ORDERS: usize = 1_024;

/// What is wanted of the server as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wish {
    /// Serve.
    #[default]
    Serve,
    /// Hand over everything that is open, and what is opened from now on.
    Empty,
    /// Hand over everything that is open, each once: the process is to end. What is opened again after that is so because
    /// nobody else can have it.
    End,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MovingInput {
    /// Time has passed.
    Tick,
    /// Something else is wanted.
    Wish(Wish),
    /// The coordinator orders this subject to be handed over.
    Order(Subject),
    /// The answer to [`MovingEffect::Look`]: these are open.
    Open(Vec<Subject>),
    /// The answer to [`MovingEffect::HandOver`].
    Done {
        /// The subject.
        subject: Subject,
        /// Whether it is not here any more.
        gone: bool,
    },
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MovingEffect {
    /// Look which subjects are open.
    Look,
    /// Hand this subject over.
    HandOver(Subject),
    /// Nothing is left to hand over. Said again only after something was.
    Empty,
}

/// The machine. Times are those of [`Env::boot`](dormouse_runtime::Env::boot).
#[derive(Debug, Default)]
pub struct Moving {
    wish: Wish,
    under_way: BTreeSet<Subject>,
    ordered: VecDeque<Subject>,
    /// Found open by the last look.
    found: VecDeque<Subject>,
    /// Could not be handed over, and until when they rest.
    resting: BTreeMap<Subject, Duration>,
    /// Handed over since the process is to end.
    done: BTreeSet<Subject>,
    look_at: Duration,
    begin_at: Duration,
    quiet_since: Option<Duration>,
    is_empty: bool,
}

impl Moving {
    /// When the machine wants its next [`MovingInput::Tick`], if time alone can bring it forward.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        let begins = (self.waiting() > 0 && self.has_room()).then_some(self.begin_at);
        let looks = (self.wish != Wish::Serve && self.found.is_empty()).then_some(self.look_at);
        begins.into_iter().chain(looks).min()
    }

    /// Takes one input at time `now` and says what to do, in order. Nothing is begun unless `may_begin`: without the
    /// coordinator nobody else could have the subject.
    pub fn apply(&mut self, input: MovingInput, now: Duration, may_begin: bool) -> Vec<MovingEffect> {
        let mut effects = Vec::new();
        match input {
            MovingInput::Tick => {}
            MovingInput::Wish(wish) => self.wished(wish, now),
            MovingInput::Order(subject) => {
                let known = self.under_way.contains(&subject) || self.ordered.contains(&subject);
                // An order that cannot be carried out soon is not kept: the coordinator repeats those that still count.
                if may_begin && !known && self.ordered.len() < MOST_ORDERS {
                    self.ordered.push_back(subject);
                }
            }
            MovingInput::Open(open) => self.looked(open, now, &mut effects),
            MovingInput::Done { subject, gone } => self.ended(subject, gone, now),
        }
        self.begin_what_may(now, may_begin, &mut effects);
        if self.wish != Wish::Serve && self.found.is_empty() && self.look_at <= now {
            self.look_at = now + LOOK;
            effects.push(MovingEffect::Look);
        }
        effects
    }

    fn wished(&mut self, wish: Wish, now: Duration) {
        // Whoever is to end is not called back.
        if self.wish == Wish::End || self.wish == wish {
            return;
        }
        self.wish = wish;
        self.found.clear();
        self.resting.clear();
        self.quiet_since = None;
        self.is_empty = false;
        self.look_at = now;
    }

    fn looked(&mut self, open: Vec<Subject>, now: Duration, effects: &mut Vec<MovingEffect>) {
        if self.wish == Wish::Serve {
            return;
        }
        self.resting.retain(|_, until| *until > now);
        let is_to_go = |subject: &Subject| self.wish != Wish::End || !self.done.contains(subject);
        let to_go: Vec<_> = open.into_iter().filter(is_to_go).collect();
        let is_quiet = to_go.is_empty() && self.under_way.is_empty() && self.ordered.is_empty();
        let is_free = |subject: &Subject| {
            !self.under_way.contains(subject)
                && !self.resting.contains_key(subject)
                && !self.ordered.contains(subject)
        };
        self.found = to_go.into_iter().filter(is_free).collect();
        if !is_quiet {
            self.quiet_since = None;
            self.is_empty = false;
            return;
        }
        let since = *self.quiet_since.get_or_insert(now);
        // Who is to end does not wait for what may come.
        let is_empty = self.wish == Wish::End || now.saturating_sub(since) >= QUIET;
        if is_empty && !std::mem::replace(&mut self.is_empty, true) {
            effects.push(MovingEffect::Empty);
        }
    }

    fn ended(&mut self, subject: Subject, gone: bool, now: Duration) {
        self.under_way.remove(&subject);
        if self.wish == Wish::Serve {
            return;
        }
        if !gone {
            self.resting.insert(subject, now + REST);
        } else if self.wish == Wish::End {
            self.done.insert(subject);
        }
        if self.waiting() == 0 && self.under_way.is_empty() {
            self.look_at = now;
        }
    }

    fn begin_what_may(&mut self, now: Duration, may_begin: bool, effects: &mut Vec<MovingEffect>) {
        while self.waiting() > 0 && self.has_room() && self.begin_at <= now {
            if !may_begin {
                self.begin_at = now + LOOK;
                return;
            }
            let Some(subject) = self.ordered.pop_front().or_else(|| self.found.pop_front()) else { return };
            self.under_way.insert(subject.clone());
            effects.push(MovingEffect::HandOver(subject));
            if self.wish != Wish::End {
                self.begin_at = now + PAUSE;
            }
        }
    }

    fn waiting(&self) -> usize {
        self.ordered.len() + self.found.len()
    }

    fn has_room(&self) -> bool {
        self.under_way.len() < if self.wish == Wish::End { AT_ONCE_AT_THE_END } else { AT_ONCE }
    }
}

#[cfg(test)]
#[path = "moving_tests.rs"]
mod tests;
