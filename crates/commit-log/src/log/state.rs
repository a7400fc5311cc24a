//! State of a log: which entries are accepted, written, in flight and still needed, and which callers wait.
//!
//! All stage changes happen here, under one lock, so "acknowledged", "failed" and "shipped" have one global order.

mod end;
mod pending;

pub(super) use end::{EndSignal, taken_over};

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::{ErrorReply, Level, OverloadCause, Rev, Slot, Subject};
use tokio::sync::oneshot;

use super::handle::{LogShared, Wakers};
use super::owner::{LogOwner, OwnerEffect, OwnerInput, PutOutcome, ReadNumber};
use super::ship_schedule::{FlushDecision, ShipSchedule, Unshipped};
use super::slot_sizes::SlotSizes;
use super::tails::Tails;
use super::upload_rate::UploadRate;
use super::{Append, AppendProgress, DurabilityStage, LogEnd, LogMetrics, LogSettings};
use crate::wal::{Lsn, WalAppend};
use pending::{PendingAppend, cost_of};

/// Maximum cost of a write-ahead log group.
const MAX_GROUP_COST: u64 = 16 << 20;

/// Pause in WAL writes after a full disk.
const FULL_DISK_PAUSE: Duration = Duration::from_millis(500);

pub(super) struct LogState {
    pub(super) owner: LogOwner,
    pub(super) tails: Tails<Subject>,
    pub(super) slot_sizes: SlotSizes,
    /// Reads that wait for a barrier, by arrival.
    pub(super) readers: VecDeque<(ReadNumber, oneshot::Sender<Result<(), ErrorReply>>)>,
    /// The slot that the next probe reads.
    pub(super) probe: Option<Slot>,
    /// Slots to be deleted, each range half open.
    pub(super) trimmable_slots: VecDeque<(Slot, Slot)>,
    /// The shipped position to record in the write-ahead log: everything up to this LSN is in a slot up to this one.
    pub(super) marker: Option<(Lsn, Slot)>,
    /// Appends that must be recorded as failed before their writers get the error.
    pub(super) to_mark_failed: Vec<(Lsn, Arc<AppendProgress>)>,
    /// The segment that the ship task creates next.
    pub(super) segment_to_ship: Option<Segment>,
    pub(super) end: Option<LogEnd>,
    ending: Arc<EndSignal>,
    schedule: ShipSchedule,
    pub(super) upload_rate: UploadRate,
    last: Lsn,
    /// Accepted, not yet in the WAL.
    queue: VecDeque<PendingAppend>,
    /// Being written to the WAL.
    group: Vec<PendingAppend>,
    /// May go into a segment.
    written: VecDeque<PendingAppend>,
    /// In the segment in flight.
    in_flight: Vec<PendingAppend>,
    /// Written and not synced.
    unsynced: Vec<Arc<AppendProgress>>,
    unshipped_cost: u64,
    written_cost: u64,
    /// Appends in `written` whose writers wait for the segment.
    written_awaited: usize,
    /// A ship request covers everything up to here.
    ship_requested_through: Lsn,
    /// Appends that were acknowledged and did not fit on the full local disk: they are shipped without it.
    off_disk: usize,
    /// The disk was full; no write is tried before this instant.
    full_until: Option<Duration>,
    /// Subjects with a failed append: the rev before the first that failed.
    failed_subjects: HashMap<Subject, Rev>,
    stopping: bool,
    metrics: LogMetrics,
}

/// The content of one slot.
pub(super) struct Segment {
    pub(super) slot: Slot,
    pub(super) appends: Vec<Append>,
}

impl LogState {
    pub(super) fn new(settings: &LogSettings, ending: Arc<EndSignal>) -> Self {
        Self {
            owner: LogOwner::new(Slot::new(1)),
            tails: Tails::new(),
            slot_sizes: SlotSizes::new(),
            readers: VecDeque::new(),
            probe: None,
            trimmable_slots: VecDeque::new(),
            marker: None,
            to_mark_failed: Vec::new(),
            segment_to_ship: None,
            end: None,
            ending,
            schedule: ShipSchedule::new(settings),
            upload_rate: UploadRate::new(),
            last: Lsn::ZERO,
            queue: VecDeque::new(),
            group: Vec::new(),
            written: VecDeque::new(),
            in_flight: Vec::new(),
            unsynced: Vec::new(),
            unshipped_cost: 0,
            written_cost: 0,
            written_awaited: 0,
            ship_requested_through: Lsn::ZERO,
            off_disk: 0,
            full_until: None,
            failed_subjects: HashMap::new(),
            stopping: false,
            metrics: LogMetrics::default(),
        }
    }

