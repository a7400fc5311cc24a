//! Does what the [`Fleet`] machine says: starts, watches and stops processes, and tells the user.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::nats::NatsOptions;
use dormouse_bus::{Bus, Outgoing};
use dormouse_protocol::health::{Health, HealthStatus};
use dormouse_protocol::{Prefix, ServerName};
use dormouse_runtime::{Env, Tasks};
use rustix::process::Signal;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::child::{self, ChildHandle, Program};
use super::files::FleetFile;
use super::fleet::{Effect, Fleet, Input, Name, Outcome, Role};
use super::{Plan, banner};
use crate::error::Failure;
use crate::output::Output;

/// How often a process that is coming up is asked again. It answers within a round trip once it is there.
const ASK_AGAIN: Duration = Duration::from_millis(25);

/// How long one question waits for its answer.
const ASK_DEADLINE: Duration = Duration::from_millis(500);

/// Each process says at most three things, and alarms are few.
const INPUTS: usize = 256;

/// The name of the nats-server in logs and in the fleet file.
const NATS: &str = "nats";

/// Runs the fleet until it is over.
///
/// Cancelling the call kills every process of the fleet.
///
/// # Errors
/// [`Failure`] when the fleet does not come up, or a process had to be killed at the end.
pub async fn run(plan: Plan, output: Output) -> Result<(), Failure> {
    let (sender, mut inputs) = mpsc::channel(INPUTS);
    let mut shell = Shell {
        tasks: Tasks::new(),
        sender,
        connection: Arc::new(Connection {
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
                Err(failure) => effects.extend(fleet.apply(Input::Trouble(failure.to_string()))),
            }
        }
        if !effects.is_empty() {
            continue;
        }
        // The shell holds a sender, so there is always another input to come.
        let Some(input) = inputs.recv().await else { return Ok(()) };
        if let Input::Ended(name, _) = &input {
            shell.children.remove(name);
        }
        effects = fleet.apply(input);
    }
}

fn conclude(outcome: Outcome) -> Result<(), Failure> {
    match outcome {
        Outcome::Stopped => Ok(()),
        Outcome::Killed(names) => {
            Err(Failure::new(format!("{} did not stop by themselves and were killed", names.join(", "))))
        }
        Outcome::Failed(why) => Err(Failure::new(why)),
    }
}

struct Shell {
    plan: Plan,
    output: Output,
    tasks: Tasks,
    sender: mpsc::Sender<Input>,
    connection: Arc<Connection>,
    children: BTreeMap<Name, ChildHandle>,
    announced: bool,
}

/// How the fleet is spoken to once its nats-server is up.
struct Connection {
    /// Where the nats-server says on which port it listens.
    ports_dir: PathBuf,
    bus: OnceLock<(String, Arc<dyn Bus>)>,
    /// Those of the bus. The end of the process ends them.
    tasks: Tasks,
}

impl Shell {
    async fn carry_out(&mut self, effect: Effect) -> Result<Option<Outcome>, Failure> {
        match effect {
            Effect::Start(name) => self.start(name),
            Effect::Terminate(name) => {
                if name == NATS {
                    self.connection.close().await;
                }
                self.signal(&name, Signal::TERM);
            }
            Effect::Kill(name) => self.signal(&name, Signal::KILL),
            Effect::SetAlarm(alarm, after) => {
                let sender = self.sender.clone();
                self.tasks.spawn("alarm", async move {
                    tokio::time::sleep(after).await;
                    let _ = sender.send(Input::Alarm(alarm)).await;
                });
            }
            Effect::Announce => {
                self.announced = true;
                let file = self.fleet_file();
                file.write()?;
                banner::print(&self.output, &file)?;
            }
            Effect::Update => {
                if self.announced {
                    self.fleet_file().write()?;
                }
            }
            Effect::Withdraw => {
                self.announced = false;
                FleetFile::remove(self.plan.data_dir.root());
                self.output.note("stopping the fleet; Ctrl-C now ends it at once");
            }
            Effect::Note(note) => self.output.note(&note.to_string()),
            Effect::Finish(outcome) => return Ok(Some(outcome)),
        }
        Ok(None)
    }

    fn signal(&self, name: &str, signal: Signal) {
        if let Some(child) = self.children.get(name) {
            child.signal(signal);
        }
    }

