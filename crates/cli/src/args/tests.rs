use std::time::Duration;

use dormouse_protocol::Term;
use dormouse_protocol::message::{Discard, SubjectConfig};
use dormouse_protocol::tenant::TenantLimits;

use super::*;

fn read(line: &str) -> Result<Cli, clap::Error> {
    Cli::read(std::iter::once("dormouse").chain(line.split_whitespace()))
}

fn command(line: &str) -> Command {
    read(line).unwrap_or_else(|error| panic!("{line}: {error}")).command
}

fn refused(line: &str) {
    assert_eq!(read(line).unwrap_err().exit_code(), 2, "{line}");
}

/// Every leaf command with its name.
fn leaves(command: &clap::Command, words: &str, found: &mut Vec<(String, clap::Command)>) {
    if command.has_subcommands() {
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
            leaves(sub, &format!("{words} {}", sub.get_name()), found);
        }
    } else {
        found.push((words.trim().to_owned(), command.clone()));
    }
}

/// The command line definition passes the consistency checks of clap.
#[test]
fn cli_definition_is_valid() {
    Cli::definition().debug_assert();
}

/// The help of each command states the default of each flag.
#[test]
fn cli_help_states_default_of_each_flag() {
    let mut definition = Cli::definition();
    definition.build();
    let mut commands = Vec::new();
    leaves(&definition, "", &mut commands);
    let names: Vec<&str> = commands.iter().map(|(words, _)| words.as_str()).collect();
    assert_eq!(
        names,
        [
            "set",
            "get",
            "ls",
            "rm",
            "keys",
            "watch",
            "info",
            "server ls",
            "server info",
            "server drain",
            "server undrain",
            "server health",
            "server metrics",
            "subject ls",
            "subject move",
            "subject locate",
            "subject flush",
            "subject configure",
            "subject export",
            "subject destroy",
            "tenant ls",
            "tenant limit",
            "rebalance",
            "gc",
            "dev"
        ]
    );
    for (words, command) in &mut commands {
        let mut checked = 0;
        for arg in command.get_arguments().filter(|arg| !matches!(arg.get_id().as_str(), "help" | "version"))
        {
            let help = arg.get_long_help().or(arg.get_help()).unwrap_or_default().to_string();
            let stated = help.contains("default:") || !arg.get_default_values().is_empty();
            let positional = arg.is_positional();
            assert!(!help.is_empty(), "{words}: {arg} has no help");
            assert!(stated || positional, "{words}: {arg} does not state its default: {help}");
            checked += 1;
        }
        assert!(checked > 10, "{words}: the global arguments are missing");
        let long = command.render_long_help().to_string();
        assert!(long.contains("[default: 10s]") && long.contains("DORMOUSE_DEADLINE"), "{words}: {long}");
    }
    assert!(Cli::definition().render_help().to_string().contains("Exit codes:"));
}

/// Global flags work before and after the command, and have defaults.
#[test]
fn cli_global_flags_work_before_and_after_command() {
    for line in [
        "--json --prefix mine --deadline 3s --nats nats://h:1 --context c get app.s --key k",
        "get app.s --key k --json --prefix mine --deadline 3s --nats nats://h:1 --context c",
    ] {
        let global = read(line).unwrap().global;
        assert!(global.json, "{line}");
        assert_eq!(global.prefix.as_str(), "mine", "{line}");
        assert_eq!(Duration::from(global.deadline), Duration::from_secs(3), "{line}");
        assert_eq!(global.nats.nats.len(), 1, "{line}");
        assert_eq!(global.context.as_deref(), Some("c"), "{line}");
    }
    let global = read("subject locate app.s").unwrap().global;
    assert_eq!((global.prefix.as_str(), global.json), ("persist", false));
    assert_eq!(Duration::from(global.deadline), Duration::from_secs(10));
}

