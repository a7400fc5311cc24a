//! Resolving settings: all at once, and every error is reported.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use dormouse_bus::args::{InvalidNatsArgs, NatsArgs};
use dormouse_bus::nats::NatsOptions;
use dormouse_bus::{Callers, InboxPrefixes};
use dormouse_protocol::{Prefix, TenantRule};
use dormouse_runtime::logging::LogFormat;

use crate::args::{DaemonArgs, DaemonHelp};
use crate::metrics::parse_listen;

/// All errors of the settings, one line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct SettingsErrors(pub Vec<String>);

impl fmt::Display for SettingsErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid settings:")?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

/// The validated settings of the [`DaemonArgs`].
#[derive(Debug, Clone)]
pub struct DaemonSettings {
    /// The program replies only to addresses that begin with one of these prefixes.
    pub inbox_prefixes: InboxPrefixes,
    /// How the program checks the subject of a request against its caller.
    pub callers: Callers,
    /// Which part of a request names its tenant.
    pub tenant_rule: TenantRule,
    /// The address of the HTTP server for metrics, if there is one.
    pub metrics_listen: Option<SocketAddr>,
    /// The deadline of a graceful shutdown.
    pub shutdown_deadline: Duration,
    /// The log filter.
    pub log: String,
    /// The format of log lines.
    pub log_format: LogFormat,
}

/// Collects errors while settings are parsed. A setting is `None` if its error is recorded.
#[derive(Debug, Default)]
pub struct SettingsParser {
    faults: Vec<String>,
}

impl SettingsParser {
    /// Parses the text of a flag.
    pub fn given<T, E: fmt::Display>(
        &mut self,
        flag: &str,
        text: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        parse(text).map_err(|fault| self.faults.push(format!("{flag}: {fault}"))).ok()
    }

    /// Parses the text of a flag that must be there.
    pub fn required<T, E: fmt::Display>(
        &mut self,
        flag: &str,
        text: Option<&str>,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        if text.is_none() {
            self.faults.push(format!("{flag} is missing"));
        }
        self.given(flag, text?, parse)
    }

    /// Resolves the NATS connection.
    pub fn nats(&mut self, args: &NatsArgs) -> Option<NatsOptions> {
        args.resolve().map_err(|InvalidNatsArgs(faults)| self.faults.extend(faults)).ok()
    }

    /// Resolves the arguments of both daemons. `prefix` is `None` if its error is recorded; `deadline` parses the
    /// shutdown deadline.
    pub fn daemon<H: DaemonHelp>(
        &mut self,
        args: &DaemonArgs<H>,
        prefix: Option<&Prefix>,
        deadline: impl FnOnce(&str) -> Result<Duration, String>,
    ) -> Option<DaemonSettings> {
        let fleet = prefix.cloned().unwrap_or_default();
        let inbox_prefixes = self
            .given("--inbox-prefix", &args.inbox_prefix.join(","), |text| InboxPrefixes::parse(text, &fleet));
        let tokens = self.given("--tenant-tokens", &args.tenant_tokens, TenantRule::parse_tokens);
        let metrics_listen = match &args.metrics_listen {
            None => Some(None),
            Some(text) => self.given("--metrics-listen", text, parse_listen).map(Some),
        };
        let shutdown_deadline = self.given("--shutdown-deadline", &args.shutdown_deadline, deadline);
        let log_format = self.given("--log-format", &args.log_format, str::parse);
        let tenant_rule =
            tokens.map(|tokens| if args.tenant_accounts { TenantRule::Account } else { tokens });
        Some(DaemonSettings {
            inbox_prefixes: inbox_prefixes?,
            callers: if args.tenant_accounts { Callers::Accounts } else { Callers::AsPermitted },
            tenant_rule: tenant_rule?,
            metrics_listen: metrics_listen?,
            shutdown_deadline: shutdown_deadline?,
            log: args.log.clone(),
            log_format: log_format?,
        })
    }

    /// The settings, or all errors. `settings` is `None` if at least one error is recorded.
    ///
    /// # Errors
    /// [`SettingsErrors`] with all errors.
    pub fn finish<T>(self, settings: Option<T>) -> Result<T, SettingsErrors> {
        settings.ok_or(SettingsErrors(self.faults))
    }
}

/// Parses a duration within `range`.
///
/// # Errors
/// A sentence about the text.
pub fn duration_within(text: &str, range: &RangeInclusive<Duration>) -> Result<Duration, String> {
    let duration = duration(text)?;
    if !range.contains(&duration) {
        let [least, most] = [range.start(), range.end()].map(|bound| humantime::format_duration(*bound));
        return Err(format!("{text} is not in the range {least} to {most}"));
    }
    Ok(duration)
}

/// Parses a duration of at least `least`.
///
/// # Errors
/// A sentence about the text.
pub fn duration_from(text: &str, least: Duration) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration < least {
        return Err(format!("at least {}", humantime::format_duration(least)));
    }
    Ok(duration)
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{text:?} is not a duration such as 500ms, 10s or 2m: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parser records the errors of all settings in order, and `finish` returns them together.
    #[test]
    fn settings_errors_are_kept_in_order() {
        let mut check = SettingsParser::default();
        assert_eq!(check.given("--a", "7", str::parse::<u8>), Some(7));
        assert_eq!(check.given("--b", "x", |_| Err::<u8, _>("is wrong")), None);
        assert_eq!(check.required("--c", None, str::parse::<u8>), None);
        let errors = check.finish(None::<u8>).unwrap_err();
        assert_eq!(errors.to_string(), "invalid settings:\n  --b: is wrong\n  --c is missing");
    }

    /// A duration outside its bounds is rejected with the bounds.
    #[test]
    fn duration_out_of_bounds_names_bounds() {
        let second = Duration::from_secs(1);
        assert_eq!(duration_from("2s", second), Ok(2 * second));
        assert_eq!(duration_from("10ms", second), Err("at least 1s".to_owned()));
        let range = second..=3 * second;
        assert_eq!(duration_within("3s", &range), Ok(3 * second));
        assert_eq!(duration_within("4s", &range), Err("4s is not in the range 1s to 3s".to_owned()));
    }
}
