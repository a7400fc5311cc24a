//! Moves of subjects from one server to another.
//!
//! The coordinator repeats the handover order until the owner has released the subject; the release assigns the subject
//! to the target. Until then locate returns the owner. Moves of a rebalancing are queued, so that the number of moves
//! under way is bounded. A single move ordered by an operator starts at once.
//!
//! Moves are not stored: after a restart of the coordinator, the operator must order them again.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use dormouse_protocol::admin::{HandOverOrder, MoveReply, MovesReply};
use dormouse_protocol::{ErrorReply, OverloadCause, ProtocolVersion, ServerName, Subject};

use super::assignment::assign;
use super::draining::unknown_name;
use super::{CoordinatorMachine, CoordinatorReply, Effects, OperatorEvent};
use crate::lease::GrantedLease;
use crate::store::{AssignmentView, StoreChange};

/// The maximum number of moves under way and queued together.
pub(super) const MOST_MOVES: usize = 10_000;

/// The maximum number of moves under way.
const MOST_UNDER_WAY: usize = 256;

/// Queued moves start only while fewer moves than this are under way.
const MOST_STARTED_FROM_QUEUE: usize = 32;

/// The maximum number of queued moves that start per second.
const STARTS_PER_SECOND: u32 = 50;

/// The time that a server has to release a subject.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(30);

/// The interval of the handover order.
const ORDER_INTERVAL: Duration = Duration::from_secs(1);

/// After a busy subject has moved, the reported loads show the change within this time.
const LOAD_SETTLES_WITHIN: Duration = Duration::from_secs(60);

const _: () = assert!(MOST_STARTED_FROM_QUEUE < MOST_UNDER_WAY && MOST_UNDER_WAY < MOST_MOVES);

/// A move that is not finished.
#[derive(Debug, Clone)]
pub(super) struct PendingMove {
    pub(super) to: ServerName,
    /// The server of the subject when a rebalancing planned the move.
    pub(super) from: Option<ServerName>,
    pub(super) requests_per_second: u64,
    stage: MoveStage,
}

#[derive(Debug, Clone, Copy)]
enum MoveStage {
    Queued,
    UnderWay { since: Duration, order_at: Duration },
}

/// The moves that are not finished, and the numbers of those that are.
#[derive(Debug, Default)]
pub(super) struct Moves {
    pub(super) table: BTreeMap<Subject, PendingMove>,
    /// Subjects with a queued move; some of these moves may be under way or finished by now.
    queue: VecDeque<Subject>,
    under_way: usize,
    next_start: Duration,
    /// Until then the reported loads may not show finished moves yet.
    load_settles: Duration,
    done: u64,
    given_up: u64,
}

/// The next step of a move.
enum MoveStep {
    Wait,
    Order(HandOverOrder),
    Done(Option<StoreChange>),
    GiveUp(&'static str),
}

impl Moves {
    /// The target of the pending move of `subject`, if there is one.
    pub(super) fn target(&self, subject: &Subject) -> Option<&ServerName> {
        self.table.get(subject).map(|entry| &entry.to)
    }

    /// How many more moves fit into the table.
    pub(super) fn room(&self) -> usize {
        MOST_MOVES.saturating_sub(self.table.len())
    }

    /// Whether the reported loads show all finished moves, and no move of a busy subject is pending.
    pub(super) fn load_is_settled(&self, now: Duration) -> bool {
        now >= self.load_settles && self.table.values().all(|entry| entry.requests_per_second == 0)
    }

    /// Queues a move.
    pub(super) fn enqueue(
        &mut self,
        subject: Subject,
        from: ServerName,
        to: ServerName,
        requests_per_second: u64,
    ) {
        self.queue.push_back(subject.clone());
        let entry = PendingMove { to, from: Some(from), requests_per_second, stage: MoveStage::Queued };
        self.table.insert(subject, entry);
    }

    fn begin(&mut self, subject: &Subject, now: Duration) {
        if let Some(entry) = self.table.get_mut(subject)
            && matches!(entry.stage, MoveStage::Queued)
        {
            entry.stage = MoveStage::UnderWay { since: now, order_at: now };
            self.under_way += 1;
        }
    }

    fn remove(&mut self, subject: &Subject) -> Option<PendingMove> {
        let entry = self.table.remove(subject)?;
        self.under_way -= usize::from(matches!(entry.stage, MoveStage::UnderWay { .. }));
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

    fn give_up(&mut self, subject: Subject, why: &'static str) -> Option<OperatorEvent> {
        let PendingMove { to, .. } = self.remove(&subject)?;
        self.given_up += 1;
        Some(OperatorEvent::MoveFailed { subject, to, why })
    }

    fn under_way(&self) -> Vec<Subject> {
        let under_way =
            self.table.iter().filter(|(_, entry)| matches!(entry.stage, MoveStage::UnderWay { .. }));
        under_way.map(|(subject, _)| subject.clone()).collect()
    }
}

impl CoordinatorMachine {
    /// The subjects whose assignments a [`Tick`](super::CoordinatorInput::Tick) reads.
    #[must_use]
    pub fn subjects_to_read(&self) -> Vec<Subject> {
        let mut subjects = if self.moves.under_way == 0 { Vec::new() } else { self.moves.under_way() };
        subjects.extend(self.moves.queue.iter().take(MOST_STARTED_FROM_QUEUE).cloned());
        subjects
    }

