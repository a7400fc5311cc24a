//! Dormouse beside what one could use instead: one driver, every target, the same machine in the same run.
//!
//! All targets run at once and take turns within each round, so that a disturbance of the machine hits them alike; ratios
//! are formed within rounds. A target that is missing, cannot do a thing, or fails at it, is named in the results.
//!
//! | module | holds |
//! |---|---|
//! | `target`, `targets` | what is measured, through the client that its users would use |
//! | `scenario`, `deeds` | what is done to it |
//! | `run` | all scenarios at all targets, in turns |
//! | `load`, `machine` | the clock, and what the kernel knows of processes |
//! | `sleepers` | what sleeping subjects cost: a measurement of Dormouse alone |
//! | `results`, `goals`, `report`, `plots` | figures kept, judged, written and drawn |

mod deeds;
mod goals;
mod load;
mod machine;
mod numbers;
mod plots;
mod report;
mod results;
mod run;
mod scenario;
mod sleepers;
mod target;
mod targets;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::results::Results;

/// Measures Dormouse beside its peers.
#[derive(Debug, Parser)]
#[command(name = "dormouse-bench", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures, prints the tables, and keeps what was measured in a file
    Run(run::Run),
    /// Puts the tables of a file that `run` wrote into a document, and its drawings beside it
    Report {
        /// What `run` wrote
        results: PathBuf,
        /// The document; what stands between the marks of such a run is replaced, and drawings go into a folder beside it
        document: PathBuf,
        /// Also when not everything was measured that belongs there: then only what was measured stands there
        #[arg(long)]
        part: bool,
    },
    /// Lists the scenarios and the targets
    List,
    /// What the target `echo` runs beside itself
    #[command(hide = true)]
    Respond {
        /// Where NATS is
        url: String,
    },
}

fn main() -> Result<()> {
    let args = Args::parse();
    // One thread: it is the client that measures, and the cores belong to the servers as well.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    match args.command {
        Command::Run(wanted) => {
            let results = local.block_on(&runtime, unless_interrupted(run::run(&wanted)))?;
            println!("{}", report::tables(&results)?);
            Ok(())
        }
        Command::Report { results, document, part } => {
            let results = Results::read(&results)?;
            if results.whole || part {
                return report::write(&results, &document);
            }
            println!("{} stays as it is: not everything was measured that belongs there", document.display());
            Ok(())
        }
        Command::List => {
            scenario::all(scenario::MANY).iter().for_each(|scenario| println!("{}", scenario.name()));
            println!("\ntargets: {}", targets::NAMES.join(", "));
            Ok(())
        }
        Command::Respond { url } => local.block_on(&runtime, targets::respond(&url)),
    }
}

/// Ctrl-C and SIGTERM end a run as an error does: what it started is killed, and its folders go.
async fn unless_interrupted(run: impl Future<Output = Result<Results>>) -> Result<Results> {
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        biased;
        results = run => results,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminated.recv() => bail!("interrupted"),
    }
}
