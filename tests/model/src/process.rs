//! A process: production's machines, and the state that production's shells keep beside them.

use std::rc::Rc;

use dormouse_commit_log::log::owner::{LogOwner, ReadNumber};
use dormouse_commit_log::log::seal::SealMachine;
use dormouse_commit_log::log::tails::Tails;
use dormouse_engine::ownership::claim::{Claim, TailSource};
use dormouse_engine::ownership::publish::Publish;
use dormouse_engine::ownership::reclaim::{LogReclaim, ReclaimInput};
use dormouse_format::keys::ManifestNumber;
use dormouse_format::manifest::Manifest;
use dormouse_protocol::Slot;

use crate::bucket::{ModelEntry, SlotObject};
use crate::settings::{MAX_REVS, MAX_SUBJECTS};

/// The operation at each rev; 0 means none.
pub type Revs = [u8; MAX_REVS];

/// One process of one server, with its current log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Process {
    /// Its log; `None` until it first needs one.
    pub log: Option<u8>,
    /// Production's owner machine of that log.
    pub owner: LogOwner,
    /// Production's record of the retained slots of the log.
    pub tails: Tails<u8>,
    /// The segment in flight.
    pub put: Option<Put>,
    /// The entries that wait for shipping.
    pub waiting: Vec<ModelEntry>,
    /// The probe of the next slot that the owner requested.
    pub probe: Option<SlotProbe>,
    /// A probe that only a driver with a broken rule makes.
    pub rogue_probe: Option<SlotProbe>,
    /// Reads that wait for a barrier.
    pub reads: Vec<Read>,
    /// The subjects.
    pub places: [SubjectRole; MAX_SUBJECTS],
    /// The reclaim of an orphaned log.
    pub drain: Option<Box<Draining>>,
    /// How often the process may still start to open each subject.
    pub opens: [u8; MAX_SUBJECTS],
    /// Logs of dead servers that the local disk records: sealed, and permitted to be claimed from.
    pub noted: u32,
    /// The generation of its lease, while it has one.
    pub lease: Option<u8>,
    /// The generation of the lease under which a barrier passed.
    pub confirmed: Option<u8>,
    /// The number of nonces drawn under this log.
    pub nonces: u8,
    /// The number of slots by which a driver with a broken rule is ahead of the owner.
    pub ahead: u64,
}

/// The progress of an awaited create.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// A copy is in the network.
    Sent,
    /// The bucket has answered, and the reply is in the network: created, or an object existed.
    Answered(bool),
}

/// A segment in flight.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Put {
    /// The slot, as the bucket knows it.
    pub slot: Slot,
    /// The progress of its create.
    pub call: Call,
    /// Its entries.
    pub entries: Rc<[ModelEntry]>,
}

/// A probe of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlotProbe {
    /// The slot.
    pub slot: Slot,
    /// Whether an object existed, once the bucket has answered.
    pub found: Option<bool>,
}

/// A read that waits for a barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Read {
    /// Its number in the owner's order.
    pub number: ReadNumber,
    /// The subject.
    pub subject: u8,
    /// The lease when it arrived.
    pub lease: Option<u8>,
    /// The writes that were acknowledged when it arrived.
    pub acknowledged: Revs,
}

/// The role of a process for a subject.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SubjectRole {
    /// None.
    Closed,
    /// The process opens the subject.
    Opening(Box<Opening>),
    /// The process serves the subject.
    Serving(Box<Serving>),
}

/// A claim, for serving or for a reclaim.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Opening {
    /// Production's machine.
    pub claim: Claim,
    /// The log for which it claims.
    pub log: u8,
    /// The step that it is waiting for.
    pub want: Want,
    /// The manifest that was read last.
    pub base: Option<Box<Manifest>>,
    /// The newest number in the last listing.
    pub listed: u64,
    /// The seal of the base's owner.
    pub fence: Slot,
    /// The restored state.
    pub ops: Vec<u8>,
    /// The subject.
    pub subject: u8,
    /// Its manifest was created, and must now be listed as the newest.
    pub created: bool,
    /// The result that is reported to a reclaim.
    pub ended: Option<ReclaimInput>,
}

/// The steps that a claim can wait for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Want {
    /// A listing of the folder.
    List,
    /// A manifest.
    Get(ManifestNumber),
    /// The seal of a log.
    Seal(Sealing),
    /// The state.
    Restore(Option<Box<Manifest>>, TailSource),
    /// The creation of a manifest.
    Create(Rc<Manifest>, Call),
    /// None: the claim has ended.
    Ended,
}

