//! A connection between two processes that can be cut: a TCP proxy on the loopback interface.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The size of a forwarded piece.
const PIECE_BYTES: usize = 64 * 1_024;

/// The treatment of data that passes the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyMode {
    /// The data arrives.
    Forward,
    /// Connections break, and new ones fail.
    Cut,
    /// No data arrives in either direction, and no side is notified. The data sent in the meantime arrives later.
    Stalled,
    /// Requests arrive, and their answers arrive later.
    AnswersStalled,
    /// Requests arrive, and their answers are dropped. Connections that lost data break when the proxy forwards again.
    AnswersLost,
    /// The data arrives with this delay.
    Slow(Duration),
}

/// Which connections a mode is for.
#[derive(Debug, Clone)]
struct Treatment {
    mode: ProxyMode,
    /// The name that the client of the connection gives in its NATS CONNECT; `None`: every connection.
    of: Option<String>,
}

impl Treatment {
    fn of_connection(&self, name: Option<&str>) -> ProxyMode {
        if self.of.is_none() || self.of.as_deref() == name { self.mode } else { ProxyMode::Forward }
    }
}

/// A proxy: a connection to its [port](TcpProxy::port) is forwarded to the target. When dropped, it ends with all its
/// connections.
#[derive(Debug)]
pub struct TcpProxy {
    address: SocketAddr,
    /// The port of the target; 0: none.
    target: Arc<AtomicU16>,
    treatment: watch::Sender<Treatment>,
    // Dropping this field ends everything.
    _carrier: JoinSet<()>,
}

/// The time at which the proxy dials the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialMode {
    /// As soon as a client connects: the target sends first.
    Immediately,
    /// When the client has sent data: otherwise the target would wait for it and do nothing else.
    OnFirstByte,
}

impl TcpProxy {
    /// Creates a forwarding proxy without a target. Needs a tokio runtime.
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// If no port is free.
    pub async fn new(dial: DialMode) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("no port for a proxy")?;
        let address = listener.local_addr()?;
        let target = Arc::new(AtomicU16::new(0));
        let (treatment, watching) = watch::channel(Treatment { mode: ProxyMode::Forward, of: None });
        let mut carrier = JoinSet::new();
        carrier.spawn(accept(listener, dial, Arc::clone(&target), watching));
        Ok(Self { address, target, treatment, _carrier: carrier })
    }

    /// Sets the target: a port of this machine.
    pub fn set_target(&self, port: u16) {
        self.target.store(port, Ordering::Relaxed);
    }

    /// Returns the port to connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Sets the mode.
    pub fn set(&self, mode: ProxyMode) {
        self.treatment.send_replace(Treatment { mode, of: None });
    }

    /// Sets the mode of the NATS connections with this name, also of later ones. All others are forwarded.
    pub fn set_connection(&self, name: &str, mode: ProxyMode) {
        self.treatment.send_replace(Treatment { mode, of: Some(name.to_owned()) });
    }

    /// Returns the mode.
    #[must_use]
    pub fn mode(&self) -> ProxyMode {
        self.treatment.borrow().mode
    }
}

async fn accept(
    listener: TcpListener,
    dial: DialMode,
    target: Arc<AtomicU16>,
    treatment: watch::Receiver<Treatment>,
) {
    let mut carried = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // A connection that is not accepted for lack of descriptors is accepted later.
                let Ok((near, _)) = accepted else { continue };
                let port = Some(target.load(Ordering::Relaxed)).filter(|port| *port != 0);
                carried.spawn(carry(near, dial, port, treatment.clone()));
            }
            Some(_) = carried.join_next() => {}
        }
    }
}

