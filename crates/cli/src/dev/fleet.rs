//! What happens to the processes of a local fleet, and in which order: a pure machine.
//!
//! NATS comes up first, then the coordinator, then the servers; they go down the other way round. [`Fleet`] takes what
//! has happened and says what to do; it starts nothing itself and reads no clock: alarms come in as inputs.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// How long a process has until it answers as ready.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// How long a process that died rests before it is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// What a process is in the fleet. Started in this order, stopped in the opposite one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The nats-server.
    Nats,
    /// The coordinator.
    Coordinator,
    /// A persistence server.
    Server,
}

impl Role {
    fn next(self) -> Option<Self> {
        match self {
            Self::Nats => Some(Self::Coordinator),
            Self::Coordinator => Some(Self::Server),
            Self::Server => None,
        }
    }

    fn previous(self) -> Option<Self> {
        match self {
            Self::Nats => None,
            Self::Coordinator => Some(Self::Nats),
            Self::Server => Some(Self::Coordinator),
        }
    }

    /// How long it may take to stop before it is killed. A server brings what it holds to the bucket and has a
    /// deadline of its own, 30 s; the coordinator's is 10 s.
    const fn stop_deadline(self) -> Duration {
        match self {
            Self::Server => Duration::from_secs(35),
            Self::Coordinator => Duration::from_secs(15),
            Self::Nats => Duration::from_secs(5),
        }
    }
}

/// The name of a process in logs and in the fleet file.
pub type Name = String;

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The process answers as ready.
    Ready(Name),
    /// The process has ended, or could not be started; how, in words.
    Ended(Name, String),
    /// The user wants the fleet to stop. A second time: at once.
    Stop,
    /// An alarm set before has gone off.
    Alarm(Alarm),
    /// What the fleet needs around it is gone, and why: nobody could know of it any more.
    Trouble(String),
}

/// What an alarm is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alarm {
    /// The processes of this role should be ready by now.
    Ready(Role),
    /// The processes of this role should have stopped by now.
    Stopped(Role),
    /// The process has rested.
    Restart(Name),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Start the process.
    Start(Name),
    /// Ask the process to stop.
    Terminate(Name),
    /// End the process.
    Kill(Name),
    /// Send the alarm back after this time.
    SetAlarm(Alarm, Duration),
    /// Everything is ready: tell the user and write the fleet file.
    Announce,
    /// Which processes are alive has changed: write the fleet file again.
    Update,
    /// The fleet goes down: the fleet file must not promise it any more.
    Withdraw,
    /// Tell the user.
    Note(Note),
    /// All is over.
    Finish(Outcome),
}

/// News for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A process ended by itself; whether it will be started again.
    Died {
        /// Its name.
        name: Name,
        /// How it ended.
        how: String,
        /// It will be started again.
        restarts: bool,
    },
    /// A process that had died is ready again.
    Back(Name),
    /// A process was ended because it did not stop in time.
    Killed(Name),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Died { name, how, restarts: true } => write!(f, "{name} ended ({how}); starting it again"),
            Self::Died { name, how, restarts: false } => {
                write!(f, "{name} ended ({how}); the fleet goes on without it")
            }
            Self::Back(name) => write!(f, "{name} is ready again"),
            Self::Killed(name) => write!(f, "{name} did not stop in time and was killed"),
        }
    }
}

/// How it all ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As the user wanted, everything handed back.
    Stopped,
    /// As the user wanted, but these did not stop by themselves.
    Killed(Vec<Name>),
    /// The fleet did not come up, or could not go on.
    Failed(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    /// Not started yet, or ended.
    Down,
    /// Started and not ready yet.
    Starting,
    /// Ready.
    Up,
}

#[derive(Debug, Clone)]
struct Process {
    role: Role,
    condition: Condition,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The processes of this role are coming up.
    Starting(Role),
    /// All were ready once.
    Running,
    /// The processes of this role are going down.
    Stopping(Role),
    /// Nothing is left.
    Over,
}

/// The processes of a local fleet.
#[derive(Debug, Clone)]
pub struct Fleet {
    processes: BTreeMap<Name, Process>,
    phase: Phase,
    restart: bool,
    failure: Option<String>,
    killed: Vec<Name>,
}

impl Fleet {
    /// A fleet of these processes, none of them started. `restart`: one that dies is started again.
    #[must_use]
    pub fn new(processes: impl IntoIterator<Item = (Name, Role)>, restart: bool) -> Self {
        let processes = processes
            .into_iter()
            .map(|(name, role)| (name, Process { role, condition: Condition::Down }))
            .collect();
        Self { processes, phase: Phase::Starting(Role::Nats), restart, failure: None, killed: Vec::new() }
    }

    /// Begins.
    pub fn begin(&mut self) -> Vec<Effect> {
        self.start_role(Role::Nats)
    }

    /// Takes what has happened and says what to do, in order.
    pub fn apply(&mut self, input: Input) -> Vec<Effect> {
        match input {
            Input::Ready(name) => self.ready(&name),
            Input::Ended(name, how) => self.ended(&name, how),
            Input::Stop => match self.phase {
                Phase::Starting(_) | Phase::Running => self.stop_from(Role::Server),
                Phase::Stopping(_) => self.kill_all(),
                Phase::Over => Vec::new(),
            },
            Input::Alarm(alarm) => self.alarm(alarm),
            Input::Trouble(why) => match self.phase {
                Phase::Starting(_) | Phase::Running => self.fail(why),
                Phase::Stopping(_) | Phase::Over => Vec::new(),
            },
        }
    }

