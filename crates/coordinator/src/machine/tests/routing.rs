//! A client that asks arrives: whatever was ordered, lost or forgotten, nobody is sent in a circle. Servers here do what
//! servers do with the bucket's word, and the coordinator's is only asked where theirs is not enough.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const SERVERS: usize = 3;
const SUBJECTS: usize = 4;

/// More hops than any way through the fleet needs.
const MANY_HOPS: usize = 6;

struct Process {
    log: LogId,
    predecessor: Option<LogId>,
    runs: bool,
    wishes_to_drain: bool,
}

#[derive(Debug, Clone)]
enum Event {
    Ask(usize),
    Beat(usize),
    Drain(usize),
    Undrain(usize),
    Wish(usize),
    /// A server hands a subject back; the coordinator may not hear of it.
    Release {
        server: usize,
        subject: usize,
        heard: bool,
    },
    /// A process goes on with a fresh log; its old one is over.
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
        4 => server.clone().prop_map(Event::Beat),
        2 => server.clone().prop_map(Event::Drain),
        2 => server.clone().prop_map(Event::Undrain),
        1 => server.clone().prop_map(Event::Wish),
        4 => (server.clone(), subject.clone(), prop::bool::weighted(0.7))
            .prop_map(|(server, subject, heard)| Event::Release { server, subject, heard }),
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
    /// What the newest manifest of each subject says: whose it is, unless it is released.
    bucket: BTreeMap<usize, Option<LogId>>,
    logs: u128,
}

/// What became of a client.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    ServedBy(usize),
    /// It has to wait until something that is dead is known to be, or somebody comes.
    Waits,
}

impl Fleet {
    fn new() -> Self {
        let process = |n| Process {
            log: log(&format!("s{n}"), n as u128),
            predecessor: None,
            runs: true,
            wishes_to_drain: false,
        };
        let processes: Vec<_> = (0..SERVERS).map(process).collect();
        let mut fleet =
            Self { world: World::new(), processes, bucket: BTreeMap::new(), logs: SERVERS as u128 };
        (0..SERVERS).for_each(|server| fleet.beat(server));
        fleet
    }

    fn beat(&mut self, server: usize) {
        let Process { log, predecessor, runs: true, wishes_to_drain } = &self.processes[server] else {
            return;
        };
        let beat = if *wishes_to_drain { draining(log) } else { heartbeat(log) };
        if self.world.ask(beat.clone()).is_err() {
            let again = predecessor.as_ref().map_or_else(|| join(log), |before| join_after(log, before));
            let joined = self.world.ask(again);
            assert!(joined.is_ok(), "{log}: {joined:?}");
            self.world.ask(beat).unwrap();
        }
    }

    /// A client asks for the subject and goes where it is sent.
    fn ask(&mut self, subject: usize) -> Outcome {
        let name = format!("s.{subject}");
        let mut way = Vec::new();
        let Ok(mut at) = self.world.locate(&name) else { return Outcome::Waits };
        loop {
            way.push(at.clone());
            assert!(way.len() < MANY_HOPS, "{name}: {way:?}, recorded {:?}", self.world.recorded(&name));
            let server: usize = at.strip_prefix('s').unwrap().parse().unwrap();
            let Process { log, runs, .. } = &self.processes[server];
            let log = log.clone();
            if !runs {
                // Nobody answers: it asks the coordinator again, which says the same until the process is known dead.
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
        process.wishes_to_drain = false;
        self.beat(server);
    }

    fn step(&mut self, event: &Event) {
        match *event {
            Event::Ask(subject) => {
                self.ask(subject);
            }
            Event::Beat(server) => self.beat(server),
            // A server that is not known is refused, and so is a target that takes nothing.
            Event::Drain(server) => drop(self.world.ask(Input::Drain(self.name(server)))),
            Event::Undrain(server) => drop(self.world.ask(Input::Undrain(self.name(server)))),
            Event::Move { subject, server } => {
                let to = self.name(server);
                drop(self.world.ask(move_to(&format!("s.{subject}"), to.as_str())));
            }
            Event::Wish(server) => {
                self.processes[server].wishes_to_drain = true;
                self.beat(server);
            }
            Event::Release { server, subject, heard } => {
                let Process { log, runs, .. } = &self.processes[server];
                let log = log.clone();
                if *runs
                    && self.bucket.get(&subject).is_none_or(|owner| owner.as_ref().is_none_or(|o| *o == log))
                {
                    self.bucket.insert(subject, None);
                    if heard {
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

    /// Nothing happens any more for longer than anybody waits for anything.
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
    #[test]
    fn nobody_is_sent_in_a_circle_and_who_waits_is_served(
        events in proptest::collection::vec(event(), 1..80)
    ) {
        let mut fleet = Fleet::new();
        for event in &events {
            fleet.step(event);
        }
        fleet.settle();
        let willing = fleet.processes.iter().any(|process| process.runs && !process.wishes_to_drain);
        for subject in 0..SUBJECTS {
            let outcome = fleet.ask(subject);
            if willing {
                prop_assert!(matches!(outcome, Outcome::ServedBy(_)), "{}: {:?}", subject, outcome);
                prop_assert_eq!(fleet.ask(subject), outcome);
                // The coordinator has learned where it is.
                let name = format!("s.{subject}");
                let Ok(at) = fleet.world.locate(&name) else { panic!("{name}") };
                let owner = fleet.bucket[&subject].clone().unwrap();
                prop_assert_eq!(at.as_str(), owner.server().as_str());
            }
        }
    }
}

#[test]
fn owners_are_learned_again_in_whatever_order_servers_come_back() {
    for first_back in 0..SERVERS {
        let mut fleet = Fleet::new();
        (0..SUBJECTS).for_each(|subject| assert!(matches!(fleet.ask(subject), Outcome::ServedBy(_))));
        let owners = fleet.bucket.clone();
        fleet.step(&Event::Forget);
        assert_eq!(fleet.ask(0), Outcome::Waits, "nobody is known yet");
        // Only one is back; what the others have they go on serving.
        fleet.beat(first_back);
        for subject in 0..SUBJECTS {
            assert!(matches!(fleet.ask(subject), Outcome::ServedBy(_)));
        }
        (0..SERVERS).for_each(|server| fleet.beat(server));
        for subject in 0..SUBJECTS {
            assert!(matches!(fleet.ask(subject), Outcome::ServedBy(_)));
        }
        assert_eq!(fleet.bucket, owners, "nothing had to move");
        fleet.settle();
        (0..SUBJECTS).for_each(|subject| assert!(matches!(fleet.ask(subject), Outcome::ServedBy(_))));
        assert_eq!(fleet.bucket, owners);
    }
}
