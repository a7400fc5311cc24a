//! Starts and stops the processes of a local fleet in order: a pure machine.
//!
//! NATS starts first, then the coordinator, then the servers. They stop in the opposite order. [`Fleet`] takes inputs
//! and returns effects. It starts no process and reads no clock: timeouts are inputs.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Deadline for a process to become ready.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// Pause before the restart of an ended process.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// The role of a process. Processes start in this order, and stop in the opposite order.
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

    /// Maximum time to stop before the process is killed. A server ships its changes to the bucket and has its own
    /// deadline of 30 s; the coordinator's deadline is 10 s.
    const fn stop_deadline(self) -> Duration {
        match self {
            Self::Server => Duration::from_secs(35),
            Self::Coordinator => Duration::from_secs(15),
            Self::Nats => Duration::from_secs(5),
        }
    }
}

/// The name of a process in logs and in the fleet file.
pub type ProcessName = String;

/// An input of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FleetInput {
    /// The process answers as ready.
    Ready(ProcessName),
    /// The process has ended, or could not be started. The text says how.
    Ended(ProcessName, String),
    /// The user stops the fleet. A second stop kills it.
    Stop,
    /// A timeout has fired.
    Timeout(Timeout),
    /// An error of the environment, with its text: the supervisor can no longer describe the fleet in its file.
    EnvironmentFailed(String),
}

/// A timeout of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Timeout {
    /// The ready deadline of the processes of this role.
    Ready(Role),
    /// The stop deadline of the processes of this role.
    Stopped(Role),
    /// The end of the pause before a restart.
    Restart(ProcessName),
}

/// An effect that the supervisor performs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FleetEffect {
    /// Start the process.
    Start(ProcessName),
    /// Send SIGTERM to the process.
    Terminate(ProcessName),
    /// Kill the process.
    Kill(ProcessName),
    /// Send the timeout as an input after this time.
    SetTimeout(Timeout, Duration),
    /// All processes are ready: inform the user and write the fleet file.
    Announce,
    /// The set of live processes has changed: update the fleet file.
    Update,
    /// The fleet stops: remove the fleet file.
    RemoveFleetFile,
    /// Inform the user.
    Note(UserNotice),
    /// The fleet has ended.
    Finish(FleetOutcome),
}

/// A notice for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserNotice {
    /// A process ended unexpectedly.
    Ended {
        /// Its name.
        name: ProcessName,
        /// How it ended.
        how: String,
        /// Whether it will be restarted.
        restarts: bool,
    },
    /// A restarted process is ready.
    Restarted(ProcessName),
    /// A process was killed because it did not stop in time.
    Killed(ProcessName),
}

impl fmt::Display for UserNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended { name, how, restarts: true } => write!(f, "{name} ended ({how}); restarting it"),
            Self::Ended { name, how, restarts: false } => {
                write!(f, "{name} ended ({how}); the fleet continues without it")
            }
            Self::Restarted(name) => write!(f, "{name} is ready again"),
            Self::Killed(name) => write!(f, "{name} did not stop in time and was killed"),
        }
    }
}

