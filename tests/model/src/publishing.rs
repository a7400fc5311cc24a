//! Compacts, releases and closes a subject: the duties of production's shells around [`Publish`].

use std::rc::Rc;

use dormouse_engine::ownership::publish::{Publication, Publish, PublishEffect, PublishInput};
use dormouse_engine::ownership::{CreateResult, ManifestRead, NewBase};
use dormouse_format::keys::Folder;
use dormouse_format::manifest::Manifest;
use dormouse_protocol::{ErrorReply, Rev, Seq};

use crate::action::Job;
use crate::process::{Call, Leaving, Publishing, SubjectRole};
use crate::settings::{Bases, BrokenRule};
use crate::step::Stepper;

impl Stepper<'_> {
    /// Uploads the part that the current base lacks: production's `OpenSubject::source` and `publish::base`.
    fn new_base(&mut self, p: u8, x: u8) -> Option<NewBase> {
        let process = self.peek(p);
        let serving = process.served(x)?;
        let (ops, base, made_for) =
            (serving.ops.clone(), serving.manifest.base_rev, serving.manifest.number.next());
        let rev = Rev::new(ops.len() as u64);
        let first_slot = process.owner.next_slot();
        let snapshot = self.settings.bases != Bases::Deltas || rev == base;
        let object = self.upload(p, x, made_for, base.get() as u8, &ops, snapshot);
        Some(NewBase { object, first_slot, next_seq: Seq::new(rev.get() + 1) })
    }

    pub(crate) fn compact(&mut self, p: u8, x: u8) {
        self.world.ghost.change().compactions -= 1;
        let Some(base) = self.new_base(p, x) else { return };
        self.publish(p, x, Publication::Base(base));
    }

    /// Closes the subject to writes and reads first. By now, none of its writes are in flight.
    pub(crate) fn release(&mut self, p: u8, x: u8) {
        self.world.ghost.change().releases -= 1;
        if !self.breaks_rule(BrokenRule::ReadsUntilReleased) {
            self.refuse_reads(p, x);
        }
        let process = self.peek(p);
        let Some(serving) = process.served(x) else { return };
        let above = serving.ops.len() as u64 > serving.manifest.base_rev.get();
        let needs_base = process.tails.tail(&x).is_some() || above;
        let base = if needs_base { self.new_base(p, x) } else { None };
        if let Some(serving) = self.process(p).serving(x) {
            serving.leaving = Leaving::Released;
        }
        self.publish(p, x, Publication::Release(base));
        if self.breaks_rule(BrokenRule::ReopenDuringRelease) {
            // The process drops it, with its create in flight.
            if let Some((creating, Call::Sent)) = self.call_of(p, Job::Subject(x)) {
                self.detach(creating);
            }
            self.process(p).places[usize::from(x)] = SubjectRole::Closed;
        }
    }

    fn publish(&mut self, p: u8, x: u8, publication: Publication) {
        let nonce = self.nonce(p);
        let Some(serving) = self.process(p).serving(x) else { return };
        let releases = matches!(publication, Publication::Release(_));
        let (machine, effect) = Publish::new(&serving.manifest, publication, nonce);
        serving.publishing = Some(Publishing { machine, call: None, releases });
        self.follow_publication(p, x, effect);
    }

    pub(crate) fn resume(&mut self, p: u8, x: u8) {
        self.coverage.resumed += 1;
        self.apply_publish(p, x, PublishInput::Resume);
    }

    pub(crate) fn publication_created(&mut self, p: u8, x: u8, ours: Option<bool>) {
        let releases = self.publishing_releases(p, x);
        let broken = self.breaks_rule(BrokenRule::ExistsIsSuccessForCompaction) && !releases;
        let creation = match ours {
            Some(false) if !broken => CreateResult::Foreign,
            Some(_) => CreateResult::Ours,
            None => CreateResult::Unknown(ErrorReply::unavailable("")),
        };
        self.apply_publish(p, x, PublishInput::Created(creation));
    }

    fn publishing_releases(&self, p: u8, x: u8) -> bool {
        let publishing = self.peek(p).served(x).and_then(|serving| serving.publishing.as_ref());
        publishing.is_some_and(|publishing| publishing.releases)
    }

    fn apply_publish(&mut self, p: u8, x: u8, input: PublishInput) {
        let Some(publishing) = self.process(p).serving(x).and_then(|serving| serving.publishing.as_mut())
        else {
            return;
        };
        let effect = publishing.machine.apply(input);
        self.follow_publication(p, x, effect);
    }

    /// Executes the effects of a publish. Reads and listings that follow a reply need no steps of their own.
    fn follow_publication(&mut self, p: u8, x: u8, effect: PublishEffect) {
        if let PublishEffect::Published(verified) = &effect {
            self.collect(x, &verified.garbage);
        }
        let Some(serving) = self.process(p).serving(x) else { return };
        let Some(publishing) = &mut serving.publishing else { return };
        match effect {
            PublishEffect::Create(manifest) => {
                publishing.call = Some((Rc::new(*manifest), Call::Sent));
            }
            PublishEffect::Get(number) => {
                let found = self.world.bucket.folders[usize::from(x)].get(number);
                let found = found.map(|manifest| Box::new(Manifest::clone(manifest)));
                let found = found.map_or(ManifestRead::Missing, ManifestRead::Manifest);
                self.apply_publish(p, x, PublishInput::Got(found));
            }
            PublishEffect::List => {
                let folder = self.publication_listing(p, x);
                self.apply_publish(p, x, PublishInput::Listed(folder));
            }
            PublishEffect::Published(verified) if verified.manifest.released => {
                self.refuse_reads(p, x);
                let (base, first_slot) = (verified.manifest.base_rev, verified.manifest.first_slot);
                self.process(p).places[usize::from(x)] = SubjectRole::Closed;
                self.based(p, x, base, first_slot);
            }
            PublishEffect::Published(verified) => {
                let (base, first_slot) = (verified.manifest.base_rev, verified.manifest.first_slot);
                serving.manifest = verified.manifest;
                serving.publishing = None;
                serving.leaving = Leaving::No;
                self.based(p, x, base, first_slot);
            }
            PublishEffect::NotOwner { may_have_counted } => {
                serving.publishing = None;
                serving.leaving = Leaving::Fenced;
                self.coverage.failed_publish_verifies += u64::from(may_have_counted);
                self.refuse_reads(p, x);
                self.close_fenced(p);
            }
            PublishEffect::Indeterminate(_) => publishing.call = None,
            PublishEffect::Failed(_) => {
                serving.publishing = None;
                if self.settings.broken_rule.is_none() {
                    self.violate(crate::check::Violation::GaveUp);
                }
            }
        }
    }

    fn publication_listing(&self, p: u8, x: u8) -> Folder {
        let mut folder = self.listing(x);
        let releases = self.publishing_releases(p, x);
        let blind = match self.settings.broken_rule {
            Some(BrokenRule::NoListAfterCompaction) => !releases,
            Some(BrokenRule::NoListAfterRelease) => releases,
            _ => false,
        };
        let publishing = self.peek(p).served(x).and_then(|serving| serving.publishing.as_ref());
        if blind && let Some((manifest, _)) = publishing.and_then(|publishing| publishing.call.as_ref()) {
            folder.manifests = vec![manifest.number];
        }
        folder
    }

    /// All writes are in the bucket, or in flight if the driver breaks a rule. The process keeps the manifest.
    pub(crate) fn evict(&mut self, p: u8, x: u8) {
        self.world.ghost.change().evictions -= 1;
        if !self.breaks_rule(BrokenRule::OwnOpenFromBucket) {
            self.refuse_reads(p, x);
        }
        self.process(p).places[usize::from(x)] = SubjectRole::Closed;
    }
}
