//! A store in memory, which like a disk loses what was not flushed: for simulation.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_protocol::{ServerName, Subject};

use super::{Change, Counts, Remembered, Store, StoreError};

#[derive(Debug, Clone, Default)]
struct Image {
    remembered: Remembered,
    assignments: BTreeMap<Subject, ServerName>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Images {
    written: Image,
    flushed: Image,
}

/// What outlives a process: open a [`MemoryStore`] on it again after a crash. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<Images>>);

impl MemoryDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Loses everything, as a disk that was replaced.
    pub fn wipe(&self) {
        *self.images() = Images::default();
    }

    fn images(&self) -> MutexGuard<'_, Images> {
        // Images are replaced in one go; a panic elsewhere leaves none half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A store on a [`MemoryDisk`].
#[derive(Debug)]
pub struct MemoryStore(MemoryDisk);

impl MemoryStore {
    /// Opens what was flushed to `disk`. An earlier store on the same disk must not be used any more.
    #[must_use]
    pub fn open(disk: &MemoryDisk) -> Self {
        let mut images = disk.images();
        images.written = images.flushed.clone();
        drop(images);
        Self(disk.clone())
    }
}

impl Store for MemoryStore {
    fn remembered(&self) -> Result<Remembered, StoreError> {
        Ok(self.0.images().written.remembered.clone())
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

    fn counts(&self) -> Counts {
        self.0.images().written.counts.clone()
    }

    fn write(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut images = self.0.images();
        let image = &mut images.written;
        for change in changes {
            image.counts.note(change);
            match change {
                Change::Member(record) => {
                    image.remembered.members.insert(record.log.server().clone(), record.clone());
                }
                Change::Assign { subject, server, .. } => {
                    image.assignments.insert(subject.clone(), server.clone());
                }
                Change::Unassign { subject, .. } => {
                    image.assignments.remove(subject);
                }
                Change::Waits(waits) => image.remembered.waits = Some(*waits),
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
