use dormouse_runtime::Env;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

struct Rig {
    address: SocketAddr,
    tasks: Tasks,
}

impl Rig {
    fn start() -> Self {
        let listener = MetricsListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.address().unwrap();
        let tasks = Env::system().tasks();
        listener.serve(&tasks, Arc::new(|| "dormouse_up 1\n".to_owned())).unwrap();
        Self { address, tasks }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// The complete answer to `head`.
    async fn ask(&self, head: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

/// A scrape gets the text and its content type, and the connection ends.
#[tokio::test]
async fn metrics_scrape_gets_text_with_content_type() {
    let rig = Rig::start();
    let answer = rig.ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\ndormouse_up 1\n"), "{answer}");
}

/// Another path is not found, and a method other than GET is not allowed.
#[tokio::test]
async fn metrics_other_path_or_method_is_rejected() {
    let rig = Rig::start();
    let answer = rig.ask("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    let answer = rig.ask("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert!(answer.contains("allow: GET, HEAD\r\n"), "{answer}");
}

/// Scrapers that send nothing do not stop a scrape, even if they use up all connections: each ends by its timeout.
#[tokio::test]
async fn silent_scrapers_do_not_stop_a_scrape() {
    let rig = Rig::start();
    let mut silent = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        silent.push(rig.connect().await);
    }
    let answer = rig.ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

/// A request with a long head is refused, so its bytes are bounded.
#[tokio::test]
async fn metrics_request_with_long_head_is_refused() {
    let rig = Rig::start();
    let long = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(MAX_HEAD_BYTES));
    let mut stream = rig.connect().await;
    // The server may end the connection before it has taken all of the request.
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!String::from_utf8_lossy(&answer).contains("dormouse_up"));
}

/// The stop signal ends the listener and its connections.
#[tokio::test]
async fn metrics_listener_ends_with_its_tasks() {
    let rig = Rig::start();
    let _silent = rig.connect().await;
    rig.tasks.finish(Duration::from_secs(60)).await.unwrap();
    TcpStream::connect(rig.address).await.unwrap_err();
}

/// A port in use is an error that names flag and address.
#[test]
fn metrics_port_in_use_is_error_with_flag() {
    let first = MetricsListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = first.address().unwrap();
    let error = MetricsListener::bind(address).unwrap_err().to_string();
    assert!(error.starts_with(&format!("--metrics-listen: cannot listen on {address}: ")), "{error}");
}

/// An address needs an IP address and a port.
#[test]
fn metrics_address_without_port_is_rejected() {
    assert!(parse_listen("127.0.0.1:9464").is_ok());
    assert!(parse_listen("[::1]:0").is_ok());
    for text in ["127.0.0.1", "9464", "localhost:9464", ""] {
        assert!(parse_listen(text).is_err(), "{text}");
    }
}
