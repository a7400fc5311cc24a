//! Draining a dead log: the duties of production's shell around [`Drain`].

use dormouse_protocol::Slot;
use dormouse_storage::log::seal::Seal;
use dormouse_storage::ownership::claim::Claim;
use dormouse_storage::ownership::drain::{Drain, DrainEffect, DrainInput, Holding};

use crate::action::Job;
use crate::bucket::{log_id, subject, subject_place};
use crate::process::{DrainStage, Draining, Opening, SealWant, Sealing, Want};
use crate::step::Stepper;

impl Stepper<'_> {
    pub(crate) fn begin_drain(&mut self, p: u8, log: u8) {
        self.world.ghost.change().drains -= 1;
        let my_log = self.log_of(p);
        let (machine, _) = Drain::new(&log_id(log), &log_id(my_log), false);
        let (seal, _) = Seal::begin();
        let sealing = Sealing { log, machine: seal, want: SealWant::List, blind: None };
        let drain = Draining { machine, log, stage: DrainStage::Seals(sealing) };
        self.process(p).drain = Some(Box::new(drain));
        self.go_on(p, Job::Drain);
    }

    /// Goes on with a drain until it has to wait. `fence`: the seal was seen just now.
    pub(crate) fn run_drain(&mut self, p: u8, mut drain: Box<Draining>, fence: Option<Slot>) {
        let mut effect = match (&mut drain.stage, fence) {
            (DrainStage::Seals(_), Some(_)) => drain.machine.apply(DrainInput::Sealed(true)),
            (DrainStage::Seals(_), None) => {
                self.process(p).drain = Some(drain);
                return;
            }
            (DrainStage::Settles(_), _) => match self.settled(p, &mut drain) {
                Some(input) => drain.machine.apply(input),
                None => {
                    self.process(p).drain = Some(drain);
                    return;
                }
            },
        };
        loop {
            let objects = self.log(drain.log);
            let input = match effect {
                DrainEffect::Next { after } => {
                    let from = after.map_or(0, |after| subject_place(&after) + 1);
                    let end = objects.highest().unwrap_or_default();
                    let holding = |x: u8| {
                        let slots: Vec<Slot> =
                            objects.entries(x, Slot::new(0), end).map(|(slot, _)| slot).collect();
                        (!slots.is_empty()).then(|| Holding { subject: subject(x), slots })
                    };
                    DrainInput::Next((from..self.settings.subjects).find_map(holding))
                }
                DrainEffect::Settle(name) => {
                    let my_log = self.log_of(p);
                    let (claim, _) = Claim::drain(name.clone(), log_id(my_log), log_id(drain.log), false);
                    let x = subject_place(&name);
                    let claim = claim.with_restarts(self.settings.restarts);
                    let mut opening = Box::new(Opening::new(claim, my_log, x));
                    opening.fence = self.log(drain.log).highest().unwrap_or_default();
                    self.perform(p, x, &mut opening);
                    drain.stage = DrainStage::Settles(opening);
                    match self.settled(p, &mut drain) {
                        Some(input) => input,
                        None => {
                            self.process(p).drain = Some(drain);
                            return;
                        }
                    }
                }
                DrainEffect::List => DrainInput::Listed(objects.listed().collect()),
                DrainEffect::Delete(deletions) => {
                    let log = self.world.bucket.logs[usize::from(drain.log)].change();
                    for slot in deletions.slots {
                        log.collector_may_delete |= 1 << slot.get();
                    }
                    DrainInput::Deleted
                }
                DrainEffect::Done(_) | DrainEffect::GiveUp(_) => return,
                DrainEffect::Seal | DrainEffect::LookForSeal => DrainInput::Sealed(false),
            };
            effect = drain.machine.apply(input);
        }
    }

    /// How the drain's claim ended, if it has.
    fn settled(&mut self, p: u8, drain: &mut Draining) -> Option<DrainInput> {
        let DrainStage::Settles(opening) = &mut drain.stage else { return None };
        self.run_on(p, opening.subject, opening);
        if opening.want == Want::Ended { opening.ended.take() } else { None }
    }
}
