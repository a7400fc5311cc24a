//! `dormouse-sim`: runs seeds, or replays one.

use std::process::ExitCode;
use std::time::Instant;

use dormouse_runtime::injected_bugs::InjectedBug;
use dormouse_sim::soak::soak;
use dormouse_sim::{Profile, run};

const USAGE: &str = "\
dormouse-sim soak --seeds N [--start K] [--profile NAME] [--threads N] [--keep-going] [--mutation NAME]
dormouse-sim replay SEED [--profile NAME] [--trace] [--log FILTER] [--mutation NAME]
dormouse-sim mutations [--seeds N] [--start K] [--threads N]      after how many seeds each bug is found

Profiles: standard, destroys, overtaken, greedy, two-coordinators, clock-drift, stale-list";

struct Args(Vec<String>);

impl Args {
    fn flag(&mut self, name: &str) -> bool {
        let index = self.0.iter().position(|word| word == name);
        index.map(|index| self.0.remove(index)).is_some()
    }

    fn option(&mut self, name: &str) -> Option<String> {
        let index = self.0.iter().position(|word| word == name)?;
        (index + 1 < self.0.len()).then(|| {
            self.0.remove(index);
            self.0.remove(index)
        })
    }

    fn number(&mut self, name: &str) -> Option<u64> {
        self.option(name)?.parse().ok()
    }
}

fn main() -> ExitCode {
    let mut args = Args(std::env::args().skip(1).collect());
    let name = args.option("--profile").unwrap_or_else(|| Profile::Standard.as_str().to_owned());
    let Some(profile) = Profile::of_name(&name) else { return usage() };
    let bug = match args.option("--mutation") {
        None => None,
        Some(name) => match InjectedBug::ALL.into_iter().find(|bug| bug.as_str() == name) {
            None => return usage(),
            found => found,
        },
    };
    match args.0.first().map(String::as_str) {
        Some("soak") => many(&mut args, profile, bug),
        Some("replay") => one(&mut args, profile, bug),
        Some("mutations") => every_mutation(&mut args, profile),
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn one(args: &mut Args, profile: Profile, bug: Option<InjectedBug>) -> ExitCode {
    let trace = args.flag("--trace");
    if let Some(filter) = args.option("--log")
        && let Err(error) = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
            .with_writer(std::io::stderr)
            .without_time()
            .try_init()
    {
        eprintln!("dormouse-sim: {error}");
    }
    let Some(seed) = args.0.get(1).and_then(|word| word.parse().ok()) else { return usage() };
    let report = run(seed, profile, bug, trace);
    if trace {
        print!("{}", report.text);
    }
    for (what, times) in &report.counts {
        println!("{times:>8} {what}");
    }
    println!("{:?}", report.digest);
    report.violations.iter().for_each(|violation| println!("{violation}"));
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

// The only place that measures the run time in real time.
#[expect(clippy::disallowed_methods)]
fn many(args: &mut Args, profile: Profile, bug: Option<InjectedBug>) -> ExitCode {
    let (seeds, start) = (args.number("--seeds"), args.number("--start").unwrap_or(0));
    let Some(seeds) = seeds else { return usage() };
    let threads = threads(args);
    let keep_going = args.flag("--keep-going");
    let began = Instant::now();
    let summary = soak(start..start + seeds, profile, bug, threads, |report| {
        if !report.violations.is_empty() {
            println!("seed {} ({}):", report.seed, profile.as_str());
            report.violations.iter().for_each(|violation| println!("  {violation}"));
            println!(
                "  replay: cargo run -p dormouse-sim -- replay {} --profile {} --trace",
                report.seed,
                profile.as_str()
            );
        }
        keep_going || report.violations.is_empty()
    });
    for (what, times) in &summary.counts {
        println!("{times:>12} {what}");
    }
    let seconds = began.elapsed().as_secs_f64();
    let rate = summary.runs as f64 / seconds * 60.0;
    println!(
        "{}: {} seeds from {start}, {} failed {:?}; {rate:.0} seeds per minute",
        profile.as_str(),
        summary.runs,
        summary.failed.len(),
        summary.failed.keys().collect::<Vec<_>>()
    );
    if summary.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints for each bug the number of seeds until it was found, and the first violation. Fails if a bug was not found.
fn every_mutation(args: &mut Args, profile: Profile) -> ExitCode {
    let (seeds, start) = (args.number("--seeds").unwrap_or(2_000), args.number("--start").unwrap_or(0));
    let threads = threads(args);
    let mut missed = Vec::new();
    for bug in InjectedBug::ALL {
        let profile = Profile::that_shows(bug).unwrap_or(profile);
        let summary =
            soak(start..start + seeds, profile, Some(bug), threads, |report| report.violations.is_empty());
        match summary.failed.first_key_value() {
            Some((seed, report)) => {
                let first_line = report.violations.first().and_then(|violation| violation.lines().next());
                println!(
                    "{:24} {:>6} seeds  {}",
                    bug.as_str(),
                    seed - start + 1,
                    first_line.unwrap_or_default()
                );
            }
            None => {
                println!("{:24} not found in {seeds} seeds", bug.as_str());
                missed.push(bug.as_str());
            }
        }
    }
    println!("{} of {} bugs found", InjectedBug::ALL.len() - missed.len(), InjectedBug::ALL.len());
    if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn threads(args: &mut Args) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    args.number("--threads").and_then(|threads| threads.try_into().ok()).unwrap_or(cores)
}
