//! The whole fleet in one process: coordinators, servers, clients, and what lies between them.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
use dormouse_bus::{Bus, SubscribeOptions};
use dormouse_checker::{Assumptions, HarmKind, Rules};
use dormouse_client::Client;
use dormouse_protocol::{LogId, RoutePattern, ServerName, Slot, Subject};
use dormouse_runtime::{Env, Process, SeededEntropy, Stop, Tasks, VirtualClock};
use dormouse_storage::EngineSettings;
use dormouse_storage::bucket::faults::{FaultPlan, FaultyBucket};
use dormouse_storage::bucket::{Bucket, ObjectStoreBucket};
use dormouse_storage::manifest::Manifest;
use tokio::sync::mpsc;

use crate::bucket::{Store, Witness};
use crate::clock::MachineClock;
use crate::dice::Dice;
use crate::machine::{Exit, Machine, Parts};
use crate::network::Net;
use crate::office::Office;
use crate::readers::read;
use crate::recorder::{Recorder, listen};
use crate::setting::{Profile, Setting};
use crate::trace::Trace;
use crate::workload::{Plan, Worker};

/// The time at which every world begins: some day, and the same in every run.
const BEGINNING: Duration = Duration::from_secs(1_790_000_000);

/// How many clients there are that ask and write.
const CLIENTS: u32 = 4;

/// How many there are beside them that read feeds.
const READERS: u32 = 2;

/// How long a server may need to come to terms with a blow.
const RECOVERY: Duration = Duration::from_secs(20);

/// The number of the client that looks last.
pub const LAST: u32 = 9;

/// A world.
pub struct World {
    /// What was drawn for it.
    pub setting: Setting,
    /// What happens.
    pub trace: Trace,
    /// What is asked and answered.
    pub recorder: Recorder,
    /// Its own time and chance.
    pub env: Env,
    /// What is done beside everything simulated.
    pub tasks: Tasks,
    /// Between the connections.
    pub net: Net,
    /// Everybody's messaging system.
    pub broker: MemoryBroker,
    /// The way to the bucket that is nobody's.
    pub bucket: FaultyBucket,
    /// The servers' machines.
    pub machines: Vec<Arc<Machine>>,
    /// The coordinators' machines.
    pub offices: Vec<Arc<Office>>,
    /// The clients' processes.
    pub clients: Vec<Arc<Caller>>,
    /// Whoever gives orders to the coordinator.
    operator: OnceLock<Client>,
    /// Nothing goes wrong any more.
    pub healed: AtomicBool,
    /// Since when each server has not been well, and when something last befell it.
    unwell: Mutex<BTreeMap<ServerName, (Duration, Duration)>>,
    seed: u64,
}

/// A client's machine.
pub struct Caller {
    plan: Plan,
    dice: Arc<Dice>,
    seed: u64,
    state: Mutex<(Option<Process>, u64)>,
}

/// Notes what happens at the store.
struct Noting {
    recorder: Recorder,
    trace: Trace,
}

