//! The guarantees.

use std::fmt;

use dormouse_format::manifest::Manifest;
use dormouse_protocol::Slot;

use crate::bucket::{FolderObjects, LogObjects, ModelEntry, index, log_number};
use crate::process::{Read, Revs};
use crate::step::Stepper;

/// A violated guarantee.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// S1: an acknowledged write is not in the state of a later owner.
    Forgotten,
    /// S2: two different operations were acknowledged at one rev.
    TwoHistories,
    /// S3: the newest manifest and the existing slots do not rebuild the acknowledged writes.
    CannotRebuild,
    /// S4: a read misses a write that was acknowledged before the read arrived.
    StaleRead,
    /// A machine reported an impossible state: damage, or a bug of ours.
    GaveUp,
    /// The driver did something that production's shells never do: a fault of the model.
    Driver(&'static str),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forgotten => f.write_str("S1: an acknowledged write is not in the state of a later owner"),
            Self::TwoHistories => f.write_str("S2: two operations were acknowledged at one rev"),
            Self::CannotRebuild => {
                f.write_str("S3: the acknowledged writes cannot be rebuilt from the bucket")
            }
            Self::StaleRead => {
                f.write_str("S4: a read misses a write that was acknowledged before it arrived")
            }
            Self::GaveUp => f.write_str("a machine reported an impossible state"),
            Self::Driver(what) => write!(f, "fault of the model: {what}"),
        }
    }
}

fn contains_all(ops: &[u8], acknowledged: &Revs) -> bool {
    acknowledged.iter().enumerate().all(|(at, op)| *op == 0 || ops.get(at) == Some(op))
}

/// Rebuilds the state of a manifest from the bucket.
fn rebuild(folder: &FolderObjects, log: &LogObjects, x: u8, manifest: &Manifest) -> Option<Vec<u8>> {
    let mut ops = folder.base(manifest)?;
    if !manifest.released {
        let end = Slot::new(log.slots.len() as u64);
        for (_, entry) in log.entries(x, manifest.first_slot, end) {
            if usize::from(entry.rev) == ops.len() + 1 {
                ops.push(entry.op);
            }
        }
    }
    Some(ops)
}

impl Stepper<'_> {
    /// Records an acknowledged write.
    pub(crate) fn acknowledge(&mut self, entry: ModelEntry) {
        self.coverage.acknowledged += 1;
        let ghost = self.world.ghost.change();
        let slot = &mut ghost.acknowledged[usize::from(entry.subject)][usize::from(entry.rev) - 1];
        let other = *slot != 0 && *slot != entry.op;
        *slot = entry.op;
        if other {
            self.violate(Violation::TwoHistories);
        }
    }

    /// S1: checks the state of a process that starts to serve a subject.
    pub(crate) fn check_owner(&mut self, x: u8, manifest: &Manifest, ops: &[u8]) {
        let newest = self.world.bucket.folders[usize::from(x)].newest();
        let owns = newest.is_some_and(|newest| **newest == *manifest);
        if owns && !contains_all(ops, &self.world.ghost.acknowledged[usize::from(x)]) {
            self.violate(Violation::Forgotten);
        }
    }

    /// S4: checks a read that is answered.
    pub(crate) fn check_read(&mut self, p: u8, read: &Read) {
        // The subject was closed since: the read was rejected.
        let Some(serving) = self.peek(p).served(read.subject) else { return };
        if !contains_all(&serving.ops, &read.acknowledged) {
            self.violate(Violation::StaleRead);
        }
    }

    /// S3: checks every state.
    pub(crate) fn check_rebuilding(&mut self) {
        for x in 0..self.settings.subjects {
            let acknowledged = self.world.ghost.acknowledged[usize::from(x)];
            let folder = &self.world.bucket.folders[usize::from(x)];
            let rebuilt = match folder.newest() {
                Some(manifest) => {
                    let log = log_number(&manifest.owner);
                    rebuild(folder, &self.world.bucket.logs[index(Slot::new(log.into()))], x, manifest)
                }
                None => Some(Vec::new()),
            };
            if !rebuilt.is_some_and(|ops| contains_all(&ops, &acknowledged)) {
                self.violate(Violation::CannotRebuild);
            }
        }
    }
}
