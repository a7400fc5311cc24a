//! `dormouse-coordinator`: the program around the library.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use dormouse_bus::Bus;
use dormouse_bus::nats::{NatsBus, install_tls_provider};
use dormouse_coordinator::Coordinator;
use dormouse_coordinator::args::Args;
use dormouse_coordinator::data_dir::{CoordinatorDataDir, CoordinatorDataDirError};
use dormouse_coordinator::metrics::CoordinatorMetrics;
use dormouse_coordinator::settings::Settings;
use dormouse_coordinator::store::sled_store::{OpenError, SledStore};
use dormouse_daemon::start::{configure, read_args, reject_settings, run_program, run_to_end};
use dormouse_daemon::{ExitReason, MetricsListener, StopSignals};
use dormouse_metrics::system::DiskRoom;
use dormouse_runtime::{Env, Tasks};

const PROGRAM: &str = "dormouse-coordinator";

/// How long a flush that hangs may keep the process alive.
const ABANDON_AFTER: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    run_program(program)
}

fn program() -> ExitReason {
    install_tls_provider();
    let resolved = Settings::resolve(&read_args::<Args>());
    let settings = match configure(PROGRAM, resolved, |settings| (settings.log_format, &settings.log)) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    let listener = match settings.metrics_listen.map(MetricsListener::bind).transpose() {
        Ok(listener) => listener,
        Err(error) => return reject_settings(PROGRAM, &error),
    };
    // The reason is logged before the runtime waits for abandoned work.
    let work = async {
        run(settings, listener).await.unwrap_or_else(|error| {
            tracing::error!(error = %format_args!("{error:#}"), "coordinator failed");
            exit_reason_of(&error)
        })
    };
    run_to_end(work, ABANDON_AFTER).unwrap_or_else(|error| {
        tracing::error!(%error, "runtime start failed");
        ExitReason::Failure
    })
}

fn exit_reason_of(error: &anyhow::Error) -> ExitReason {
    let data_dir = error.is::<CoordinatorDataDirError>() || error.is::<OpenError>();
    if data_dir { ExitReason::DataDir } else { ExitReason::Failure }
}

async fn run(settings: Settings, listener: Option<MetricsListener>) -> anyhow::Result<ExitReason> {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), ?settings, "starting");
    let mut signals = StopSignals::listen().context("cannot listen for signals")?;
    let env = Env::system();
    // Locked until the end of the function: no other process may use the directory while this one could still write.
    let data_dir = CoordinatorDataDir::open(&settings.data_dir)?;
    let (state, ulid) = (data_dir.state(), env.ulid());
    let store = Arc::new(env.blocking(move || SledStore::open_or_quarantine(&state, ulid)).await?);
    let (tasks, bus_tasks, metrics_tasks) = (env.tasks(), env.tasks(), env.tasks());
    let room = DiskRoom::default();
    room.watch(settings.data_dir.clone(), &env, &metrics_tasks);
    let metrics = CoordinatorMetrics::new(&env, room);
    if let Some(listener) = listener {
        let text = Arc::clone(&metrics);
        listener.serve(&metrics_tasks, Arc::new(move || text.text())).context("metrics listener failed")?;
    }
    let bus: Arc<NatsBus> = match signals.or(settings.nats.connect(env.clone(), &bus_tasks)).await {
        Ok(bus) => Arc::new(bus?),
        Err(name) => {
            tracing::info!(signal = name, "stopped before connecting to NATS");
            return Ok(ExitReason::Clean);
        }
    };
    let dyn_bus: Arc<dyn Bus> = Arc::<NatsBus>::clone(&bus);
    // NATS may disconnect again before the subscriptions are active; a signal also ends that wait.
    let options = settings.coordinator.clone();
    let start = Coordinator::start_measured(options, store, dyn_bus, env, &tasks, Some(&metrics));
    let mut coordinator = match signals.or(start).await {
        Ok(started) => started?,
        Err(name) => {
            tracing::info!(signal = name, "stopped before ready");
            return Ok(ExitReason::Clean);
        }
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
            return Ok(ExitReason::SecondSignal);
        }
    }
    // Reports whether the last batch was committed. The deadline for a hanging task has passed above.
    match tokio::time::timeout(Duration::ZERO, coordinator.ended()).await {
        Ok(ended) => ended.context("the coordinator ended")?,
        Err(_) => anyhow::bail!("shutdown deadline exceeded: the coordinator task did not end"),
    }
    tracing::info!("stopped");
    Ok(ExitReason::Clean)
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
