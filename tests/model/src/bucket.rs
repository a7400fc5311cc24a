//! The bucket as the protocol sees it: slots of logs, manifests and bases of subjects, and requests on their way.

use std::rc::Rc;

use dormouse_protocol::{LogId, ServerName, Slot, Subject};
use dormouse_storage::keys::{DeltaName, ManifestNumber, SnapshotName};
use dormouse_storage::manifest::Manifest;
use ulid::Ulid;

use crate::hash::Part;

/// A change of a subject, on its way to becoming a rev.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The subject's place in the world.
    pub subject: u8,
    /// The rev that it makes.
    pub rev: u8,
    /// Tells it from every other write of the subject.
    pub op: u8,
}

/// What lies in a slot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SlotObject {
    /// The header of a log.
    Birth,
    /// A segment.
    Data(Rc<[Entry]>),
    /// A seal, with its nonce.
    Seal(u16),
}

/// The objects of a log.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct LogObjects {
    /// By slot.
    pub slots: Vec<Option<SlotObject>>,
    /// Slots that may be deleted by their owner's word.
    pub owner_may_delete: u32,
    /// Slots that may be deleted by a collector's word.
    pub collector_may_delete: u32,
    /// A collector that looks too early saw that no manifest names the log.
    pub seen_unneeded: bool,
}

impl LogObjects {
    /// A log that was just born.
    #[must_use]
    pub fn born() -> Self {
        Self { slots: vec![Some(SlotObject::Birth)], ..Self::default() }
    }

    /// What lies in `slot`.
    #[must_use]
    pub fn get(&self, slot: Slot) -> Option<&SlotObject> {
        self.slots.get(index(slot)).and_then(Option::as_ref)
    }

    /// The highest slot that exists.
    #[must_use]
    pub fn highest(&self) -> Option<Slot> {
        self.slots.iter().rposition(Option::is_some).map(|slot| Slot::new(slot as u64))
    }

    /// The slots that exist, ascending.
    pub fn listed(&self) -> impl Iterator<Item = Slot> {
        let exists =
            |(slot, object): (usize, &Option<SlotObject>)| object.as_ref().map(|_| Slot::new(slot as u64));
        self.slots.iter().enumerate().filter_map(exists)
    }

    /// Whether the highest slot is a seal.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        matches!(self.slots.iter().rev().flatten().next(), Some(SlotObject::Seal(_)))
    }

    /// Creates an object if there is none in the slot.
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

    /// The entries of a subject, by slot, in `from..to`.
    pub fn entries(&self, subject: u8, from: Slot, to: Slot) -> impl Iterator<Item = (Slot, Entry)> {
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

/// A slot as an index.
#[must_use]
pub fn index(slot: Slot) -> usize {
    usize::try_from(slot.get()).unwrap_or(usize::MAX)
}

/// The name of something that a base consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BaseName {
    /// A snapshot.
    Snapshot(SnapshotName),
    /// A delta.
    Delta(DeltaName),
}

impl BaseName {
    /// The manifest that it was made for.
    #[must_use]
    pub const fn made_for(&self) -> ManifestNumber {
        match self {
            Self::Snapshot(name) => name.made_for,
            Self::Delta(name) => name.made_for,
        }
    }
}

/// What a base consists of: the operations from a rev on.
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
    /// The newest manifest.
    #[must_use]
    pub fn newest(&self) -> Option<&Rc<Manifest>> {
        self.manifests.last()
    }

    /// A manifest by its number.
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

    /// The operations up to a manifest's base; `None`: something that it refers to is missing.
    #[must_use]
    pub fn base(&self, manifest: &Manifest) -> Option<Vec<u8>> {
        let find = |name: BaseName| self.bases.iter().find(|base| base.name == name);
        let mut ops = Vec::new();
        if let Some(snapshot) = manifest.snapshot {
            ops.clone_from(&find(BaseName::Snapshot(snapshot.name))?.ops);
        }
        for delta in &manifest.deltas {
            let delta = find(BaseName::Delta(delta.name))?;
            // A delta that does not join is a hole, and a hole is something missing.
            let from = ops.len().checked_sub(usize::from(delta.after))?;
            ops.extend(delta.ops.iter().skip(from));
        }
        Some(ops)
    }

    /// Whether a manifest refers to an object.
    #[must_use]
    pub fn refers(manifest: &Manifest, name: &BaseName) -> bool {
        match name {
            BaseName::Snapshot(name) => manifest.snapshot.is_some_and(|snapshot| snapshot.name == *name),
            BaseName::Delta(name) => manifest.deltas.iter().any(|delta| delta.name == *name),
        }
    }
}

/// A create that nobody waits for any more, and that may land at any time or never.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Orphan {
    /// Of a slot.
    Slot {
        /// The log.
        log: u8,
        /// The slot.
        slot: Slot,
        /// The object.
        object: SlotObject,
    },
    /// Of a manifest.
    Manifest {
        /// The subject.
        subject: u8,
        /// The manifest.
        manifest: Rc<Manifest>,
    },
}

/// The id of a log by its number.
#[must_use]
pub fn log_id(number: u8) -> LogId {
    thread_local!(static NAME: ServerName = ServerName::new("p").unwrap_or_else(|_| unreachable!()));
    LogId::new(NAME.with(Clone::clone), Ulid(number.into()))
}

/// The number of a log.
#[must_use]
pub fn log_number(id: &LogId) -> u8 {
    id.ulid().0 as u8
}

/// A subject by its place.
#[must_use]
pub fn subject(place: u8) -> Subject {
    thread_local!(static NAMES: [Subject; 2] = ["x", "y"].map(|name| Subject::new(name).unwrap_or_else(|_| unreachable!())));
    NAMES.with(|names| names[usize::from(place)].clone())
}

/// The place of a subject.
#[must_use]
pub fn subject_place(subject: &Subject) -> u8 {
    u8::from(subject.as_str() == "y")
}

/// The bucket of a world.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// By number.
    pub logs: Vec<Part<LogObjects>>,
    /// By place.
    pub folders: Vec<Part<FolderObjects>>,
    /// Requests whose senders are gone.
    pub network: Part<Vec<Orphan>>,
}
