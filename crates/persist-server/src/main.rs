//! The program of the persistence server: settings, signals, exit codes.

mod descriptors;
mod signals;

use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use descriptors::OpenSubjects;
use dormouse_bucket::{
    Bucket, MeteredBucket, ObjectStoreBucket, RaceProbe, open_bucket, probe, probe_races, sample_races,
};
use dormouse_bus::nats::{NatsOptions, install_tls_provider};
use dormouse_daemon::start::{configure, end_process, read_args, reject_settings, run_program, run_to_end};
use dormouse_daemon::{ExitReason, MetricsListener};
use dormouse_engine::{Engine, EngineOpenError, EngineSettings, PreparedEngine};
use dormouse_metrics::system::DiskRoom;
use dormouse_persist_server::args::Args;
use dormouse_persist_server::metrics::ServerMetrics;
use dormouse_persist_server::server::{
    ProcessExit, ServeEnd, ServeError, Server, ServerSettings, ServerSide, ServerSides,
};
use dormouse_persist_server::settings::{Settings, hide_secrets};
use dormouse_runtime::{Env, RuntimeThread, Tasks};
use signals::StopRequest;

const PROGRAM: &str = "dormouse-persist-server";

/// How long work that still runs after the shutdown deadline may delay the exit.
const ABANDON_AFTER: Duration = Duration::from_millis(100);

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
    #[cfg(feature = "fail-points")]
    if let Err(fault) = dormouse_runtime::fail_points::arm_from_env() {
        return reject_settings(PROGRAM, &format_args!("DORMOUSE_FAIL_POINTS: {fault}"));
    }
    let listener = match settings.metrics_listen.map(MetricsListener::bind).transpose() {
        Ok(listener) => listener,
        Err(error) => return reject_settings(PROGRAM, &error),
    };
    let open = descriptors::open_subject_limits(settings.max_open);
    log_settings(&settings, open);
    let exit = run_to_end(run(&settings, open, listener), ABANDON_AFTER).unwrap_or_else(|error| {
        tracing::error!(%error, "runtime start failed");
        Err(ExitReason::Failure)
    });
    exit.unwrap_or_else(|exit| exit)
}

/// Logs the effective settings without secrets, and a warning about a memory bucket.
fn log_settings(settings: &Settings, open: OpenSubjects) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        name = %settings.name,
        nats = ?settings.nats.urls,
        bucket = hide_secrets(&settings.bucket),
        data_dir = %settings.data_dir.display(),
        level = %settings.level,
        prefix = %settings.prefix,
        capacity = settings.capacity,
        ship_interval = %humantime::format_duration(settings.ship.ship_interval),
        max_unshipped_age = %humantime::format_duration(settings.ship.max_unshipped_age),
        max_unshipped_bytes = settings.ship.max_unshipped_bytes,
        max_puts_per_second = settings.ship.max_puts_per_second,
        max_log_bytes = settings.ship.max_log_bytes,
        max_local_bytes = settings.max_local_bytes,
        idle_close = %humantime::format_duration(settings.idle_close),
        max_open = open.max,
        open_limit = open.limit,
        max_uploads = settings.max_uploads,
        max_upload_bytes = settings.max_upload_bytes,
        inbox_prefixes = %settings.inbox_prefixes,
        callers = ?settings.callers,
        metrics_listen = ?settings.metrics_listen,
        shutdown_deadline = %humantime::format_duration(settings.shutdown_deadline),
        "starting"
    );
    if settings.bucket.starts_with("memory:") {
        tracing::warn!(impact = "all data is lost when this process ends", "bucket is in memory");
    }
}

