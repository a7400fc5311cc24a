//! Accepted and rejected settings, and complete error reports.

use clap::Parser;
use dormouse_engine::EngineSettings;

use super::*;

fn args(extra: &[&str]) -> Args {
    let usual =
        ["dormouse-persist-server", "--name", "a", "--bucket", "file:///var/bucket", "--data-dir", "/var/a"];
    Args::try_parse_from(usual.iter().chain(extra)).unwrap()
}

/// Name, bucket and data directory are the only required settings; the others have defaults.
#[test]
fn settings_require_only_three_flags() {
    let settings = Settings::resolve(&args(&[])).unwrap();
    assert_eq!(settings.name.as_str(), "a");
    assert_eq!(settings.bucket, "file:///var/bucket");
    assert_eq!(settings.level, Level::Bucket);
    assert_eq!(settings.prefix, Prefix::default());
    assert_eq!(settings.ship, LogSettings::default());
    assert_eq!(settings.max_local_bytes, None);
    assert_eq!(settings.idle_close, Duration::from_secs(60));
    assert_eq!(settings.max_open, None);
    assert_eq!(settings.max_uploads, EngineSettings::MAX_UPLOADS);
    assert_eq!(settings.max_upload_bytes, EngineSettings::MAX_UPLOAD_BYTES);
    assert_eq!(settings.inbox_prefixes, InboxPrefixes::default());
    assert_eq!(settings.callers, Callers::AsPermitted);
    assert_eq!(settings.log, "info,async_nats=warn");
    assert_eq!(settings.shutdown_deadline, Duration::from_secs(30));
}

/// The server reports all invalid settings at once, in a fixed order, each with its flag.
#[test]
fn settings_errors_are_reported_together() {
    let args = Args::try_parse_from([
        "dormouse-persist-server",
        "--name",
        "Not a Name",
        "--data-dir",
        "",
        "--level",
        "none",
        "--prefix",
        "a.*",
        "--capacity",
        "0",
        "--ship-interval",
        "soon",
        "--max-unshipped-age",
        "1ms",
        "--max-unshipped-bytes",
        "1",
        "--max-puts-per-second",
        "0",
        "--max-log-bytes",
        "1000",
        "--max-local-bytes",
        "all",
        "--idle-close",
        "1ms",
        "--max-open",
        "many",
        "--max-uploads",
        "0",
        "--max-upload-bytes",
        "1000",
        "--nats-password",
        "secret",
        "--inbox-prefix",
        "_INBOX.,*",
        "--shutdown-deadline",
        "0s",
        "--log-format",
        "xml",
    ])
    .unwrap();
    let SettingsErrors(faults) = Settings::resolve(&args).unwrap_err();
    let flags: Vec<&str> = faults.iter().filter_map(|fault| fault.split([':', ' ']).next()).collect();
    let expected = [
        "--nats-password",
        "--name",
        "--bucket",
        "--data-dir",
        "--level",
        "--prefix",
        "--capacity",
        "--ship-interval",
        "--max-unshipped-age",
        "--max-unshipped-bytes",
        "--max-puts-per-second",
        "--max-log-bytes",
        "--max-local-bytes",
        "--idle-close",
        "--max-open",
        "--max-uploads",
        "--max-upload-bytes",
        "--inbox-prefix",
        "--shutdown-deadline",
        "--log-format",
    ];
    assert_eq!(flags, expected, "{faults:?}");
}

/// A limit of the log's bytes that is too small is refused with the minimum.
#[test]
fn settings_refuse_small_log_with_minimum() {
    let SettingsErrors(faults) = Settings::resolve(&args(&["--max-log-bytes=67108863"])).unwrap_err();
    assert!(faults[0].contains("from 67108864 "), "{faults:?}");
    let settings = Settings::resolve(&args(&["--max-log-bytes=67108864"])).unwrap();
    assert_eq!(settings.ship.max_log_bytes, 64 << 20);
    assert_eq!(Settings::resolve(&args(&[])).unwrap().ship.max_log_bytes, 1 << 30);
}

/// Each level is accepted as the default level.
#[test]
fn settings_accept_each_level_as_default() {
    for level in Level::ALL {
        assert_eq!(Settings::resolve(&args(&["--level", level.as_str()])).unwrap().level, level);
    }
}

/// An inbox prefix inside the fleet prefix or the NATS system namespace is rejected.
#[test]
fn settings_reject_inbox_prefix_of_fleet_or_system() {
    for (prefixes, fine) in [("_INBOX,app.", true), ("fleet", false), ("fleet.a", false), ("$JS", false)] {
        let resolved = Settings::resolve(&args(&["--prefix=fleet", "--inbox-prefix", prefixes]));
        assert_eq!(resolved.is_ok(), fine, "{prefixes}");
    }
}

/// Inbox prefixes can be listed or repeated, and accounts are trusted only with `--tenant-accounts`.
#[test]
fn settings_read_inbox_prefixes_and_tenant_accounts() {
    let one_by_one = ["--inbox-prefix", "_INBOX", "--inbox-prefix=_R_.", "--tenant-accounts"];
    let settings = Settings::resolve(&args(&one_by_one)).unwrap();
    let together = Settings::resolve(&args(&["--inbox-prefix=_INBOX., _R_"])).unwrap();
    assert_eq!(settings.inbox_prefixes, together.inbox_prefixes);
    assert_eq!((settings.callers, together.callers), (Callers::Accounts, Callers::AsPermitted));
}

/// The command line rejects an unknown flag.
#[test]
fn args_reject_unknown_flag() {
    assert!(Args::try_parse_from(["dormouse-persist-server", "--shards", "7"]).is_err());
}

/// Credentials and query values of a bucket URL are redacted, and so is a text that is no URL.
#[test]
fn bucket_url_secrets_are_redacted() {
    assert_eq!(hide_secrets("file:///var/bucket"), "file:///var/bucket");
    assert_eq!(
        hide_secrets("s3://key:secret@bucket/folder?endpoint=http://x&session=abc"),
        "s3://***:***@bucket/folder?endpoint=***&session=***"
    );
    assert_eq!(hide_secrets("not a url with a secret"), "***");
}

/// The help lists each flag with its environment variable, and the exit codes 0 to 5.
#[test]
fn help_lists_flags_variables_and_exit_codes() {
    use clap::CommandFactory;
    let help = Args::command().render_long_help().to_string();
    for argument in Args::command().get_arguments() {
        let (Some(flag), Some(variable)) = (argument.get_long(), argument.get_env()) else { continue };
        assert!(help.contains(&format!("--{flag}")));
        assert!(help.contains(&*variable.to_string_lossy()));
    }
    for code in 0..=5 {
        assert!(help.contains(&format!("\n  {code}    ")), "exit code {code} is documented");
    }
}
