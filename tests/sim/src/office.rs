//! A machine with a coordinator: its process, its clocks, and a store that forgets what was not flushed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
use dormouse_bus::{Bus, Callers, InboxPrefixes};
use dormouse_coordinator::store::memory::{MemoryDisk, MemoryStore};
use dormouse_coordinator::store::{Change, Counts, Remembered, Store, StoreError};
use dormouse_coordinator::{Coordinator, CoordinatorOptions};
use dormouse_protocol::{Prefix, ServerName, Subject};
use dormouse_runtime::{Env, Process, SeededEntropy};
use tokio::sync::mpsc;

use crate::clock::MachineClock;
use crate::dice::Dice;
use crate::trace::Trace;

/// A coordinator's machine.
pub struct Office {
    name: String,
    /// Its clocks.
    pub clock: Arc<MachineClock>,
    disk: MemoryDisk,
    lease_ttl: Duration,
    broker: MemoryBroker,
    trace: Trace,
    dice: Dice,
    exits: mpsc::UnboundedSender<String>,
    /// The next flush fails, and the process with it.
    dies_flushing: Arc<AtomicBool>,
    process: Mutex<Option<Process>>,
}

impl Office {
    /// A machine that does not run. `exits` is told when the process has ended by itself.
    #[must_use]
    pub fn new(
        name: &str,
        clock: MachineClock,
        lease_ttl: Duration,
        broker: MemoryBroker,
        trace: Trace,
        seed: u64,
        exits: mpsc::UnboundedSender<String>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            clock: Arc::new(clock),
            disk: MemoryDisk::new(),
            lease_ttl,
            broker,
            trace,
            dice: Dice::of(seed, name),
            exits,
            dies_flushing: Arc::default(),
            process: Mutex::new(None),
        }
    }

    /// The name of its connection.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process, while there is one.
    #[must_use]
    pub fn process(&self) -> Option<Process> {
        self.held().clone()
    }

    /// Starts the process, unless it runs.
    pub fn start(self: &Arc<Self>) {
        let process = Process::new();
        {
            let mut held = self.held();
            if held.is_some() {
                return;
            }
            *held = Some(process.clone());
        }
        self.trace.line(format_args!("start {}", self.name));
        let clock: Arc<MachineClock> = Arc::clone(&self.clock);
        let entropy = Arc::new(SeededEntropy::new(self.dice.draw()));
        let env = Env::simulated(clock, entropy).of_process(process);
        self.dies_flushing.store(false, Ordering::Relaxed);
        let office = Arc::clone(self);
        env.tasks().spawn("main", {
            let env = env.clone();
            async move {
                office.run(env).await;
                office.trace.line(format_args!("exit {}", office.name));
                office.broker.close(&office.name);
                // Nobody waits for it once the run is over.
                let _ = office.exits.send(office.name.clone());
            }
        });
    }

    /// The process is gone from one moment to the next, with what it had not flushed; with everything, where `wiped`.
    pub fn crash(&self, wiped: bool) {
        let Some(process) = self.held().take() else { return };
        self.trace.line(format_args!("crash {} {}", self.name, if wiped { "wiped" } else { "" }));
        self.broker.close(&self.name);
        process.kill();
        if wiped {
            self.disk.wipe();
        }
    }

    /// Clears away what is left of a process that has ended by itself.
    pub fn clear(&self) {
        let process = self.held().take();
        if let Some(process) = process {
            process.kill();
        }
    }

    /// Its next flush fails: what it has written is lost, and it ends.
    pub fn die_flushing(&self) {
        self.dies_flushing.store(true, Ordering::Relaxed);
    }

    async fn run(&self, env: Env) {
        let tasks = env.tasks();
        let bus: Arc<dyn Bus> = Arc::new(self.broker.connect(MemoryOptions::named(&self.name)));
        let store = Forgetful {
            inner: MemoryStore::open(&self.disk),
            dies: Arc::clone(&self.dies_flushing),
            trace: self.trace.clone(),
        };
        let options = CoordinatorOptions {
            prefix: Prefix::default(),
            lease_ttl: self.lease_ttl,
            inbox_prefixes: InboxPrefixes::default(),
            callers: Callers::default(),
        };
        match Coordinator::start(options, Arc::new(store), bus, env, &tasks).await {
            Ok(mut coordinator) => {
                self.trace.line(format_args!("ready {}", self.name));
                if let Err(error) = coordinator.ended().await {
                    self.trace.line(format_args!("{} ended: {error}", self.name));
                }
            }
            Err(error) => self.trace.line(format_args!("{} cannot start: {error}", self.name)),
        }
        tasks.stop().give();
    }

    fn held(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A store that can be told to die between writing and flushing.
struct Forgetful {
    inner: MemoryStore,
    dies: Arc<AtomicBool>,
    trace: Trace,
}

impl Store for Forgetful {
    fn remembered(&self) -> Result<Remembered, StoreError> {
        self.inner.remembered()
    }

    fn assignments(&self, subjects: &[Subject]) -> Result<Vec<Option<ServerName>>, StoreError> {
        self.inner.assignments(subjects)
    }

    fn assigned_after(
        &self,
        prefix: &str,
        after: Option<&Subject>,
        rows: usize,
    ) -> Result<Vec<(Subject, ServerName)>, StoreError> {
        self.inner.assigned_after(prefix, after, rows)
    }

    fn counts(&self) -> Counts {
        self.inner.counts()
    }

    fn write(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.inner.write(changes)
    }

    fn flush(&self) -> Result<(), StoreError> {
        if self.dies.swap(false, Ordering::Relaxed) {
            self.trace.count("coordinator lost what it had not flushed");
            return Err(StoreError::Failed { what: "flushing", source: "the power went".into() });
        }
        self.inner.flush()
    }
}
