//! An HTTP proxy before an S3 server, with the properties of a real link: latency, bandwidth, rate limits, and lost, late
//! and broken answers.
//!
//! The S3 server for tests serves one request at a time. So the proxy takes in a whole request, delays it, and only then
//! forwards it: slow requests do not delay each other.

mod link;
mod request;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONNECTION, HeaderMap, TRANSFER_ENCODING};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::S3Server;
use link::{LinkDirection, RequestRate};

pub use link::LinkProfile;
pub use request::{S3Fault, S3Operation, S3Request};

/// Bytes that pass the link at once.
const PIECE_BYTES: usize = 16 * 1_024;

/// Size of the socket buffers. Small, so that a client cannot send much ahead of the bandwidth. In bytes.
const SOCKET_BYTES: u32 = 64 * 1_024;

/// Buffer of a connection in the proxy. In bytes.
const BUFFER_BYTES: usize = 64 * 1_024;

/// The answer of a store that is asked too often.
const SLOW_DOWN: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";

type AnswerBody = BoxBody<Bytes, std::io::Error>;

/// A proxy before an S3 server. When dropped, it ends with all its connections.
#[derive(Debug)]
pub struct S3Proxy {
    address: SocketAddr,
    shared: Arc<ProxyShared>,
    // Dropping this field ends everything.
    _carrier: JoinSet<()>,
}

#[derive(Debug)]
struct ProxyShared {
    target: SocketAddr,
    began: Instant,
    state: Mutex<ProxyState>,
}

#[derive(Debug, Default)]
struct ProxyState {
    profile: LinkProfile,
    upload: LinkDirection,
    download: LinkDirection,
    rate: RequestRate,
    faults: Vec<PlannedFault>,
    requests: Vec<S3Request>,
}

/// A fault for the next requests of one kind.
#[derive(Debug)]
struct PlannedFault {
    operation: S3Operation,
    name_part: String,
    fault: S3Fault,
    left: usize,
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    Up,
    Down,
}

impl S3Proxy {
    /// Creates a proxy before the server with this port, with an unlimited link. Needs a tokio runtime.
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// If no port is free.
    #[expect(clippy::disallowed_methods, reason = "a link has a real clock; the harness has no other")]
    pub async fn start(target_port: u16) -> anyhow::Result<Self> {
        let socket = TcpSocket::new_v4().context("no socket for a proxy")?;
        socket.set_recv_buffer_size(SOCKET_BYTES)?;
        socket.set_send_buffer_size(SOCKET_BYTES)?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).context("no port for a proxy")?;
        let listener = socket.listen(1_024)?;
        let address = listener.local_addr()?;
        let target = SocketAddr::from(([127, 0, 0, 1], target_port));
        let shared = Arc::new(ProxyShared { target, began: Instant::now(), state: Mutex::default() });
        let mut carrier = JoinSet::new();
        carrier.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, _carrier: carrier })
    }

    /// Sets the properties of the link, for requests in flight too.
    pub fn set_link(&self, profile: LinkProfile) {
        self.shared.state().profile = profile;
    }

    /// Injects `fault` into the next `times` requests of this kind whose path and query contain `name_part`. Faults that
    /// were planned earlier take precedence.
    pub fn inject(&self, operation: S3Operation, name_part: &str, fault: S3Fault, times: usize) {
        let planned = PlannedFault { operation, name_part: name_part.to_owned(), fault, left: times };
        self.shared.state().faults.push(planned);
    }

    /// Removes all planned faults.
    pub fn clear_faults(&self) {
        self.shared.state().faults.clear();
    }

    /// Returns the requests that came in completely since the last call, in this order.
    #[must_use]
    pub fn take_requests(&self) -> Vec<S3Request> {
        std::mem::take(&mut self.shared.state().requests)
    }

    /// Returns the environment variables for a client that uses the proxy.
    #[must_use]
    pub fn variables(&self) -> Vec<(String, String)> {
        S3Server::variables_through(self.port())
    }

    /// Returns the port to connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl ProxyShared {
    fn state(&self) -> MutexGuard<'_, ProxyState> {
        self.state.lock().expect("no code panics while it holds the lock")
    }

    /// Waits until these bytes have passed the link.
    async fn pass(&self, direction: Direction, bytes: usize) {
        let now = self.began.elapsed();
        let duration = {
            let mut state = self.state();
            let profile = state.profile;
            let (link, rate) = match direction {
                Direction::Up => (&mut state.upload, profile.upload_bytes_per_second),
                Direction::Down => (&mut state.download, profile.download_bytes_per_second),
            };
            link.send(now, bytes as u64, rate)
        };
        if !duration.is_zero() {
            tokio::time::sleep(duration).await;
        }
    }

    /// Records a request. Returns its fault and its latency.
    fn arrived(&self, operation: S3Operation, path: &str, body_bytes: usize) -> (S3Fault, Duration) {
        let now = self.began.elapsed();
        let mut state = self.state();
        let limit = state.profile.requests_per_second;
        let mut fault = state.planned_fault(operation, path);
        if fault == S3Fault::None && !state.rate.accepts(now, limit) {
            fault = S3Fault::SlowDown;
        }
        let path = path.to_owned();
        state.requests.push(S3Request { operation, path, body_bytes: body_bytes as u64, fault });
        (fault, state.profile.latency)
    }
}

