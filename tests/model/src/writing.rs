//! A process's own log: writes, reads, segments, looks, the end.

use std::rc::Rc;
use std::time::Duration;

use dormouse_protocol::{Rev, Slot};
use dormouse_storage::log::owner::{OwnerEffect, OwnerInput, Probed, PutOutcome, ReadNumber};
use dormouse_storage::log::tails::Shipped;

use crate::action::Job;
use crate::bucket::Entry;
use crate::check::Violation;
use crate::process::{Call, Leaving, Look, Place, Process, Put, Read};
use crate::settings::Lie;
use crate::step::Stepper;

impl Stepper<'_> {
    /// Production's pipeline: planned on top of what is pending, appended to the log, shipped at once if nothing is in
    /// flight.
    pub(crate) fn write(&mut self, p: u8, x: u8) {
        let ghost = self.world.ghost.change();
        ghost.written[usize::from(x)] += 1;
        let op = ghost.written[usize::from(x)];
        self.log_of(p);
        let process = self.process(p);
        let pending = process.unshipped(x);
        let applied = process.served(x).map_or(0, |serving| serving.ops.len());
        process.waiting.push(Entry { subject: x, rev: (applied + pending + 1) as u8, op });
        if !process.owner.is_putting() {
            self.tell_owner(p, OwnerInput::Ready);
        }
    }

    pub(crate) fn grant_lease(&mut self, p: u8) {
        let ghost = self.world.ghost.change();
        ghost.leases += 1;
        let (generation, ever_dead) = (ghost.leases, ghost.ever_dead);
        let lie = self.lies(Lie::LeaseWithoutBarrier);
        let process = self.process(p);
        process.lease = Some(generation);
        if lie {
            process.trusted = process.lease;
        }
        let was_dead = process.log.is_some_and(|log| ever_dead & 1 << log != 0);
        self.coverage.leases_to_the_dead += u64::from(was_dead);
    }

    /// Production's reads: at once under a lease that is trusted, else behind a barrier.
    pub(crate) fn read(&mut self, p: u8, x: u8) {
        let ghost = self.world.ghost.change();
        ghost.reads -= 1;
        let acknowledged = ghost.acknowledged[usize::from(x)];
        let number = ReadNumber(self.peek(p).owner.arrived().0 + 1);
        let read = Read { number, subject: x, lease: self.peek(p).lease, acknowledged };
        if self.peek(p).trusts() {
            self.coverage.reads_by_lease += 1;
            return self.check_read(p, &read);
        }
        self.process(p).reads.push(read);
        self.tell_owner(p, OwnerInput::Read);
        let lie = self.lies(Lie::LookWhilePutting);
        let process = self.process(p);
        if lie && process.owner.is_putting() {
            process.rogue_look = Some(Look { slot: process.owner.next_slot(), found: None });
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
        if !ours && self.lies(Lie::ExistsIsSuccessForData) {
            ours = true;
        }
        if !ours && self.lies(Lie::SameBatchAfterSeal) {
            // The batch goes to the slot behind the seal, and the owner never hears of the seal.
            let process = self.process(p);
            process.ahead += 1;
            if let Some(put) = &mut process.put {
                put.slot = put.slot.next();
                put.call = Call::Sent;
            }
            return;
        }
        let outcome = if ours { PutOutcome::Ours } else { PutOutcome::Anothers };
        let ready = !self.peek(p).waiting.is_empty();
        self.tell_owner(p, OwnerInput::Put { outcome, ready });
        if ours {
            self.trim(p);
        }
    }

    pub(crate) fn look(&mut self, p: u8, rogue: bool) {
        let Some(log) = self.peek(p).log else { return };
        let ahead = self.peek(p).ahead;
        let process = self.process(p);
        let Some(mut look) = (if rogue { process.rogue_look } else { process.look }) else { return };
        let slot = Slot::new(look.slot.get() + ahead);
        look.found = Some(self.log(log).get(slot).is_some());
        let process = self.process(p);
        *(if rogue { &mut process.rogue_look } else { &mut process.look }) = Some(look);
    }

    pub(crate) fn looked(&mut self, p: u8) {
        let Some(Look { found: Some(found), .. }) = self.process(p).look.take() else { return };
        let probed = if found { Probed::Present } else { Probed::Absent };
        if !found && self.lies(Lie::EarlierLookCounts) {
            let arrived = self.peek(p).owner.arrived();
            self.answer_reads(p, arrived);
        }
        self.tell_owner(p, OwnerInput::Probed(probed));
    }

    pub(crate) fn rogue_looked(&mut self, p: u8) {
        let Some(Look { found: Some(false), .. }) = self.process(p).rogue_look.take() else { return };
        let arrived = self.peek(p).owner.arrived();
        self.answer_reads(p, arrived);
    }

    /// Tells the owner something and carries out what it says, as production's log does.
    pub(crate) fn tell_owner(&mut self, p: u8, input: OwnerInput) {
        let effects = self.process(p).owner.apply(input);
        let by_create = matches!(input, OwnerInput::Put { .. });
        for effect in effects {
            match effect {
                OwnerEffect::Put { slot } => {
                    let process = self.process(p);
                    let entries: Rc<[Entry]> = std::mem::take(&mut process.waiting).into();
                    let slot = Slot::new(slot.get() + process.ahead);
                    process.put = Some(Put { slot, call: Call::Sent, entries });
                }
                OwnerEffect::Landed { slot } => self.landed(p, slot),
                OwnerEffect::Probe { slot } => self.process(p).look = Some(Look { slot, found: None }),
                OwnerEffect::Proven { through } => {
                    let before = self.peek(p).reads.len();
                    self.answer_reads(p, through);
                    let answered = (before - self.peek(p).reads.len()) as u64;
                    if by_create {
                        self.coverage.reads_by_create += answered;
                    } else {
                        self.coverage.reads_by_look += answered;
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
            if let Place::Serving(serving) = &mut process.places[x]
                && serving.ops.len() + 1 == usize::from(entry.rev)
            {
                serving.ops.push(entry.op);
            } else if self.settings.lie.is_none() {
                self.violate(Violation::Driver("a segment landed whose subject was left"));
            }
            let shipped = Shipped {
                slot,
                last_rev: Rev::new(entry.rev.into()),
                ends_in_memory: false,
                bytes: 1,
                entries: 1,
                at: Duration::ZERO,
            };
            self.process(p).tails.shipped(&entry.subject, shipped);
            self.acknowledge(*entry);
        }
        if self.lies(Lie::CreateInFlightCounts) {
            let arrived = self.peek(p).owner.arrived();
            self.answer_reads(p, arrived);
        }
        self.close_the_lost(p);
    }

    /// A subject that somebody else owns is left once nothing of it is in flight.
    pub(crate) fn close_the_lost(&mut self, p: u8) {
        for x in 0..self.settings.subjects {
            let process = self.peek(p);
            let lost = process.served(x).is_some_and(|serving| serving.leaving == Leaving::Lost);
            if lost && process.unshipped(x) == 0 {
                self.process(p).places[usize::from(x)] = Place::Closed;
            }
        }
    }

    fn answer_reads(&mut self, p: u8, through: ReadNumber) {
        let process = self.process(p);
        let (answered, waiting): (Vec<Read>, Vec<Read>) =
            process.reads.iter().partition(|read| read.number <= through);
        process.reads = waiting;
        for read in answered {
            // Production's `Trust::barrier`: a lease that held all the while.
            let process = self.peek(p);
            if read.lease.is_some() && read.lease == process.lease && process.trusted != process.lease {
                self.coverage.leases_trusted += 1;
                self.process(p).trusted = read.lease;
            }
            self.check_read(p, &read);
        }
    }

    /// A subject is closed: its reads fail.
    pub(crate) fn refuse_reads(&mut self, p: u8, x: u8) {
        if self.peek(p).reads.iter().any(|read| read.subject == x) {
            self.process(p).reads.retain(|read| read.subject != x);
        }
    }

    /// Production's `Log::based` and `State::trim`.
    pub(crate) fn based(&mut self, p: u8, x: u8, base: Rev, first_slot: Slot) {
        self.process(p).tails.based(&x, base, first_slot);
        self.trim(p);
    }

    pub(crate) fn trim(&mut self, p: u8) {
        let process = self.peek(p);
        let next = process.owner.next_slot();
        let below = process.tails.lowest_needed().unwrap_or(next);
        self.tell_owner(p, OwnerInput::Unneeded { below });
        if self.lies(Lie::OwnerTrimsHighest) && below >= next && next > Slot::new(0) {
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

    /// The log is over, by a seal or with its process. Whatever is in the network may still land; nobody waits for it.
    pub(crate) fn end_log(&mut self, p: u8, crashed: bool) {
        if let Some(put) = &self.peek(p).put
            && put.call == Call::Sent
            && let Some(creating) = self.segment_of(p)
        {
            self.orphan(creating);
        }
        let survives = self.lies(Lie::ClaimSurvivesLog) && !crashed;
        for job in (0..self.settings.subjects).map(Job::Subject).chain([Job::Drain]) {
            let opens = matches!(job, Job::Subject(x) if self.peek(p).served(x).is_none());
            if !(survives && opens)
                && let Some((creating, Call::Sent)) = self.call_of(p, job)
            {
                self.orphan(creating);
            }
        }
        let old = self.peek(p).clone();
        let process = self.process(p);
        *process = Process { noted: old.noted, ..Process::new(old.opens) };
        if survives {
            for (place, old) in process.places.iter_mut().zip(old.places) {
                if matches!(old, Place::Opening(_)) {
                    *place = old;
                }
            }
        }
    }
}
