//! The shared parts of the two daemons, `dormouse-coordinator` and `dormouse-persist-server`: command-line arguments,
//! settings errors, start and stop.
//!
//! | module | holds |
//! |---|---|
//! | [`args`] | [`DaemonArgs`]: the arguments that both have, as written |
//! | [`figures`] | metrics of endpoints and of the log |
//! | [`metrics`] | the HTTP server of `--metrics-listen` |
//! | [`settings`] | [`SettingsParser`]: resolves all settings at once and collects every error; [`DaemonSettings`] |
//! | [`start`] | logging, the async runtime, the exit codes |
//! | [`stop`] | [`StopSignals`]: SIGTERM and SIGINT |
//!
//! The crate decides nothing about requests.

pub mod args;
pub mod figures;
pub mod metrics;
pub mod settings;
pub mod start;
pub mod stop;
pub mod umask;

pub use args::{DaemonArgs, DaemonHelp};
pub use metrics::MetricsListener;
pub use settings::{DaemonSettings, SettingsErrors, SettingsParser};
pub use start::ExitReason;
pub use stop::StopSignals;
