//! The command line, as words: what can be said and how `--help` explains it.

mod configure;
mod operator;
mod words;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgGroup, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use dormouse_bus::args::NatsArgs;
use dormouse_protocol::{MessageId, Prefix, Seq, Subject};

pub use self::configure::Configure;
pub use self::operator::{Drain, Health, Move, Rebalance, ServerCommand, SubjectLs};
use self::words::{Header, message_id, seq};
use crate::error::EXIT_CODES;

/// Streams and key-value stores over core NATS, kept in a bucket: the operator's and developer's tool.
#[derive(Debug, Clone, Parser)]
#[command(name = "dormouse", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What holds for every command. May stand before or after it.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// How to reach NATS.
    #[command(flatten)]
    pub nats: NatsArgs,

    /// Context of the `nats` command line tool to take address and credentials from. Other flags win over it, and it
    /// wins over the environment. Without it, and when no address is given, the context that is selected there is used
    /// [default: the selected one]
    #[arg(long, value_name = "NAME", env = "DORMOUSE_CONTEXT", help_heading = "NATS")]
    pub context: Option<String>,

    /// Which of `--context` and `--nats…` stand on the line itself, not in the environment; without the dashes.
    #[arg(skip)]
    pub connection_flags: BTreeSet<String>,

    /// First tokens of the fleet's routes
    #[arg(
        long,
        value_name = "PREFIX",
        env = "DORMOUSE_PREFIX",
        default_value = Prefix::DEFAULT,
        help_heading = "Global"
    )]
    pub prefix: Prefix,

    /// Print JSON: one document, or one per line where there are many; errors too [default: text for people]
    #[arg(
        long,
        env = "DORMOUSE_JSON",
        value_parser = FalseyValueParser::new(),
        help_heading = "Global"
    )]
    pub json: bool,

    /// How long a command may take, tries and pauses together (each page, where there are many)
    #[arg(
        long,
        value_name = "DURATION",
        env = "DORMOUSE_DEADLINE",
        default_value = "10s",
        help_heading = "Global"
    )]
    pub deadline: humantime::Duration,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Write a message
    Set(Set),
    /// Read one message: its bytes as they are, or all about it with --json
    Get(Get),
    /// List messages in order
    Ls(Ls),
    /// Remove messages
    Rm(Rm),
    /// List keys in order
    Keys(Keys),
    /// Show changes as they happen
    Watch(Watch),
    /// Show what there is to know about a subject
    Info(OneSubject),
    /// Look after servers
    #[command(subcommand)]
    Server(ServerCommand),
    /// Look after subjects
    #[command(subcommand, visible_alias = "subjects")]
    Subject(SubjectCommand),
    /// Even out what the servers have to do: show what would be moved, or move it
    Rebalance(Rebalance),
    /// Delete what nobody needs any more from a bucket: slots of logs that are over, and what crashes left of the
    /// subjects named. Servers do the same for themselves; this is for what no server looks at
    Gc(Gc),
    /// Run a whole local fleet until Ctrl-C: nats-server, coordinator, servers, and a directory as the bucket
    Dev(Dev),
    /// Become another program that is stopped when this one's parent dies. Used by `dev`
    #[command(hide = true)]
    RunChild(RunChild),
}

impl Command {
    /// Whether it may change a subject, or where subjects are served.
    #[must_use]
    pub const fn changes(&self) -> bool {
        match self {
            Self::Set(_) | Self::Rm(_) => true,
            Self::Subject(command) => match command {
                SubjectCommand::Move(_)
                | SubjectCommand::Flush(_)
                | SubjectCommand::Configure(_)
                | SubjectCommand::Destroy(_) => true,
                SubjectCommand::Ls(_) | SubjectCommand::Locate(_) | SubjectCommand::Export(_) => false,
            },
            Self::Server(command) => match command {
                ServerCommand::Drain(_) | ServerCommand::Undrain(_) => true,
                ServerCommand::Ls | ServerCommand::Info(_) | ServerCommand::Health(_) => false,
            },
            Self::Rebalance(rebalance) => !rebalance.dry_run,
            Self::Get(_)
            | Self::Ls(_)
            | Self::Keys(_)
            | Self::Watch(_)
            | Self::Info(_)
            | Self::Gc(_)
            | Self::Dev(_)
            | Self::RunChild(_) => false,
        }
    }
}

/// `set`.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("content").required(true).args(["value", "file", "null"]))]
pub struct Set {
    /// The stream or key-value store, such as app.orders.eu
    pub subject: Subject,

    /// The value; `-` reads it from standard input, however much it is
    #[arg(allow_hyphen_values = true)]
    pub value: Option<OsString>,

    /// Key to set it under; the earlier message under the key is replaced [default: no key]
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,

    /// Read the value from a file of any size [default: the VALUE argument]
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Write the null value, which is not the empty one [default: no]
    #[arg(long)]
    pub null: bool,

    /// A header of the message; may be given several times [default: none]
    #[arg(long = "header", value_name = "NAME:VALUE")]
    pub headers: Vec<Header>,

    /// The seq the message shall have [default: the next one]
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    pub seq: Option<Seq>,