/// `set` takes exactly one value from one source and rejects malformed options.
#[test]
fn set_takes_one_value_from_one_source() {
    let Command::Set(set) = command("set app.s hello --key k --header a:b --header c:d:e") else { panic!() };
    assert_eq!((set.value.unwrap(), set.key.as_deref()), (OsString::from("hello"), Some("k")));
    let header = |name: &str, value: &str| HeaderArg { name: name.to_owned(), value: value.to_owned() };
    assert_eq!(set.headers, [header("a", "b"), header("c", "d:e")]);
    let Command::Set(set) = command("set app.s -") else { panic!() };
    assert_eq!(set.value.unwrap(), "-");
    let Command::Set(set) = command("set app.s --expect 2:17 -- -5") else { panic!() };
    assert_eq!(set.value.unwrap(), "-5");
    assert_eq!(set.expect, Some(MessageId { term: Term::new(2), seq: Seq::new(17) }));
    for bad in [
        "set app.s",
        "set app.s x --null",
        "set app.s x --file f",
        "set app.* x",
        "set app.s x --header nonsense",
        "set app.s x --seq 0",
        "set app.s x --expect 17",
        "set app.s x --expect 1:1 --expect-absent",
    ] {
        refused(bad);
    }
}

/// `subject configure` changes only the named fields and rejects invalid values.
#[test]
fn configure_changes_only_named_fields() {
    let configure = |line: &str, mut config: SubjectConfig| {
        let Command::Subject(SubjectCommand::Configure(configure)) = command(line) else { panic!() };
        configure.apply(&mut config);
        config
    };
    let all = configure(
        "subject configure app.s --max-msgs 10 --max-bytes 2000 --max-age 2h --max-msg-size 30 --discard new --ttl 90s",
        SubjectConfig::default(),
    );
    let expected = SubjectConfig {
        max_msgs: Some(10),
        max_bytes: Some(2_000),
        max_age_ms: Some(7_200_000),
        max_msg_size: Some(30),
        discard: Some(Discard::New),
        default_ttl_ms: Some(90_000),
        ..SubjectConfig::default()
    };
    assert_eq!(all, expected);
    assert_eq!(
        configure("subject configure app.s --max-msgs none --ttl none --discard old", all),
        SubjectConfig { max_msgs: None, default_ttl_ms: None, discard: Some(Discard::Old), ..expected }
    );
    let Command::Set(set) = command("set app.s x --ttl 1500ms") else { panic!() };
    assert_eq!(set.ttl.map(Duration::from), Some(Duration::from_millis(1_500)));
    for bad in ["--max-msgs 0", "--max-msgs many", "--max-age 0s", "--ttl 7", "--discard all"] {
        refused(&format!("subject configure app.s {bad}"));
    }
}

/// `get`, `rm` and other commands reject a missing, conflicting or invalid selector.
#[test]
fn get_and_rm_require_a_selector() {
    let Command::Get(get) = command("get app.s --seq 5") else { panic!() };
    assert_eq!(get.seq, Some(Seq::new(5)));
    let Command::Rm(rm) = command("rm app.s --key a --key b") else { panic!() };
    assert_eq!(rm.keys, ["a", "b"]);
    for bad in [
        "get app.s",
        "get app.s --key a --seq 1",
        "rm app.s",
        "rm app.s --all --key a",
        "rm app.s --up-to 0",
        "watch app.s --key a --key-prefix b",
        "watch app.s --count 0",
        "subject configure app.s",
        "subject destroy app.s",
        "server health UPPER",
    ] {
        refused(bad);
    }
}

/// `dev` has defaults, takes any free port with `-1`, and rejects invalid values.
#[test]
fn dev_flags_have_defaults_and_allow_any_free_port() {
    let Command::Dev(dev) = command("dev") else { panic!() };
    assert_eq!((dev.servers, dev.port, dev.restart), (2, 4222, false));
    assert_eq!(dev.data_dir, PathBuf::from(DEV_DATA_DIR));
    assert_eq!(Duration::from(dev.lease_ttl), Duration::from_secs(3));
    let Command::Dev(dev) = command("dev --port -1 --servers 1 --restart") else { panic!() };
    assert_eq!((dev.port, dev.servers, dev.restart), (-1, 1, true));
    refused("dev --servers 0");
    refused("dev --port 70000");
    refused("dev --lease-ttl soon");
}

/// The flags of a child program pass through unchanged and do not become flags of the CLI.
#[test]
fn child_process_keeps_its_own_flags() {
    let line =
        ["dormouse", "run-child", "--", "7", "/bin/server", "--nats", "nats://h:1", "--json", "--", "x"];
    let cli = Cli::read(line).unwrap();
    let Command::RunChild(child) = cli.command else { panic!() };
    assert_eq!((child.parent, child.program), (7, OsString::from("/bin/server")));
    assert_eq!(child.arguments, ["--nats", "nats://h:1", "--json", "--", "x"].map(OsString::from));
    assert!(!cli.global.json && cli.global.nats.nats.is_empty());
}

