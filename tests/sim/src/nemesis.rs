//! Who does things to the fleet: what, to whom and when is drawn from the seed.

use std::sync::{Arc, Weak};
use std::time::Duration;

use dormouse_checker::HarmKind;
use dormouse_runtime::Stop;

use crate::bucket::Ambush;
use crate::dice::Dice;
use crate::machine::{DiskFate, Machine};
use crate::setting::{Blow, Profile};
use crate::world::World;

/// Does things to a fleet.
pub struct Nemesis {
    world: Arc<World>,
    dice: Dice,
    stop: Stop,
}

/// Waits for steps that matter.
struct Lurking(Weak<Nemesis>);

impl Ambush for Lurking {
    fn decides(&self, server: &str, ours: bool) {
        let Some(nemesis) = self.0.upgrade() else { return };
        let [falls, crash, steps] = std::array::from_fn(|_| nemesis.dice.draw());
        if nemesis.stop.is_given() || falls % 1_000 >= nemesis.world.setting.ambushes {
            return;
        }
        let machine = nemesis.world.machines.iter().find(|machine| machine.name().as_str() == server);
        let Some(machine) = machine else { return };
        nemesis
            .world
            .trace
            .line(format_args!("ambush {server} {}", if ours { "in its own name" } else { "sealing" }));
        nemesis.world.trace.count("ambush");
        if crash % 3 == 0 {
            nemesis.crash(machine, steps % 12);
        } else {
            nemesis.pause(machine, steps % 12);
        }
    }
}

impl Nemesis {
    /// One that lies in wait from now on, until `stop` is given.
    #[must_use]
    pub fn new(world: Arc<World>, seed: u64, stop: Stop) -> Arc<Self> {
        let nemesis = Arc::new(Self { world, dice: Dice::of(seed, "nemesis"), stop });
        for machine in &nemesis.world.machines {
            let lurking: Arc<dyn Ambush> = Arc::new(Lurking(Arc::downgrade(&nemesis)));
            // There is one nemesis to a world.
            let _ = machine.ambush.set(lurking);
        }
        nemesis
    }

    /// Strikes until the stop is given.
    pub async fn rage(self: Arc<Self>) {
        let mean = self.world.setting.between_ms;
        // Until the fleet stands there is little to break.
        tokio::time::sleep(self.dice.millis(0..1_500)).await;
        while !self.stop.is_given() {
            self.strike();
            tokio::time::sleep(self.dice.millis(mean / 10..mean * 2)).await;
        }
    }

    fn strike(&self) {
        let blow = self.dice.weighted(&self.world.setting.blows);
        self.world.trace.line(format_args!("blow {blow:?}"));
        self.world.trace.count(match blow {
            Blow::CrashServer => "blow: crash of a server",
            Blow::PauseServer => "blow: pause of a server",
            Blow::StopServer => "blow: graceful stop",
            Blow::Partition => "blow: partition",
            Blow::Disconnect => "blow: connection lost",
            Blow::CutBucket => "blow: bucket gone",
            Blow::CrashCoordinator => "blow: crash of a coordinator",
            Blow::WipeCoordinator => "blow: coordinator's disk lost",
            Blow::ForgetCoordinator => "blow: coordinator's flush lost",
            Blow::PauseCoordinator => "blow: pause of a coordinator",
            Blow::JumpClock => "blow: wall clock jumps",
            Blow::FillDisk => "blow: disk full",
            Blow::FailSync => "blow: sync fails",
            Blow::BackUp => "blow: copy of a disk",
            Blow::CrashClient => "blow: crash of a client",
            Blow::Drain => "blow: drain",
            Blow::Move => "blow: move",
            Blow::Rebalance => "blow: rebalance",
        });
        match blow {
            Blow::CrashServer => self.crash_server(),
            Blow::PauseServer => self.pause_server(),
            Blow::StopServer => self.machine().stop(),
            Blow::Partition => self.partition(),
            Blow::Disconnect => self.disconnect(),
            Blow::CutBucket => self.cut_bucket(),
            Blow::CrashCoordinator => self.crash_coordinator(false),
            Blow::WipeCoordinator => self.crash_coordinator(true),
            Blow::ForgetCoordinator => self.office().die_flushing(),
            Blow::PauseCoordinator => self.pause_coordinator(),
            Blow::JumpClock => self.jump_clock(),
            Blow::FillDisk => self.fill_disk(),
            Blow::FailSync => self.fail_sync(),
            Blow::BackUp => self.machine().back_up(),
            Blow::CrashClient => self.crash_client(),
            Blow::Drain => self.drain(),
            Blow::Move => self.move_subject(),
            Blow::Rebalance => self.rebalance(),
        }
        if self.world.setting.profile == Profile::ClockDrift && self.dice.chance(400) {
            let rate = self.dice.within(300..3_000);
            let clock = if self.dice.chance(300) { &self.office().clock } else { &self.machine().clock };
            clock.set_rate(rate);
        }
    }