    pub(super) fn append(
        &mut self,
        append: Append,
        settings: &LogSettings,
        now: Duration,
    ) -> Result<Arc<AppendProgress>, ErrorReply> {
        self.refuse_if_ended()?;
        if self.stopping {
            return Err(ErrorReply::unavailable("server is shutting down"));
        }
        if self.off_disk > 0 || self.full_until.is_some_and(|until| now < until) {
            return Err(disk_is_full());
        }
        let cost = cost_of(&append);
        if self.unshipped_cost > 0 && self.unshipped_cost + cost > settings.max_unshipped_bytes {
            return Err(OverloadCause::UnshippedBytes { ship_interval: settings.ship_interval }.into());
        }
        match self.failed_subjects.get(&append.subject) {
            Some(before) if append.first_after > *before => {
                return Err(ErrorReply::unavailable("an earlier write of the subject failed"));
            }
            Some(_) => {
                self.failed_subjects.remove(&append.subject);
            }
            None => {}
        }
        self.last = self.last.next();
        self.unshipped_cost += cost;
        let progress = AppendProgress::new(Arc::clone(&append.waker));
        let pending = PendingAppend {
            lsn: self.last,
            append,
            progress: Arc::clone(&progress),
            at: now,
            cost,
            on_disk: false,
        };
        self.queue.push_back(pending);
        Ok(progress)
    }

    /// The subject is opened again: earlier failures do not affect its new sequence of appends.
    pub(super) fn opened(&mut self, subject: &Subject) {
        self.failed_subjects.remove(subject);
    }

    /// The subject's last unshipped append.
    pub(super) fn last_unshipped(&self, subject: &Subject) -> Option<Lsn> {
        let waiting = self.in_flight.iter().chain(&self.written).chain(&self.group).chain(&self.queue);
        let mut latest_first = waiting.rev().filter(|_| self.end.is_none());
        latest_first.find(|pending| pending.append.subject == *subject).map(|pending| pending.lsn)
    }

    /// Whether no append up to this one is unshipped.
    pub(super) fn is_resolved_through(&self, last: Lsn) -> bool {
        self.end.is_some() || self.oldest_unshipped().is_none_or(|oldest| oldest.lsn > last)
    }

    fn oldest_unshipped(&self) -> Option<&PendingAppend> {
        let first = self.in_flight.first().or_else(|| self.written.front()).or_else(|| self.group.first());
        first.or_else(|| self.queue.front())
    }

    pub(super) fn request_ship_all(&mut self) {
        self.ship_requested_through = self.last;
    }

