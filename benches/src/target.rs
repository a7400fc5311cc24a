//! What is measured: a system that keeps messages, seen through the client its users would use.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::path::PathBuf;
use std::rc::Rc;

use anyhow::{Result, bail};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::LocalBoxStream;

use crate::machine::{disk_bytes, resident_bytes};

/// What a process of a target is there for; processor time is told apart by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Carries messages.
    Broker,
    /// Keeps them. A JetStream server is both, and counts here.
    Server,
}

/// A process that belongs to a target.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    /// What it is there for.
    pub role: Role,
    /// Its process id.
    pub pid: u32,
}

/// What a target can be asked to do. What it cannot is said in the results by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ability {
    /// Keep a message and say so.
    Set,
    /// Make a subject that was never there.
    Create,
    /// Give back one message.
    Get,
    /// Give back all messages of a subject in order.
    GetAll,
    /// Tell of changes as they come.
    Watch,
    /// Keep a value of any size and give it back, piece by piece.
    Large,
    /// Begin anew with everything that it keeps, but nothing of it in memory or on a server's own disk.
    Sleep,
}

/// A running system. Subjects are numbered, and there once they are [created](Target::create).
///
/// All futures run on one thread, the client's own. Whoever implements it uses the client as its documentation shows
/// it to users who care for speed, and nothing that these would not use.
#[async_trait(?Send)]
pub trait Target {
    /// What it means that a write was answered.
    fn promise(&self) -> &'static str;

    /// Whether it can be asked for this.
    fn can(&self, ability: Ability) -> bool;

    /// Its processes.
    fn members(&self) -> Vec<Member>;

    /// The folder of everything that it keeps.
    fn folder(&self) -> Option<PathBuf>;

    /// Makes subject `number`, which was never there, with one message of 128 bytes.
    async fn create(&self, number: usize) -> Result<()>;

    /// Told before writes are measured: so many at a time, to so many subjects. For clients that have a different call
    /// for each.
    async fn expect_sets(&self, _in_flight: usize, _subjects: usize) -> Result<()> {
        Ok(())
    }

    /// Writes one message. Returns when the target says that it is kept as it [promises](Target::promise).
    async fn set(&self, number: usize, value: Bytes) -> Result<()>;

    /// Writes many messages as fast as the target takes them, before something else is measured.
    async fn fill(&self, number: usize, messages: usize, value: Bytes) -> Result<()>;

    /// Reads the first message of a subject.
    async fn get(&self, number: usize) -> Result<Bytes>;

    /// Reads all messages of a subject in order. Returns how many there were.
    async fn get_all(&self, _number: usize) -> Result<usize> {
        bail!("cannot read all")
    }

    /// Tells of each message written to the subject from now on, over a connection of its own.
    async fn watch(&self, _number: usize) -> Result<LocalBoxStream<'static, Result<Bytes>>> {
        bail!("cannot watch")
    }

    /// Writes a large value, piece by piece, in the place of an earlier one.
    async fn put_large(&self, _bytes: u64) -> Result<()> {
        bail!("cannot keep large values")
    }

    /// Reads that value, piece by piece. Returns its size.
    async fn get_large(&self) -> Result<u64> {
        bail!("cannot keep large values")
    }

    /// Hands everything back, forgets it, and begins anew.
    async fn sleep(&self) -> Result<()> {
        bail!("cannot sleep")
    }
}

/// A target that runs, and what has been made in it.
pub struct Running {
    /// Its name in the tables.
    pub name: String,
    /// The target; several tasks of the one thread use it.
    pub target: Rc<dyn Target>,
    created: RefCell<HashSet<usize>>,
    prepared: Cell<Prepared>,
}

/// What a target was when it last got subjects that a scenario needs.
#[derive(Debug, Clone, Copy, Default)]
struct Prepared {
    subjects: usize,
    resident_bytes: u64,
}

impl Running {
    /// A target in which nothing has been made.
    #[must_use]
    pub fn new(name: &str, target: Rc<dyn Target>) -> Self {
        Self { name: name.to_owned(), target, created: RefCell::default(), prepared: Cell::default() }
    }

    /// How much it keeps on disk, in bytes.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.target.folder().map_or(0, |folder| disk_bytes(&folder))
    }

    /// How much memory it has taken since it was last [prepared](Self::note_prepared) with new subjects, in bytes.
    ///
    /// # Errors
    /// When a process of it has ended.
    pub fn grown_bytes(&self) -> Result<u64> {
        Ok(self.resident_bytes()?.saturating_sub(self.prepared.get().resident_bytes))
    }

    /// Told when all is there that a scenario needs.
    ///
    /// # Errors
    /// When a process of it has ended.
    pub fn note_prepared(&self) -> Result<()> {
        let subjects = self.created.borrow().len();
        if subjects > self.prepared.get().subjects {
            self.prepared.set(Prepared { subjects, resident_bytes: self.resident_bytes()? });
        }
        Ok(())
    }

    /// Resident memory of its processes, in bytes.
    ///
    /// # Errors
    /// When a process of it has ended.
    pub fn resident_bytes(&self) -> Result<u64> {
        self.target.members().iter().map(|member| resident_bytes(member.pid)).sum()
    }

    /// Whether subject `number` has still to be made; from now on it counts as made.
    #[must_use]
    pub fn is_new(&self, number: usize) -> bool {
        self.created.borrow_mut().insert(number)
    }
}
