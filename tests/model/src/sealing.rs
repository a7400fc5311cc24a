//! Gets a log sealed: the duties of production's shell around
//! [`SealMachine`](dormouse_commit_log::log::seal::SealMachine).

use dormouse_commit_log::log::seal::{SealEffect, SealInput, SealedSlotRead};
use dormouse_protocol::Slot;

use crate::bucket::{DetachedCreate, SlotObject};
use crate::check::Violation;
use crate::process::{Call, DrainStage, SealWant, Sealing, Want};
use crate::settings::BrokenRule;
use crate::step::Stepper;

impl Stepper<'_> {
    /// One step of sealing that is not a create. Returns the seal once the log is sealed.
    pub(crate) fn seal_step(&mut self, sealing: &mut Sealing) -> Option<Slot> {
        let objects = self.log(sealing.log);
        if self.breaks_rule(BrokenRule::SealedIfAnySlotIs)
            && objects.slots.iter().flatten().any(|object| matches!(object, SlotObject::Seal(_)))
        {
            return Some(Slot::new(objects.slots.len() as u64));
        }
        loop {
            let objects = self.log(sealing.log);
            let input = match sealing.want {
                SealWant::List => SealInput::Listed(sealing.blind.take().or_else(|| objects.highest())),
                SealWant::Read(slot) => SealInput::SlotRead(match objects.get(slot) {
                    Some(SlotObject::Seal(_)) => SealedSlotRead::Seal,
                    Some(_) => SealedSlotRead::Other,
                    None => SealedSlotRead::Gone,
                }),
                SealWant::Create(..) => return None,
            };
            if let Some(fence) = self.apply_seal(sealing, input) {
                return Some(fence);
            }
            if self.settings.split {
                return None;
            }
        }
    }

    fn apply_seal(&mut self, sealing: &mut Sealing, input: SealInput) -> Option<Slot> {
        match sealing.machine.apply(input) {
            Some(SealEffect::List) => sealing.want = SealWant::List,
            Some(SealEffect::ReadSlot(slot)) => sealing.want = SealWant::Read(slot),
            Some(SealEffect::Create(slot)) => {
                let nonce = self.seal_nonce(sealing.log);
                sealing.want = SealWant::Create(slot, nonce, Call::Sent);
            }
            Some(SealEffect::Sealed(slot)) => return Some(slot),
            // The header and the end of the log are never deleted.
            Some(SealEffect::Absent) | None => {
                if self.settings.broken_rule.is_none() {
                    self.violate(Violation::Driver(
                        "a log without a slot, or a seal step in the wrong state",
                    ));
                }
                return Some(Slot::new(0));
            }
        }
        None
    }

    /// Returns a nonce that no seal of this log has, whether in the bucket, in flight or planned.
    fn seal_nonce(&self, log: u8) -> u16 {
        let in_bucket = self.log(log).slots.iter().flatten();
        let in_network = self.world.bucket.network.iter().filter_map(|orphan| match orphan {
            DetachedCreate::Slot { log: there, object, .. } if *there == log => Some(object),
            _ => None,
        });
        let mut used: Vec<u16> = in_bucket
            .chain(in_network)
            .filter_map(|object| match object {
                SlotObject::Seal(nonce) => Some(*nonce),
                _ => None,
            })
            .collect();
        for process in &self.world.processes {
            let claims = process.openings().filter_map(|(_, opening)| match &opening.want {
                Want::Seal(sealing) => Some(sealing),
                _ => None,
            });
            let drains = process.drain.as_ref().and_then(|drain| match &drain.stage {
                DrainStage::Sealing(sealing) => Some(sealing),
                DrainStage::Settling(_) => None,
            });
            used.extend(claims.chain(drains).filter(|sealing| sealing.log == log).filter_map(|sealing| {
                match sealing.want {
                    SealWant::Create(_, nonce, _) => Some(nonce),
                    _ => None,
                }
            }));
        }
        (0..).find(|nonce| !used.contains(nonce)).unwrap_or(u16::MAX)
    }

    pub(crate) fn seal_created(&mut self, sealing: &mut Sealing, ours: Option<bool>) {
        let SealWant::Create(slot, ..) = sealing.want else { return };
        let ours = ours == Some(true) || self.breaks_rule(BrokenRule::ExistsIsSuccessForSeal);
        let _ = self.apply_seal(sealing, SealInput::Created { ours });
        if ours && self.breaks_rule(BrokenRule::NoListAfterSeal) {
            // The driver acts as if the seal had been listed as the highest slot.
            sealing.blind = Some(slot);
        }
    }
}
