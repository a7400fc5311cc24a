//! Injects faults into the fleet. The seed decides their kind, target and time.

use std::sync::{Arc, Weak};
use std::time::Duration;

use dormouse_checker::ServerFaultKind;
use dormouse_runtime::Stop;

use crate::bucket::StepObserver;
use crate::machine::{DiskAfterCrash, Machine};
use crate::rng::SeededRng;
use crate::run_config::{FaultAction, Profile};
use crate::world::World;

/// Injects faults into a fleet.
pub struct Nemesis {
    world: Arc<World>,
    rng: SeededRng,
    stop: Stop,
}

/// Injects faults at critical steps.
struct StepTrigger(Weak<Nemesis>);

impl StepObserver for StepTrigger {
    fn before_create(&self, server: &str, ours: bool) {
        let Some(nemesis) = self.0.upgrade() else { return };
        let [drawn, crash, steps] = std::array::from_fn(|_| nemesis.rng.draw());
        if nemesis.stop.is_requested() || drawn % 1_000 >= nemesis.world.config.step_faults {
            return;
        }
        let machine = nemesis.world.machines.iter().find(|machine| machine.name().as_str() == server);
        let Some(machine) = machine else { return };
        nemesis
            .world
            .trace
            .line(format_args!("step-fault {server} {}", if ours { "in its own name" } else { "sealing" }));
        nemesis.world.trace.count("step fault");
        if crash % 3 == 0 {
            nemesis.crash(machine, steps % 12);
        } else {
            nemesis.pause(machine, steps % 12);
        }
    }
}

impl Nemesis {
    /// Creates a nemesis that injects step faults until `stop` is requested.
    #[must_use]
    pub fn new(world: Arc<World>, seed: u64, stop: Stop) -> Arc<Self> {
        let nemesis = Arc::new(Self { world, rng: SeededRng::of(seed, "nemesis"), stop });
        for machine in &nemesis.world.machines {
            let trigger: Arc<dyn StepObserver> = Arc::new(StepTrigger(Arc::downgrade(&nemesis)));
            // A world has one nemesis.
            let _ = machine.step_observer.set(trigger);
        }
        nemesis
    }

    /// Injects faults until the stop is requested.
    pub async fn run(self: Arc<Self>) {
        let mean = self.world.config.between_ms;
        // Faults before the fleet is up have little effect.
        tokio::time::sleep(self.rng.millis(0..1_500)).await;
        while !self.stop.is_requested() {
            self.inject();
            tokio::time::sleep(self.rng.millis(mean / 10..mean * 2)).await;
        }
    }

    fn inject(&self) {
        let fault = self.rng.weighted(&self.world.config.faults);
        self.world.trace.line(format_args!("fault {fault:?}"));
        self.world.trace.count(match fault {
            FaultAction::CrashServer => "fault: crash of a server",
            FaultAction::PauseServer => "fault: pause of a server",
            FaultAction::StopServer => "fault: graceful stop",
            FaultAction::Partition => "fault: partition",
            FaultAction::Disconnect => "fault: connection lost",
            FaultAction::CutBucket => "fault: bucket cut off",
            FaultAction::CrashCoordinator => "fault: crash of a coordinator",
            FaultAction::WipeCoordinator => "fault: coordinator's disk lost",
            FaultAction::LoseUnflushed => "fault: coordinator's flush lost",
            FaultAction::PauseCoordinator => "fault: pause of a coordinator",
            FaultAction::JumpClock => "fault: wall clock jumps",
            FaultAction::FillDisk => "fault: disk full",
            FaultAction::FailSync => "fault: sync fails",
            FaultAction::BackUp => "fault: copy of a disk",
            FaultAction::CrashClient => "fault: crash of a client",
            FaultAction::Drain => "fault: drain",
            FaultAction::Move => "fault: move",
            FaultAction::Rebalance => "fault: rebalance",
        });
        match fault {
            FaultAction::CrashServer => self.crash_server(),
            FaultAction::PauseServer => self.pause_server(),
            FaultAction::StopServer => self.machine().stop(),
            FaultAction::Partition => self.partition(),
            FaultAction::Disconnect => self.disconnect(),
            FaultAction::CutBucket => self.cut_bucket(),
            FaultAction::CrashCoordinator => self.crash_coordinator(false),
            FaultAction::WipeCoordinator => self.crash_coordinator(true),
            FaultAction::LoseUnflushed => self.coordinator().fail_next_flush(),
            FaultAction::PauseCoordinator => self.pause_coordinator(),
            FaultAction::JumpClock => self.jump_clock(),
            FaultAction::FillDisk => self.fill_disk(),
            FaultAction::FailSync => self.fail_sync(),
            FaultAction::BackUp => self.machine().back_up(),
            FaultAction::CrashClient => self.crash_client(),
            FaultAction::Drain => self.drain(),
            FaultAction::Move => self.move_subject(),
            FaultAction::Rebalance => self.rebalance(),
        }
        if self.world.config.profile == Profile::ClockDrift && self.rng.chance(400) {
            let rate = self.rng.within(300..3_000);
            let clock = if self.rng.chance(300) { &self.coordinator().clock } else { &self.machine().clock };
            clock.set_rate(rate);
        }
    }