async fn run(
    settings: &Settings,
    open: OpenSubjects,
    listener: Option<MetricsListener>,
) -> Result<ExitReason, ExitReason> {
    let env = Env::system();
    let started = env.boot();
    let thread = RuntimeThread::start("control").map_err(|error| {
        tracing::error!(%error, "control thread start failed");
        ExitReason::Failure
    })?;
    let control_env = env.on_thread(&thread);
    let (data_bus_tasks, control_bus_tasks, process_tasks) =
        (env.tasks(), control_env.tasks(), control_env.tasks());
    let stop = StopRequest::listen(&control_env, &process_tasks)
        .await
        .map_err(|error| fail(ExitReason::Failure, "signal handler setup failed", &error))?;
    let metrics = serve_metrics(settings, &control_env, listener, &process_tasks).await?;
    // A process that is not a member owns nothing, so a signal ends it at once.
    let Some(prepared) = stop.or(prepare(settings, open, &env, &metrics)).await else {
        return Ok(ExitReason::Clean);
    };
    let (mut prepared, bucket) = prepared?;
    let mut violation = pin!(watch_contract(&bucket, &env));
    let sides = connect(settings, &env, &data_bus_tasks, &control_env, &control_bus_tasks);
    let Some(sides) = stop.or(sides).await else {
        return Ok(ExitReason::Clean);
    };
    let sides = sides?;
    let mut exit = ExitReason::Clean;
    let server = loop {
        let Some(server) = stop.or(start(settings, started, prepared, &sides, &metrics)).await else {
            return Ok(ExitReason::Clean);
        };
        let mut server = server?;
        let serving = async {
            tokio::select! {
                biased;
                next = serve(&mut server) => next,
                exit = &mut violation => AfterServing::End(exit),
            }
        };
        let reason = match stop.or(serving).await {
            Some(AfterServing::End(ended)) => {
                exit = ended;
                break server;
            }
            Some(AfterServing::Restart(reason)) => reason,
            None => break server,
        };
        let deadline = settings.shutdown_deadline;
        let next = async {
            match reason {
                NewLogReason::TakenOver => server.restart_after_takeover(deadline).await,
                NewLogReason::Drained => server.restart_after_drain(deadline).await,
            }
        };
        match Box::pin(stop.or(next)).await {
            Some(Some(next)) => prepared = next,
            Some(None) => {
                tracing::error!(action = "restart the process", "old log not ended before deadline");
                return Err(ExitReason::Failure);
            }
            None => return Ok(ExitReason::Clean),
        }
    };
    if !server.shutdown(settings.shutdown_deadline).await && exit == ExitReason::Clean {
        exit = ExitReason::Failure;
    }
    drop(sides);
    // The tasks of the connections end after all their users.
    for bus_tasks in [data_bus_tasks, control_bus_tasks] {
        if let Err(unfinished) = bus_tasks.finish(Duration::from_secs(1)).await {
            tracing::warn!(%unfinished, "bus connection not ended before deadline");
        }
    }
    tracing::info!("process ended");
    Ok(exit)
}

/// Serves metrics until the process ends, from before its first contact with the bucket and NATS.
async fn serve_metrics(
    settings: &Settings,
    env: &Env,
    listener: Option<MetricsListener>,
    tasks: &Tasks,
) -> Result<Arc<ServerMetrics>, ExitReason> {
    let room = DiskRoom::default();
    room.watch(settings.data_dir.clone(), env, tasks);
    let metrics = ServerMetrics::new(env, room);
    if let Some(listener) = listener {
        let (text, tasks) = (Arc::clone(&metrics), tasks.clone());
        // The listener belongs to the runtime that it begins in.
        env.run(async move { listener.serve(&tasks, Arc::new(move || text.text())) })
            .await
            .map_err(|error| fail(ExitReason::Failure, "metrics listener failed", &error))?;
    }
    Ok(metrics)
}

fn fail(exit: ExitReason, cause: &str, error: &dyn std::error::Error) -> ExitReason {
    tracing::error!(cause, error = chain(error), "startup failed");
    exit
}

/// Checks that the bucket keeps its contract, and that creates at the same time have one winner.
async fn check_contract(bucket: &ObjectStoreBucket, env: &Env) -> Result<(), ExitReason> {
    let unusable = |error| fail(ExitReason::Bucket, "bucket unusable", &error);
    probe(bucket, env).await.map_err(unusable)?;
    if bucket.is_local() {
        return Ok(());
    }
    match probe_races(bucket, env).await.map_err(unusable)? {
        RaceProbe::Remembered => {}
        RaceProbe::Complete => tracing::info!("concurrent creates of the bucket checked"),
        RaceProbe::Incomplete { races } => {
            tracing::warn!(races, "check of concurrent creates incomplete");
        }
    }
    Ok(())
}

/// Returns once the bucket breaks its contract.
async fn watch_contract(bucket: &ObjectStoreBucket, env: &Env) -> ExitReason {
    if bucket.is_local() {
        return std::future::pending().await;
    }
    let violation = sample_races(bucket, env).await;
    tracing::error!(
        error = %violation,
        impact = "acknowledged writes may be lost",
        action = "use a bucket whose conditional creates are atomic",
        "bucket contract broken"
    );
    ExitReason::Bucket
}

