//! Compacting, releasing and closing a subject: the duties of production's shells around [`Publish`].

use std::rc::Rc;

use dormouse_protocol::{ErrorReply, Rev, Seq};
use dormouse_storage::keys::Folder;
use dormouse_storage::manifest::Manifest;
use dormouse_storage::ownership::publish::{Publication, Publish, PublishEffect, PublishInput};
use dormouse_storage::ownership::{Creation, Found, NewBase};

use crate::action::Job;
use crate::process::{Call, Leaving, Place, Publishing};
use crate::settings::{Bases, Lie};
use crate::step::Stepper;

impl Stepper<'_> {
    /// Uploads what the current base lacks: production's `Serving::source` and `publish::base`.
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

    /// Closed to writes and reads first; nothing of it is in flight by now.
    pub(crate) fn release(&mut self, p: u8, x: u8) {
        self.world.ghost.change().releases -= 1;
        if !self.lies(Lie::ReadsUntilReleased) {
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
        if self.lies(Lie::ReopenDuringRelease) {
            // Dropped, with its create on the way.
            if let Some((creating, Call::Sent)) = self.call_of(p, Job::Subject(x)) {
                self.orphan(creating);
            }
            self.process(p).places[usize::from(x)] = Place::Closed;
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
        self.tell_publication(p, x, PublishInput::Resume);
    }

    pub(crate) fn publication_created(&mut self, p: u8, x: u8, ours: Option<bool>) {
        let releases = self.publishing_releases(p, x);
        let lie = self.lies(Lie::ExistsIsSuccessForCompaction) && !releases;
        let creation = match ours {
            Some(false) if !lie => Creation::Anothers,
            Some(_) => Creation::Ours,
            None => Creation::Unknown(ErrorReply::unavailable("")),
        };
        self.tell_publication(p, x, PublishInput::Created(creation));
    }

    fn publishing_releases(&self, p: u8, x: u8) -> bool {
        let publishing = self.peek(p).served(x).and_then(|serving| serving.publishing.as_ref());
        publishing.is_some_and(|publishing| publishing.releases)
    }

    fn tell_publication(&mut self, p: u8, x: u8, input: PublishInput) {
        let Some(publishing) = self.process(p).serving(x).and_then(|serving| serving.publishing.as_mut())
        else {
            return;
        };
        let effect = publishing.machine.apply(input);
        self.follow_publication(p, x, effect);
    }

    /// Carries out what a publication says. Reads and listings that follow an answer need no steps of their own.
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
                let found = found.map_or(Found::Missing, Found::Manifest);
                self.tell_publication(p, x, PublishInput::Got(found));
            }
            PublishEffect::List => {
                let folder = self.publication_listing(p, x);
                self.tell_publication(p, x, PublishInput::Listed(folder));
            }
            PublishEffect::Published(verified) if verified.manifest.released => {
                self.refuse_reads(p, x);
                let (base, first_slot) = (verified.manifest.base_rev, verified.manifest.first_slot);
                self.process(p).places[usize::from(x)] = Place::Closed;
                self.based(p, x, base, first_slot);
            }
            PublishEffect::Published(verified) => {
                let (base, first_slot) = (verified.manifest.base_rev, verified.manifest.first_slot);
                serving.manifest = verified.manifest;
                serving.publishing = None;
                serving.leaving = Leaving::No;
                self.based(p, x, base, first_slot);
            }
            PublishEffect::Lost { may_have_counted } => {
                serving.publishing = None;
                serving.leaving = Leaving::Lost;
                self.coverage.failed_publish_verifies += u64::from(may_have_counted);
                self.refuse_reads(p, x);
                self.close_the_lost(p);
            }
            PublishEffect::Undecided(_) => publishing.call = None,
            PublishEffect::Failed(_) => {
                serving.publishing = None;
                if self.settings.lie.is_none() {
                    self.violate(crate::check::Violation::GaveUp);
                }
            }
        }
    }

    fn publication_listing(&self, p: u8, x: u8) -> Folder {
        let mut folder = self.listing(x);
        let releases = self.publishing_releases(p, x);
        let blind = match self.settings.lie {
            Some(Lie::NoListAfterCompaction) => !releases,
            Some(Lie::NoListAfterRelease) => releases,
            _ => false,
        };
        let publishing = self.peek(p).served(x).and_then(|serving| serving.publishing.as_ref());
        if blind && let Some((manifest, _)) = publishing.and_then(|publishing| publishing.call.as_ref()) {
            folder.manifests = vec![manifest.number];
        }
        folder
    }

    /// Everything is in the bucket, or in flight where the driver lies; the manifest stays this process's.
    pub(crate) fn evict(&mut self, p: u8, x: u8) {
        self.world.ghost.change().evictions -= 1;
        if !self.lies(Lie::OwnOpenByWhatIsThere) {
            self.refuse_reads(p, x);
        }
        self.process(p).places[usize::from(x)] = Place::Closed;
    }
}