    fn machine(&self) -> &Arc<Machine> {
        self.rng.pick(&self.world.machines)
    }

    fn coordinator(&self) -> &Arc<crate::coordinator_host::CoordinatorHost> {
        self.rng.pick(&self.world.coordinators)
    }

    /// Draws a duration: mostly about as long as a lease, sometimes much longer.
    fn random_duration(&self) -> Duration {
        let ttl = u64::try_from(self.world.config.lease_ttl.as_millis()).unwrap_or(1_000);
        match self.rng.below(4) {
            0 => self.rng.millis(20..ttl),
            1 | 2 => self.rng.millis(ttl / 2..ttl * 3),
            _ => self.rng.millis(ttl..ttl * 3 + 5_000),
        }
    }

    fn crash_server(&self) {
        // The fault can occur between any two steps, some of which are far apart and some at one moment.
        self.crash(self.machine(), self.steps());
    }

    fn crash(&self, machine: &Arc<Machine>, steps: u64) {
        let machine = Arc::clone(machine);
        let disk_after = self.rng.weighted(&[
            (60, DiskAfterCrash::Kept),
            (20, DiskAfterCrash::PowerLost),
            (12, DiskAfterCrash::Wiped),
            (16, DiskAfterCrash::Restored),
        ]);
        let disk_after = if disk_after == DiskAfterCrash::Restored && machine.backed_up_at().is_none() {
            DiskAfterCrash::Kept
        } else {
            disk_after
        };
        let down = if self.rng.chance(300) { self.rng.millis(1..100) } else { self.random_duration() };
        let Some(process) = machine.process() else { return };
        let world = Arc::clone(&self.world);
        let inject = move || {
            if world.is_healed() {
                return;
            }
            world.trace.count(match disk_after {
                DiskAfterCrash::Kept => "server killed",
                DiskAfterCrash::PowerLost => "server lost power",
                DiskAfterCrash::Wiped => "server lost its disk",
                DiskAfterCrash::Restored => "server got an old disk",
            });
            let kind = match disk_after {
                DiskAfterCrash::Kept => ServerFaultKind::Killed,
                DiskAfterCrash::PowerLost => ServerFaultKind::PowerLost,
                DiskAfterCrash::Wiped => ServerFaultKind::DiskWiped,
                DiskAfterCrash::Restored => ServerFaultKind::DiskRestored,
            };
            let fault_id = world.record_fault(&machine, kind);
            machine.crash(disk_after);
            world.recorder.end_fault(fault_id);
            world.later(down, move |_| machine.start());
        };
        process.hook_after(steps, inject);
    }

    fn steps(&self) -> u64 {
        let most = *self.rng.pick(&[1, 20, 200]);
        self.rng.below(most)
    }

