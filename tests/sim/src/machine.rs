//! A machine with a persistence server: its process, its clocks, its disk, its way to the bucket.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
use dormouse_bus::{Bus, Callers, InboxPrefixes};
use dormouse_persist_server::server::{Ended, ServeError, Server, ServerSettings};
use dormouse_protocol::{Prefix, ServerName};
use dormouse_runtime::{Env, Process, SeededEntropy, Stop};
use dormouse_storage::bucket::Bucket;
use dormouse_storage::bucket::faults::FaultyBucket;
use dormouse_storage::wal::FileSystem;
use dormouse_storage::wal::faults::FaultyStorage;
use dormouse_storage::{Engine, EngineSettings};
use tokio::sync::mpsc;

use crate::bucket::{Ambush, Store, Way};
use crate::clock::MachineClock;
use crate::dice::Dice;
use crate::disk;
use crate::outage::Outage;
use crate::recorder::Recorder;
use crate::trace::Trace;

/// What becomes of the disk when its machine falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFate {
    /// Nothing: only the process dies.
    Kept,
    /// The power goes: what was not synced may be gone.
    PowerLost,
    /// Another disk takes its place, which is empty.
    Wiped,
    /// The last copy takes its place, where one was made.
    Restored,
}

/// How a server's process ended by itself, in the words of `main.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// As asked.
    AsAsked,
    /// An unexpected failure.
    Failure,
    /// The data directory cannot be used.
    DataDir,
    /// The coordinator refused it.
    Refused,
}

/// A machine.
pub struct Machine {
    name: ServerName,
    /// Its clocks.
    pub clock: Arc<MachineClock>,
    /// Its way to the bucket.
    pub bucket: Arc<FaultyBucket>,
    store: Arc<Store>,
    folder: PathBuf,
    backup: PathBuf,
    settings: EngineSettings,
    broker: MemoryBroker,
    trace: Trace,
    recorder: Recorder,
    dice: Arc<Dice>,
    exits: mpsc::UnboundedSender<(ServerName, Exit)>,
    /// See [`Way::new`].
    pub sharp: Arc<AtomicU64>,
    /// Who waits for its steps that matter.
    pub ambush: Arc<OnceLock<Arc<dyn Ambush>>>,
    outage: Arc<Outage>,
    state: Mutex<State>,
}

struct State {
    disk: FaultyStorage,
    process: Option<Process>,
    /// How often the machine was started.
    boots: u64,
    stop: Stop,
    starts: u64,
    /// When the disk was copied last.
    backed_up_at: Option<Duration>,
}

/// What a machine is made of.
pub struct Parts {
    /// The server's name.
    pub name: ServerName,
    /// Its clocks.
    pub clock: MachineClock,
    /// Its way to the bucket.
    pub bucket: FaultyBucket,
    /// Where that way leads.
    pub store: Arc<Store>,
    /// See [`Way::new`].
    pub sharp: u64,
    /// Where its folders are made.
    pub room: PathBuf,
    /// The server's settings; where its folder is, is filled in.
    pub settings: EngineSettings,
    /// The messaging system.
    pub broker: MemoryBroker,
    /// Where it is written what happens.
    pub trace: Trace,
    /// What is judged in the end.
    pub recorder: Recorder,
    /// Whence its chance.
    pub seed: u64,
    /// Told when the process has ended by itself.
    pub exits: mpsc::UnboundedSender<(ServerName, Exit)>,
}

/// What comes after serving.
enum Next {
    /// The process ends.
    End(Exit),
    /// It goes on after its log was taken over.
    Succeed,
    /// It goes on after it was emptied.
    BeginAnew,
}

