//! Sends requests at a fixed rate within a fixed window, and counts the replies by their kind.
//!
//! The flood writes NATS frames itself. So it costs the machine little, and an aggressor is as fast with unoptimized
//! programs as an application would be.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use dormouse_protocol::{ErrorCode, ErrorReply, Route, decode};
use dormouse_runtime::Env;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::RawNats;

/// The pause after which the flood sends what its rate allows by then.
const TICK: Duration = Duration::from_millis(5);

/// After this time without a reply, the flood takes its unanswered requests as lost: the default deadline of the clients.
const REPLY_DEADLINE: Duration = Duration::from_secs(10);

/// The largest number of bytes that the flood writes at once.
const WRITE_BYTES: usize = 1 << 20;

/// The rate and the window of a flood. Both are fixed, so that the broker is not what fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flood {
    /// Requests per second. Requests that the window holds back are sent as soon as it has room.
    pub per_second: u64,
    /// The largest number of unanswered requests.
    pub window: u64,
    /// The number of requests after which the flood ends.
    pub total: u64,
}

/// The replies that an aggressor got.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttackFigures {
    /// The number of requests by the kind of their reply: `ok`, an error code, or `unanswered`.
    pub replies: BTreeMap<String, u64>,
    /// The text of the first reply of each error code.
    pub texts: BTreeMap<String, String>,
    /// The errors that nats-server reported, such as a missing permission.
    pub broker_errors: Vec<String>,
}

impl AttackFigures {
    /// Returns the number of replies of a kind.
    #[must_use]
    pub fn count(&self, kind: &str) -> u64 {
        self.replies.get(kind).copied().unwrap_or_default()
    }

    /// Returns the number of requests.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.replies.values().sum()
    }

    fn add(&mut self, kind: &str, count: u64) {
        *self.replies.entry(kind.to_owned()).or_default() += count;
    }

    /// Counts one reply with this header block.
    fn add_reply(&mut self, headers: &[u8], body: &[u8]) {
        if headers.is_empty() {
            return self.add("ok", 1);
        }
        if headers.starts_with(b"NATS/1.0 503") {
            return self.add("no_responders", 1);
        }
        let error: ErrorReply =
            decode(body).unwrap_or_else(|_| ErrorReply::new(ErrorCode::Internal, "not an error reply"));
        self.add(error.code.as_str(), 1);
        self.texts.entry(error.code.as_str().to_owned()).or_insert(error.message);
    }
}

impl std::fmt::Display for AttackFigures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (position, (kind, count)) in self.replies.iter().enumerate() {
            write!(f, "{}{count} {kind}", if position == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// The state that the two directions of the connection share.
struct Progress<'a> {
    flood: Flood,
    env: &'a Env,
    sent: Cell<u64>,
    replied: Cell<u64>,
    lost: Cell<u64>,
    last_reply: Cell<Duration>,
    pong_due: Cell<bool>,
    figures: RefCell<AttackFigures>,
}

impl Progress<'_> {
    fn unanswered(&self) -> u64 {
        self.sent.get() - self.replied.get() - self.lost.get()
    }

    fn is_done(&self) -> bool {
        self.sent.get() == self.flood.total && self.unanswered() == 0
    }

    fn record_reply(&self, headers: &[u8], body: &[u8]) {
        self.last_reply.set(self.env.boot());
        // A reply that arrives after its request was taken as lost counts twice in no figure.
        if self.unanswered() > 0 {
            self.replied.set(self.replied.get() + 1);
            self.figures.borrow_mut().add_reply(headers, body);
        }
    }

    /// Takes the unanswered requests as lost, if no reply has arrived for long.
    fn expire(&self, now: Duration) {
        let lost = self.unanswered();
        if lost > 0 && now.saturating_sub(self.last_reply.get()) > REPLY_DEADLINE {
            self.lost.set(self.lost.get() + lost);
            self.figures.borrow_mut().add("unanswered", lost);
        }
    }
}

