//! One aggressor beside the polite tenant: a quiet phase, then the attack.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, ensure};
use dormouse_bus::Bus;
use dormouse_client::Client;
use dormouse_harness::peak_resident_bytes;
use dormouse_protocol::ServerName;
use dormouse_runtime::{Env, Stop, Tasks};

use super::attack::Attack;
use super::{Aggressor, AttackFigures, PoliteExtra, PoliteFigures, PoliteTenant, Refusal, Scale};
use crate::{Builder, Fleet, RawNats, Security, until};

/// The only server.
const SERVER: &str = "persist-1";

/// The deadline of the polite calls: the default of the clients.
const DEADLINE: Duration = Duration::from_secs(10);

/// One aggressor at one size.
#[derive(Debug, Clone, Copy)]
pub struct Trial {
    /// The aggressor.
    pub aggressor: Aggressor,
    /// The size of its attack.
    pub scale: Scale,
}

/// The figures of a trial.
#[derive(Debug, Clone)]
pub struct TrialOutcome {
    /// The polite calls before the attack.
    pub quiet: PoliteFigures,
    /// The polite calls during the attack.
    pub during: PoliteFigures,
    /// The replies that the aggressor got.
    pub attack: AttackFigures,
    /// The number of gaps between leases of the server.
    pub lapses: u64,
    /// The server's resident memory before the attack, in bytes.
    pub bytes_before: u64,
    /// The peak of the server's resident memory, in bytes.
    pub peak_bytes: u64,
}

impl TrialOutcome {
    /// Checks the rules that need no timing: no polite call failed, no lease lapsed, and the aggressor got its refusal.
    ///
    /// # Errors
    /// The first rule that does not hold.
    pub fn judge(&self, refusal: Refusal) -> anyhow::Result<()> {
        let failures = self.quiet.failures.iter().chain(&self.during.failures);
        let failed = failures.clone().count();
        let first = failures.clone().next();
        ensure!(failed == 0, "{failed} polite calls failed; the first: {}", first.map_or("", |first| first));
        ensure!(self.lapses == 0, "the lease lapsed {} times", self.lapses);
        let attack = &self.attack;
        ensure!(attack.broker_errors.is_empty(), "nats-server reported {:?}", attack.broker_errors);
        match refusal {
            Refusal::Overloaded => ensure!(attack.count("overloaded") > 0, "nothing overloaded: {attack}"),
            Refusal::Size => ensure!(attack.count("too_large") > 0, "nothing too large: {attack}"),
            Refusal::Nothing => {}
        }
        Ok(())
    }
}

impl fmt::Display for TrialOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (quiet, during) = (&self.quiet, &self.during);
        write!(
            f,
            "p50 {:.1?} → {:.1?}, p99 {:.1?} → {:.1?}; {} of {} polite calls failed; {} lapses; {} MiB → {} MiB; attack: {} {:?}",
            quiet.percentile(50),
            during.percentile(50),
            quiet.percentile(99),
            during.percentile(99),
            during.failures.len(),
            during.succeeded() + during.failures.len(),
            self.lapses,
            self.bytes_before >> 20,
            self.peak_bytes >> 20,
            self.attack,
            self.attack.texts,
        )
    }
}

/// The identity of the server's lease.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LeaseState {
    log: String,
    generation: u64,
}

impl Trial {
    /// Starts a fleet, measures, and stops the fleet.
    ///
    /// If the call is cancelled, the processes of the fleet end.
    ///
    /// # Errors
    /// If the fleet fails, or logs an unexpected warning at the scale of a test.
    pub async fn run(self) -> anyhow::Result<TrialOutcome> {
        let mut outcome = None;
        let measure = async |fleet: &mut Fleet| {
            for text in self.expected_warnings() {
                fleet.expect_warning(text);
            }
            outcome = Some(self.measure(fleet).await?);
            Ok(())
        };
        self.fleet()?.run(measure).await?;
        outcome.context("a trial has an outcome")
    }

    fn fleet(self) -> anyhow::Result<Builder> {
        // The configuration has subjects such as user.alice.notes: two tokens name the tenant.
        let tokens = ["--tenant-tokens", "2"];
        let mut fleet = Fleet::builder()
            .secured(Security::shipped("one-account.conf")?)
            .coordinator_args(tokens)
            .server_args(tokens);
        if self.aggressor == Aggressor::HangingBucket {
            // The polite tenant must not wait for the bucket itself: only the aggressor does.
            fleet = fleet.s3_bucket().server_args(["--level", "interval", "--max-unshipped-age", "60s"]);
        }
        if self.scale == Scale::Test {
            fleet = fleet.in_memory().server_args(["--max-unshipped-bytes", "33554432", "--max-open", "500"]);
        }
        Ok(fleet)
    }

