//! Scripts for the machine: who says what when, and what comes of it.

mod assignment;
mod balance;
mod draining;
mod membership;
mod moves;
mod restart;
mod routing;
mod safety;

use std::time::Duration;

use dormouse_protocol::admin::MoveRequest;
use dormouse_protocol::fleet::{
    ClaimRequest, HeartbeatRequest, JoinRequest, LeaseReply, LeaveRequest, ReleaseRequest, ServerEntry,
    ServerLoad,
};
use dormouse_protocol::{ErrorCode, ErrorReply, Incarnation, LogId, ProtocolVersion, ServerName, Subject};
use ulid::Ulid;

use super::{Answer, AssignmentView, Effects, Gone, Input, Machine};
use crate::store::memory::{MemoryDisk, MemoryStore};
use crate::store::{Change, Remembered, Store};

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
    machine: Machine,
    disk: MemoryDisk,
    store: MemoryStore,
    now: Duration,
    runs: u128,
    gone: Vec<Gone>,
}

impl World {
    /// A coordinator that has been running for long.
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
        let (machine, _) = Machine::begin(incarnation(0), TTL, store.remembered().unwrap(), now);
        let mut world = Self { machine, disk, store, now, runs: 0, gone: Vec::new() };
        world.restart(TTL);
        world
    }

    /// Kills the coordinator and starts it again at once, granting leases of `ttl`.
    fn restart(&mut self, ttl: Duration) {
        self.begin(ttl, |_| Vec::new());
    }

    /// Starts a coordinator on the same disk after another one, with a disk of its own, has been at work.
    fn follow_another(&mut self) {
        self.begin(TTL, Remembered::doubt);
    }

    fn begin(&mut self, ttl: Duration, doubt: fn(&mut Remembered) -> Vec<Change>) {
        self.runs += 1;
        self.store = MemoryStore::open(&self.disk);
        let mut remembered = self.store.remembered().unwrap();
        self.commit(&doubt(&mut remembered));
        let (machine, changes) = Machine::begin(incarnation(self.runs), ttl, remembered, self.now);
        self.machine = machine;
        self.commit(&changes);
    }

    fn commit(&self, changes: &[Change]) {
        self.store.write(changes).unwrap();
        self.store.flush().unwrap();
    }

    fn apply(&mut self, input: Input) -> Effects {
        let effects = self.machine.apply(input, self.now, &self.store);
        self.commit(&effects.changes);
        self.gone.extend(effects.gone.iter().cloned());
        effects
    }

    fn ask(&mut self, input: Input) -> Result<Answer, ErrorReply> {
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
            self.apply(Input::Tick);
        }
    }

    fn locate(&mut self, name: &str) -> Result<String, ErrorCode> {
        match self.ask(Input::Locate(subject(name))) {
            Ok(Answer::Located(reply)) => Ok(reply.server.to_string()),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.code),
        }
    }

    /// `Ok` when granted, else the code and the server to ask instead.
    fn claim(
        &mut self,
        name: &str,
        log: &LogId,
        owner: Option<&LogId>,
    ) -> Result<(), (ErrorCode, Option<String>)> {
        let request =
            ClaimRequest { v: ProtocolVersion::CURRENT, claimant: log.clone(), owner: owner.cloned() };
        match self.ask(Input::Claim(subject(name), request)) {
            Ok(Answer::Claimed(reply)) => {
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
        let Ok(Answer::Servers(reply)) = self.ask(Input::Servers) else { panic!("a list of servers") };
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

fn join(log: &LogId) -> Input {
    Input::Join(JoinRequest {
        v: ProtocolVersion::CURRENT,
        log: log.clone(),
        predecessor: None,
        capacity: 100,
        version: "0.1.0".into(),
    })
}

fn join_after(log: &LogId, predecessor: &LogId) -> Input {
    let Input::Join(request) = join(log) else { unreachable!() };
    Input::Join(JoinRequest { predecessor: Some(predecessor.clone()), ..request })
}

fn heartbeat(log: &LogId) -> Input {
    Input::Heartbeat(HeartbeatRequest {
        v: ProtocolVersion::CURRENT,
        log: log.clone(),
        load: ServerLoad::default(),
        draining: false,
        busiest: Vec::new(),
    })
}

fn draining(log: &LogId) -> Input {
    let Input::Heartbeat(request) = heartbeat(log) else { unreachable!() };
    Input::Heartbeat(HeartbeatRequest { draining: true, ..request })
}

fn leave(log: &LogId) -> Input {
    Input::Leave(LeaveRequest { v: ProtocolVersion::CURRENT, log: log.clone() })
}

fn release(name: &str, log: &LogId) -> Input {
    Input::Release(subject(name), ReleaseRequest { v: ProtocolVersion::CURRENT, log: log.clone() })
}

fn move_to(name: &str, server: &str) -> Input {
    let request = MoveRequest { v: ProtocolVersion::CURRENT, to: ServerName::new(server).unwrap() };
    Input::Move(subject(name), request)
}
