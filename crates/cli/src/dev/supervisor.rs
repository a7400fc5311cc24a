//! Carries out the effects of the [`Fleet`] machine: starts, watches and stops processes, and reports to the user.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::nats::NatsOptions;
use dormouse_bus::{Bus, Outgoing};
use dormouse_protocol::Prefix;
use dormouse_protocol::health::{Health, HealthStatus};
use dormouse_runtime::{Env, Tasks};
use rustix::process::Signal;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::banner;
use super::child::{self, ChildHandle, Program};
use super::files::FleetFile;
use super::fleet::{Fleet, FleetEffect, FleetInput, FleetOutcome, ProcessName, Role};
use super::plan::{DevPlan, NATS};
use crate::error::Failure;
use crate::output::Output;

/// Pause between two readiness checks of a starting process. A ready process answers within a round trip.
const ASK_AGAIN: Duration = Duration::from_millis(25);

/// Deadline of one readiness check.
const ASK_DEADLINE: Duration = Duration::from_millis(500);

/// Each process sends at most three inputs, and there are few timeouts.
const INPUTS: usize = 256;

/// Runs the fleet until it ends.
///
/// If the call is cancelled, every process of the fleet is killed.
///
/// # Errors
/// [`Failure`] if the fleet does not become ready, or a process had to be killed at the end.
pub async fn run(plan: DevPlan, output: Output) -> Result<(), Failure> {
    let (sender, mut inputs) = mpsc::channel(INPUTS);
    let mut shell = Supervisor {
        tasks: Tasks::new(),
        sender,
        connection: Arc::new(NatsConnection {
            ports_dir: plan.data_dir.create("run")?,
            bus: OnceLock::new(),
            tasks: Tasks::new(),
        }),
        children: BTreeMap::new(),
        announced: false,
        plan,
        output,
    };
    shell.listen_to_signals()?;
    let mut fleet = Fleet::new(shell.plan.roles(), shell.plan.restart);
    let mut effects = fleet.begin();
    loop {
        for effect in std::mem::take(&mut effects) {
            match shell.carry_out(effect).await {
                Ok(None) => {}
                Ok(Some(outcome)) => return conclude(outcome),
                Err(failure) => {
                    effects.extend(fleet.apply(FleetInput::EnvironmentFailed(failure.to_string())));
                }
            }
        }
        if !effects.is_empty() {
            continue;
        }
        // The supervisor holds a sender, so the channel never closes.
        let Some(input) = inputs.recv().await else { return Ok(()) };
        if let FleetInput::Ended(name, _) = &input {
            shell.children.remove(name);
        }
        effects = fleet.apply(input);
    }
}

fn conclude(outcome: FleetOutcome) -> Result<(), Failure> {
    match outcome {
        FleetOutcome::Stopped => Ok(()),
        FleetOutcome::Killed(names) => {
            Err(Failure::new(format!("{} did not stop in time and were killed", names.join(", "))))
        }
        FleetOutcome::Failed(why) => Err(Failure::new(why)),
    }
}

struct Supervisor {
    plan: DevPlan,
    output: Output,
    tasks: Tasks,
    sender: mpsc::Sender<FleetInput>,
    connection: Arc<NatsConnection>,
    children: BTreeMap<ProcessName, ChildHandle>,
    announced: bool,
}

/// The connection to the fleet when its nats-server is ready.
struct NatsConnection {
    /// Directory in which the nats-server writes its port.
    ports_dir: PathBuf,
    bus: OnceLock<(String, Arc<dyn Bus>)>,
    /// The tasks of the bus. They end with the process.
    tasks: Tasks,
}

impl Supervisor {
    async fn carry_out(&mut self, effect: FleetEffect) -> Result<Option<FleetOutcome>, Failure> {
        match effect {
            FleetEffect::Start(name) => self.start(name),
            FleetEffect::Terminate(name) => {
                if name == NATS {
                    self.connection.close().await;
                }
                self.signal(&name, Signal::TERM);
            }
            FleetEffect::Kill(name) => self.signal(&name, Signal::KILL),
            FleetEffect::SetTimeout(alarm, after) => {
                let sender = self.sender.clone();
                self.tasks.spawn("alarm", async move {
                    tokio::time::sleep(after).await;
                    let _ = sender.send(FleetInput::Timeout(alarm)).await;
                });
            }
            FleetEffect::Announce => {
                self.announced = true;
                let file = self.fleet_file();
                file.write()?;
                banner::print(&self.output, &file)?;
            }
            FleetEffect::Update => {
                if self.announced {
                    self.fleet_file().write()?;
                }
            }
            FleetEffect::RemoveFleetFile => {
                self.announced = false;
                FleetFile::remove(self.plan.data_dir.root());
                self.output.info_line("stopping the fleet; another Ctrl-C kills it at once");
            }
            FleetEffect::Note(note) => self.output.info_line(&note.to_string()),
            FleetEffect::Finish(outcome) => return Ok(Some(outcome)),
        }
        Ok(None)
    }

