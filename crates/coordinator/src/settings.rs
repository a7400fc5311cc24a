//! What the coordinator was told: resolved and checked as a whole, every fault at once.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use dormouse_bus::nats::NatsOptions;
use dormouse_bus::{Callers, InboxPrefixes};
use dormouse_protocol::Prefix;
use dormouse_runtime::logging::LogFormat;

use crate::args::Args;
use crate::lease::LONGEST_TTL;
use crate::shell::CoordinatorOptions;

const LEASE_TTL: RangeInclusive<Duration> = Duration::from_millis(500)..=LONGEST_TTL;
const SHUTDOWN_DEADLINE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);

/// Everything the program needs to know, checked. Printing it shows no secret.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The connection.
    pub nats: NatsOptions,
    /// Where the state is kept.
    pub data_dir: PathBuf,
    /// What the coordinator itself is told.
    pub coordinator: CoordinatorOptions,
    /// How long a graceful shutdown may take.
    pub shutdown_deadline: Duration,
    /// What is logged.
    pub log: String,
    /// How log lines look.
    pub log_format: LogFormat,
}

/// Everything that is wrong with the settings, one line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Faults(pub Vec<String>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the settings are wrong:")?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl Settings {
    /// Resolves and checks what was given on the command line and in the environment.
    ///
    /// # Errors
    /// [`Faults`] with everything that is wrong, not just the first.
    pub fn resolve(args: &Args) -> Result<Self, Faults> {
        let mut faults = Vec::new();
        let nats = args.nats.resolve().map_err(|error| faults.extend(error.0)).ok();
        let mut check = |flag: &str, fault: String| faults.push(format!("{flag}: {fault}"));
        let data_dir = args.data_dir.as_deref().filter(|path| !path.is_empty()).map(PathBuf::from);
        if data_dir.is_none() {
            check("--data-dir", "the name of a directory is required".to_owned());
        }
        let prefix = Prefix::new(&args.prefix).map_err(|error| check("--prefix", error.to_string())).ok();
        let lease_ttl =
            duration(&args.lease_ttl, &LEASE_TTL).map_err(|fault| check("--lease-ttl", fault)).ok();
        let fleet = prefix.clone().unwrap_or_default();
        let inbox_prefixes = InboxPrefixes::parse(&args.inbox_prefix.join(","), &fleet)
            .map_err(|error| check("--inbox-prefix", error.to_string()))
            .ok();
        let shutdown_deadline = duration(&args.shutdown_deadline, &SHUTDOWN_DEADLINE)
            .map_err(|fault| check("--shutdown-deadline", fault))
            .ok();
        let log_format =
            args.log_format.parse().map_err(|fault: &str| check("--log-format", fault.to_owned())).ok();
        // One `None` is one fault that has been noted.
        let resolve = || {
            let coordinator = CoordinatorOptions {
                prefix: prefix?,
                lease_ttl: lease_ttl?,
                inbox_prefixes: inbox_prefixes?,
                callers: if args.tenant_accounts { Callers::Accounts } else { Callers::AsPermitted },
            };
            Some(Self {
                nats: NatsOptions {
                    connection_name: "dormouse-coordinator".to_owned(),
                    // It may well be started before NATS is.
                    retry_on_first_connect: true,
                    ..nats?
                },
                data_dir: data_dir?,
                coordinator,
                shutdown_deadline: shutdown_deadline?,
                log: args.log.clone(),
                log_format: log_format?,
            })
        };
        resolve().ok_or(Faults(faults))
    }
}

fn duration(text: &str, range: &RangeInclusive<Duration>) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("{text:?} is not a duration such as 500ms, 10s or 2m: {error}"))?;
    if !range.contains(&duration) {
        let [least, most] = [range.start(), range.end()].map(|bound| humantime::format_duration(*bound));
        return Err(format!("{text} is not from {least} to {most}"));
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn resolve(arguments: &[&str]) -> Result<Settings, Faults> {
        Settings::resolve(&Args::try_parse_from(std::iter::once(&"program").chain(arguments)).unwrap())
    }

    #[test]
    fn little_needs_to_be_said() {
        let settings = resolve(&["--data-dir=d"]).unwrap();
        assert_eq!(settings.coordinator.prefix.as_str(), "persist");
        assert_eq!(settings.coordinator.lease_ttl, Duration::from_secs(3));
        assert_eq!(settings.coordinator.inbox_prefixes, InboxPrefixes::default());
        assert_eq!(settings.log, "info,async_nats=warn");
        assert_eq!(settings.data_dir, PathBuf::from("d"));
    }

    #[test]
    fn all_faults_are_told_at_once() {
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

    #[test]
    fn leases_are_neither_too_short_nor_too_long() {
        for (text, fine) in [("499ms", false), ("500ms", true), ("20s", true), ("21s", false), ("3", false)] {
            assert_eq!(resolve(&["--data-dir=d", "--lease-ttl", text]).is_ok(), fine, "{text}");
        }
        let faults = resolve(&["--data-dir=d", "--lease-ttl=60s"]).unwrap_err();
        assert_eq!(faults.0, ["--lease-ttl: 60s is not from 500ms to 20s"]);
    }

    #[test]
    fn answers_go_neither_to_the_fleet_nor_to_the_system() {
        for (prefixes, fine) in [("_INBOX,app.", true), ("fleet", false), ("fleet.a", false), ("$JS", false)]
        {
            let arguments = ["--data-dir=d", "--prefix=fleet", "--inbox-prefix", prefixes];
            assert_eq!(resolve(&arguments).is_ok(), fine, "{prefixes}");
        }
    }

    #[test]
    fn inboxes_are_named_together_or_one_by_one_and_accounts_are_believed_when_told_to() {
        let one_by_one =
            resolve(&["--data-dir=d", "--inbox-prefix=_INBOX", "--inbox-prefix=_R_", "--tenant-accounts"]);
        let together = resolve(&["--data-dir=d", "--inbox-prefix=_INBOX,_R_"]);
        let (one_by_one, together) = (one_by_one.unwrap().coordinator, together.unwrap().coordinator);
        assert_eq!(one_by_one.inbox_prefixes, together.inbox_prefixes);
        assert_eq!((one_by_one.callers, together.callers), (Callers::Accounts, Callers::AsPermitted));
    }

    #[test]
    fn no_secret_is_printed() {
        let settings =
            resolve(&["--data-dir=d", "--nats=nats://u:hunter2@h", "--nats-token=hunter2"]).unwrap();
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
