//! A target: a system that stores messages, used through the client of its users.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::path::PathBuf;
use std::rc::Rc;

use anyhow::{Result, bail};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::LocalBoxStream;

use crate::machine::{disk_bytes, resident_bytes};

/// The role of a process of a target; processor time is counted per role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Carries messages.
    Broker,
    /// Stores them. A JetStream server has both roles, and counts here.
    Server,
}

/// A process of a target.
#[derive(Debug, Clone, Copy)]
pub struct TargetProcess {
    /// Its role.
    pub role: Role,
    /// Its process id.
    pub pid: u32,
}

/// The capabilities of a target. The results name the missing ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// Stores a message and acknowledges it.
    Set,
    /// Creates a new subject.
    Create,
    /// Returns one message.
    Get,
    /// Returns all messages of a subject in order.
    GetAll,
    /// Reports changes as they happen.
    Watch,
    /// Stores and returns a value of any size, in chunks.
    Large,
    /// Restarts with its stored data, but without data in memory or on a server's own disk.
    Reopen,
}

/// A running system. Subjects are numbered; they exist once they are [created](Target::create).
///
/// All futures run on one thread, the client's own. An implementation uses the client as its documentation recommends
/// for speed, and nothing that its users would not use.
#[async_trait(?Send)]
pub trait Target {
    /// Returns the meaning of an acknowledged write.
    fn promise(&self) -> &'static str;

    /// Returns whether the target has a capability.
    fn can(&self, capability: Capability) -> bool;

    /// Returns its processes.
    fn members(&self) -> Vec<TargetProcess>;

    /// Returns the folder of all its data.
    fn folder(&self) -> Option<PathBuf>;

    /// Creates the new subject `number`, with one message of 128 bytes.
    async fn create(&self, number: usize) -> Result<()>;

    /// Is called before writes are measured, with the number in flight and the number of subjects. For clients that
    /// have a different call for each case.
    async fn expect_sets(&self, _in_flight: usize, _subjects: usize) -> Result<()> {
        Ok(())
    }

    /// Writes one message. Returns when the target acknowledges it as it [promises](Target::promise).
    async fn set(&self, number: usize, value: Bytes) -> Result<()>;

    /// Writes many messages as fast as the target accepts them, before something else is measured.
    async fn fill(&self, number: usize, messages: usize, value: Bytes) -> Result<()>;

    /// Reads the first message of a subject.
    async fn get(&self, number: usize) -> Result<Bytes>;

    /// Reads all messages of a subject in order. Returns their number.
    async fn get_all(&self, _number: usize) -> Result<usize> {
        bail!("cannot read a whole subject")
    }

    /// Reports each message written to the subject from now on, over a connection of its own.
    async fn watch(&self, _number: usize) -> Result<LocalBoxStream<'static, Result<Bytes>>> {
        bail!("cannot watch")
    }

    /// Writes a large value in chunks, replacing an earlier one.
    async fn put_large(&self, _bytes: u64) -> Result<()> {
        bail!("cannot store large values")
    }

    /// Reads that value in chunks. Returns its size.
    async fn get_large(&self) -> Result<u64> {
        bail!("cannot store large values")
    }

    /// Releases all subjects, drops all local data, and restarts.
    async fn restart_empty(&self) -> Result<()> {
        bail!("cannot reopen subjects")
    }
}

/// A running target, and its created subjects.
pub struct Running {
    /// Its name in the tables.
    pub name: String,
    /// The target; several tasks of the one thread use it.
    pub target: Rc<dyn Target>,
    created: RefCell<HashSet<usize>>,
    prepared: Cell<Prepared>,
}

/// The state of a target when it last got the subjects of a scenario.
#[derive(Debug, Clone, Copy, Default)]
struct Prepared {
    subjects: usize,
    resident_bytes: u64,
}

impl Running {
    /// Creates the record of a target without subjects.
    #[must_use]
    pub fn new(name: &str, target: Rc<dyn Target>) -> Self {
        Self { name: name.to_owned(), target, created: RefCell::default(), prepared: Cell::default() }
    }

    /// Returns the size of its data on disk, in bytes.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.target.folder().map_or(0, |folder| disk_bytes(&folder))
    }

    /// Returns the growth of its memory since it was last [prepared](Self::note_prepared) with new subjects, in bytes.
    ///
    /// # Errors
    /// If a process of it has ended.
    pub fn grown_bytes(&self) -> Result<u64> {
        Ok(self.resident_bytes()?.saturating_sub(self.prepared.get().resident_bytes))
    }

    /// Records that all subjects of a scenario exist.
    ///
    /// # Errors
    /// If a process of it has ended.
    pub fn note_prepared(&self) -> Result<()> {
        let subjects = self.created.borrow().len();
        if subjects > self.prepared.get().subjects {
            self.prepared.set(Prepared { subjects, resident_bytes: self.resident_bytes()? });
        }
        Ok(())
    }

    /// Returns the resident memory of its processes, in bytes.
    ///
    /// # Errors
    /// If a process of it has ended.
    pub fn resident_bytes(&self) -> Result<u64> {
        self.target.members().iter().map(|member| resident_bytes(member.pid)).sum()
    }

    /// Returns whether subject `number` must be created; from now on it counts as created.
    #[must_use]
    pub fn is_new(&self, number: usize) -> bool {
        self.created.borrow_mut().insert(number)
    }
}
