//! The HTTP server of `--metrics-listen`: `GET /metrics`, in the text format of Prometheus.
//!
//! A scraper cannot hold the process: the number of connections, the time of each and the size of a request are
//! bounded, and a connection serves one request. There is no TLS and no login, so the address belongs on a network of
//! the operators.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_metrics::CONTENT_TYPE;
use dormouse_runtime::Tasks;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE as CONTENT_TYPE_HEADER, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Maximum number of connections. Further ones wait until one of them ends.
const MAX_CONNECTIONS: usize = 16;
/// How long a scraper may take to send the head of its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection may exist.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum bytes of the head of a request.
const MAX_HEAD_BYTES: usize = 16 * 1_024;
/// Pause after a failed accept, such as for a lack of descriptors: it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// The text of a scrape.
pub type MetricsText = Arc<dyn Fn() -> String + Send + Sync>;

/// A listening socket that is not served yet.
#[derive(Debug)]
pub struct MetricsListener {
    socket: std::net::TcpListener,
}

/// The address of `--metrics-listen` cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("--metrics-listen: cannot listen on {address}: {source}")]
pub struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

impl MetricsListener {
    /// Listens on `address`. Connections wait until [`MetricsListener::serve`].
    ///
    /// # Errors
    /// [`ListenError`], such as for a port that is in use.
    pub fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        let listen = || {
            let socket = std::net::TcpListener::bind(address)?;
            socket.set_nonblocking(true)?;
            Ok(Self { socket })
        };
        listen().map_err(|source| ListenError { address, source })
    }

    /// The address, with the port that the system chose if the port was 0.
    ///
    /// # Errors
    /// The error of the operating system.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves scrapes as tasks of `tasks`, on the current async runtime, until their stop signal. `text` is called for
    /// each scrape; it must not block.
    ///
    /// # Errors
    /// The error of the operating system if the runtime cannot use the socket.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time.
    pub fn serve(self, tasks: &Tasks, text: MetricsText) -> io::Result<()> {
        let listener = TcpListener::from_std(self.socket)?;
        tracing::info!(address = %listener.local_addr()?, "metrics listener ready");
        let server = MetricsServer { text, tasks: tasks.clone() };
        tasks.spawn("metrics listener", server.run(listener));
        Ok(())
    }
}

struct MetricsServer {
    text: MetricsText,
    tasks: Tasks,
}

impl MetricsServer {
    async fn run(self, listener: TcpListener) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let stop = self.tasks.stop().clone();
        loop {
            let next = async {
                // Before the accept, so that connections above the limit wait in the queue of the system.
                let permit = Arc::clone(&permits).acquire_owned().await.ok()?;
                Some((listener.accept().await, permit))
            };
            let (accepted, permit) = tokio::select! {
                biased;
                () = stop.requested() => return,
                next = next => match next {
                    Some(next) => next,
                    None => return,
                },
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let (text, stop) = (Arc::clone(&self.text), stop.clone());
            self.tasks.spawn("metrics connection", async move {
                tokio::select! {
                    biased;
                    () = stop.requested() => {}
                    () = serve_connection(stream, text) => {}
                }
                drop(permit);
            });
        }
    }
}

async fn serve_connection(stream: TcpStream, text: MetricsText) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(request.method(), request.uri().path(), &text);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // A scraper that ends early, or sends no HTTP, is not worth a log line.
    let _ = tokio::time::timeout(TOTAL_TIMEOUT, connection).await;
}

fn answer(method: &Method, path: &str, text: &MetricsText) -> Response<Full<Bytes>> {
    if path != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "not found: the metrics are at /metrics\n");
    }
    if method != Method::GET && method != Method::HEAD {
        let mut reply = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        reply.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return reply;
    }
    let mut reply = Response::new(Full::new(Bytes::from(text())));
    reply.headers_mut().insert(CONTENT_TYPE_HEADER, HeaderValue::from_static(CONTENT_TYPE));
    reply
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE_HEADER, HeaderValue::from_static("text/plain; charset=utf-8"));
    reply
}

/// Parses the address of `--metrics-listen`.
///
/// # Errors
/// A sentence about the text.
pub fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an address such as 127.0.0.1:9464 or [::]:9464"))
}

#[cfg(test)]
mod tests;
