//! The command line: arguments and their `--help` texts.

mod configure;
mod operator;
mod values;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgGroup, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use dormouse_bus::args::{NatsArgs, ignore_empty_variables};
use dormouse_protocol::{MessageId, Prefix, Seq, Subject};

pub use self::configure::Configure;
pub use self::operator::{
    Drain, HealthArgs, Move, Rebalance, ServerCommand, SubjectLs, TenantCommand, TenantLimit,
};
use self::values::{HeaderArg, message_id, seq};
use crate::error::EXIT_CODES;

/// Streams and key-value stores over core NATS, persisted in a bucket: the tool for operators and developers.
#[derive(Debug, Clone, Parser)]
#[command(name = "dormouse", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// Arguments of every command.
    #[command(flatten)]
    pub global: Global,

    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Arguments of every command. They may come before or after it.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// NATS connection.
    #[command(flatten)]
    pub nats: NatsArgs,

    /// Context of the `nats` command line tool, for address and credentials. Other flags override it, and it overrides
    /// the environment. Without this flag and without an address, the selected context is used [default: the selected
    /// one]
    #[arg(long, value_name = "NAME", env = "DORMOUSE_CONTEXT", help_heading = "NATS")]
    pub context: Option<String>,

    /// The flags of `--context` and `--nats…` that the command line itself contains, without the dashes.
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

    /// Print JSON, also for errors: one document, or one per line for lists [default: text]
    #[arg(
        long,
        env = "DORMOUSE_JSON",
        value_parser = FalseyValueParser::new(),
        help_heading = "Global"
    )]
    pub json: bool,

    /// Deadline of a command, with all attempts and pauses (for lists: of each page)
    #[arg(
        long,
        value_name = "DURATION",
        env = "DORMOUSE_DEADLINE",
        default_value = "10s",
        help_heading = "Global"
    )]
    pub deadline: humantime::Duration,
}

/// A command.
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
    /// Show the state and configuration of a subject
    Info(OneSubject),
    /// List, inspect and drain servers
    #[command(subcommand)]
    Server(ServerCommand),
    /// List, move, configure, export and destroy subjects
    #[command(subcommand, visible_alias = "subjects")]
    Subject(SubjectCommand),
    /// List tenants, and set their limits
    #[command(subcommand, visible_alias = "tenants")]
    Tenant(TenantCommand),
    /// Balance load among the servers: show the planned moves, or carry them out
    Rebalance(Rebalance),
    /// Delete unneeded objects from a bucket: unneeded slots of sealed logs, and objects of the named subjects that
    /// nothing refers to. Servers do the same for their own logs and subjects; use this command for the others
    Gc(Gc),
    /// Run a whole local fleet until Ctrl-C: nats-server, coordinator, servers, and a directory as the bucket
    Dev(Dev),
    /// Run another program in this process, and stop it if the parent process ends. Used by `dev`
    #[command(hide = true)]
    RunChild(RunChild),
}

impl Command {
    /// Whether it may change a subject, its assignment or the limits of a tenant.
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
                ServerCommand::Ls
                | ServerCommand::Info(_)
                | ServerCommand::Health(_)
                | ServerCommand::Metrics(_) => false,
            },
            Self::Tenant(command) => matches!(command, TenantCommand::Limit(_)),
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

    /// The value; `-` reads it from standard input, of any size
    #[arg(allow_hyphen_values = true)]
    pub value: Option<OsString>,

    /// Key of the message; the message replaces the earlier one with this key [default: no key]
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,

    /// Read the value from a file of any size [default: the VALUE argument]
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Write the null value, which differs from the empty value [default: no]
    #[arg(long)]
    pub null: bool,

    /// A header of the message; repeatable [default: none]
    #[arg(long = "header", value_name = "NAME:VALUE")]
    pub headers: Vec<HeaderArg>,

    /// Seq of the message [default: the next one]
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    pub seq: Option<Seq>,

    /// TTL of the message, such as 90s; after it the message is deleted [default: as configured for the subject]
    #[arg(long, value_name = "DURATION")]
    pub ttl: Option<humantime::Duration>,

    /// Set only if no message has the key; without --key: only if the subject has never had a message [default: no
    /// condition]
    #[arg(long, conflicts_with = "expect")]
    pub expect_absent: bool,

    /// Set only if this message has the key; without --key: only if it is the subject's last [default: no condition]
    #[arg(long, value_name = "TERM:SEQ", value_parser = message_id)]
    pub expect: Option<MessageId>,
}