    /// How long the message lives, such as 90s; then it is deleted [default: as the subject is configured]
    #[arg(long, value_name = "DURATION")]
    pub ttl: Option<humantime::Duration>,

    /// Only if there is no message under the key; without --key: if the subject has never held one [default: whatever
    /// is there]
    #[arg(long, conflicts_with = "expect")]
    pub expect_absent: bool,

    /// Only if this is the message under the key; without --key: the last of the subject [default: whatever is there]
    #[arg(long, value_name = "TERM:SEQ", value_parser = message_id)]
    pub expect: Option<MessageId>,
}

/// `get`.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("which").required(true).args(["key", "seq"]))]
pub struct Get {
    /// The stream or key-value store, such as app.orders.eu
    pub subject: Subject,

    /// The message under this key [no default: --key or --seq is needed]
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,

    /// The message at this seq [no default: --key or --seq is needed]
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    pub seq: Option<Seq>,

    /// Write the value, of any size, to this file, which appears once all of it has come [default: print it]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Replace the file that --output names, if there is one [default: refuse]
    #[arg(long, requires = "output")]
    pub force: bool,
}

/// `ls`.
#[derive(Debug, Clone, Args)]
pub struct Ls {
    /// The stream or key-value store, such as app.orders.eu
    pub subject: Subject,

    /// First seq to list [default: the first there is]
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    pub start: Option<Seq>,

    /// Last seq to list, inclusive [default: the last there is]
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    pub end: Option<Seq>,

    /// Only messages whose key starts with this; the empty text: all that have a key [default: all]
    #[arg(long, value_name = "TEXT")]
    pub key_prefix: Option<String>,

    /// From the last to the first [default: from the first to the last]
    #[arg(long)]
    pub reverse: bool,

    /// Most messages to list [default: all]
    #[arg(long, value_name = "NUMBER")]
    pub limit: Option<u64>,
}

/// `rm`.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("which").required(true).args(["keys", "seqs", "up_to", "keep_last", "all"]))]
pub struct Rm {
    /// The stream or key-value store, such as app.orders.eu
    pub subject: Subject,

    /// Remove the message under this key; may be given several times [no default: say what to remove]
    #[arg(long = "key", value_name = "KEY")]
    pub keys: Vec<String>,

    /// Remove the message at this seq; may be given several times [no default: say what to remove]
    #[arg(long = "seq", value_name = "SEQ", value_parser = seq)]
    pub seqs: Vec<Seq>,

    /// Remove every message up to and including this seq [no default: say what to remove]
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    pub up_to: Option<Seq>,

    /// Remove all but the newest few [no default: say what to remove]
    #[arg(long, value_name = "NUMBER")]
    pub keep_last: Option<u64>,

    /// Remove every message [no default: say what to remove]
    #[arg(long)]
    pub all: bool,
}

/// `keys`.
#[derive(Debug, Clone, Args)]
pub struct Keys {
    /// The key-value store, such as app.settings
    pub subject: Subject,

    /// Only keys that start with this
    #[arg(default_value = "")]
    pub key_prefix: String,
}

/// `watch`.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("which").args(["key", "key_prefix"]))]
pub struct Watch {
    /// The stream or key-value store, such as app.orders.eu
    pub subject: Subject,

    /// Only changes of this key [default: all changes]
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,

    /// Only changes of keys that start with this [default: all changes]
    #[arg(long, value_name = "TEXT")]
    pub key_prefix: Option<String>,

    /// Stop after this many changes [default: go on until Ctrl-C]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Begin with the messages that are there [default: only changes from now on]
    #[arg(long)]
    pub history: bool,
}

/// A command that needs nothing but a subject.
#[derive(Debug, Clone, Args)]
pub struct OneSubject {
    /// The stream or key-value store, such as app.orders.eu
    pub subject: Subject,
}

/// `subject …`.
#[derive(Debug, Clone, Subcommand)]
pub enum SubjectCommand {
    /// List subjects and the servers they are assigned to, in the order of their bytes
    Ls(SubjectLs),
    /// Have a subject served by another server. Waits until it is, at most as long as --deadline
    Move(Move),
    /// Ask the coordinator which server serves the subject
    Locate(OneSubject),
    /// Put everything so far in the bucket
    Flush(OneSubject),
    /// Change the metadata of a subject
    Configure(Configure),
    /// Flush the subject, then write it, large values included, as a file that `sqlite3` opens
    Export(Export),
    /// Remove the subject for good, with all its messages
    Destroy(Destroy),
}

/// `gc`.
#[derive(Debug, Clone, Args)]
pub struct Gc {
    /// Subjects to look through for objects that nothing refers to [default: none, only the logs]
    pub subjects: Vec<Subject>,

    /// Only tell what would be deleted [default: delete it]
    #[arg(long)]
    pub dry_run: bool,

    /// Most deletions per second
    #[arg(long, value_name = "NUMBER", default_value = "50")]
    pub per_second: u32,

    /// The bucket: file:///dir, s3://name, gs://name or az://name [default: that of the fleet on --data-dir]
    #[arg(long, value_name = "URL", env = "DORMOUSE_BUCKET", hide_env_values = true)]
    pub bucket: Option<String>,

