//! A store in memory, for simulation. Like a disk, it loses unflushed writes.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, MutexGuard};

use dormouse_protocol::{ServerName, Subject};
use dormouse_runtime::Lock;

use super::{AssignmentCounts, Store, StoreChange, StoreError, StoredState};

#[derive(Debug, Clone, Default)]
struct Image {
    state: StoredState,
    assignments: BTreeMap<Subject, ServerName>,
    counts: AssignmentCounts,
}

#[derive(Debug, Default)]
struct Images {
    written: Image,
    flushed: Image,
}

/// A disk that survives its process: after a crash, open a [`MemoryStore`] on it again. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk(Arc<Lock<Images>>);

impl MemoryDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Loses everything, like a disk that was replaced.
    pub fn wipe(&self) {
        *self.images() = Images::default();
    }

    fn images(&self) -> MutexGuard<'_, Images> {
        // Images are replaced as a whole, so they are consistent after a panic elsewhere.
        self.0.lock()
    }
}

/// A store on a [`MemoryDisk`].
#[derive(Debug)]
pub struct MemoryStore(MemoryDisk);

impl MemoryStore {
    /// Opens the flushed state of `disk`. An earlier store on the same disk must not be used any more.
    #[must_use]
    pub fn open(disk: &MemoryDisk) -> Self {
        let mut images = disk.images();
        images.written = images.flushed.clone();
        drop(images);
        Self(disk.clone())
    }
}

impl Store for MemoryStore {
    fn load_state(&self) -> Result<StoredState, StoreError> {
        Ok(self.0.images().written.state.clone())
    }

    fn assignments(&self, subjects: &[Subject]) -> Result<Vec<Option<ServerName>>, StoreError> {
        let images = self.0.images();
        Ok(subjects.iter().map(|subject| images.written.assignments.get(subject).cloned()).collect())
    }

    fn assigned_after(
        &self,
        prefix: &str,
        after: Option<&Subject>,
        rows: usize,
    ) -> Result<Vec<(Subject, ServerName)>, StoreError> {
        let images = self.0.images();
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let assignments = images.written.assignments.range::<Subject, _>((start, Bound::Unbounded));
        Ok(assignments
            .filter(|(subject, _)| subject.as_str().starts_with(prefix))
            .take(rows)
            .map(|(subject, server)| (subject.clone(), server.clone()))
            .collect())
    }

    fn counts(&self) -> AssignmentCounts {
        self.0.images().written.counts.clone()
    }

    fn write(&self, changes: &[StoreChange]) -> Result<(), StoreError> {
        let mut images = self.0.images();
        let image = &mut images.written;
        for change in changes {
            image.counts.note(change);
            match change {
                StoreChange::Member(record) => {
                    image.state.members.insert(record.log.server().clone(), record.clone());
                }
                StoreChange::Assign { subject, server, .. } => {
                    image.assignments.insert(subject.clone(), server.clone());
                }
                StoreChange::Unassign { subject, .. } => {
                    image.assignments.remove(subject);
                }
                StoreChange::TenantLimits { tenant, limits } if limits.is_empty() => {
                    image.state.limits.remove(tenant);
                }
                StoreChange::TenantLimits { tenant, limits } => {
                    image.state.limits.insert(tenant.clone(), *limits);
                }
                StoreChange::StartupGrace(waits) => image.state.startup_grace = Some(*waits),
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreError> {
        let mut images = self.0.images();
        images.flushed = images.written.clone();
        Ok(())
    }
}
