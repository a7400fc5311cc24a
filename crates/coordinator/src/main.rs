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
use dormouse_coordinator::data_dir::{CoordinatorDataDir, CoordinatorDataDirError};
use dormouse_coordinator::settings::Settings;
use dormouse_coordinator::store::sled_store::{OpenError, SledStore};
use dormouse_runtime::{Env, Tasks, logging};
use tokio::signal::unix::{Signal, SignalKind, signal};

// The exit codes listed in `--help`.
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
            tracing::error!(%error, "runtime start failed");
            return ExitCode::from(FAILED);
        }
    };
    let code = match runtime.block_on(run(settings)) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!(error = %format_args!("{error:#}"), "coordinator failed");
            exit_code_of(&error)
        }
    };
    // A flush that hangs must not keep the process alive.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

fn wrong_settings(fault: &dyn std::fmt::Display) -> ExitCode {
    // Logging is not set up yet, and these lines are for the user of the command line.
    eprintln!("dormouse-coordinator: {fault}");
    ExitCode::from(WRONG_SETTINGS)
}

fn exit_code_of(error: &anyhow::Error) -> ExitCode {
    let data_dir = error.is::<CoordinatorDataDirError>() || error.is::<OpenError>();
    ExitCode::from(if data_dir { NO_DATA_DIR } else { FAILED })
}

async fn run(settings: Settings) -> anyhow::Result<ExitCode> {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), ?settings, "starting");
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    let env = Env::system();
    // Locked until the end of the function: no other process may use the directory while this one could still write.
    let data_dir = CoordinatorDataDir::open(&settings.data_dir)?;
    let (state, ulid) = (data_dir.state(), env.ulid());
    let store = Arc::new(env.blocking(move || SledStore::open_or_quarantine(&state, ulid)).await?);
    let (tasks, bus_tasks) = (env.tasks(), env.tasks());
    let bus: Arc<NatsBus> = tokio::select! {
        biased;
        name = signals.next() => {
            tracing::info!(signal = name, "stopped before connecting to NATS");
            return Ok(ExitCode::SUCCESS);
        }
        bus = settings.nats.connect(env.clone(), &bus_tasks) => Arc::new(bus?),
    };
    let dyn_bus: Arc<dyn Bus> = Arc::<NatsBus>::clone(&bus);
    // NATS may disconnect again before the subscriptions are active; a signal also ends that wait.
    let mut coordinator = tokio::select! {
        biased;
        name = signals.next() => {
            tracing::info!(signal = name, "stopped before ready");
            return Ok(ExitCode::SUCCESS);
        }
        started = Coordinator::start(settings.coordinator.clone(), store, dyn_bus, env, &tasks) => started?,
    };
    tracing::info!(active = coordinator.is_active(), "ready");
    tokio::select! {
        biased;
        ended = coordinator.ended() => {
            ended.context("the coordinator ended")?;
            anyhow::bail!("the coordinator task ended without a stop signal");
        }
        name = signals.next() => tracing::info!(signal = name, "stop signal received"),
    }
    tokio::select! {
        biased;
        () = shut_down(&*bus, &tasks, &bus_tasks, settings.shutdown_deadline) => {}
        name = signals.next() => {
            tracing::warn!(signal = name, "second signal received, aborting");
            return Ok(ExitCode::from(STOPPED_HARD));
        }
    }
    // Reports whether the last batch was committed. The deadline for a hanging task has passed above.
    match tokio::time::timeout(Duration::ZERO, coordinator.ended()).await {
        Ok(ended) => ended.context("the coordinator ended")?,
        Err(_) => anyhow::bail!("shutdown deadline exceeded: the coordinator task did not end"),
    }
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Answers the requests that have arrived, then closes the connection. Each step has a third of the deadline.
async fn shut_down(bus: &dyn Bus, tasks: &Tasks, bus_tasks: &Tasks, deadline: Duration) {
    let step = deadline / 3;
    if let Err(unfinished) = tasks.finish(step).await {
        tracing::warn!(%unfinished, "tasks not stopped before deadline");
    }
    if tokio::time::timeout(step, bus.close()).await.is_err() {
        tracing::warn!("NATS connection not closed before deadline");
    }
    if let Err(unfinished) = bus_tasks.finish(step).await {
        tracing::warn!(%unfinished, "NATS tasks not stopped before deadline");
    }
}

/// The signals that request a stop: SIGTERM and SIGINT.
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