    /// Data directory of a running `dormouse dev`, whose bucket it is; without effect when --bucket is given
    #[arg(long, value_name = "DIR", env = "DORMOUSE_DATA_DIR", default_value = DEV_DATA_DIR)]
    pub data_dir: PathBuf,
}

/// `subject export`.
#[derive(Debug, Clone, Args)]
pub struct Export {
    /// The stream or key-value store, such as app.orders.eu
    pub subject: Subject,

    /// The file to write
    pub file: PathBuf,

    /// The bucket: file:///dir, s3://name, gs://name or az://name [default: that of the fleet on --data-dir]
    #[arg(long, value_name = "URL", env = "DORMOUSE_BUCKET", hide_env_values = true)]
    pub bucket: Option<String>,

    /// Data directory of a running `dormouse dev`, whose bucket it is; without effect when --bucket is given
    #[arg(long, value_name = "DIR", env = "DORMOUSE_DATA_DIR", default_value = DEV_DATA_DIR)]
    pub data_dir: PathBuf,

    /// Replace the file if it exists [default: refuse]
    #[arg(long)]
    pub force: bool,
}

/// `subject destroy`.
#[derive(Debug, Clone, Args)]
pub struct Destroy {
    /// The stream or key-value store, such as app.orders.eu
    pub subject: Subject,

    /// Really [no default: nothing is destroyed without it]
    #[arg(long, required = true)]
    pub yes: bool,
}

/// `dev`.
///
/// The programs dormouse-coordinator and dormouse-persist-server are looked for beside this one, then on PATH;
/// nats-server is the one that DORMOUSE_NATS_SERVER names, else the one on PATH, else in .tools/bin (of the working
/// directory, or above this program). When everything is ready, `fleet.json` in the data directory tells addresses and
/// process ids. If this command is killed, the kernel stops its children with SIGTERM (Linux).
#[derive(Debug, Clone, Args)]
pub struct Dev {
    /// How many persistence servers
    #[arg(
        long,
        value_name = "NUMBER",
        env = "DORMOUSE_SERVERS",
        default_value = "2",
        value_parser = clap::value_parser!(u16).range(1..=64)
    )]
    pub servers: u16,

    /// Where everything is kept: bucket, state, fleet.json. Created where missing; one fleet at a time
    #[arg(long, value_name = "DIR", env = "DORMOUSE_DATA_DIR", default_value = DEV_DATA_DIR)]
    pub data_dir: PathBuf,

    /// Port of the nats-server on 127.0.0.1; 0 or -1: any free one
    #[arg(
        long,
        value_name = "PORT",
        env = "DORMOUSE_PORT",
        default_value = "4222",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(i32).range(-1..=65_535)
    )]
    pub port: i32,

    /// How long a server may be silent before another may take over
    #[arg(long, value_name = "DURATION", env = "DORMOUSE_LEASE_TTL", default_value = "3s")]
    pub lease_ttl: humantime::Duration,

    /// Start a process again that ends by itself [default: note it and go on]
    #[arg(long, env = "DORMOUSE_RESTART", value_parser = FalseyValueParser::new())]
    pub restart: bool,
}

/// The data directory of `dev` unless given.
pub const DEV_DATA_DIR: &str = ".dormouse-dev";

/// `run-child`.
#[derive(Debug, Clone, Args)]
pub struct RunChild {
    /// The process whose death ends the program
    pub parent: u32,

    /// The program
    pub program: OsString,

    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<OsString>,
}

impl Cli {
    /// Reads a command line.
    ///
    /// # Errors
    /// What clap says, which includes `--help` and `--version`.
    pub fn read(line: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, clap::Error> {
        let matches = Self::definition().try_get_matches_from(line)?;
        let mut cli = Self::from_arg_matches(&matches)?;
        cli.global.connection_flags = connection_flags(&matches);
        match cli.global.connection_flags.first() {
            Some(flag) if matches!(cli.command, Command::Dev(_)) => {
                let text =
                    format!("--{flag} cannot be used with `dev`, which starts a nats-server of its own\n");
                Err(Self::command().error(ErrorKind::ArgumentConflict, text))
            }
            _ => Ok(cli),
        }
    }

    /// The command line as clap knows it. What holds for every command may stand before or after it, and the many
    /// arguments of the connection are left to `--help` (not `-h`).
    pub fn definition() -> clap::Command {
        Self::command().mut_args(|arg| match arg.get_long() {
            Some("help" | "version") => arg,
            Some(name) => {
                let connection = name.starts_with("nats-");
                arg.global(true).hide_short_help(connection)
            }
            None => arg,
        })
    }
}

/// The arguments of the connection that stand on the line itself, not in the environment.
fn connection_flags(matches: &ArgMatches) -> BTreeSet<String> {
    let given =
        matches.ids().filter(|id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine));
    let flags = given.map(|id| id.as_str().replace('_', "-"));
    flags.filter(|flag| flag == "context" || flag == "nats" || flag.starts_with("nats-")).collect()
}

#[cfg(test)]
mod tests;