    fn signal(&self, name: &str, signal: Signal) {
        if let Some(child) = self.children.get(name) {
            child.signal(signal);
        }
    }

    fn start(&mut self, name: ProcessName) {
        let program = self.program(&name);
        let ready = ready(Arc::clone(&self.connection), self.plan.prefix.clone(), name.clone());
        let inputs = self.sender.clone();
        let json = self.output.is_json();
        match child::start(&self.tasks, inputs.clone(), &name, &program, json, ready) {
            Ok(child) => {
                self.children.insert(name, child);
            }
            Err(error) => {
                let how = format!("{} cannot be started: {error}", program.path.display());
                self.tasks.spawn("child", async move {
                    let _ = inputs.send(FleetInput::Ended(name, how)).await;
                });
            }
        }
    }

    fn program(&self, name: &str) -> Program {
        match self.plan.role(name) {
            Role::Nats => {
                // After a restart the nats-server needs the same port, because its clients know this port.
                let port = self.connection.port().unwrap_or(self.plan.port);
                self.plan.nats_server(port, &self.connection.ports_dir)
            }
            Role::Coordinator => self.plan.coordinator(self.connection.url()),
            Role::Server => self.plan.server(name, self.connection.url()),
        }
    }

    fn fleet_file(&self) -> FleetFile {
        FleetFile {
            url: self.connection.url().to_owned(),
            prefix: self.plan.prefix.to_string(),
            bucket: self.plan.bucket.clone(),
            data_dir: self.plan.data_dir.root().to_owned(),
            pid: std::process::id(),
            pids: self.children.iter().map(|(name, child)| (name.clone(), child.pid)).collect(),
            data_dirs: self.plan.data_dirs.clone(),
        }
    }

    fn listen_to_signals(&self) -> Result<(), Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
            let mut signals =
                signal(kind).map_err(|error| Failure::new(format!("cannot listen for signals: {error}")))?;
            let sender = self.sender.clone();
            self.tasks.spawn("signals", async move {
                while signals.recv().await.is_some() {
                    let _ = sender.send(FleetInput::Stop).await;
                }
            });
        }
        Ok(())
    }
}

impl NatsConnection {
    fn url(&self) -> &str {
        // Processes that need the URL start after NATS is ready.
        self.bus.get().map_or("", |(url, _)| url)
    }

    /// Closes the connection to the nats-server, so the end of the nats-server is no lost connection.
    async fn close(&self) {
        if let Some((_, bus)) = self.bus.get() {
            let _ = tokio::time::timeout(ASK_DEADLINE, bus.close()).await;
        }
    }

    fn port(&self) -> Option<u16> {
        url::Url::parse(&self.bus.get()?.0).ok()?.port()
    }
}

/// Done when the process answers.
async fn ready(connection: Arc<NatsConnection>, prefix: Prefix, name: ProcessName) {
    if name == NATS {
        nats_is_ready(&connection).await;
    } else if let Some((_, bus)) = connection.bus.get() {
        while !is_healthy(&**bus, &prefix, &name).await {
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
}

async fn nats_is_ready(connection: &NatsConnection) {
    loop {
        if let Some((_, bus)) = connection.bus.get() {
            // After a restart of the nats-server, the connection reconnects on its own.
            if bus.is_connected() {
                return;
            }
        } else if let Some(url) = listening_at(&connection.ports_dir)
            && let Ok(parsed) = url.parse()
            && let Ok(bus) = NatsOptions::new(vec![parsed]).connect(Env::system(), &connection.tasks).await
        {
            // Only this task sets the connection, and there is one nats-server.
            let _ = connection.bus.set((url, Arc::new(bus)));
            return;
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

async fn is_healthy(bus: &dyn Bus, prefix: &Prefix, name: &str) -> bool {
    let question = Outgoing::new(prefix.health_of(name), Bytes::new());
    let Ok(reply) = bus.request(question, ASK_DEADLINE).await else { return false };
    serde_json::from_slice::<Health>(&reply.payload)
        .is_ok_and(|health| matches!(health.status, HealthStatus::Ok | HealthStatus::Degraded))
}

/// The content of `<program>_<pid>.ports`, which a listening nats-server writes.
#[derive(Debug, Deserialize)]
struct FleetPorts {
    nats: Vec<String>,
}

fn listening_at(ports_dir: &Path) -> Option<String> {
    // The supervisor clears the directory before the start of the server, so there is at most one such file.
    let files = std::fs::read_dir(ports_dir).ok()?;
    let file = files
        .filter_map(|file| Some(file.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "ports"))?;
    let ports: FleetPorts = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    ports.nats.into_iter().next()
}
