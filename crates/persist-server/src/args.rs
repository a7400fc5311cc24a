//! The command line, as written: nothing is checked here.

use clap::Parser;
use dormouse_bus::args::NatsArgs;

/// Exit codes, part of `--help`.
const EXIT_CODES: &str = "\
Exit codes:
  0    stopped as asked, everything handed back
  1    an unexpected failure; the log has the reason
  2    the settings are wrong
  3    the bucket cannot be reached, or does not keep the contract that a bucket must keep
  4    the data directory cannot be used, or is in use by another process
  5    the coordinator refused this process, e.g. because a live one has its name; a process in a data directory
       that was used before first waits up to 26 s for that name
  130  stopped by a second signal before the shutdown was complete";

/// Serves subjects: pulls a subject's file from the bucket when somebody asks for it, answers requests, publishes
/// every change, and brings the changes back to the bucket. A write of the level `bucket`, the default, is acknowledged
/// once it is there.
#[derive(Debug, Clone, Parser)]
#[command(name = "dormouse-persist-server", version, after_help = EXIT_CODES)]
#[command(override_usage = "dormouse-persist-server --name NAME --bucket URL --data-dir DIR [OPTIONS]")]
pub struct Args {
    /// How to connect.
    #[command(flatten)]
    pub nats: NatsArgs,

    /// The server's name in the fleet: 1 to 63 characters from a-z, 0-9, - and _; required
    #[arg(long, env = "DORMOUSE_NAME", value_name = "NAME", help_heading = "Server")]
    pub name: Option<String>,

    /// The bucket that keeps all subjects: file:///dir, s3://name, gs://name, az://name, or memory:// (lost at
    /// exit); required
    #[arg(
        long,
        env = "DORMOUSE_BUCKET",
        value_name = "URL",
        hide_env_values = true,
        help_heading = "Server"
    )]
    pub bucket: Option<String>,

    /// Where open subjects have their files. Belongs to this server alone; survives restarts; required
    #[arg(long, env = "DORMOUSE_DATA_DIR", value_name = "DIR", help_heading = "Server")]
    pub data_dir: Option<String>,

    /// Level at which writes are acknowledged where their subject's configuration says nothing: `bucket` (in the bucket:
    /// survives the loss of this machine), `disk` (synced to the local disk), `interval` (in the local log, synced each
    /// second) or `memory`
    #[arg(
        long,
        env = "DORMOUSE_LEVEL",
        value_name = "LEVEL",
        default_value = "bucket",
        help_heading = "Server"
    )]
    pub level: String,

    /// First tokens of every route; fleets with different prefixes share a NATS system
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

    /// How long a write below the level `bucket` may wait before it goes to the bucket
    #[arg(
        long,
        env = "DORMOUSE_SHIP_INTERVAL",
        value_name = "DURATION",
        default_value = "1s",
        help_heading = "Log"
    )]
    pub ship_interval: String,

    /// When a write has waited so long to go to the bucket, writes of every level wait for the bucket
    #[arg(
        long,
        env = "DORMOUSE_MAX_UNSHIPPED_AGE",
        value_name = "DURATION",
        default_value = "10s",
        help_heading = "Log"
    )]
    pub max_unshipped_age: String,

    /// Most bytes that may wait to go to the bucket; above it writes are refused as overloaded
    #[arg(
        long,
        env = "DORMOUSE_MAX_UNSHIPPED_BYTES",
        value_name = "BYTES",
        default_value = "67108864",
        help_heading = "Log"
    )]
    pub max_unshipped_bytes: String,

    /// Most objects that the log writes to the bucket per second, on average, whatever the number of subjects: the
    /// ceiling of what durability costs
    #[arg(
        long,
        env = "DORMOUSE_MAX_PUTS_PER_SECOND",
        value_name = "NUMBER",
        default_value = "50",
        help_heading = "Log"
    )]
    pub max_puts_per_second: String,

    /// Bytes of local files above which those of sleeping subjects are removed, the longest unused first (default: no
    /// limit)
    #[arg(long, env = "DORMOUSE_MAX_LOCAL_BYTES", value_name = "BYTES", help_heading = "Server")]
    pub max_local_bytes: Option<String>,

    /// After how much time without a request a subject is closed
    #[arg(
        long,
        env = "DORMOUSE_IDLE_CLOSE",
        value_name = "DURATION",
        default_value = "60s",
        help_heading = "Server"
    )]
    pub idle_close: String,

    /// How many subjects may be open at once; no more than there are file descriptors for, two each (default: 10000, or
    /// half of what there are descriptors for, which leaves room for a burst)
    #[arg(long, env = "DORMOUSE_MAX_OPEN", value_name = "NUMBER", help_heading = "Server")]
    pub max_open: Option<String>,

    /// How many large values may be on their way up at a time; above it, who begins one is turned away for a while. Of what
    /// the others leave, one subject may have half
    #[arg(
        long,
        env = "DORMOUSE_MAX_UPLOADS",
        value_name = "NUMBER",
        default_value = "256",
        help_heading = "Server"
    )]
    pub max_uploads: String,

    /// Bytes that large values on their way up may take in the data directory, all together. Of what the others leave, one
    /// subject may have half, so that no value larger than half of it can be uploaded
    #[arg(
        long,
        env = "DORMOUSE_MAX_UPLOAD_BYTES",
        value_name = "BYTES",
        default_value = "17179869184",
        help_heading = "Server"
    )]
    pub max_upload_bytes: String,

    /// Reply addresses that are answered begin with one of these; may be repeated, or several separated by commas
    #[arg(
        long,
        env = "DORMOUSE_INBOX_PREFIX",
        value_name = "PREFIX[,PREFIX]",
        default_value = "_INBOX.",
        help_heading = "Server"
    )]
    pub inbox_prefix: Vec<String>,

    /// Believe the account that nats-server writes into each request, and let it use the subjects that begin with its
    /// name. Only where nobody reaches this service but through an account's import: see deploy/nats
    #[arg(
        long,
        env = "DORMOUSE_TENANT_ACCOUNTS",
        value_parser = clap::builder::FalseyValueParser::new(),
        help_heading = "Server"
    )]
    pub tenant_accounts: bool,

    /// How long a graceful shutdown may take before what is left is given up
    #[arg(
        long,
        env = "DORMOUSE_SHUTDOWN_DEADLINE",
        value_name = "DURATION",
        default_value = "30s",
        help_heading = "Server"
    )]
    pub shutdown_deadline: String,

    /// What is logged: a level, or directives such as info,dormouse_storage=debug
    #[arg(
        long,
        env = "DORMOUSE_LOG",
        value_name = "FILTER",
        default_value = "info,async_nats=warn",
        help_heading = "Logging"
    )]
    pub log: String,

    /// How log lines look: text or json
    #[arg(
        long,
        env = "DORMOUSE_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text",
        help_heading = "Logging"
    )]
    pub log_format: String,
}
