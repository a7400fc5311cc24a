use std::net::TcpListener;
use std::time::Duration;

use dormouse_bus::nats::{ConnectError, NatsOptions};

use crate::{LONG, assert_works, connect, options, server, within};

/// An address at which nobody listens.
fn dead() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("nats://{}", listener.local_addr().unwrap())
}

#[tokio::test]
async fn any_of_several_servers_will_do() {
    let server = server("").await;
    // One refuses, one takes the connection and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_url = format!("nats://{}", silent.local_addr().unwrap());
    let urls = [dead(), silent_url, server.url()];
    let connect_deadline = Duration::from_secs(6);
    for _ in 0..3 {
        let urls = urls.iter().map(|url| url.parse().unwrap()).collect();
        let bus = connect(NatsOptions { connect_deadline, ..NatsOptions::new(urls) }).await.unwrap();
        assert_works(&bus).await;
    }
}

#[tokio::test]
async fn the_other_server_takes_over() {
    let (mut one, mut other) = (server("").await, server("").await);
    let urls = vec![one.url().parse().unwrap(), other.url().parse().unwrap()];
    let bus = connect(NatsOptions { connect_deadline: LONG, ..NatsOptions::new(urls) }).await.unwrap();
    // Whichever of the two it is connected to, it works without the one, and then without the other.
    one.stop().await.unwrap();
    assert_works(&bus).await;
    one.restart().await.unwrap();
    other.stop().await.unwrap();
    assert_works(&bus).await;
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_error_or_is_waited_for() {
    let mut server = server("").await;
    server.stop().await.unwrap();
    let error = connect(options(&server.url())).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&server.port().to_string()), "{error}");

    let waiting = NatsOptions { retry_on_first_connect: true, ..options(&server.url()) };
    let (bus, restarted) = within(async { tokio::join!(connect(waiting), server.restart()) }).await;
    restarted.unwrap();
    assert_works(&bus.unwrap()).await;
}

#[tokio::test]
async fn a_server_that_says_nothing_costs_the_deadline() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", silent.local_addr().unwrap());
    let options = NatsOptions { connect_deadline: Duration::from_millis(200), ..options(&url) };
    let error = within(connect(options)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
}

/// Where two libraries bring a cryptography each, a server that asks for TLS would otherwise make us panic. Seen on a
/// connection without TLS, where nothing else chooses one.
#[tokio::test]
async fn connecting_chooses_the_cryptography() {
    let server = server("").await;
    let bus = connect(options(&server.url())).await.unwrap();
    assert!(rustls::crypto::CryptoProvider::get_default().is_some());
    assert_works(&bus).await;
}
