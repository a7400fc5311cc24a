//! Injects faults into the servers, and restarts them.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use dormouse_checker::{ServerFault, ServerFaultKind};
use dormouse_e2e::{Fleet, SeededRng, TIMEOUT, until};
use dormouse_protocol::{ServerName, Subject};

use crate::traffic::{Traffic, WRITERS, key, read_one, served};

/// The lease TTL. The coordinator declares a server dead after 1.3 times this without a heartbeat.
pub const LEASE: Duration = Duration::from_millis(500);

/// For this time after its first start, a coordinator may not know all leases in force. If it restarts earlier, it
/// waits for them.
const COORDINATOR_YOUTH: Duration = Duration::from_secs(31);

/// Fail points that every write passes, and their rate in thousandths.
const FREQUENT: [&str; 7] =
    ["planned", "wal-written", "wal-unsynced", "wal-synced", "slot-put", "landed", "applied"];
const FREQUENT_PER_MILLE: u64 = 25;

/// Fail points that are passed rarely, and their rate in thousandths.
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

/// The state of a server's process.
#[derive(Debug, Clone)]
enum ServerState {
    Running,
    /// It was asked to shut down.
    Stopping,
    Down {
        until: Duration,
    },
    /// It is paused; with the subjects that it served before.
    Paused {
        until: Duration,
        served: HashSet<Subject>,
    },
}

#[derive(Debug)]
struct TargetServer {
    name: ServerName,
    state: ServerState,
    /// The time of its start.
    started: Duration,
    /// The time at which it was last seen running.
    seen: Duration,
    /// The time since which it has not recovered from a fault.
    unsettled: Option<Duration>,
    /// The length of its log that was scanned.
    log_read: usize,
    /// The log that it serves from; `None` before it is ready, and between one log and the next.
    serving: Option<String>,
    /// The number of its restarts with a new log.
    new_logs: usize,
    /// A takeover happened while it was paused, so it must reach this number of new logs.
    expected_new_logs: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FaultAction {
    Kill,
    KillForLong,
    Wipe,
    Pause,
    Stop,
    Coordinator,
}

const FAULTS: [FaultAction; 10] = [
    FaultAction::Kill,
    FaultAction::Kill,
    FaultAction::Kill,
    FaultAction::KillForLong,
    FaultAction::Wipe,
    FaultAction::Pause,
    FaultAction::Pause,
    FaultAction::Pause,
    FaultAction::Stop,
    FaultAction::Coordinator,
];

/// The fault injection for the fleet.
pub struct Chaos {
    servers: Vec<TargetServer>,
    /// While this file exists, fail points are active.
    fail_points_file: PathBuf,
    began: Duration,
    /// Logs whose server was declared dead. They may be sealed, and their server may not know it yet.
    declared_dead: HashSet<String>,
    /// The length of the coordinator's log that was scanned.
    coordinator_read: usize,
    pub faults: Vec<ServerFault>,
    /// The number of events by name.
    pub counts: BTreeMap<String, u64>,
    pub problems: Vec<String>,
}

impl Chaos {
    pub fn new(fleet: &Fleet, servers: &[ServerName], now: Duration) -> Self {
        let server = |name: &ServerName| TargetServer {
            name: name.clone(),
            state: ServerState::Running,
            started: Duration::ZERO,
            seen: Duration::ZERO,
            unsettled: None,
            log_read: 0,
            serving: None,
            new_logs: 0,
            expected_new_logs: None,
        };
        Self {
            servers: servers.iter().map(server).collect(),
            fail_points_file: fleet.folder().join("fail_points_file"),
            began: now,
            declared_dead: HashSet::new(),
            coordinator_read: 0,
            faults: Vec::new(),
            counts: BTreeMap::new(),
            problems: Vec::new(),
        }
    }

    fn count(&mut self, what: impl Into<String>) {
        *self.counts.entry(what.into()).or_default() += 1;
    }