    /// Takes the next group for the WAL; the flag says whether a writer waits for its sync.
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
        Some((self.group.iter().map(PendingAppend::for_wal).collect(), sync))
    }

    /// The group is in the WAL.
    pub(super) fn group_written(&mut self) {
        self.full_until = None;
        if self.end.is_some() {
            self.group.clear();
            return;
        }
        for mut pending in std::mem::take(&mut self.group) {
            pending.on_disk = true;
            pending.progress.advance(DurabilityStage::Written);
            self.unsynced.push(Arc::clone(&pending.progress));
            self.push_written(pending);
        }
    }

    /// Everything written is synced.
    pub(super) fn synced(&mut self) {
        self.metrics.wal_syncs += 1;
        for progress in self.unsynced.drain(..) {
            progress.advance(DurabilityStage::Synced);
        }
    }

    /// The group did not fit on the local disk, and no part of it was written. Acknowledged appends are kept and
    /// shipped without the disk. The others fail, and so do later appends of the same subjects.
    pub(super) fn group_refused(&mut self, failure: &ErrorReply, now: Duration, wakers: &Wakers) {
        self.full_until = Some(now + FULL_DISK_PAUSE);
        let group = std::mem::take(&mut self.group);
        let queue = std::mem::take(&mut self.queue);
        if self.end.is_some() {
            return;
        }
        for pending in group.into_iter().chain(queue) {
            if pending.progress.fail(failure) {
                self.unshipped_cost -= pending.cost;
                self.failed_subjects.entry(pending.append.subject).or_insert(pending.append.first_after);
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

    fn push_written(&mut self, pending: PendingAppend) {
        self.written_cost += pending.cost;
        self.written_awaited += usize::from(pending.is_awaited());
        self.written.push_back(pending);
    }

    /// When to ship the waiting appends. While a segment is in flight, this is decided again after its result.
    pub(super) fn decide(&self, now: Duration) -> FlushDecision {
        let waiting = Unshipped {
            bytes: self.written_cost,
            oldest: self.written.front().map(|pending| pending.at),
            is_awaited: self.written_awaited > 0
                || self.written.front().is_some_and(|pending| pending.lsn <= self.ship_requested_through),
        };
        self.schedule.decide(&waiting, now)
    }

    /// Applies an input to the owner machine and performs its effects.
    pub(super) fn apply_owner_input(&mut self, input: OwnerInput, shared: &LogShared) {
        let effects = self.owner.apply(input);
        self.perform(effects, shared);
    }

    pub(super) fn perform(&mut self, effects: Vec<OwnerEffect>, shared: &LogShared) {
        for effect in effects {
            match effect {
                OwnerEffect::Put { slot } => {
                    self.schedule.shipping(shared.env.boot());
                    self.segment_to_ship = Some(self.take_segment(slot));
                    shared.wakers.ship.notify_one();
                }
                OwnerEffect::Created { slot } => {
                    self.segment_created(slot, shared.env.boot(), &shared.wakers);
                }
                OwnerEffect::Probe { slot } => {
                    self.metrics.read_barriers += 1;
                    self.probe = Some(slot);
                    shared.wakers.probe.notify_one();
                }
                OwnerEffect::ReadsConfirmed { through } => self.answer_readers(through),
                OwnerEffect::Delete { from, to } => {
                    self.slot_sizes.released(to);
                    match self.trimmable_slots.back_mut() {
                        Some(last) if last.1 == from => last.1 = to,
                        _ => self.trimmable_slots.push_back((from, to)),
                    }
                    shared.wakers.trim.notify_one();
                }
                OwnerEffect::End => self.sealed(&shared.wakers),
            }
        }
    }

    fn take_segment(&mut self, slot: Slot) -> Segment {
        let most = self.upload_rate.segment_bytes();
        let mut cost = 0;
        while let Some(next) = self.written.front() {
            if cost > 0 && cost + next.cost > most {
                break;
            }
            cost += next.cost;
            self.written_awaited -= usize::from(next.is_awaited());
            self.in_flight.extend(self.written.pop_front());
        }
        self.written_cost -= cost;
        let appends = self.in_flight.iter().map(|pending| pending.append.clone()).collect();
        Segment { slot, appends }
    }

    /// The segment in flight is in the bucket; it has this many bytes.
    pub(super) fn shipped(&mut self, bytes: u64, shared: &LogShared) {
        if self.end.is_some() {
            return;
        }
        self.metrics.segments += 1;
        self.metrics.segment_bytes += bytes;
        self.slot_sizes.created(self.owner.next_slot(), bytes);
        let was_held = self.unshipped_age(shared.env.boot()) > shared.settings.max_unshipped_age;
        let ready = self.decide(shared.env.boot()) == FlushDecision::Now;
        self.apply_owner_input(OwnerInput::Put { outcome: PutOutcome::Ours, ready }, shared);
        self.trim(shared);
        if was_held {
            self.notify_unshipped();
        }
    }

    fn segment_created(&mut self, slot: Slot, now: Duration, wakers: &Wakers) {
        for pending in std::mem::take(&mut self.in_flight) {
            let shipped = pending.shipped_in(slot, now);
            self.metrics.entries += shipped.entries;
            self.tails.shipped(&pending.append.subject, shipped);
            self.unshipped_cost -= pending.cost;
            self.off_disk -= usize::from(!pending.on_disk);
            self.marker = Some((pending.lsn, slot));
            pending.progress.shipped(slot);
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
            // The reader may have stopped waiting.
            let _ = reader.send(Ok(()));
        }
    }

    /// Releases the slots that no manifest needs.
    pub(super) fn trim(&mut self, shared: &LogShared) {
        let next = self.owner.next_slot();
        let below = self.tails.lowest_needed().unwrap_or(next);
        self.apply_owner_input(OwnerInput::Unneeded { below }, shared);
    }

    /// The next slot to be deleted.
    pub(super) fn take_trimmable_slot(&mut self) -> Option<Slot> {
        while let Some((from, to)) = self.trimmable_slots.pop_front() {
            if from < to {
                self.trimmable_slots.push_front((from.next(), to));
                return Some(from);
            }
        }
        None
    }

    /// Age of the oldest unshipped write.
    pub(super) fn unshipped_age(&self, now: Duration) -> Duration {
        self.oldest_unshipped().map_or(Duration::ZERO, |pending| now.saturating_sub(pending.at))
    }

    /// Notifies all waiters: a write stall that held weaker levels may be over.
    fn notify_unshipped(&self) {
        for pending in self.group.iter().chain(&self.written).chain(&self.in_flight).chain(&self.queue) {
            pending.progress.notify();
        }
    }

    pub(super) fn metrics(&self, now: Duration) -> LogMetrics {
        LogMetrics {
            unshipped_bytes: self.unshipped_cost,
            unshipped_age: self.unshipped_age(now),
            retained_slots: self.owner.next_slot().get() - self.owner.trimmed().get(),
            slot_bytes: self.slot_sizes.total(),
            retained_bytes: self.slot_sizes.retained(),
            subjects_with_tail: self.tails.len() as u64,
            tail_slots: self.tails.all_runs() as u64,
            ..self.metrics
        }
    }
}

fn disk_is_full() -> ErrorReply {
    ErrorReply::unavailable("local disk is full")
}
