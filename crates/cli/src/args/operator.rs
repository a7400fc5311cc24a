//! What operators say about servers and about where subjects are served.

use clap::{Args, Subcommand};
use dormouse_protocol::{ServerName, Subject};

use super::words::{pattern, process};

/// `server …`.
#[derive(Debug, Clone, Subcommand)]
pub enum ServerCommand {
    /// List the servers that the coordinator knows
    Ls,
    /// Show what there is to know about a server
    Info(OneServer),
    /// Empty a server: it is given nothing new and hands its subjects over one by one, while clients go on. Waits until
    /// it has none; Ctrl-C ends the waiting, not the drain. The order outlives the server's process, until `undrain`
    Drain(Drain),
    /// Let a server take subjects again. What it has handed over stays where it is; `rebalance` brings it its share
    Undrain(OneServer),
    /// Ask processes how they are; exit code 1 if one is not well, 5 if one does not answer
    Health(Health),
}

/// A command that needs nothing but a server.
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

    /// Give the order and wait for nothing [default: wait until the server has nothing left]
    #[arg(long)]
    pub no_wait: bool,
}

/// `server health`.
#[derive(Debug, Clone, Args)]
pub struct Health {
    /// The server, or `coordinator` [default: the coordinator and every server it takes for alive]
    #[arg(value_parser = process)]
    pub name: Option<String>,

    /// Take this for well too: `degraded` is a process that works while something it needs is away, such as a
    /// coordinator without servers [default: only ok is well]
    #[arg(long, value_name = "STATUS", value_parser = ["degraded"])]
    pub accept: Option<String>,
}

/// `subject ls`.
#[derive(Debug, Clone, Args)]
pub struct SubjectLs {
    /// Only subjects like this: `*` stands for any one token and a final `>` for one or more
    #[arg(default_value = ">", value_parser = pattern)]
    pub pattern: String,

    /// Only subjects that are assigned to this server [default: to any]
    #[arg(long, value_name = "NAME")]
    pub server: Option<ServerName>,

    /// Most subjects to list [default: all]
    #[arg(long, value_name = "NUMBER")]
    pub limit: Option<u64>,
}

/// `subject move`.
#[derive(Debug, Clone, Args)]
pub struct Move {
    /// The stream or key-value store, such as app.orders.eu
    pub subject: Subject,

    /// The server that shall have it [no default: say which]
    #[arg(long, value_name = "NAME")]
    pub to: ServerName,

    /// Give the order and wait for nothing [default: wait until it is done]
    #[arg(long)]
    pub no_wait: bool,
}

/// `rebalance`.
#[derive(Debug, Clone, Args)]
pub struct Rebalance {
    /// Only show the plan [default: carry it out]
    #[arg(long)]
    pub dry_run: bool,

    /// Most subjects to move
    #[arg(
        long,
        value_name = "NUMBER",
        default_value = "100",
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub most_moves: u64,

    /// Have the plan carried out and wait for nothing [default: wait until every move is over]
    #[arg(long, conflicts_with = "dry_run")]
    pub no_wait: bool,
}