/// `get`.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("which").required(true).args(["key", "seq"]))]
pub struct Get {
    /// The stream or key-value store, such as app.orders.eu
    pub subject: Subject,

    /// Key of the message [no default: --key or --seq is required]
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,

    /// Seq of the message [no default: --key or --seq is required]
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    pub seq: Option<Seq>,

    /// Write the value, of any size, to this file; the file appears when the value is complete [default: print it]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Replace an existing file at --output [default: fail]
    #[arg(long, requires = "output")]
    pub force: bool,
}

/// `ls`.
#[derive(Debug, Clone, Args)]
pub struct Ls {
    /// The stream or key-value store, such as app.orders.eu
    pub subject: Subject,

    /// First seq to list [default: the first]
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    pub start: Option<Seq>,

    /// Last seq to list, inclusive [default: the last]
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    pub end: Option<Seq>,

    /// Only messages whose key starts with this text; an empty text: all messages with a key [default: all]
    #[arg(long, value_name = "TEXT")]
    pub key_prefix: Option<String>,

    /// List from the last to the first [default: from the first to the last]
    #[arg(long)]
    pub reverse: bool,

    /// Maximum number of messages to list [default: all]
    #[arg(long, value_name = "NUMBER")]
    pub limit: Option<u64>,
}

/// `rm`.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("which").required(true).args(["keys", "seqs", "up_to", "keep_last", "all"]))]
pub struct Rm {
    /// The stream or key-value store, such as app.orders.eu
    pub subject: Subject,

    /// Remove the message with this key; repeatable [no default: one selector is required]
    #[arg(long = "key", value_name = "KEY")]
    pub keys: Vec<String>,

    /// Remove the message at this seq; repeatable [no default: one selector is required]
    #[arg(long = "seq", value_name = "SEQ", value_parser = seq)]
    pub seqs: Vec<Seq>,

    /// Remove every message up to and including this seq [no default: one selector is required]
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    pub up_to: Option<Seq>,

    /// Remove all but this number of newest messages [no default: one selector is required]
    #[arg(long, value_name = "NUMBER")]
    pub keep_last: Option<u64>,

    /// Remove every message [no default: one selector is required]
    #[arg(long)]
    pub all: bool,
}

/// `keys`.
#[derive(Debug, Clone, Args)]
pub struct Keys {
    /// The key-value store, such as app.settings
    pub subject: Subject,

    /// Only keys that start with this text
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

    /// Only changes of keys that start with this text [default: all changes]
    #[arg(long, value_name = "TEXT")]
    pub key_prefix: Option<String>,

    /// Stop after this number of changes [default: run until Ctrl-C]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Start with the existing messages [default: only changes from now on]
    #[arg(long)]
    pub history: bool,
}

/// Arguments of a command on one subject.
#[derive(Debug, Clone, Args)]
pub struct OneSubject {
    /// The stream or key-value store, such as app.orders.eu
    pub subject: Subject,
}

/// `subject …`.
#[derive(Debug, Clone, Subcommand)]
pub enum SubjectCommand {
    /// List subjects and their assigned servers, in byte order
    Ls(SubjectLs),
    /// Move a subject to another server. Waits until it is done, at most for --deadline
    Move(Move),
    /// Ask the coordinator which server serves the subject
    Locate(OneSubject),
    /// Wait until all writes so far are in the bucket
    Flush(OneSubject),
    /// Change the configuration of a subject
    Configure(Configure),
    /// Flush the subject, then write it with its large values as a file that `sqlite3` opens
    Export(Export),
    /// Remove the subject permanently, with all its messages
    Destroy(Destroy),
}

/// `gc`.
#[derive(Debug, Clone, Args)]
pub struct Gc {
    /// Subjects to scan for unreferenced objects [default: none, only the logs]
    pub subjects: Vec<Subject>,

    /// Only list the objects to delete [default: delete them]
    #[arg(long)]
    pub dry_run: bool,

    /// Maximum number of deletions per second
    #[arg(long, value_name = "NUMBER", default_value = "50")]
    pub per_second: u32,