    fn pause_server(&self) {
        self.pause(self.machine(), self.steps());
    }

    fn pause(&self, machine: &Arc<Machine>, steps: u64) {
        let machine = Arc::clone(machine);
        let Some(process) = machine.process() else { return };
        let (world, lasts) = (Arc::clone(&self.world), self.random_duration());
        let paused = process.clone();
        process.hook_after(steps, move || {
            if world.is_healed() {
                return;
            }
            world.trace.line(format_args!("pause {} for {lasts:?}", machine.name()));
            world.trace.count("server paused");
            paused.pause();
            let fault_id = world.record_fault(&machine, ServerFaultKind::Paused);
            world.later(lasts, move |world| {
                world.trace.line(format_args!("resume {}", machine.name()));
                world.recorder.end_fault(fault_id);
                paused.resume();
            });
        });
    }

    fn partition(&self) {
        let hosts: Vec<String> = self.hosts();
        let from = self.rng.pick(&hosts).clone();
        // The host is often cut off from all others, as with an unplugged cable.
        let all = self.rng.chance(300);
        let others: Vec<String> = if all {
            hosts.iter().filter(|host| **host != from).cloned().collect()
        } else {
            vec![self.rng.pick(&hosts).clone()]
        };
        let both = self.rng.chance(600);
        let (lasts, world) = (self.random_duration(), &self.world);
        world
            .trace
            .line(format_args!("cut {from} {} {others:?} for {lasts:?}", if both { "-" } else { ">" }));
        let cut = |one: &str, other: &str| world.net.cut(one, other);
        for other in &others {
            cut(&from, other);
            if both {
                cut(other, &from);
            }
        }
        let affected = world.machines.iter().filter(|machine| {
            let name = machine.name().as_str();
            from == name || others.iter().any(|other| other == name)
        });
        let fault_ids: Vec<usize> =
            affected.map(|machine| world.record_fault(machine, ServerFaultKind::CutFromBus)).collect();
        world.later(lasts, move |world| {
            for other in &others {
                world.net.mend(&from, other);
                if both {
                    world.net.mend(other, &from);
                }
            }
            fault_ids.iter().for_each(|fault_id| world.recorder.end_fault(*fault_id));
        });
    }

    fn hosts(&self) -> Vec<String> {
        let world = &self.world;
        let mut hosts: Vec<String> =
            world.machines.iter().map(|machine| machine.name().to_string()).collect();
        hosts.extend(world.coordinators.iter().map(|coordinator| coordinator.name().to_owned()));
        // Servers and coordinators are listed twice, because faults there have more effect.
        hosts.extend(hosts.clone());
        hosts.extend(world.clients.iter().map(|client| client.name()));
        hosts
    }

    fn disconnect(&self) {
        let name = self.rng.pick(&self.hosts()).clone();
        let (lasts, world) = (self.random_duration(), &self.world);
        world.trace.line(format_args!("disconnect {name} for {lasts:?}"));
        world.broker.disconnect(&name);
        let machine = world.machines.iter().find(|machine| machine.name().as_str() == name);
        let fault_id = machine.map(|machine| world.record_fault(machine, ServerFaultKind::CutFromBus));
        world.later(lasts, move |world| {
            world.broker.reconnect(&name);
            if let Some(fault_id) = fault_id {
                world.recorder.end_fault(fault_id);
            }
        });
    }

    fn cut_bucket(&self) {
        let (machine, lasts) = (Arc::clone(self.machine()), self.random_duration());
        let world = &self.world;
        world.trace.line(format_args!("cut {} from the bucket for {lasts:?}", machine.name()));
        machine.bucket.set_unreachable(true);
        let fault_id = world.record_fault(&machine, ServerFaultKind::CutFromBucket);
        world.later(lasts, move |world| {
            machine.bucket.set_unreachable(false);
            world.recorder.end_fault(fault_id);
        });
    }