impl Witness for Noting {
    fn sealed(&self, log: &LogId, _slot: Slot, by: &str) {
        // A process that has its predecessor's disk ends its log without a loss.
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
    /// A world in which nothing runs yet. `room` is where disks are.
    ///
    /// # Panics
    /// Outside a tokio runtime whose clock is paused.
    #[must_use]
    pub fn new(seed: u64, setting: Setting, room: &Path, keep_text: bool) -> Arc<Self> {
        let clock = VirtualClock::starting_at(BEGINNING);
        let entropy = SeededEntropy::new(Dice::of(seed, "world").draw());
        let env = Env::simulated(Arc::new(clock), Arc::new(entropy));
        let trace = Trace::new(env.clone(), keep_text);
        let holds = setting.profile.assumptions_hold();
        let rules = Rules {
            default_level: setting.level,
            unshipped: setting.log.max_unshipped_age + setting.log.ship_interval + Duration::from_secs(2),
            unsynced: setting.log.sync_interval + Duration::from_millis(500),
            assumptions: if holds { Assumptions::Hold } else { Assumptions::Broken },
        };
        let tasks = Tasks::new();
        let net = Net::new(seed, trace.clone());
        let recorder = Recorder::new(trace.clone(), net.clone(), rules);
        let broker = MemoryBroker::over(Arc::new(net.clone()), env.clone(), &tasks);
        let witness = Arc::new(Noting { recorder: recorder.clone(), trace: trace.clone() });
        let memory: Arc<dyn Bucket> = Arc::new(ObjectStoreBucket::in_memory(env.clone()));
        let store = Arc::new(Store::new(memory, trace.clone(), witness));
        let dice = Dice::of(seed, "machines");
        let bucket =
            FaultyBucket::new(Arc::<Store>::clone(&store), dice.draw(), FaultPlan::calm(), env.clone());
        let machine_clock = || {
            let rate = if holds { dice.within(720..1_280) } else { 1_000 };
            let rate = if dice.chance(500) { 1_000 } else { rate };
            MachineClock::new(env.clone(), dice.millis(1_000..10_000_000), rate)
        };
        let (exits, exited) = mpsc::unbounded_channel();
        let machine = |number: u64| {
            let name = ServerName::new(&format!("persist-{number}")).expect("a name");
            let settings = EngineSettings {
                level: setting.level,
                log: setting.log.clone(),
                idle_close: setting.idle_close,
                max_open_subjects: setting.max_open,
                flush_patience: Duration::from_secs(3),
                ..EngineSettings::new(PathBuf::new(), name.clone())
            };
            Arc::new(Machine::new(Parts {
                name,
                clock: machine_clock(),
                bucket: bucket.another(dice.draw(), setting.bucket.clone()),
                store: Arc::clone(&store),
                sharp: setting.sharp,
                room: room.to_owned(),
                settings,
                broker: broker.clone(),
                trace: trace.clone(),
                recorder: recorder.clone(),
                seed,
                exits: exits.clone(),
            }))
        };
        let machines: Vec<_> = (1..=3).map(machine).collect();
        let (office_exits, office_exited) = mpsc::unbounded_channel();
        let office = |name: &&str| {
            let (ttl, broker, trace) = (setting.lease_ttl, broker.clone(), trace.clone());
            let exits = office_exits.clone();
            Arc::new(Office::new(name, machine_clock(), ttl, broker, trace, seed, exits))
        };
        let names: &[&str] = match setting.profile {
            Profile::TwoCoordinators => &["coordinator", "coordinator-2"],
            _ => &["coordinator"],
        };
        let offices: Vec<_> = names.iter().map(office).collect();
        let caller = |number| Arc::new(Caller::new(seed, plan(&setting, number)));
        let clients = (1..=CLIENTS + READERS).map(caller).collect();
        net.set_weather(setting.weather);
        net.set_events_weather(setting.events);
        let world = Arc::new(Self {
            setting,
            trace,
            recorder,
            env,
            tasks,
            net,
            broker,
            bucket,
            machines,
            offices,
            clients,
            operator: OnceLock::new(),
            healed: AtomicBool::new(false),
            unwell: Mutex::default(),
            seed,
        });
        world.tasks.spawn("supervisor", supervise(Arc::clone(&world), exited, office_exited));
        world
    }

    /// Starts everything, and the clients' work until `stop` is given.
    pub async fn start(self: &Arc<Self>, stop: &Stop) {
        for office in &self.offices {
            office.start();
        }
        for machine in &self.machines {
            machine.start();
        }
        let listener = self.broker.connect(MemoryOptions::named("listener"));
        let options = SubscribeOptions::default();
        let pattern = RoutePattern::new("persist.events.>");
        let subscription = listener.subscribe(pattern, options).await.expect("everything may be listened to");
        let recorder = self.recorder.clone();
        self.tasks.spawn("listener", async move {
            let _listener = listener;
            listen(recorder, subscription).await;
        });
        let bus: Arc<dyn Bus> = Arc::new(self.broker.connect(MemoryOptions::named("operator")));
        let operator = Client::builder().env(self.env.clone()).over(bus).await;
        // A world is started once.
        let _ = self.operator.set(operator.expect("nobody has closed the messaging system"));
        for client in &self.clients {
            client.start(self, stop.clone());
        }
    }

    /// The subjects that there are.
    #[must_use]
    pub fn subjects(&self) -> Vec<Subject> {
        plan(&self.setting, 0).subjects
    }

    /// Has the operator do something beside everything else.
    pub fn operate<F>(&self, act: impl FnOnce(Client, Trace) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if let Some(operator) = self.operator.get() {
            self.tasks.spawn("operator", act(operator.clone(), self.trace.clone()));
        }
    }

    /// Whoever looks at everything in the end.
    ///
    /// # Panics
    /// When the messaging system is closed.
    pub async fn last(&self) -> Worker {
        let plan = plan(&self.setting, LAST);
        let dice = Arc::new(Dice::of(self.seed, "last"));
        let worker = Worker::connect(plan, 1, &self.broker, &self.recorder, &self.env, dice).await;
        worker.expect("nobody has closed the messaging system")
    }

    /// Does something after a while.
    pub fn later(self: &Arc<Self>, after: Duration, act: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let world = Arc::clone(self);
        self.tasks.spawn("later", async move {
            tokio::time::sleep(after).await;
            act(&world);
        });
    }

    /// Everything is well from here on: nothing is cut or lost, and whoever is down or stands still goes on.
    pub fn heal(self: &Arc<Self>) {
        self.trace.line(format_args!("heal"));
        self.healed.store(true, Ordering::Relaxed);
        self.net.heal();
        self.broker.reconnect_all();
        for machine in &self.machines {
            machine.bucket.set_gone(false);
            machine.sharp.store(0, Ordering::Relaxed);
            machine.bucket.set_plan(FaultPlan { latency: Duration::from_millis(10), ..FaultPlan::calm() });
            machine.disk().limit_room(None);
            machine.disk().fail_syncs(0);
            if let Some(process) = machine.process() {
                process.resume();
            }
            machine.start();
        }
        for office in &self.offices {
            if let Some(process) = office.process() {
                process.resume();
            }
        }
        for office in self.offices.iter().skip(1) {
            office.crash(false);
        }
        // One is enough from here on.
        self.offices[0].start();
        for machine in &self.machines {
            let name = machine.name().clone();
            self.operate(|client, _| async move {
                while client.undrain(&name).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            });
        }
    }

    /// Notes that a server suffers something from now on. What it had accepted before may have waited since an earlier
    /// blow, where that is not long ago.
    pub fn harm(&self, machine: &Machine, kind: HarmKind) -> usize {
        let now = self.trace.now();
        let mut unwell = self.unwell.lock().unwrap_or_else(PoisonError::into_inner);
        let streak = unwell.entry(machine.name().clone()).or_insert((now, now));
        if now > streak.1 + RECOVERY {
            *streak = (now, now);
        }
        streak.1 = now;
        let copied = machine.backed_up_at().filter(|_| kind == HarmKind::DiskRestored);
        self.recorder.harm(machine.name(), kind, copied.map_or(streak.0, |copied| copied.min(streak.0)))
    }

    /// Whether nothing goes wrong any more.
    #[must_use]
    pub fn is_healed(&self) -> bool {
        self.healed.load(Ordering::Relaxed)
    }

    /// Ends everything there is, so that nothing outlives the run.
    pub fn end(&self) {
        for client in &self.clients {
            client.crash();
        }
        for machine in &self.machines {
            machine.clear();
        }
        for office in &self.offices {
            office.clear();
        }
        self.tasks.stop().give();
    }
}

fn plan(setting: &Setting, number: u32) -> Plan {
    let subject = |number| Subject::new(&format!("app.s{number}")).expect("a subject");
    Plan {
        number,
        subjects: (1..=setting.subjects).map(subject).collect(),
        keys: setting.keys,
        pause_ms: setting.pause_ms,
        configures: setting.configures,
        deletes: setting.deletes,
        destroys: setting.destroys,
        large_values: setting.large_values,
    }
}

impl Caller {
    fn new(seed: u64, plan: Plan) -> Self {
        let dice = Arc::new(Dice::of(seed, &format!("client-{}", plan.number)));
        Self { plan, dice, seed, state: Mutex::new((None, 0)) }
    }

