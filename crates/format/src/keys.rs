//! Object keys: the keys of a subject's and a log's objects in the bucket, and the meaning of listed keys.

mod bucket_key;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use dormouse_protocol::{LogId, Rev, Slot, Subject, Term};
use serde::{Deserialize, Serialize};
use ulid::Ulid;

pub use bucket_key::{BucketEntry, BucketKey, BucketPrefix, InvalidKey};

/// Digits of a manifest's number in object names, so that names sort as numbers do.
const NUMBER_DIGITS: usize = 12;

/// Hexadecimal digits of a slot in object names.
const SLOT_DIGITS: usize = 16;

/// Number of a subject's manifest. The first is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ManifestNumber(u64);

impl ManifestNumber {
    /// The number of a subject's first manifest.
    pub const FIRST: Self = Self(1);

    /// Wraps the number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The bare number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    fn parse(digits: &str) -> Option<Self> {
        let exact = digits.len() == NUMBER_DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
        let number = exact.then(|| digits.parse().ok()).flatten()?;
        (number >= Self::FIRST.0).then_some(Self(number))
    }
}

impl fmt::Display for ManifestNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "manifest {}", self.0)
    }
}

/// Distinguishes an object from every other one that was meant for the same name. Each new object gets a fresh nonce;
/// a retry of the same object keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Nonce(Ulid);

impl Nonce {
    /// Wraps a ULID that the caller generated.
    #[must_use]
    pub const fn new(ulid: Ulid) -> Self {
        Self(ulid)
    }

    /// Wraps the 16 bytes from [`Nonce::to_bytes`].
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Ulid::from_bytes(bytes))
    }

    /// Its 16 bytes, as in binary formats.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_bytes()
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A text that is not a valid object name of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a {0}")]
pub struct InvalidObjectName(&'static str);

impl FromStr for Nonce {
    type Err = InvalidObjectName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Each nonce has one text form: ULIDs parse in both cases, object names do not.
        match Ulid::from_string(text) {
            Ok(ulid) if ulid.to_string() == text => Ok(Self(ulid)),
            _ => Err(InvalidObjectName("nonce")),
        }
    }
}

impl TryFrom<String> for Nonce {
    type Error = InvalidObjectName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Nonce> for String {
    fn from(nonce: Nonce) -> Self {
        nonce.to_string()
    }
}

/// The name of a snapshot within its subject's folder: `<n:012>-<rev>-<nonce>.sqlite3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotName {
    /// The manifest that the snapshot was made for: the first that may refer to it.
    pub made_for: ManifestNumber,
    /// The snapshot holds the subject's state at this rev.
    pub rev: Rev,
    /// Makes the name unique: no two uploads share one.
    pub nonce: Nonce,
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012}-{}-{}.sqlite3", self.made_for.0, self.rev.get(), self.nonce)
    }
}

impl FromStr for SnapshotName {
    type Err = InvalidObjectName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut parts = text.strip_suffix(".sqlite3")?.splitn(3, '-');
            let made_for = ManifestNumber::parse(parts.next()?)?;
            let rev = Rev::new(parts.next()?.parse().ok()?);
            let nonce = parts.next()?.parse().ok()?;
            let name = Self { made_for, rev, nonce };
            // Each name has one text form (no `+7`, no `007`).
            (name.to_string() == text).then_some(name)
        };
        parse().ok_or(InvalidObjectName("snapshot"))
    }
}

impl TryFrom<String> for SnapshotName {
    type Error = InvalidObjectName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SnapshotName> for String {
    fn from(name: SnapshotName) -> Self {
        name.to_string()
    }
}

/// The name of a delta within its subject's folder: `<n:012>-<rev>-<nonce>.delta`. It holds every entry after the base
/// before it, up to `rev`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeltaName {
    /// The manifest that the delta was made for: the first that may refer to it.
    pub made_for: ManifestNumber,
    /// The rev of its last entry.
    pub rev: Rev,
    /// Makes the name unique.
    pub nonce: Nonce,
}

impl fmt::Display for DeltaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012}-{}-{}.delta", self.made_for.0, self.rev.get(), self.nonce)
    }
}

impl FromStr for DeltaName {
    type Err = InvalidObjectName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut parts = text.strip_suffix(".delta")?.splitn(3, '-');
            let made_for = ManifestNumber::parse(parts.next()?)?;
            let rev = Rev::new(parts.next()?.parse().ok()?);
            let nonce = parts.next()?.parse().ok()?;
            let name = Self { made_for, rev, nonce };
            (name.to_string() == text).then_some(name)
        };
        parse().ok_or(InvalidObjectName("delta"))
    }
}

impl TryFrom<String> for DeltaName {
    type Error = InvalidObjectName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DeltaName> for String {
    fn from(name: DeltaName) -> Self {
        name.to_string()
    }
}

/// The name of a blob within `blobs/` of its subject's folder: `<term>-<ulid>`. Unique for every value, so messages
/// never share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlobName {
    /// The term under which it was written.
    pub term: Term,
    /// Makes the name unique.
    pub nonce: Nonce,
}

impl fmt::Display for BlobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.term.get(), self.nonce)
    }
}

impl FromStr for BlobName {
    type Err = InvalidObjectName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (term, nonce) = text.split_once('-')?;
            let name = Self { term: Term::new(term.parse().ok()?), nonce: nonce.parse().ok()? };
            (name.to_string() == text).then_some(name)
        };
        parse().ok_or(InvalidObjectName("blob"))
    }
}

impl TryFrom<String> for BlobName {
    type Error = InvalidObjectName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<BlobName> for String {
    fn from(name: BlobName) -> Self {
        name.to_string()
    }
}

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
        let parse = |entry: &BucketEntry| {
            let name = entry.key.as_str().strip_prefix(self.0.as_str())?;
            let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            let exact = name.len() == SLOT_DIGITS && name.bytes().all(digit);
            exact.then(|| u64::from_str_radix(name, 16).ok()).flatten().map(Slot::new)
        };
        let mut slots: Vec<Slot> = entries.iter().filter_map(parse).collect();
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
        BucketKey::of_legal(format!("{}{:012}.manifest", self.0, number.0))
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
