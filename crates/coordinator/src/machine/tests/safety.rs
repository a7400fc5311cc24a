//! Safety in random runs: paused processes, late messages, and a coordinator that crashes and loses its state.

use proptest::prelude::*;

use super::*;
use crate::lease::UNKNOWN_RESTART_WAIT;

/// A server process, from its own view.
struct Process {
    log: LogId,
    predecessor: Option<LogId>,
    /// The end of its lease, in its own view.
    lease_until: Duration,
    stopped: bool,
}

#[derive(Debug, Clone)]
enum Event {
    /// A process ends, and another one starts on the same data directory.
    Replace(usize),
    /// A process of the same name starts in another data directory.
    Intrude(usize),
    Stop(usize),
    /// A heartbeat that arrives after `delay_ms`; the process joins again if the reply is `unknown_server`.
    Beat {
        process: usize,
        delay_ms: u64,
        draining: bool,
    },
    Leave(usize),
    /// An operator orders a drain, or ends it.
    Drain {
        server: usize,
        ordered: bool,
    },
    /// An operator moves a subject.
    Move {
        subject: usize,
        server: usize,
    },
    Claim {
        process: usize,
        subject: usize,
        owner: Option<usize>,
    },
    Release {
        process: usize,
        subject: usize,
    },
    Locate(usize),
    Pass {
        ms: u64,
    },
    Restart {
        ttl_ms: u64,
    },
    Forget,
}

fn event() -> impl Strategy<Value = Event> {
    let process = 0..9_usize;
    let subject = 0..4_usize;
    prop_oneof![
        1 => process.clone().prop_map(Event::Replace),
        1 => process.clone().prop_map(Event::Intrude),
        1 => process.clone().prop_map(Event::Stop),
        12 => (process.clone(), 0..2_500_u64, prop::bool::weighted(0.1))
            .prop_map(|(process, delay_ms, draining)| Event::Beat { process, delay_ms, draining }),
        1 => process.clone().prop_map(Event::Leave),
        2 => (0..3_usize, any::<bool>()).prop_map(|(server, ordered)| Event::Drain { server, ordered }),
        2 => (subject.clone(), 0..3_usize).prop_map(|(subject, server)| Event::Move { subject, server }),
        8 => (process.clone(), subject.clone(), prop::option::weighted(0.8, process.clone()))
            .prop_map(|(process, subject, owner)| Event::Claim { process, subject, owner }),
        1 => (process, subject.clone()).prop_map(|(process, subject)| Event::Release { process, subject }),
        4 => subject.prop_map(Event::Locate),
        6 => (1..2_000_u64).prop_map(|ms| Event::Pass { ms }),
        1 => (500..20_000_u64).prop_map(|ttl_ms| Event::Restart { ttl_ms }),
        1 => Just(Event::Forget),
    ]
}

struct Fleet {
    world: World,
    processes: Vec<Process>,
    longest_ttl: Duration,
    /// When the coordinator last lost its state.
    forgot_at: Duration,
}

impl Fleet {
    fn new() -> Self {
        let process = |name, number| Process {
            log: log(name, number),
            predecessor: None,
            lease_until: Duration::ZERO,
            stopped: false,
        };
        let processes = vec![process("one", 1), process("two", 2), process("three", 3)];
        Self { world: World::new(), processes, longest_ttl: TTL, forgot_at: Duration::ZERO }
    }

    fn index(&self, process: usize) -> usize {
        process % self.processes.len()
    }

    fn add(&mut self, of: usize, predecessor: Option<LogId>) {
        let number = self.processes.len() as u128 + 1;
        let log = log(self.processes[of].log.server().as_str(), number);
        self.processes.push(Process { log, predecessor, lease_until: Duration::ZERO, stopped: false });
    }

    fn beat(&mut self, process: usize, delay: Duration, is_draining: bool) {
        let sent = self.world.now.saturating_sub(delay);
        let Process { log, predecessor, .. } = &self.processes[process];
        let beat = if is_draining { draining(log) } else { heartbeat(log) };
        let rejoin = match predecessor {
            Some(predecessor) => join_after(log, predecessor),
            None => join(log),
        };
        let lease = match self.world.ask(beat) {
            Err(error) if error.code == ErrorCode::UnknownServer => self.world.ask(rejoin),
            answer => answer,
        };
        if let Ok(CoordinatorReply::Lease(LeaseReply { ttl_ms, .. })) = lease {
            let lease_until = sent + Duration::from_millis(ttl_ms) * 7 / 10;
            let process = &mut self.processes[process];
            process.lease_until = process.lease_until.max(lease_until);
        }
    }

