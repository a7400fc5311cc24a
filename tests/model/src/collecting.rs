//! Collectors: the deletions that production's rules permit, and the objects whose deletion no process can observe.

use dormouse_commit_log::log::SlotUse;
use dormouse_engine::ownership::garbage;
use dormouse_format::keys::{BucketKey, SubjectKeys};
use dormouse_format::manifest::Manifest;
use dormouse_protocol::{Rev, Slot};

use crate::bucket::{BaseName, DetachedCreate, FolderObjects, LogObjects, SlotObject, log_id, subject};
use crate::process::{Process, SubjectRole, Want};
use crate::settings::BrokenRule;
use crate::step::Stepper;

impl Stepper<'_> {
    pub(crate) fn delete_manifest(&mut self, x: u8, number: u8) {
        let folder = self.world.bucket.folders[usize::from(x)].change();
        folder.manifests.retain(|manifest| manifest.number.get() != u64::from(number));
    }

    /// Applies production's rule for snapshots and deltas to the whole folder.
    pub(crate) fn delete_bases(&mut self, x: u8) {
        let folder = &self.world.bucket.folders[usize::from(x)];
        let Some(newest) = folder.newest() else { return };
        let deletable = garbage::objects(&self.listing(x), newest);
        let awaited = self.manifests_under_way().any(|manifest| {
            manifest.number == newest.number
                && folder.bases.iter().any(|base| {
                    FolderObjects::refers(manifest, &base.name) && !FolderObjects::refers(newest, &base.name)
                })
        });
        self.coverage.collected_uploads += u64::from(awaited);
        self.delete_named(x, &deletable);
    }

    fn delete_named(&mut self, x: u8, deletable: &[BucketKey]) {
        let keys = SubjectKeys::new(&subject(x));
        self.world.bucket.folders[usize::from(x)].change().bases.retain(|base| {
            let key = match &base.name {
                BaseName::Snapshot(name) => keys.snapshot(name),
                BaseName::Delta(name) => keys.delta(name),
            };
            !deletable.contains(&key)
        });
    }

    /// Deletes the garbage that a machine has named. Real garbage may be deleted at any time, so only a machine misled
    /// by a broken rule changes anything here.
    pub(crate) fn collect(&mut self, x: u8, garbage: &[BucketKey]) {
        let folder = &self.world.bucket.folders[usize::from(x)];
        let Some(newest) = folder.newest() else { return };
        let real = garbage::objects(&self.listing(x), newest);
        let wrong: Vec<_> = garbage.iter().filter(|key| !real.contains(key)).cloned().collect();
        if !wrong.is_empty() {
            self.delete_named(x, &wrong);
        }
    }

    pub(crate) fn delete_slot(&mut self, log: u8, slot: u8) {
        let lazy = self.settings.lazy;
        let objects = self.world.bucket.logs[usize::from(log)].change();
        let bit = 1 << slot;
        if objects.owner_may_delete & bit != 0 {
            self.coverage.trimmed_slots += 1;
        } else {
            self.coverage.collected_slots += 1;
        }
        objects.delete(Slot::new(slot.into()));
        if !lazy {
            objects.owner_may_delete &= !bit;
            objects.collector_may_delete &= !bit;
        }
    }

    /// Brings the world into its canonical form. Permissions are given as early as possible, and objects are deleted if
    /// no process can observe the deletion.
    pub(crate) fn canonicalize(&mut self) {
        if self.settings.collector {
            for log in 0..self.world.bucket.logs.len() as u8 {
                self.permit(log);
            }
        }
        for x in 0..self.settings.subjects {
            self.drop_manifests(x);
            self.drop_bases(x);
        }
        for log in 0..self.world.bucket.logs.len() as u8 {
            self.drop_log(log);
        }
    }

    fn is_needed(&self, log: u8, objects: &LogObjects, slot: Slot) -> bool {
        let Some(SlotObject::Data(entries)) = objects.get(slot) else { return false };
        let id = log_id(log);
        entries.iter().any(|entry| {
            let held = SlotUse { slot, last_rev: Rev::new(entry.rev.into()) };
            let folder = &self.world.bucket.folders[usize::from(entry.subject)];
            if self.breaks_rule(BrokenRule::CollectorTakesAnyManifest) {
                return folder.manifests.iter().all(|manifest| garbage::needs(manifest, &id, held));
            }
            folder.newest().is_some_and(|newest| garbage::needs(newest, &id, held))
        })
    }

    /// Applies a collector that may run at any time. First it checks that the log is sealed, then it reads the
    /// manifests.
    fn permit(&mut self, log: u8) {
        let objects = self.log(log);
        if self.breaks_rule(BrokenRule::CollectorReadsBeforeSeal) {
            return self.permit_too_early(log);
        }
        if !objects.is_sealed() {
            return;
        }
        let listed: Vec<Slot> = objects.listed().collect();
        let mut slots = garbage::slots(&listed, |slot| self.is_needed(log, objects, slot));
        if self.breaks_rule(BrokenRule::SealsAreDeleted) {
            slots.extend(objects.highest());
        }
        let bits = slots.iter().fold(0, |bits, slot| bits | 1 << slot.get());
        if objects.collector_may_delete | bits != objects.collector_may_delete {
            self.world.bucket.logs[usize::from(log)].change().collector_may_delete |= bits;
        }
    }

    /// The order that production's reclaim forbids.
    fn permit_too_early(&mut self, log: u8) {
        let id = log_id(log);
        let named = self
            .world
            .bucket
            .folders
            .iter()
            .any(|folder| folder.newest().is_some_and(|newest| !newest.released && newest.owner == id));
        let objects = self.log(log);
        if !named && !objects.seen_unneeded && !objects.slots.is_empty() {
            self.world.bucket.logs[usize::from(log)].change().seen_unneeded = true;
        }
        let objects = self.log(log);
        if objects.seen_unneeded && objects.is_sealed() {
            let highest = objects.highest().unwrap_or_default();
            let bits = objects.listed().filter(|slot| *slot != highest);
            let bits = bits.fold(objects.collector_may_delete, |bits, slot| bits | 1 << slot.get());
            if bits != objects.collector_may_delete {
                self.world.bucket.logs[usize::from(log)].change().collector_may_delete = bits;
            }
        }
    }

    /// Drops manifests below the newest if no process can still create or read their numbers.
    fn drop_manifests(&mut self, x: u8) {
        let folder = &self.world.bucket.folders[usize::from(x)];
        if folder.manifests.len() < 2 || self.breaks_rule(BrokenRule::CollectorTakesAnyManifest) {
            return;
        }
        let mut awaited = Vec::new();
        for process in &self.world.processes {
            if let Some(serving) = process.served(x) {
                awaited.push(serving.manifest.number.get() + 1);
            }
            for (_, opening) in process.openings().filter(|(_, opening)| opening.subject == x) {
                awaited.extend([opening.listed, opening.listed + 1]);
                if let Want::Create(manifest, _) = &opening.want {
                    awaited.push(manifest.number.get());
                }
            }
        }
        for orphan in self.world.bucket.network.iter() {
            if let DetachedCreate::Manifest { subject, manifest } = orphan
                && *subject == x
            {
                awaited.push(manifest.number.get());
            }
        }
        let newest = folder.newest().map(|newest| newest.number);
        let stays =
            |manifest: &Manifest| Some(manifest.number) == newest || awaited.contains(&manifest.number.get());
        if !folder.manifests.iter().all(|manifest| stays(manifest)) {
            self.world.bucket.folders[usize::from(x)].change().manifests.retain(|manifest| stays(manifest));
        }
    }

    /// Drops deletable snapshots and deltas that no process can still read.
    fn drop_bases(&mut self, x: u8) {
        let folder = &self.world.bucket.folders[usize::from(x)];
        let Some(newest) = folder.newest() else { return };
        let stays = |name: &BaseName| {
            name.made_for() > newest.number
                || folder.manifests.iter().any(|manifest| FolderObjects::refers(manifest, name))
                || self.manifests_under_way().any(|manifest| FolderObjects::refers(manifest, name))
        };
        if !folder.bases.iter().all(|base| stays(&base.name)) {
            let kept: Vec<_> = folder.bases.iter().filter(|base| stays(&base.name)).cloned().collect();
            self.world.bucket.folders[usize::from(x)].change().bases = kept;
        }
    }

    /// Every manifest that is not in the bucket but is held or about to be created by a process.
    fn manifests_under_way(&self) -> impl Iterator<Item = &Manifest> {
        let network = self.world.bucket.network.iter().filter_map(|orphan| match orphan {
            DetachedCreate::Manifest { manifest, .. } => Some(manifest.as_ref()),
            DetachedCreate::Slot { .. } => None,
        });
        network.chain(self.world.processes.iter().flat_map(|process| held(process)))
    }

    /// Drops a sealed log without a writer or a manifest. A later seal finds it sealed and needs nothing of it.
    fn drop_log(&mut self, log: u8) {
        let objects = self.log(log);
        if objects.slots.is_empty() || !objects.is_sealed() {
            return;
        }
        let id = log_id(log);
        let written =
            self.world.processes.iter().any(|process| process.log == Some(log) || reclaims(process, log));
        let awaited = self
            .world
            .bucket
            .network
            .iter()
            .any(|orphan| matches!(orphan, DetachedCreate::Slot { log: there, .. } if *there == log));
        let named = self
            .world
            .bucket
            .folders
            .iter()
            .any(|folder| folder.manifests.iter().any(|manifest| manifest.owner == id));
        if !written && !awaited && !named && !self.manifests_under_way().any(|manifest| manifest.owner == id)
        {
            *self.world.bucket.logs[usize::from(log)].change() = LogObjects::default();
        }
    }
}

/// Returns whether a process reclaims a log, or claims for the reclaim.
fn reclaims(process: &Process, log: u8) -> bool {
    process.drain.as_ref().is_some_and(|drain| drain.log == log)
        || process.openings().any(|(_, opening)| {
            opening.log == log || matches!(&opening.want, Want::Seal(sealing) if sealing.log == log)
        })
}

/// Returns the manifests that a process holds or is about to create.
fn held(process: &Process) -> impl Iterator<Item = &Manifest> {
    let served = process.places.iter().filter_map(|place| match place {
        SubjectRole::Serving(serving) => Some(serving),
        _ => None,
    });
    let served = served.flat_map(|serving| {
        let created = serving.publishing.as_ref().and_then(|publishing| publishing.call.as_ref());
        [Some(serving.manifest.as_ref()), created.map(|(manifest, _)| manifest.as_ref())]
            .into_iter()
            .flatten()
    });
    let opened = process.openings().flat_map(|(_, opening)| {
        let created = match &opening.want {
            Want::Create(manifest, _) => Some(manifest.as_ref()),
            _ => None,
        };
        [opening.base.as_deref(), created].into_iter().flatten()
    });
    served.chain(opened)
}
