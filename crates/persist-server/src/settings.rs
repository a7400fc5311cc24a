//! The settings of the server: resolved and checked together. All errors are reported at once.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use dormouse_bus::nats::NatsOptions;
use dormouse_bus::{Callers, InboxPrefixes};
use dormouse_daemon::settings::duration_from;
use dormouse_daemon::{DaemonSettings, SettingsErrors, SettingsParser};
use dormouse_engine::LogSettings;
use dormouse_protocol::{Level, Prefix, ServerName, TenantRule};
use dormouse_runtime::logging::LogFormat;
use url::Url;

use crate::args::Args;

/// The validated settings of the server.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The server's name in the fleet.
    pub name: ServerName,
    /// URL of the bucket. It may contain secrets: print it through [`hide_secrets`].
    pub bucket: String,
    /// Directory for the files of open subjects.
    pub data_dir: PathBuf,
    /// Default level of writes, for subjects whose configuration has none.
    pub level: Level,
    /// The first tokens of every route.
    pub prefix: Prefix,
    /// The server's share of the subjects relative to others.
    pub capacity: u32,
    /// How the log ships changes to the bucket.
    pub ship: LogSettings,
    /// Bytes of local files above which the server removes files of dormant subjects.
    pub max_local_bytes: Option<u64>,
    /// Time without a request after which a subject closes.
    pub idle_close: Duration,
    /// Maximum number of open subjects; `None`: the default, capped by the file descriptors.
    pub max_open: Option<usize>,
    /// Maximum number of uploads at a time.
    pub max_uploads: usize,
    /// Maximum bytes of all running uploads on the local disk.
    pub max_upload_bytes: u64,
    /// NATS connection.
    pub nats: NatsOptions,
    /// The server replies only to addresses that begin with one of these prefixes.
    pub inbox_prefixes: InboxPrefixes,
    /// How the server checks the subject of a request against its caller.
    pub callers: Callers,
    /// Which part of a request names its tenant.
    pub tenant_rule: TenantRule,
    /// The address of the HTTP server for metrics, if there is one.
    pub metrics_listen: Option<SocketAddr>,
    /// Deadline of a graceful shutdown.
    pub shutdown_deadline: Duration,
    /// Log filter.
    pub log: String,
    /// Format of log lines.
    pub log_format: LogFormat,
}

impl Settings {
    /// Resolves and checks the settings from the command line and the environment.
    ///
    /// # Errors
    /// [`SettingsErrors`] with all errors.
    pub fn resolve(args: &Args) -> Result<Self, SettingsErrors> {
        let mut check = SettingsParser::default();
        let nats = check.nats(&args.nats);
        let name = check.required("--name", args.name.as_deref(), ServerName::new);
        let bucket = check.required("--bucket", args.bucket.as_deref(), bucket);
        let data_dir = check.required("--data-dir", args.data_dir.as_deref(), data_dir);
        let level = check.given("--level", &args.level, str::parse::<Level>);
        let prefix = check.given("--prefix", &args.prefix, Prefix::new);
        let capacity = check.given("--capacity", &args.capacity, |text| number(text, 1..=1_000_000));
        let ship = ship(&mut check, args);
        let max_local_bytes = match &args.max_local_bytes {
            None => Some(None),
            Some(text) => check.given("--max-local-bytes", text, |text| number(text, 1..=u64::MAX)).map(Some),
        };
        let idle_close =
            check.given("--idle-close", &args.idle_close, |text| duration_from(text, Duration::from_secs(1)));
        let max_open = match &args.max_open {
            None => Some(None),
            Some(text) => check.given("--max-open", text, |text| number(text, 1..=1_000_000)).map(Some),
        };
        let max_uploads = check.given("--max-uploads", &args.max_uploads, |text| number(text, 1..=100_000));
        let max_upload_bytes =
            check.given("--max-upload-bytes", &args.max_upload_bytes, |text| number(text, 1 << 20..=1 << 60));
        let daemon =
            check.daemon(&args.daemon, prefix.as_ref(), |text| duration_from(text, Duration::from_secs(1)));
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
            Some(Self {
                name: name?,
                bucket: bucket?,
                data_dir: data_dir?,
                level: level?,
                prefix: prefix?,
                capacity: capacity?,
                ship: ship?,
                max_local_bytes: max_local_bytes?,
                idle_close: idle_close?,
                max_open: max_open?,
                max_uploads: max_uploads?,
                max_upload_bytes: max_upload_bytes?,
                nats: nats?,
                inbox_prefixes,
                callers,
                tenant_rule,
                metrics_listen,
                shutdown_deadline,
                log,
                log_format,
            })
        };
        check.finish(resolve())
    }
}

fn ship(check: &mut SettingsParser, args: &Args) -> Option<LogSettings> {
    let ship_interval = check
        .given("--ship-interval", &args.ship_interval, |text| duration_from(text, Duration::from_millis(1)));
    let max_unshipped_age = check.given("--max-unshipped-age", &args.max_unshipped_age, |text| {
        duration_from(text, Duration::from_millis(100))
    });
    // A limit below the largest entry would make that entry impossible to write.
    let max_unshipped_bytes = check
        .given("--max-unshipped-bytes", &args.max_unshipped_bytes, |text| number(text, 32 << 20..=64 << 30));
    let max_puts_per_second =
        check.given("--max-puts-per-second", &args.max_puts_per_second, |text| number(text, 1..=10_000));
    // A smaller limit is less than a few of the largest segments.
    let max_log_bytes =
        check.given("--max-log-bytes", &args.max_log_bytes, |text| number(text, 64 << 20..=1 << 60));
    Some(LogSettings {
        ship_interval: ship_interval?,
        max_unshipped_age: max_unshipped_age?,
        max_unshipped_bytes: max_unshipped_bytes?,
        max_puts_per_second: max_puts_per_second?,
        max_log_bytes: max_log_bytes?,
        ..LogSettings::default()
    })
}

fn bucket(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| {
        format!("not a URL ({error}); use file:///dir, s3://name, gs://name, az://name or memory://")
    })?;
    Ok(url.into())
}

fn data_dir(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("empty directory name".to_owned()) } else { Ok(text.into()) }
}

fn number<T>(text: &str, range: RangeInclusive<T>) -> Result<T, String>
where
    T: FromStr + PartialOrd + fmt::Display,
{
    text.parse()
        .ok()
        .filter(|number| range.contains(number))
        .ok_or_else(|| format!("{text:?} is not a number from {} to {}", range.start(), range.end()))
}

/// A printable form of a URL: user information and query values are hidden.
#[must_use]
pub fn hide_secrets(url: &str) -> String {
    const HIDDEN: &str = "***";
    let Ok(mut url) = Url::parse(url) else { return HIDDEN.to_owned() };
    // The setters cannot fail here: the URL has a host if it has user information.
    if !url.username().is_empty() {
        let _ = url.set_username(HIDDEN);
    }
    if url.password().is_some() {
        let _ = url.set_password(Some(HIDDEN));
    }
    let keys: Vec<String> = url.query_pairs().map(|(key, _)| key.into_owned()).collect();
    if !keys.is_empty() {
        url.query_pairs_mut().clear().extend_pairs(keys.iter().map(|key| (key, HIDDEN)));
    }
    url.into()
}

#[cfg(test)]
mod tests;