/// Forwards one connection until either end, or the proxy, ends it.
async fn carry(near: TcpStream, dial: DialMode, port: Option<u16>, treatment: watch::Receiver<Treatment>) {
    let Some(port) = port else { return };
    let (connection, mut mode) = Connection::new(treatment);
    let mut cut = mode.clone();
    let carrying = async {
        if dial == DialMode::OnFirstByte {
            let mut first = [0];
            if near.peek(&mut first).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let forwards = |mode: &ProxyMode| !matches!(mode, ProxyMode::Stalled);
        if mode.wait_for(forwards).await.is_err() {
            return;
        }
        let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
        let (near, far) = (quick(near).into_split(), quick(far).into_split());
        let asked = pass(near.0, far.1, Some(&connection), mode.clone());
        let answered = pass(far.0, near.1, None, mode.clone());
        // Either end may have closed its sending side and still receive.
        tokio::join!(asked, answered);
    };
    tokio::select! {
        () = carrying => {}
        // Dropping both ends breaks the connection.
        _ = cut.wait_for(|mode| *mode == ProxyMode::Cut) => {}
        () = connection.follow() => {}
    }
}

/// The mode of one connection.
struct Connection {
    treatment: watch::Receiver<Treatment>,
    /// Known once the client has sent something.
    name: OnceLock<Option<String>>,
    mode: watch::Sender<ProxyMode>,
}

impl Connection {
    fn new(treatment: watch::Receiver<Treatment>) -> (Self, watch::Receiver<ProxyMode>) {
        let first = treatment.borrow().of_connection(None);
        let (mode, watching) = watch::channel(first);
        (Self { treatment, name: OnceLock::new(), mode }, watching)
    }

    /// Takes the name from the first data of the client, which holds a whole CONNECT if it speaks NATS.
    fn identify(&self, first: &[u8]) {
        let name = || {
            let text = String::from_utf8_lossy(first);
            let (_, after) = text.split_once("\"name\":\"")?;
            after.split_once('"').map(|(name, _)| name.to_owned())
        };
        if self.name.set(name()).is_ok() {
            self.update();
        }
    }

    fn update(&self) {
        let name = self.name.get().and_then(Option::as_deref);
        self.mode.send_replace(self.treatment.borrow().of_connection(name));
    }

    /// Updates the mode until the proxy ends.
    async fn follow(&self) {
        let mut changes = self.treatment.clone();
        while changes.changed().await.is_ok() {
            self.update();
        }
    }
}

fn quick(stream: TcpStream) -> TcpStream {
    // Otherwise small requests wait for each other.
    let _ = stream.set_nodelay(true);
    stream
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    There,
    Back,
}

/// Forwards the data of one end, according to the mode of the connection. The data of the client, which has the
/// `connection`, names it.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    connection: Option<&Connection>,
    mut mode: watch::Receiver<ProxyMode>,
) {
    let direction = if connection.is_some() { Direction::There } else { Direction::Back };
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = from.read(&mut piece).await.unwrap_or(0);
        if read == 0 {
            // The other direction may still have data.
            let _ = to.shutdown().await;
            return;
        }
        if let Some(connection) = connection {
            connection.identify(&piece[..read]);
        }
        let now = *mode.borrow_and_update();
        match (now, direction) {
            (ProxyMode::Slow(delay), _) => tokio::time::sleep(delay).await,
            (ProxyMode::AnswersLost, Direction::Back) => {
                // After lost data, nothing valid can follow on this connection.
                while from.read(&mut piece).await.unwrap_or(0) > 0 && *mode.borrow() == ProxyMode::AnswersLost
                {
                }
                let _ = mode.wait_for(|mode| *mode != ProxyMode::AnswersLost).await;
                return;
            }
            _ => {}
        }
        let holds = |mode: &ProxyMode| match mode {
            ProxyMode::Stalled => true,
            ProxyMode::AnswersStalled => direction == Direction::Back,
            _ => false,
        };
        if mode.wait_for(|mode| !holds(mode)).await.is_err() {
            return;
        }
        if to.write_all(&piece[..read]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends "hello" to each client and then echoes its input.
    async fn echo(tasks: &mut JoinSet<()>) -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                connections.spawn(async move {
                    stream.write_all(b"hello").await.ok();
                    let (mut read, mut write) = stream.into_split();
                    tokio::io::copy(&mut read, &mut write).await.ok();
                });
            }
        });
        port
    }

    async fn receives(stream: &mut TcpStream, text: &str) -> bool {
        let mut received = vec![0; text.len()];
        stream.read_exact(&mut received).await.is_ok() && received == text.as_bytes()
    }

    async fn proxy(tasks: &mut JoinSet<()>) -> TcpProxy {
        let proxy = TcpProxy::new(DialMode::Immediately).await.unwrap();
        proxy.set_target(echo(tasks).await);
        proxy
    }

    async fn connected(proxy: &TcpProxy) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        assert!(receives(&mut stream, "hello").await);
        stream
    }

    /// A whole proxy forwards both ways; a cut proxy breaks its connections and refuses new ones.
    #[tokio::test]
    async fn tcp_proxy_forwards_when_whole_and_refuses_when_cut() {
        let mut tasks = JoinSet::new();
        let proxy = proxy(&mut tasks).await;
        let mut stream = connected(&proxy).await;
        stream.write_all(b"a").await.unwrap();
        assert!(receives(&mut stream, "a").await);
        proxy.set(ProxyMode::Cut);
        assert!(!receives(&mut stream, "b").await);
        let mut refused = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        assert!(!receives(&mut refused, "hello").await);
        proxy.set(ProxyMode::Forward);
        connected(&proxy).await;
    }

    /// A mode for connections of one name leaves the others alone, and applies to later connections of that name.
    #[tokio::test]
    async fn tcp_proxy_cuts_connections_of_one_name() {
        let mut tasks = JoinSet::new();
        let proxy = proxy(&mut tasks).await;
        let (cut, kept) = (r#"CONNECT {"name":"a b"}"#, r#"CONNECT {"name":"a"}"#);
        let mut streams = Vec::new();
        for connect in [cut, kept] {
            let mut stream = connected(&proxy).await;
            stream.write_all(connect.as_bytes()).await.unwrap();
            assert!(receives(&mut stream, connect).await);
            streams.push(stream);
        }
        proxy.set_connection("a b", ProxyMode::Cut);
        assert!(!receives(&mut streams[0], "x").await);
        for (connect, passes) in [(cut, false), (kept, true)] {
            let mut stream = connected(&proxy).await;
            stream.write_all(connect.as_bytes()).await.ok();
            assert_eq!(receives(&mut stream, connect).await, passes, "{connect}");
        }
        streams[1].write_all(b"y").await.unwrap();
        assert!(receives(&mut streams[1], "y").await);
    }

    /// Bytes that a stalled proxy holds arrive when the proxy is whole again.
    #[tokio::test]
    async fn tcp_proxy_delivers_stalled_bytes_later() {
        for condition in [ProxyMode::Stalled, ProxyMode::AnswersStalled] {
            let mut tasks = JoinSet::new();
            let proxy = proxy(&mut tasks).await;
            let mut stream = connected(&proxy).await;
            proxy.set(condition);
            stream.write_all(b"a").await.unwrap();
            let early = tokio::time::timeout(Duration::from_millis(50), receives(&mut stream, "a")).await;
            assert!(early.is_err(), "{condition:?}");
            proxy.set(ProxyMode::Forward);
            assert!(receives(&mut stream, "a").await, "{condition:?}");
        }
    }

    /// A connection that lost a reply in the proxy breaks and never delivers the reply later.
    #[tokio::test]
    async fn tcp_proxy_breaks_a_connection_that_lost_a_reply() {
        let mut tasks = JoinSet::new();
        let proxy = proxy(&mut tasks).await;
        let mut stream = connected(&proxy).await;
        proxy.set(ProxyMode::AnswersLost);
        stream.write_all(b"a").await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(50), receives(&mut stream, "a")).await;
        assert!(early.is_err());
        proxy.set(ProxyMode::Forward);
        stream.write_all(b"b").await.ok();
        assert!(!receives(&mut stream, "a").await);
    }
}
