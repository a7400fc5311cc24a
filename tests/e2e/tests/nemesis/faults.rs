//! Injects faults into the processes and the proxies between them, for a limited time each.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::bail;
use dormouse_checker::{ServerFault, ServerFaultKind};
use dormouse_e2e::{CLIENTS, Fleet, NATS_SERVERS, SeededRng, until};
use dormouse_harness::ProxyMode;
use dormouse_protocol::ServerName;
use dormouse_testkit::recorder::Recorder;

/// The lease TTL of the fleet. The coordinator declares a server dead after 1.3 times this without a heartbeat.
pub const LEASE: Duration = Duration::from_millis(500);

/// If a coordinator restarts within this time after its first start, it waits for leases that it does not know.
const COORDINATOR_YOUTH: Duration = Duration::from_secs(31);

/// The log message of a server whose log was sealed by another process.
const TAKEN_OVER: &str = "log fenced, closing all subjects";

/// The kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    ServerKilled,
    ServerPaused,
    ServerCutFromNats,
    ServerStalledFromNats,
    ServerReceivesNoNats,
    ServerCutFromBucket,
    ServerStalledFromBucket,
    ServerLosesBucketReplies,
    ServerCutFromAll,
    CoordinatorPaused,
    CoordinatorCut,
    CoordinatorStalled,
    NatsKilled,
    NatsPaused,
    NatsCut,
    S3Paused,
    S3Cut,
    S3Slow,
    ClientsCut,
    ClientsStalled,
    // This fault is last: by then the fleet is old enough.
    CoordinatorKilled,
}

impl Fault {
    pub const ALL: [Self; 21] = [
        Self::ServerKilled,
        Self::ServerPaused,
        Self::ServerCutFromNats,
        Self::ServerStalledFromNats,
        Self::ServerReceivesNoNats,
        Self::ServerCutFromBucket,
        Self::ServerStalledFromBucket,
        Self::ServerLosesBucketReplies,
        Self::ServerCutFromAll,
        Self::CoordinatorPaused,
        Self::CoordinatorCut,
        Self::CoordinatorStalled,
        Self::NatsKilled,
        Self::NatsPaused,
        Self::NatsCut,
        Self::S3Paused,
        Self::S3Cut,
        Self::S3Slow,
        Self::ClientsCut,
        Self::ClientsStalled,
        Self::CoordinatorKilled,
    ];

    /// Returns the kind of the fault for the checker, if it affects a server.
    const fn checker_fault(self) -> Option<ServerFaultKind> {
        match self {
            Self::ServerKilled => Some(ServerFaultKind::Killed),
            Self::ServerPaused => Some(ServerFaultKind::Paused),
            Self::ServerCutFromNats | Self::ServerStalledFromNats | Self::ServerReceivesNoNats => {
                Some(ServerFaultKind::CutFromBus)
            }
            Self::ServerCutFromBucket
            | Self::ServerStalledFromBucket
            | Self::ServerLosesBucketReplies
            | Self::ServerCutFromAll
            | Self::S3Paused
            | Self::S3Cut
            | Self::S3Slow => Some(ServerFaultKind::CutFromBucket),
            _ => None,
        }
    }

    /// Returns the target of the fault. A target has at most one fault at a time.
    const fn target(self, index: usize) -> Target {
        match self {
            Self::CoordinatorPaused
            | Self::CoordinatorCut
            | Self::CoordinatorStalled
            | Self::CoordinatorKilled => Target::Coordinator,
            Self::NatsKilled | Self::NatsPaused | Self::NatsCut => Target::Nats(index % NATS_SERVERS),
            Self::S3Paused | Self::S3Cut | Self::S3Slow => Target::S3,
            Self::ClientsCut | Self::ClientsStalled => Target::Clients,
            _ => Target::Server(index),
        }
    }

