//! The command line as written; `settings` validates it.

use clap::Parser;
use dormouse_bus::args::NatsArgs;
use dormouse_daemon::{DaemonArgs, DaemonHelp};

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

    /// The arguments that both daemons have.
    #[command(flatten)]
    pub daemon: DaemonArgs<CoordinatorHelp>,
}

/// The words of this program in the arguments that both daemons have.
#[derive(Debug, Clone)]
pub enum CoordinatorHelp {}

impl DaemonHelp for CoordinatorHelp {
    const HEADING: &'static str = "Coordinator";
    const INBOX_PREFIX: &'static str =
        "Allowed prefixes of reply addresses; may be repeated, or several separated by commas";
    const TENANT_ACCOUNTS: &'static str = "Accept the account that nats-server writes into each request, and let it \
        use the subjects that begin with its name. Use it only if all clients reach this service through an account's \
        import: see deploy/nats";
    const SHUTDOWN_DEADLINE: &'static str =
        "Deadline of a graceful shutdown; after it the process exits with work unfinished";
    const DEFAULT_SHUTDOWN_DEADLINE: &'static str = "10s";
    const LOG: &'static str = "Log filter: a level, or directives such as info,dormouse_coordinator=debug";
    const LOG_FORMAT: &'static str = "Log format: text or json";
}