    fn start_role(&mut self, role: Role) -> Vec<Effect> {
        self.phase = Phase::Starting(role);
        let mut effects = Vec::new();
        for (name, process) in self.processes.iter_mut().filter(|(_, process)| process.role == role) {
            process.condition = Condition::Starting;
            effects.push(Effect::Start(name.clone()));
        }
        effects.push(Effect::SetAlarm(Alarm::Ready(role), READY_DEADLINE));
        effects
    }

    fn ready(&mut self, name: &str) -> Vec<Effect> {
        let Some(process) = self.processes.get_mut(name) else { return Vec::new() };
        if process.condition != Condition::Starting {
            return Vec::new();
        }
        process.condition = Condition::Up;
        match self.phase {
            Phase::Starting(role) if self.all_up(role) => match role.next() {
                Some(next) => self.start_role(next),
                None => {
                    self.phase = Phase::Running;
                    vec![Effect::Announce]
                }
            },
            Phase::Running => vec![Effect::Note(Note::Back(name.to_owned())), Effect::Update],
            Phase::Starting(_) | Phase::Stopping(_) | Phase::Over => Vec::new(),
        }
    }

    fn ended(&mut self, name: &str, how: String) -> Vec<Effect> {
        let Some(process) = self.processes.get_mut(name) else { return Vec::new() };
        process.condition = Condition::Down;
        match self.phase {
            Phase::Starting(_) => self.fail(format!("{name} ended before the fleet was ready ({how})")),
            Phase::Running => {
                let died = Note::Died { name: name.to_owned(), how, restarts: self.restart };
                let mut effects = vec![Effect::Note(died), Effect::Update];
                if self.restart {
                    effects.push(Effect::SetAlarm(Alarm::Restart(name.to_owned()), RESTART_PAUSE));
                }
                effects
            }
            Phase::Stopping(role) if self.all_down(role) => self.stop_below(role),
            Phase::Stopping(_) | Phase::Over => Vec::new(),
        }
    }

    fn alarm(&mut self, alarm: Alarm) -> Vec<Effect> {
        match alarm {
            Alarm::Ready(role) if self.phase == Phase::Starting(role) => {
                let late =
                    self.names(|process| process.role == role && process.condition == Condition::Starting);
                self.fail(format!("{} was not ready within {} s", late.join(", "), READY_DEADLINE.as_secs()))
            }
            Alarm::Stopped(role) if self.phase == Phase::Stopping(role) => {
                let late = self.names(|process| process.role == role && process.condition != Condition::Down);
                late.into_iter().flat_map(|name| self.kill(name)).collect()
            }
            Alarm::Restart(name) if self.phase == Phase::Running => match self.processes.get_mut(&name) {
                Some(process) if process.condition == Condition::Down => {
                    process.condition = Condition::Starting;
                    vec![Effect::Start(name)]
                }
                _ => Vec::new(),
            },
            // The moment it was set for has passed.
            Alarm::Ready(_) | Alarm::Stopped(_) | Alarm::Restart(_) => Vec::new(),
        }
    }

    fn fail(&mut self, why: String) -> Vec<Effect> {
        self.failure = Some(why);
        self.stop_from(Role::Server)
    }

    fn stop_from(&mut self, role: Role) -> Vec<Effect> {
        let mut effects = vec![Effect::Withdraw];
        effects.extend(self.stop_role(role));
        effects
    }

    fn stop_role(&mut self, role: Role) -> Vec<Effect> {
        self.phase = Phase::Stopping(role);
        let alive = self.names(|process| process.role == role && process.condition != Condition::Down);
        if alive.is_empty() {
            return self.stop_below(role);
        }
        let mut effects: Vec<Effect> = alive.into_iter().map(Effect::Terminate).collect();
        effects.push(Effect::SetAlarm(Alarm::Stopped(role), role.stop_deadline()));
        effects
    }

    fn stop_below(&mut self, role: Role) -> Vec<Effect> {
        match role.previous() {
            Some(previous) => self.stop_role(previous),
            None => {
                self.phase = Phase::Over;
                let killed = std::mem::take(&mut self.killed);
                let outcome = match self.failure.take() {
                    Some(why) => Outcome::Failed(why),
                    None if killed.is_empty() => Outcome::Stopped,
                    None => Outcome::Killed(killed),
                };
                vec![Effect::Finish(outcome)]
            }
        }
    }

    fn kill_all(&mut self) -> Vec<Effect> {
        let alive = self.names(|process| process.condition != Condition::Down);
        alive.into_iter().flat_map(|name| self.kill(name)).collect()
    }

    fn kill(&mut self, name: Name) -> Vec<Effect> {
        if self.killed.contains(&name) {
            return Vec::new();
        }
        self.killed.push(name.clone());
        vec![Effect::Kill(name.clone()), Effect::Note(Note::Killed(name))]
    }

    fn all_up(&self, role: Role) -> bool {
        self.processes.values().all(|process| process.role != role || process.condition == Condition::Up)
    }

    fn all_down(&self, role: Role) -> bool {
        self.processes.values().all(|process| process.role != role || process.condition == Condition::Down)
    }

    fn names(&self, wanted: impl Fn(&Process) -> bool) -> Vec<Name> {
        self.processes.iter().filter(|(_, process)| wanted(process)).map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
#[path = "fleet_tests.rs"]
mod tests;