    /// Starts the client's process.
    pub fn start(self: &Arc<Self>, world: &World, stop: Stop) {
        let process = Process::new();
        let life = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.0 = Some(process.clone());
            state.1 += 1;
            state.1
        };
        let number = self.plan.number;
        let seed = Dice::of(self.seed, &format!("entropy of client {number}, life {life}")).draw();
        let clock = MachineClock::new(world.env.clone(), Duration::ZERO, 1_000);
        let env = Env::simulated(Arc::new(clock), Arc::new(SeededEntropy::new(seed))).of_process(process);
        let (broker, recorder) = (world.broker.clone(), world.recorder.clone());
        let (plan, dice) = (self.plan.clone(), Arc::clone(&self.dice));
        env.tasks().spawn("client", {
            let env = env.clone();
            async move {
                if plan.number > CLIENTS {
                    let _ = read(plan, broker, recorder, env, dice, stop).await;
                } else if let Ok(worker) = Worker::connect(plan, life, &broker, &recorder, &env, dice).await {
                    worker.work(stop).await;
                }
            }
        });
    }

    /// The process is gone.
    pub fn crash(&self) {
        let process = self.state.lock().unwrap_or_else(PoisonError::into_inner).0.take();
        if let Some(process) = process {
            process.kill();
        }
    }

    /// The client's number.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.plan.number
    }

    /// The name of its connection.
    #[must_use]
    pub fn name(&self) -> String {
        format!("client-{}", self.plan.number)
    }
}

/// Starts again what has ended by itself, as a service manager does.
async fn supervise(
    world: Arc<World>,
    mut servers: mpsc::UnboundedReceiver<(ServerName, Exit)>,
    mut coordinators: mpsc::UnboundedReceiver<String>,
) {
    let dice = Dice::of(world.seed, "supervisor");
    loop {
        tokio::select! {
            biased;
            () = world.tasks.stop().given() => return,
            Some((name, exit)) = servers.recv() => {
                let Some(machine) = world.machines.iter().find(|machine| *machine.name() == name) else { continue };
                machine.clear();
                let harm = match exit {
                    Exit::AsAsked => None,
                    // What was not synced has gone with the pages that could not be written.
                    Exit::DataDir => Some(HarmKind::PowerLost),
                    Exit::Failure | Exit::Refused => Some(HarmKind::Killed),
                };
                if let Some(kind) = harm {
                    let number = world.harm(machine, kind);
                    world.recorder.harm_over(number);
                }
                let machine = Arc::clone(machine);
                world.later(dice.millis(100..1_500), move |_| machine.start());
            }
            Some(name) = coordinators.recv() => {
                let Some(office) = world.offices.iter().find(|office| office.name() == name) else { continue };
                office.clear();
                let office = Arc::clone(office);
                world.later(dice.millis(100..1_500), move |_| office.start());
            }
        }
    }
}