impl Machine {
    /// A machine that does not run.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { name, clock, bucket, store, sharp, room, settings, broker, trace, recorder, seed, exits } =
            parts;
        let folder = room.join(name.as_str());
        let backup = room.join(format!("{name}.backup"));
        let dice = Arc::new(Dice::of(seed, name.as_str()));
        let state = State {
            disk: FaultyStorage::new(Arc::new(FileSystem), dice.draw()),
            process: None,
            boots: 1,
            stop: Stop::new(),
            starts: 0,
            backed_up_at: None,
        };
        let settings = EngineSettings { data_dir: folder.clone(), ..settings };
        let (clock, bucket) = (Arc::new(clock), Arc::new(bucket));
        let outage = Arc::new(Outage::new(name.clone(), recorder.clone()));
        Self {
            name,
            clock,
            bucket,
            store,
            folder,
            backup,
            settings,
            broker,
            trace,
            recorder,
            dice,
            exits,
            sharp: Arc::new(AtomicU64::new(sharp)),
            ambush: Arc::default(),
            outage,
            state: Mutex::new(state),
        }
    }

    /// The server's name.
    #[must_use]
    pub fn name(&self) -> &ServerName {
        &self.name
    }

    /// Where its disk is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The process, while there is one.
    #[must_use]
    pub fn process(&self) -> Option<Process> {
        self.state().process.clone()
    }

    /// The disk under the local log.
    #[must_use]
    pub fn disk(&self) -> FaultyStorage {
        self.state().disk.clone()
    }

    /// Starts the process, unless it runs.
    pub fn start(self: &Arc<Self>) {
        let (process, stop, boots) = {
            let mut state = self.state();
            if state.process.is_some() {
                return;
            }
            state.starts += 1;
            state.stop = Stop::new();
            let process = Process::new();
            state.process = Some(process.clone());
            (process, state.stop.clone(), state.boots)
        };
        self.trace.line(format_args!("start {}", self.name));
        let clock: Arc<MachineClock> = Arc::clone(&self.clock);
        let entropy = Arc::new(SeededEntropy::new(self.dice.draw()));
        let boot_id = format!("{} {boots}", self.name);
        let env = Env::simulated(clock, entropy).booted(&boot_id).of_process(process);
        let machine = Arc::clone(self);
        env.tasks().spawn("main", {
            let env = env.clone();
            async move {
                let exit = machine.run(env, stop).await;
                machine.ended(exit);
            }
        });
    }

    /// Asks the process to end in good order.
    pub fn stop(&self) {
        self.trace.line(format_args!("stop {}", self.name));
        self.state().stop.give();
    }

    /// The process is gone from one moment to the next. What it had sent may still arrive.
    pub fn crash(&self, fate: DiskFate) {
        let Some(process) = self.state().process.take() else { return };
        self.trace.line(format_args!("crash {} {fate:?} after {} steps", self.name, process.steps()));
        self.broker.close(self.name.as_str());
        // What is dropped now must not reach the disk: connections to databases would tidy up.
        let image = self.folder.with_extension("image");
        self.on_disk(|| disk::copy(&self.folder, &image));
        process.kill();
        self.recorder.ends(&self.name);
        self.on_disk(|| disk::copy(&image, &self.folder));
        match fate {
            DiskFate::Kept => {}
            DiskFate::PowerLost => {
                self.state().boots += 1;
                self.on_disk(|| self.disk().power_loss());
                self.on_disk(|| disk::tear(&self.folder.join("subjects"), &self.dice));
            }
            DiskFate::Wiped => {
                self.on_disk(|| disk::remove(&self.folder));
                self.new_disk();
            }
            DiskFate::Restored => {
                if self.backed_up_at().is_some() {
                    self.on_disk(|| disk::copy(&self.backup, &self.folder));
                    self.new_disk();
                }
            }
        }
    }

    /// Copies the disk, so that it can be [restored](DiskFate::Restored).
    pub fn back_up(&self) {
        if self.folder.is_dir() {
            self.on_disk(|| disk::copy(&self.folder, &self.backup));
            self.state().backed_up_at = Some(self.trace.now());
        }
    }

    /// When the disk was copied last.
    #[must_use]
    pub fn backed_up_at(&self) -> Option<Duration> {
        self.state().backed_up_at
    }

    fn new_disk(&self) {
        let disk = FaultyStorage::new(Arc::new(FileSystem), self.dice.draw());
        self.state().disk = disk;
    }

    fn on_disk(&self, work: impl FnOnce() -> std::io::Result<()>) {
        // The disk under the simulation is not what is tried: without it there is no run.
        work().unwrap_or_else(|error| panic!("the disk of {}: {error}", self.name));
    }

    fn ended(&self, exit: Exit) {
        self.trace.line(format_args!("exit {} {exit:?}", self.name));
        self.trace.count(match exit {
            Exit::AsAsked => "server ended as asked",
            Exit::Failure => "server ended by a failure",
            Exit::DataDir => "server ended by its disk",
            Exit::Refused => "server ended, refused",
        });
        self.recorder.ends(&self.name);
        self.broker.close(self.name.as_str());
        // Nobody waits for it once the run is over.
        let _ = self.exits.send((self.name.clone(), exit));
    }

    /// Clears away what is left of a process that has ended by itself.
    pub fn clear(&self) {
        let process = self.state().process.take();
        if let Some(process) = process {
            process.kill();
        }
    }

    /// What `main.rs` does.
    async fn run(&self, env: Env, stop: Stop) -> Exit {
        let way = Way::new(
            Arc::clone(&self.bucket),
            Arc::clone(&self.store),
            (self.trace.clone(), self.name.as_str(), Arc::clone(&self.dice)),
            Arc::clone(&self.sharp),
            Arc::clone(&self.ambush),
            Arc::clone(&self.outage),
        );
        let way: Arc<dyn Bucket> = Arc::new(way);
        let prepared = match Engine::prepare(self.settings.clone(), way, env.clone()).await {
            Ok(prepared) => prepared,
            Err(error) => {
                self.trace.line(format_args!("{} cannot use its directory: {error}", self.name));
                return Exit::DataDir;
            }
        };
        let mut prepared = prepared.on_disk(Arc::new(self.disk()));
        let bus: Arc<dyn Bus> = Arc::new(self.broker.connect(MemoryOptions::named(self.name.as_str())));
        let settings = ServerSettings {
            prefix: Prefix::default(),
            capacity: 100,
            inbox_prefixes: InboxPrefixes::default(),
            callers: Callers::default(),
            started: env.boot(),
        };
        let deadline = Duration::from_secs(10);
        let (server, exit) = loop {
            self.recorder.begins(prepared.log());
            let started = Server::start(prepared, settings.clone(), Arc::clone(&bus), env.clone()).await;
            let Ok(mut server) = started else { return Exit::Failure };
            let next = tokio::select! {
                biased;
                () = stop.given() => Next::End(Exit::AsAsked),
                next = self.serve(&mut server) => next,
            };
            let next = match next {
                Next::End(exit) => break (server, exit),
                Next::Succeed => {
                    self.trace.count("server went on with a fresh log");
                    server.succeed(deadline).await
                }
                Next::BeginAnew => {
                    self.trace.count("server was emptied and went on with a fresh log");
                    server.begin_anew(deadline).await
                }
            };
            match next {
                Some(next) => prepared = next,
                None => return Exit::Failure,
            }
        };
        if !server.shutdown(deadline).await && exit == Exit::AsAsked {
            return Exit::Failure;
        }
        exit
    }

    /// Serves until that is no longer possible.
    async fn serve(&self, server: &mut Server) -> Next {
        if let Err(error) = server.ready().await {
            self.trace.line(format_args!("{} cannot serve: {error}", self.name));
            return Next::End(match error {
                ServeError::Refused(_) => Exit::Refused,
                _ => Exit::Failure,
            });
        }
        self.trace.line(format_args!("ready {}", self.name));
        let ended = server.ended().await;
        self.recorder.ends(&self.name);
        match ended {
            Ended::TakenOver => Next::Succeed,
            Ended::Emptied => Next::BeginAnew,
            Ended::Failed(error) => Next::End(match *error {
                ServeError::Refused(_) => Exit::Refused,
                ServeError::LocalLog => Exit::DataDir,
                _ => Exit::Failure,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
