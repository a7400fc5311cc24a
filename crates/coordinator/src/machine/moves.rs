//! Subjects on their way from one server to another.
//!
//! The owner is told to hand the subject over, again and again, until it has released it; the release gives the subject
//! to the target. Until then locate goes on naming the owner. What was planned by a rebalancing waits in line, so that
//! only so many subjects are on their way at once; what an operator asks for by name begins at once.
//!
//! Moves are not remembered over a restart: whoever wants one asks again.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use dormouse_protocol::admin::{HandOverOrder, MoveReply, MovesReply};
use dormouse_protocol::{ErrorReply, ProtocolVersion, ServerName, Subject};

use super::assignment::assign;
use super::draining::unknown;
use super::{Answer, AssignmentView, Effects, Machine, News};
use crate::lease::Lease;
use crate::store::Change;

/// Most moves that are under way or wait in line.
pub(super) const MOST_MOVES: usize = 10_000;

/// Most moves under way.
const MOST_UNDER_WAY: usize = 256;

/// So many moves of a rebalancing are under way at once.
const IN_LINE_AT_ONCE: usize = 32;

/// At most so many moves of a rebalancing begin per second.
const BEGUN_PER_SECOND: u32 = 50;

/// How long a server has to release a subject.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(30);

/// How often the order is given.
const ORDER_INTERVAL: Duration = Duration::from_secs(1);

/// After a busy subject has moved, it takes so long until what servers say about their load shows it.
const LOAD_SETTLES_WITHIN: Duration = Duration::from_secs(60);

/// When an operator is told to try again who wants more than there is room for, in milliseconds.
const RETRY_AFTER_MS: u64 = 1_000;

const _: () = assert!(IN_LINE_AT_ONCE < MOST_UNDER_WAY && MOST_UNDER_WAY < MOST_MOVES);

/// A move that is not over.
#[derive(Debug, Clone)]
pub(super) struct Move {
    pub(super) to: ServerName,
    /// Who had the subject when a rebalancing planned to move it.
    pub(super) from: Option<ServerName>,
    pub(super) requests_per_second: u64,
    stage: Stage,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    InLine,
    UnderWay { since: Duration, order_at: Duration },
}

/// The moves that are not over, and how many are.
#[derive(Debug, Default)]
pub(super) struct Moves {
    pub(super) table: BTreeMap<Subject, Move>,
    /// Subjects whose move waits in line; some may be under way or over by now.
    line: VecDeque<Subject>,
    under_way: usize,
    next_begins: Duration,
    /// Until then what servers say about their load may not show yet what has moved.
    load_settles: Duration,
    done: u64,
    given_up: u64,
}

/// What there is to do about a move.
enum Step {
    Wait,
    Order(HandOverOrder),
    Done(Option<Change>),
    GiveUp(&'static str),
}

impl Moves {
    /// Who shall have `subject`, if it is to be moved.
    pub(super) fn target(&self, subject: &Subject) -> Option<&ServerName> {
        self.table.get(subject).map(|entry| &entry.to)
    }

    /// How many more moves there is room for.
    pub(super) fn room(&self) -> usize {
        MOST_MOVES.saturating_sub(self.table.len())
    }

    /// Whether what servers say about their load can be relied on.
    pub(super) fn load_is_settled(&self, now: Duration) -> bool {
        now >= self.load_settles && self.table.values().all(|entry| entry.requests_per_second == 0)
    }

    /// Puts a move in line.
    pub(super) fn line_up(
        &mut self,
        subject: Subject,
        from: ServerName,
        to: ServerName,
        requests_per_second: u64,
    ) {
        self.line.push_back(subject.clone());
        let entry = Move { to, from: Some(from), requests_per_second, stage: Stage::InLine };
        self.table.insert(subject, entry);
    }

    fn begin(&mut self, subject: &Subject, now: Duration) {
        if let Some(entry) = self.table.get_mut(subject)
            && matches!(entry.stage, Stage::InLine)
        {
            entry.stage = Stage::UnderWay { since: now, order_at: now };
            self.under_way += 1;
        }
    }

    fn remove(&mut self, subject: &Subject) -> Option<Move> {
        let entry = self.table.remove(subject)?;
        self.under_way -= usize::from(matches!(entry.stage, Stage::UnderWay { .. }));
        Some(entry)
    }

    fn finish(&mut self, subject: &Subject, now: Duration) {
        if let Some(entry) = self.remove(subject) {
            self.done += 1;
            if entry.requests_per_second > 0 {
                self.load_settles = now + LOAD_SETTLES_WITHIN;
            }
        }
    }

    fn give_up(&mut self, subject: Subject, why: &'static str) -> Option<News> {
        let Move { to, .. } = self.remove(&subject)?;
        self.given_up += 1;
        Some(News::MoveGivenUp { subject, to, why })
    }

    fn under_way(&self) -> Vec<Subject> {
        let under_way = self.table.iter().filter(|(_, entry)| matches!(entry.stage, Stage::UnderWay { .. }));
        under_way.map(|(subject, _)| subject.clone()).collect()
    }
}

impl Machine {
    /// The subjects whose assignments a [`Tick`](super::Input::Tick) asks for.
    #[must_use]
    pub fn watched(&self) -> Vec<Subject> {
        let mut watched = if self.moves.under_way == 0 { Vec::new() } else { self.moves.under_way() };
        watched.extend(self.moves.line.iter().take(IN_LINE_AT_ONCE).cloned());
        watched
    }

