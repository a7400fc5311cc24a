//! The main job of Dormouse on this machine's own data, with a server killed half-way: `make demo`.
//!
//! Every package of the Debian package database becomes an entry of a key-value store per section. A real log becomes a
//! stream with a live watcher. The demo reads everything back and compares it byte for byte, before and after it kills
//! the server that owns the stream. It exits with 0 only if everything matched.

mod bucket;
mod fleet;
mod input;
mod report;
mod steps;
mod watcher;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Parser;
use dormouse_bus::nats::install_tls_provider;
use dormouse_client::Client;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::fleet::DevFleet;
use crate::input::DemoInput;
use crate::report::{Report, Stopwatch};

/// Stores this machine's package database, kills a server, and checks every byte.
#[derive(Debug, Parser)]
struct Args {
    /// The package database
    #[arg(long, default_value = "/var/lib/dpkg/status")]
    packages: PathBuf,

    /// The log that becomes a stream [default: /var/log/dpkg.log, or another log of this machine]
    #[arg(long)]
    log: Option<PathBuf>,

    /// The number of writes in flight
    #[arg(long, default_value_t = 128)]
    in_flight: usize,

    /// Keep the fleet's data directory
    #[arg(long)]
    keep: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    install_tls_provider();
    match run(&Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> anyhow::Result<()> {
    let input = DemoInput::read(&args.packages, args.log.as_deref())?;
    println!(
        "{} packages in {} sections from {}, {} lines from {}",
        input.packages(),
        input.stores.len(),
        args.packages.display(),
        input.lines.len(),
        input.log.display()
    );
    // The handlers are set before the fleet starts, so that a signal during the start stops the fleet too.
    let mut interrupts = Interrupts::listen()?;
    let mut fleet = DevFleet::start(args.keep).await?;
    // The fleet has its own process group: Ctrl-C does not reach it, so the demo stops it.
    let outcome = tokio::select! {
        outcome = show(args, &input, &mut fleet) => outcome,
        () = interrupts.next() => Err(anyhow!("interrupted; stopping the fleet")),
    };
    let stopped = fleet.stop().await;
    // A graceful stop releases every subject, so the bucket has a snapshot of each.
    let shown = match outcome.and_then(|report| stopped.and_then(|()| Ok((report, fleet.bucket_dir()?)))) {
        Ok((mut report, folder)) => bucket::list(&folder, &input).await.map(|files| {
            report.files = files;
            report
        }),
        Err(error) => Err(error),
    };
    match shown {
        Ok(report) => {
            println!("\n{}", report.table());
            println!("Everything matched, byte for byte.");
            Ok(())
        }
        Err(error) => {
            eprintln!("\n──── the end of the fleet's log ────\n{}", fleet.log_tail());
            Err(error)
        }
    }
}

/// The signals that request an exit. While they are handled, they do not end the process.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Interrupts {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal, including one that came earlier.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

async fn show(args: &Args, input: &DemoInput, fleet: &mut DevFleet) -> anyhow::Result<Report> {
    let mut report = Report::new(input);
    let client = Client::connect(&fleet.file.url).await.context("cannot connect to the fleet")?;
    let (before, after) = input.lines.split_at(input.lines.len() * 9 / 10);
    let mut watcher = watcher::follow(&client, input, before.len()).await?;

    let clock = Stopwatch::start();
    steps::put_packages(&client, input, args.in_flight).await?;
    let last = steps::publish_lines(&client, before).await?;
    report.write_seconds = clock.seconds();

    let clock = Stopwatch::start();
    steps::check_packages(&client, input, "reading the packages back").await?;
    steps::check_lines(&client, before, "reading the log back").await?;
    report.read_seconds = clock.seconds();

    watcher.has_seen(before.len()).await?;
    report.failover_seconds = steps::failover(&client, fleet, &after[0], last).await?;
    steps::publish_lines(&client, &after[1..]).await?;
    steps::check_packages(&client, input, "reading the packages again").await?;
    steps::check_lines(&client, &input.lines, "reading the log again").await?;
    report.watched = watcher.finish().await?;

    client.close().await;
    Ok(report)
}
