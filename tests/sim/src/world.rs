//! The whole fleet in one process: coordinators, servers, clients, and their network and bucket.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dormouse_bucket::{Bucket, ObjectStoreBucket};
use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
use dormouse_bus::{Bus, SubscribeOptions};
use dormouse_checker::{Assumptions, Rules, ServerFaultKind};
use dormouse_client::Client;
use dormouse_engine::EngineSettings;
use dormouse_format::manifest::Manifest;
use dormouse_protocol::{LogId, RoutePattern, ServerName, Slot, Subject};
use dormouse_runtime::{Env, Lock, Process, SeededEntropy, Stop, Tasks, VirtualClock};
use dormouse_testkit::bucket::{BucketObserver, FaultPlan, FaultyBucket, ObservedBucket};
use tokio::sync::mpsc;

use crate::bucket::{StoreEffects, StoreObserver};
use crate::clock::MachineClock;
use crate::coordinator_host::CoordinatorHost;
use crate::greedy::{Aggressor, FailedCalls, Tenant, lapses};
use crate::machine::{Exit, Machine, Parts};
use crate::network::FaultyNetwork;
use crate::readers::read;
use crate::recorder::Recorder;
use crate::rng::SeededRng;
use crate::run_config::{Profile, RunConfig};
use crate::trace::Trace;
use crate::workload::{ClientPlan, Worker};

/// The wall time at the start of every world: an arbitrary day, the same in every run.
const BEGINNING: Duration = Duration::from_secs(1_790_000_000);

/// The number of clients that read and write.
const CLIENTS: u32 = 4;

/// The number of further clients that read feeds.
const READERS: u32 = 2;

/// The clients of the profile `greedy`: the polite tenant and the aggressor.
const POLITE: u32 = CLIENTS + READERS + 1;
const GREEDY: u32 = POLITE + 1;

/// The time that a server may need to recover from a fault.
const RECOVERY: Duration = Duration::from_secs(20);

/// The number of the client for the final check.
pub const LAST: u32 = 9;

/// A world.
pub struct World {
    /// Its configuration.
    pub config: RunConfig,
    /// Its trace.
    pub trace: Trace,
    /// The recorder of requests and replies.
    pub recorder: Recorder,
    /// Its own time and random numbers.
    pub env: Env,
    /// The tasks outside the simulated processes.
    pub tasks: Tasks,
    /// The network between the connections.
    pub net: FaultyNetwork,
    /// The shared messaging system.
    pub broker: MemoryBroker,
    /// The path to the bucket of the world itself.
    pub bucket: FaultyBucket,
    /// The servers' machines.
    pub machines: Vec<Arc<Machine>>,
    /// The coordinators' machines.
    pub coordinators: Vec<Arc<CoordinatorHost>>,
    /// The clients' processes.
    pub clients: Vec<Arc<Caller>>,
    /// The client of the operator.
    operator: OnceLock<Client>,
    /// Whether faults have ended.
    pub healed: AtomicBool,
    /// The calls of the polite tenant that failed.
    pub failed_calls: FailedCalls,
    /// Per server: the start of its current series of faults, and the time of the last one.
    fault_series: Lock<BTreeMap<ServerName, (Duration, Duration)>>,
    seed: u64,
}

/// A client's machine.
pub struct Caller {
    plan: ClientPlan,
    rng: Arc<SeededRng>,
    seed: u64,
    state: Lock<(Option<Process>, u64)>,
}

/// Records the effects at the store.
struct StoreRecorder {
    recorder: Recorder,
    trace: Trace,
}

impl StoreObserver for StoreRecorder {
    fn sealed(&self, log: &LogId, _slot: Slot, by: &str) {
        // A process with its predecessor's disk ends that log without a loss.
        if log.server().as_str() != by {
            self.trace.count("log sealed by another server");
            self.recorder.taken_over(log);
        }
    }

    fn owned(&self, manifest: &Manifest) {
        self.recorder.owned(manifest);
    }
}

