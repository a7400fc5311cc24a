//! Opens and claims subjects: the duties of production's shells around [`Claim`].

use std::rc::Rc;

use dormouse_commit_log::log::seal::SealMachine;
use dormouse_engine::ownership::claim::{
    Claim, ClaimEffect, ClaimInput, ReclaimOutcome, Restored, TailSource,
};
use dormouse_engine::ownership::reclaim::ReclaimInput;
use dormouse_engine::ownership::{self, CreateResult, ManifestRead};
use dormouse_format::checksum::Crc64;
use dormouse_format::keys::{DeltaName, Folder, ManifestNumber, SnapshotName};
use dormouse_format::manifest::{DeltaRef, Manifest, SnapshotRef};
use dormouse_protocol::{ErrorCode, LogId, Rev, Seq, Slot};

use crate::action::Job;
use crate::bucket::{BaseName, BaseObject, ModelEntry, SlotObject, log_id, log_number, subject};
use crate::check::Violation;
use crate::process::{Call, DrainStage, Leaving, Opening, SealWant, Sealing, Serving, SubjectRole, Want};
use crate::settings::{Bases, BrokenRule};
use crate::step::Stepper;

/// An error reply whose text is not read.
fn reply() -> dormouse_protocol::ErrorReply {
    dormouse_protocol::ErrorReply::unavailable("")
}

impl Opening {
    pub(crate) fn new(claim: Claim, log: u8, subject: u8) -> Self {
        Self {
            claim,
            log,
            want: Want::List,
            base: None,
            listed: 0,
            fence: Slot::new(0),
            ops: Vec::new(),
            subject,
            created: false,
            ended: None,
        }
    }
}