    fn machine(&self) -> &Arc<Machine> {
        self.dice.pick(&self.world.machines)
    }

    fn office(&self) -> &Arc<crate::office::Office> {
        self.dice.pick(&self.world.offices)
    }

    /// How long something lasts: mostly about as long as a lease, sometimes much longer.
    fn while_(&self) -> Duration {
        let ttl = u64::try_from(self.world.setting.lease_ttl.as_millis()).unwrap_or(1_000);
        match self.dice.below(4) {
            0 => self.dice.millis(20..ttl),
            1 | 2 => self.dice.millis(ttl / 2..ttl * 3),
            _ => self.dice.millis(ttl..ttl * 3 + 5_000),
        }
    }

    fn crash_server(&self) {
        // Between any two steps, some of which are far apart and some at one moment.
        self.crash(self.machine(), self.steps());
    }

    fn crash(&self, machine: &Arc<Machine>, steps: u64) {
        let machine = Arc::clone(machine);
        let fate = self.dice.weighted(&[
            (60, DiskFate::Kept),
            (20, DiskFate::PowerLost),
            (12, DiskFate::Wiped),
            (16, DiskFate::Restored),
        ]);
        let fate = if fate == DiskFate::Restored && machine.backed_up_at().is_none() {
            DiskFate::Kept
        } else {
            fate
        };
        let down = if self.dice.chance(300) { self.dice.millis(1..100) } else { self.while_() };
        let Some(process) = machine.process() else { return };
        let world = Arc::clone(&self.world);
        let strike = move || {
            if world.is_healed() {
                return;
            }
            world.trace.count(match fate {
                DiskFate::Kept => "server killed",
                DiskFate::PowerLost => "server lost power",
                DiskFate::Wiped => "server lost its disk",
                DiskFate::Restored => "server got an old disk",
            });
            let kind = match fate {
                DiskFate::Kept => HarmKind::Killed,
                DiskFate::PowerLost => HarmKind::PowerLost,
                DiskFate::Wiped => HarmKind::DiskWiped,
                DiskFate::Restored => HarmKind::DiskRestored,
            };
            let harm = world.harm(&machine, kind);
            machine.crash(fate);
            world.recorder.harm_over(harm);
            world.later(down, move |_| machine.start());
        };
        process.strike_after(steps, strike);
    }

    fn steps(&self) -> u64 {
        let most = *self.dice.pick(&[1, 20, 200]);
        self.dice.below(most)
    }

    fn pause_server(&self) {
        self.pause(self.machine(), self.steps());
    }

    fn pause(&self, machine: &Arc<Machine>, steps: u64) {
        let machine = Arc::clone(machine);
        let Some(process) = machine.process() else { return };
        let (world, lasts) = (Arc::clone(&self.world), self.while_());
        let paused = process.clone();
        process.strike_after(steps, move || {
            if world.is_healed() {
                return;
            }
            world.trace.line(format_args!("pause {} for {lasts:?}", machine.name()));
            world.trace.count("server paused");
            paused.pause();
            let harm = world.harm(&machine, HarmKind::Paused);
            world.later(lasts, move |world| {
                world.trace.line(format_args!("resume {}", machine.name()));
                world.recorder.harm_over(harm);
                paused.resume();
            });
        });
    }

    fn partition(&self) {
        let hosts: Vec<String> = self.hosts();
        let from = self.dice.pick(&hosts).clone();
        // Often from everybody: that is what a cable does.
        let all = self.dice.chance(300);
        let others: Vec<String> = if all {
            hosts.iter().filter(|host| **host != from).cloned().collect()
        } else {
            vec![self.dice.pick(&hosts).clone()]
        };
        let both = self.dice.chance(600);
        let (lasts, world) = (self.while_(), &self.world);
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
        let concerned = world.machines.iter().filter(|machine| {
            let name = machine.name().as_str();
            from == name || others.iter().any(|other| other == name)
        });
        let harms: Vec<usize> = concerned.map(|machine| world.harm(machine, HarmKind::CutFromBus)).collect();
        world.later(lasts, move |world| {
            for other in &others {
                world.net.mend(&from, other);
                if both {
                    world.net.mend(other, &from);
                }
            }
            harms.iter().for_each(|harm| world.recorder.harm_over(*harm));
        });
    }

