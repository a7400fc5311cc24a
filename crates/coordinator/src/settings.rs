//! The settings of the coordinator, resolved and validated as a whole; all errors are reported at once.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use dormouse_bus::nats::NatsOptions;
use dormouse_daemon::settings::duration_within;
use dormouse_daemon::{DaemonSettings, SettingsErrors, SettingsParser};
use dormouse_protocol::Prefix;
use dormouse_runtime::logging::LogFormat;

use crate::args::Args;
use crate::lease::LONGEST_TTL;
use crate::shell::CoordinatorOptions;

const LEASE_TTL: RangeInclusive<Duration> = Duration::from_millis(500)..=LONGEST_TTL;
const SHUTDOWN_DEADLINE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);

/// All settings of the program, validated. The debug output contains no secret.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The NATS connection.
    pub nats: NatsOptions,
    /// The data directory.
    pub data_dir: PathBuf,
    /// The options of the coordinator itself.
    pub coordinator: CoordinatorOptions,
    /// The address of the HTTP server for metrics, if there is one.
    pub metrics_listen: Option<SocketAddr>,
    /// The deadline of a graceful shutdown.
    pub shutdown_deadline: Duration,
    /// The log filter.
    pub log: String,
    /// The log format.
    pub log_format: LogFormat,
}

impl Settings {
    /// Resolves and validates the command line and the environment.
    ///
    /// # Errors
    /// [`SettingsErrors`] with all errors, not only the first one.
    pub fn resolve(args: &Args) -> Result<Self, SettingsErrors> {
        let mut check = SettingsParser::default();
        let nats = check.nats(&args.nats);
        let data_dir = check.given("--data-dir", args.data_dir.as_deref().unwrap_or_default(), data_dir);
        let prefix = check.given("--prefix", &args.prefix, Prefix::new);
        let lease_ttl = check.given("--lease-ttl", &args.lease_ttl, |text| duration_within(text, &LEASE_TTL));
        let daemon =
            check.daemon(&args.daemon, prefix.as_ref(), |text| duration_within(text, &SHUTDOWN_DEADLINE));
        // Each `None` stands for an error that is already recorded.
        let resolve = || {
            let DaemonSettings {
                inbox_prefixes,
                callers,
                tenant_rule,
                metrics_listen,
                shutdown_deadline,
                log,
                log_format,
            } = daemon?;
            let coordinator = CoordinatorOptions {
                prefix: prefix?,
                lease_ttl: lease_ttl?,
                inbox_prefixes,
                callers,
                tenant_rule,
            };
            Some(Self {
                nats: NatsOptions {
                    connection_name: "dormouse-coordinator".to_owned(),
                    // The coordinator may start before NATS does.
                    retry_on_first_connect: true,
                    ..nats?
                },
                data_dir: data_dir?,
                coordinator,
                metrics_listen,
                shutdown_deadline,
                log,
                log_format,
            })
        };
        check.finish(resolve())
    }
}

