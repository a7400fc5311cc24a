//! The command line, as written. [`crate::settings`] checks it.

use clap::Parser;
use dormouse_bus::args::NatsArgs;
use dormouse_daemon::{DaemonArgs, DaemonHelp};

/// Exit codes, part of `--help`.
const EXIT_CODES: &str = "\
Exit codes:
  0    stopped by a signal, all subjects released
  1    unexpected failure; the log has the reason
  2    invalid settings
  3    the bucket is not reachable, or does not keep the contract of a bucket
  4    the data directory is unusable, or in use by another process
  5    the coordinator refused this process, e.g. because a live process has its name; with a data directory
       that was used before, the process first waits up to 26 s for the name
  130  stopped by a second signal before the shutdown was complete";

/// Serves subjects. On the first request the server opens the subject from the bucket. It answers requests, publishes
/// every change as an event, and ships the changes to the bucket. A write of level `bucket`, the default, is
/// acknowledged when it is in the bucket.
#[derive(Debug, Clone, Parser)]
#[command(name = "dormouse-persist-server", version, after_help = EXIT_CODES)]
#[command(override_usage = "dormouse-persist-server --name NAME --bucket URL --data-dir DIR [OPTIONS]")]
pub struct Args {
    /// NATS connection.
    #[command(flatten)]
    pub nats: NatsArgs,

    /// The server's name in the fleet: 1 to 63 characters from a-z, 0-9, - and _; required
    #[arg(long, env = "DORMOUSE_NAME", value_name = "NAME", help_heading = "Server")]
    pub name: Option<String>,

    /// The bucket of all subjects: file:///dir, s3://name, gs://name, az://name, or memory:// (lost at exit);
    /// required
    #[arg(
        long,
        env = "DORMOUSE_BUCKET",
        value_name = "URL",
        hide_env_values = true,
        help_heading = "Server"
    )]
    pub bucket: Option<String>,

    /// Directory for the files of open subjects. Only this server uses it; it survives restarts; required
    #[arg(long, env = "DORMOUSE_DATA_DIR", value_name = "DIR", help_heading = "Server")]
    pub data_dir: Option<String>,

    /// Default level of writes, for subjects whose configuration has none: `bucket` (in the bucket: survives the loss
    /// of this machine), `disk` (synced to the local disk), `interval` (in the local log, synced each second) or
    /// `memory`
    #[arg(
        long,
        env = "DORMOUSE_LEVEL",
        value_name = "LEVEL",
        default_value = "bucket",
        help_heading = "Server"
    )]
    pub level: String,

    /// First tokens of every route; fleets with different prefixes can share a NATS system
    #[arg(
        long,
        env = "DORMOUSE_PREFIX",
        value_name = "PREFIX",
        default_value = "persist",
        help_heading = "Server"
    )]
    pub prefix: String,

    /// This server's share of the subjects relative to other servers
    #[arg(
        long,
        env = "DORMOUSE_CAPACITY",
        value_name = "NUMBER",
        default_value = "100",
        help_heading = "Server"
    )]
    pub capacity: String,

    /// Maximum batching delay for writes below level `bucket`
    #[arg(
        long,
        env = "DORMOUSE_SHIP_INTERVAL",
        value_name = "DURATION",
        default_value = "1s",
        help_heading = "Log"
    )]
    pub ship_interval: String,

    /// Age of the oldest unshipped write above which writes of every level wait for the bucket (write stall)
    #[arg(
        long,
        env = "DORMOUSE_MAX_UNSHIPPED_AGE",
        value_name = "DURATION",
        default_value = "10s",
        help_heading = "Log"
    )]
    pub max_unshipped_age: String,

    /// Maximum unshipped bytes; above it, writes get `overloaded`
    #[arg(
        long,
        env = "DORMOUSE_MAX_UNSHIPPED_BYTES",
        value_name = "BYTES",
        default_value = "67108864",
        help_heading = "Log"
    )]
    pub max_unshipped_bytes: String,

    /// Maximum objects per second that the log writes to the bucket, on average, for any number of subjects: it bounds
    /// the cost of durability
    #[arg(
        long,
        env = "DORMOUSE_MAX_PUTS_PER_SECOND",
        value_name = "NUMBER",
        default_value = "50",
        help_heading = "Log"
    )]
    pub max_puts_per_second: String,

    /// Maximum bytes of the log's slots in the bucket, at least 67108864; near it, the subjects that need the oldest slots
    /// are compacted
    #[arg(
        long,
        env = "DORMOUSE_MAX_LOG_BYTES",
        value_name = "BYTES",
        default_value = "1073741824",
        help_heading = "Log"
    )]
    pub max_log_bytes: String,

    /// Bytes of local files above which the server removes files of dormant subjects, least recently used first
    /// (default: no limit)
    #[arg(long, env = "DORMOUSE_MAX_LOCAL_BYTES", value_name = "BYTES", help_heading = "Server")]
    pub max_local_bytes: Option<String>,

    /// Time without a request after which a subject closes, at least 1s
    #[arg(
        long,
        env = "DORMOUSE_IDLE_CLOSE",
        value_name = "DURATION",
        default_value = "60s",
        help_heading = "Server"
    )]
    pub idle_close: String,

    /// Maximum number of open subjects, at most as many as the file descriptors allow, at two each (default: 10000, or
    /// half of what the descriptors allow, which leaves room for a burst)
    #[arg(long, env = "DORMOUSE_MAX_OPEN", value_name = "NUMBER", help_heading = "Server")]
    pub max_open: Option<String>,

    /// Maximum number of uploads of large values at a time; above it, a new upload gets `overloaded` with a retry
    /// delay. One subject may use half of the uploads that the other subjects leave free
    #[arg(
        long,
        env = "DORMOUSE_MAX_UPLOADS",
        value_name = "NUMBER",
        default_value = "256",
        help_heading = "Server"
    )]
    pub max_uploads: String,

    /// Maximum bytes of all running uploads in the data directory. One subject may use half of the bytes that the other
    /// subjects leave free, so a value larger than half of the maximum cannot be uploaded
    #[arg(
        long,
        env = "DORMOUSE_MAX_UPLOAD_BYTES",
        value_name = "BYTES",
        default_value = "17179869184",
        help_heading = "Server"
    )]
    pub max_upload_bytes: String,

    /// The arguments that both daemons have.
    #[command(flatten)]
    pub daemon: DaemonArgs<ServerHelp>,
}

/// The words of this program in the arguments that both daemons have.
#[derive(Debug, Clone)]
pub enum ServerHelp {}

impl DaemonHelp for ServerHelp {
    const HEADING: &'static str = "Server";
    const INBOX_PREFIX: &'static str = "The server replies only to addresses that begin with one of these prefixes; \
        repeatable, or separated by commas";
    const TENANT_ACCOUNTS: &'static str = "Trust the account that nats-server writes into each request: each account \
        may use the subjects that begin with its name. Use it only if clients reach this service only through an \
        account's import: see deploy/nats";
    const SHUTDOWN_DEADLINE: &'static str =
        "Deadline of a graceful shutdown; after it, the remaining steps are abandoned";
    const DEFAULT_SHUTDOWN_DEADLINE: &'static str = "30s";
    const LOG: &'static str = "Log filter: a level, or directives such as info,dormouse_engine=debug";
    const LOG_FORMAT: &'static str = "Format of log lines: text or json";
}
