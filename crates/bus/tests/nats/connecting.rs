use std::net::TcpListener;
use std::time::Duration;

use dormouse_bus::nats::{NatsConnectError, NatsOptions};

use crate::{LONG, assert_works, connect, options, server, within};

/// An address without a listener.
fn closed_port_url() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("nats://{}", listener.local_addr().unwrap())
}

/// The client connects if any of the configured NATS servers answers.
#[tokio::test]
async fn nats_client_connects_to_any_live_server() {
    let server = server("").await;
    // One address refuses, one accepts the connection and never replies.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_url = format!("nats://{}", silent.local_addr().unwrap());
    let urls = [closed_port_url(), silent_url, server.url()];
    let connect_deadline = Duration::from_secs(6);
    for _ in 0..3 {
        let urls = urls.iter().map(|url| url.parse().unwrap()).collect();
        let bus = connect(NatsOptions { connect_deadline, ..NatsOptions::new(urls) }).await.unwrap();
        assert_works(&bus).await;
    }
}

/// If its NATS server stops, the client reconnects to the other one.
#[tokio::test]
async fn nats_client_reconnects_to_other_server() {
    let (mut one, mut other) = (server("").await, server("").await);
    let urls = vec![one.url().parse().unwrap(), other.url().parse().unwrap()];
    let bus = connect(NatsOptions { connect_deadline: LONG, ..NatsOptions::new(urls) }).await.unwrap();
    // The client works without the first server, and then without the second, whichever it is connected to.
    one.stop().await.unwrap();
    assert_works(&bus).await;
    one.restart().await.unwrap();
    other.stop().await.unwrap();
    assert_works(&bus).await;
}

/// An absent NATS server is an error, or the client waits for it if configured to retry.
#[tokio::test]
async fn nats_server_absent_is_error_or_awaited() {
    let mut server = server("").await;
    server.stop().await.unwrap();
    let error = connect(options(&server.url())).await.unwrap_err();
    assert!(matches!(error, NatsConnectError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&server.port().to_string()), "{error}");

    let waiting = NatsOptions { retry_on_first_connect: true, ..options(&server.url()) };
    let (bus, restarted) = within(async { tokio::join!(connect(waiting), server.restart()) }).await;
    restarted.unwrap();
    assert_works(&bus.unwrap()).await;
}

/// If the NATS server sends nothing, the connect fails at its deadline.
#[tokio::test]
async fn nats_server_silent_fails_at_connect_deadline() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", silent.local_addr().unwrap());
    let options = NatsOptions { connect_deadline: Duration::from_millis(200), ..options(&url) };
    let error = within(connect(options)).await.unwrap_err();
    assert!(matches!(error, NatsConnectError::Unreachable { .. }), "{error}");
}

/// Connecting selects a cryptography provider: two libraries have one each, and without a selection a server that
/// requires TLS would cause a panic. The test uses a connection without TLS, where nothing else selects a provider.
#[tokio::test]
async fn nats_connect_installs_crypto_provider() {
    let server = server("").await;
    let bus = connect(options(&server.url())).await.unwrap();
    assert!(rustls::crypto::CryptoProvider::get_default().is_some());
    assert_works(&bus).await;
}
