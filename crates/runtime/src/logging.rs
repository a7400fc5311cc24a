//! The logs of the binaries: structured, on standard error.
//!
//! A thread of its own writes the log. A log that cannot be written ends no process, and a reader that stands still
//! delays none: lines wait in a bounded queue, and lines without room are dropped and counted.

mod queue;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::panic::PanicHookInfo;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use queue::LogQueue;

/// How long a process that ends waits for the reader of its log.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// The lines of this process.
static QUEUE: OnceLock<LogQueue> = OnceLock::new();

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Human-readable lines.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("the log format must be `text` or `json`"),
        }
    }
}

/// The log filter is invalid, or logging is already set up.
#[derive(Debug)]
pub struct LoggingError(Box<dyn std::error::Error + Send + Sync>);

impl std::fmt::Display for LoggingError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot set up logging: {}", self.0)
    }
}

impl std::error::Error for LoggingError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

/// Sends the process's log to standard error, panics included. `filter` is a level (`info`) or directives of
/// `tracing`'s `EnvFilter` (`info,dormouse_engine=debug`). Before the process ends, it calls [`flush`].
///
/// # Errors
/// [`LoggingError`] if `filter` is invalid, if logging is already set up, or if its thread cannot start.
pub fn init(format: LogFormat, filter: &str) -> Result<(), LoggingError> {
    let filter = EnvFilter::try_new(filter).map_err(|error| LoggingError(error.into()))?;
    let queue = QUEUE.get_or_init(LogQueue::default);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| LineWriter(queue))
        .with_ansi(io::stderr().is_terminal());
    match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    }
    .map_err(LoggingError)?;
    start_writer(queue).map_err(|error| LoggingError(error.into()))?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Blocks the thread until the log is written, for at most half a second. The last step of a process.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(FLUSH_LIMIT);
    }
}

/// Log lines that this process has dropped, or could not write.
#[must_use]
pub fn lost_lines() -> u64 {
    QUEUE.get().map_or(0, LogQueue::lost)
}

/// A descriptor of its own: a blocked write holds no lock of the standard library.
fn start_writer(queue: &'static LogQueue) -> io::Result<()> {
    let log = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    std::thread::Builder::new().name("log".to_owned()).spawn(move || {
        queue.write_to(log, |lines| tracing::warn!(lines, "log lines dropped"));
    })?;
    Ok(())
}

/// The default hook writes to standard error itself, and waits for its reader.
fn log_panic(info: &PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then_some(backtrace);
    let thread = std::thread::current();
    tracing::error!(
        thread = thread.name().unwrap_or("unnamed"),
        backtrace = backtrace.map(tracing::field::display),
        // "panicked at" and the place come first.
        panic = %info.to_string().replace('\n', " "),
        "thread panicked"
    );
}

/// Takes the lines of a subscriber, which writes each line at once.
struct LineWriter(&'static LogQueue);

impl Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
