//! Tests of the machine: sequences of inputs, and their effects.

mod assignment;
mod balance;
mod draining;
mod membership;
mod moves;
mod restart;
mod routing;
mod safety;
mod tenants;

use std::time::Duration;

use dormouse_protocol::admin::MoveRequest;
use dormouse_protocol::fleet::{
    ClaimRequest, HeartbeatRequest, JoinRequest, LeaseReply, LeaveRequest, ReleaseRequest, ServerEntry,
    ServerLoad,
};
use dormouse_protocol::{ErrorCode, ErrorReply, Incarnation, LogId, ProtocolVersion, ServerName, Subject};
use ulid::Ulid;

use super::{AssignmentView, CoordinatorInput, CoordinatorMachine, CoordinatorReply, Effects, GoneProcess};
use crate::store::memory::{MemoryDisk, MemoryStore};
use crate::store::{Store, StoreChange, StoredState};

const TTL: Duration = Duration::from_secs(3);
const DEAD_AFTER: Duration = Duration::from_millis(3_900);
const STEP: Duration = Duration::from_millis(100);

impl AssignmentView for MemoryStore {
    fn assignment(&self, subject: &Subject) -> Option<ServerName> {
        self.assignments(std::slice::from_ref(subject)).unwrap().remove(0)
    }

    fn assigned_subjects(&self, server: &ServerName) -> u64 {
        self.counts().of(server)
    }
}

/// A machine with its store and a clock.
struct World {
    machine: CoordinatorMachine,
    disk: MemoryDisk,
    store: MemoryStore,
    now: Duration,
    runs: u128,
    gone: Vec<GoneProcess>,
}

impl World {
    /// A coordinator whose startup grace is over.
    fn new() -> Self {
        let mut world = Self::just_started();
        world.pass(Duration::from_secs(31));
        world
    }

    /// A coordinator that starts for the first time.
    fn just_started() -> Self {
        let disk = MemoryDisk::new();
        let store = MemoryStore::open(&disk);
        let now = Duration::from_secs(1_000);
        let (machine, _) = CoordinatorMachine::begin(incarnation(0), TTL, store.load_state().unwrap(), now);
        let mut world = Self { machine, disk, store, now, runs: 0, gone: Vec::new() };
        world.restart(TTL);
        world
    }

    /// Kills the coordinator and starts it again at once, granting leases of `ttl`.
    fn restart(&mut self, ttl: Duration) {
        self.begin(ttl, |_| Vec::new());
    }

    /// Starts a coordinator on the same disk after another one, with a disk of its own, has been at work.
    fn start_after_other_coordinator(&mut self) {
        self.begin(TTL, StoredState::distrust);
    }

    fn begin(&mut self, ttl: Duration, adjust: fn(&mut StoredState) -> Vec<StoreChange>) {
        self.runs += 1;
        self.store = MemoryStore::open(&self.disk);
        let mut stored = self.store.load_state().unwrap();
        self.commit(&adjust(&mut stored));
        let (machine, changes) = CoordinatorMachine::begin(incarnation(self.runs), ttl, stored, self.now);
        self.machine = machine;
        self.commit(&changes);
    }

    fn commit(&self, changes: &[StoreChange]) {
        self.store.write(changes).unwrap();
        self.store.flush().unwrap();
    }

    fn apply(&mut self, input: CoordinatorInput) -> Effects {
        let effects = self.machine.apply(input, self.now, &self.store);
        self.commit(&effects.changes);
        self.gone.extend(effects.gone.iter().cloned());
        effects
    }

    fn ask(&mut self, input: CoordinatorInput) -> Result<CoordinatorReply, ErrorReply> {
        self.apply(input).answer.expect("a request has an answer")
    }

    /// Lets time pass with a tick every 100 ms.
    fn pass(&mut self, time: Duration) {
        self.pass_with(time, &[]);
    }

    /// Lets time pass while these processes send heartbeats each TTL/3.
    fn pass_with(&mut self, time: Duration, alive: &[&LogId]) {
        let end = self.now + time;
        let mut beat = self.now;
        while self.now < end {
            self.now = (self.now + STEP).min(end);
            if self.now >= beat {
                beat = self.now + TTL / 3;
                for log in alive {
                    self.ask(heartbeat(log)).unwrap();
                }
            }
            self.apply(CoordinatorInput::Tick);
        }
    }

