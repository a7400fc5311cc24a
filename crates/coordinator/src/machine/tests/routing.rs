//! Redirects end: after any sequence of orders, changes of members and load between a look-up and the request, lost messages
//! and lost state, no client is redirected in a loop. The servers
//! of this model read the manifests, and ask the coordinator only if a manifest does not name them as owner.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const SERVERS: usize = 3;
const SUBJECTS: usize = 4;

/// More hops than any path of redirects needs.
const MAX_HOPS: usize = 6;

struct Process {
    log: LogId,
    predecessor: Option<LogId>,
    runs: bool,
    requests_drain: bool,
}

#[derive(Debug, Clone)]
enum Event {
    Ask(usize),
    /// A client looks the subject up, and remembers the server.
    Look(usize),
    /// The client sends its request to the server that it remembers.
    AskRemembered(usize),
    Beat(usize),
    /// The server reports its load; the placement of new subjects follows.
    Load {
        server: usize,
        open_subjects: u64,
    },
    Drain(usize),
    Undrain(usize),
    RequestDrain(usize),
    /// A server releases a subject; the message to the coordinator may be lost.
    Release {
        server: usize,
        subject: usize,
        delivered: bool,
    },
    /// A process continues with a new log; its old log has ended.
    FreshLog(usize),
    Crash(usize),
    Move {
        subject: usize,
        server: usize,
    },
    Pass(u64),
    Restart,
    Forget,
}

fn event() -> impl Strategy<Value = Event> {
    let (server, subject) = (0..SERVERS, 0..SUBJECTS);
    prop_oneof![
        10 => subject.clone().prop_map(Event::Ask),
        6 => subject.clone().prop_map(Event::Look),
        6 => subject.clone().prop_map(Event::AskRemembered),
        3 => (server.clone(), prop::sample::select(vec![0, 1_000, 100_000]))
            .prop_map(|(server, open_subjects)| Event::Load { server, open_subjects }),
        4 => server.clone().prop_map(Event::Beat),
        2 => server.clone().prop_map(Event::Drain),
        2 => server.clone().prop_map(Event::Undrain),
        1 => server.clone().prop_map(Event::RequestDrain),
        4 => (server.clone(), subject.clone(), prop::bool::weighted(0.7))
            .prop_map(|(server, subject, delivered)| Event::Release { server, subject, delivered }),
        2 => server.clone().prop_map(Event::FreshLog),
        1 => server.clone().prop_map(Event::Crash),
        3 => (subject, server).prop_map(|(subject, server)| Event::Move { subject, server }),
        2 => (1..5_000_u64).prop_map(Event::Pass),
        1 => Just(Event::Restart),
        1 => Just(Event::Forget),
    ]
}

struct Fleet {
    world: World,
    processes: Vec<Process>,
    /// The owner in the newest manifest of each subject; `None` if it is released.
    bucket: BTreeMap<usize, Option<LogId>>,
    /// The servers that earlier look-ups returned.
    remembered: BTreeMap<usize, String>,
    load: [u64; SERVERS],
    logs: u128,
}

/// The result of a client's request.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    ServedBy(usize),
    /// The client has to wait until a server is declared dead or joins.
    Waits,
}

impl Fleet {
    fn new() -> Self {
        let process = |n| Process {
            log: log(&format!("s{n}"), n as u128),
            predecessor: None,
            runs: true,
            requests_drain: false,
        };
        let processes: Vec<_> = (0..SERVERS).map(process).collect();
        let mut fleet = Self {
            world: World::new(),
            processes,
            bucket: BTreeMap::new(),
            remembered: BTreeMap::new(),
            load: [0; SERVERS],
            logs: SERVERS as u128,
        };
        (0..SERVERS).for_each(|server| fleet.beat(server));
        fleet
    }

    fn beat(&mut self, server: usize) {
        let Process { log, predecessor, runs: true, requests_drain } = &self.processes[server] else {
            return;
        };
        let CoordinatorInput::Heartbeat(beat) =
            (if *requests_drain { draining(log) } else { heartbeat(log) })
        else {
            unreachable!()
        };
        let load = ServerLoad { open_subjects: self.load[server], ..ServerLoad::default() };
        let beat = CoordinatorInput::Heartbeat(HeartbeatRequest { load, ..beat });
        if self.world.ask(beat.clone()).is_err() {
            let again = predecessor.as_ref().map_or_else(|| join(log), |before| join_after(log, before));
            let joined = self.world.ask(again);
            assert!(joined.is_ok(), "{log}: {joined:?}");
            self.world.ask(beat).unwrap();
        }
    }

    /// A client asks for the subject and follows the redirects.
    fn ask(&mut self, subject: usize) -> Outcome {
        let Ok(at) = self.locate(subject) else { return Outcome::Waits };
        self.ask_at(subject, at)
    }

    /// A look-up. It records nothing.
    fn locate(&mut self, subject: usize) -> Result<String, ErrorCode> {
        let name = format!("s.{subject}");
        let before = self.world.recorded(&name);
        let located = self.world.locate(&name);
        assert_eq!(self.world.recorded(&name), before);
        located
    }

