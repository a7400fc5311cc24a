//! Reclaims an orphaned log: the duties of production's shell around [`LogReclaim`].

use dormouse_commit_log::log::seal::SealMachine;
use dormouse_engine::ownership::claim::Claim;
use dormouse_engine::ownership::reclaim::{LogReclaim, ReclaimEffect, ReclaimInput, SubjectInLog};
use dormouse_protocol::Slot;

use crate::action::Job;
use crate::bucket::{log_id, subject, subject_index};
use crate::process::{DrainStage, Draining, Opening, SealWant, Sealing, Want};
use crate::step::Stepper;

impl Stepper<'_> {
    pub(crate) fn begin_drain(&mut self, p: u8, log: u8) {
        self.world.ghost.change().drains -= 1;
        let my_log = self.log_of(p);
        let (machine, _) = LogReclaim::new(&log_id(log), &log_id(my_log), false);
        let (seal, _) = SealMachine::begin();
        let sealing = Sealing { log, machine: seal, want: SealWant::List, blind: None };
        let drain = Draining { machine, log, stage: DrainStage::Sealing(sealing) };
        self.process(p).drain = Some(Box::new(drain));
        self.continue_job(p, Job::Drain);
    }

    /// Continues a reclaim until it has to wait. `fence`: the seal was seen just now.
    pub(crate) fn run_drain(&mut self, p: u8, mut drain: Box<Draining>, fence: Option<Slot>) {
        let mut effect = match (&mut drain.stage, fence) {
            (DrainStage::Sealing(_), Some(_)) => drain.machine.apply(ReclaimInput::Sealed(true)),
            (DrainStage::Sealing(_), None) => {
                self.process(p).drain = Some(drain);
                return;
            }
            (DrainStage::Settling(_), _) => match self.settled(p, &mut drain) {
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
                ReclaimEffect::Next { after } => {
                    let from = after.map_or(0, |after| subject_index(&after) + 1);
                    let end = objects.highest().unwrap_or_default();
                    let holding = |x: u8| {
                        let slots: Vec<Slot> =
                            objects.entries(x, Slot::new(0), end).map(|(slot, _)| slot).collect();
                        (!slots.is_empty()).then(|| SubjectInLog { subject: subject(x), slots })
                    };
                    ReclaimInput::Next((from..self.settings.subjects).find_map(holding))
                }
                ReclaimEffect::Rebase(name) => {
                    let my_log = self.log_of(p);
                    let (claim, _) = Claim::reclaim(name.clone(), log_id(my_log), log_id(drain.log), false);
                    let x = subject_index(&name);
                    let claim = claim.with_restarts(self.settings.restarts);
                    let mut opening = Box::new(Opening::new(claim, my_log, x));
                    opening.fence = self.log(drain.log).highest().unwrap_or_default();
                    self.perform(p, x, &mut opening);
                    drain.stage = DrainStage::Settling(opening);
                    match self.settled(p, &mut drain) {
                        Some(input) => input,
                        None => {
                            self.process(p).drain = Some(drain);
                            return;
                        }
                    }
                }
                ReclaimEffect::List => ReclaimInput::Listed(objects.listed().collect()),
                ReclaimEffect::Delete(deletions) => {
                    let log = self.world.bucket.logs[usize::from(drain.log)].change();
                    for slot in deletions.slots {
                        log.collector_may_delete |= 1 << slot.get();
                    }
                    ReclaimInput::Deleted
                }
                ReclaimEffect::Done(_) | ReclaimEffect::GiveUp(_) => return,
                ReclaimEffect::Seal | ReclaimEffect::CheckSeal => ReclaimInput::Sealed(false),
            };
            effect = drain.machine.apply(input);
        }
    }

    /// Returns the result of the reclaim's claim, if it has ended.
    fn settled(&mut self, p: u8, drain: &mut Draining) -> Option<ReclaimInput> {
        let DrainStage::Settling(opening) = &mut drain.stage else { return None };
        self.run_atomic_steps(p, opening.subject, opening);
        if opening.want == Want::Ended { opening.ended.take() } else { None }
    }
}