/// An attempt to get a log sealed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sealing {
    /// The log.
    pub log: u8,
    /// Production's machine.
    pub machine: SealMachine,
    /// The step that it is waiting for.
    pub want: SealWant,
    /// A driver with a broken rule answers the next listing with this slot.
    pub blind: Option<Slot>,
}

/// The steps that a seal can wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SealWant {
    /// A listing.
    List,
    /// The object in a slot.
    Read(Slot),
    /// The creation of the seal with this nonce.
    Create(Slot, u16, Call),
}

impl SealWant {
    /// Returns the object to create.
    #[must_use]
    pub const fn object(nonce: u16) -> SlotObject {
        SlotObject::Seal(nonce)
    }
}

/// A subject that is served.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Serving {
    /// The manifest under which the process serves.
    pub manifest: Box<Manifest>,
    /// The applied operations: every acknowledged write.
    pub ops: Vec<u8>,
    /// Whether the subject is closing.
    pub leaving: Leaving,
    /// A publish.
    pub publishing: Option<Publishing>,
}

/// Whether a subject takes new requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Leaving {
    /// It does.
    No,
    /// It is being released.
    Released,
    /// Another process owns it.
    Fenced,
}

/// A publish in progress.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Publishing {
    /// Production's machine.
    pub machine: Publish,
    /// The manifest, and the progress of its create; `None` if it was given up with an indeterminate result.
    pub call: Option<(Rc<Manifest>, Call)>,
    /// The publish releases the subject.
    pub releases: bool,
}

/// A reclaim by production's machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Draining {
    /// Production's machine.
    pub machine: LogReclaim,
    /// The log.
    pub log: u8,
    /// Its stage.
    pub stage: DrainStage,
}

/// The stages of a reclaim.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DrainStage {
    /// It seals the log.
    Sealing(Sealing),
    /// It frees a subject.
    Settling(Box<Opening>),
}

impl Process {
    /// A process without a log.
    #[must_use]
    pub fn new(opens: [u8; MAX_SUBJECTS]) -> Self {
        Self {
            log: None,
            owner: LogOwner::new(Slot::new(1)),
            tails: Tails::new(),
            put: None,
            waiting: Vec::new(),
            probe: None,
            rogue_probe: None,
            reads: Vec::new(),
            places: [const { SubjectRole::Closed }; MAX_SUBJECTS],
            drain: None,
            opens,
            noted: 0,
            lease: None,
            confirmed: None,
            nonces: 0,
            ahead: 0,
        }
    }

    /// Returns whether reads may be answered at once: production's `ReadLease::is_confirmed`.
    #[must_use]
    pub fn has_confirmed_lease(&self) -> bool {
        self.lease.is_some() && self.lease == self.confirmed
    }

    /// Returns the number of entries of a subject that are not shipped.
    pub fn unshipped(&self, subject: u8) -> usize {
        let in_flight = self.put.iter().flat_map(|put| put.entries.iter());
        in_flight.chain(&self.waiting).filter(|entry| entry.subject == subject).count()
    }

    /// Returns the subject if the process serves it.
    pub fn serving(&mut self, subject: u8) -> Option<&mut Serving> {
        match &mut self.places[usize::from(subject)] {
            SubjectRole::Serving(serving) => Some(serving),
            _ => None,
        }
    }

    /// Returns the subject if the process serves it.
    #[must_use]
    pub fn served(&self, subject: u8) -> Option<&Serving> {
        match &self.places[usize::from(subject)] {
            SubjectRole::Serving(serving) => Some(serving),
            _ => None,
        }
    }

    /// Returns every claim in progress.
    pub fn openings(&self) -> impl Iterator<Item = (Option<u8>, &Opening)> {
        let places = self.places.iter().enumerate().filter_map(|(subject, place)| match place {
            SubjectRole::Opening(opening) => Some((Some(subject as u8), opening.as_ref())),
            _ => None,
        });
        let drain = self.drain.as_ref().and_then(|drain| match &drain.stage {
            DrainStage::Settling(opening) => Some((None, opening.as_ref())),
            DrainStage::Sealing(_) => None,
        });
        places.chain(drain)
    }
}
