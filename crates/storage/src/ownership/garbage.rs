//! What may be deleted. There is no grace period in any of these rules: a clock proves nothing. Each permission, once
//! true, stays true, so a deletion may come as late as it likes.

#[cfg(test)]
mod tests;

use dormouse_protocol::{LogId, Rev, Slot};

use super::is_newest;
use crate::bucket::BucketKey;
use crate::keys::{BlobName, Folder, SubjectKeys};
use crate::manifest::Manifest;
use crate::mutations::{Mutation, is_there};

/// What may be deleted of a subject once `folder`, listed after `manifest` was read or created, has shown it to be the
/// newest: the manifests before it, and the snapshots and deltas made for it or for earlier ones that it does not
/// refer to. Empty when it is not the newest. Names that this version does not know are left alone.
///
/// This stays true: every later manifest refers to what this one refers to, or to objects made for later numbers.
#[must_use]
pub fn objects(folder: &Folder, manifest: &Manifest) -> Vec<BucketKey> {
    if !is_newest(folder, manifest) {
        return Vec::new();
    }
    let keys = SubjectKeys::new(&manifest.subject);
    let needed = manifest.snapshot.map(|snapshot| snapshot.name);
    let manifests = folder.manifests.iter().filter(|&&number| number < manifest.number);
    let snapshots = folder
        .snapshots
        .iter()
        .filter(|snapshot| snapshot.made_for <= manifest.number && Some(**snapshot) != needed);
    let deltas = folder.deltas.iter().filter(|delta| {
        delta.made_for <= manifest.number && manifest.deltas.iter().all(|needed| needed.name != **delta)
    });
    manifests
        .map(|&number| keys.manifest(number))
        .chain(snapshots.map(|name| keys.snapshot(name)))
        .chain(deltas.map(|name| keys.delta(name)))
        .collect()
}

/// Which of the large values that a listing showed may be deleted by the owner, to whom the same listing has shown
/// `manifest` to be the newest.
///
/// `removed` tells at which rev the state lost a value, as long as it remembers; `refers` whether the state, with
/// everything above the base, refers to it. A value that was removed above the base stays, whatever its term: the
/// removal may be lost with this process, and then the value must be there. One of the owner's own term that the state
/// has never known may be on its way into it.
#[must_use]
pub fn blobs(
    manifest: &Manifest,
    listed: &[BlobName],
    removed: impl Fn(&BlobName) -> Option<Rev>,
    refers: impl Fn(&BlobName) -> bool,
) -> Vec<BlobName> {
    let may_go = |name: &BlobName| match removed(name) {
        _ if manifest.tombstone => name.term <= manifest.term,
        _ if manifest.released => false,
        removed if is_there(Mutation::ValueDeletedEarly) => removed.is_some() || !refers(name),
        Some(rev) => rev <= manifest.base_rev,
        None => name.term < manifest.term && !refers(name),
    };
    listed.iter().copied().filter(may_go).collect()
}

/// What a slot holds of one subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Held {
    /// The slot.
    pub slot: Slot,
    /// The rev of the subject's last entry in it.
    pub last_rev: Rev,
}

/// Does a subject whose newest manifest is `manifest` need what a slot of `log` holds of it? Entries without operations
/// count as above the rev that they stand at.
#[must_use]
pub fn needs(manifest: &Manifest, log: &LogId, held: Held) -> bool {
    !manifest.released
        && manifest.owner == *log
        && held.slot >= manifest.first_slot
        && held.last_rev >= manifest.base_rev
}

/// Which slots of a log may be deleted, by its owner or, once it has been seen sealed, by anyone: those that no newest
/// manifest needs, never the highest of the listing. That is the owner's last word or the valid seal, and without it
/// nobody could tell where the log ends. A seal below it is void.
#[must_use]
pub fn slots(listed: &[Slot], needed: impl Fn(Slot) -> bool) -> Vec<Slot> {
    let highest = listed.iter().max();
    listed.iter().copied().filter(|slot| Some(slot) != highest && !needed(*slot)).collect()
}
