//! The command line, as written: nothing is checked here.

use clap::Parser;
use dormouse_bus::args::NatsArgs;

/// Exit codes, part of `--help`.
const EXIT_CODES: &str = "\
Exit codes:
  0    stopped as asked
  1    an unexpected failure, or NATS refuses the connection; the log has the reason
  2    the settings are wrong
  4    the data directory cannot be used, or is in use by another process
  130  stopped by a second signal before the shutdown was complete";

/// Knows which persistence server serves which subject: members, leases, assignments. There is one in a fleet.
///
/// What it knows survives a restart in its data directory. Losing that directory loses no data; assignments are then
/// learned again from the servers.
#[derive(Debug, Clone, Parser)]
#[command(name = "dormouse-coordinator", version, after_help = EXIT_CODES)]
pub struct Args {
    /// Where to find NATS, and who we are to it.
    #[command(flatten)]
    pub nats: NatsArgs,

    /// Where members and assignments are remembered. Belongs to this coordinator alone; survives restarts (required)
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

    /// How long a server may go on without being heard of, from 500ms to 20s. Shorter finds dead servers sooner
    #[arg(
        long,
        env = "DORMOUSE_LEASE_TTL",
        value_name = "DURATION",
        default_value = "3s",
        help_heading = "Coordinator"
    )]
    pub lease_ttl: String,

    /// Reply addresses that are answered begin with one of these; may be repeated, or several separated by commas
    #[arg(
        long,
        env = "DORMOUSE_INBOX_PREFIX",
        value_name = "PREFIX[,PREFIX]",
        default_value = "_INBOX.",
        help_heading = "Coordinator"
    )]
    pub inbox_prefix: Vec<String>,

    /// Believe the account that nats-server writes into each request, and let it use the subjects that begin with its
    /// name. Only where nobody reaches this service but through an account's import: see deploy/nats
    #[arg(
        long,
        env = "DORMOUSE_TENANT_ACCOUNTS",
        value_parser = clap::builder::FalseyValueParser::new(),
        help_heading = "Coordinator"
    )]
    pub tenant_accounts: bool,

    /// How long a graceful shutdown may take before what is left is given up
    #[arg(
        long,
        env = "DORMOUSE_SHUTDOWN_DEADLINE",
        value_name = "DURATION",
        default_value = "10s",
        help_heading = "Coordinator"
    )]
    pub shutdown_deadline: String,

    /// What is logged: a level, or directives such as info,dormouse_coordinator=debug
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
