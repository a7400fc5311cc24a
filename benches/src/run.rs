//! A run: every scenario at every target, which take turns.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Parser;

use crate::machine::{Machine, raise_open_files, settle_disk};
use crate::results::{Line, Measured, Outcome, Results};
use crate::scenario::{Effort, Scenario};
use crate::target::{Ability, Running};
use crate::{deeds, load as rounds, report, scenario, sleepers, targets};

/// How many subjects sleep, and the least effort at which that is measured.
pub const SLEEPERS: &[(usize, Effort)] =
    &[(1_000, Effort::Usual), (100_000, Effort::Usual), (1_000_000, Effort::Long)];
/// What those are called for `--only`.
const SLEEPING: &str = "sleeping subjects";
/// A target that keeps more than this on disk begins anew before the next scenario: 4 GiB, four times what 10,000 subjects
/// take that were just made.
const KEEPS_BYTES: u64 = 4 << 30;
/// So does one whose memory has grown by more than this since the last of its subjects was made: 1 GiB.
const GROWS_BYTES: u64 = 1 << 30;

/// What is measured, and how thoroughly.
#[derive(Debug, Parser)]
pub struct Run {
    /// Only scenarios whose name contains this; again for others
    #[arg(long)]
    only: Vec<String>,
    /// Only these targets, separated by commas
    #[arg(long, value_delimiter = ',')]
    targets: Vec<String>,
    /// A minute's run: few scenarios, three rounds of 0.3 seconds
    #[arg(long, conflicts_with = "long")]
    quick: bool,
    /// Only what takes long: values of 1 GiB, 100,000 subjects created, a million asleep
    #[arg(long)]
    long: bool,
    /// Rounds; the results are medians over them
    #[arg(long, default_value_t = 5, default_value_if("quick", "true", "3"))]
    rounds: usize,
    /// How long one target is measured in one round, in seconds
    #[arg(long, default_value_t = 0.5, default_value_if("quick", "true", "0.3"))]
    seconds: f64,
    /// Keep what an interrupted run of the same commit and the same options has measured, and go on with the rest
    #[arg(long)]
    resume: bool,
    /// Where the results go, as JSON
    #[arg(long, value_name = "FILE", default_value = "bench.json")]
    out: PathBuf,
}

impl Run {
    const fn effort(&self) -> Effort {
        match (self.quick, self.long) {
            (true, _) => Effort::Quick,
            (_, true) => Effort::Long,
            _ => Effort::Usual,
        }
    }

    /// What makes the same run again.
    fn arguments(&self) -> String {
        let only = self.only.iter().map(|only| format!("--only {only:?} "));
        format!("{}{}", only.collect::<String>(), self.terms())
    }

    /// What two runs must have in common whose results stand side by side.
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

    fn wants(&self, name: &str, effort: Effort) -> bool {
        let fits = if self.long { effort == Effort::Long } else { effort <= self.effort() };
        fits && (self.only.is_empty() || self.only.iter().any(|only| name.contains(only)))
    }
}

/// Measures, and keeps the results in a file after each scenario, so that whoever interrupts a long run has them.
///
/// # Errors
/// When nothing is asked for, or the file cannot be written. A target that fails is named in the results.
pub async fn run(run: &Run) -> Result<Results> {
    let began = Instant::now();
    let open_files = raise_open_files();
    let mut results = Results {
        machine: Machine::here(open_files),
        arguments: run.arguments(),
        terms: run.terms(),
        long: run.long,
        whole: run.only.is_empty() && run.targets.is_empty() && run.effort() != Effort::Quick,
        seconds: 0,
        targets: Vec::new(),
        scenarios: Vec::new(),
        sleepers: Vec::new(),
    };
    let mut chosen: Vec<Scenario> = scenario::all(scenario::many(open_files))
        .into_iter()
        .filter(|scenario| run.wants(&scenario.name(), scenario.effort))
        .collect();
    let mut sleeping: Vec<usize> = SLEEPERS
        .iter()
        .filter(|(_, effort)| run.wants(SLEEPING, *effort))
        .map(|(subjects, _)| *subjects)
        .collect();
    if chosen.is_empty() && sleeping.is_empty() {
        bail!("no scenario of this effort has a name with {:?} in it: `list` shows them", run.only);
    }
    if run.resume {
        results.keep(Results::read(&run.out)?)?;
        chosen.retain(|scenario| results.scenario(&scenario.name()).is_none());
        sleeping.retain(|subjects| results.sleepers.iter().all(|kept| kept.subjects != *subjects));
    }
    let earlier_s = results.seconds;
    if !chosen.is_empty() {
        let asleep = chosen.iter().any(|scenario| scenario.needs() == Ability::Sleep);
        let mut running = start_all(run, asleep, &mut results).await?;
        for scenario in &chosen {
            eprintln!("{}", scenario.name());
            let lines = measure(scenario, &mut running, run).await;
            let (family, column) = scenario.place();
            let bytes = scenario.counts_bytes();
            results.scenarios.push(Measured { name: scenario.name(), family, column, bytes, lines });
            results.seconds = earlier_s + began.elapsed().as_secs();
            results.write(&run.out)?;
        }
        results.scenarios.sort_by_key(|measured| scenario::place_of(&measured.name));
    }
    for subjects in sleeping {
        eprintln!("{subjects} {SLEEPING}");
        results.sleepers.push(sleepers::measure(subjects).await?);
        settle_disk();
    }
    results.seconds = earlier_s + began.elapsed().as_secs();
    results.write(&run.out)?;
    Ok(results)
}

