//! Changes that a term did not inherit: checks them against the table of `docs/guarantees.md`.

use dormouse_protocol::{Level, ServerName, Term};

use crate::history::{Assumptions, ServerFault, ServerFaultKind};
use crate::replay::{PathStep, Replay};
use crate::slots::Slot;
use crate::verdict::{Property, Source};

impl Replay<'_, '_> {
    /// Judges `steps`, which `term` did not inherit.
    pub(crate) fn lost(&mut self, term: Term, steps: &[PathStep]) {
        let new = self.terms.all.get(&term).and_then(|state| state.source);
        for step in steps {
            let position = step.position;
            let durable = self.durable.get(&position.term).copied();
            let slot = self.slots.all.get(&position);
            if let Some((rev, says)) = durable
                && position.rev <= rev
            {
                let sentence = format!(
                    "{position} is lost: {term} begins before it, but it was in the bucket{}",
                    if step.level == Level::Bucket { ", as its level requires" } else { "" }
                );
                let sources = slot.map(|slot| slot.source).into_iter().chain([says]).chain(new);
                self.findings.report(Property::BucketIsKept, sentence, sources);
                return;
            }
        }
        for step in steps {
            let Some(slot) = self.slots.all.get(&step.position) else { continue };
            if let Some(op) = slot.op {
                // A repeat of the request may be executed again.
                self.unplaced.insert(op);
            }
            self.may_be_lost(term, step, slot, new);
        }
    }

    fn may_be_lost(&mut self, term: Term, step: &PathStep, slot: &Slot, new: Option<Source>) {
        let position = step.position;
        if self.rules.assumptions == Assumptions::Broken {
            self.findings.coverage.add("lost outside the assumptions");
            return;
        }
        let owner = self.terms.all.get(&position.term).and_then(|state| state.server.clone());
        let successor = self.terms.all.get(&term).and_then(|state| state.server.clone());
        // A term without a record may have belonged to any server.
        let moved_elsewhere = owner.is_none() || owner != successor || position.term.next() < term;
        let aside = self.history.set_aside.as_ref();
        let is_aside = aside.is_some_and(|aside| aside.contains(&position));
        let excuse = self.faults.iter().find(|fault| {
            is_of(fault, owner.as_ref())
                && self.is_in_time(fault, slot)
                && (may_lose(fault, step.level, moved_elsewhere) || is_aside)
        });
        match excuse {
            Some(fault) => self.findings.coverage.add(match fault.kind {
                ServerFaultKind::Killed => "lost: killed",
                ServerFaultKind::PowerLost => "lost: power lost",
                ServerFaultKind::DiskWiped => "lost: disk wiped",
                ServerFaultKind::DiskRestored => "lost: disk restored",
                ServerFaultKind::Paused => "lost: paused",
                ServerFaultKind::CutFromBucket => "lost: cut off from the bucket",
                ServerFaultKind::CutFromBus => "lost: cut off from the bus",
                ServerFaultKind::TakenOver => "lost: taken over",
            }),
            None => {
                let owner = owner.map_or_else(|| "its server".to_owned(), |owner| owner.to_string());
                let sentence = format!(
                    "{position} of the level {} is lost: {term} begins before it, and no recorded fault of {owner} \
                     explains the loss",
                    step.level
                );
                let sources = std::iter::once(slot.source).chain(new);
                self.findings.report(Property::WeakerLevelsWithinTheTable, sentence, sources);
            }
        }
    }

    /// Returns whether a fault began before the change was certainly in the bucket.
    fn is_in_time(&self, fault: &ServerFault, slot: &Slot) -> bool {
        let asked = slot.op.map_or(slot.first_seen, |op| self.ops.all[op].invoked);
        let safe = match fault.kind {
            ServerFaultKind::PowerLost => slot.first_seen + self.rules.unshipped.max(self.rules.unsynced),
            _ => slot.first_seen + self.rules.unshipped,
        };
        asked <= fault.until && safe >= fault.since
    }
}

fn is_of(fault: &ServerFault, owner: Option<&ServerName>) -> bool {
    owner.is_none_or(|owner| *owner == fault.server)
}

/// The table of losses by kind of fault. `elsewhere` says that another server took the subject over; it lacks the
/// writes that are not in the bucket.
fn may_lose(fault: &ServerFault, level: Level, elsewhere: bool) -> bool {
    match fault.kind {
        _ if level == Level::Bucket => false,
        ServerFaultKind::DiskWiped | ServerFaultKind::DiskRestored | ServerFaultKind::TakenOver => true,
        ServerFaultKind::Killed => elsewhere || level == Level::Memory,
        ServerFaultKind::PowerLost => elsewhere || level <= Level::Interval,
        ServerFaultKind::Paused | ServerFaultKind::CutFromBucket | ServerFaultKind::CutFromBus => elsewhere,
    }
}