    pub(super) fn move_subject(
        &mut self,
        subject: Subject,
        to: ServerName,
        now: Duration,
        view: &dyn AssignmentView,
    ) -> Effects {
        if let Some(error) = self.refused_as_target(&to) {
            return Effects::refuse(error);
        }
        let recorded = view.assignment(&subject);
        let reply = MoveReply { from: recorded.clone(), to: to.clone(), done: true };
        match &recorded {
            Some(server) if *server == to => {
                self.moves.finish(&subject, now);
                Effects::answer(Answer::Move(reply))
            }
            Some(server) if self.keeps_subjects(server) => {
                let is_new = !self.moves.table.contains_key(&subject);
                if self.moves.under_way >= MOST_UNDER_WAY || (is_new && self.moves.room() == 0) {
                    let text = "more subjects are being moved already than are moved at once";
                    return Effects::refuse(ErrorReply::overloaded(text, RETRY_AFTER_MS));
                }
                let fresh = Move { to: to.clone(), from: None, requests_per_second: 0, stage: Stage::InLine };
                self.moves.table.entry(subject.clone()).or_insert(fresh).to = to;
                self.moves.begin(&subject, now);
                let mut effects = Effects::answer(Answer::Move(MoveReply { done: false, ..reply }));
                self.step(subject, now, view, &mut effects);
                effects
            }
            // Nobody has it, or who had it is gone.
            _ => {
                self.moves.finish(&subject, now);
                Effects::answer(Answer::Move(reply)).with(assign(&subject, recorded, &to))
            }
        }
    }

    pub(super) fn moves(&self) -> Effects {
        let Moves { table, done, given_up, .. } = &self.moves;
        let reply = MovesReply { pending: table.len() as u64, done: *done, given_up: *given_up };
        Effects::answer(Answer::Moves(reply))
    }

    /// Who shall have `subject` now that `server` has released it, if it was to be moved.
    pub(super) fn moved_on(
        &mut self,
        subject: &Subject,
        server: &ServerName,
        now: Duration,
    ) -> Option<ServerName> {
        let target = self.moves.target(subject).filter(|target| *target != server)?.clone();
        if !self.takes_subjects(&target) {
            return None;
        }
        self.moves.finish(subject, now);
        Some(target)
    }

    /// Repeats orders, notices what is over, and begins what waits in line.
    pub(super) fn drive_moves(&mut self, now: Duration, view: &dyn AssignmentView, effects: &mut Effects) {
        if self.moves.table.is_empty() {
            self.moves.line.clear();
            return;
        }
        for subject in self.moves.under_way() {
            self.step(subject, now, view, effects);
        }
        let a_second_ago = now.saturating_sub(Duration::from_secs(1));
        self.moves.next_begins = self.moves.next_begins.max(a_second_ago);
        // What is not watched must not be begun: nobody has looked where it is.
        for _ in 0..IN_LINE_AT_ONCE {
            if self.moves.under_way >= IN_LINE_AT_ONCE || self.moves.next_begins > now {
                return;
            }
            let Some(subject) = self.moves.line.pop_front() else { return };
            let Some(entry) = self.moves.table.get(&subject) else { continue };
            if !matches!(entry.stage, Stage::InLine) {
                continue;
            }
            if entry.from != view.assignment(&subject) {
                effects
                    .news
                    .extend(self.moves.give_up(subject, "it is elsewhere than when the move was planned"));
                continue;
            }
            self.moves.next_begins += Duration::from_secs(1) / BEGUN_PER_SECOND;
            self.moves.begin(&subject, now);
            self.step(subject, now, view, effects);
        }
    }

    /// Does what there is to do about the move of `subject`.
    fn step(&mut self, subject: Subject, now: Duration, view: &dyn AssignmentView, effects: &mut Effects) {
        match self.next_step(&subject, now, view) {
            Step::Wait => {}
            Step::Order(order) => {
                if let Some(Move { stage: Stage::UnderWay { order_at, .. }, .. }) =
                    self.moves.table.get_mut(&subject)
                {
                    *order_at = now + ORDER_INTERVAL;
                }
                effects.orders.push(order);
            }
            Step::Done(change) => {
                self.moves.finish(&subject, now);
                effects.changes.extend(change);
            }
            Step::GiveUp(why) => effects.news.extend(self.moves.give_up(subject, why)),
        }
    }

    fn next_step(&self, subject: &Subject, now: Duration, view: &dyn AssignmentView) -> Step {
        let Some(Move { to, stage: Stage::UnderWay { since, order_at }, .. }) = self.moves.table.get(subject)
        else {
            return Step::Wait;
        };
        if !self.takes_subjects(to) {
            return Step::GiveUp("its target takes no subjects any more");
        }
        match view.assignment(subject) {
            Some(server) if server == *to => Step::Done(None),
            Some(server) if self.keeps_subjects(&server) => {
                if now >= *since + GIVEN_UP_AFTER {
                    return Step::GiveUp("its owner did not release it in time");
                }
                match self.members.get(&server) {
                    Some(owner) if now >= *order_at => Step::Order(HandOverOrder {
                        v: ProtocolVersion::CURRENT,
                        log: owner.record.log.clone(),
                        subject: subject.clone(),
                    }),
                    // A server that was forgotten and has not joined again yet: nobody knows its log.
                    Some(_) | None => Step::Wait,
                }
            }
            recorded => Step::Done(assign(subject, recorded, to)),
        }
    }

    fn refused_as_target(&self, server: &ServerName) -> Option<ErrorReply> {
        match self.members.get(server) {
            None => Some(unknown(server)),
            Some(member) if member.takes_subjects() => None,
            Some(member) => {
                let why = match member.lease {
                    _ if member.drains() => "is being drained",
                    Lease::Over => "is dead",
                    Lease::Inherited { .. } | Lease::Granted { .. } => {
                        "was not heard of since the coordinator started"
                    }
                };
                Some(ErrorReply::unavailable(format!("{server} takes no subjects: it {why}")))
            }
        }
    }
}