    fn crash_coordinator(&self, wiped: bool) {
        let coordinator = Arc::clone(self.coordinator());
        let Some(process) = coordinator.process() else { return };
        let down = if self.rng.chance(250) { self.rng.millis(5_000..15_000) } else { self.random_duration() };
        let world = Arc::clone(&self.world);
        process.hook_after(self.steps() / 2, move || {
            if world.is_healed() {
                return;
            }
            world.trace.count(if wiped { "coordinator lost its disk" } else { "coordinator killed" });
            coordinator.crash(wiped);
            world.later(down, move |_| coordinator.start());
        });
    }

    fn pause_coordinator(&self) {
        let Some(process) = self.coordinator().process() else { return };
        let lasts = self.random_duration();
        self.world.trace.line(format_args!("pause a coordinator for {lasts:?}"));
        process.pause();
        self.world.later(lasts, move |_| process.resume());
    }

    fn jump_clock(&self) {
        // The dedup window ends an hour later on the servers' clocks. The largest distance between two clocks is less
        // than that.
        let magnitude = *self.rng.pick(&[1_000_000, 60_000_000, 1_700_000_000_u64]);
        let micros = i64::try_from(self.rng.below(magnitude)).unwrap_or(0);
        let micros = if self.rng.chance(500) { -micros } else { micros };
        let (host, clock) = if self.rng.chance(200) {
            let coordinator = self.coordinator();
            (coordinator.name(), &coordinator.clock)
        } else {
            let machine = self.machine();
            (machine.name().as_str(), &machine.clock)
        };
        self.world.trace.line(format_args!("the wall clock of {host} is wrong by {micros} microseconds"));
        clock.set_wrong(micros);
    }

    fn fill_disk(&self) {
        let machine = Arc::clone(self.machine());
        let (room, lasts) = (self.rng.below(20_000), self.rng.millis(200..3_000));
        self.world.trace.line(format_args!("{} has {room} bytes of space for {lasts:?}", machine.name()));
        machine.disk().limit_free_space(Some(room));
        self.world.later(lasts, move |_| machine.disk().limit_free_space(None));
    }

    fn fail_sync(&self) {
        let machine = self.machine();
        self.world.trace.line(format_args!("a sync of {} fails", machine.name()));
        // The process ends after its next attempt.
        machine.disk().fail_syncs(1);
    }

    fn drain(&self) {
        let name = self.machine().name().clone();
        // Some drains are never cancelled before the end of the faults.
        let back = self.rng.chance(800).then(|| self.random_duration() * 2);
        self.world.operate(move |client, trace| async move {
            let ordered = client.drain(&name).await;
            trace.line(format_args!("drain {name}: {}", if ordered.is_ok() { "ordered" } else { "failed" }));
            let Some(back) = back else { return };
            tokio::time::sleep(back).await;
            let ordered = client.undrain(&name).await;
            trace
                .line(format_args!("undrain {name}: {}", if ordered.is_ok() { "ordered" } else { "failed" }));
        });
    }

    fn move_subject(&self) {
        let to = self.machine().name().clone();
        let subject = self.rng.pick(&self.world.subjects()).clone();
        self.world.operate(move |client, trace| async move {
            let ordered = client.move_subject(&subject, &to).await;
            if ordered.is_ok() {
                trace.count("move ordered");
            }
            trace.line(format_args!(
                "move {subject} to {to}: {}",
                if ordered.is_ok() { "ordered" } else { "failed" }
            ));
        });
    }

    fn rebalance(&self) {
        self.world.operate(|client, trace| async move {
            let ordered = client.rebalance(false, 2).await;
            trace.line(format_args!("rebalance: {}", if ordered.is_ok() { "ordered" } else { "failed" }));
        });
    }

    fn crash_client(&self) {
        let client = Arc::clone(self.rng.pick(&self.world.clients));
        self.world.trace.line(format_args!("crash {}", client.name()));
        client.crash();
        self.world.recorder.feeds_end(client.number());
        let stop = self.stop.clone();
        self.world.later(self.rng.millis(10..1_000), move |world| {
            if !stop.is_requested() {
                client.start(world, stop);
            }
        });
    }
}
