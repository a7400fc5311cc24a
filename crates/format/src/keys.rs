//! Object keys: the keys of a subject's and a log's objects in the bucket, and the meaning of listed keys.

mod bucket_key;
mod names;
#[cfg(test)]
mod tests;

use dormouse_protocol::newtype::parse_hex;
use dormouse_protocol::{LogId, Slot, Subject, Term};

pub use bucket_key::{BucketEntry, BucketKey, BucketPrefix, InvalidKey};
pub use names::{BlobName, DeltaName, InvalidObjectName, ManifestNumber, Nonce, SnapshotName};

/// The folder of all logs.
#[must_use]
pub fn logs_folder() -> BucketPrefix {
    BucketPrefix::of_legal("logs/".to_owned())
}

/// Builds the keys of one log's objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogKeys(BucketPrefix);

impl LogKeys {
    /// The keys of `log`.
    #[must_use]
    pub fn new(log: &LogId) -> Self {
        Self(BucketPrefix::of_legal(format!("logs/{log}/")))
    }

    /// The log's folder: its slots, and the index that the sealing process wrote.
    #[must_use]
    pub const fn folder(&self) -> &BucketPrefix {
        &self.0
    }

    /// The key of a slot.
    #[must_use]
    pub fn slot(&self, slot: Slot) -> BucketKey {
        BucketKey::of_legal(format!("{}{:016x}", self.0, slot.get()))
    }

    /// The key of the index.
    #[must_use]
    pub fn index(&self) -> BucketKey {
        BucketKey::of_legal(format!("{}index", self.0))
    }

    /// The slots in a listing of the log's folder, ascending. Unknown names are ignored.
    #[must_use]
    pub fn read_listing(&self, entries: &[BucketEntry]) -> Vec<Slot> {
        self.read_sizes(entries).into_iter().map(|(slot, _)| slot).collect()
    }

    /// The slots in a listing of the log's folder with their sizes in bytes, ascending. Unknown names are ignored.
    #[must_use]
    pub fn read_sizes(&self, entries: &[BucketEntry]) -> Vec<(Slot, u64)> {
        let parse = |entry: &BucketEntry| {
            let name = entry.key.as_str().strip_prefix(self.0.as_str())?;
            parse_hex(name).map(|slot| (Slot::new(slot), entry.size_bytes))
        };
        let mut slots: Vec<(Slot, u64)> = entries.iter().filter_map(parse).collect();
        slots.sort_unstable();
        slots
    }
}

/// Builds the keys of one subject's objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectKeys(BucketPrefix);

impl SubjectKeys {
    /// The keys of `subject`.
    #[must_use]
    pub fn new(subject: &Subject) -> Self {
        Self(BucketPrefix::of_legal(format!("subjects/{}/", subject.escaped())))
    }

    /// The subject's folder, which holds all of its objects.
    #[must_use]
    pub const fn folder(&self) -> &BucketPrefix {
        &self.0
    }

    /// The key of a manifest.
    #[must_use]
    pub fn manifest(&self, number: ManifestNumber) -> BucketKey {
        BucketKey::of_legal(format!("{}{:012}.manifest", self.0, number.get()))
    }

    /// The key of a snapshot.
    #[must_use]
    pub fn snapshot(&self, name: &SnapshotName) -> BucketKey {
        BucketKey::of_legal(format!("{}{name}", self.0))
    }

    /// The key of a delta.
    #[must_use]
    pub fn delta(&self, name: &DeltaName) -> BucketKey {
        BucketKey::of_legal(format!("{}{name}", self.0))
    }

    /// The folder of the subject's blobs.
    #[must_use]
    pub fn blobs(&self) -> BucketPrefix {
        BucketPrefix::of_legal(format!("{}blobs/", self.0))
    }

    /// The key of a blob.
    #[must_use]
    pub fn blob(&self, name: &BlobName) -> BucketKey {
        BucketKey::of_legal(format!("{}blobs/{name}", self.0))
    }

    /// Parses a listing of the subject's folder.
    #[must_use]
    pub fn read_listing(&self, entries: &[BucketEntry]) -> Folder {
        let mut folder = Folder::default();
        for entry in entries {
            let name = entry.key.as_str().strip_prefix(self.0.as_str()).unwrap_or_default();
            if let Some(number) = name.strip_suffix(".manifest").and_then(ManifestNumber::parse) {
                folder.manifests.push(number);
            } else if let Ok(snapshot) = name.parse() {
                folder.snapshots.push(snapshot);
            } else if let Ok(delta) = name.parse() {
                folder.deltas.push(delta);
            } else if let Some(Ok(blob)) = name.strip_prefix("blobs/").map(str::parse) {
                folder.blobs.push(blob);
            } else {
                folder.unknown.push(entry.key.clone());
            }
        }
        folder.manifests.sort_unstable();
        folder.snapshots.sort_unstable();
        folder.deltas.sort_unstable();
        folder.blobs.sort_unstable();
        folder
    }
}

/// The key of diverged writes of `term`: entries that were accepted and that a later claim continued without.
#[must_use]
pub fn lost_delta_key(subject: &Subject, term: Term, nonce: Nonce) -> BucketKey {
    BucketKey::of_legal(format!("lost/{}/{}-{nonce}.delta", subject.escaped(), term.get()))
}

/// A parsed listing of a subject's folder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Folder {
    /// The manifests, lowest first.
    pub manifests: Vec<ManifestNumber>,
    /// The snapshots, in order of the manifests they were made for.
    pub snapshots: Vec<SnapshotName>,
    /// The deltas, in order of the manifests they were made for.
    pub deltas: Vec<DeltaName>,
    /// The blobs, in order of their terms.
    pub blobs: Vec<BlobName>,
    /// All other objects. They are never changed, because a newer version may use them.
    pub unknown: Vec<BucketKey>,
}

impl Folder {
    /// The number of the newest manifest; `None` if the subject has none.
    #[must_use]
    pub fn newest(&self) -> Option<ManifestNumber> {
        self.manifests.last().copied()
    }
}