    fn locate(&mut self, name: &str) -> Result<String, ErrorCode> {
        match self.ask(CoordinatorInput::Locate(subject(name))) {
            Ok(CoordinatorReply::Located(reply)) => Ok(reply.server.to_string()),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.code),
        }
    }

    /// The first request of a client: it locates the subject, and the newest process of that server claims it, unless it
    /// does so already. Returns the server that the client ends at.
    fn open(&mut self, name: &str) -> Result<String, ErrorCode> {
        let server = self.locate(name)?;
        let log = self.machine.members[&ServerName::new(&server).unwrap()].record.log.clone();
        match self.claim(name, &log, None) {
            Ok(()) => Ok(server),
            Err((_, Some(other))) => Ok(other),
            Err((code, None)) => Err(code),
        }
    }

    /// `Ok` if granted, otherwise the error code and the server of the redirect.
    fn claim(
        &mut self,
        name: &str,
        log: &LogId,
        owner: Option<&LogId>,
    ) -> Result<(), (ErrorCode, Option<String>)> {
        let request =
            ClaimRequest { v: ProtocolVersion::CURRENT, claimant: log.clone(), owner: owner.cloned() };
        match self.ask(CoordinatorInput::Claim(subject(name), request)) {
            Ok(CoordinatorReply::Claimed(reply)) => {
                assert_eq!(reply.incarnation, self.machine.incarnation());
                Ok(())
            }
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err((error.code, error.owner.map(String::from))),
        }
    }

    fn recorded(&self, name: &str) -> Option<String> {
        self.store.assignment(&subject(name)).map(String::from)
    }

    fn joined(&mut self, name: &str, process: u128) -> LogId {
        let log = log(name, process);
        self.ask(join(&log)).unwrap();
        log
    }

    fn server(&mut self, name: &str) -> Option<ServerEntry> {
        let Ok(CoordinatorReply::Servers(reply)) = self.ask(CoordinatorInput::Servers) else {
            panic!("a list of servers")
        };
        reply.servers.into_iter().find(|entry| entry.name.as_str() == name)
    }
}

fn incarnation(run: u128) -> Incarnation {
    Incarnation::new(Ulid::from_parts(0, run))
}

fn subject(name: &str) -> Subject {
    Subject::new(name).unwrap()
}

fn log(name: &str, process: u128) -> LogId {
    LogId::new(ServerName::new(name).unwrap(), Ulid::from_parts(1, process))
}

fn join(log: &LogId) -> CoordinatorInput {
    CoordinatorInput::Join(JoinRequest {
        v: ProtocolVersion::CURRENT,
        log: log.clone(),
        predecessor: None,
        capacity: 100,
        version: "0.1.0".into(),
    })
}

fn join_after(log: &LogId, predecessor: &LogId) -> CoordinatorInput {
    let CoordinatorInput::Join(request) = join(log) else { unreachable!() };
    CoordinatorInput::Join(JoinRequest { predecessor: Some(predecessor.clone()), ..request })
}

fn heartbeat(log: &LogId) -> CoordinatorInput {
    CoordinatorInput::Heartbeat(HeartbeatRequest {
        v: ProtocolVersion::CURRENT,
        log: log.clone(),
        load: ServerLoad::default(),
        draining: false,
        busiest: Vec::new(),
        tenants: Vec::new(),
    })
}

fn draining(log: &LogId) -> CoordinatorInput {
    let CoordinatorInput::Heartbeat(request) = heartbeat(log) else { unreachable!() };
    CoordinatorInput::Heartbeat(HeartbeatRequest { draining: true, ..request })
}

fn leave(log: &LogId) -> CoordinatorInput {
    CoordinatorInput::Leave(LeaveRequest { v: ProtocolVersion::CURRENT, log: log.clone() })
}

fn release(name: &str, log: &LogId) -> CoordinatorInput {
    CoordinatorInput::Release(subject(name), ReleaseRequest { v: ProtocolVersion::CURRENT, log: log.clone() })
}

fn move_to(name: &str, server: &str) -> CoordinatorInput {
    let request = MoveRequest { v: ProtocolVersion::CURRENT, to: ServerName::new(server).unwrap() };
    CoordinatorInput::Move(subject(name), request)
}
