//! The command-line arguments that both daemons have, as written. [`crate::settings`] checks them.

use std::fmt;
use std::marker::PhantomData;

/// The words of a program in the `--help` of the [`DaemonArgs`].
pub trait DaemonHelp: fmt::Debug + Clone {
    /// The heading of the arguments that are not about logging.
    const HEADING: &'static str;
    /// The help of `--inbox-prefix`.
    const INBOX_PREFIX: &'static str;
    /// The help of `--tenant-accounts`.
    const TENANT_ACCOUNTS: &'static str;
    /// The help of `--shutdown-deadline`.
    const SHUTDOWN_DEADLINE: &'static str;
    /// The default of `--shutdown-deadline`.
    const DEFAULT_SHUTDOWN_DEADLINE: &'static str;
    /// The help of `--log`.
    const LOG: &'static str;
    /// The help of `--log-format`.
    const LOG_FORMAT: &'static str;
}

/// The last arguments of a daemon, for `flatten`. `H` has the words of the program.
#[derive(Debug, Clone, clap::Args)]
pub struct DaemonArgs<H: DaemonHelp> {
    /// The prefixes of the reply addresses that the program accepts.
    #[arg(
        long,
        env = "DORMOUSE_INBOX_PREFIX",
        value_name = "PREFIX[,PREFIX]",
        default_value = "_INBOX.",
        help = H::INBOX_PREFIX,
        help_heading = H::HEADING
    )]
    pub inbox_prefix: Vec<String>,

    /// Whether the program trusts the account that nats-server writes into each request.
    #[arg(
        long,
        env = "DORMOUSE_TENANT_ACCOUNTS",
        value_parser = clap::builder::FalseyValueParser::new(),
        help = H::TENANT_ACCOUNTS,
        help_heading = H::HEADING
    )]
    pub tenant_accounts: bool,

    /// The number of tokens of the subject that name the tenant of a request.
    #[arg(
        long,
        env = "DORMOUSE_TENANT_TOKENS",
        value_name = "N",
        default_value = "1",
        help = "Tenants share the service in turn. The first N tokens of a subject name its tenant, unless \
            --tenant-accounts is set: then the account does. Use the same value for all programs of a fleet",
        help_heading = H::HEADING
    )]
    pub tenant_tokens: String,

    /// The address of the HTTP server for metrics.
    #[arg(
        long,
        env = "DORMOUSE_METRICS_LISTEN",
        value_name = "ADDR",
        help = "Serve metrics in the format of Prometheus at http://ADDR/metrics, such as 127.0.0.1:9464. There is \
            no login, so use an address that only operators reach (default: off)",
        help_heading = H::HEADING
    )]
    pub metrics_listen: Option<String>,

    /// The deadline of a graceful shutdown.
    #[arg(
        long,
        env = "DORMOUSE_SHUTDOWN_DEADLINE",
        value_name = "DURATION",
        default_value = H::DEFAULT_SHUTDOWN_DEADLINE,
        help = H::SHUTDOWN_DEADLINE,
        help_heading = H::HEADING
    )]
    pub shutdown_deadline: String,

    /// The log filter.
    #[arg(
        long,
        env = "DORMOUSE_LOG",
        value_name = "FILTER",
        default_value = "info,async_nats=warn",
        help = H::LOG,
        help_heading = "Logging"
    )]
    pub log: String,

    /// The format of log lines.
    #[arg(
        long,
        env = "DORMOUSE_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text",
        help = H::LOG_FORMAT,
        help_heading = "Logging"
    )]
    pub log_format: String,

    #[arg(skip)]
    words: PhantomData<H>,
}
