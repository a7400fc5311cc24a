//! Arguments of the commands on servers and on assignments.

use clap::{Args, Subcommand};
use dormouse_protocol::{ServerName, Subject};

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
