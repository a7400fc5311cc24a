//! What befalls the servers, and who helps them up again.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use dormouse_e2e::ledger::{Blow, Harm};
use dormouse_e2e::{Dice, Fleet, PATIENCE, until};
use dormouse_protocol::{ServerName, Subject};

use crate::lanes::{LANES, Traffic, key, read_one, served};

/// The lease; dead is who was not heard of for 1.3 of it.
pub const LEASE: Duration = Duration::from_millis(500);

/// So long after its very first start a coordinator may know nothing of leases that are still out there: if it is started
/// again before, it waits for them.
const COORDINATOR_YOUTH: Duration = Duration::from_secs(31);

/// Steps that come with every write, and how often of a thousand times they are the last.
const FREQUENT: [&str; 7] =
    ["planned", "wal-written", "wal-unsynced", "wal-synced", "slot-put", "landed", "applied"];
const FREQUENT_PER_MILLE: u64 = 25;

/// Steps that come seldom, and how often of a thousand times they are the last.
const SELDOM: [&str; 15] = [
    "value-up",
    "base-up",
    "manifest-created",
    "sealed",
    "claim-base-up",
    "claim-created",
    "claim-verified",
    "releasing",
    "released",
    "recovery-put",
    "recovery-sealing",
    "wal-removing",
    "wal-removed",
    "lost-kept",
    "taken-over",
];
const SELDOM_PER_MILLE: u64 = 300;

/// What a server is up to.
#[derive(Debug, Clone)]
enum Life {
    Running,
    /// Asked to end.
    Leaving,
    Down {
        until: Duration,
    },
    /// It stands still; with what it served before.
    Paused {
        until: Duration,
        served: HashSet<Subject>,
    },
}

#[derive(Debug)]
struct Patient {
    name: ServerName,
    life: Life,
    /// When its process was started.
    started: Duration,
    /// When it was last seen alive and well.
    seen: Duration,
    /// Since when it has not come to terms with what it suffered.
    unsettled: Option<Duration>,
    /// How much of what it has logged was looked through.
    log_read: usize,
    /// The log that it serves from: none before it is ready, and none between one log and the next.
    serving: Option<String>,
    /// How often it went on with a fresh log.
    fresh: usize,
    /// It was overtaken while it stood still, and by so many fresh logs it has to show that.
    owes_fresh: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strike {
    Kill,
    KillForLong,
    Wipe,
    Pause,
    Leave,
    Coordinator,
}

const STRIKES: [Strike; 10] = [
    Strike::Kill,
    Strike::Kill,
    Strike::Kill,
    Strike::KillForLong,
    Strike::Wipe,
    Strike::Pause,
    Strike::Pause,
    Strike::Pause,
    Strike::Leave,
    Strike::Coordinator,
];

/// The fleet under fire.
pub struct Chaos {
    patients: Vec<Patient>,
    /// As long as it exists, steps may be the last.
    fuse: PathBuf,
    began: Duration,
    /// Logs whose process was declared dead: they may be sealed, and whoever wrote them may not know it yet.
    condemned: HashSet<String>,
    /// How much of what the coordinator has logged was looked through.
    coordinator_read: usize,
    pub blows: Vec<Blow>,
    /// How often what happened.
    pub counts: BTreeMap<String, u64>,
    pub wrong: Vec<String>,
}

impl Chaos {
    pub fn new(fleet: &Fleet, servers: &[ServerName], now: Duration) -> Self {
        let patient = |name: &ServerName| Patient {
            name: name.clone(),
            life: Life::Running,
            started: Duration::ZERO,
            seen: Duration::ZERO,
            unsettled: None,
            log_read: 0,
            serving: None,
            fresh: 0,
            owes_fresh: None,
        };
        Self {
            patients: servers.iter().map(patient).collect(),
            fuse: fleet.folder().join("fuse"),
            began: now,
            condemned: HashSet::new(),
            coordinator_read: 0,
            blows: Vec::new(),
            counts: BTreeMap::new(),
            wrong: Vec::new(),
        }
    }

