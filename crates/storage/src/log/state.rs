//! The books of a log: what is accepted, written, in flight, still needed, and who waits for what.
//!
//! All changes of stage happen here, under one lock, so that "acknowledged", "failed" and "shipped" are decided in one
//! order for everybody.

mod end;
mod pending;

pub(super) use end::{Ending, taken_over};

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::{ErrorReply, Level, Rev, Slot, Subject};
use tokio::sync::oneshot;

use super::handle::{Shared, Wakers};
use super::owner::{Owner, OwnerEffect, OwnerInput, PutOutcome, ReadNumber};
use super::pace::{Decision, Pace, Waiting};
use super::tails::Tails;
use super::{Append, LogEnd, LogFigures, LogSettings, Stage, Ticket};
use crate::wal::{Lsn, WalAppend};
use pending::{Pending, cost_of};

/// What a segment holds at most: it must be small enough to be read back whole.
const MAX_SEGMENT_COST: u64 = 24 << 20;

/// What a group of the write-ahead log holds at most.
const MAX_GROUP_COST: u64 = 16 << 20;

/// How long nothing is written to a disk that was full.
const FULL_DISK_PAUSE: Duration = Duration::from_millis(500);

pub(super) struct State {
    pub(super) owner: Owner,
    pub(super) tails: Tails<Subject>,
    /// Who waits for a barrier, by arrival.
    pub(super) readers: VecDeque<(ReadNumber, oneshot::Sender<Result<(), ErrorReply>>)>,
    /// What the next look is at.
    pub(super) probe: Option<Slot>,
    /// Slots to be deleted, each range half open.
    pub(super) doomed_slots: VecDeque<(Slot, Slot)>,
    /// What the write-ahead log is to be told: everything up to here is in a slot up to this one.
    pub(super) marker: Option<(Lsn, Slot)>,
    /// Appends that must be marked as failed before their writers may be told so.
    pub(super) to_mark_failed: Vec<(Lsn, Arc<Ticket>)>,
    /// The segment that the ship task is to create.
    pub(super) departing: Option<Segment>,
    pub(super) end: Option<LogEnd>,
    ending: Arc<Ending>,
    pace: Pace,
    last: Lsn,
    /// Accepted, not yet on the local disk.
    queue: VecDeque<Pending>,
    /// Being written to the local disk.
    group: Vec<Pending>,
    /// May go into a segment.
    written: VecDeque<Pending>,
    /// In the segment in flight.
    in_flight: Vec<Pending>,
    /// Written and not synced.
    unsynced: Vec<Arc<Ticket>>,
    unshipped_cost: u64,
    written_cost: u64,
    /// Appends in `written` that somebody waits for.
    written_wanted: usize,
    /// Everything up to here was asked to be shipped.
    wanted_through: Lsn,
    /// Appends that were acknowledged and could not be written to the full local disk: they are shipped without it.
    off_disk: usize,
    /// The disk was full, and is not tried again before this.
    full_until: Option<Duration>,
    /// Subjects with a failed append: the rev before the first that failed.
    broken: HashMap<Subject, Rev>,
    stopping: bool,
    figures: LogFigures,
}

/// What goes into one slot.
pub(super) struct Segment {
    pub(super) slot: Slot,
    pub(super) appends: Vec<Append>,
}

impl State {
    pub(super) fn new(settings: &LogSettings, ending: Arc<Ending>) -> Self {
        Self {
            owner: Owner::new(Slot::new(1)),
            tails: Tails::new(),
            readers: VecDeque::new(),
            probe: None,
            doomed_slots: VecDeque::new(),
            marker: None,
            to_mark_failed: Vec::new(),
            departing: None,
            end: None,
            ending,
            pace: Pace::new(settings),
            last: Lsn::ZERO,
            queue: VecDeque::new(),
            group: Vec::new(),
            written: VecDeque::new(),
            in_flight: Vec::new(),
            unsynced: Vec::new(),
            unshipped_cost: 0,
            written_cost: 0,
            written_wanted: 0,
            wanted_through: Lsn::ZERO,
            off_disk: 0,
            full_until: None,
            broken: HashMap::new(),
            stopping: false,
            figures: LogFigures::default(),
        }
    }

