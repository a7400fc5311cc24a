//! Rules of collection. No rule has a grace period: a clock proves nothing. Each permission, once true, stays true, so
//! a delete may happen at any later time.

#[cfg(test)]
mod tests;

use dormouse_commit_log::log::SlotUse;
use dormouse_format::keys::{BlobName, BucketKey, Folder, SubjectKeys};
use dormouse_format::manifest::Manifest;
use dormouse_protocol::{LogId, Rev, Slot};
use dormouse_runtime::injected_bug;

use super::is_newest;

/// The objects of a subject that may be deleted, if `folder`, listed after `manifest` was read or created, shows it to
/// be the newest: the earlier manifests, and the snapshots and deltas made for it or for earlier ones that it does not
/// refer to. Empty if it is not the newest. Names that this version does not know are left alone.
///
/// This stays true: every later manifest refers to the same objects as this one, or to objects made for later numbers.
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

/// The listed blobs that the owner may delete, if the same listing has shown `manifest` to be the newest.
///
/// `removed` returns the rev at which the state removed a value, as long as the state has that record; `refers` says
/// whether the state, with everything above the base, refers to it. A value that was removed above the base stays, in
/// every term: the removal may be lost with this process, and then the value is needed. A value of the owner's own term
/// that the state has never known may belong to a write in progress.
#[must_use]
pub fn blobs(
    manifest: &Manifest,
    listed: &[BlobName],
    removed: impl Fn(&BlobName) -> Option<Rev>,
    refers: impl Fn(&BlobName) -> bool,
) -> Vec<BlobName> {
    let deletable = |name: &BlobName| match removed(name) {
        _ if manifest.tombstone => name.term <= manifest.term,
        _ if manifest.released => false,
        removed if injected_bug!(ValueDeletedEarly) => removed.is_some() || !refers(name),
        Some(rev) => rev <= manifest.base_rev,
        None => name.term < manifest.term && !refers(name),
    };
    listed.iter().copied().filter(deletable).collect()
}

/// Whether a subject whose newest manifest is `manifest` needs its entries in a slot of `log`. Entries without
/// operations count as above their rev.
#[must_use]
pub fn needs(manifest: &Manifest, log: &LogId, slot_use: SlotUse) -> bool {
    !manifest.released
        && manifest.owner == *log
        && slot_use.slot >= manifest.first_slot
        && slot_use.last_rev >= manifest.base_rev
}

/// The slots of a log that may be deleted, by its owner or, once it has been seen sealed, by any process: those that no
/// newest manifest needs, never the highest of the listing. The highest slot is the owner's last segment or the valid
/// seal; without it the end of the log would be unknown. A seal below it is void.
#[must_use]
pub fn slots(listed: &[Slot], needed: impl Fn(Slot) -> bool) -> Vec<Slot> {
    let highest = listed.iter().max();
    listed.iter().copied().filter(|slot| Some(slot) != highest && !needed(*slot)).collect()
}