    /// A client sends its request to a server that it knows from somewhere, and follows the redirects.
    fn ask_at(&mut self, subject: usize, mut at: String) -> Outcome {
        let name = format!("s.{subject}");
        let mut path = Vec::new();
        loop {
            path.push(at.clone());
            assert!(path.len() < MAX_HOPS, "{name}: {path:?}, recorded {:?}", self.world.recorded(&name));
            let server: usize = at.strip_prefix('s').unwrap().parse().unwrap();
            let Process { log, runs, .. } = &self.processes[server];
            let log = log.clone();
            if !runs {
                // No reply: the client asks the coordinator again, whose answer stays the same until it declares the
                // process dead.
                return Outcome::Waits;
            }
            let owner = self.bucket.get(&subject).cloned().flatten();
            if owner.as_ref() == Some(&log) {
                return Outcome::ServedBy(server);
            }
            match self.world.claim(&name, &log, owner.as_ref()) {
                Ok(()) => {
                    self.bucket.insert(subject, Some(log));
                    return Outcome::ServedBy(server);
                }
                Err((ErrorCode::NotOwner, Some(owner))) => at = owner,
                Err((ErrorCode::UnknownServer, _)) => self.beat(server),
                Err((ErrorCode::Unavailable, _)) => return Outcome::Waits,
                Err(other) => panic!("{other:?}"),
            }
        }
    }

    fn fresh_log(&mut self, server: usize) {
        self.logs += 1;
        let fresh = log(&format!("s{server}"), self.logs);
        let process = &mut self.processes[server];
        process.predecessor = Some(std::mem::replace(&mut process.log, fresh));
        process.runs = true;
        process.requests_drain = false;
        self.beat(server);
    }

    fn step(&mut self, event: &Event) {
        match *event {
            Event::Ask(subject) => {
                self.ask(subject);
            }
            Event::Look(subject) => {
                if let Ok(at) = self.locate(subject) {
                    self.remembered.insert(subject, at);
                }
            }
            Event::AskRemembered(subject) => {
                if let Some(at) = self.remembered.remove(&subject) {
                    self.ask_at(subject, at);
                }
            }
            Event::Beat(server) => self.beat(server),
            Event::Load { server, open_subjects } => {
                self.load[server] = open_subjects;
                self.beat(server);
            }
            // The coordinator refuses an unknown server, and a target that takes no subjects.
            Event::Drain(server) => drop(self.world.ask(CoordinatorInput::Drain(self.name(server)))),
            Event::Undrain(server) => drop(self.world.ask(CoordinatorInput::Undrain(self.name(server)))),
            Event::Move { subject, server } => {
                let to = self.name(server);
                drop(self.world.ask(move_to(&format!("s.{subject}"), to.as_str())));
            }
            Event::RequestDrain(server) => {
                self.processes[server].requests_drain = true;
                self.beat(server);
            }
            Event::Release { server, subject, delivered } => {
                let Process { log, runs, .. } = &self.processes[server];
                let log = log.clone();
                if *runs
                    && self.bucket.get(&subject).is_none_or(|owner| owner.as_ref().is_none_or(|o| *o == log))
                {
                    self.bucket.insert(subject, None);
                    if delivered {
                        self.world.ask(release(&format!("s.{subject}"), &log)).unwrap();
                    }
                }
            }
            Event::FreshLog(server) => self.fresh_log(server),
            Event::Crash(server) => self.processes[server].runs = false,
            Event::Pass(ms) => self.world.pass(Duration::from_millis(ms)),
            Event::Restart => self.world.restart(TTL),
            Event::Forget => {
                self.world.disk.wipe();
                self.world.restart(TTL);
            }
        }
    }

    fn name(&self, server: usize) -> ServerName {
        self.processes[server].log.server().clone()
    }

    /// Lets more time pass than any wait takes, without further events.
    fn settle(&mut self) {
        for _ in 0..40 {
            (0..SERVERS).for_each(|server| self.beat(server));
            self.world.pass(Duration::from_secs(1));
        }
        (0..SERVERS).for_each(|server| self.beat(server));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    /// In random runs redirects never loop, and if any server takes subjects, a client reaches a serving owner.
    #[test]
    fn redirects_never_loop(
        events in proptest::collection::vec(event(), 1..80)
    ) {
        let mut fleet = Fleet::new();
        for event in &events {
            fleet.step(event);
        }
        fleet.settle();
        let any_takes_subjects = fleet.processes.iter().any(|process| process.runs && !process.requests_drain);
        for subject in 0..SUBJECTS {
            let outcome = fleet.ask(subject);
            if any_takes_subjects {
                prop_assert!(matches!(outcome, Outcome::ServedBy(_)), "{}: {:?}", subject, outcome);
                prop_assert_eq!(fleet.ask(subject), outcome);
                // The coordinator has recorded the owner.
                let name = format!("s.{subject}");
                let Ok(at) = fleet.world.locate(&name) else { panic!("{name}") };
                let owner = fleet.bucket[&subject].clone().unwrap();
                prop_assert_eq!(at.as_str(), owner.server().as_str());
            }
        }
    }
}

/// A coordinator that lost its state learns all owners again in any join order, and no subject moves.
#[test]
fn coordinator_relearns_owners_in_any_join_order() {
    for first_back in 0..SERVERS {
        let mut fleet = Fleet::new();
        (0..SUBJECTS).for_each(|subject| assert!(matches!(fleet.ask(subject), Outcome::ServedBy(_))));
        let owners = fleet.bucket.clone();
        fleet.step(&Event::Forget);
        assert_eq!(fleet.ask(0), Outcome::Waits, "no member is known yet");
        // Only one server has joined again; the others still serve their subjects.
        fleet.beat(first_back);
        for subject in 0..SUBJECTS {
            assert!(matches!(fleet.ask(subject), Outcome::ServedBy(_)));
        }
        (0..SERVERS).for_each(|server| fleet.beat(server));
        for subject in 0..SUBJECTS {
            assert!(matches!(fleet.ask(subject), Outcome::ServedBy(_)));
        }
        assert_eq!(fleet.bucket, owners, "no subject moved");
        fleet.settle();
        (0..SUBJECTS).for_each(|subject| assert!(matches!(fleet.ask(subject), Outcome::ServedBy(_))));
        assert_eq!(fleet.bucket, owners);
    }
}