    pub(super) fn append(
        &mut self,
        append: Append,
        settings: &LogSettings,
        now: Duration,
    ) -> Result<Arc<Ticket>, ErrorReply> {
        self.refuse_if_ended()?;
        if self.stopping {
            return Err(ErrorReply::unavailable("this server is being stopped"));
        }
        if self.off_disk > 0 || self.full_until.is_some_and(|until| now < until) {
            return Err(disk_is_full());
        }
        let cost = cost_of(&append);
        if self.unshipped_cost > 0 && self.unshipped_cost + cost > settings.max_unshipped_bytes {
            let wait = settings.ship_interval.clamp(Duration::from_millis(50), Duration::from_secs(5));
            let why = "too much waits to be written to the bucket";
            return Err(ErrorReply::overloaded(why, u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)));
        }
        match self.broken.get(&append.subject) {
            Some(before) if append.first_after > *before => {
                return Err(ErrorReply::unavailable("a write before this one failed"));
            }
            Some(_) => {
                self.broken.remove(&append.subject);
            }
            None => {}
        }
        self.last = self.last.next();
        self.unshipped_cost += cost;
        let ticket = Ticket::new(Arc::clone(&append.waker));
        let pending =
            Pending { lsn: self.last, append, ticket: Arc::clone(&ticket), at: now, cost, on_disk: false };
        self.queue.push_back(pending);
        Ok(ticket)
    }

    /// A new life of the subject begins: what failed in one before was of another path.
    pub(super) fn opened(&mut self, subject: &Subject) {
        self.broken.remove(subject);
    }

    /// The last append of the subject that is on its way.
    pub(super) fn last_unshipped(&self, subject: &Subject) -> Option<Lsn> {
        let waiting = self.in_flight.iter().chain(&self.written).chain(&self.group).chain(&self.queue);
        let mut latest_first = waiting.rev().filter(|_| self.end.is_none());
        latest_first.find(|pending| pending.append.subject == *subject).map(|pending| pending.lsn)
    }

    /// Whether no append up to this one is on its way any more.
    pub(super) fn is_settled_through(&self, last: Lsn) -> bool {
        self.end.is_some() || self.oldest_unshipped().is_none_or(|oldest| oldest.lsn > last)
    }

    fn oldest_unshipped(&self) -> Option<&Pending> {
        let first = self.in_flight.first().or_else(|| self.written.front()).or_else(|| self.group.first());
        first.or_else(|| self.queue.front())
    }

    pub(super) fn want_all(&mut self) {
        self.wanted_through = self.last;
    }

    /// Takes what is to be written to the local disk next, and whether somebody waits for it to be synced.
    pub(super) fn take_group(&mut self, now: Duration) -> Option<(Vec<WalAppend>, bool)> {
        if self.queue.is_empty() || self.full_until.is_some_and(|until| now < until) {
            return None;
        }
        debug_assert!(self.group.is_empty(), "two groups at once");
        let mut cost = 0;
        while let Some(next) = self.queue.front() {
            if cost > 0 && cost + next.cost > MAX_GROUP_COST {
                break;
            }
            cost += next.cost;
            self.group.extend(self.queue.pop_front());
        }
        let sync = self.group.iter().any(|pending| pending.append.level == Level::Disk);
        Some((self.group.iter().map(Pending::for_wal).collect(), sync))
    }

    /// The group is on the local disk.
    pub(super) fn group_written(&mut self) {
        self.full_until = None;
        if self.end.is_some() {
            self.group.clear();
            return;
        }
        for mut pending in std::mem::take(&mut self.group) {
            pending.on_disk = true;
            pending.ticket.advance(Stage::Written);
            self.unsynced.push(Arc::clone(&pending.ticket));
            self.push_written(pending);
        }
    }

    /// Everything that was written is synced.
    pub(super) fn synced(&mut self) {
        self.figures.syncs += 1;
        for ticket in self.unsynced.drain(..) {
            ticket.advance(Stage::Synced);
        }
    }

    /// The group did not fit on the local disk, and none of it is there. What was acknowledged already is kept and
    /// shipped without the disk; the rest fails, with everything of the same subjects that was accepted after it.
    pub(super) fn group_refused(&mut self, failure: &ErrorReply, now: Duration, wakers: &Wakers) {
        self.full_until = Some(now + FULL_DISK_PAUSE);
        let group = std::mem::take(&mut self.group);
        let queue = std::mem::take(&mut self.queue);
        if self.end.is_some() {
            return;
        }
        for pending in group.into_iter().chain(queue) {
            if pending.ticket.fail(failure) {
                self.unshipped_cost -= pending.cost;
                self.broken.entry(pending.append.subject).or_insert(pending.append.first_after);
            } else {
                self.off_disk += 1;
                self.push_written(pending);
            }
        }
        self.end_if_stopped();
        wakers.progress.notify_waiters();
    }

    /// When the disk may be tried again, if it was full.
    pub(super) const fn full_until(&self) -> Option<Duration> {
        self.full_until
    }

    pub(super) fn has_queue(&self) -> bool {
        !self.queue.is_empty()
    }

    fn push_written(&mut self, pending: Pending) {
        self.written_cost += pending.cost;
        self.written_wanted += usize::from(pending.is_wanted());
        self.written.push_back(pending);
    }

    /// When to ship what waits. With a segment in flight the question comes again when that is definite.
    pub(super) fn decide(&self, now: Duration) -> Decision {
        let waiting = Waiting {
            bytes: self.written_cost,
            oldest: self.written.front().map(|pending| pending.at),
            is_wanted: self.written_wanted > 0
                || self.written.front().is_some_and(|pending| pending.lsn <= self.wanted_through),
        };
        self.pace.decide(&waiting, now)
    }

    /// Tells the owner's machine something and carries out what it says.
    pub(super) fn tell(&mut self, input: OwnerInput, shared: &Shared) {
        let effects = self.owner.apply(input);
        self.perform(effects, shared);
    }

    pub(super) fn perform(&mut self, effects: Vec<OwnerEffect>, shared: &Shared) {
        for effect in effects {
            match effect {
                OwnerEffect::Put { slot } => {
                    self.pace.shipping(shared.env.boot());
                    self.departing = Some(self.take_segment(slot));
                    shared.wakers.ship.notify_one();
                }
                OwnerEffect::Landed { slot } => self.landed(slot, shared.env.boot(), &shared.wakers),
                OwnerEffect::Probe { slot } => {
                    self.figures.probes += 1;
                    self.probe = Some(slot);
                    shared.wakers.look.notify_one();
                }
                OwnerEffect::Proven { through } => self.answer_readers(through),
                OwnerEffect::Delete { from, to } => {
                    match self.doomed_slots.back_mut() {
                        Some(last) if last.1 == from => last.1 = to,
                        _ => self.doomed_slots.push_back((from, to)),
                    }
                    shared.wakers.trim.notify_one();
                }
                OwnerEffect::End => self.sealed(&shared.wakers),
            }
        }
    }

    fn take_segment(&mut self, slot: Slot) -> Segment {
        let mut cost = 0;
        while let Some(next) = self.written.front() {
            if cost > 0 && cost + next.cost > MAX_SEGMENT_COST {
                break;
            }
            cost += next.cost;
            self.written_wanted -= usize::from(next.is_wanted());
            self.in_flight.extend(self.written.pop_front());
        }
        self.written_cost -= cost;
        let appends = self.in_flight.iter().map(|pending| pending.append.clone()).collect();
        Segment { slot, appends }
    }

    /// The segment in flight is in the bucket; it has this many bytes.
    pub(super) fn shipped(&mut self, bytes: u64, shared: &Shared) {
        if self.end.is_some() {
            return;
        }
        self.figures.segments += 1;
        self.figures.segment_bytes += bytes;
        let was_held = self.unshipped_age(shared.env.boot()) > shared.settings.max_unshipped_age;
        let ready = self.decide(shared.env.boot()) == Decision::Now;
        self.tell(OwnerInput::Put { outcome: PutOutcome::Ours, ready }, shared);
        self.trim(shared);
        if was_held {
            self.wake_waiting();
        }
    }

    fn landed(&mut self, slot: Slot, now: Duration, wakers: &Wakers) {
        for pending in std::mem::take(&mut self.in_flight) {
            let shipped = pending.shipped_in(slot, now);
            self.figures.entries += shipped.entries;
            self.tails.shipped(&pending.append.subject, shipped);
            self.unshipped_cost -= pending.cost;
            self.off_disk -= usize::from(!pending.on_disk);
            self.marker = Some((pending.lsn, slot));
            pending.ticket.shipped(slot);
        }
        self.end_if_stopped();
        wakers.disk.notify_one();
        wakers.progress.notify_waiters();
    }

    fn answer_readers(&mut self, through: ReadNumber) {
        while let Some((number, reader)) = self.readers.pop_front() {
            if number > through {
                self.readers.push_front((number, reader));
                break;
            }
            // Whoever has stopped waiting needs no answer.
            let _ = reader.send(Ok(()));
        }
    }

    /// Gives up the slots that nobody needs.
    pub(super) fn trim(&mut self, shared: &Shared) {
        let next = self.owner.next_slot();
        let below = self.tails.lowest_needed().unwrap_or(next);
        self.tell(OwnerInput::Unneeded { below }, shared);
    }

    /// The next slot to be deleted.
    pub(super) fn take_doomed_slot(&mut self) -> Option<Slot> {
        while let Some((from, to)) = self.doomed_slots.pop_front() {
            if from < to {
                self.doomed_slots.push_front((from.next(), to));
                return Some(from);
            }
        }
        None
    }

    /// How long the oldest write has waited to be shipped.
    pub(super) fn unshipped_age(&self, now: Duration) -> Duration {
        self.oldest_unshipped().map_or(Duration::ZERO, |pending| now.saturating_sub(pending.at))
    }

    /// Has everybody look again who may have waited for weaker levels to be let go.
    fn wake_waiting(&self) {
        for pending in self.group.iter().chain(&self.written).chain(&self.in_flight).chain(&self.queue) {
            pending.ticket.wake();
        }
    }

    pub(super) fn figures(&self, now: Duration) -> LogFigures {
        LogFigures {
            unshipped_bytes: self.unshipped_cost,
            unshipped_age: self.unshipped_age(now),
            slots: self.owner.next_slot().get() - self.owner.trimmed().get(),
            tails: self.tails.len() as u64,
            ..self.figures
        }
    }
}

fn disk_is_full() -> ErrorReply {
    ErrorReply::unavailable("this server's local disk is full")
}