impl World {
    /// Creates a world in which nothing runs yet. `folder` is the parent folder of the disks.
    ///
    /// # Panics
    /// Outside a tokio runtime whose clock is paused.
    #[must_use]
    pub fn new(seed: u64, config: RunConfig, folder: &Path, keep_text: bool) -> Arc<Self> {
        let clock = VirtualClock::starting_at(BEGINNING);
        let entropy = SeededEntropy::new(SeededRng::of(seed, "world").draw());
        let env = Env::simulated(Arc::new(clock), Arc::new(entropy));
        let trace = Trace::new(env.clone(), keep_text);
        let holds = config.profile.assumptions_hold();
        let rules = Rules {
            default_level: config.level,
            unshipped: config.log.max_unshipped_age + config.log.ship_interval + Duration::from_secs(2),
            unsynced: config.log.sync_interval + Duration::from_millis(500),
            assumptions: if holds { Assumptions::Hold } else { Assumptions::Broken },
        };
        let tasks = Tasks::new();
        let net = FaultyNetwork::new(seed, trace.clone());
        let recorder = Recorder::new(env.clone(), trace.clone(), net.clone(), rules);
        let broker = MemoryBroker::with_network(Arc::new(net.clone()), env.clone(), &tasks);
        let observer = Arc::new(StoreRecorder { recorder: recorder.clone(), trace: trace.clone() });
        let memory: Arc<dyn Bucket> = Arc::new(ObjectStoreBucket::in_memory(env.clone()));
        let store = Arc::new(StoreEffects::new(trace.clone(), observer));
        let observed = ObservedBucket::new(memory, Arc::clone(&store) as Arc<dyn BucketObserver>);
        let rng = SeededRng::of(seed, "machines");
        let bucket = FaultyBucket::new(Arc::new(observed), rng.draw(), FaultPlan::none(), env.clone());
        let machine_clock = || {
            let rate = if holds { rng.within(720..1_280) } else { 1_000 };
            let rate = if rng.chance(500) { 1_000 } else { rate };
            MachineClock::new(env.clone(), rng.millis(1_000..10_000_000), rate)
        };
        let (exits, exited) = mpsc::unbounded_channel();
        let machine = |number: u64| {
            let name = ServerName::new(&format!("persist-{number}")).expect("a name");
            let settings = EngineSettings {
                level: config.level,
                log: config.log.clone(),
                idle_close: config.idle_close,
                max_open_subjects: config.max_open,
                flush_timeout: Duration::from_secs(3),
                ..EngineSettings::new(PathBuf::new(), name.clone())
            };
            Arc::new(Machine::new(Parts {
                name,
                clock: machine_clock(),
                bucket: bucket.another_client(rng.draw(), config.bucket.clone()),
                store: Arc::clone(&store),
                create_faults: config.create_faults,
                parent: folder.to_owned(),
                settings,
                broker: broker.clone(),
                trace: trace.clone(),
                recorder: recorder.clone(),
                seed,
                exits: exits.clone(),
            }))
        };
        let machines: Vec<_> = (1..=3).map(machine).collect();
        let (coordinator_exits, coordinator_exited) = mpsc::unbounded_channel();
        let coordinator = |name: &&str| {
            let (ttl, broker, trace) = (config.lease_ttl, broker.clone(), trace.clone());
            let exits = coordinator_exits.clone();
            Arc::new(CoordinatorHost::new(name, machine_clock(), ttl, broker, trace, seed, exits))
        };
        let names: &[&str] = match config.profile {
            Profile::TwoCoordinators => &["coordinator", "coordinator-2"],
            _ => &["coordinator"],
        };
        let coordinators: Vec<_> = names.iter().map(coordinator).collect();
        let caller = |number| Arc::new(Caller::new(seed, plan(&config, number)));
        let last = if config.profile == Profile::Greedy { GREEDY } else { CLIENTS + READERS };
        let clients = (1..=last).map(caller).collect();
        net.set_faults(config.network);
        net.set_event_faults(config.events);
        let world = Arc::new(Self {
            config,
            trace,
            recorder,
            env,
            tasks,
            net,
            broker,
            bucket,
            machines,
            coordinators,
            clients,
            operator: OnceLock::new(),
            healed: AtomicBool::new(false),
            failed_calls: FailedCalls::default(),
            fault_series: Lock::default(),
            seed,
        });
        world.tasks.spawn("supervisor", supervise(Arc::clone(&world), exited, coordinator_exited));
        world
    }

