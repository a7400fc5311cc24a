//! A process: production's machines, and what production's shells keep beside them.

use std::rc::Rc;

use dormouse_protocol::Slot;
use dormouse_storage::keys::ManifestNumber;
use dormouse_storage::log::owner::{Owner, ReadNumber};
use dormouse_storage::log::seal::Seal;
use dormouse_storage::log::tails::Tails;
use dormouse_storage::manifest::Manifest;
use dormouse_storage::ownership::claim::{Claim, Tail};
use dormouse_storage::ownership::drain::{Drain, DrainInput};
use dormouse_storage::ownership::publish::Publish;

use crate::bucket::{Entry, SlotObject};
use crate::settings::{MOST_REVS, MOST_SUBJECTS};

/// The operation at each rev; 0: none.
pub type Revs = [u8; MOST_REVS];

/// One process of one server, with the log that it writes now.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Process {
    /// Its log; `None` until it first needs one.
    pub log: Option<u8>,
    /// Production's owner of that log.
    pub owner: Owner,
    /// Production's books of what is still needed of it.
    pub tails: Tails<u8>,
    /// The segment in flight.
    pub put: Option<Put>,
    /// What waits to be shipped.
    pub waiting: Vec<Entry>,
    /// The look at the next slot that the owner has asked for.
    pub look: Option<Look>,
    /// A look that only a lying driver makes.
    pub rogue_look: Option<Look>,
    /// Reads that wait for a barrier.
    pub reads: Vec<Read>,
    /// The subjects.
    pub places: [Place; MOST_SUBJECTS],
    /// A drain of a dead log.
    pub drain: Option<Box<Draining>>,
    /// How often it may yet begin to open each subject.
    pub opens: [u8; MOST_SUBJECTS],
    /// Logs that its disk notes as dead: allowed to be claimed from after they were sealed.
    pub noted: u32,
    /// The generation of its lease, while it has one.
    pub lease: Option<u8>,
    /// The generation that a barrier was passed under.
    pub trusted: Option<u8>,
    /// Nonces drawn under this log.
    pub nonces: u8,
    /// Slots by which a lying driver is ahead of the owner.
    pub ahead: u64,
}

/// How far a create has come that somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// A copy is in the network.
    Sent,
    /// The bucket has answered, and the answer is in the network: created, or there was something.
    Answered(bool),
}

/// A segment in flight.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Put {
    /// The slot, as the bucket knows it.
    pub slot: Slot,
    /// How far it has come.
    pub call: Call,
    /// What is in it.
    pub entries: Rc<[Entry]>,
}

/// A look at a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Look {
    /// The slot.
    pub slot: Slot,
    /// Whether there was an object, once the bucket has been asked.
    pub found: Option<bool>,
}

/// A read that waits for a barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Read {
    /// Its place in the owner's order.
    pub number: ReadNumber,
    /// The subject.
    pub subject: u8,
    /// The lease when it arrived.
    pub lease: Option<u8>,
    /// What had been acknowledged when it arrived.
    pub acknowledged: Revs,
}

/// What a process has to do with a subject.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// Nothing.
    Closed,
    /// It opens it.
    Opening(Box<Opening>),
    /// It serves it.
    Serving(Box<Serving>),
}

/// A claim, for serving or for draining.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Opening {
    /// Production's machine.
    pub claim: Claim,
    /// The log for which it claims.
    pub log: u8,
    /// What it waits for.
    pub want: Want,
    /// The manifest that was read last.
    pub base: Option<Box<Manifest>>,
    /// The newest number of the last listing.
    pub listed: u64,
    /// The seal of the base's owner.
    pub fence: Slot,
    /// The state that was restored.
    pub ops: Vec<u8>,
    /// The subject.
    pub subject: u8,
    /// Its manifest was created, and is to be seen the newest.
    pub created: bool,
    /// What a drain is told of its end.
    pub ended: Option<DrainInput>,
}

/// What a claim waits for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Want {
    /// A listing of the folder.
    List,
    /// A manifest.
    Get(ManifestNumber),
    /// The seal of a log.
    Seal(Sealing),
    /// The state.
    Restore(Option<Box<Manifest>>, Tail),
    /// The creation of a manifest.
    Create(Rc<Manifest>, Call),
    /// Nothing more.
    Ended,
}

