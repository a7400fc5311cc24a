//! A machine with a persistence server: its process, its clocks, its disk, its path to the bucket.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, MutexGuard, OnceLock};
use std::time::Duration;

use dormouse_bucket::Bucket;
use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
use dormouse_bus::{Bus, Callers, InboxPrefixes};
use dormouse_engine::{Engine, EngineSettings};
use dormouse_persist_server::server::{
    ProcessExit, ServeEnd, ServeError, Server, ServerSettings, ServerSides,
};
use dormouse_protocol::{Prefix, ServerName, TenantRule};
use dormouse_runtime::disk::LocalDisk;
use dormouse_runtime::{Env, Lock, Process, SeededEntropy, Stop};
use dormouse_testkit::bucket::{FaultyBucket, ObservedBucket};
use dormouse_testkit::disk::FaultyDisk;
use tokio::sync::mpsc;

use crate::bucket::{ServerCalls, StepObserver, StoreEffects};
use crate::bucket_outage::BucketOutage;
use crate::clock::MachineClock;
use crate::disk;
use crate::recorder::Recorder;
use crate::rng::SeededRng;
use crate::trace::Trace;

/// The state of the disk after a crash of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskAfterCrash {
    /// The disk is intact: only the process ends.
    Kept,
    /// Power is lost: unsynced data may be gone.
    PowerLost,
    /// The disk is replaced by an empty one.
    Wiped,
    /// The disk is replaced by its last copy, if one was made.
    Restored,
}

/// How a server's process ended by itself, as `main.rs` reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// A clean shutdown.
    Clean,
    /// An unexpected failure.
    Failure,
    /// The data directory cannot be used.
    DataDir,
    /// The coordinator rejected the server.
    Refused,
}

/// A machine.
pub struct Machine {
    name: ServerName,
    /// Its clocks.
    pub clock: Arc<MachineClock>,
    /// Its path to the bucket.
    pub bucket: Arc<FaultyBucket>,
    store: Arc<StoreEffects>,
    folder: PathBuf,
    backup: PathBuf,
    settings: EngineSettings,
    broker: MemoryBroker,
    trace: Trace,
    recorder: Recorder,
    rng: Arc<SeededRng>,
    exits: mpsc::UnboundedSender<(ServerName, Exit)>,
    /// See [`ServerCalls::new`].
    pub create_faults: Arc<AtomicU64>,
    /// The observer of its critical steps.
    pub step_observer: Arc<OnceLock<Arc<dyn StepObserver>>>,
    outage: Arc<BucketOutage>,
    state: Lock<State>,
}

struct State {
    disk: FaultyDisk,
    process: Option<Process>,
    /// The number of starts of the machine.
    boots: u64,
    stop: Stop,
    starts: u64,
    /// The time of the last copy of the disk.
    backed_up_at: Option<Duration>,
}

/// The parts of a machine.
pub struct Parts {
    /// The server's name.
    pub name: ServerName,
    /// Its clocks.
    pub clock: MachineClock,
    /// Its path to the bucket.
    pub bucket: FaultyBucket,
    /// The store at the end of that path.
    pub store: Arc<StoreEffects>,
    /// See [`ServerCalls::new`].
    pub create_faults: u64,
    /// The parent folder of its folders.
    pub parent: PathBuf,
    /// The server's settings, except for its folder.
    pub settings: EngineSettings,
    /// The messaging system.
    pub broker: MemoryBroker,
    /// The trace of the run.
    pub trace: Trace,
    /// The recorder of the history.
    pub recorder: Recorder,
    /// The random numbers.
    pub seed: u64,
    /// Gets a message if the process ends by itself.
    pub exits: mpsc::UnboundedSender<(ServerName, Exit)>,
}

/// The step after serving.
enum Next {
    /// The process ends.
    End(Exit),
    /// The process restarts with a new log after a takeover of its log.
    RestartAfterTakeover,
    /// The process restarts with a new log after a drain.
    RestartAfterDrain,
}