    const fn hits_all_servers(self) -> bool {
        matches!(self, Self::S3Paused | Self::S3Cut | Self::S3Slow)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Server(usize),
    Coordinator,
    Nats(usize),
    S3,
    Clients,
}

/// A fault that has not ended.
#[derive(Debug)]
struct ActiveFault {
    fault: Fault,
    index: usize,
    since: Duration,
    until: Duration,
}

pub struct Nemesis {
    pub servers: Vec<ServerName>,
    recorder: Recorder,
    began: Duration,
    active: Vec<ActiveFault>,
    /// The scanned length of each server's log, and the time of the scan.
    read: BTreeMap<String, (usize, Duration)>,
    pub counts: BTreeMap<String, u64>,
}

impl Nemesis {
    pub fn new(servers: &[ServerName], recorder: &Recorder) -> Self {
        Self {
            servers: servers.to_vec(),
            recorder: recorder.clone(),
            began: recorder.now(),
            active: Vec::new(),
            read: BTreeMap::new(),
            counts: BTreeMap::new(),
        }
    }

    fn count(&mut self, what: impl Into<String>) {
        *self.counts.entry(what.into()).or_default() += 1;
    }

    /// Injects faults one after the other, with a pause for recovery after each.
    pub async fn in_turn(
        &mut self,
        fleet: &mut Fleet,
        rng: &mut SeededRng,
        faults: &[Fault],
    ) -> anyhow::Result<()> {
        for &fault in faults {
            self.begin(fleet, rng, fault).await?;
            while !self.active.is_empty() {
                self.tick(fleet).await?;
            }
            let recovered = self.recorder.now() + Duration::from_millis(rng.within(200..600));
            while self.recorder.now() < recovered {
                self.tick(fleet).await?;
            }
        }
        Ok(())
    }

    /// Injects several faults in parallel, repeatedly.
    pub async fn mixed(
        &mut self,
        fleet: &mut Fleet,
        rng: &mut SeededRng,
        length: Duration,
    ) -> anyhow::Result<()> {
        let end = self.recorder.now() + length;
        let mut next = self.recorder.now();
        while self.recorder.now() < end {
            if self.recorder.now() >= next && self.active.len() < 3 {
                let fault = *rng.pick(&Fault::ALL);
                self.begin(fleet, rng, fault).await?;
                next = self.recorder.now() + Duration::from_millis(rng.within(100..900));
            }
            self.tick(fleet).await?;
        }
        Ok(())
    }

    /// Waits a moment, ends the faults that are over, and checks all processes.
    async fn tick(&mut self, fleet: &mut Fleet) -> anyhow::Result<()> {
        tokio::time::sleep(Duration::from_millis(15)).await;
        let now = self.recorder.now();
        let mut over = Vec::new();
        self.active.retain_mut(|active| {
            let continues = active.until > now;
            if !continues {
                over.push((active.fault, active.index, active.since));
            }
            continues
        });
        for (fault, index, since) in over {
            self.end(fleet, fault, index).await?;
            self.record_fault(fault, index, since);
        }
        self.scan_logs(fleet)
    }

    fn record_fault(&self, fault: Fault, index: usize, since: Duration) {
        let Some(kind) = fault.checker_fault() else { return };
        for (number, server) in self.servers.iter().enumerate() {
            if fault.hits_all_servers() || number == index {
                let until = self.recorder.now();
                self.recorder.record_fault(ServerFault { server: server.clone(), kind, since, until });
            }
        }
    }

