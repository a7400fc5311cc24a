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

#[test]
fn without_arguments_it_is_the_local_server() {
    let options = NatsArgs::default().resolve_with(None).unwrap();
    assert_eq!(options, NatsOptions::new(vec![NatsOptions::DEFAULT_URL.parse().unwrap()]));
}

#[test]
fn a_flag_wins_over_the_environment() {
    let url = |args: &NatsArgs| args.resolve_with(Some("nats://from-environment")).unwrap().urls;
    assert_eq!(url(&NatsArgs::default()), ["nats://from-environment".parse().unwrap()]);
    let given = parse(&["--nats", "one,tls://two:4333"]);
    assert_eq!(url(&given), ["nats://one".parse().unwrap(), "tls://two:4333".parse().unwrap()]);
}

#[test]
fn all_faults_are_told_at_once() {
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

#[test]
fn each_way_to_authenticate_is_understood() {
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

#[test]
fn naming_an_authority_or_a_certificate_means_tls() {
    let tls = |arguments: &[&str]| parse(arguments).resolve_with(None).unwrap().tls;
    assert!(!tls(&[]).required);
    assert!(tls(&["--nats-tls"]).required);
    assert!(tls(&["--nats-ca=ca.pem"]).required);
    assert!(tls(&["--nats-cert=c.pem", "--nats-key=k.pem"]).required);
}

#[test]
fn no_secret_is_printed() {
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

#[test]
fn an_address_says_who_we_are() {
    let told = |address: &str| address.parse::<NatsUrl>().unwrap().authentication();
    let login = |user: &str, password: &str| Authentication::UserPassword {
        user: user.to_owned(),
        password: Secret::new(password),
    };
    assert_eq!(told("nats://host"), Authentication::None);
    assert_eq!(told("nats://u:hunter2@host"), login("u", "hunter2"));
    assert_eq!(told("nats://t0ken%2F@host"), Authentication::Token(Secret::new("t0ken/")));
    // Any character may be in there.
    assert_eq!(told("nats://us%40er:a%2Fb+c%25@host"), login("us@er", "a/b+c%"));
}