    /// Starts everything, and the clients' work until `stop` is requested.
    pub async fn start(self: &Arc<Self>, stop: &Stop) {
        for coordinator in &self.coordinators {
            coordinator.start();
        }
        for machine in &self.machines {
            machine.start();
        }
        let listener = self.broker.connect(MemoryOptions::named("listener"));
        let options = SubscribeOptions::default();
        let pattern = RoutePattern::new("persist.events.>");
        let subscription = listener.subscribe(pattern, options).await.expect("the subscription is allowed");
        let recorder = self.recorder.clone();
        self.tasks.spawn("listener", async move {
            let _listener = listener;
            recorder.listen(subscription).await;
        });
        let bus: Arc<dyn Bus> = Arc::new(self.broker.connect(MemoryOptions::named("operator")));
        let operator = Client::builder().env(self.env.clone()).over(bus).await;
        // A world starts once.
        let _ = self.operator.set(operator.expect("the messaging system is open"));
        for client in &self.clients {
            client.start(self, stop.clone());
        }
    }

    /// Returns the subjects.
    #[must_use]
    pub fn subjects(&self) -> Vec<Subject> {
        plan(&self.config, 0).subjects
    }

    /// Runs an operator action in parallel.
    pub fn operate<F>(&self, act: impl FnOnce(Client, Trace) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if let Some(operator) = self.operator.get() {
            self.tasks.spawn("operator", act(operator.clone(), self.trace.clone()));
        }
    }

    /// Returns a violation for each call of the polite tenant that failed, and for each lease that lapsed.
    pub async fn judge_greedy(&self) -> Vec<String> {
        let mut violations = self.failed_calls.all();
        let servers: Vec<ServerName> = self.machines.iter().map(|machine| machine.name().clone()).collect();
        if let Some(operator) = self.operator.get() {
            violations.extend(lapses(&**operator.bus(), &servers).await);
        }
        violations
    }

    /// Returns the client for the final check.
    ///
    /// # Panics
    /// If the messaging system is closed.
    pub async fn last(&self) -> Worker {
        let plan = plan(&self.config, LAST);
        let rng = Arc::new(SeededRng::of(self.seed, "last"));
        let worker = Worker::connect(plan, 1, &self.broker, &self.recorder, &self.env, rng).await;
        worker.expect("the messaging system is open")
    }

    /// Runs an action after a delay.
    pub fn later(self: &Arc<Self>, after: Duration, act: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let world = Arc::clone(self);
        self.tasks.spawn("later", async move {
            tokio::time::sleep(after).await;
            act(&world);
        });
    }

    /// Ends all faults: nothing is cut or lost, and every stopped or paused process runs again.
    pub fn heal(self: &Arc<Self>) {
        self.trace.line(format_args!("heal"));
        self.healed.store(true, Ordering::Relaxed);
        self.net.heal();
        self.broker.reconnect_all();
        for machine in &self.machines {
            machine.bucket.set_unreachable(false);
            machine.create_faults.store(0, Ordering::Relaxed);
            machine.bucket.set_plan(FaultPlan { latency: Duration::from_millis(10), ..FaultPlan::none() });
            machine.disk().limit_free_space(None);
            machine.disk().fail_syncs(0);
            if let Some(process) = machine.process() {
                process.resume();
            }
            machine.start();
        }
        for coordinator in &self.coordinators {
            if let Some(process) = coordinator.process() {
                process.resume();
            }
        }
        for coordinator in self.coordinators.iter().skip(1) {
            coordinator.crash(false);
        }
        // From here on, one is enough.
        self.coordinators[0].start();
        for machine in &self.machines {
            let name = machine.name().clone();
            self.operate(|client, _| async move {
                while client.undrain(&name).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            });
        }
    }

    /// Records that a fault of a server starts now. Changes that it accepted earlier may be unsaved since the previous
    /// fault, if that is recent.
    pub fn record_fault(&self, machine: &Machine, kind: ServerFaultKind) -> usize {
        let now = self.trace.now();
        let mut fault_series = self.fault_series.lock();
        let series = fault_series.entry(machine.name().clone()).or_insert((now, now));
        if now > series.1 + RECOVERY {
            *series = (now, now);
        }
        series.1 = now;
        let copied = machine.backed_up_at().filter(|_| kind == ServerFaultKind::DiskRestored);
        self.recorder.record_fault(
            machine.name(),
            kind,
            copied.map_or(series.0, |copied| copied.min(series.0)),
        )
    }

    /// Returns whether the faults have ended.
    #[must_use]
    pub fn is_healed(&self) -> bool {
        self.healed.load(Ordering::Relaxed)
    }

    /// Ends all processes and tasks, so that nothing outlives the run.
    pub fn end(&self) {
        for client in &self.clients {
            client.crash();
        }
        for machine in &self.machines {
            machine.clear();
        }
        for coordinator in &self.coordinators {
            coordinator.clear();
        }
        self.tasks.stop().request();
    }
}