    pub(super) fn move_subject(
        &mut self,
        subject: Subject,
        to: ServerName,
        now: Duration,
        view: &dyn AssignmentView,
    ) -> Effects {
        if let Some(error) = self.reject_target(&to) {
            return Effects::refuse(error);
        }
        let recorded = view.assignment(&subject);
        let reply = MoveReply { from: recorded.clone(), to: to.clone(), done: true };
        match &recorded {
            Some(server) if *server == to => {
                self.moves.finish(&subject, now);
                Effects::answer(CoordinatorReply::Move(reply))
            }
            Some(server) if self.keeps_subjects(server) => {
                let is_new = !self.moves.table.contains_key(&subject);
                if self.moves.under_way >= MOST_UNDER_WAY || (is_new && self.moves.room() == 0) {
                    return Effects::refuse(OverloadCause::MovesUnderWay.into());
                }
                let fresh = PendingMove {
                    to: to.clone(),
                    from: None,
                    requests_per_second: 0,
                    stage: MoveStage::Queued,
                };
                self.moves.table.entry(subject.clone()).or_insert(fresh).to = to;
                self.moves.begin(&subject, now);
                let mut effects = Effects::answer(CoordinatorReply::Move(MoveReply { done: false, ..reply }));
                self.step(subject, now, view, &mut effects);
                effects
            }
            // The subject is not assigned, or its server is gone.
            _ => {
                self.moves.finish(&subject, now);
                Effects::answer(CoordinatorReply::Move(reply)).with(assign(&subject, recorded, &to))
            }
        }
    }

    pub(super) fn moves(&self) -> Effects {
        let Moves { table, done, given_up, .. } = &self.moves;
        let reply = MovesReply { pending: table.len() as u64, done: *done, given_up: *given_up };
        Effects::answer(CoordinatorReply::Moves(reply))
    }

    /// If a move of `subject` is pending, finishes it after the release by `server` and returns its target.
    pub(super) fn finish_move_on_release(
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

    /// Repeats orders, finishes or fails moves, and starts queued moves.
    pub(super) fn advance_moves(&mut self, now: Duration, view: &dyn AssignmentView, effects: &mut Effects) {
        if self.moves.table.is_empty() {
            self.moves.queue.clear();
            return;
        }
        for subject in self.moves.under_way() {
            self.step(subject, now, view, effects);
        }
        let a_second_ago = now.saturating_sub(Duration::from_secs(1));
        self.moves.next_start = self.moves.next_start.max(a_second_ago);
        // Only moves whose assignment was read ahead may start.
        for _ in 0..MOST_STARTED_FROM_QUEUE {
            if self.moves.under_way >= MOST_STARTED_FROM_QUEUE || self.moves.next_start > now {
                return;
            }
            let Some(subject) = self.moves.queue.pop_front() else { return };
            let Some(entry) = self.moves.table.get(&subject) else { continue };
            if !matches!(entry.stage, MoveStage::Queued) {
                continue;
            }
            if entry.from != view.assignment(&subject) {
                effects
                    .events
                    .extend(self.moves.give_up(subject, "subject is no longer at its planned source"));
                continue;
            }
            self.moves.next_start += Duration::from_secs(1) / STARTS_PER_SECOND;
            self.moves.begin(&subject, now);
            self.step(subject, now, view, effects);
        }
    }

    /// Executes the next step of the move of `subject`.
    fn step(&mut self, subject: Subject, now: Duration, view: &dyn AssignmentView, effects: &mut Effects) {
        match self.next_step(&subject, now, view) {
            MoveStep::Wait => {}
            MoveStep::Order(order) => {
                if let Some(PendingMove { stage: MoveStage::UnderWay { order_at, .. }, .. }) =
                    self.moves.table.get_mut(&subject)
                {
                    *order_at = now + ORDER_INTERVAL;
                }
                effects.orders.push(order);
            }
            MoveStep::Done(change) => {
                self.moves.finish(&subject, now);
                effects.changes.extend(change);
            }
            MoveStep::GiveUp(why) => effects.events.extend(self.moves.give_up(subject, why)),
        }
    }

    fn next_step(&self, subject: &Subject, now: Duration, view: &dyn AssignmentView) -> MoveStep {
        let Some(PendingMove { to, stage: MoveStage::UnderWay { since, order_at }, .. }) =
            self.moves.table.get(subject)
        else {
            return MoveStep::Wait;
        };
        if !self.takes_subjects(to) {
            return MoveStep::GiveUp("target takes no subjects any more");
        }
        match view.assignment(subject) {
            Some(server) if server == *to => MoveStep::Done(None),
            Some(server) if self.keeps_subjects(&server) => {
                if now >= *since + RELEASE_TIMEOUT {
                    return MoveStep::GiveUp("owner did not release the subject in time");
                }
                match self.members.get(&server) {
                    Some(owner) if now >= *order_at => MoveStep::Order(HandOverOrder {
                        v: ProtocolVersion::CURRENT,
                        log: owner.record.log.clone(),
                        subject: subject.clone(),
                    }),
                    // The coordinator forgot the server, and it has not joined again yet: its log is unknown.
                    Some(_) | None => MoveStep::Wait,
                }
            }
            recorded => MoveStep::Done(assign(subject, recorded, to)),
        }
    }

    fn reject_target(&self, server: &ServerName) -> Option<ErrorReply> {
        match self.members.get(server) {
            None => Some(unknown_name(server)),
            Some(member) if member.takes_subjects() => None,
            Some(member) => {
                let why = match member.lease {
                    _ if member.is_draining() => "is draining",
                    GrantedLease::Ended => "is dead",
                    GrantedLease::Inherited { .. } | GrantedLease::Granted { .. } => {
                        "has sent no heartbeat since the coordinator started"
                    }
                };
                Some(ErrorReply::unavailable(format!("{server} takes no subjects: it {why}")))
            }
        }
    }
}