impl ProxyState {
    fn planned_fault(&mut self, operation: S3Operation, path: &str) -> S3Fault {
        let applies = |planned: &&mut PlannedFault| {
            planned.operation == operation && path.contains(&planned.name_part) && planned.left > 0
        };
        match self.faults.iter_mut().find(applies) {
            Some(planned) => {
                planned.left -= 1;
                planned.fault
            }
            None => S3Fault::None,
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<ProxyShared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // A connection that is not accepted for lack of descriptors is accepted later.
                let Ok((stream, _)) = accepted else { continue };
                // Otherwise small requests wait for each other.
                let _ = stream.set_nodelay(true);
                connections.spawn(serve(stream, Arc::clone(&shared)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<ProxyShared>) {
    let service = hyper::service::service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move {
            let answer = carry(request, &shared).await.unwrap_or_else(|error| {
                plain(StatusCode::BAD_GATEWAY, format!("the proxy cannot reach the server: {error:#}"))
            });
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    // A connection that breaks is a result of the test.
    let _ = connection.await;
}

/// Carries one request to the server, and returns its answer.
async fn carry(
    request: Request<Incoming>,
    shared: &Arc<ProxyShared>,
) -> anyhow::Result<Response<AnswerBody>> {
    let (head, mut body) = request.into_parts();
    let mut received = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.context("the client broke off")?.into_data() else { continue };
        for piece in data.chunks(PIECE_BYTES) {
            shared.pass(Direction::Up, piece.len()).await;
        }
        received.extend_from_slice(&data);
    }
    let path = head.uri.path_and_query().map_or_else(String::new, ToString::to_string);
    let operation = S3Operation::of(&head.method, &head.uri);
    let (fault, latency) = shared.arrived(operation, &path, received.len());
    tokio::time::sleep(latency).await;
    match fault {
        S3Fault::SlowDown => return Ok(plain(StatusCode::SERVICE_UNAVAILABLE, SLOW_DOWN.to_owned())),
        S3Fault::RequestLost => std::future::pending().await,
        S3Fault::None | S3Fault::AnswerLost | S3Fault::AnswerLate(_) | S3Fault::AnswerCut(_) => {}
    }
    let forwarded = forward(shared.target, Request::from_parts(head, Bytes::from(received)));
    // The server carries out a request that it has, also if the client breaks off.
    let mut forwarding = JoinSet::new();
    forwarding.spawn(forwarded);
    let joined = forwarding.join_next().await.context("a request was forwarded")?;
    let (head, bytes) = joined.context("the forwarding task failed")??.into_parts();
    let cut = match fault {
        S3Fault::AnswerLost => std::future::pending().await,
        S3Fault::AnswerLate(delay) => {
            tokio::time::sleep(delay).await;
            None
        }
        S3Fault::AnswerCut(bytes) => Some(usize::try_from(bytes).unwrap_or(usize::MAX)),
        S3Fault::None | S3Fault::SlowDown | S3Fault::RequestLost => None,
    };
    Ok(Response::from_parts(head, paced(Arc::clone(shared), bytes, cut)))
}

/// Sends a request to the server, and takes in its whole answer.
async fn forward(target: SocketAddr, request: Request<Bytes>) -> anyhow::Result<Response<Bytes>> {
    let stream = TcpStream::connect(target).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let (mut head, body) = request.into_parts();
    remove_hop_headers(&mut head.headers);
    let answer = sender.send_request(Request::from_parts(head, Full::new(body))).await?;
    let (mut head, body) = answer.into_parts();
    remove_hop_headers(&mut head.headers);
    head.version = hyper::Version::HTTP_11;
    Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
}

/// Removes the headers that concern one connection only.
fn remove_hop_headers(headers: &mut HeaderMap) {
    headers.remove(CONNECTION);
    headers.remove(TRANSFER_ENCODING);
}

/// An answer that passes the link. With `cut`, the connection breaks after this many bytes.
fn paced(shared: Arc<ProxyShared>, bytes: Bytes, cut: Option<usize>) -> AnswerBody {
    let left = cut.unwrap_or(usize::MAX);
    let pieces = stream::unfold((shared, bytes, left), |(shared, mut bytes, left)| async move {
        if bytes.is_empty() {
            return None;
        }
        let piece = bytes.split_to(bytes.len().min(PIECE_BYTES).min(left));
        if piece.is_empty() {
            let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
            return Some((Err(broken), (shared, Bytes::new(), 0)));
        }
        shared.pass(Direction::Down, piece.len()).await;
        let left = left - piece.len();
        Some((Ok(Frame::data(piece)), (shared, bytes, left)))
    });
    BodyExt::boxed(StreamBody::new(pieces))
}

fn plain(status: StatusCode, text: String) -> Response<AnswerBody> {
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer
}