    fn expected_warnings(self) -> &'static [&'static str] {
        match (self.scale, self.aggressor) {
            (Scale::Full, _) => &[" WARN "],
            // The bucket does not answer.
            (Scale::Test, Aggressor::HangingBucket) => &["bucket"],
            (Scale::Test, _) => &[],
        }
    }

    async fn measure(self, fleet: &mut Fleet) -> anyhow::Result<TrialOutcome> {
        let attack =
            Attack { aggressor: self.aggressor, scale: self.scale, server: ServerName::new(SERVER)? };
        self.prepare(fleet, &attack).await?;
        let extra = match self.aggressor {
            Aggressor::UnknownLookups => PoliteExtra::LookUps,
            Aggressor::DormantReads => PoliteExtra::DormantReads,
            Aggressor::GetAllFlood => PoliteExtra::Pages,
            _ => PoliteExtra::Nothing,
        };
        let mut polite = PoliteTenant::new(bob(fleet).await?, extra, Env::system()).await?;
        let least = match self.scale {
            Scale::Test => 50,
            Scale::Full => 500,
        };
        let quiet = polite.work(|intervals| intervals >= least).await;
        let lease = lease(fleet).await?;
        let pid = fleet.process(SERVER)?.pid().context("the server has ended")?;
        let bytes_before = fleet.process(SERVER)?.resident_bytes()?;

        if self.aggressor == Aggressor::HangingBucket {
            fleet.s3()?.process().pause().await?;
        }
        let done = Stop::new();
        let user = self.aggressor.user();
        let password = fleet.security()?.password(user)?.to_owned();
        let login = Login { url: fleet.url(), user, password, inbox: fleet.security()?.inbox_of(user) };
        let attacking = on_own_thread(attack, login, done.clone());
        let working = polite.work(|intervals| intervals >= least && done.is_requested());
        let (figures, during) = futures::join!(attacking, working);
        if self.aggressor == Aggressor::HangingBucket {
            fleet.s3()?.process().resume()?;
        }
        let (attack, after) = (figures?, self::lease(fleet).await?);
        let lapses = match after.log == lease.log {
            true => after.generation.saturating_sub(lease.generation),
            // A server that was fenced continues with a new log.
            false => after.generation,
        };
        let peak_bytes = peak_resident_bytes(pid)?;
        let outcome = TrialOutcome { quiet, during, attack, lapses, bytes_before, peak_bytes };
        // A fleet that logged a warning has no outcome, but its figures say why.
        eprintln!("{}: {outcome}", self.aggressor.as_str());
        Ok(outcome)
    }

    async fn prepare(self, fleet: &mut Fleet, attack: &Attack) -> anyhow::Result<()> {
        let tasks = Tasks::new();
        let bus = fleet.nats_options_as("alice")?.connect(Env::system(), &tasks).await?;
        attack.prepare(&bus).await?;
        bus.close().await;
        if self.aggressor == Aggressor::DormantReads {
            PoliteTenant::create_dormant(&bob(fleet).await?).await?;
            fleet.stop(SERVER).await?;
            fleet.restart(SERVER).await?;
        }
        Ok(())
    }
}

async fn bob(fleet: &Fleet) -> anyhow::Result<Client> {
    Ok(Client::builder().deadline(DEADLINE).connect(fleet.nats_options_as("bob")?).await?)
}

/// The connection of an aggressor.
struct Login {
    url: String,
    user: &'static str,
    password: String,
    /// The prefix of its reply addresses.
    inbox: String,
}

/// Runs an attack on a thread of its own, so that the polite client does not wait for the aggressor's client. Requests
/// `done` at the end.
async fn on_own_thread(attack: Attack, login: Login, done: Stop) -> anyhow::Result<AttackFigures> {
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let outcome = runtime.block_on(async {
            let raw = RawNats::connect_as(&login.url, Some((login.user, &login.password))).await?;
            attack.run(raw, &format!("{}.greedy", login.inbox), &Env::system()).await
        });
        done.request();
        outcome
    };
    Env::system().blocking(work).await
}

async fn lease(fleet: &mut Fleet) -> anyhow::Result<LeaseState> {
    until("the server reports a lease", async || {
        let Some(health) = fleet.health(SERVER).await? else { return Ok(None) };
        let generation = health.figures.get("lease_generation").copied().unwrap_or_default();
        Ok((generation > 0).then_some(LeaseState { log: health.id, generation }))
    })
    .await
}