impl Stepper<'_> {
    pub(crate) fn open(&mut self, p: u8, x: u8) {
        let log = self.log_of(p);
        let (claim, _) = Claim::new(subject(x), log_id(log), None);
        let opening = Opening::new(claim.with_restarts(self.settings.restarts), log, x);
        let process = self.process(p);
        process.opens[usize::from(x)] -= 1;
        process.places[usize::from(x)] = SubjectRole::Opening(Box::new(opening));
        self.continue_job(p, Job::Subject(x));
    }

    /// Does the step that a job is waiting for, if it is not a reply from the network.
    pub(crate) fn continue_job(&mut self, p: u8, job: Job) {
        match job {
            Job::Subject(x) => {
                let place =
                    std::mem::replace(&mut self.process(p).places[usize::from(x)], SubjectRole::Closed);
                let SubjectRole::Opening(mut opening) = place else { return };
                self.perform(p, x, &mut opening);
                self.run_atomic_steps(p, x, &mut opening);
                self.put_back(p, x, opening);
            }
            Job::Drain => {
                let Some(mut drain) = self.process(p).drain.take() else { return };
                let fence = match &mut drain.stage {
                    DrainStage::Sealing(sealing) => self.seal_step(sealing),
                    DrainStage::Settling(opening) => {
                        self.perform(p, opening.subject, opening);
                        None
                    }
                };
                self.run_drain(p, drain, fence);
            }
        }
    }

    fn put_back(&mut self, p: u8, x: u8, opening: Box<Opening>) {
        if opening.want != Want::Ended {
            self.process(p).places[usize::from(x)] = SubjectRole::Opening(opening);
        }
    }

    /// Runs the steps that are atomic, or that this run does not interleave. A listing that follows a reply is no step
    /// of its own: the reply itself may come at any later time.
    pub(crate) fn run_atomic_steps(&mut self, p: u8, x: u8, opening: &mut Opening) {
        while !self.settings.split && is_atomic(&opening.want) {
            self.perform(p, x, opening);
        }
    }

    pub(crate) fn perform(&mut self, p: u8, x: u8, opening: &mut Opening) {
        let input = match std::mem::replace(&mut opening.want, Want::Ended) {
            Want::List => {
                let folder = self.listing_for(x, opening);
                opening.listed = folder.newest().map_or(0, ManifestNumber::get);
                ClaimInput::Listed(folder)
            }
            Want::Get(number) => {
                let manifest = self.world.bucket.folders[usize::from(x)].get(number);
                opening.base = manifest.map(|manifest| Box::new(Manifest::clone(manifest)));
                let found = opening.base.clone();
                ClaimInput::Got(found.map_or(ManifestRead::Missing, ManifestRead::Manifest))
            }
            Want::Seal(mut sealing) => match self.seal_step(&mut sealing) {
                Some(fence) => {
                    opening.fence = fence;
                    self.ask_again(p, sealing.log)
                }
                None => {
                    opening.want = Want::Seal(sealing);
                    return;
                }
            },
            Want::Restore(manifest, tail) => self.restore(p, x, opening, manifest.as_deref(), &tail),
            other => {
                opening.want = other;
                return;
            }
        };
        let effect = opening.claim.apply(input);
        self.follow(p, x, opening, effect);
    }

    /// Production's `Shared::seal`: permission that the coordinator gave before the seal existed does not count.
    /// Permission after the seal stays valid, and is stored on the local disk.
    fn ask_again(&mut self, p: u8, log: u8) -> ClaimInput {
        let bit = 1 << log;
        let asks = self.settings.lapses.is_some() && !self.breaks_rule(BrokenRule::NoRecheckAfterSeal);
        if asks && self.peek(p).noted & bit == 0 {
            if self.world.ghost.dead & bit == 0 {
                return ClaimInput::Failed(reply());
            }
            self.process(p).noted |= bit;
        }
        ClaimInput::Sealed
    }

    /// Returns the listing that a claim gets. A broken rule may change it here.
    fn listing_for(&self, x: u8, opening: &Opening) -> Folder {
        let mut folder = self.listing(x);
        let verifying = opening.base.as_ref().map(|base| base.number);
        let own = opening.base.as_ref().is_some_and(|base| base.owner == log_id(opening.log));
        let mut blind = |number: Option<ManifestNumber>| {
            if let Some(number) = number {
                folder.manifests = vec![number];
            }
        };
        let created = opening.created;
        match self.settings.broken_rule {
            Some(BrokenRule::NoListAfterClaim) if created => blind(verifying.map(ManifestNumber::next)),
            Some(BrokenRule::OwnOpenWithoutLastList | BrokenRule::OwnOpenFromBucket) if own && !created => {
                blind(verifying);
            }
            Some(BrokenRule::ReclaimWithoutLastList) if !created => blind(verifying),
            Some(BrokenRule::ReclaimReleaseWithoutLastList) if created => {
                blind(verifying.map(ManifestNumber::next));
            }
            _ => {}
        }
        folder
    }

    /// Executes the effects of a claim, up to the next wait.
    fn follow(&mut self, p: u8, x: u8, opening: &mut Opening, effect: ClaimEffect) {
        opening.want = Want::Ended;
        let mut effect = effect;
        loop {
            let input = match effect {
                ClaimEffect::List => {
                    opening.want = Want::List;
                    return;
                }
                ClaimEffect::Get(number) => {
                    opening.want = Want::Get(number);
                    return;
                }
                ClaimEffect::AskAuthority { owner } => {
                    let released = opening.base.as_ref().is_some_and(|base| base.released);
                    self.coverage.released_claims += u64::from(released);
                    let dead = |owner: LogId| self.world.ghost.dead & 1 << log_number(&owner) != 0;
                    if self.settings.lapses.is_none() || owner.is_none_or(dead) {
                        ClaimInput::Allowed
                    } else {
                        ClaimInput::Refused(reply())
                    }
                }
                ClaimEffect::Seal(log) if self.breaks_rule(BrokenRule::ClaimWithoutSeal) => {
                    opening.fence = Slot::new(self.log(log_number(&log)).slots.len() as u64);
                    ClaimInput::Sealed
                }
                ClaimEffect::Seal(log) => {
                    let (machine, _) = SealMachine::begin();
                    opening.want = Want::Seal(Sealing {
                        log: log_number(&log),
                        machine,
                        want: SealWant::List,
                        blind: None,
                    });
                    return;
                }
                ClaimEffect::Restore { manifest, tail } => {
                    opening.want = Want::Restore(manifest, tail);
                    return;
                }
                ClaimEffect::PutBase { made_for } => {
                    let after = opening.base.as_ref().map_or(0, |base| base.base_rev.get());
                    let ops = opening.ops.clone();
                    let snapshot = self.settings.bases == Bases::Snapshots;
                    ClaimInput::BasePut(self.upload(p, x, made_for, after as u8, &ops, snapshot))
                }
                ClaimEffect::Create(manifest) => {
                    opening.want = Want::Create(Rc::new(*manifest), Call::Sent);
                    return;
                }
                ClaimEffect::Serve(verified) => {
                    self.collect(x, &verified.garbage);
                    return self.serve(p, x, opening, *verified.manifest);
                }
                ClaimEffect::Reclaimed(drained) => {
                    if let ReclaimOutcome::Released(verified) = &drained {
                        self.collect(x, &verified.garbage);
                    }
                    self.coverage.drained += u64::from(matches!(drained, ReclaimOutcome::Released(_)));
                    opening.ended = Some(ReclaimInput::Rebased(drained));
                    return;
                }
                ClaimEffect::NotOwned => {
                    unreachable!("the model never claims a subject that the process owns")
                }
                ClaimEffect::GiveUp(error) => {
                    let is_impossible = matches!(error.code, ErrorCode::Corrupt | ErrorCode::Internal);
                    if is_impossible && self.settings.broken_rule.is_none() {
                        self.violate(Violation::GaveUp);
                    }
                    opening.ended = Some(ReclaimInput::Skipped);
                    return;
                }
            };
            effect = opening.claim.apply(input);
        }
    }

    /// Reports the result of a create to the claim, the seal or the reclaim that is waiting for it.
    pub(crate) fn job_created(&mut self, p: u8, job: Job, ours: Option<bool>) {
        match job {
            Job::Subject(x) => {
                let place =
                    std::mem::replace(&mut self.process(p).places[usize::from(x)], SubjectRole::Closed);
                let SubjectRole::Opening(mut opening) = place else { return };
                self.claim_created(p, x, &mut opening, ours);
                self.run_atomic_steps(p, x, &mut opening);
                self.put_back(p, x, opening);
            }
            Job::Drain => {
                let Some(mut drain) = self.process(p).drain.take() else { return };
                let fence = match &mut drain.stage {
                    DrainStage::Sealing(_) if ours.is_none() => return,
                    DrainStage::Sealing(sealing) => {
                        self.seal_created(sealing, ours);
                        self.seal_step(sealing)
                    }
                    DrainStage::Settling(opening) => {
                        self.claim_created(p, opening.subject, opening, ours);
                        None
                    }
                };
                self.run_drain(p, drain, fence);
            }
        }
    }

    fn claim_created(&mut self, p: u8, x: u8, opening: &mut Opening, ours: Option<bool>) {
        if let Want::Seal(sealing) = &mut opening.want {
            if ours.is_none() {
                // If production's sealing fails, the claim fails too.
                let effect = opening.claim.apply(ClaimInput::Failed(reply()));
                opening.want = Want::Ended;
                return self.follow(p, x, opening, effect);
            }
            self.seal_created(sealing, ours);
            return self.perform(p, x, opening);
        }
        let broken = self.breaks_rule(BrokenRule::ExistsIsSuccessForClaim);
        let creation = match ours {
            Some(false) if !broken => CreateResult::Foreign,
            Some(_) => CreateResult::Ours,
            None => CreateResult::Unknown(reply()),
        };
        let created = creation == CreateResult::Ours;
        let before = opening.listed;
        let effect = opening.claim.apply(ClaimInput::Created(creation));
        self.follow(p, x, opening, effect);
        opening.created = created;
        if opening.want == Want::List {
            self.perform(p, x, opening);
            self.coverage.failed_claim_verifies += u64::from(created && opening.listed > before + 1);
        }
        opening.created = false;
    }

    fn restore(
        &mut self,
        p: u8,
        x: u8,
        opening: &mut Opening,
        manifest: Option<&Manifest>,
        tail: &TailSource,
    ) -> ClaimInput {
        let Some(ops) = self.restored_ops(p, x, opening.fence, manifest, tail) else {
            self.coverage.objects_missing += 1;
            return ClaimInput::ObjectMissing { object: String::new() };
        };
        let base = manifest.map_or(0, |manifest| manifest.base_rev.get());
        let rev = ops.len() as u64;
        match tail {
            TailSource::Own => self.coverage.own_opens += 1,
            TailSource::Sealed(_) => self.coverage.takeovers += u64::from(rev > base),
            TailSource::None => {}
        }
        opening.ops = ops;
        let process = self.peek(p);
        // The claim survives its log only if the driver breaks a rule. Then its slot belongs to an ended log.
        let first_slot = process.owner.next_slot();
        ClaimInput::Restored(Restored {
            rev: Rev::new(rev),
            next_seq: Seq::new(rev + 1),
            above_base: rev > base,
            first_slot,
            nonce: self.nonce(p),
        })
    }

    /// Production's restorer: the base, and the part of the tail that continues it.
    fn restored_ops(
        &self,
        p: u8,
        x: u8,
        fence: Slot,
        manifest: Option<&Manifest>,
        tail: &TailSource,
    ) -> Option<Vec<u8>> {
        let Some(manifest) = manifest else { return Some(Vec::new()) };
        let mut ops = self.world.bucket.folders[usize::from(x)].base(manifest)?;
        let (base, first) = (manifest.base_rev, manifest.first_slot);
        let above = |entry: &ModelEntry| u64::from(entry.rev) > base.get();
        let entries: Vec<ModelEntry> = match tail {
            TailSource::None => Vec::new(),
            TailSource::Own if self.breaks_rule(BrokenRule::OwnOpenFromBucket) => {
                let objects = self.log(self.peek(p).log?);
                let end = Slot::new(objects.slots.len() as u64);
                objects.entries(x, first, end).map(|(_, entry)| entry).filter(above).collect()
            }
            TailSource::Own => {
                let process = self.peek(p);
                let objects = self.log(process.log?);
                let mut entries = Vec::new();
                for slot in process.tails.slots_above(&x, base).into_iter().filter(|slot| *slot >= first) {
                    match objects.get(slot)? {
                        SlotObject::Data(data) => {
                            entries.extend(data.iter().filter(|entry| entry.subject == x && above(entry)));
                        }
                        _ => return None,
                    }
                }
                entries
            }
            TailSource::Sealed(log) => {
                let objects = self.log(log_number(log));
                objects.entries(x, first, fence).map(|(_, entry)| entry).filter(above).collect()
            }
        };
        for entry in entries {
            if usize::from(entry.rev) != ops.len() + 1 {
                return None;
            }
            ops.push(entry.op);
        }
        Some(ops)
    }

    /// Uploads the part of a state above `after`, or all of it, under a new name.
    pub(crate) fn upload(
        &mut self,
        p: u8,
        x: u8,
        made_for: ManifestNumber,
        after: u8,
        ops: &[u8],
        snapshot: bool,
    ) -> ownership::BaseObject {
        let nonce = self.nonce(p);
        let rev = Rev::new(ops.len() as u64);
        let (size_bytes, crc64) = (1, Crc64::from_u64(0));
        let (name, after, object) = if snapshot {
            let name = SnapshotName { made_for, rev, nonce };
            let object = ownership::BaseObject::Snapshot(SnapshotRef { name, size_bytes, crc64 });
            (BaseName::Snapshot(name), 0, object)
        } else {
            let name = DeltaName { made_for, rev, nonce };
            let object = ownership::BaseObject::Delta(DeltaRef { name, size_bytes, crc64 });
            (BaseName::Delta(name), after, object)
        };
        let ops = ops[usize::from(after)..].to_vec();
        self.world.bucket.folders[usize::from(x)].change().bases.push(BaseObject { name, after, ops });
        object
    }

    fn serve(&mut self, p: u8, x: u8, opening: &mut Opening, manifest: Manifest) {
        opening.want = Want::Ended;
        let ops = std::mem::take(&mut opening.ops);
        self.check_owner(x, &manifest, &ops);
        self.log_of(p);
        let (base, first_slot) = (manifest.base_rev, manifest.first_slot);
        let serving = Serving { manifest: Box::new(manifest), ops, leaving: Leaving::No, publishing: None };
        self.process(p).places[usize::from(x)] = SubjectRole::Serving(Box::new(serving));
        self.based(p, x, base, first_slot);
    }
}

/// Returns whether a step follows at once if a listing and the dependent reads are one step.
fn is_atomic(want: &Want) -> bool {
    match want {
        Want::Get(_) | Want::Restore(..) => true,
        Want::Seal(sealing) => !matches!(sealing.want, SealWant::Create(..)),
        Want::List | Want::Create(..) | Want::Ended => false,
    }
}
