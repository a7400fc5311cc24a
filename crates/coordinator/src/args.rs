//! The command line as written; `settings` validates it.

use clap::Parser;
use dormouse_bus::args::NatsArgs;

/// Exit codes, part of `--help`.
const EXIT_CODES: &str = "\
Exit codes:
  0    stopped by SIGTERM or SIGINT
  1    an unexpected failure, or NATS refuses the connection; the log has the reason
  2    the settings are invalid
  4    the data directory cannot be used, or is in use by another process
  130  stopped by a second signal before the shutdown was complete";

/// Records which persistence server serves which subject: members, leases, assignments. A fleet has one coordinator.
///
/// Its state survives restarts in the data directory. Losing that directory loses no data: the coordinator then learns
/// the assignments again from the servers.
#[derive(Debug, Clone, Parser)]
#[command(name = "dormouse-coordinator", version, after_help = EXIT_CODES)]
pub struct Args {
    /// The address of NATS and the credentials for it.
    #[command(flatten)]
    pub nats: NatsArgs,

    /// Directory for members and assignments. For this coordinator only; must survive restarts (required)
    #[arg(long, env = "DORMOUSE_DATA_DIR", value_name = "DIR", help_heading = "Coordinator")]
    pub data_dir: Option<String>,

    /// First tokens of every route; fleets with different prefixes share a NATS system
    #[arg(
        long,
        env = "DORMOUSE_PREFIX",
        value_name = "PREFIX",
        default_value = "persist",
        help_heading = "Coordinator"
    )]
    pub prefix: String,

    /// Time to live of server leases, from 500ms to 20s. A shorter lease detects dead servers sooner
    #[arg(
        long,
        env = "DORMOUSE_LEASE_TTL",
        value_name = "DURATION",
        default_value = "3s",
        help_heading = "Coordinator"
    )]
    pub lease_ttl: String,

    /// Allowed prefixes of reply addresses; may be repeated, or several separated by commas
    #[arg(
        long,
        env = "DORMOUSE_INBOX_PREFIX",
        value_name = "PREFIX[,PREFIX]",
        default_value = "_INBOX.",
        help_heading = "Coordinator"
    )]
    pub inbox_prefix: Vec<String>,

    /// Accept the account that nats-server writes into each request, and let it use the subjects that begin with its
    /// name. Use it only if all clients reach this service through an account's import: see deploy/nats
    #[arg(
        long,
        env = "DORMOUSE_TENANT_ACCOUNTS",
        value_parser = clap::builder::FalseyValueParser::new(),
        help_heading = "Coordinator"
    )]
    pub tenant_accounts: bool,

    /// Deadline of a graceful shutdown; after it the process exits with work unfinished
    #[arg(
        long,
        env = "DORMOUSE_SHUTDOWN_DEADLINE",
        value_name = "DURATION",
        default_value = "10s",
        help_heading = "Coordinator"
    )]
    pub shutdown_deadline: String,

    /// Log filter: a level, or directives such as info,dormouse_coordinator=debug
    #[arg(
        long,
        env = "DORMOUSE_LOG",
        value_name = "FILTER",
        default_value = "info,async_nats=warn",
        help_heading = "Logging"
    )]
    pub log: String,

    /// Log format: text or json
    #[arg(
        long,
        env = "DORMOUSE_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text",
        help_heading = "Logging"
    )]
    pub log_format: String,
}