    async fn begin(&mut self, fleet: &mut Fleet, rng: &mut SeededRng, fault: Fault) -> anyhow::Result<()> {
        let index = rng.within(0..self.servers.len() as u64) as usize;
        let since = self.recorder.now();
        let has_fault = |active: &ActiveFault| active.fault.target(active.index) == fault.target(index);
        let is_too_early = fault == Fault::CoordinatorKilled && since < self.began + COORDINATOR_YOUTH;
        if is_too_early || self.active.iter().any(has_fault) {
            return Ok(());
        }
        let name = self.servers[index].as_str().to_owned();
        // A process that has just ended by itself is restarted first, because no fault can hit it.
        for name in [name.as_str(), ServerName::COORDINATOR] {
            if !self.is_down(name) {
                self.restart_ended(fleet, name)?;
            }
        }
        let proxies = fleet.proxies();
        match fault {
            Fault::ServerKilled => fleet.kill9(&name).await?,
            Fault::ServerPaused => fleet.pause(&name).await?,
            Fault::ServerCutFromNats => proxies.set_nats(&name, ProxyMode::Cut),
            Fault::ServerStalledFromNats => proxies.set_nats(&name, ProxyMode::Stalled),
            Fault::ServerReceivesNoNats => proxies.set_nats(&name, ProxyMode::AnswersStalled),
            Fault::ServerCutFromBucket => proxies.set_bucket(&name, ProxyMode::Cut),
            Fault::ServerStalledFromBucket => proxies.set_bucket(&name, ProxyMode::Stalled),
            Fault::ServerLosesBucketReplies => proxies.set_bucket(&name, ProxyMode::AnswersLost),
            Fault::ServerCutFromAll => {
                proxies.set_bucket(&name, ProxyMode::Cut);
                proxies.set_nats(&name, ProxyMode::Cut);
            }
            Fault::CoordinatorPaused => fleet.pause(ServerName::COORDINATOR).await?,
            Fault::CoordinatorCut => proxies.set_nats(ServerName::COORDINATOR, ProxyMode::Cut),
            Fault::CoordinatorStalled => proxies.set_nats(ServerName::COORDINATOR, ProxyMode::Stalled),
            Fault::CoordinatorKilled => fleet.kill9(ServerName::COORDINATOR).await?,
            Fault::NatsKilled => proxies.cluster_mut().kill9(index % NATS_SERVERS).await?,
            Fault::NatsPaused => match proxies.cluster().server(index % NATS_SERVERS).process() {
                Some(process) => process.pause().await?,
                None => return Ok(()),
            },
            Fault::NatsCut => proxies.set_nats_server(index % NATS_SERVERS, ProxyMode::Cut),
            Fault::S3Paused => proxies.s3().process().pause().await?,
            Fault::S3Cut => proxies.set_s3(ProxyMode::Cut),
            Fault::S3Slow => proxies.set_s3(ProxyMode::Slow(Duration::from_millis(60))),
            Fault::ClientsCut => proxies.set_nats(CLIENTS, ProxyMode::Cut),
            Fault::ClientsStalled => proxies.set_nats(CLIENTS, ProxyMode::Stalled),
        }
        self.count(format!("{fault:?}"));
        // Long enough for a takeover and for writes by the new owner.
        let length = LEASE.mul_f64(1.3) + Duration::from_millis(rng.within(200..2_000));
        self.active.push(ActiveFault { fault, index, since, until: self.recorder.now() + length });
        Ok(())
    }

    async fn end(&mut self, fleet: &mut Fleet, fault: Fault, index: usize) -> anyhow::Result<()> {
        let name = self.servers[index].as_str().to_owned();
        let proxies = fleet.proxies();
        match fault {
            Fault::ServerKilled => fleet.start_with(&name, &[])?,
            Fault::ServerPaused => fleet.resume(&name)?,
            Fault::ServerCutFromNats | Fault::ServerStalledFromNats | Fault::ServerReceivesNoNats => {
                proxies.set_nats(&name, ProxyMode::Forward);
            }
            Fault::ServerCutFromBucket | Fault::ServerStalledFromBucket | Fault::ServerLosesBucketReplies => {
                proxies.set_bucket(&name, ProxyMode::Forward);
            }
            Fault::ServerCutFromAll => {
                proxies.set_bucket(&name, ProxyMode::Forward);
                proxies.set_nats(&name, ProxyMode::Forward);
            }
            Fault::CoordinatorPaused => fleet.resume(ServerName::COORDINATOR)?,
            Fault::CoordinatorCut | Fault::CoordinatorStalled => {
                proxies.set_nats(ServerName::COORDINATOR, ProxyMode::Forward);
            }
            Fault::CoordinatorKilled => fleet.start_with(ServerName::COORDINATOR, &[])?,
            Fault::NatsKilled => proxies.cluster_mut().restart(index % NATS_SERVERS).await?,
            Fault::NatsPaused => {
                if let Some(process) = proxies.cluster().server(index % NATS_SERVERS).process() {
                    process.resume()?;
                }
            }
            Fault::NatsCut => proxies.set_nats_server(index % NATS_SERVERS, ProxyMode::Forward),
            Fault::S3Paused => proxies.s3().process().resume()?,
            Fault::S3Cut | Fault::S3Slow => proxies.set_s3(ProxyMode::Forward),
            Fault::ClientsCut | Fault::ClientsStalled => proxies.set_nats(CLIENTS, ProxyMode::Forward),
        }
        Ok(())
    }