    fn hosts(&self) -> Vec<String> {
        let world = &self.world;
        let mut hosts: Vec<String> =
            world.machines.iter().map(|machine| machine.name().to_string()).collect();
        hosts.extend(world.offices.iter().map(|office| office.name().to_owned()));
        // Servers and coordinators matter more, and so they come twice.
        hosts.extend(hosts.clone());
        hosts.extend(world.clients.iter().map(|client| client.name()));
        hosts
    }

    fn disconnect(&self) {
        let name = self.dice.pick(&self.hosts()).clone();
        let (lasts, world) = (self.while_(), &self.world);
        world.trace.line(format_args!("disconnect {name} for {lasts:?}"));
        world.broker.disconnect(&name);
        let machine = world.machines.iter().find(|machine| machine.name().as_str() == name);
        let harm = machine.map(|machine| world.harm(machine, HarmKind::CutFromBus));
        world.later(lasts, move |world| {
            world.broker.reconnect(&name);
            if let Some(harm) = harm {
                world.recorder.harm_over(harm);
            }
        });
    }

    fn cut_bucket(&self) {
        let (machine, lasts) = (Arc::clone(self.machine()), self.while_());
        let world = &self.world;
        world.trace.line(format_args!("cut {} from the bucket for {lasts:?}", machine.name()));
        machine.bucket.set_gone(true);
        let harm = world.harm(&machine, HarmKind::CutFromBucket);
        world.later(lasts, move |world| {
            machine.bucket.set_gone(false);
            world.recorder.harm_over(harm);
        });
    }

    fn crash_coordinator(&self, wiped: bool) {
        let office = Arc::clone(self.office());
        let Some(process) = office.process() else { return };
        let down = if self.dice.chance(250) { self.dice.millis(5_000..15_000) } else { self.while_() };
        let world = Arc::clone(&self.world);
        process.strike_after(self.steps() / 2, move || {
            if world.is_healed() {
                return;
            }
            world.trace.count(if wiped { "coordinator lost its disk" } else { "coordinator killed" });
            office.crash(wiped);
            world.later(down, move |_| office.start());
        });
    }

    fn pause_coordinator(&self) {
        let Some(process) = self.office().process() else { return };
        let lasts = self.while_();
        self.world.trace.line(format_args!("pause a coordinator for {lasts:?}"));
        process.pause();
        self.world.later(lasts, move |_| process.resume());
    }

    fn jump_clock(&self) {
        // What is remembered of requests is forgotten an hour later by the servers' clocks. From the furthest behind to
        // the furthest ahead is less than that.
        let magnitude = *self.dice.pick(&[1_000_000, 60_000_000, 1_700_000_000_u64]);
        let micros = i64::try_from(self.dice.below(magnitude)).unwrap_or(0);
        let micros = if self.dice.chance(500) { -micros } else { micros };
        let (whose, clock) = if self.dice.chance(200) {
            let office = self.office();
            (office.name(), &office.clock)
        } else {
            let machine = self.machine();
            (machine.name().as_str(), &machine.clock)
        };
        self.world.trace.line(format_args!("the wall clock of {whose} is wrong by {micros} microseconds"));
        clock.set_wrong(micros);
    }

    fn fill_disk(&self) {
        let machine = Arc::clone(self.machine());
        let (room, lasts) = (self.dice.below(20_000), self.dice.millis(200..3_000));
        self.world.trace.line(format_args!("{} has {room} bytes of room for {lasts:?}", machine.name()));
        machine.disk().limit_room(Some(room));
        self.world.later(lasts, move |_| machine.disk().limit_room(None));
    }

    fn fail_sync(&self) {
        let machine = self.machine();
        self.world.trace.line(format_args!("a sync of {} fails", machine.name()));
        // The process ends once it has tried.
        machine.disk().fail_syncs(1);
    }

    fn drain(&self) {
        let name = self.machine().name().clone();
        // Some are never asked to come back, until everything is well again.
        let back = self.dice.chance(800).then(|| self.while_() * 2);
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
        let subject = self.dice.pick(&self.world.subjects()).clone();
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
        let client = Arc::clone(self.dice.pick(&self.world.clients));
        self.world.trace.line(format_args!("crash {}", client.name()));
        client.crash();
        self.world.recorder.feeds_end(client.number());
        let stop = self.stop.clone();
        self.world.later(self.dice.millis(10..1_000), move |world| {
            if !stop.is_given() {
                client.start(world, stop);
            }
        });
    }
}