async fn prepare(
    settings: &Settings,
    open: OpenSubjects,
    env: &Env,
    metrics: &ServerMetrics,
) -> Result<(PreparedEngine, Arc<ObjectStoreBucket>), ExitReason> {
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let bucket = open_bucket(&settings.bucket, variables, env.clone())
        .await
        .map_err(|error| fail(ExitReason::Bucket, "bucket unusable", &error))?;
    check_contract(&bucket, env).await?;
    let engine_settings = EngineSettings {
        level: settings.level,
        log: settings.ship.clone(),
        idle_close: settings.idle_close,
        max_open_subjects: open.max,
        open_subjects_limit: Some(open.limit),
        max_local_bytes: settings.max_local_bytes,
        max_uploads: settings.max_uploads,
        max_upload_bytes: settings.max_upload_bytes,
        ..EngineSettings::new(settings.data_dir.clone(), settings.name.clone())
    };
    let bucket = Arc::new(bucket);
    let shared: Arc<dyn Bucket> = Arc::<ObjectStoreBucket>::clone(&bucket);
    let metered = MeteredBucket::new(shared, metrics.bucket().clone(), env.clone());
    let prepared = Engine::prepare(engine_settings, Arc::new(metered), env.clone())
        .await
        .map_err(|error| fail(ExitReason::DataDir, "data directory unusable", &error))?;
    Ok((prepared.measured_by(metrics.engine().clone()), bucket))
}

/// Connects the data side, and then the control side on its own thread.
async fn connect(
    settings: &Settings,
    data: &Env,
    data_tasks: &Tasks,
    control: &Env,
    control_tasks: &Tasks,
) -> Result<ServerSides, ExitReason> {
    let name = format!("dormouse-persist-server {}", settings.name);
    let control_name = format!("{name} control");
    Ok(ServerSides {
        data: connect_side(settings, name, data, data_tasks).await?,
        control: connect_side(settings, control_name, control, control_tasks).await?,
    })
}

async fn connect_side(
    settings: &Settings,
    connection_name: String,
    env: &Env,
    tasks: &Tasks,
) -> Result<ServerSide, ExitReason> {
    let options = NatsOptions { connection_name, retry_on_first_connect: true, ..settings.nats.clone() };
    let (side_env, tasks) = (env.clone(), tasks.clone());
    // The library's tasks run on the runtime that the call runs on.
    let bus = env
        .run(async move { options.connect(side_env, &tasks).await })
        .await
        .map_err(|error| fail(ExitReason::Failure, "NATS connection failed", &error))?;
    Ok(ServerSide { bus: Arc::new(bus), env: env.clone() })
}

async fn start(
    settings: &Settings,
    started: Duration,
    prepared: PreparedEngine,
    sides: &ServerSides,
    metrics: &Arc<ServerMetrics>,
) -> Result<Server, ExitReason> {
    let server_settings = ServerSettings {
        prefix: settings.prefix.clone(),
        capacity: settings.capacity,
        inbox_prefixes: settings.inbox_prefixes.clone(),
        callers: settings.callers,
        tenant_rule: settings.tenant_rule,
        started,
        exit: ProcessExit::new(|| end_process(ExitReason::Failure)),
    };
    let server = Server::start(prepared, server_settings, sides.clone())
        .await
        .map_err(|error| fail(ExitReason::Failure, "subscribe failed", &error))?;
    if let Err(error) = server.publish_metrics(metrics).await {
        tracing::warn!(
            error = chain(&error),
            impact = "the server gives no metrics over NATS",
            action = "permit the route of metrics to the user of the server",
            "metrics route not served"
        );
    }
    Ok(server)
}

/// The next step after serving.
enum AfterServing {
    /// The process ends.
    End(ExitReason),
    /// The process continues with a new log.
    Restart(NewLogReason),
}

/// Why a process continues with a new log.
enum NewLogReason {
    /// Another server has taken its log over.
    TakenOver,
    /// It has handed over all subjects for a drain.
    Drained,
}

/// Serves until the server ends.
async fn serve(server: &mut Server) -> AfterServing {
    match server.ready().await {
        Ok(()) => tracing::info!(log = %server.log(), "ready"),
        Err(error @ ServeError::Refused(_)) => {
            tracing::error!(
                %error,
                action = "check for another server with this name and another data directory",
                "join refused"
            );
            return AfterServing::End(ExitReason::Refused);
        }
        Err(error) => {
            tracing::error!(error = chain(&error), "server not ready");
            let of_data_dir =
                matches!(error, ServeError::Open(EngineOpenError::DataDir(_) | EngineOpenError::Wal(_)));
            return AfterServing::End(if of_data_dir { ExitReason::DataDir } else { ExitReason::Failure });
        }
    }
    let error = match server.ended().await {
        ServeEnd::TakenOver => return AfterServing::Restart(NewLogReason::TakenOver),
        ServeEnd::Drained => return AfterServing::Restart(NewLogReason::Drained),
        ServeEnd::Failed(error) => error,
    };
    tracing::error!(%error, "serving ended");
    AfterServing::End(match *error {
        ServeError::Refused(_) => ExitReason::Refused,
        ServeError::LocalLog => ExitReason::DataDir,
        _ => ExitReason::Failure,
    })
}

/// The error with all its sources.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}