/// How the fleet ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FleetOutcome {
    /// Stopped by the user; every process stopped in time.
    Stopped,
    /// Stopped by the user, but these processes were killed.
    Killed(Vec<ProcessName>),
    /// The fleet did not become ready, or could not continue.
    Failed(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ManagedProcessState {
    /// Not started yet, or ended.
    Down,
    /// Started and not ready yet.
    Starting,
    /// Ready.
    Up,
}

#[derive(Debug, Clone)]
struct ManagedProcess {
    role: Role,
    state: ManagedProcessState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FleetPhase {
    /// The processes of this role start.
    Starting(Role),
    /// All processes have been ready.
    Running,
    /// The processes of this role stop.
    Stopping(Role),
    /// No process is left.
    Over,
}

/// The processes of a local fleet.
#[derive(Debug, Clone)]
pub struct Fleet {
    processes: BTreeMap<ProcessName, ManagedProcess>,
    phase: FleetPhase,
    restart: bool,
    failure: Option<String>,
    killed: Vec<ProcessName>,
}

impl Fleet {
    /// A fleet of these processes, none of them started. With `restart`, an ended process is restarted.
    #[must_use]
    pub fn new(processes: impl IntoIterator<Item = (ProcessName, Role)>, restart: bool) -> Self {
        let processes = processes
            .into_iter()
            .map(|(name, role)| (name, ManagedProcess { role, state: ManagedProcessState::Down }))
            .collect();
        Self {
            processes,
            phase: FleetPhase::Starting(Role::Nats),
            restart,
            failure: None,
            killed: Vec::new(),
        }
    }

    /// Starts the first processes.
    pub fn begin(&mut self) -> Vec<FleetEffect> {
        self.start_role(Role::Nats)
    }

    /// Applies one input and returns the effects in order.
    pub fn apply(&mut self, input: FleetInput) -> Vec<FleetEffect> {
        match input {
            FleetInput::Ready(name) => self.ready(&name),
            FleetInput::Ended(name, how) => self.ended(&name, how),
            FleetInput::Stop => match self.phase {
                FleetPhase::Starting(_) | FleetPhase::Running => self.stop_from(Role::Server),
                FleetPhase::Stopping(_) => self.kill_all(),
                FleetPhase::Over => Vec::new(),
            },
            FleetInput::Timeout(alarm) => self.alarm(alarm),
            FleetInput::EnvironmentFailed(why) => match self.phase {
                FleetPhase::Starting(_) | FleetPhase::Running => self.fail(why),
                FleetPhase::Stopping(_) | FleetPhase::Over => Vec::new(),
            },
        }
    }

    fn start_role(&mut self, role: Role) -> Vec<FleetEffect> {
        self.phase = FleetPhase::Starting(role);
        let mut effects = Vec::new();
        for (name, process) in self.processes.iter_mut().filter(|(_, process)| process.role == role) {
            process.state = ManagedProcessState::Starting;
            effects.push(FleetEffect::Start(name.clone()));
        }
        effects.push(FleetEffect::SetTimeout(Timeout::Ready(role), READY_DEADLINE));
        effects
    }

    fn ready(&mut self, name: &str) -> Vec<FleetEffect> {
        let Some(process) = self.processes.get_mut(name) else { return Vec::new() };
        if process.state != ManagedProcessState::Starting {
            return Vec::new();
        }
        process.state = ManagedProcessState::Up;
        match self.phase {
            FleetPhase::Starting(role) if self.all_up(role) => match role.next() {
                Some(next) => self.start_role(next),
                None => {
                    self.phase = FleetPhase::Running;
                    vec![FleetEffect::Announce]
                }
            },
            FleetPhase::Running => {
                vec![FleetEffect::Note(UserNotice::Restarted(name.to_owned())), FleetEffect::Update]
            }
            FleetPhase::Starting(_) | FleetPhase::Stopping(_) | FleetPhase::Over => Vec::new(),
        }
    }

    fn ended(&mut self, name: &str, how: String) -> Vec<FleetEffect> {
        let Some(process) = self.processes.get_mut(name) else { return Vec::new() };
        process.state = ManagedProcessState::Down;
        match self.phase {
            FleetPhase::Starting(_) => self.fail(format!("{name} ended before the fleet was ready ({how})")),
            FleetPhase::Running => {
                let died = UserNotice::Ended { name: name.to_owned(), how, restarts: self.restart };
                let mut effects = vec![FleetEffect::Note(died), FleetEffect::Update];
                if self.restart {
                    effects.push(FleetEffect::SetTimeout(Timeout::Restart(name.to_owned()), RESTART_PAUSE));
                }
                effects
            }
            FleetPhase::Stopping(role) if self.all_down(role) => self.stop_below(role),
            FleetPhase::Stopping(_) | FleetPhase::Over => Vec::new(),
        }
    }

    fn alarm(&mut self, alarm: Timeout) -> Vec<FleetEffect> {
        match alarm {
            Timeout::Ready(role) if self.phase == FleetPhase::Starting(role) => {
                let late = self
                    .names(|process| process.role == role && process.state == ManagedProcessState::Starting);
                self.fail(format!("{} was not ready within {} s", late.join(", "), READY_DEADLINE.as_secs()))
            }
            Timeout::Stopped(role) if self.phase == FleetPhase::Stopping(role) => {
                let late =
                    self.names(|process| process.role == role && process.state != ManagedProcessState::Down);
                late.into_iter().flat_map(|name| self.kill(name)).collect()
            }
            Timeout::Restart(name) if self.phase == FleetPhase::Running => {
                match self.processes.get_mut(&name) {
                    Some(process) if process.state == ManagedProcessState::Down => {
                        process.state = ManagedProcessState::Starting;
                        vec![FleetEffect::Start(name)]
                    }
                    _ => Vec::new(),
                }
            }
            // The timeout no longer applies in this phase.
            Timeout::Ready(_) | Timeout::Stopped(_) | Timeout::Restart(_) => Vec::new(),
        }
    }

    fn fail(&mut self, why: String) -> Vec<FleetEffect> {
        self.failure = Some(why);
        self.stop_from(Role::Server)
    }

    fn stop_from(&mut self, role: Role) -> Vec<FleetEffect> {
        let mut effects = vec![FleetEffect::RemoveFleetFile];
        effects.extend(self.stop_role(role));
        effects
    }

    fn stop_role(&mut self, role: Role) -> Vec<FleetEffect> {
        self.phase = FleetPhase::Stopping(role);
        let alive = self.names(|process| process.role == role && process.state != ManagedProcessState::Down);
        if alive.is_empty() {
            return self.stop_below(role);
        }
        let mut effects: Vec<FleetEffect> = alive.into_iter().map(FleetEffect::Terminate).collect();
        effects.push(FleetEffect::SetTimeout(Timeout::Stopped(role), role.stop_deadline()));
        effects
    }

    fn stop_below(&mut self, role: Role) -> Vec<FleetEffect> {
        match role.previous() {
            Some(previous) => self.stop_role(previous),
            None => {
                self.phase = FleetPhase::Over;
                let killed = std::mem::take(&mut self.killed);
                let outcome = match self.failure.take() {
                    Some(why) => FleetOutcome::Failed(why),
                    None if killed.is_empty() => FleetOutcome::Stopped,
                    None => FleetOutcome::Killed(killed),
                };
                vec![FleetEffect::Finish(outcome)]
            }
        }
    }

    fn kill_all(&mut self) -> Vec<FleetEffect> {
        let alive = self.names(|process| process.state != ManagedProcessState::Down);
        alive.into_iter().flat_map(|name| self.kill(name)).collect()
    }

    fn kill(&mut self, name: ProcessName) -> Vec<FleetEffect> {
        if self.killed.contains(&name) {
            return Vec::new();
        }
        self.killed.push(name.clone());
        vec![FleetEffect::Kill(name.clone()), FleetEffect::Note(UserNotice::Killed(name))]
    }

    fn all_up(&self, role: Role) -> bool {
        self.processes
            .values()
            .all(|process| process.role != role || process.state == ManagedProcessState::Up)
    }

    fn all_down(&self, role: Role) -> bool {
        self.processes
            .values()
            .all(|process| process.role != role || process.state == ManagedProcessState::Down)
    }

    fn names(&self, wanted: impl Fn(&ManagedProcess) -> bool) -> Vec<ProcessName> {
        self.processes.iter().filter(|(_, process)| wanted(process)).map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests;