fn data_dir(text: &str) -> Result<PathBuf, &'static str> {
    if text.is_empty() { Err("a directory is required") } else { Ok(text.into()) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use dormouse_bus::{Callers, InboxPrefixes};
    use dormouse_protocol::TenantRule;

    use super::*;

    fn resolve(arguments: &[&str]) -> Result<Settings, SettingsErrors> {
        Settings::resolve(&Args::try_parse_from(std::iter::once(&"program").chain(arguments)).unwrap())
    }

    /// The data directory is the only required setting; the others have defaults.
    #[test]
    fn settings_default_all_but_data_dir() {
        let settings = resolve(&["--data-dir=d"]).unwrap();
        assert_eq!(settings.coordinator.prefix.as_str(), "persist");
        assert_eq!(settings.coordinator.lease_ttl, Duration::from_secs(3));
        assert_eq!(settings.coordinator.inbox_prefixes, InboxPrefixes::default());
        assert_eq!(settings.log, "info,async_nats=warn");
        assert_eq!(settings.data_dir, PathBuf::from("d"));
    }

    /// The coordinator reports all invalid settings at once, each with its flag.
    #[test]
    fn settings_errors_are_reported_together() {
        let faults = resolve(&[
            "--nats=http://x",
            "--prefix=a.*",
            "--lease-ttl=100ms",
            "--inbox-prefix=_INBOX,a.>",
            "--shutdown-deadline=soon",
            "--log-format=xml",
        ])
        .unwrap_err();
        let flags = [
            "--nats",
            "--data-dir",
            "--prefix",
            "--lease-ttl",
            "--inbox-prefix",
            "--shutdown",
            "--log-format",
        ];
        assert_eq!(faults.0.len(), flags.len(), "{faults}");
        for (fault, flag) in faults.0.iter().zip(flags) {
            assert!(fault.starts_with(flag), "{fault}");
        }
    }

    /// The lease TTL setting accepts 500 ms to 20 s, and the error names the range.
    #[test]
    fn lease_ttl_setting_must_be_500ms_to_20s() {
        for (text, valid) in [("499ms", false), ("500ms", true), ("20s", true), ("21s", false), ("3", false)]
        {
            assert_eq!(resolve(&["--data-dir=d", "--lease-ttl", text]).is_ok(), valid, "{text}");
        }
        let faults = resolve(&["--data-dir=d", "--lease-ttl=60s"]).unwrap_err();
        assert_eq!(faults.0, ["--lease-ttl: 60s is not in the range 500ms to 20s"]);
    }

    /// An inbox prefix inside the fleet prefix or the NATS system namespace is rejected.
    #[test]
    fn settings_reject_inbox_prefix_of_fleet_or_system() {
        for (prefixes, valid) in [("_INBOX,app.", true), ("fleet", false), ("fleet.a", false), ("$JS", false)]
        {
            let arguments = ["--data-dir=d", "--prefix=fleet", "--inbox-prefix", prefixes];
            assert_eq!(resolve(&arguments).is_ok(), valid, "{prefixes}");
        }
    }

    /// Inbox prefixes can be listed or repeated, and accounts are accepted only with `--tenant-accounts`.
    #[test]
    fn settings_read_inbox_prefixes_and_tenant_accounts() {
        let repeated =
            resolve(&["--data-dir=d", "--inbox-prefix=_INBOX", "--inbox-prefix=_R_", "--tenant-accounts"]);
        let listed = resolve(&["--data-dir=d", "--inbox-prefix=_INBOX,_R_"]);
        let (repeated, listed) = (repeated.unwrap().coordinator, listed.unwrap().coordinator);
        assert_eq!(repeated.inbox_prefixes, listed.inbox_prefixes);
        assert_eq!((repeated.callers, listed.callers), (Callers::Accounts, Callers::AsPermitted));
    }

    /// The first token names the tenant by default; `--tenant-tokens` sets the number, and accounts come before it.
    #[test]
    fn settings_read_tenant_rule() {
        for (arguments, rule) in [
            (&["--data-dir=d"][..], TenantRule::Tokens(1)),
            (&["--data-dir=d", "--tenant-tokens=2"], TenantRule::Tokens(2)),
            (&["--data-dir=d", "--tenant-tokens=2", "--tenant-accounts"], TenantRule::Account),
        ] {
            assert_eq!(resolve(arguments).unwrap().coordinator.tenant_rule, rule, "{arguments:?}");
        }
        let faults = resolve(&["--data-dir=d", "--tenant-tokens=0", "--tenant-accounts"]).unwrap_err();
        assert_eq!(faults.0, [r#"--tenant-tokens: "0" is not a number from 1 to 16"#]);
    }

    /// The debug output of the settings contains no secret.
    #[test]
    fn settings_debug_output_hides_secrets() {
        let settings =
            resolve(&["--data-dir=d", "--nats=nats://u:hunter2@h", "--nats-token=hunter2"]).unwrap();
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
