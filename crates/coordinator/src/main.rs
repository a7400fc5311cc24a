//! `dormouse-coordinator`: the program around the library.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use dormouse_bus::Bus;
use dormouse_bus::nats::{NatsBus, install_tls_provider};
use dormouse_coordinator::Coordinator;
use dormouse_coordinator::args::Args;
use dormouse_coordinator::data_dir::{DataDir, DataDirError};
use dormouse_coordinator::settings::Settings;
use dormouse_coordinator::store::sled_store::{OpenError, SledStore};
use dormouse_runtime::{Env, Tasks, logging};
use tokio::signal::unix::{Signal, SignalKind, signal};

// What `--help` promises.
const FAILED: u8 = 1;
const WRONG_SETTINGS: u8 = 2;
const NO_DATA_DIR: u8 = 4;
const STOPPED_HARD: u8 = 130;

fn main() -> ExitCode {
    install_tls_provider();
    let args = Args::parse();
    let settings = match Settings::resolve(&args) {
        Ok(settings) => settings,
        Err(faults) => return wrong_settings(&faults),
    };
    if let Err(error) = logging::init(settings.log_format, &settings.log) {
        return wrong_settings(&format!("--log: {error}"));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            return ExitCode::from(FAILED);
        }
    };
    let code = match runtime.block_on(run(settings)) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            exit_code_of(&error)
        }
    };
    // A flush that hangs must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

fn wrong_settings(fault: &dyn std::fmt::Display) -> ExitCode {
    // The log is not there yet, and these lines are for whoever typed the command.
    eprintln!("dormouse-coordinator: {fault}");
    ExitCode::from(WRONG_SETTINGS)
}

fn exit_code_of(error: &anyhow::Error) -> ExitCode {
    let data_dir = error.is::<DataDirError>() || error.is::<OpenError>();
    ExitCode::from(if data_dir { NO_DATA_DIR } else { FAILED })
}

async fn run(settings: Settings) -> anyhow::Result<ExitCode> {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), ?settings, "starting");
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    let env = Env::system();
    // Held until the very end: nobody else may have the directory while anything of ours could still write to it.
    let data_dir = DataDir::open(&settings.data_dir)?;
    let (state, ulid) = (data_dir.state(), env.ulid());
    let store = Arc::new(env.blocking(move || SledStore::open_or_set_aside(&state, ulid)).await?);
    let (tasks, bus_tasks) = (env.tasks(), env.tasks());
    let bus: Arc<NatsBus> = tokio::select! {
        biased;
        name = signals.next() => {
            tracing::info!(signal = name, "stopped before there was a connection");
            return Ok(ExitCode::SUCCESS);
        }
        bus = settings.nats.connect(env.clone(), &bus_tasks) => Arc::new(bus?),
    };
    let dyn_bus: Arc<dyn Bus> = Arc::<NatsBus>::clone(&bus);
    // NATS may go away again before the subscriptions are in force; a signal ends that wait, too.
    let mut coordinator = tokio::select! {
        biased;
        name = signals.next() => {
            tracing::info!(signal = name, "stopped before it was ready");
            return Ok(ExitCode::SUCCESS);
        }
        started = Coordinator::start(settings.coordinator.clone(), store, dyn_bus, env, &tasks) => started?,
    };
    tracing::info!(coordinates = coordinator.coordinates(), "ready");
    tokio::select! {
        biased;
        ended = coordinator.ended() => {
            ended.context("the coordinator ended")?;
            anyhow::bail!("the coordinator ended though nobody had asked it to");
        }
        name = signals.next() => tracing::info!(signal = name, "stopping"),
    }
    tokio::select! {
        biased;
        () = shut_down(&*bus, &tasks, &bus_tasks, settings.shutdown_deadline) => {}
        name = signals.next() => {
            tracing::warn!(signal = name, "stopped before the shutdown was complete");
            return Ok(ExitCode::from(STOPPED_HARD));
        }
    }
    // Whether the last batch could be committed; what hangs was given its time above.
    match tokio::time::timeout(Duration::ZERO, coordinator.ended()).await {
        Ok(ended) => ended.context("the coordinator ended")?,
        Err(_) => anyhow::bail!("given up: the coordinator's task did not end"),
    }
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Answers what has arrived, then lets go of the connection. Each step has a third of the deadline.
async fn shut_down(bus: &dyn Bus, tasks: &Tasks, bus_tasks: &Tasks, deadline: Duration) {
    let step = deadline / 3;
    if let Err(unfinished) = tasks.finish(step).await {
        tracing::warn!(%unfinished, "not everything stopped in time");
    }
    if tokio::time::timeout(step, bus.close()).await.is_err() {
        tracing::warn!("the connection to NATS could not be closed in time");
    }
    if let Err(unfinished) = bus_tasks.finish(step).await {
        tracing::warn!(%unfinished, "the connection to NATS did not end in time");
    }
}

/// The signals that ask a program to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