    fn step(&mut self, event: &Event) -> Result<(), TestCaseError> {
        match *event {
            Event::Replace(process) => {
                let process = self.index(process);
                // The lock of the data directory proves that the earlier process has ended.
                self.processes[process].stopped = true;
                self.processes[process].lease_until = Duration::ZERO;
                let predecessor = self.processes[process].log.clone();
                self.add(process, Some(predecessor));
            }
            Event::Intrude(process) => {
                let process = self.index(process);
                self.add(process, None);
            }
            Event::Stop(process) => {
                let process = self.index(process);
                self.processes[process].stopped = true;
            }
            Event::Beat { process, delay_ms, draining } => {
                let process = self.index(process);
                if !self.processes[process].stopped {
                    self.beat(process, Duration::from_millis(delay_ms), draining);
                }
            }
            Event::Leave(process) => {
                let process = self.index(process);
                // A process closes all its subjects before it sends a leave.
                self.processes[process].stopped = true;
                self.processes[process].lease_until = Duration::ZERO;
                let log = self.processes[process].log.clone();
                self.world.ask(leave(&log)).unwrap();
            }
            Event::Drain { server, ordered } => {
                let name = self.processes[server].log.server().clone();
                // The coordinator refuses the name of an unknown server.
                let _ = self.world.ask(if ordered {
                    CoordinatorInput::Drain(name)
                } else {
                    CoordinatorInput::Undrain(name)
                });
            }
            Event::Move { subject, server } => {
                let to = self.processes[server].log.server().as_str().to_owned();
                let _ = self.world.ask(move_to(&format!("s.{subject}"), &to));
            }
            Event::Claim { process, subject, owner } => self.claim(process, subject, owner)?,
            Event::Release { process, subject } => {
                let log = self.processes[self.index(process)].log.clone();
                self.world.ask(release(&format!("s.{subject}"), &log)).unwrap();
            }
            Event::Locate(subject) => self.locate(subject)?,
            Event::Pass { ms } => self.world.pass(Duration::from_millis(ms)),
            Event::Restart { ttl_ms } => {
                let mut ttl = Duration::from_millis(ttl_ms);
                if self.world.now < self.forgot_at + UNKNOWN_RESTART_WAIT {
                    // See `UNKNOWN_RESTART_WAIT`.
                    ttl = ttl.max(self.longest_ttl);
                }
                self.longest_ttl = self.longest_ttl.max(ttl);
                self.world.restart(ttl);
            }
            Event::Forget => {
                self.world.disk.wipe();
                self.forgot_at = self.world.now;
                self.world.restart(self.longest_ttl);
            }
        }
        self.check_one_member_per_name()
    }

    /// A claim is granted only after the lease of the owner has ended in the owner's view.
    fn claim(&mut self, process: usize, subject: usize, owner: Option<usize>) -> Result<(), TestCaseError> {
        let claimant = self.processes[self.index(process)].log.clone();
        let owner = owner.map(|owner| self.index(owner));
        let owner_log = owner.map(|owner| self.processes[owner].log.clone());
        let granted = self.world.claim(&format!("s.{subject}"), &claimant, owner_log.as_ref()).is_ok();
        if let (true, Some(owner)) = (granted, owner)
            && self.processes[owner].log != claimant
        {
            let lease_until = self.processes[owner].lease_until;
            prop_assert!(lease_until <= self.world.now, "granted during the lease of the owner");
        }
        Ok(())
    }

    /// Locate records nothing and never returns a dead server. It returns a draining server only if that server may own the subject, or if no
    /// other server takes subjects.
    fn locate(&mut self, subject: usize) -> Result<(), TestCaseError> {
        use dormouse_protocol::fleet::ServerState;
        let before = self.world.recorded(&format!("s.{subject}"));
        let located = self.world.locate(&format!("s.{subject}"));
        prop_assert_eq!(&self.world.recorded(&format!("s.{subject}")), &before);
        if let Ok(server) = located {
            let state = self.world.server(&server).map(|entry| entry.state);
            let forgotten = state.is_none() && self.world.machine.is_in_startup_grace();
            let alive = match state {
                Some(ServerState::Alive) => true,
                Some(ServerState::Draining) => {
                    before.as_ref() == Some(&server) || self.no_server_takes_subjects()
                }
                Some(ServerState::Drained) => self.no_server_takes_subjects(),
                Some(ServerState::Dead) | None => false,
            };
            prop_assert!(forgotten || alive, "{} is {:?}", server, state);
        }
        Ok(())
    }

    /// Returns whether no server is alive and free of drain orders.
    fn no_server_takes_subjects(&mut self) -> bool {
        use dormouse_protocol::fleet::ServerState;
        let alive = |name| self.world.server(name).is_some_and(|entry| entry.state == ServerState::Alive);
        !["one", "two", "three"].into_iter().any(alive)
    }

    /// Of all processes with one name, at most one is a member.
    fn check_one_member_per_name(&mut self) -> Result<(), TestCaseError> {
        for name in ["one", "two", "three"] {
            let members = self
                .processes
                .iter()
                .filter(|process| process.log.server().as_str() == name)
                .filter(|process| self.world.machine.is_member(&process.log))
                .count();
            prop_assert!(members <= 1);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    /// In random runs the coordinator grants a claim only after the lease of the named owner has ended.
    #[test]
    fn claim_is_granted_only_after_lease_of_owner_ends(
        events in proptest::collection::vec(event(), 1..120)
    ) {
        let mut fleet = Fleet::new();
        for event in &events {
            fleet.step(event)?;
        }
    }
}