    fn start(&mut self, name: Name) {
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
                    let _ = inputs.send(Input::Ended(name, how)).await;
                });
            }
        }
    }

    fn program(&self, name: &str) -> Program {
        match self.plan.role(name) {
            Role::Nats => {
                // After a restart it must be where everybody looks for it.
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
                signal(kind).map_err(|error| Failure::new(format!("cannot listen to signals: {error}")))?;
            let sender = self.sender.clone();
            self.tasks.spawn("signals", async move {
                while signals.recv().await.is_some() {
                    let _ = sender.send(Input::Stop).await;
                }
            });
        }
        Ok(())
    }
}

impl Connection {
    fn url(&self) -> &str {
        // Whoever needs it is started after NATS was ready.
        self.bus.get().map_or("", |(url, _)| url)
    }

    /// Takes leave of the nats-server: its end is no loss of a connection.
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
async fn ready(connection: Arc<Connection>, prefix: Prefix, name: Name) {
    if name == NATS {
        nats_is_ready(&connection).await;
    } else if let Some((_, bus)) = connection.bus.get() {
        while !is_healthy(&**bus, &prefix, &name).await {
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
}

async fn nats_is_ready(connection: &Connection) {
    loop {
        if let Some((_, bus)) = connection.bus.get() {
            // A nats-server that was started again: our connection comes back by itself.
            if bus.is_connected() {
                return;
            }
        } else if let Some(url) = listening_at(&connection.ports_dir)
            && let Ok(parsed) = url.parse()
            && let Ok(bus) = NatsOptions::new(vec![parsed]).connect(Env::system(), &connection.tasks).await
        {
            // Only this task, of the only nats-server, sets it.
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
        .is_ok_and(|health| health.status != HealthStatus::NotServing)
}

/// What a nats-server writes to `<program>_<pid>.ports` once it listens.
#[derive(Debug, Deserialize)]
struct Ports {
    nats: Vec<String>,
}

fn listening_at(ports_dir: &Path) -> Option<String> {
    // The directory is emptied before the server is started, so there is one such file at most.
    let files = std::fs::read_dir(ports_dir).ok()?;
    let file = files
        .filter_map(|file| Some(file.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "ports"))?;
    let ports: Ports = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    ports.nats.into_iter().next()
}

impl Plan {
    fn roles(&self) -> Vec<(Name, Role)> {
        let fixed = [(NATS.to_owned(), Role::Nats), (ServerName::COORDINATOR.to_owned(), Role::Coordinator)];
        let servers = self.servers.iter().map(|name| (name.to_string(), Role::Server));
        fixed.into_iter().chain(servers).collect()
    }

    fn role(&self, name: &str) -> Role {
        match name {
            NATS => Role::Nats,
            ServerName::COORDINATOR => Role::Coordinator,
            _ => Role::Server,
        }
    }

    fn nats_server(&self, port: u16, ports_dir: &Path) -> Program {
        // The file of an earlier run would be taken for the one of this run.
        for stale in std::fs::read_dir(ports_dir).into_iter().flatten().flatten() {
            let _ = std::fs::remove_file(stale.path());
        }
        let port = if port == 0 { "-1".to_owned() } else { port.to_string() };
        let mut arguments: Vec<OsString> =
            ["--addr", "127.0.0.1", "--port", &port, "--name", "dormouse-dev"].map(OsString::from).into();
        arguments.extend(["--ports_file_dir".into(), ports_dir.into()]);
        Program { path: self.programs.nats_server.clone(), arguments }
    }

    fn coordinator(&self, url: &str) -> Program {
        let mut arguments = self.common(ServerName::COORDINATOR, url);
        let lease_ttl = humantime::format_duration(self.lease_ttl).to_string();
        arguments.extend(["--lease-ttl".into(), lease_ttl.into()]);
        Program { path: self.programs.coordinator.clone(), arguments }
    }

    fn server(&self, name: &str, url: &str) -> Program {
        let mut arguments = self.common(name, url);
        arguments.extend(["--name", name, "--bucket", &self.bucket].map(OsString::from));
        Program { path: self.programs.persist_server.clone(), arguments }
    }

    fn common(&self, name: &str, url: &str) -> Vec<OsString> {
        let mut arguments: Vec<OsString> =
            ["--nats", url, "--prefix", self.prefix.as_str()].map(OsString::from).into();
        if let Some(data_dir) = self.data_dirs.get(name) {
            arguments.extend(["--data-dir".into(), data_dir.into()]);
        }
        arguments
    }
}