    /// Ends all faults, restarts all processes, and waits for them.
    pub async fn heal(&mut self, fleet: &mut Fleet) -> anyhow::Result<()> {
        for ActiveFault { fault, index, since, .. } in std::mem::take(&mut self.active) {
            self.end(fleet, fault, index).await?;
            self.record_fault(fault, index, since);
        }
        for number in 0..NATS_SERVERS {
            fleet.proxies().cluster().wait_connected(number).await?;
        }
        let names: Vec<String> = self
            .servers
            .iter()
            .map(|name| name.as_str().to_owned())
            .chain([ServerName::COORDINATOR.to_owned()])
            .collect();
        for name in names {
            until(&format!("{name} serves"), async || {
                self.restart_ended(fleet, &name)?;
                // A restarted process may end once more if another part is not available yet.
                Ok(fleet.is_serving(&name).await?.then_some(()))
            })
            .await?;
        }
        self.scan_logs(fleet)
    }

    /// Returns whether a process was killed and must not be started yet.
    fn is_down(&self, name: &str) -> bool {
        self.active.iter().any(|active| match active.fault {
            Fault::ServerKilled => self.servers[active.index].as_str() == name,
            Fault::CoordinatorKilled => name == ServerName::COORDINATOR,
            _ => false,
        })
    }

    /// Restarts a process that has ended by itself.
    fn restart_ended(&mut self, fleet: &mut Fleet, name: &str) -> anyhow::Result<()> {
        let Some(status) = fleet.ended(name)? else { return Ok(()) };
        // A program that ends on purpose has an exit code of its own; a panic has another.
        if status.code().is_none_or(|code| code == 101) {
            bail!("{name} ended with {status}");
        }
        self.count(format!(
            "{} ended by itself",
            name.trim_end_matches(|end: char| end.is_ascii_digit() || end == '-')
        ));
        fleet.start_with(name, &[])
    }

    /// Scans for sealed logs and for panics.
    fn scan_logs(&mut self, fleet: &mut Fleet) -> anyhow::Result<()> {
        let now = self.recorder.now();
        for name in self.servers.clone().iter().map(ServerName::as_str).chain([ServerName::COORDINATOR]) {
            if !self.is_down(name) {
                self.restart_ended(fleet, name)?;
            }
            let log = fleet.log(name)?;
            let (read, since) = self.read.get(name).copied().unwrap_or((0, self.began));
            let new_lines = log.get(read..).unwrap_or_default();
            if new_lines.contains("panicked at ") {
                bail!("{name} panicked: {new_lines}");
            }
            if new_lines.contains(TAKEN_OVER) && name != ServerName::COORDINATOR {
                self.count("taken over");
                let (server, kind) = (name.parse()?, ServerFaultKind::TakenOver);
                self.recorder.record_fault(ServerFault {
                    server,
                    kind,
                    since: since.saturating_sub(LEASE),
                    until: now,
                });
            }
            self.read.insert(name.to_owned(), (log.len(), now));
        }
        Ok(())
    }
}
