//! What is accepted, what is refused, and that every fault is said.

use clap::Parser;
use dormouse_storage::EngineSettings;

use super::*;

fn args(extra: &[&str]) -> Args {
    let usual =
        ["dormouse-persist-server", "--name", "a", "--bucket", "file:///var/bucket", "--data-dir", "/var/a"];
    Args::try_parse_from(usual.iter().chain(extra)).unwrap()
}

#[test]
fn three_flags_are_enough() {
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
    assert_eq!(settings.log, "info,async_nats=warn");
    assert_eq!(settings.shutdown_deadline, Duration::from_secs(30));
}

#[test]
fn every_fault_is_said_at_once() {
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
    let Faults(faults) = Settings::resolve(&args).unwrap_err();
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

#[test]
fn every_level_can_be_the_default() {
    for level in Level::ALL {
        assert_eq!(Settings::resolve(&args(&["--level", level.as_str()])).unwrap().level, level);
    }
}

#[test]
fn answers_go_neither_to_the_fleet_nor_to_the_system() {
    for (prefixes, fine) in [("_INBOX,app.", true), ("fleet", false), ("fleet.a", false), ("$JS", false)] {
        let resolved = Settings::resolve(&args(&["--prefix=fleet", "--inbox-prefix", prefixes]));
        assert_eq!(resolved.is_ok(), fine, "{prefixes}");
    }
}

#[test]
fn an_unknown_flag_is_refused() {
    assert!(Args::try_parse_from(["dormouse-persist-server", "--shards", "7"]).is_err());
}

#[test]
fn secrets_are_hidden() {
    assert_eq!(hide_secrets("file:///var/bucket"), "file:///var/bucket");
    assert_eq!(
        hide_secrets("s3://key:secret@bucket/folder?endpoint=http://x&session=abc"),
        "s3://***:***@bucket/folder?endpoint=***&session=***"
    );
    assert_eq!(hide_secrets("not a url with a secret"), "***");
}

#[test]
fn help_names_every_flag_its_variable_and_the_exit_codes() {
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