    /// The bucket: file:///dir, s3://name, gs://name or az://name [default: that of the fleet on --data-dir]
    #[arg(long, value_name = "URL", env = "DORMOUSE_BUCKET", hide_env_values = true)]
    pub bucket: Option<String>,

    /// Data directory of a running `dormouse dev`, to use its bucket; ignored if --bucket is given
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

    /// Data directory of a running `dormouse dev`, to use its bucket; ignored if --bucket is given
    #[arg(long, value_name = "DIR", env = "DORMOUSE_DATA_DIR", default_value = DEV_DATA_DIR)]
    pub data_dir: PathBuf,

    /// Replace an existing file [default: fail]
    #[arg(long)]
    pub force: bool,
}

/// `subject destroy`.
#[derive(Debug, Clone, Args)]
pub struct Destroy {
    /// The stream or key-value store, such as app.orders.eu
    pub subject: Subject,

    /// Confirm the destroy [no default: required]
    #[arg(long, required = true)]
    pub yes: bool,
}

/// `dev`.
///
/// The command searches dormouse-coordinator and dormouse-persist-server beside this program, then on PATH. It uses the
/// nats-server that DORMOUSE_NATS_SERVER names, else the one on PATH, else the one in .tools/bin (of the working
/// directory, or above this program). When the fleet is ready, `fleet.json` in the data directory has the addresses and
/// process ids. If this command is killed, the kernel stops its children with SIGTERM (Linux).
#[derive(Debug, Clone, Args)]
pub struct Dev {
    /// Number of persistence servers
    #[arg(
        long,
        value_name = "NUMBER",
        env = "DORMOUSE_SERVERS",
        default_value = "2",
        value_parser = clap::value_parser!(u16).range(1..=64)
    )]
    pub servers: u16,

    /// Directory for all data: bucket, state, fleet.json. Created if missing; one fleet at a time
    #[arg(long, value_name = "DIR", env = "DORMOUSE_DATA_DIR", default_value = DEV_DATA_DIR)]
    pub data_dir: PathBuf,

    /// Port of the nats-server on 127.0.0.1; 0 or -1: any free port
    #[arg(
        long,
        value_name = "PORT",
        env = "DORMOUSE_PORT",
        default_value = "4222",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(i32).range(-1..=65_535)
    )]
    pub port: i32,

    /// Time without a heartbeat after which another server may take over
    #[arg(long, value_name = "DURATION", env = "DORMOUSE_LEASE_TTL", default_value = "3s")]
    pub lease_ttl: humantime::Duration,

    /// Restart a process that ends unexpectedly [default: report it and continue]
    #[arg(long, env = "DORMOUSE_RESTART", value_parser = FalseyValueParser::new())]
    pub restart: bool,
}

/// The default data directory of `dev`.
pub const DEV_DATA_DIR: &str = ".dormouse-dev";

/// `run-child`.
#[derive(Debug, Clone, Args)]
pub struct RunChild {
    /// Id of the process whose end stops the program
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
    /// The errors of clap, which include `--help` and `--version`.
    pub fn read(line: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, clap::Error> {
        let matches = ignore_empty_variables(Self::definition()).try_get_matches_from(line)?;
        let mut cli = Self::from_arg_matches(&matches)?;
        cli.global.connection_flags = connection_flags(&matches);
        match cli.global.connection_flags.first() {
            Some(flag) if matches!(cli.command, Command::Dev(_)) => {
                let text = format!("--{flag} cannot be used with `dev`, which starts its own nats-server\n");
                Err(Self::command().error(ErrorKind::ArgumentConflict, text))
            }
            _ => Ok(cli),
        }
    }

    /// The clap definition of the command line. Global arguments may come before or after the command. Only `--help`,
    /// not `-h`, shows the connection arguments.
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

/// The connection flags that the command line itself contains, without those of the environment.
fn connection_flags(matches: &ArgMatches) -> BTreeSet<String> {
    let given =
        matches.ids().filter(|id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine));
    let flags = given.map(|id| id.as_str().replace('_', "-"));
    flags.filter(|flag| flag == "context" || flag == "nats" || flag.starts_with("nats-")).collect()
}

#[cfg(test)]
mod tests;
