//! Arguments of the commands on servers and on assignments.

use clap::{ArgGroup, Args, Subcommand};
use dormouse_protocol::tenant::TenantLimits;
use dormouse_protocol::{ServerName, Subject, TenantName};

use super::values::{pattern, process};

/// `server …`.
#[derive(Debug, Clone, Subcommand)]
pub enum ServerCommand {
    /// List the servers that the coordinator knows
    Ls,
    /// Show the state, load and health of a server
    Info(OneServer),
    /// Drain a server: it gets no new subjects and hands its subjects over one by one, while clients continue. Waits
    /// until it has none; Ctrl-C ends only the wait. The order survives restarts of the server, until `undrain`
    Drain(Drain),
    /// Cancel a drain. Subjects that were handed over stay where they are; `rebalance` gives the server its share
    Undrain(OneServer),
    /// Check the health of processes; exit code 1 if one is not ok, 5 if one does not answer
    Health(HealthArgs),
    /// Print the metrics of one process in the text format of Prometheus; docs/metrics.md explains them
    Metrics(MetricsArgs),
}

/// `server metrics`.
#[derive(Debug, Clone, Args)]
pub struct MetricsArgs {
    /// The server, or `coordinator`
    #[arg(value_parser = process)]
    pub name: String,
}

/// Arguments of a command on one server.
#[derive(Debug, Clone, Args)]
pub struct OneServer {
    /// The server, such as persist-1
    pub name: ServerName,
}

/// `server drain`.
#[derive(Debug, Clone, Args)]
pub struct Drain {
    /// The server, such as persist-1
    pub name: ServerName,

    /// Give the order and do not wait [default: wait until the server has no subjects left]
    #[arg(long)]
    pub no_wait: bool,
}

/// `server health`.
#[derive(Debug, Clone, Args)]
pub struct HealthArgs {
    /// The server, or `coordinator` [default: the coordinator and every server that is not dead]
    #[arg(value_parser = process)]
    pub name: Option<String>,

    /// Also accept this status: a `degraded` process works, but misses something, such as a coordinator without servers
    /// [default: accept only ok]
    #[arg(long, value_name = "STATUS", value_parser = ["degraded"])]
    pub accept: Option<String>,
}

/// `subject ls`.
#[derive(Debug, Clone, Args)]
pub struct SubjectLs {
    /// Only subjects that match the pattern: `*` matches one token, a final `>` matches one or more
    #[arg(default_value = ">", value_parser = pattern)]
    pub pattern: String,

    /// Only subjects that are assigned to this server [default: any server]
    #[arg(long, value_name = "NAME")]
    pub server: Option<ServerName>,

    /// Maximum number of subjects to list [default: all]
    #[arg(long, value_name = "NUMBER")]
    pub limit: Option<u64>,
}

/// `subject move`.
#[derive(Debug, Clone, Args)]
pub struct Move {
    /// The stream or key-value store, such as app.orders.eu
    pub subject: Subject,

    /// The target server [no default: required]
    #[arg(long, value_name = "NAME")]
    pub to: ServerName,

    /// Give the order and do not wait [default: wait until it is done]
    #[arg(long)]
    pub no_wait: bool,
}

/// `tenant …`.
#[derive(Debug, Clone, Subcommand)]
pub enum TenantCommand {
    /// List the tenants with limits and the busiest tenants of each server, with limits and use, in byte order
    Ls,
    /// Set limits of a tenant. Each server enforces them for itself, from its next lease on
    Limit(TenantLimit),
}

/// `tenant limit`.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true).args(LIMIT_CHANGES))]
pub struct TenantLimit {
    /// The tenant, such as acme: its account, or the first tokens of its subjects
    pub tenant: TenantName,

    /// First remove all limits of the tenant [default: change only the limits that are given]
    #[arg(long)]
    pub clear: bool,

    /// The limits to set.
    #[command(flatten)]
    pub limits: LimitArgs,
}

const LIMIT_CHANGES: [&str; 9] = [
    "clear",
    "requests",
    "bytes",
    "open_subjects",
    "creations_per_minute",
    "messages_per_second",
    "stored_bytes",
    "unshipped_bytes",
    "uploads",
];

/// The limits of `tenant limit`.
#[derive(Debug, Clone, Args)]
pub struct LimitArgs {
    /// Maximum number of unanswered requests [default: unchanged]
    #[arg(long, value_name = "NUMBER")]
    pub requests: Option<u64>,

    /// Maximum bytes of unanswered requests [default: unchanged]
    #[arg(long, value_name = "BYTES")]
    pub bytes: Option<u64>,

    /// Maximum number of open subjects [default: unchanged]
    #[arg(long, value_name = "NUMBER")]
    pub open_subjects: Option<u64>,

    /// Maximum number of new subjects in a minute [default: unchanged]
    #[arg(long, value_name = "NUMBER")]
    pub creations_per_minute: Option<u64>,

    /// Maximum number of written messages in a second [default: unchanged]
    #[arg(long, value_name = "NUMBER")]
    pub messages_per_second: Option<u64>,

    /// Maximum bytes of stored messages [default: unchanged]
    #[arg(long, value_name = "BYTES")]
    pub stored_bytes: Option<u64>,

    /// Maximum bytes of writes that are not in the bucket yet [default: unchanged]
    #[arg(long, value_name = "BYTES")]
    pub unshipped_bytes: Option<u64>,

    /// Maximum number of uploads in progress [default: unchanged]
    #[arg(long, value_name = "NUMBER")]
    pub uploads: Option<u64>,
}

impl From<LimitArgs> for TenantLimits {
    fn from(arguments: LimitArgs) -> Self {
        Self {
            requests: arguments.requests,
            bytes: arguments.bytes,
            open_subjects: arguments.open_subjects,
            creations_per_minute: arguments.creations_per_minute,
            messages_per_second: arguments.messages_per_second,
            stored_bytes: arguments.stored_bytes,
            unshipped_bytes: arguments.unshipped_bytes,
            uploads: arguments.uploads,
        }
    }
}

/// `rebalance`.
#[derive(Debug, Clone, Args)]
pub struct Rebalance {
    /// Only show the plan [default: carry it out]
    #[arg(long)]
    pub dry_run: bool,

    /// Maximum number of subjects to move
    #[arg(
        long,
        value_name = "NUMBER",
        default_value = "100",
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub most_moves: u64,

    /// Start the moves and do not wait [default: wait until every move has ended]
    #[arg(long, conflicts_with = "dry_run")]
    pub no_wait: bool,
}
