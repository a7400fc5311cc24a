//! A machine with a coordinator: its process, its clocks, and a store that loses unflushed data in a crash.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
use dormouse_bus::{Bus, Callers, InboxPrefixes};
use dormouse_coordinator::store::memory::{MemoryDisk, MemoryStore};
use dormouse_coordinator::store::{AssignmentCounts, Store, StoreChange, StoreError, StoredState};
use dormouse_coordinator::{Coordinator, CoordinatorOptions};
use dormouse_protocol::{Prefix, ServerName, Subject, TenantRule};
use dormouse_runtime::{Env, Lock, Process, SeededEntropy};
use tokio::sync::mpsc;

use crate::clock::MachineClock;
use crate::rng::SeededRng;
use crate::trace::Trace;

/// A coordinator's machine.
pub struct CoordinatorHost {
    name: String,
    /// Its clocks.
    pub clock: Arc<MachineClock>,
    disk: MemoryDisk,
    lease_ttl: Duration,
    broker: MemoryBroker,
    trace: Trace,
    rng: SeededRng,
    exits: mpsc::UnboundedSender<String>,
    /// The next flush fails, and ends the process.
    flush_fails: Arc<AtomicBool>,
    process: Lock<Option<Process>>,
}

impl CoordinatorHost {
    /// Creates a stopped machine. `exits` gets a message if the process ends by itself.
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
            rng: SeededRng::of(seed, name),
            exits,
            flush_fails: Arc::default(),
            process: Lock::new(None),
        }
    }

    /// Returns the name of its connection.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the process, if it runs.
    #[must_use]
    pub fn process(&self) -> Option<Process> {
        self.process_slot().clone()
    }

    /// Starts the process, unless it runs.
    pub fn start(self: &Arc<Self>) {
        let process = Process::new();
        {
            let mut process_slot = self.process_slot();
            if process_slot.is_some() {
                return;
            }
            *process_slot = Some(process.clone());
        }
        self.trace.line(format_args!("start {}", self.name));
        let clock: Arc<MachineClock> = Arc::clone(&self.clock);
        let entropy = Arc::new(SeededEntropy::new(self.rng.draw()));
        let env = Env::simulated(clock, entropy).of_process(process);
        self.flush_fails.store(false, Ordering::Relaxed);
        let host = Arc::clone(self);
        env.tasks().spawn("main", {
            let env = env.clone();
            async move {
                host.run(env).await;
                host.trace.line(format_args!("exit {}", host.name));
                host.broker.close(&host.name);
                // The receiver is gone once the run has ended.
                let _ = host.exits.send(host.name.clone());
            }
        });
    }

    /// Kills the process at once. Unflushed data is lost; with `wiped`, all data is lost.
    pub fn crash(&self, wiped: bool) {
        let Some(process) = self.process_slot().take() else { return };
        self.trace.line(format_args!("crash {} {}", self.name, if wiped { "wiped" } else { "" }));
        self.broker.close(&self.name);
        process.kill();
        if wiped {
            self.disk.wipe();
        }
    }

    /// Clears the state of a process that has ended by itself.
    pub fn clear(&self) {
        let process = self.process_slot().take();
        if let Some(process) = process {
            process.kill();
        }
    }

    /// Makes the next flush fail: the written data is lost, and the process ends.
    pub fn fail_next_flush(&self) {
        self.flush_fails.store(true, Ordering::Relaxed);
    }

    async fn run(&self, env: Env) {
        let tasks = env.tasks();
        let bus: Arc<dyn Bus> = Arc::new(self.broker.connect(MemoryOptions::named(&self.name)));
        let store = CrashStore {
            inner: MemoryStore::open(&self.disk),
            fails: Arc::clone(&self.flush_fails),
            trace: self.trace.clone(),
        };
        let options = CoordinatorOptions {
            prefix: Prefix::default(),
            lease_ttl: self.lease_ttl,
            inbox_prefixes: InboxPrefixes::default(),
            callers: Callers::default(),
            tenant_rule: TenantRule::default(),
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
        tasks.stop().request();
    }

    fn process_slot(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock()
    }
}

/// A store that can fail between write and flush.
struct CrashStore {
    inner: MemoryStore,
    fails: Arc<AtomicBool>,
    trace: Trace,
}

impl Store for CrashStore {
    fn load_state(&self) -> Result<StoredState, StoreError> {
        self.inner.load_state()
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

    fn counts(&self) -> AssignmentCounts {
        self.inner.counts()
    }

    fn write(&self, changes: &[StoreChange]) -> Result<(), StoreError> {
        self.inner.write(changes)
    }

    fn flush(&self) -> Result<(), StoreError> {
        if self.fails.swap(false, Ordering::Relaxed) {
            self.trace.count("coordinator lost unflushed state");
            return Err(StoreError::Failed { what: "flushing", source: "power lost".into() });
        }
        self.inner.flush()
    }
}
