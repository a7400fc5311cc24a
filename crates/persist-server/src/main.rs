//! The persistence server's program: settings, signals, exit codes.

mod descriptors;

use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use descriptors::OpenSubjects;
use dormouse_bus::Bus;
use dormouse_bus::nats::{NatsOptions, install_tls_provider};
use dormouse_persist_server::args::Args;
use dormouse_persist_server::server::{Ended, ServeError, Server, ServerSettings};
use dormouse_persist_server::settings::{Settings, hide_secrets};
use dormouse_runtime::{Env, Tasks, logging};
use dormouse_storage::bucket::{open_bucket, probe};
use dormouse_storage::{Engine, EngineSettings, OpenError, Prepared};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Why the process ends, as the code documented in `--help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    AsAsked = 0,
    Failure = 1,
    Settings = 2,
    Bucket = 3,
    DataDir = 4,
    Refused = 5,
    SecondSignal = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

fn main() -> ExitCode {
    install_tls_provider();
    let settings = match Settings::resolve(&Args::parse()) {
        Ok(settings) => settings,
        Err(faults) => {
            eprintln!("dormouse-persist-server: {faults}");
            return Exit::Settings.into();
        }
    };
    if let Err(error) = logging::init(settings.log_format, &settings.log) {
        eprintln!("dormouse-persist-server: --log: {error}");
        return Exit::Settings.into();
    }
    #[cfg(feature = "fail-points")]
    if let Err(fault) = arm_fail_points() {
        eprintln!("dormouse-persist-server: DORMOUSE_FAIL_POINTS: {fault}");
        return Exit::Settings.into();
    }
    let open = descriptors::subjects_to_hold(settings.max_open);
    tell(&settings, open);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return Exit::Failure.into();
        }
    };
    let exit = runtime.block_on(run(&settings, open)).unwrap_or_else(|exit| exit);
    // What still runs after a shutdown that had its deadline must not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(100));
    exit.into()
}

/// Has the process die or stand still where a test wants it to; see `dormouse_storage::fail_points`.
#[cfg(feature = "fail-points")]
fn arm_fail_points() -> Result<(), String> {
    use dormouse_storage::fail_points::{Armed, arm};

    let Ok(points) = std::env::var("DORMOUSE_FAIL_POINTS") else { return Ok(()) };
    let seed = std::env::var("DORMOUSE_FAIL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    arm(Armed::read(&points, seed, std::env::var_os("DORMOUSE_FAIL_WHILE").map(Into::into))?);
    tracing::warn!(points, seed, "fail points are armed: this process is there to die");
    Ok(())
}

/// The effective settings, without secrets, and what an operator should know about them.
fn tell(settings: &Settings, open: OpenSubjects) {
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
        max_local_bytes = settings.max_local_bytes,
        idle_close = %humantime::format_duration(settings.idle_close),
        max_open = open.max,
        open_limit = open.limit,
        max_uploads = settings.max_uploads,
        max_upload_bytes = settings.max_upload_bytes,
        inbox_prefixes = %settings.inbox_prefixes,
        callers = ?settings.callers,
        shutdown_deadline = %humantime::format_duration(settings.shutdown_deadline),
        "starting"
    );
    if settings.bucket.starts_with("memory:") {
        tracing::warn!("the bucket is in the memory of this process: everything is lost when it ends");
    }
}

/// The two signals that ask the process to end.
struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl EndSignals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// What `work` results in, unless a signal comes first.
    async fn or<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.next() => None,
            done = work => Some(done),
        }
    }
}

async fn run(settings: &Settings, open: OpenSubjects) -> Result<Exit, Exit> {
    let mut signals = EndSignals::new().map_err(|error| {
        tracing::error!(%error, "cannot listen for signals");
        Exit::Failure
    })?;
    let env = Env::system();
    let started = env.boot();
    let bus_tasks = env.tasks();
    // Until it is a member nothing is in this process's hands, so a signal ends it at once.
    let Some(prepared) = signals.or(prepare(settings, open, &env, &bus_tasks)).await else {
        return Ok(Exit::AsAsked);
    };
    let (mut prepared, bus) = prepared?;
    let mut exit = Exit::AsAsked;
    let server = loop {
        let Some(server) = signals.or(start(settings, started, prepared, &bus, &env)).await else {
            return Ok(Exit::AsAsked);
        };
        let mut server = server?;
        let renewal = match signals.or(serve(&mut server)).await {
            Some(Next::End(ended)) => {
                exit = ended;
                break server;
            }
            Some(Next::GoOn(renewal)) => renewal,
            None => {
                tracing::info!("asked to end");
                break server;
            }
        };
        let deadline = settings.shutdown_deadline;
        let next = async {
            match renewal {
                Renewal::TakenOver => server.succeed(deadline).await,
                Renewal::Emptied => server.begin_anew(deadline).await,
            }
        };
        match Box::pin(signals.or(next)).await {
            Some(Some(next)) => prepared = next,
            Some(None) => {
                tracing::error!("what was under way did not end: the process has to be started again");
                return Err(Exit::Failure);
            }
            None => return Ok(Exit::AsAsked),
        }
    };
    match signals.or(server.shutdown(settings.shutdown_deadline)).await {
        None => {
            tracing::warn!("asked again: ending at once");
            return Err(Exit::SecondSignal);
        }
        Some(false) if exit == Exit::AsAsked => exit = Exit::Failure,
        Some(_) => {}
    }
    // The connection's own tasks end after everything that used it.
    if let Err(unfinished) = bus_tasks.finish(Duration::from_secs(1)).await {
        tracing::warn!(%unfinished, "the connection: stopped waiting");
    }
    tracing::info!("ended");
    Ok(exit)
}

fn fail(exit: Exit, what: &str, error: &dyn std::error::Error) -> Exit {
    tracing::error!(error = chain(error), "{what}");
    exit
}

async fn prepare(
    settings: &Settings,
    open: OpenSubjects,
    env: &Env,
    bus_tasks: &Tasks,
) -> Result<(Prepared, Arc<dyn Bus>), Exit> {
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let bucket = open_bucket(&settings.bucket, variables, env.clone())
        .await
        .map_err(|error| fail(Exit::Bucket, "the bucket cannot be used", &error))?;
    probe(&bucket, env).await.map_err(|error| fail(Exit::Bucket, "the bucket cannot be used", &error))?;
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
    let prepared = Engine::prepare(engine_settings, Arc::new(bucket), env.clone())
        .await
        .map_err(|error| fail(Exit::DataDir, "the data directory cannot be used", &error))?;
    let options = NatsOptions {
        connection_name: format!("dormouse-persist-server {}", settings.name),
        retry_on_first_connect: true,
        ..settings.nats.clone()
    };
    let bus = options
        .connect(env.clone(), bus_tasks)
        .await
        .map_err(|error| fail(Exit::Failure, "cannot connect to NATS", &error))?;
    Ok((prepared, Arc::new(bus)))
}

async fn start(
    settings: &Settings,
    started: Duration,
    prepared: Prepared,
    bus: &Arc<dyn Bus>,
    env: &Env,
) -> Result<Server, Exit> {
    let server_settings = ServerSettings {
        prefix: settings.prefix.clone(),
        capacity: settings.capacity,
        inbox_prefixes: settings.inbox_prefixes.clone(),
        callers: settings.callers,
        started,
    };
    Server::start(prepared, server_settings, Arc::clone(bus), env.clone())
        .await
        .map_err(|error| fail(Exit::Failure, "cannot listen", &error))
}

/// What comes after serving.
enum Next {
    /// The process ends.
    End(Exit),
    /// It goes on with a fresh log.
    GoOn(Renewal),
}

/// Why a process goes on with a fresh log.
enum Renewal {
    /// Somebody else has taken over the one it had.
    TakenOver,
    /// It has handed over everything.
    Emptied,
}

/// Serves until that is no longer possible.
async fn serve(server: &mut Server) -> Next {
    match server.ready().await {
        Ok(()) => tracing::info!(log = %server.log(), "ready"),
        Err(error @ ServeError::Refused(_)) => {
            tracing::error!(%error, "is another server with this name running, with another data directory?");
            return Next::End(Exit::Refused);
        }
        Err(error) => {
            tracing::error!(error = chain(&error), "cannot serve");
            let of_data_dir = matches!(error, ServeError::Open(OpenError::DataDir(_) | OpenError::Wal(_)));
            return Next::End(if of_data_dir { Exit::DataDir } else { Exit::Failure });
        }
    }
    let error = match server.ended().await {
        Ended::TakenOver => return Next::GoOn(Renewal::TakenOver),
        Ended::Emptied => return Next::GoOn(Renewal::Emptied),
        Ended::Failed(error) => error,
    };
    tracing::error!(%error, "cannot go on");
    Next::End(match *error {
        ServeError::Refused(_) => Exit::Refused,
        ServeError::LocalLog => Exit::DataDir,
        _ => Exit::Failure,
    })
}

/// The error and everything that led to it.
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
