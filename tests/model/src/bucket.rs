//! The bucket of the model: the slots of logs, the manifests and bases of subjects, and the requests in flight.

use std::rc::Rc;

use dormouse_format::keys::{DeltaName, ManifestNumber, SnapshotName};
use dormouse_format::manifest::Manifest;
use dormouse_protocol::{LogId, ServerName, Slot, Subject};
use ulid::Ulid;

use crate::hash::Part;

/// A change of a subject, before it has a rev.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ModelEntry {
    /// The index of the subject in the world.
    pub subject: u8,
    /// The rev that it makes.
    pub rev: u8,
    /// Distinguishes it from every other write of the subject.
    pub op: u8,
}

/// The object in a slot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SlotObject {
    /// The header of a log.
    Birth,
    /// A segment.
    Data(Rc<[ModelEntry]>),
    /// A seal, with its nonce.
    Seal(u16),
}

/// The objects of a log.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct LogObjects {
    /// By slot.
    pub slots: Vec<Option<SlotObject>>,
    /// Slots that the owner permits to delete.
    pub owner_may_delete: u32,
    /// Slots that a collector permits to delete.
    pub collector_may_delete: u32,
    /// A collector that reads the manifests too early saw that no manifest names the log.
    pub seen_unneeded: bool,
}

impl LogObjects {
    /// A new log.
    #[must_use]
    pub fn with_header() -> Self {
        Self { slots: vec![Some(SlotObject::Birth)], ..Self::default() }
    }

    /// Returns the object in `slot`.
    #[must_use]
    pub fn get(&self, slot: Slot) -> Option<&SlotObject> {
        self.slots.get(index(slot)).and_then(Option::as_ref)
    }

    /// Returns the highest slot that exists.
    #[must_use]
    pub fn highest(&self) -> Option<Slot> {
        self.slots.iter().rposition(Option::is_some).map(|slot| Slot::new(slot as u64))
    }

    /// Returns the slots that exist, ascending.
    pub fn listed(&self) -> impl Iterator<Item = Slot> {
        let exists =
            |(slot, object): (usize, &Option<SlotObject>)| object.as_ref().map(|_| Slot::new(slot as u64));
        self.slots.iter().enumerate().filter_map(exists)
    }

    /// Returns whether the highest slot is a seal.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        matches!(self.slots.iter().rev().flatten().next(), Some(SlotObject::Seal(_)))
    }

    /// Creates an object if the slot is empty.
    pub fn create(&mut self, slot: Slot, object: SlotObject) -> bool {
        let at = index(slot);
        if self.slots.len() <= at {
            self.slots.resize(at + 1, None);
        }
        let free = self.slots[at].is_none();
        if free {
            self.slots[at] = Some(object);
        }
        free
    }

    /// Deletes a slot.
    pub fn delete(&mut self, slot: Slot) {
        self.slots[index(slot)] = None;
        while matches!(self.slots.last(), Some(None)) {
            self.slots.pop();
        }
    }

    /// Returns the entries of a subject in `from..to`, by slot.
    pub fn entries(&self, subject: u8, from: Slot, to: Slot) -> impl Iterator<Item = (Slot, ModelEntry)> {
        let range = self.slots.iter().enumerate().take(index(to)).skip(index(from));
        range
            .filter_map(|(slot, object)| match object {
                Some(SlotObject::Data(entries)) => Some((Slot::new(slot as u64), entries)),
                _ => None,
            })
            .flat_map(move |(slot, entries)| {
                entries.iter().filter(move |entry| entry.subject == subject).map(move |entry| (slot, *entry))
            })
    }
}

/// Converts a slot to an index.
#[must_use]
pub fn index(slot: Slot) -> usize {
    usize::try_from(slot.get()).unwrap_or(usize::MAX)
}

/// The name of a part of a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BaseName {
    /// A snapshot.
    Snapshot(SnapshotName),
    /// A delta.
    Delta(DeltaName),
}

impl BaseName {
    /// The number of the manifest that it was made for.
    #[must_use]
    pub const fn made_for(&self) -> ManifestNumber {
        match self {
            Self::Snapshot(name) => name.made_for,
            Self::Delta(name) => name.made_for,
        }
    }
}

