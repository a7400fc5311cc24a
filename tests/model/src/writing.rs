//! A process's own log: writes, reads, segments, probes, the end.

use std::rc::Rc;
use std::time::Duration;

use dormouse_commit_log::log::owner::{OwnerEffect, OwnerInput, Probed, PutOutcome, ReadNumber};
use dormouse_commit_log::log::tails::ShippedEntries;
use dormouse_protocol::{Rev, Slot};

use crate::action::Job;
use crate::bucket::ModelEntry;
use crate::check::Violation;
use crate::process::{Call, Leaving, Process, Put, Read, SlotProbe, SubjectRole};
use crate::settings::BrokenRule;
use crate::step::Stepper;

impl Stepper<'_> {
    /// Production's pipeline: a write is planned on top of the pending writes and appended to the log. If nothing is in
    /// flight, it is shipped at once.
    pub(crate) fn write(&mut self, p: u8, x: u8) {
        let ghost = self.world.ghost.change();
        ghost.written[usize::from(x)] += 1;
        let op = ghost.written[usize::from(x)];
        self.log_of(p);
        let process = self.process(p);
        let pending = process.unshipped(x);
        let applied = process.served(x).map_or(0, |serving| serving.ops.len());
        process.waiting.push(ModelEntry { subject: x, rev: (applied + pending + 1) as u8, op });
        if !process.owner.has_put_in_flight() {
            self.apply_to_owner(p, OwnerInput::Ready);
        }
    }

    pub(crate) fn grant_lease(&mut self, p: u8) {
        let ghost = self.world.ghost.change();
        ghost.leases += 1;
        let (generation, ever_dead) = (ghost.leases, ghost.ever_dead);
        let broken = self.breaks_rule(BrokenRule::LeaseWithoutBarrier);
        let process = self.process(p);
        process.lease = Some(generation);
        if broken {
            process.confirmed = process.lease;
        }
        let was_dead = process.log.is_some_and(|log| ever_dead & 1 << log != 0);
        self.coverage.leases_after_death += u64::from(was_dead);
    }

    /// Production's reads: at once under a confirmed lease, otherwise after a barrier.
    pub(crate) fn read(&mut self, p: u8, x: u8) {
        let ghost = self.world.ghost.change();
        ghost.reads -= 1;
        let acknowledged = ghost.acknowledged[usize::from(x)];
        let number = ReadNumber(self.peek(p).owner.arrived().0 + 1);
        let read = Read { number, subject: x, lease: self.peek(p).lease, acknowledged };
        if self.peek(p).has_confirmed_lease() {
            self.coverage.reads_by_lease += 1;
            return self.check_read(p, &read);
        }
        self.process(p).reads.push(read);
        self.apply_to_owner(p, OwnerInput::Read);
        let broken = self.breaks_rule(BrokenRule::ProbeDuringCreate);
        let process = self.process(p);
        if broken && process.owner.has_put_in_flight() {
            process.rogue_probe = Some(SlotProbe { slot: process.owner.next_slot(), found: None });
        }
    }

    pub(crate) fn land_segment(&mut self, p: u8) {
        let Some(creating) = self.segment_of(p) else { return };
        let created = self.create(&creating);
        if let Some(put) = &mut self.process(p).put {
            put.call = Call::Answered(created);
        }
    }

    pub(crate) fn segment_answered(&mut self, p: u8) {
        let Some(creating) = self.segment_of(p) else { return };
        let Some(Call::Answered(created)) = self.peek(p).put.as_ref().map(|put| put.call) else { return };
        let Some(mut ours) = self.outcome(&creating, created) else {
            if let Some(put) = &mut self.process(p).put {
                put.call = Call::Sent;
            }
            return;
        };
        if !ours && self.breaks_rule(BrokenRule::ExistsIsSuccessForData) {
            ours = true;
        }
        if !ours && self.breaks_rule(BrokenRule::SameBatchAfterSeal) {
            // The batch goes to the slot after the seal, and the owner never learns of the seal.
            let process = self.process(p);
            process.ahead += 1;
            if let Some(put) = &mut process.put {
                put.slot = put.slot.next();
                put.call = Call::Sent;
            }
            return;
        }
        let outcome = if ours { PutOutcome::Ours } else { PutOutcome::Foreign };
        let ready = !self.peek(p).waiting.is_empty();
        self.apply_to_owner(p, OwnerInput::Put { outcome, ready });
        if ours {
            self.trim(p);
        }
    }

    pub(crate) fn probe(&mut self, p: u8, rogue: bool) {
        let Some(log) = self.peek(p).log else { return };
        let ahead = self.peek(p).ahead;
        let process = self.process(p);
        let Some(mut probe) = (if rogue { process.rogue_probe } else { process.probe }) else { return };
        let slot = Slot::new(probe.slot.get() + ahead);
        probe.found = Some(self.log(log).get(slot).is_some());
        let process = self.process(p);
        *(if rogue { &mut process.rogue_probe } else { &mut process.probe }) = Some(probe);
    }

    pub(crate) fn probe_answered(&mut self, p: u8) {
        let Some(SlotProbe { found: Some(found), .. }) = self.process(p).probe.take() else { return };
        let probed = if found { Probed::Present } else { Probed::Absent };
        if !found && self.breaks_rule(BrokenRule::EarlierProbeCounts) {
            let arrived = self.peek(p).owner.arrived();
            self.answer_reads(p, arrived);
        }
        self.apply_to_owner(p, OwnerInput::Probed(probed));
    }

    pub(crate) fn rogue_probe_answered(&mut self, p: u8) {
        let Some(SlotProbe { found: Some(false), .. }) = self.process(p).rogue_probe.take() else { return };
        let arrived = self.peek(p).owner.arrived();
        self.answer_reads(p, arrived);
    }

    /// Gives the owner an input and executes its effects, as production's log does.
    pub(crate) fn apply_to_owner(&mut self, p: u8, input: OwnerInput) {
        let effects = self.process(p).owner.apply(input);
        let by_create = matches!(input, OwnerInput::Put { .. });
        for effect in effects {
            match effect {
                OwnerEffect::Put { slot } => {
                    let process = self.process(p);
                    let entries: Rc<[ModelEntry]> = std::mem::take(&mut process.waiting).into();
                    let slot = Slot::new(slot.get() + process.ahead);
                    process.put = Some(Put { slot, call: Call::Sent, entries });
                }
                OwnerEffect::Created { slot } => self.landed(p, slot),
                OwnerEffect::Probe { slot } => self.process(p).probe = Some(SlotProbe { slot, found: None }),
                OwnerEffect::ReadsConfirmed { through } => {
                    let before = self.peek(p).reads.len();
                    self.answer_reads(p, through);
                    let answered = (before - self.peek(p).reads.len()) as u64;
                    if by_create {
                        self.coverage.reads_by_create += answered;
                    } else {
                        self.coverage.reads_by_probe += answered;
                    }
                }
                OwnerEffect::Delete { from, to } => self.owner_may_delete(p, from, to),
                OwnerEffect::End => {
                    self.coverage.ended_logs += 1;
                    self.end_log(p, false);
                }
            }
        }
    }

    fn landed(&mut self, p: u8, slot: Slot) {
        let Some(put) = self.process(p).put.take() else { return };
        for entry in put.entries.iter() {
            let x = usize::from(entry.subject);
            let process = self.process(p);
            if let SubjectRole::Serving(serving) = &mut process.places[x]
                && serving.ops.len() + 1 == usize::from(entry.rev)
            {
                serving.ops.push(entry.op);
            } else if self.settings.broken_rule.is_none() {
                self.violate(Violation::Driver("a segment landed whose subject was closed"));
            }
            let shipped = ShippedEntries {
                slot,
                last_rev: Rev::new(entry.rev.into()),
                ends_in_dedup_record: false,
                bytes: 1,
                entries: 1,
                at: Duration::ZERO,
            };
            self.process(p).tails.shipped(&entry.subject, shipped);
            self.acknowledge(*entry);
        }
        if self.breaks_rule(BrokenRule::CreateInFlightCounts) {
            let arrived = self.peek(p).owner.arrived();
            self.answer_reads(p, arrived);
        }
        self.close_fenced(p);
    }

    /// Closes a subject that another process owns, once none of its writes are in flight.
    pub(crate) fn close_fenced(&mut self, p: u8) {
        for x in 0..self.settings.subjects {
            let process = self.peek(p);
            let lost = process.served(x).is_some_and(|serving| serving.leaving == Leaving::Fenced);
            if lost && process.unshipped(x) == 0 {
                self.process(p).places[usize::from(x)] = SubjectRole::Closed;
            }
        }
    }

    fn answer_reads(&mut self, p: u8, through: ReadNumber) {
        let process = self.process(p);
        let (answered, waiting): (Vec<Read>, Vec<Read>) =
            process.reads.iter().partition(|read| read.number <= through);
        process.reads = waiting;
        for read in answered {
            // Production's `ReadLease::barrier`: the lease was held during the whole barrier.
            let process = self.peek(p);
            if read.lease.is_some() && read.lease == process.lease && process.confirmed != process.lease {
                self.coverage.leases_confirmed += 1;
                self.process(p).confirmed = read.lease;
            }
            self.check_read(p, &read);
        }
    }

    /// Fails the reads of a closed subject.
    pub(crate) fn refuse_reads(&mut self, p: u8, x: u8) {
        if self.peek(p).reads.iter().any(|read| read.subject == x) {
            self.process(p).reads.retain(|read| read.subject != x);
        }
    }

    /// Production's `Log::base_published` and `State::trim`.
    pub(crate) fn based(&mut self, p: u8, x: u8, base: Rev, first_slot: Slot) {
        self.process(p).tails.base_published(&x, base, first_slot);
        self.trim(p);
    }

    pub(crate) fn trim(&mut self, p: u8) {
        let process = self.peek(p);
        let next = process.owner.next_slot();
        let below = process.tails.lowest_needed().unwrap_or(next);
        self.apply_to_owner(p, OwnerInput::Unneeded { below });
        if self.breaks_rule(BrokenRule::OwnerTrimsHighest) && below >= next && next > Slot::new(0) {
            self.owner_may_delete(p, Slot::new(next.get() - 1), next);
        }
    }

    fn owner_may_delete(&mut self, p: u8, from: Slot, to: Slot) {
        let process = self.peek(p);
        let Some(log) = process.log.filter(|_| process.ahead == 0) else { return };
        for slot in from.get()..to.get() {
            self.world.bucket.logs[usize::from(log)].change().owner_may_delete |= 1 << slot;
        }
    }

    /// Ends the log, by a seal or with its process. Requests in the network may still land, but no sender waits for
    /// them.
    pub(crate) fn end_log(&mut self, p: u8, crashed: bool) {
        if let Some(put) = &self.peek(p).put
            && put.call == Call::Sent
            && let Some(creating) = self.segment_of(p)
        {
            self.detach(creating);
        }
        let survives = self.breaks_rule(BrokenRule::ClaimSurvivesLog) && !crashed;
        for job in (0..self.settings.subjects).map(Job::Subject).chain([Job::Drain]) {
            let opens = matches!(job, Job::Subject(x) if self.peek(p).served(x).is_none());
            if !(survives && opens)
                && let Some((creating, Call::Sent)) = self.call_of(p, job)
            {
                self.detach(creating);
            }
        }
        let old = self.peek(p).clone();
        let process = self.process(p);
        *process = Process { noted: old.noted, ..Process::new(old.opens) };
        if survives {
            for (place, old) in process.places.iter_mut().zip(old.places) {
                if matches!(old, SubjectRole::Opening(_)) {
                    *place = old;
                }
            }
        }
    }
}