    /// Injects faults for a given time.
    pub async fn inject_faults(
        &mut self,
        fleet: &mut Fleet,
        traffic: &Traffic,
        rng: &mut SeededRng,
        length: Duration,
    ) -> anyhow::Result<()> {
        std::fs::write(&self.fail_points_file, "")?;
        let began = traffic.caller.now();
        let ms = |length: Duration| u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        let mut faults: Vec<(Duration, FaultAction)> = (0..rng.within(2..5))
            .map(|_| {
                let at = began + Duration::from_millis(rng.within(50..ms(length) * 3 / 4));
                (at, *rng.pick(&FAULTS))
            })
            .collect();
        faults.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        while traffic.caller.now() < began + length {
            while faults.last().is_some_and(|(at, _)| *at <= traffic.caller.now()) {
                let fault = faults.pop().map_or(FaultAction::Kill, |(_, fault)| fault);
                self.inject_fault(fleet, traffic, rng, fault).await?;
            }
            self.supervise(fleet, traffic, rng).await?;
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
        std::fs::remove_file(&self.fail_points_file)?;
        Ok(())
    }

    async fn inject_fault(
        &mut self,
        fleet: &mut Fleet,
        traffic: &Traffic,
        rng: &mut SeededRng,
        fault: FaultAction,
    ) -> anyhow::Result<()> {
        if fault == FaultAction::Coordinator && traffic.caller.now() < self.began + COORDINATOR_YOUTH {
            return Ok(());
        }
        if fault == FaultAction::Coordinator {
            fleet.kill9("coordinator").await?;
            fleet.start_with("coordinator", &[])?;
            self.count("coordinator killed");
            return Ok(());
        }
        let running: Vec<usize> = (0..self.servers.len())
            .filter(|&index| matches!(self.servers[index].state, ServerState::Running))
            .collect();
        if running.is_empty() {
            return Ok(());
        }
        let target = *rng.pick(&running);
        let name = self.servers[target].name.clone();
        let now = traffic.caller.now();
        let long = LEASE.mul_f64(1.3) + Duration::from_millis(rng.within(100..700));
        match fault {
            FaultAction::Kill | FaultAction::KillForLong => {
                fleet.kill9(name.as_str()).await?;
                let short = Duration::from_millis(rng.within(0..250));
                let down = if fault == FaultAction::Kill { short } else { long };
                self.record_fault(target, ServerFaultKind::Killed, now, traffic.caller.now());
                self.servers[target].state = ServerState::Down { until: traffic.caller.now() + down };
                self.count("killed at a random instant");
            }
            FaultAction::Wipe => {
                fleet.kill9(name.as_str()).await?;
                wipe(&fleet.data_dir(name.as_str()))?;
                self.record_fault(target, ServerFaultKind::DiskWiped, now, traffic.caller.now());
                self.servers[target].state = ServerState::Down { until: traffic.caller.now() + long };
                self.count("killed and its disk wiped");
            }
            FaultAction::Pause => {
                let served = served(traffic, &name, self.servers[target].started);
                if fleet.pause(name.as_str()).await.is_err() {
                    // It has just ended for another reason.
                    return Ok(());
                }
                self.paused(target, now, now + long, served);
                self.count("stopped past its lease");
            }
            FaultAction::Stop => {
                fleet.process(name.as_str())?.interrupt()?;
                self.servers[target].state = ServerState::Stopping;
                self.count("stopped gracefully");
            }
            FaultAction::Coordinator => {}
        }
        Ok(())
    }

    fn paused(&mut self, target: usize, since: Duration, until: Duration, served: HashSet<Subject>) {
        let server = &mut self.servers[target];
        server.unsettled.get_or_insert(since);
        server.state = ServerState::Paused { until, served };
    }

    fn record_fault(&mut self, target: usize, kind: ServerFaultKind, since: Duration, at: Duration) {
        let server = &mut self.servers[target];
        let since = *server.unsettled.get_or_insert(since);
        server.expected_new_logs = None;
        self.faults.push(ServerFault { server: server.name.clone(), kind, since, until: at });
    }

    /// Checks each server once and restarts those that are due.
    async fn supervise(
        &mut self,
        fleet: &mut Fleet,
        traffic: &Traffic,
        rng: &mut SeededRng,
    ) -> anyhow::Result<()> {
        for index in 0..self.servers.len() {
            let name = self.servers[index].name.clone();
            let now = traffic.caller.now();
            match self.servers[index].state.clone() {
                ServerState::Running | ServerState::Stopping => {
                    let stopping = matches!(self.servers[index].state, ServerState::Stopping);
                    if let Some(status) = fleet.ended(name.as_str())? {
                        self.handle_exit(index, stopping, status, now, rng)?;
                    } else if !stopping && fleet.process(name.as_str())?.is_paused() {
                        let seen = self.servers[index].seen;
                        let until = now + LEASE.mul_f64(1.3) + Duration::from_millis(rng.within(100..500));
                        let served = served(traffic, &name, self.servers[index].started);
                        self.paused(index, seen, until, served);
                    } else if stopping && fleet.process(name.as_str())?.is_paused() {
                        fleet.resume(name.as_str())?;
                    } else {
                        self.servers[index].seen = now;
                    }
                }
                ServerState::Down { until } if until <= now => {
                    self.start(fleet, index, now, rng)?;
                }
                ServerState::Paused { until, served } if until <= now => {
                    self.resume_and_probe(fleet, traffic, index, &served).await?;
                }
                ServerState::Down { .. } | ServerState::Paused { .. } => {}
            }
        }
        Ok(())
    }

    fn handle_exit(
        &mut self,
        index: usize,
        stopping: bool,
        status: std::process::ExitStatus,
        now: Duration,
        rng: &mut SeededRng,
    ) -> anyhow::Result<()> {
        use std::os::unix::process::ExitStatusExt;
        let soon = now + Duration::from_millis(rng.within(0..200));
        match (status.code(), status.signal()) {
            // It killed itself at a fail point.
            (_, Some(9)) => {
                let seen = self.servers[index].seen;
                self.record_fault(index, ServerFaultKind::Killed, seen, now);
            }
            // Its disk was wiped, so it does not know its predecessor, and waits until the old lease expires.
            (Some(5), _) => {}
            // It was asked to shut down before it handled signals.
            (_, Some(2)) if stopping => {}
            (Some(0), _) if stopping => self.servers[index].unsettled = None,
            // Not every subject could be released, because its log was taken over in the meantime.
            (Some(1), _) if stopping => {
                let seen = self.servers[index].seen;
                self.servers[index].unsettled.get_or_insert(seen);
            }
            _ => bail!("{} ended with {status}", self.servers[index].name),
        }
        self.servers[index].state = ServerState::Down { until: soon };
        Ok(())
    }

    fn start(
        &mut self,
        fleet: &mut Fleet,
        index: usize,
        now: Duration,
        rng: &mut SeededRng,
    ) -> anyhow::Result<()> {
        let (points, seed) = (random_fail_points(rng), rng.next());
        let environment = [
            ("DORMOUSE_FAIL_POINTS", points),
            ("DORMOUSE_FAIL_SEED", seed.to_string()),
            ("DORMOUSE_FAIL_WHILE", self.fail_points_file.display().to_string()),
        ];
        fleet.start_with(self.servers[index].name.as_str(), &environment)?;
        let server = &mut self.servers[index];
        (server.state, server.started, server.seen) = (ServerState::Running, now, now);
        Ok(())
    }

    /// Resumes a paused server, whose replies to requests sent during the pause must be current.
    async fn resume_and_probe(
        &mut self,
        fleet: &mut Fleet,
        traffic: &Traffic,
        index: usize,
        served: &HashSet<Subject>,
    ) -> anyhow::Result<()> {
        let name = self.servers[index].name.clone();
        let taken_over: Vec<_> = traffic
            .targets
            .iter()
            .filter(|target| served.contains(&target.subject))
            .filter(|target| target.server.borrow().as_ref().is_none_or(|(server, _)| *server != name))
            .collect();
        self.scan_log(fleet, index)?;
        // A server that was paused between two logs had nothing that could be taken over.
        if !taken_over.is_empty() && self.servers[index].serving.is_some() {
            let new_logs = self.servers[index].new_logs;
            self.servers[index].expected_new_logs.get_or_insert(new_logs + 1);
            self.count("resumed after a takeover");
        }
        let keyed = taken_over.iter().filter(|target| target.keyed);
        let asked = keyed.flat_map(|target| (0..WRITERS).map(move |writer| (target, key(writer, 0))));
        let reads = asked.map(|(target, key)| {
            let name = &name;
            async move { read_one(traffic, target, name, &key).await }
        });
        let resuming = async { fleet.resume(name.as_str()) };
        let (_, resumed) = futures::join!(futures::future::join_all(reads), resuming);
        // It may have been killed by its own fail point at that moment.
        let _ = resumed;
        self.servers[index].state = ServerState::Running;
        self.servers[index].seen = traffic.caller.now();
        Ok(())
    }

    /// Restarts every server and waits until all serve.
    pub async fn restart_all(
        &mut self,
        fleet: &mut Fleet,
        traffic: &Traffic,
        rng: &mut SeededRng,
    ) -> anyhow::Result<()> {
        fleet.wait_serving("coordinator").await?;
        let deadline = traffic.caller.now() + TIMEOUT;
        for index in 0..self.servers.len() {
            let name = self.servers[index].name.clone();
            loop {
                anyhow::ensure!(traffic.caller.now() < deadline, "{name} does not restart");
                self.end_pauses_early();
                self.supervise(fleet, traffic, rng).await?;
                if !matches!(self.servers[index].state, ServerState::Running) {
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
        for index in 0..self.servers.len() {
            self.wait_for_new_log(fleet, index).await?;
        }
        Ok(())
    }

    /// Ends every pause and restart delay as early as possible.
    fn end_pauses_early(&mut self) {
        for server in &mut self.servers {
            match &mut server.state {
                ServerState::Down { until } | ServerState::Paused { until, .. } => {
                    *until = (*until).min(server.seen + LEASE.mul_f64(3.0));
                }
                ServerState::Running | ServerState::Stopping => {}
            }
        }
    }

    /// Waits until a server with a takeover during its pause has restarted with a new log.
    async fn wait_for_new_log(&mut self, fleet: &Fleet, index: usize) -> anyhow::Result<()> {
        let Some(expected) = self.servers[index].expected_new_logs.take() else { return Ok(()) };
        let name = self.servers[index].name.clone();
        until(&format!("{name} restarts with a new log"), async || {
            self.scan_log(fleet, index)?;
            Ok((self.servers[index].new_logs >= expected).then_some(()))
        })
        .await
    }

    /// Kills all servers at once, and restarts them.
    pub async fn kill_all(
        &mut self,
        fleet: &mut Fleet,
        traffic: &Traffic,
        rng: &mut SeededRng,
    ) -> anyhow::Result<()> {
        for index in 0..self.servers.len() {
            let (name, now) = (self.servers[index].name.clone(), traffic.caller.now());
            fleet.kill9(name.as_str()).await?;
            self.record_fault(index, ServerFaultKind::Killed, now, traffic.caller.now());
        }
        for index in 0..self.servers.len() {
            self.start(fleet, index, traffic.caller.now(), rng)?;
        }
        self.restart_all(fleet, traffic, rng).await
    }

    /// Checks that the programs were built with their fail points.
    pub fn check_fail_points_armed(&self, fleet: &Fleet) -> anyhow::Result<()> {
        for server in &self.servers {
            let armed = fleet.log(server.name.as_str())?.contains("fail points are armed");
            anyhow::ensure!(
                armed,
                "dormouse-persist-server was built without its fail points: `cargo build --workspace --all-targets` has them"
            );
        }
        Ok(())
    }

    /// Returns the servers that have not recovered from an ended log. While there is one, the state may still change.
    pub fn unsettled(&mut self, fleet: &Fleet) -> anyhow::Result<Vec<String>> {
        self.scan_all_logs(fleet)?;
        for line in new_log_lines(fleet, "coordinator", &mut self.coordinator_read)?.lines() {
            if line.contains("declared dead") {
                self.declared_dead.extend(log_in(line));
            }
        }
        let mut unsettled = Vec::new();
        for server in &mut self.servers {
            let logs = std::fs::read_dir(fleet.data_dir(server.name.as_str()).join("wal"));
            let logs = logs.map_or(0, Iterator::count);
            match &server.serving {
                None => unsettled.push(format!("{} has no log", server.name)),
                Some(log) if self.declared_dead.contains(log) => {
                    unsettled.push(format!("{log} was declared dead"));
                }
                Some(_) if logs > 1 => unsettled.push(format!("{} has {logs} logs", server.name)),
                Some(_) => server.unsettled = None,
            }
        }
        Ok(unsettled)
    }

    /// Scans the new log lines of all servers.
    pub fn scan_all_logs(&mut self, fleet: &Fleet) -> anyhow::Result<()> {
        (0..self.servers.len()).try_for_each(|index| self.scan_log(fleet, index))
    }

    /// Scans the new log lines of one server.
    fn scan_log(&mut self, fleet: &Fleet, index: usize) -> anyhow::Result<()> {
        let name = self.servers[index].name.clone();
        for line in new_log_lines(fleet, name.as_str(), &mut self.servers[index].log_read)?.lines() {
            if let Some(point) = line.strip_prefix("fail point ") {
                self.count(format!("fail point {point}"));
            } else if line.contains("log fenced, restarting with new log") {
                self.servers[index].new_logs += 1;
                self.servers[index].serving = None;
                self.count("restarted with a new log");
            } else if line.contains("dormouse_persist_server: starting ") {
                self.servers[index].serving = None;
            } else if line.contains("dormouse_persist_server: ready ") {
                self.servers[index].serving = log_in(line);
            } else if line.contains("panicked at") || is_error(line) {
                self.problems.push(format!("{name}: {line}"));
            }
        }
        Ok(())
    }
}

/// Returns the whole lines that a program has logged since the last call, and advances `read`.
fn new_log_lines(fleet: &Fleet, name: &str, read: &mut usize) -> anyhow::Result<String> {
    let log = fleet.log(name)?;
    let new = log.get(*read..).context("a log has become shorter")?;
    let whole = new.rfind('\n').map_or(0, |end| end + 1);
    *read += whole;
    Ok(new[..whole].to_owned())
}

/// Returns the log that a line names.
fn log_in(line: &str) -> Option<String> {
    line.split_whitespace().find_map(|word| word.strip_prefix("log=")).map(str::to_owned)
}

/// Returns whether the line is an unexpected error.
fn is_error(line: &str) -> bool {
    const EXPECTED: [&str; 2] = ["the coordinator refuses this process", "join refused"];
    line.split_whitespace().nth(1) == Some("ERROR") && !EXPECTED.iter().any(|text| line.contains(text))
}

/// Returns random fail points as the environment variable takes them.
fn random_fail_points(rng: &mut SeededRng) -> String {
    let mut fail_points = Vec::new();
    for (steps, per_mille, most) in
        [(&FREQUENT[..], FREQUENT_PER_MILLE, 3), (&SELDOM[..], SELDOM_PER_MILLE, 4)]
    {
        for _ in 0..rng.within(0..most) {
            let stop = if rng.percent(20) { ":stop" } else { "" };
            fail_points.push(format!("{}=0.{per_mille:03}{stop}", rng.pick(steps)));
        }
    }
    fail_points.join(",")
}

/// Removes a server's disk. A process that was killed right after an earlier wipe has not created the folder yet.
fn wipe(folder: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        done => done.with_context(|| format!("cannot remove {}", folder.display())),
    }
}
