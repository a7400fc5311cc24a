//! What a term did not inherit: whether it may be lost, by the table of `docs/guarantees.md`.

use dormouse_protocol::{Level, ServerName, Term};

use crate::history::{Assumptions, Harm, HarmKind};
use crate::replay::{PathStep, Replay};
use crate::slots::Slot;
use crate::verdict::{Property, Source};

impl Replay<'_, '_> {
    /// `steps` were there, and `term` did not inherit them.
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
                    "{position} is lost: {term} begins before it, and it was in the bucket{}",
                    if step.level == Level::Bucket { ", as its level demands" } else { "" }
                );
                let sources = slot.map(|slot| slot.source).into_iter().chain([says]).chain(new);
                self.findings.wrong(Property::BucketIsKept, sentence, sources);
                return;
            }
        }
        for step in steps {
            let Some(slot) = self.slots.all.get(&step.position) else { continue };
            if let Some(op) = slot.op {
                // Whoever asks again may have it carried out again.
                self.loose.insert(op);
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
        // Of a term in between nobody was told: it may have been anybody's.
        let went_elsewhere = owner.is_none() || owner != successor || position.term.next() < term;
        let aside = self.history.set_aside.as_ref();
        let is_aside = aside.is_some_and(|aside| aside.contains(&position));
        let excuse = self.harms.iter().find(|harm| {
            is_of(harm, owner.as_ref())
                && self.is_in_time(harm, slot)
                && (costs(harm, step.level, went_elsewhere) || is_aside)
        });
        match excuse {
            Some(harm) => self.findings.coverage.add(match harm.kind {
                HarmKind::Killed => "lost: killed",
                HarmKind::PowerLost => "lost: power lost",
                HarmKind::DiskWiped => "lost: disk wiped",
                HarmKind::DiskRestored => "lost: disk restored",
                HarmKind::Paused => "lost: paused",
                HarmKind::CutFromBucket => "lost: cut off from the bucket",
                HarmKind::CutFromBus => "lost: cut off from the bus",
                HarmKind::TakenOver => "lost: taken over",
            }),
            None => {
                let owner = owner.map_or_else(|| "its server".to_owned(), |owner| owner.to_string());
                let sentence = format!(
                    "{position} of the level {} is lost: {term} begins before it, and nothing befell {owner} that would \
                     explain it",
                    step.level
                );
                let sources = std::iter::once(slot.source).chain(new);
                self.findings.wrong(Property::WeakerLevelsWithinTheTable, sentence, sources);
            }
        }
    }

    /// Whether a harm struck before the change was certainly in the bucket.
    fn is_in_time(&self, harm: &Harm, slot: &Slot) -> bool {
        let asked = slot.op.map_or(slot.witnessed, |op| self.ops.all[op].invoked);
        let safe = match harm.kind {
            HarmKind::PowerLost => slot.witnessed + self.rules.unshipped.max(self.rules.unsynced),
            _ => slot.witnessed + self.rules.unshipped,
        };
        asked <= harm.until && safe >= harm.since
    }
}

fn is_of(harm: &Harm, owner: Option<&ServerName>) -> bool {
    owner.is_none_or(|owner| *owner == harm.server)
}

/// The table: what a harm may cost. `elsewhere`: another server went on with the subject, which has nothing of what was
/// not in the bucket.
fn costs(harm: &Harm, level: Level, elsewhere: bool) -> bool {
    match harm.kind {
        _ if level == Level::Bucket => false,
        HarmKind::DiskWiped | HarmKind::DiskRestored | HarmKind::TakenOver => true,
        HarmKind::Killed => elsewhere || level == Level::Memory,
        HarmKind::PowerLost => elsewhere || level <= Level::Interval,
        HarmKind::Paused | HarmKind::CutFromBucket | HarmKind::CutFromBus => elsewhere,
    }
}