impl Machine {
    /// Creates a stopped machine.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts {
            name,
            clock,
            bucket,
            store,
            create_faults,
            parent,
            settings,
            broker,
            trace,
            recorder,
            seed,
            exits,
        } = parts;
        let folder = parent.join(name.as_str());
        let backup = parent.join(format!("{name}.backup"));
        let rng = Arc::new(SeededRng::of(seed, name.as_str()));
        let state = State {
            disk: FaultyDisk::new(Arc::new(LocalDisk), rng.draw()),
            process: None,
            boots: 1,
            stop: Stop::new(),
            starts: 0,
            backed_up_at: None,
        };
        let settings = EngineSettings { data_dir: folder.clone(), ..settings };
        let (clock, bucket) = (Arc::new(clock), Arc::new(bucket));
        let outage = Arc::new(BucketOutage::new(name.clone(), recorder.clone()));
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
            rng,
            exits,
            create_faults: Arc::new(AtomicU64::new(create_faults)),
            step_observer: Arc::default(),
            outage,
            state: Lock::new(state),
        }
    }

    /// Returns the server's name.
    #[must_use]
    pub fn name(&self) -> &ServerName {
        &self.name
    }

    /// Returns the folder of its disk.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the process, if it runs.
    #[must_use]
    pub fn process(&self) -> Option<Process> {
        self.state().process.clone()
    }

    /// Returns the disk under the WAL.
    #[must_use]
    pub fn disk(&self) -> FaultyDisk {
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
        let entropy = Arc::new(SeededEntropy::new(self.rng.draw()));
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

    /// Requests a graceful shutdown.
    pub fn stop(&self) {
        self.trace.line(format_args!("stop {}", self.name));
        self.state().stop.request();
    }

    /// Kills the process at once. Messages that it has sent may still arrive.
    pub fn crash(&self, disk_after: DiskAfterCrash) {
        let Some(process) = self.state().process.take() else { return };
        self.trace.line(format_args!("crash {} {disk_after:?} after {} steps", self.name, process.steps()));
        self.broker.close(self.name.as_str());
        // Drops that happen now must not reach the disk: database connections would clean up.
        let image = self.folder.with_extension("image");
        self.on_disk(|| disk::copy(&self.folder, &image));
        process.kill();
        self.recorder.ends(&self.name);
        self.on_disk(|| disk::copy(&image, &self.folder));
        match disk_after {
            DiskAfterCrash::Kept => {}
            DiskAfterCrash::PowerLost => {
                self.state().boots += 1;
                self.on_disk(|| self.disk().power_loss());
                self.on_disk(|| disk::tear(&self.folder.join("subjects"), &self.rng));
            }
            DiskAfterCrash::Wiped => {
                self.on_disk(|| disk::remove(&self.folder));
                self.new_disk();
            }
            DiskAfterCrash::Restored => {
                if self.backed_up_at().is_some() {
                    self.on_disk(|| disk::copy(&self.backup, &self.folder));
                    self.new_disk();
                }
            }
        }
    }

    /// Copies the disk, so that it can be [restored](DiskAfterCrash::Restored).
    pub fn back_up(&self) {
        if self.folder.is_dir() {
            self.on_disk(|| disk::copy(&self.folder, &self.backup));
            self.state().backed_up_at = Some(self.trace.now());
        }
    }

    /// Returns the time of the last copy of the disk.
    #[must_use]
    pub fn backed_up_at(&self) -> Option<Duration> {
        self.state().backed_up_at
    }

    fn new_disk(&self) {
        let disk = FaultyDisk::new(Arc::new(LocalDisk), self.rng.draw());
        self.state().disk = disk;
    }

    fn on_disk(&self, work: impl FnOnce() -> std::io::Result<()>) {
        // The simulation's own disk is not under test: without it there is no run.
        work().unwrap_or_else(|error| panic!("the disk of {}: {error}", self.name));
    }

    fn ended(&self, exit: Exit) {
        self.trace.line(format_args!("exit {} {exit:?}", self.name));
        self.trace.count(match exit {
            Exit::Clean => "server ended cleanly",
            Exit::Failure => "server ended with a failure",
            Exit::DataDir => "server ended with a disk error",
            Exit::Refused => "server ended, rejected",
        });
        self.recorder.ends(&self.name);
        self.broker.close(self.name.as_str());
        // The receiver is gone once the run has ended.
        let _ = self.exits.send((self.name.clone(), exit));
    }

    /// Clears the state of a process that has ended by itself.
    pub fn clear(&self) {
        let process = self.state().process.take();
        if let Some(process) = process {
            process.kill();
        }
    }

    /// Does the work of `main.rs`.
    async fn run(&self, env: Env, stop: Stop) -> Exit {
        let calls = ServerCalls::new(
            Arc::clone(&self.bucket),
            Arc::clone(&self.store),
            (self.trace.clone(), self.name.as_str(), Arc::clone(&self.rng)),
            Arc::clone(&self.create_faults),
            Arc::clone(&self.step_observer),
            Arc::clone(&self.outage),
        );
        let path = Arc::clone(&self.bucket) as Arc<dyn Bucket>;
        let path: Arc<dyn Bucket> = Arc::new(ObservedBucket::new(path, Arc::new(calls)));
        let prepared = match Engine::prepare(self.settings.clone(), path, env.clone()).await {
            Ok(prepared) => prepared,
            Err(error) => {
                self.trace.line(format_args!("{} cannot use its directory: {error}", self.name));
                return Exit::DataDir;
            }
        };
        let mut prepared = prepared.on_disk(Arc::new(self.disk()));
        let bus: Arc<dyn Bus> = Arc::new(self.broker.connect(MemoryOptions::named(self.name.as_str())));
        let sides = ServerSides::same(bus, env.clone());
        let settings = ServerSettings {
            prefix: Prefix::default(),
            capacity: 100,
            inbox_prefixes: InboxPrefixes::default(),
            callers: Callers::default(),
            tenant_rule: TenantRule::default(),
            started: env.boot(),
            exit: ProcessExit::new(|| panic!("a stalled data side ended its process")),
        };
        let deadline = Duration::from_secs(10);
        let (server, exit) = loop {
            self.recorder.begins(prepared.log());
            let started = Server::start(prepared, settings.clone(), sides.clone()).await;
            let Ok(mut server) = started else { return Exit::Failure };
            let next = tokio::select! {
                biased;
                () = stop.requested() => Next::End(Exit::Clean),
                next = self.serve(&mut server) => next,
            };
            let next = match next {
                Next::End(exit) => break (server, exit),
                Next::RestartAfterTakeover => {
                    self.trace.count("server restarted with a new log");
                    server.restart_after_takeover(deadline).await
                }
                Next::RestartAfterDrain => {
                    self.trace.count("server drained, restarted with a new log");
                    server.restart_after_drain(deadline).await
                }
            };
            match next {
                Some(next) => prepared = next,
                None => return Exit::Failure,
            }
        };
        if !server.shutdown(deadline).await && exit == Exit::Clean {
            return Exit::Failure;
        }
        exit
    }

    /// Serves until serving ends.
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
            ServeEnd::TakenOver => Next::RestartAfterTakeover,
            ServeEnd::Drained => Next::RestartAfterDrain,
            ServeEnd::Failed(error) => Next::End(match *error {
                ServeError::Refused(_) => Exit::Refused,
                ServeError::LocalLog => Exit::DataDir,
                _ => Exit::Failure,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}