/// Starts every target that was asked for. One that cannot be had is named and left out.
async fn start_all(run: &Run, asleep: bool, results: &mut Results) -> Result<Vec<Running>> {
    let names: Vec<&str> = if run.targets.is_empty() {
        targets::NAMES.to_vec()
    } else {
        run.targets.iter().map(String::as_str).collect()
    };
    let mut running = Vec::new();
    for name in names.into_iter().filter(|name| asleep || !targets::ONLY_ASLEEP.contains(name)) {
        match targets::start(name).await {
            Ok(target) => {
                results.tell(name, Outcome::Promises(target.target.promise().to_owned()));
                running.push(target);
            }
            Err(error) => {
                eprintln!("{name} is left out: {error:#}");
                results.tell(name, Outcome::LeftOut(format!("{error:#}")));
            }
        }
    }
    if running.is_empty() {
        bail!("no target could be started");
    }
    Ok(running)
}

/// All rounds of one scenario at every target. In each round another one is the first.
async fn measure(scenario: &Scenario, running: &mut [Running], run: &Run) -> Vec<Line> {
    let mut lines = Vec::new();
    for target in running.iter_mut() {
        let mut line =
            Line { target: target.name.clone(), rounds: BTreeMap::new(), trouble: None, disk_bytes: 0 };
        if let Err(why) = prepare(scenario, target).await {
            line.trouble = Some(format!("{why:#}"));
        }
        lines.push(line);
    }
    settle_disk();
    let lasts = Duration::from_secs_f64(run.seconds);
    let rounds = if scenario.is_done_once() { 1 } else { run.rounds };
    for round in 0..rounds {
        for place in 0..running.len() {
            let place = (place + round) % running.len();
            let (line, target) = (&mut lines[place], &mut running[place]);
            if line.trouble.is_some() {
                continue;
            }
            match deeds::round(scenario.deed, target, round, lasts).await {
                Ok(measured) => drop(line.rounds.insert(round, measured)),
                Err(error) => line.trouble = Some(format!("{error:#}")),
            }
            if round + 1 == rounds {
                line.disk_bytes = target.kept_bytes();
            }
            if scenario.is_done_once()
                && let Err(error) = begin_anew(target).await
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

/// Makes what a scenario needs, in a new instance of the target where the old one keeps a lot.
async fn prepare(scenario: &Scenario, running: &mut Running) -> Result<()> {
    let asleep = scenario.needs() == Ability::Sleep;
    let only_asleep = targets::ONLY_ASLEEP.contains(&running.name.as_str());
    if !running.target.can(scenario.needs()) || only_asleep && !asleep {
        bail!("does not do this");
    }
    // One whose processes have ended is no better.
    let has_grown = running.grown_bytes().map_or(true, |bytes| bytes > GROWS_BYTES);
    let is_full = has_grown || running.kept_bytes() > KEEPS_BYTES;
    // A fleet that wakes what sleeps has to put all it has to sleep first.
    if asleep || is_full {
        begin_anew(running).await?;
    }
    deeds::prepare(scenario.deed, running).await?;
    rounds::become_quiet(&running.target.members()).await?;
    running.note_prepared()
}

async fn begin_anew(running: &mut Running) -> Result<()> {
    *running = targets::start(&running.name).await?;
    Ok(())
}