fn plan(config: &RunConfig, number: u32) -> ClientPlan {
    let subject = |number| Subject::new(&format!("app.s{number}")).expect("a subject");
    ClientPlan {
        number,
        subjects: (1..=config.subjects).map(subject).collect(),
        keys: config.keys,
        pause_ms: config.pause_ms,
        configures: config.configures,
        deletes: config.deletes,
        destroys: config.destroys,
        large_values: config.large_values,
    }
}

impl Caller {
    fn new(seed: u64, plan: ClientPlan) -> Self {
        let rng = Arc::new(SeededRng::of(seed, &format!("client-{}", plan.number)));
        Self { plan, rng, seed, state: Lock::new((None, 0)) }
    }

    /// Starts the client's process.
    pub fn start(self: &Arc<Self>, world: &World, stop: Stop) {
        let process = Process::new();
        let incarnation = {
            let mut state = self.state.lock();
            state.0 = Some(process.clone());
            state.1 += 1;
            state.1
        };
        let number = self.plan.number;
        let seed =
            // The label is part of the seed: another text gives every seed another run.
            SeededRng::of(self.seed, &format!("entropy of client {number}, life {incarnation}"))
                .draw();
        let clock = MachineClock::new(world.env.clone(), Duration::ZERO, 1_000);
        let env = Env::simulated(Arc::new(clock), Arc::new(SeededEntropy::new(seed))).of_process(process);
        let (broker, recorder) = (world.broker.clone(), world.recorder.clone());
        let (trace, failed_calls) = (world.trace.clone(), world.failed_calls.clone());
        let attack_until = world.config.length;
        let (plan, rng) = (self.plan.clone(), Arc::clone(&self.rng));
        env.tasks().spawn("client", {
            let env = env.clone();
            async move {
                let number = plan.number;
                if number <= CLIENTS {
                    if let Ok(worker) =
                        Worker::connect(plan, incarnation, &broker, &recorder, &env, rng).await
                    {
                        worker.work(stop).await;
                    }
                } else if number < POLITE {
                    let _ = read(plan, broker, recorder, env, rng, stop).await;
                } else {
                    let tenant = Tenant { number, broker, recorder, trace, env, rng };
                    if number == POLITE {
                        let _ = tenant.be_polite(failed_calls, stop).await;
                    } else if let Ok(aggressor) = Aggressor::connect(tenant).await {
                        aggressor.attack(attack_until).await;
                    }
                }
            }
        });
    }

    /// Kills the process.
    pub fn crash(&self) {
        let process = self.state.lock().0.take();
        if let Some(process) = process {
            process.kill();
        }
    }

    /// Returns the client's number.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.plan.number
    }

    /// Returns the name of its connection.
    #[must_use]
    pub fn name(&self) -> String {
        format!("client-{}", self.plan.number)
    }
}

/// Restarts processes that have ended by themselves, as a service manager does.
async fn supervise(
    world: Arc<World>,
    mut servers: mpsc::UnboundedReceiver<(ServerName, Exit)>,
    mut coordinators: mpsc::UnboundedReceiver<String>,
) {
    let rng = SeededRng::of(world.seed, "supervisor");
    loop {
        tokio::select! {
            biased;
            () = world.tasks.stop().requested() => return,
            Some((name, exit)) = servers.recv() => {
                let Some(machine) = world.machines.iter().find(|machine| *machine.name() == name) else { continue };
                machine.clear();
                let kind = match exit {
                    Exit::Clean => None,
                    // Unsynced data is gone, with the pages that could not be written.
                    Exit::DataDir => Some(ServerFaultKind::PowerLost),
                    Exit::Failure | Exit::Refused => Some(ServerFaultKind::Killed),
                };
                if let Some(kind) = kind {
                    let number = world.record_fault(machine, kind);
                    world.recorder.end_fault(number);
                }
                let machine = Arc::clone(machine);
                world.later(rng.millis(100..1_500), move |_| machine.start());
            }
            Some(name) = coordinators.recv() => {
                let Some(coordinator) = world.coordinators.iter().find(|coordinator| coordinator.name() == name) else { continue };
                coordinator.clear();
                let coordinator = Arc::clone(coordinator);
                world.later(rng.millis(100..1_500), move |_| coordinator.start());
            }
        }
    }
}