    fn count(&mut self, what: impl Into<String>) {
        *self.counts.entry(what.into()).or_default() += 1;
    }

    /// Lets things happen for a while.
    pub async fn rage(
        &mut self,
        fleet: &mut Fleet,
        traffic: &Traffic,
        dice: &mut Dice,
        length: Duration,
    ) -> anyhow::Result<()> {
        std::fs::write(&self.fuse, "")?;
        let began = traffic.caller.now();
        let ms = |length: Duration| u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        let mut strikes: Vec<(Duration, Strike)> = (0..dice.within(2..5))
            .map(|_| {
                let at = began + Duration::from_millis(dice.within(50..ms(length) * 3 / 4));
                (at, *dice.pick(&STRIKES))
            })
            .collect();
        strikes.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        while traffic.caller.now() < began + length {
            while strikes.last().is_some_and(|(at, _)| *at <= traffic.caller.now()) {
                let strike = strikes.pop().map_or(Strike::Kill, |(_, strike)| strike);
                self.strike(fleet, traffic, dice, strike).await?;
            }
            self.nurse(fleet, traffic, dice).await?;
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
        std::fs::remove_file(&self.fuse)?;
        Ok(())
    }

    async fn strike(
        &mut self,
        fleet: &mut Fleet,
        traffic: &Traffic,
        dice: &mut Dice,
        strike: Strike,
    ) -> anyhow::Result<()> {
        if strike == Strike::Coordinator && traffic.caller.now() < self.began + COORDINATOR_YOUTH {
            return Ok(());
        }
        if strike == Strike::Coordinator {
            fleet.kill9("coordinator").await?;
            fleet.start_with("coordinator", &[])?;
            self.count("coordinator killed");
            return Ok(());
        }
        let running: Vec<usize> = (0..self.patients.len())
            .filter(|&index| matches!(self.patients[index].life, Life::Running))
            .collect();
        if running.is_empty() {
            return Ok(());
        }
        let victim = *dice.pick(&running);
        let name = self.patients[victim].name.clone();
        let now = traffic.caller.now();
        let long = LEASE.mul_f64(1.3) + Duration::from_millis(dice.within(100..700));
        match strike {
            Strike::Kill | Strike::KillForLong => {
                fleet.kill9(name.as_str()).await?;
                let short = Duration::from_millis(dice.within(0..250));
                let down = if strike == Strike::Kill { short } else { long };
                self.blow(victim, Harm::Killed, now, traffic.caller.now());
                self.patients[victim].life = Life::Down { until: traffic.caller.now() + down };
                self.count("killed at a random instant");
            }
            Strike::Wipe => {
                fleet.kill9(name.as_str()).await?;
                std::fs::remove_dir_all(fleet.data_dir(name.as_str()))?;
                self.blow(victim, Harm::Wiped, now, traffic.caller.now());
                self.patients[victim].life = Life::Down { until: traffic.caller.now() + long };
                self.count("killed and its disk wiped");
            }
            Strike::Pause => {
                let served = served(traffic, &name, self.patients[victim].started);
                if fleet.pause(name.as_str()).await.is_err() {
                    // It has just met its end otherwise.
                    return Ok(());
                }
                self.paused(victim, now, now + long, served);
                self.count("stopped past its lease");
            }
            Strike::Leave => {
                fleet.process(name.as_str())?.interrupt()?;
                self.patients[victim].life = Life::Leaving;
                self.count("stopped gracefully");
            }
            Strike::Coordinator => {}
        }
        Ok(())
    }

    fn paused(&mut self, victim: usize, since: Duration, until: Duration, served: HashSet<Subject>) {
        let patient = &mut self.patients[victim];
        patient.unsettled.get_or_insert(since);
        patient.life = Life::Paused { until, served };
    }

    fn blow(&mut self, victim: usize, harm: Harm, since: Duration, at: Duration) {
        let patient = &mut self.patients[victim];
        let since = *patient.unsettled.get_or_insert(since);
        patient.owes_fresh = None;
        self.blows.push(Blow { server: patient.name.clone(), harm, since, at });
    }

    /// Looks after everybody once.
    async fn nurse(&mut self, fleet: &mut Fleet, traffic: &Traffic, dice: &mut Dice) -> anyhow::Result<()> {
        for index in 0..self.patients.len() {
            let name = self.patients[index].name.clone();
            let now = traffic.caller.now();
            match self.patients[index].life.clone() {
                Life::Running | Life::Leaving => {
                    let leaving = matches!(self.patients[index].life, Life::Leaving);
                    if let Some(status) = fleet.ended(name.as_str())? {
                        self.died(index, leaving, status, now, dice)?;
                    } else if !leaving && fleet.process(name.as_str())?.is_paused() {
                        let seen = self.patients[index].seen;
                        let until = now + LEASE.mul_f64(1.3) + Duration::from_millis(dice.within(100..500));
                        let served = served(traffic, &name, self.patients[index].started);
                        self.paused(index, seen, until, served);
                    } else if leaving && fleet.process(name.as_str())?.is_paused() {
                        fleet.resume(name.as_str())?;
                    } else {
                        self.patients[index].seen = now;
                    }
                }
                Life::Down { until } if until <= now => {
                    self.start(fleet, index, now, dice)?;
                }
                Life::Paused { until, served } if until <= now => {
                    self.wake(fleet, traffic, index, &served).await?;
                }
                Life::Down { .. } | Life::Paused { .. } => {}
            }
        }
        Ok(())
    }

    fn died(
        &mut self,
        index: usize,
        leaving: bool,
        status: std::process::ExitStatus,
        now: Duration,
        dice: &mut Dice,
    ) -> anyhow::Result<()> {
        use std::os::unix::process::ExitStatusExt;
        let soon = now + Duration::from_millis(dice.within(0..200));
        match (status.code(), status.signal()) {
            // By its own hand, at a fail point.
            (_, Some(9)) => {
                let seen = self.patients[index].seen;
                self.blow(index, Harm::Killed, seen, now);
            }
            // Its disk was wiped, and so it does not know whose successor it is: until the old lease is over.
            (Some(5), _) => {}
            // It was asked to end before it could listen to that.
            (_, Some(2)) if leaving => {}
            (Some(0), _) if leaving => self.patients[index].unsettled = None,
            // Not everything could be handed back: its log was taken over meanwhile.
            (Some(1), _) if leaving => {
                let seen = self.patients[index].seen;
                self.patients[index].unsettled.get_or_insert(seen);
            }
            _ => bail!("{} ended with {status}", self.patients[index].name),
        }
        self.patients[index].life = Life::Down { until: soon };
        Ok(())
    }

    fn start(
        &mut self,
        fleet: &mut Fleet,
        index: usize,
        now: Duration,
        dice: &mut Dice,
    ) -> anyhow::Result<()> {
        let (points, seed) = (charges(dice), dice.next());
        let environment = [
            ("DORMOUSE_FAIL_POINTS", points),
            ("DORMOUSE_FAIL_SEED", seed.to_string()),
            ("DORMOUSE_FAIL_WHILE", self.fuse.display().to_string()),
        ];
        fleet.start_with(self.patients[index].name.as_str(), &environment)?;
        let patient = &mut self.patients[index];
        (patient.life, patient.started, patient.seen) = (Life::Running, now, now);
        Ok(())
    }

    /// It goes on, and has been asked meanwhile: whatever it says must be true now.
    async fn wake(
        &mut self,
        fleet: &mut Fleet,
        traffic: &Traffic,
        index: usize,
        served: &HashSet<Subject>,
    ) -> anyhow::Result<()> {
        let name = self.patients[index].name.clone();
        let overtaken: Vec<_> = traffic
            .targets
            .iter()
            .filter(|target| served.contains(&target.subject))
            .filter(|target| target.server.borrow().as_ref().is_none_or(|(server, _)| *server != name))
            .collect();
        self.look_through(fleet, index)?;
        // Who stood still on the way from one log to the next had nothing any more that could be taken over.
        if !overtaken.is_empty() && self.patients[index].serving.is_some() {
            let fresh = self.patients[index].fresh;
            self.patients[index].owes_fresh.get_or_insert(fresh + 1);
            self.count("woken after it was overtaken");
        }
        let keyed = overtaken.iter().filter(|target| target.keyed);
        let asked = keyed.flat_map(|target| (0..LANES).map(move |lane| (target, key(lane, 0))));
        let reads = asked.map(|(target, key)| {
            let name = &name;
            async move { read_one(traffic, target, name, &key).await }
        });
        let waking = async { fleet.resume(name.as_str()) };
        let (_, woken) = futures::join!(futures::future::join_all(reads), waking);
        // It may have been killed by its own fail point in the moment it woke.
        let _ = woken;
        self.patients[index].life = Life::Running;
        self.patients[index].seen = traffic.caller.now();
        Ok(())
    }

    /// Brings everybody up again and waits until they serve.
    pub async fn calm(
        &mut self,
        fleet: &mut Fleet,
        traffic: &Traffic,
        dice: &mut Dice,
    ) -> anyhow::Result<()> {
        fleet.wait_serving("coordinator").await?;
        let deadline = traffic.caller.now() + PATIENCE;
        for index in 0..self.patients.len() {
            let name = self.patients[index].name.clone();
            loop {
                anyhow::ensure!(traffic.caller.now() < deadline, "{name} does not come up again");
                self.hurry();
                self.nurse(fleet, traffic, dice).await?;
                if !matches!(self.patients[index].life, Life::Running) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
                let health = fleet.health(name.as_str()).await?;
                if health.is_some_and(|health| {
                    health.status != dormouse_protocol::health::HealthStatus::NotServing
                        && health.figures.get("lease_generation") != Some(&0)
                }) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        for index in 0..self.patients.len() {
            self.went_on(fleet, index).await?;
        }
        Ok(())
    }

    /// Nobody lies about any longer than necessary.
    fn hurry(&mut self) {
        for patient in &mut self.patients {
            match &mut patient.life {
                Life::Down { until } | Life::Paused { until, .. } => {
                    *until = (*until).min(patient.seen + LEASE.mul_f64(3.0));
                }
                Life::Running | Life::Leaving => {}
            }
        }
    }

    /// Who was overtaken while it stood still goes on under a fresh log.
    async fn went_on(&mut self, fleet: &Fleet, index: usize) -> anyhow::Result<()> {
        let Some(owed) = self.patients[index].owes_fresh.take() else { return Ok(()) };
        let name = self.patients[index].name.clone();
        until(&format!("{name} goes on with a fresh log"), async || {
            self.look_through(fleet, index)?;
            Ok((self.patients[index].fresh >= owed).then_some(()))
        })
        .await
    }

    /// Kills everybody at once, and starts them again.
    pub async fn kill_all(
        &mut self,
        fleet: &mut Fleet,
        traffic: &Traffic,
        dice: &mut Dice,
    ) -> anyhow::Result<()> {
        for index in 0..self.patients.len() {
            let (name, now) = (self.patients[index].name.clone(), traffic.caller.now());
            fleet.kill9(name.as_str()).await?;
            self.blow(index, Harm::Killed, now, traffic.caller.now());
        }
        for index in 0..self.patients.len() {
            self.start(fleet, index, traffic.caller.now(), dice)?;
        }
        self.calm(fleet, traffic, dice).await
    }

    /// Whether the programs have the steps at which they are to die.
    pub fn are_armed(&self, fleet: &Fleet) -> anyhow::Result<()> {
        for patient in &self.patients {
            let armed = fleet.log(patient.name.as_str())?.contains("fail points are armed");
            anyhow::ensure!(
                armed,
                "dormouse-persist-server was built without its fail points: `cargo build --workspace --all-targets` has them"
            );
        }
        Ok(())
    }

    /// Who has not come to terms yet with a log that ended or may have: as long as there is any, not everything is settled.
    pub fn unsettled(&mut self, fleet: &Fleet) -> anyhow::Result<Vec<String>> {
        self.look_through_all(fleet)?;
        for line in news(fleet, "coordinator", &mut self.coordinator_read)?.lines() {
            if line.contains("declared dead") {
                self.condemned.extend(log_in(line));
            }
        }
        let mut unsettled = Vec::new();
        for patient in &mut self.patients {
            let logs = std::fs::read_dir(fleet.data_dir(patient.name.as_str()).join("wal"));
            let logs = logs.map_or(0, Iterator::count);
            match &patient.serving {
                None => unsettled.push(format!("{} has no log", patient.name)),
                Some(log) if self.condemned.contains(log) => {
                    unsettled.push(format!("{log} was declared dead"));
                }
                Some(_) if logs > 1 => unsettled.push(format!("{} has {logs} logs", patient.name)),
                Some(_) => patient.unsettled = None,
            }
        }
        Ok(unsettled)
    }

    /// Looks through what the servers have logged since the last time.
    pub fn look_through_all(&mut self, fleet: &Fleet) -> anyhow::Result<()> {
        (0..self.patients.len()).try_for_each(|index| self.look_through(fleet, index))
    }

    fn look_through(&mut self, fleet: &Fleet, index: usize) -> anyhow::Result<()> {
        let name = self.patients[index].name.clone();
        for line in news(fleet, name.as_str(), &mut self.patients[index].log_read)?.lines() {
            if let Some(point) = line.strip_prefix("fail point ") {
                self.count(format!("fail point {point}"));
            } else if line.contains("going on with a fresh one") {
                self.patients[index].fresh += 1;
                self.patients[index].serving = None;
                self.count("went on with a fresh log");
            } else if line.contains("dormouse_persist_server: starting ") {
                self.patients[index].serving = None;
            } else if line.contains("dormouse_persist_server: ready ") {
                self.patients[index].serving = log_in(line);
            } else if line.contains("panicked at") || is_error(line) {
                self.wrong.push(format!("{name}: {line}"));
            }
        }
        Ok(())
    }
}

/// The whole lines that a program has logged since `read`, which moves on.
fn news(fleet: &Fleet, name: &str, read: &mut usize) -> anyhow::Result<String> {
    let log = fleet.log(name)?;
    let new = log.get(*read..).context("a log has become shorter")?;
    let whole = new.rfind('\n').map_or(0, |end| end + 1);
    *read += whole;
    Ok(new[..whole].to_owned())
}

/// The log that a line names.
fn log_in(line: &str) -> Option<String> {
    line.split_whitespace().find_map(|word| word.strip_prefix("log=")).map(str::to_owned)
}

/// Errors that are part of the game.
fn is_error(line: &str) -> bool {
    const EXPECTED: [&str; 2] =
        ["the coordinator refuses this process", "is another server with this name running"];
    line.split_whitespace().nth(1) == Some("ERROR") && !EXPECTED.iter().any(|text| line.contains(text))
}

/// Where a server is to die, or to stand still.
fn charges(dice: &mut Dice) -> String {
    let mut charges = Vec::new();
    for (steps, per_mille, most) in
        [(&FREQUENT[..], FREQUENT_PER_MILLE, 3), (&SELDOM[..], SELDOM_PER_MILLE, 4)]
    {
        for _ in 0..dice.within(0..most) {
            let stop = if dice.percent(20) { ":stop" } else { "" };
            charges.push(format!("{}=0.{per_mille:03}{stop}", dice.pick(steps)));
        }
    }
    charges.join(",")
}
