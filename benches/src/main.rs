//! Comparison of Dormouse with its alternatives: one driver, every target, the same machine in the same run.
//!
//! All targets run at once and take turns within each round, so that a disturbance of the machine affects all of them;
//! ratios are formed within rounds. If a target is missing, lacks a capability, or fails, the results name it.
//!
//! | module | contains |
//! |---|---|
//! | `target`, `targets` | the measured systems, through the client that their users would use |
//! | `scenario`, `operations` | the load on it |
//! | `run` | all scenarios on all targets, in turns |
//! | `load`, `machine` | the clock, and the kernel's figures of processes |
//! | `idle_subjects` | the cost of dormant subjects: a measurement of Dormouse alone |
//! | `greedy` | a polite tenant beside greedy ones: a measurement of Dormouse alone |
//! | `results`, `goals`, `report`, `plots` | the storage, judgement, tables and charts of the figures |

mod goals;
mod greedy;
mod idle_subjects;
mod load;
mod machine;
mod numbers;
mod operations;
mod plots;
mod report;
mod results;
mod run;
mod scenario;
mod target;
mod targets;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use dormouse_e2e::greedy::Aggressor;
use tokio::signal::unix::{SignalKind, signal};

use crate::results::Results;

/// Compares Dormouse with its peers.
#[derive(Debug, Parser)]
#[command(name = "dormouse-bench", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures, prints the tables, and writes the results to a file
    Run(run::RunPlan),
    /// Writes the tables of a results file into a document, and its charts beside it
    Report {
        /// The results file of `run`
        results: PathBuf,
        /// The folder of the documents `peers.md` and `long.md`; the text between the marks of such a run is replaced,
        /// and the charts go into a folder beside it
        folder: PathBuf,
        /// Writes an incomplete measurement too; then the document has only the measured part
        #[arg(long)]
        part: bool,
    },
    /// Lists the scenarios and the targets
    List,
    /// Runs the responder of the target `echo`
    #[command(hide = true)]
    Respond {
        /// The address of NATS
        url: String,
    },
}

fn main() -> Result<()> {
    let args = Args::parse();
    // One thread: the driver is the client, and the servers need the cores.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    match args.command {
        Command::Run(wanted) => {
            let results = local.block_on(&runtime, unless_interrupted(run::run(&wanted)))?;
            println!("{}", report::tables(&results)?);
            Ok(())
        }
        Command::Report { results, folder, part } => {
            let results = Results::read(&results)?;
            if results.whole || part {
                return report::write(&results, &folder);
            }
            let document = folder.join(report::document_name(&results));
            println!("{} is unchanged: the measurement is incomplete", document.display());
            Ok(())
        }
        Command::List => {
            scenario::all(scenario::MANY).iter().for_each(|scenario| println!("{}", scenario.name()));
            Aggressor::ALL.iter().for_each(|aggressor| println!("{}", run::greedy_name(*aggressor)));
            println!("\ntargets: {}", targets::NAMES.join(", "));
            Ok(())
        }
        Command::Respond { url } => local.block_on(&runtime, targets::respond(&url)),
    }
}

/// Ctrl-C and SIGTERM end a run like an error: its processes are killed, and its folders are removed.
async fn unless_interrupted(run: impl Future<Output = Result<Results>>) -> Result<Results> {
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        biased;
        results = run => results,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminated.recv() => bail!("interrupted"),
    }
}
