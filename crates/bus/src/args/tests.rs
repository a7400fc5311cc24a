use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Program {
    #[command(flatten)]
    nats: NatsArgs,
}

fn parse(arguments: &[&str]) -> NatsArgs {
    Program::try_parse_from(std::iter::once(&"program").chain(arguments)).unwrap().nats
}

/// Without arguments, the options name the local NATS server.
#[test]
fn nats_args_default_to_local_server() {
    let options = NatsArgs::default().resolve_with(None).unwrap();
    assert_eq!(options, NatsOptions::new(vec![NatsOptions::DEFAULT_URL.parse().unwrap()]));
}

/// The flag `--nats` overrides the environment.
#[test]
fn nats_args_flag_overrides_environment() {
    let url = |args: &NatsArgs| args.resolve_with(Some("nats://from-environment")).unwrap().urls;
    assert_eq!(url(&NatsArgs::default()), ["nats://from-environment".parse().unwrap()]);
    let given = parse(&["--nats", "one,tls://two:4333"]);
    assert_eq!(url(&given), ["nats://one".parse().unwrap(), "tls://two:4333".parse().unwrap()]);
}

/// Invalid arguments are reported all at once.
#[test]
fn nats_args_report_all_faults_at_once() {
    let faults = parse(&[
        "--nats=http://a,nats://:4222",
        "--nats-password=p",
        "--nats-token=t",
        "--nats-creds=c",
        "--nats-cert=c",
        "--nats-inbox-prefix=a.*",
    ])
    .resolve_with(None)
    .unwrap_err();
    assert_eq!(faults.0.len(), 6, "{faults}");
}

/// The arguments accept a user with password, a token, an nkey file and a credentials file.
#[test]
fn nats_args_accept_all_authentication_methods() {
    let authentication = |arguments: &[&str]| parse(arguments).resolve_with(None).unwrap().authentication;
    let secret = || Secret::new("x");
    assert_eq!(
        authentication(&["--nats-user=u", "--nats-password=x"]),
        Authentication::UserPassword { user: "u".into(), password: secret() }
    );
    assert_eq!(authentication(&["--nats-token=x"]), Authentication::Token(secret()));
    assert_eq!(authentication(&["--nats-nkey=f"]), Authentication::NkeyFile("f".into()));
    assert_eq!(authentication(&["--nats-creds=f"]), Authentication::CredentialsFile("f".into()));
}

/// A certificate authority or a client certificate in the arguments requires TLS.
#[test]
fn nats_args_ca_or_certificate_requires_tls() {
    let tls = |arguments: &[&str]| parse(arguments).resolve_with(None).unwrap().tls;
    assert!(!tls(&[]).required);
    assert!(tls(&["--nats-tls"]).required);
    assert!(tls(&["--nats-ca=ca.pem"]).required);
    assert!(tls(&["--nats-cert=c.pem", "--nats-key=k.pem"]).required);
}

/// Arguments, options, URLs and errors never print a secret.
#[test]
fn nats_args_never_print_secrets() {
    let args = parse(&["--nats=nats://u:hunter2@host", "--nats-user=u", "--nats-password=hunter2"]);
    let options = args.resolve_with(None).unwrap();
    let token = parse(&["--nats-token=hunter2"]);
    let token_in_address = parse(&["--nats=nats://hunter2@host"]).resolve_with(None).unwrap();
    let broken = parse(&["--nats=http://hunter2@host"]).resolve_with(None).unwrap_err();
    for printed in [
        format!("{args:?}"),
        format!("{options:?}"),
        options.urls[0].to_string(),
        format!("{token:?}"),
        format!("{token_in_address:?}"),
        token_in_address.urls[0].to_string(),
        broken.to_string(),
        parse(&["--nats=http://u:hunter2@host"]).resolve_with(None).unwrap_err().to_string(),
    ] {
        assert!(!printed.contains("hunter2"), "{printed}");
    }
    assert_eq!(token_in_address.urls[0].to_string(), "nats://***@host");
    assert_eq!(options.urls[0].to_string(), "nats://***@host");
}

/// A NATS URL carries a user with password or a token, percent-encoded.
#[test]
fn nats_url_carries_credentials() {
    let authentication = |address: &str| address.parse::<NatsUrl>().unwrap().authentication();
    let login = |user: &str, password: &str| Authentication::UserPassword {
        user: user.to_owned(),
        password: Secret::new(password),
    };
    assert_eq!(authentication("nats://host"), Authentication::None);
    assert_eq!(authentication("nats://u:hunter2@host"), login("u", "hunter2"));
    assert_eq!(authentication("nats://t0ken%2F@host"), Authentication::Token(Secret::new("t0ken/")));
    // The user and password may contain any character.
    assert_eq!(authentication("nats://us%40er:a%2Fb+c%25@host"), login("us@er", "a/b+c%"));
}