/// A part of a base: the operations from a rev on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BaseObject {
    /// Its name.
    pub name: BaseName,
    /// The rev before the first.
    pub after: u8,
    /// The operations.
    pub ops: Vec<u8>,
}

/// The objects of a subject.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct FolderObjects {
    /// The manifests, lowest first.
    pub manifests: Vec<Rc<Manifest>>,
    /// Snapshots and deltas.
    pub bases: Vec<BaseObject>,
}

impl FolderObjects {
    /// Returns the newest manifest.
    #[must_use]
    pub fn newest(&self) -> Option<&Rc<Manifest>> {
        self.manifests.last()
    }

    /// Returns a manifest by its number.
    #[must_use]
    pub fn get(&self, number: ManifestNumber) -> Option<&Rc<Manifest>> {
        self.manifests.iter().find(|manifest| manifest.number == number)
    }

    /// Creates a manifest if its number is free.
    pub fn create(&mut self, manifest: &Rc<Manifest>) -> bool {
        match self.manifests.binary_search_by_key(&manifest.number, |there| there.number) {
            Ok(_) => false,
            Err(at) => {
                self.manifests.insert(at, Rc::clone(manifest));
                true
            }
        }
    }

    /// Returns the operations up to a manifest's base; `None` if a referenced object is missing.
    #[must_use]
    pub fn base(&self, manifest: &Manifest) -> Option<Vec<u8>> {
        let find = |name: BaseName| self.bases.iter().find(|base| base.name == name);
        let mut ops = Vec::new();
        if let Some(snapshot) = manifest.snapshot {
            ops.clone_from(&find(BaseName::Snapshot(snapshot.name))?.ops);
        }
        for delta in &manifest.deltas {
            let delta = find(BaseName::Delta(delta.name))?;
            // A delta that does not continue its predecessor leaves a gap, which counts as missing.
            let from = ops.len().checked_sub(usize::from(delta.after))?;
            ops.extend(delta.ops.iter().skip(from));
        }
        Some(ops)
    }

    /// Returns whether a manifest refers to an object.
    #[must_use]
    pub fn refers(manifest: &Manifest, name: &BaseName) -> bool {
        match name {
            BaseName::Snapshot(name) => manifest.snapshot.is_some_and(|snapshot| snapshot.name == *name),
            BaseName::Delta(name) => manifest.deltas.iter().any(|delta| delta.name == *name),
        }
    }
}

/// A create without a waiting sender. It may land at any time or never.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DetachedCreate {
    /// The create of a slot.
    Slot {
        /// The log.
        log: u8,
        /// The slot.
        slot: Slot,
        /// The object.
        object: SlotObject,
    },
    /// The create of a manifest.
    Manifest {
        /// The subject.
        subject: u8,
        /// The manifest.
        manifest: Rc<Manifest>,
    },
}

/// Returns the id of a log by its number.
#[must_use]
pub fn log_id(number: u8) -> LogId {
    thread_local!(static NAME: ServerName = ServerName::new("p").unwrap_or_else(|_| unreachable!()));
    LogId::new(NAME.with(Clone::clone), Ulid(number.into()))
}

/// Returns the number of a log.
#[must_use]
pub fn log_number(id: &LogId) -> u8 {
    id.ulid().0 as u8
}

/// Returns the name of a subject by its index.
#[must_use]
pub fn subject(index: u8) -> Subject {
    thread_local!(static NAMES: [Subject; 2] = ["x", "y"].map(|name| Subject::new(name).unwrap_or_else(|_| unreachable!())));
    NAMES.with(|names| names[usize::from(index)].clone())
}

/// Returns the index of a subject.
#[must_use]
pub fn subject_index(subject: &Subject) -> u8 {
    u8::from(subject.as_str() == "y")
}

/// The bucket of a world.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// The logs by number.
    pub logs: Vec<Part<LogObjects>>,
    /// The folders by subject index.
    pub folders: Vec<Part<FolderObjects>>,
    /// Requests whose senders no longer wait.
    pub network: Part<Vec<DetachedCreate>>,
}