/// `dev` rejects flags that connect to another NATS server.
#[test]
fn dev_rejects_connection_flags() {
    for line in ["dev --nats nats://a:1", "--context prod dev", "dev --nats-user u"] {
        let refused = Cli::read(["dormouse"].into_iter().chain(line.split(' '))).unwrap_err();
        assert!(refused.to_string().contains("cannot be used with `dev`"), "{line}: {refused}");
    }
}

/// The CLI recognizes the given connection flags before and after the command.
#[test]
fn cli_connection_flags_are_known_in_any_position() {
    for line in ["--nats nats://a:1 --context c keys app.s", "keys app.s --context c --nats nats://a:1"] {
        let cli = Cli::read(["dormouse"].into_iter().chain(line.split(' '))).unwrap();
        assert!(cli.global.connection_flags.iter().eq(["context", "nats"]), "{line}");
    }
}

/// `subject ls` and `subjects ls` take a pattern, server and limit, and reject invalid patterns.
#[test]
fn subject_ls_takes_pattern_under_both_spellings() {
    for line in ["subject ls app.*.> --server s --limit 5", "subjects ls app.*.> --server s --limit 5"] {
        let Command::Subject(SubjectCommand::Ls(ls)) = command(line) else { panic!("{line}") };
        assert_eq!((ls.pattern.as_str(), ls.limit), ("app.*.>", Some(5)));
        assert_eq!(ls.server.unwrap().as_str(), "s");
    }
    let Command::Subject(SubjectCommand::Ls(ls)) = command("subjects ls") else { panic!() };
    assert_eq!((ls.pattern.as_str(), ls.server, ls.limit), (">", None, None));
    for bad in ["app.>.x", "app.a*", "app..x", "", ".", "app.>>"] {
        assert_eq!(Cli::read(["dormouse", "subjects", "ls", bad]).unwrap_err().exit_code(), 2, "{bad}");
    }
}

/// Operator commands require a valid server or subject name and have defaults.
#[test]
fn operator_commands_require_valid_targets() {
    let Command::Server(ServerCommand::Drain(drain)) = command("server drain s") else { panic!() };
    assert_eq!((drain.name.as_str(), drain.no_wait), ("s", false));
    let Command::Subject(SubjectCommand::Move(moved)) = command("subject move app.s --to t") else {
        panic!()
    };
    assert_eq!((moved.subject.as_str(), moved.to.as_str(), moved.no_wait), ("app.s", "t", false));
    let Command::Rebalance(rebalance) = command("rebalance") else { panic!() };
    assert_eq!((rebalance.dry_run, rebalance.most_moves, rebalance.no_wait), (false, 100, false));
    let Command::Tenant(TenantCommand::Limit(limited)) = command("tenant limit acme --bytes 7 --uploads 0")
    else {
        panic!()
    };
    let expected = TenantLimits { bytes: Some(7), uploads: Some(0), ..TenantLimits::NONE };
    assert_eq!((limited.tenant.as_str(), limited.clear), ("acme", false));
    assert_eq!(TenantLimits::from(limited.limits), expected);
    for bad in [
        "server drain",
        "server drain UPPER",
        "server undrain",
        "server info",
        "subject move app.s",
        "subject move app.* --to t",
        "tenant limit acme",
        "tenant limit --clear",
        "tenant limit acme --requests -1",
        "rebalance --most-moves 0",
        "rebalance --dry-run --no-wait",
    ] {
        refused(bad);
    }
}

/// Commands that give orders count as changes, because their outcome can be indeterminate; read commands and dry runs
/// do not.
#[test]
fn operator_orders_count_as_changes() {
    for (line, changes) in [
        ("server drain s", true),
        ("server undrain s", true),
        ("server info s", false),
        ("subject move app.s --to t", true),
        ("subject ls", false),
        ("tenant ls", false),
        ("tenants limit acme --requests 1", true),
        ("rebalance", true),
        ("rebalance --dry-run", false),
    ] {
        assert_eq!(command(line).changes(), changes, "{line}");
    }
}
