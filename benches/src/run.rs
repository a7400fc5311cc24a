//! A run: every scenario on every target, in turns.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Parser;
use dormouse_e2e::greedy::Aggressor;

use crate::machine::{Machine, raise_open_files, settle_disk};
use crate::results::{Measured, Results, TargetOutcome, TargetResult};
use crate::scenario::{RunScale, Scenario};
use crate::target::{Capability, Running};
use crate::{greedy, idle_subjects, load as rounds, operations, report, scenario, targets};

/// The numbers of dormant subjects, each with the smallest scale of its measurement.
pub const IDLE_SUBJECTS: &[(usize, RunScale)] =
    &[(1_000, RunScale::Usual), (100_000, RunScale::Usual), (1_000_000, RunScale::Long)];
/// The name of this scenario for `--only`.
const DORMANT: &str = "dormant subjects";
/// A target that keeps more than this on disk starts with empty state for the next scenario: 4 GiB, four times the size
/// of 10,000 new subjects.
const KEEPS_BYTES: u64 = 4 << 30;
/// The same applies to a target whose memory has grown by more than this since its last subject was created: 1 GiB.
const GROWS_BYTES: u64 = 1 << 30;

/// The selection and the settings of a run.
#[derive(Debug, Parser)]
pub struct RunPlan {
    /// Only scenarios whose name contains this; may be repeated
    #[arg(long)]
    only: Vec<String>,
    /// Only these targets, separated by commas
    #[arg(long, value_delimiter = ',')]
    targets: Vec<String>,
    /// A run of a minute: few scenarios, three rounds of 0.3 seconds
    #[arg(long, conflicts_with = "long")]
    quick: bool,
    /// Only the long scenarios: values of 1 GiB, 100,000 subjects created, a million dormant subjects
    #[arg(long)]
    long: bool,
    /// Rounds; the results are medians over them
    #[arg(long, default_value_t = 5, default_value_if("quick", "true", "3"))]
    rounds: usize,
    /// The time of one target in one round, in seconds
    #[arg(long, default_value_t = 0.5, default_value_if("quick", "true", "0.3"))]
    seconds: f64,
    /// Keep the results of an interrupted run of the same commit and the same options, and measure the rest
    #[arg(long)]
    resume: bool,
    /// The file for the results, as JSON
    #[arg(long, value_name = "FILE", default_value = "bench.json")]
    out: PathBuf,
}

impl RunPlan {
    const fn scale(&self) -> RunScale {
        match (self.quick, self.long) {
            (true, _) => RunScale::Quick,
            (_, true) => RunScale::Long,
            _ => RunScale::Usual,
        }
    }

    /// Returns the arguments that repeat the run.
    fn arguments(&self) -> String {
        let only = self.only.iter().map(|only| format!("--only {only:?} "));
        format!("{}{}", only.collect::<String>(), self.terms())
    }

    /// Returns the arguments that two runs must share so that their results can be combined.
    fn terms(&self) -> String {
        let mut words = Vec::new();
        if !self.targets.is_empty() {
            words.push(format!("--targets {}", self.targets.join(",")));
        }
        words.extend(self.quick.then(|| "--quick".to_owned()));
        words.extend(self.long.then(|| "--long".to_owned()));
        words.push(format!("--rounds {} --seconds {}", self.rounds, self.seconds));
        words.join(" ")
    }

    fn wants(&self, name: &str, scale: RunScale) -> bool {
        let fits = if self.long { scale == RunScale::Long } else { scale <= self.scale() };
        fits && (self.only.is_empty() || self.only.iter().any(|only| name.contains(only)))
    }
}

/// Measures, and writes the results to a file after each scenario, so that an interrupted run leaves results.
///
/// # Errors
/// If the selection is empty, or the file cannot be written. A target that fails is named in the results.
pub async fn run(run: &RunPlan) -> Result<Results> {
    let began = Instant::now();
    let open_files = raise_open_files();
    let mut results = Results {
        machine: Machine::here(open_files),
        arguments: run.arguments(),
        terms: run.terms(),
        long: run.long,
        whole: run.only.is_empty() && run.targets.is_empty() && run.scale() != RunScale::Quick,
        seconds: 0,
        targets: Vec::new(),
        scenarios: Vec::new(),
        idle_subjects: Vec::new(),
        greedy: Vec::new(),
    };
    let mut chosen: Vec<Scenario> = scenario::all(scenario::many(open_files))
        .into_iter()
        .filter(|scenario| run.wants(&scenario.name(), scenario.scale))
        .collect();
    let mut dormant_counts: Vec<usize> = IDLE_SUBJECTS
        .iter()
        .filter(|(_, scale)| run.wants(DORMANT, *scale))
        .map(|(subjects, _)| *subjects)
        .collect();
    let mut aggressors = Aggressor::ALL.to_vec();
    aggressors.retain(|aggressor| run.wants(&greedy_name(*aggressor), RunScale::Usual));
    // These trials measure Dormouse alone.
    aggressors.retain(|_| run.targets.is_empty());
    if chosen.is_empty() && dormant_counts.is_empty() && aggressors.is_empty() {
        bail!("no scenario of this scale has a name with {:?}: `list` shows all", run.only);
    }
    if run.resume {
        results.keep(Results::read(&run.out)?)?;
        chosen.retain(|scenario| results.scenario(&scenario.name()).is_none());
        dormant_counts.retain(|subjects| results.idle_subjects.iter().all(|kept| kept.subjects != *subjects));
        aggressors.retain(|aggressor| results.greedy.iter().all(|kept| kept.aggressor != aggressor.as_str()));
    }
    let earlier_s = results.seconds;
    if !chosen.is_empty() {
        let dormant = chosen.iter().any(|scenario| scenario.needs() == Capability::Reopen);
        let mut running = start_all(run, dormant, &mut results).await?;
        for scenario in &chosen {
            eprintln!("{}", scenario.name());
            let lines = measure(scenario, &mut running, run).await;
            let (family, column) = scenario.table_position();
            let bytes = scenario.counts_bytes();
            results.scenarios.push(Measured { name: scenario.name(), family, column, bytes, lines });
            results.seconds = earlier_s + began.elapsed().as_secs();
            results.write(&run.out)?;
        }
        results.scenarios.sort_by_key(|measured| scenario::index_of(&measured.name));
    }
    for subjects in dormant_counts {
        eprintln!("{subjects} {DORMANT}");
        results.idle_subjects.push(idle_subjects::measure(subjects).await?);
        settle_disk();
    }
    for aggressor in aggressors {
        eprintln!("{}", greedy_name(aggressor));
        results.greedy.push(greedy::measure(aggressor).await);
        results.seconds = earlier_s + began.elapsed().as_secs();
        results.write(&run.out)?;
        settle_disk();
    }
    results.seconds = earlier_s + began.elapsed().as_secs();
    results.write(&run.out)?;
    Ok(results)
}

