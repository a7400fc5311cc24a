//! What befalls the processes and the cables between them, for a bounded time each.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::bail;
use dormouse_checker::{Harm, HarmKind};
use dormouse_e2e::{CLIENTS, Dice, Fleet, NATS_SERVERS, Recorder, until};
use dormouse_harness::Condition;
use dormouse_protocol::ServerName;

/// The lease of the fleet; dead is who was not heard of for 1.3 of it.
pub const LEASE: Duration = Duration::from_millis(500);

/// So long after its very first start a coordinator that is started again waits for leases of which it knows nothing.
const COORDINATOR_YOUTH: Duration = Duration::from_secs(31);

/// What a server says when its log was ended by somebody else.
const TAKEN_OVER: &str = "another process has ended this log";

/// What may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    ServerKilled,
    ServerPaused,
    ServerCutFromNats,
    ServerStalledFromNats,
    ServerHearsNoNats,
    ServerCutFromBucket,
    ServerStalledFromBucket,
    ServerLosesAnswersOfBucket,
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
    // Last: by then the fleet is old enough.
    CoordinatorKilled,
}

impl Fault {
    pub const ALL: [Self; 21] = [
        Self::ServerKilled,
        Self::ServerPaused,
        Self::ServerCutFromNats,
        Self::ServerStalledFromNats,
        Self::ServerHearsNoNats,
        Self::ServerCutFromBucket,
        Self::ServerStalledFromBucket,
        Self::ServerLosesAnswersOfBucket,
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

    /// What it does to a server.
    const fn harm(self) -> Option<HarmKind> {
        match self {
            Self::ServerKilled => Some(HarmKind::Killed),
            Self::ServerPaused => Some(HarmKind::Paused),
            Self::ServerCutFromNats | Self::ServerStalledFromNats | Self::ServerHearsNoNats => {
                Some(HarmKind::CutFromBus)
            }
            Self::ServerCutFromBucket
            | Self::ServerStalledFromBucket
            | Self::ServerLosesAnswersOfBucket
            | Self::ServerCutFromAll
            | Self::S3Paused
            | Self::S3Cut
            | Self::S3Slow => Some(HarmKind::CutFromBucket),
            _ => None,
        }
    }

    /// Whom it strikes. Nobody is struck twice at the same time.
    const fn target(self, victim: usize) -> Target {
        match self {
            Self::CoordinatorPaused
            | Self::CoordinatorCut
            | Self::CoordinatorStalled
            | Self::CoordinatorKilled => Target::Coordinator,
            Self::NatsKilled | Self::NatsPaused | Self::NatsCut => Target::Nats(victim % NATS_SERVERS),
            Self::S3Paused | Self::S3Cut | Self::S3Slow => Target::S3,
            Self::ClientsCut | Self::ClientsStalled => Target::Clients,
            _ => Target::Server(victim),
        }
    }

    const fn strikes_all(self) -> bool {
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

/// A fault that is going on.
#[derive(Debug)]
struct Acting {
    fault: Fault,
    victim: usize,
    since: Duration,
    until: Duration,
}

pub struct Nemesis {
    pub servers: Vec<ServerName>,
    recorder: Recorder,
    began: Duration,
    acting: Vec<Acting>,
    /// How much of each server's log was looked through, and when.
    read: BTreeMap<String, (usize, Duration)>,
    pub counts: BTreeMap<String, u64>,
}

impl Nemesis {
    pub fn new(servers: &[ServerName], recorder: &Recorder) -> Self {
        Self {
            servers: servers.to_vec(),
            recorder: recorder.clone(),
            began: recorder.now(),
            acting: Vec::new(),
            read: BTreeMap::new(),
            counts: BTreeMap::new(),
        }
    }

    fn count(&mut self, what: impl Into<String>) {
        *self.counts.entry(what.into()).or_default() += 1;
    }

    /// One after the other, each for a while, with a moment to recover.
    pub async fn in_turn(
        &mut self,
        fleet: &mut Fleet,
        dice: &mut Dice,
        faults: &[Fault],
    ) -> anyhow::Result<()> {
        for &fault in faults {
            self.begin(fleet, dice, fault).await?;
            while !self.acting.is_empty() {
                self.pass(fleet).await?;
            }
            let recovered = self.recorder.now() + Duration::from_millis(dice.within(200..600));
            while self.recorder.now() < recovered {
                self.pass(fleet).await?;
            }
        }
        Ok(())
    }

    /// Several at once, again and again.
    pub async fn mixed(
        &mut self,
        fleet: &mut Fleet,
        dice: &mut Dice,
        length: Duration,
    ) -> anyhow::Result<()> {
        let end = self.recorder.now() + length;
        let mut next = self.recorder.now();
        while self.recorder.now() < end {
            if self.recorder.now() >= next && self.acting.len() < 3 {
                let fault = *dice.pick(&Fault::ALL);
                self.begin(fleet, dice, fault).await?;
                next = self.recorder.now() + Duration::from_millis(dice.within(100..900));
            }
            self.pass(fleet).await?;
        }
        Ok(())
    }

    /// Lets a moment pass, ends what has gone on for long enough, and looks after everybody.
    async fn pass(&mut self, fleet: &mut Fleet) -> anyhow::Result<()> {
        tokio::time::sleep(Duration::from_millis(15)).await;
        let now = self.recorder.now();
        let mut over = Vec::new();
        self.acting.retain_mut(|acting| {
            let goes_on = acting.until > now;
            if !goes_on {
                over.push((acting.fault, acting.victim, acting.since));
            }
            goes_on
        });
        for (fault, victim, since) in over {
            self.end(fleet, fault, victim).await?;
            self.harm(fault, victim, since);
        }
        self.look_through(fleet)
    }

    fn harm(&self, fault: Fault, victim: usize, since: Duration) {
        let Some(kind) = fault.harm() else { return };
        for (number, server) in self.servers.iter().enumerate() {
            if fault.strikes_all() || number == victim {
                let until = self.recorder.now();
                self.recorder.harm(Harm { server: server.clone(), kind, since, until });
            }
        }
    }

    async fn begin(&mut self, fleet: &mut Fleet, dice: &mut Dice, fault: Fault) -> anyhow::Result<()> {
        let victim = dice.within(0..self.servers.len() as u64) as usize;
        let since = self.recorder.now();
        let busy = |acting: &Acting| acting.fault.target(acting.victim) == fault.target(victim);
        let is_young = fault == Fault::CoordinatorKilled && since < self.began + COORDINATOR_YOUTH;
        if is_young || self.acting.iter().any(busy) {
            return Ok(());
        }
        let name = self.servers[victim].as_str().to_owned();
        // Who has just given up by itself can be struck by nothing else.
        for name in [name.as_str(), ServerName::COORDINATOR] {
            if !self.is_down(name) {
                self.help_up(fleet, name)?;
            }
        }
        let wiring = fleet.wiring();
        match fault {
            Fault::ServerKilled => fleet.kill9(&name).await?,
            Fault::ServerPaused => fleet.pause(&name).await?,
            Fault::ServerCutFromNats => wiring.set_nats(&name, Condition::Cut),
            Fault::ServerStalledFromNats => wiring.set_nats(&name, Condition::Stalled),
            Fault::ServerHearsNoNats => wiring.set_nats(&name, Condition::AnswersStalled),
            Fault::ServerCutFromBucket => wiring.set_bucket(&name, Condition::Cut),
            Fault::ServerStalledFromBucket => wiring.set_bucket(&name, Condition::Stalled),
            Fault::ServerLosesAnswersOfBucket => wiring.set_bucket(&name, Condition::AnswersLost),
            Fault::ServerCutFromAll => {
                wiring.set_bucket(&name, Condition::Cut);
                wiring.set_nats(&name, Condition::Cut);
            }
            Fault::CoordinatorPaused => fleet.pause(ServerName::COORDINATOR).await?,
            Fault::CoordinatorCut => wiring.set_nats(ServerName::COORDINATOR, Condition::Cut),
            Fault::CoordinatorStalled => wiring.set_nats(ServerName::COORDINATOR, Condition::Stalled),
            Fault::CoordinatorKilled => fleet.kill9(ServerName::COORDINATOR).await?,
            Fault::NatsKilled => wiring.cluster_mut().kill9(victim % NATS_SERVERS).await?,
            Fault::NatsPaused => match wiring.cluster().server(victim % NATS_SERVERS).process() {
                Some(process) => process.pause().await?,
                None => return Ok(()),
            },
            Fault::NatsCut => wiring.set_nats_server(victim % NATS_SERVERS, Condition::Cut),
            Fault::S3Paused => wiring.s3().process().pause().await?,
            Fault::S3Cut => wiring.set_s3(Condition::Cut),
            Fault::S3Slow => wiring.set_s3(Condition::Slow(Duration::from_millis(60))),
            Fault::ClientsCut => wiring.set_nats(CLIENTS, Condition::Cut),
            Fault::ClientsStalled => wiring.set_nats(CLIENTS, Condition::Stalled),
        }
        self.count(format!("{fault:?}"));
        // Long enough for a successor to be found and to write.
        let length = LEASE.mul_f64(1.3) + Duration::from_millis(dice.within(200..2_000));
        self.acting.push(Acting { fault, victim, since, until: self.recorder.now() + length });
        Ok(())
    }

    async fn end(&mut self, fleet: &mut Fleet, fault: Fault, victim: usize) -> anyhow::Result<()> {
        let name = self.servers[victim].as_str().to_owned();
        let wiring = fleet.wiring();
        match fault {
            Fault::ServerKilled => fleet.start_with(&name, &[])?,
            Fault::ServerPaused => fleet.resume(&name)?,
            Fault::ServerCutFromNats | Fault::ServerStalledFromNats | Fault::ServerHearsNoNats => {
                wiring.set_nats(&name, Condition::Whole);
            }
            Fault::ServerCutFromBucket
            | Fault::ServerStalledFromBucket
            | Fault::ServerLosesAnswersOfBucket => wiring.set_bucket(&name, Condition::Whole),
            Fault::ServerCutFromAll => {
                wiring.set_bucket(&name, Condition::Whole);
                wiring.set_nats(&name, Condition::Whole);
            }
            Fault::CoordinatorPaused => fleet.resume(ServerName::COORDINATOR)?,
            Fault::CoordinatorCut | Fault::CoordinatorStalled => {
                wiring.set_nats(ServerName::COORDINATOR, Condition::Whole);
            }
            Fault::CoordinatorKilled => fleet.start_with(ServerName::COORDINATOR, &[])?,
            Fault::NatsKilled => wiring.cluster_mut().restart(victim % NATS_SERVERS).await?,
            Fault::NatsPaused => {
                if let Some(process) = wiring.cluster().server(victim % NATS_SERVERS).process() {
                    process.resume()?;
                }
            }
            Fault::NatsCut => wiring.set_nats_server(victim % NATS_SERVERS, Condition::Whole),
            Fault::S3Paused => wiring.s3().process().resume()?,
            Fault::S3Cut | Fault::S3Slow => wiring.set_s3(Condition::Whole),
            Fault::ClientsCut | Fault::ClientsStalled => wiring.set_nats(CLIENTS, Condition::Whole),
        }
        Ok(())
    }

    /// Everything ends, everybody is helped up, and all are waited for.
    pub async fn heal(&mut self, fleet: &mut Fleet) -> anyhow::Result<()> {
        for Acting { fault, victim, since, .. } in std::mem::take(&mut self.acting) {
            self.end(fleet, fault, victim).await?;
            self.harm(fault, victim, since);
        }
        for number in 0..NATS_SERVERS {
            fleet.wiring().cluster().wait_connected(number).await?;
        }
        let names: Vec<String> = self
            .servers
            .iter()
            .map(|name| name.as_str().to_owned())
            .chain([ServerName::COORDINATOR.to_owned()])
            .collect();
        for name in names {
            until(&format!("{name} serves"), async || {
                self.help_up(fleet, &name)?;
                // Whoever has just been started may end once more for want of something that was still missing.
                Ok(fleet.is_serving(&name).await?.then_some(()))
            })
            .await?;
        }
        self.look_through(fleet)
    }

    /// Whether a process was killed and is not to be started yet.
    fn is_down(&self, name: &str) -> bool {
        self.acting.iter().any(|acting| match acting.fault {
            Fault::ServerKilled => self.servers[acting.victim].as_str() == name,
            Fault::CoordinatorKilled => name == ServerName::COORDINATOR,
            _ => false,
        })
    }

    /// Starts a process again that has ended by itself.
    fn help_up(&mut self, fleet: &mut Fleet, name: &str) -> anyhow::Result<()> {
        let Some(status) = fleet.ended(name)? else { return Ok(()) };
        // A program that gives up says why with a code of its own; a panic is none.
        if status.code().is_none_or(|code| code == 101) {
            bail!("{name} ended with {status}");
        }
        self.count(format!(
            "{} gave up",
            name.trim_end_matches(|end: char| end.is_ascii_digit() || end == '-')
        ));
        fleet.start_with(name, &[])
    }

    /// Looks for logs that were taken over and for processes that gave up.
    fn look_through(&mut self, fleet: &mut Fleet) -> anyhow::Result<()> {
        let now = self.recorder.now();
        for name in self.servers.clone().iter().map(ServerName::as_str).chain([ServerName::COORDINATOR]) {
            if !self.is_down(name) {
                self.help_up(fleet, name)?;
            }
            let log = fleet.log(name)?;
            let (read, since) = self.read.get(name).copied().unwrap_or((0, self.began));
            let fresh = log.get(read..).unwrap_or_default();
            if fresh.contains("panicked at ") {
                bail!("{name} panicked: {fresh}");
            }
            if fresh.contains(TAKEN_OVER) && name != ServerName::COORDINATOR {
                self.count("taken over");
                let (server, kind) = (name.parse()?, HarmKind::TakenOver);
                self.recorder.harm(Harm { server, kind, since: since.saturating_sub(LEASE), until: now });
            }
            self.read.insert(name.to_owned(), (log.len(), now));
        }
        Ok(())
    }
}