impl Flood {
    /// Sends the requests that `request` returns for 0, 1, 2, … until the total is reached, and waits for the replies.
    ///
    /// If the call is cancelled, requests may have been executed.
    ///
    /// # Errors
    /// If the connection breaks.
    pub async fn run(
        self,
        mut raw: RawNats,
        inbox: &str,
        env: &Env,
        mut request: impl FnMut(u64) -> (Route, Bytes),
    ) -> anyhow::Result<AttackFigures> {
        raw.subscribe(inbox).await?;
        let (reader, mut writer) = raw.into_split();
        let progress = Progress {
            flood: self,
            env,
            sent: Cell::new(0),
            replied: Cell::new(0),
            lost: Cell::new(0),
            last_reply: Cell::new(env.boot()),
            pong_due: Cell::new(false),
            figures: RefCell::default(),
        };
        let reading = read(&progress, reader);
        let writing = write(&progress, &mut writer, inbox, &mut request);
        tokio::select! {
            biased;
            read = reading => read?,
            written = writing => written?,
        }
        Ok(progress.figures.into_inner())
    }
}

/// Sends the requests; returns when all have a reply or are lost.
async fn write(
    progress: &Progress<'_>,
    writer: &mut OwnedWriteHalf,
    inbox: &str,
    request: &mut impl FnMut(u64) -> (Route, Bytes),
) -> anyhow::Result<()> {
    let Flood { per_second, window, total } = progress.flood;
    let mut ticks = tokio::time::interval(TICK);
    let began = progress.env.boot();
    let mut frames = Vec::new();
    while !progress.is_done() {
        ticks.tick().await;
        let now = progress.env.boot();
        progress.expire(now);
        if progress.pong_due.take() {
            writer.write_all(b"PONG\r\n").await?;
        }
        let elapsed = now.saturating_sub(began) + TICK;
        let allowed = ((elapsed.as_secs_f64() * per_second as f64) as u64).min(total);
        while progress.sent.get() < allowed && progress.unanswered() < window {
            if progress.unanswered() == 0 {
                progress.last_reply.set(now);
            }
            let (route, body) = request(progress.sent.get());
            frames.extend_from_slice(format!("PUB {route} {inbox} {}\r\n", body.len()).as_bytes());
            frames.extend_from_slice(&body);
            frames.extend_from_slice(b"\r\n");
            progress.sent.set(progress.sent.get() + 1);
            if frames.len() >= WRITE_BYTES {
                writer.write_all(&frames).await?;
                frames.clear();
            }
        }
        writer.write_all(&frames).await?;
        frames.clear();
    }
    Ok(())
}

/// Counts the replies until the connection breaks.
async fn read(progress: &Progress<'_>, mut reader: BufReader<OwnedReadHalf>) -> anyhow::Result<()> {
    let (mut line, mut message) = (String::new(), Vec::new());
    loop {
        line.clear();
        anyhow::ensure!(reader.read_line(&mut line).await? > 0, "the nats-server closed the connection");
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.first().copied() {
            Some("MSG" | "HMSG") => {
                let size = |from_end: usize| -> anyhow::Result<usize> {
                    let word = words.len().checked_sub(from_end).and_then(|index| words.get(index));
                    Ok(word.context("a message has a size")?.parse()?)
                };
                let total = size(1)?;
                let head = if words[0] == "HMSG" { size(2)? } else { 0 };
                message.resize(total + 2, 0);
                reader.read_exact(&mut message).await?;
                progress.record_reply(&message[..head], &message[head..total]);
            }
            Some("PING") => progress.pong_due.set(true),
            Some("-ERR") => progress.figures.borrow_mut().broker_errors.push(line.trim().to_owned()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_protocol::OverloadCause;
    use dormouse_protocol::encode;

    /// Replies are counted by their error code; a reply without headers is a success.
    #[test]
    fn attack_figures_count_replies_by_code() {
        let mut figures = AttackFigures::default();
        figures.add_reply(b"", b"");
        let error = encode(&ErrorReply::from(OverloadCause::SubjectQueue)).unwrap();
        figures.add_reply(b"NATS/1.0\r\nNats-Service-Error-Code: 429\r\n\r\n", &error);
        figures.add_reply(b"NATS/1.0 503\r\n\r\n", b"");
        figures.add("unanswered", 2);
        assert_eq!(figures.to_string(), "1 no_responders, 1 ok, 1 overloaded, 2 unanswered");
        assert_eq!(figures.sent(), 5);
        assert_eq!(figures.texts["overloaded"], "the subject's queue is full");
    }
}