/// An attempt to see a log sealed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sealing {
    /// The log.
    pub log: u8,
    /// Production's machine.
    pub machine: Seal,
    /// What it waits for.
    pub want: SealWant,
    /// A lying driver answers the next listing with this slot.
    pub blind: Option<Slot>,
}

/// What a seal waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SealWant {
    /// A listing.
    List,
    /// What lies in a slot.
    Look(Slot),
    /// The creation of the seal with this nonce.
    Create(Slot, u16, Call),
}

impl SealWant {
    /// The object that is created.
    #[must_use]
    pub const fn object(nonce: u16) -> SlotObject {
        SlotObject::Seal(nonce)
    }
}

/// A subject that is served.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Serving {
    /// The manifest under which.
    pub manifest: Box<Manifest>,
    /// What was applied: every acknowledged write.
    pub ops: Vec<u8>,
    /// Whether it is on its way out.
    pub leaving: Leaving,
    /// A publication.
    pub publishing: Option<Publishing>,
}

/// Whether a subject takes new requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Leaving {
    /// It does.
    No,
    /// It is being released.
    Released,
    /// Somebody else owns it.
    Lost,
}

/// A publication under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Publishing {
    /// Production's machine.
    pub machine: Publish,
    /// The manifest, and how far its creation has come; `None`: it was given up without a known outcome.
    pub call: Option<(Rc<Manifest>, Call)>,
    /// It hands the subject back.
    pub releases: bool,
}

/// A drain by production's machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Draining {
    /// Production's machine.
    pub machine: Drain,
    /// The log.
    pub log: u8,
    /// What it does.
    pub stage: DrainStage,
}

/// What a drain does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DrainStage {
    /// It seals the log.
    Seals(Sealing),
    /// It frees a subject.
    Settles(Box<Opening>),
}

impl Process {
    /// A process without a log.
    #[must_use]
    pub fn new(opens: [u8; MOST_SUBJECTS]) -> Self {
        Self {
            log: None,
            owner: Owner::new(Slot::new(1)),
            tails: Tails::new(),
            put: None,
            waiting: Vec::new(),
            look: None,
            rogue_look: None,
            reads: Vec::new(),
            places: [const { Place::Closed }; MOST_SUBJECTS],
            drain: None,
            opens,
            noted: 0,
            lease: None,
            trusted: None,
            nonces: 0,
            ahead: 0,
        }
    }

    /// Whether reads may be answered at once: production's `Trust::holds`.
    #[must_use]
    pub fn trusts(&self) -> bool {
        self.lease.is_some() && self.lease == self.trusted
    }

    /// The entries of a subject that are not yet shipped.
    pub fn unshipped(&self, subject: u8) -> usize {
        let in_flight = self.put.iter().flat_map(|put| put.entries.iter());
        in_flight.chain(&self.waiting).filter(|entry| entry.subject == subject).count()
    }

    /// The subject as it is served.
    pub fn serving(&mut self, subject: u8) -> Option<&mut Serving> {
        match &mut self.places[usize::from(subject)] {
            Place::Serving(serving) => Some(serving),
            _ => None,
        }
    }

    /// The subject as it is served.
    #[must_use]
    pub fn served(&self, subject: u8) -> Option<&Serving> {
        match &self.places[usize::from(subject)] {
            Place::Serving(serving) => Some(serving),
            _ => None,
        }
    }

    /// Every claim under way.
    pub fn openings(&self) -> impl Iterator<Item = (Option<u8>, &Opening)> {
        let places = self.places.iter().enumerate().filter_map(|(subject, place)| match place {
            Place::Opening(opening) => Some((Some(subject as u8), opening.as_ref())),
            _ => None,
        });
        let drain = self.drain.as_ref().and_then(|drain| match &drain.stage {
            DrainStage::Settles(opening) => Some((None, opening.as_ref())),
            DrainStage::Seals(_) => None,
        });
        places.chain(drain)
    }
}