/// Returns the name of the trial of an aggressor for `--only`.
#[must_use]
pub fn greedy_name(aggressor: Aggressor) -> String {
    format!("greedy, {}", aggressor.as_str())
}

/// Starts every selected target. A target that does not start is named and left out.
async fn start_all(run: &RunPlan, dormant: bool, results: &mut Results) -> Result<Vec<Running>> {
    let names: Vec<&str> = if run.targets.is_empty() {
        targets::NAMES.to_vec()
    } else {
        run.targets.iter().map(String::as_str).collect()
    };
    let mut running = Vec::new();
    for name in names.into_iter().filter(|name| dormant || !targets::ONLY_OPEN.contains(name)) {
        match targets::start(name).await {
            Ok(target) => {
                results.set_outcome(name, TargetOutcome::Promises(target.target.promise().to_owned()));
                running.push(target);
            }
            Err(error) => {
                eprintln!("{name} is left out: {error:#}");
                results.set_outcome(name, TargetOutcome::LeftOut(format!("{error:#}")));
            }
        }
    }
    if running.is_empty() {
        bail!("no target started");
    }
    Ok(running)
}

/// Runs all rounds of one scenario on every target. Each round starts with another target.
async fn measure(scenario: &Scenario, running: &mut [Running], run: &RunPlan) -> Vec<TargetResult> {
    let mut lines = Vec::new();
    for target in running.iter_mut() {
        let mut line = TargetResult {
            target: target.name.clone(),
            rounds: BTreeMap::new(),
            trouble: None,
            disk_bytes: 0,
        };
        if let Err(why) = prepare(scenario, target).await {
            line.trouble = Some(format!("{why:#}"));
        }
        lines.push(line);
    }
    settle_disk();
    let lasts = Duration::from_secs_f64(run.seconds);
    let rounds = if scenario.is_done_once() { 1 } else { run.rounds };
    for round in 0..rounds {
        for index in 0..running.len() {
            let index = (index + round) % running.len();
            let (line, target) = (&mut lines[index], &mut running[index]);
            if line.trouble.is_some() {
                continue;
            }
            match operations::round(scenario.operation, target, round, lasts).await {
                Ok(measured) => drop(line.rounds.insert(round, measured)),
                Err(error) => line.trouble = Some(format!("{error:#}")),
            }
            if round + 1 == rounds {
                line.disk_bytes = target.kept_bytes();
            }
            if scenario.is_done_once()
                && let Err(error) = start_empty(target).await
            {
                line.trouble = Some(format!("{error:#}"));
            }
            settle_disk();
        }
    }
    for line in &lines {
        eprintln!("  {}", report::brief(line, scenario.counts_bytes()));
    }
    lines
}

/// Prepares the subjects of a scenario, in a new instance of the target if the old one keeps much data.
async fn prepare(scenario: &Scenario, running: &mut Running) -> Result<()> {
    let dormant = scenario.needs() == Capability::Reopen;
    let only_open = targets::ONLY_OPEN.contains(&running.name.as_str());
    if !running.target.can(scenario.needs()) || only_open && !dormant {
        bail!("has no such capability");
    }
    // A target whose processes have ended also needs a new instance.
    let has_grown = running.grown_bytes().map_or(true, |bytes| bytes > GROWS_BYTES);
    let is_full = has_grown || running.kept_bytes() > KEEPS_BYTES;
    // A fleet for the `open` scenario must first release everything it owns.
    if dormant || is_full {
        start_empty(running).await?;
    }
    operations::prepare(scenario.operation, running).await?;
    rounds::wait_until_idle(&running.target.members()).await?;
    running.note_prepared()
}

async fn start_empty(running: &mut Running) -> Result<()> {
    *running = targets::start(&running.name).await?;
    Ok(())
}
