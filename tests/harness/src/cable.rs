//! A cable between two processes that can be cut: a TCP proxy on the loopback interface.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How much is carried at once.
const PIECE_BYTES: usize = 64 * 1_024;

/// What becomes of what goes through a cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It arrives.
    Whole,
    /// Connections break, and none comes about.
    Cut,
    /// Nothing arrives in either direction, and nobody is told. What was sent meanwhile arrives later.
    Stalled,
    /// What is asked arrives, and nothing comes back until later.
    AnswersStalled,
    /// What is asked arrives; what comes back is thrown away, and the connections that lost something break when the cable
    /// is whole again.
    AnswersLost,
    /// It arrives so much later.
    Slow(Duration),
}

/// A cable: whoever connects to its [port](Cable::port) talks to the far end. Ends, with everything it carries, when dropped.
#[derive(Debug)]
pub struct Cable {
    address: SocketAddr,
    far_end: Arc<Mutex<Option<u16>>>,
    condition: watch::Sender<Condition>,
    // Dropping it ends everything.
    _carrier: JoinSet<()>,
}

/// When the far end is dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dial {
    /// As soon as somebody connects: the far end speaks first.
    AtOnce,
    /// When there is something to be said: the far end would wait for it and do nothing else.
    WhenSpokenTo,
}

impl Cable {
    /// A whole cable whose far end is not plugged in yet. Needs a tokio runtime.
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn new(dial: Dial) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("no port for a cable")?;
        let address = listener.local_addr()?;
        let far_end = Arc::new(Mutex::new(None));
        let (condition, watching) = watch::channel(Condition::Whole);
        let mut carrier = JoinSet::new();
        carrier.spawn(accept(listener, dial, Arc::clone(&far_end), watching));
        Ok(Self { address, far_end, condition, _carrier: carrier })
    }

    /// Plugs the far end in: a port of this machine.
    pub fn lead_to(&self, port: u16) {
        *self.far_end.lock().unwrap_or_else(PoisonError::into_inner) = Some(port);
    }

    /// Where to connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// From now on it is in this condition.
    pub fn set(&self, condition: Condition) {
        self.condition.send_replace(condition);
    }

    /// The condition it is in.
    #[must_use]
    pub fn condition(&self) -> Condition {
        *self.condition.borrow()
    }
}

async fn accept(
    listener: TcpListener,
    dial: Dial,
    far_end: Arc<Mutex<Option<u16>>>,
    condition: watch::Receiver<Condition>,
) {
    let mut carried = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Whoever is not accepted for want of descriptors tries again.
                let Ok((near, _)) = accepted else { continue };
                let port = *far_end.lock().unwrap_or_else(PoisonError::into_inner);
                carried.spawn(carry(near, dial, port, condition.clone()));
            }
            Some(_) = carried.join_next() => {}
        }
    }
}

/// Carries one connection until either end, or the cable, has had enough.
async fn carry(near: TcpStream, dial: Dial, port: Option<u16>, mut condition: watch::Receiver<Condition>) {
    let Some(port) = port else { return };
    let mut cut = condition.clone();
    let carrying = async {
        if dial == Dial::WhenSpokenTo {
            let mut first = [0];
            if near.peek(&mut first).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let lets_through = |condition: &Condition| !matches!(condition, Condition::Stalled);
        if condition.wait_for(lets_through).await.is_err() {
            return;
        }
        let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
        let (near, far) = (quick(near).into_split(), quick(far).into_split());
        let asked = pass(near.0, far.1, Way::There, condition.clone());
        let answered = pass(far.0, near.1, Way::Back, condition.clone());
        // Either end may have said all it has to say and still listen.
        tokio::join!(asked, answered);
    };
    tokio::select! {
        () = carrying => {}
        // Dropping both ends breaks the connection.
        _ = cut.wait_for(|condition| *condition == Condition::Cut) => {}
    }
}

fn quick(stream: TcpStream) -> TcpStream {
    // Otherwise small requests wait for each other.
    let _ = stream.set_nodelay(true);
    stream
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    There,
    Back,
}

/// Passes on what comes from one end, as the condition of the cable has it.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: Way,
    mut condition: watch::Receiver<Condition>,
) {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = from.read(&mut piece).await.unwrap_or(0);
        if read == 0 {
            // The other direction may have things to say yet.
            let _ = to.shutdown().await;
            return;
        }
        let now = *condition.borrow_and_update();
        match (now, way) {
            (Condition::Slow(delay), _) => tokio::time::sleep(delay).await,
            (Condition::AnswersLost, Way::Back) => {
                // Nothing sensible can follow on this connection.
                while from.read(&mut piece).await.unwrap_or(0) > 0
                    && *condition.borrow() == Condition::AnswersLost
                {}
                let _ = condition.wait_for(|condition| *condition != Condition::AnswersLost).await;
                return;
            }
            _ => {}
        }
        let holds = |condition: &Condition| match condition {
            Condition::Stalled => true,
            Condition::AnswersStalled => way == Way::Back,
            _ => false,
        };
        if condition.wait_for(|condition| !holds(condition)).await.is_err() {
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

    /// An end that says "hello" to whoever connects and then repeats what it hears.
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

    async fn hears(stream: &mut TcpStream, text: &str) -> bool {
        let mut heard = vec![0; text.len()];
        stream.read_exact(&mut heard).await.is_ok() && heard == text.as_bytes()
    }

    async fn cable(tasks: &mut JoinSet<()>) -> Cable {
        let cable = Cable::new(Dial::AtOnce).await.unwrap();
        cable.lead_to(echo(tasks).await);
        cable
    }

    async fn connected(cable: &Cable) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", cable.port())).await.unwrap();
        assert!(hears(&mut stream, "hello").await);
        stream
    }

    #[tokio::test]
    async fn a_whole_cable_carries_both_ways_and_a_cut_one_breaks_and_refuses() {
        let mut tasks = JoinSet::new();
        let cable = cable(&mut tasks).await;
        let mut stream = connected(&cable).await;
        stream.write_all(b"a").await.unwrap();
        assert!(hears(&mut stream, "a").await);
        cable.set(Condition::Cut);
        assert!(!hears(&mut stream, "b").await);
        let mut refused = TcpStream::connect(("127.0.0.1", cable.port())).await.unwrap();
        assert!(!hears(&mut refused, "hello").await);
        cable.set(Condition::Whole);
        connected(&cable).await;
    }

    #[tokio::test]
    async fn what_was_stalled_arrives_later() {
        for condition in [Condition::Stalled, Condition::AnswersStalled] {
            let mut tasks = JoinSet::new();
            let cable = cable(&mut tasks).await;
            let mut stream = connected(&cable).await;
            cable.set(condition);
            stream.write_all(b"a").await.unwrap();
            let early = tokio::time::timeout(Duration::from_millis(50), hears(&mut stream, "a")).await;
            assert!(early.is_err(), "{condition:?}");
            cable.set(Condition::Whole);
            assert!(hears(&mut stream, "a").await, "{condition:?}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_lost_an_answer_breaks() {
        let mut tasks = JoinSet::new();
        let cable = cable(&mut tasks).await;
        let mut stream = connected(&cable).await;
        cable.set(Condition::AnswersLost);
        stream.write_all(b"a").await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(50), hears(&mut stream, "a")).await;
        assert!(early.is_err());
        cable.set(Condition::Whole);
        stream.write_all(b"b").await.ok();
        assert!(!hears(&mut stream, "a").await);
    }
}
