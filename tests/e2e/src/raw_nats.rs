//! A hand-written NATS connection: it can send messages that no correct client would send.

use std::collections::VecDeque;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::TIMEOUT;

/// A received message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawMessage {
    /// The NATS subject.
    pub subject: String,
    /// The header block as text; empty without headers.
    pub headers: String,
    /// The content.
    pub payload: Vec<u8>,
}

/// A connection.
#[derive(Debug)]
pub struct RawNats {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    arrived: VecDeque<RawMessage>,
    denied: Vec<String>,
    inboxes: u64,
}

impl RawNats {
    /// Connects to `nats://host:port`.
    ///
    /// # Errors
    /// If no server listens there, or it does not speak the NATS protocol.
    pub async fn connect(url: &str) -> anyhow::Result<Self> {
        Self::connect_as(url, None).await
    }

    /// Connects to `nats://host:port` with a user and a password.
    ///
    /// # Errors
    /// If no server listens there, it does not speak the NATS protocol, or it does not know the user.
    pub async fn connect_as(url: &str, user: Option<(&str, &str)>) -> anyhow::Result<Self> {
        let address = url.strip_prefix("nats://").context("not a nats:// address")?;
        let (reader, writer) = TcpStream::connect(address).await?.into_split();
        let mut nats = Self {
            reader: BufReader::new(reader),
            writer,
            arrived: VecDeque::new(),
            denied: Vec::new(),
            inboxes: 0,
        };
        let info = nats.line().await?;
        anyhow::ensure!(info.starts_with("INFO "), "not a nats-server: {info}");
        let login = user.map(|(user, password)| format!(",\"user\":\"{user}\",\"pass\":\"{password}\""));
        let connect = format!(
            "CONNECT {{\"verbose\":false,\"headers\":true,\"no_responders\":true,\"lang\":\"raw\",\"version\":\"0\"{}}}\r\n",
            login.unwrap_or_default()
        );
        nats.send(connect.as_bytes()).await?;
        nats.flush().await?;
        Ok(nats)
    }

    /// Sends a message, with a reply address if one is given.
    ///
    /// # Errors
    /// If the connection is closed.
    pub async fn publish(
        &mut self,
        subject: &str,
        reply_to: Option<&str>,
        payload: &[u8],
    ) -> anyhow::Result<()> {
        let reply_to = reply_to.map(|reply_to| format!("{reply_to} ")).unwrap_or_default();
        let mut frame = format!("PUB {subject} {reply_to}{}\r\n", payload.len()).into_bytes();
        frame.extend_from_slice(payload);
        frame.extend_from_slice(b"\r\n");
        self.send(&frame).await
    }

    /// Sends a message with a header block: lines that end as in HTTP, without the first line and the last empty line.
    ///
    /// # Errors
    /// If the connection is closed.
    pub async fn publish_with_headers(
        &mut self,
        subject: &str,
        reply_to: &str,
        headers: &str,
        payload: &[u8],
    ) -> anyhow::Result<()> {
        let head = format!("NATS/1.0\r\n{headers}\r\n");
        let total = head.len() + payload.len();
        let mut frame = format!("HPUB {subject} {reply_to} {} {total}\r\n{head}", head.len()).into_bytes();
        frame.extend_from_slice(payload);
        frame.extend_from_slice(b"\r\n");
        self.send(&frame).await
    }

    /// Subscribes to a pattern; the subscription is active when the call returns.
    ///
    /// # Errors
    /// If the connection is closed.
    pub async fn subscribe(&mut self, pattern: &str) -> anyhow::Result<()> {
        self.inboxes += 1;
        let frame = format!("SUB {pattern} {}\r\n", self.inboxes);
        self.send(frame.as_bytes()).await?;
        self.flush().await
    }

    /// Sends a request and waits for the first reply.
    ///
    /// # Errors
    /// If no reply comes.
    pub async fn request(&mut self, subject: &str, payload: &[u8]) -> anyhow::Result<RawMessage> {
        let inbox = format!("_INBOX.raw.{}", self.inboxes);
        self.subscribe(&inbox).await?;
        self.publish(subject, Some(&inbox), payload).await?;
        self.next_on(&inbox).await.with_context(|| format!("no reply on {subject}"))
    }

    /// Returns the next message on `subject`; others stay queued.
    ///
    /// # Errors
    /// If none comes.
    pub async fn next_on(&mut self, subject: &str) -> anyhow::Result<RawMessage> {
        let wait = async {
            loop {
                if let Some(position) = self.arrived.iter().position(|message| message.subject == subject) {
                    return Ok(self.arrived.remove(position).expect("the position was just found"));
                }
                self.read().await?;
            }
        };
        tokio::time::timeout(TIMEOUT, wait).await.with_context(|| format!("no message on {subject}"))?
    }

    /// Returns the received messages that were not taken.
    #[must_use]
    pub fn arrived(&self) -> &VecDeque<RawMessage> {
        &self.arrived
    }

    /// Returns the permission errors since the last call, in the server's words.
    ///
    /// # Errors
    /// If the connection is closed.
    pub async fn denied(&mut self) -> anyhow::Result<Vec<String>> {
        self.flush().await?;
        Ok(std::mem::take(&mut self.denied))
    }

    /// Takes the received messages.
    #[must_use]
    pub fn take_arrived(&mut self) -> VecDeque<RawMessage> {
        std::mem::take(&mut self.arrived)
    }

    /// Waits until the server has processed everything sent so far, and all its earlier messages have arrived.
    ///
    /// # Errors
    /// If the connection is closed.
    pub async fn flush(&mut self) -> anyhow::Result<()> {
        self.send(b"PING\r\n").await?;
        while !self.read().await? {}
        Ok(())
    }

    /// Returns the two directions of the connection. Messages that have arrived are discarded.
    #[must_use]
    pub fn into_split(self) -> (BufReader<OwnedReadHalf>, OwnedWriteHalf) {
        (self.reader, self.writer)
    }

    async fn send(&mut self, frame: &[u8]) -> anyhow::Result<()> {
        Ok(self.writer.write_all(frame).await?)
    }

    async fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line).await?;
        anyhow::ensure!(read > 0, "the nats-server closed the connection");
        Ok(line.trim_end().to_owned())
    }

    /// Reads one item from the connection; returns true for the reply to our PING.
    async fn read(&mut self) -> anyhow::Result<bool> {
        let line = self.line().await?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.first().copied() {
            Some("PONG") => return Ok(true),
            Some("PING") => self.send(b"PONG\r\n").await?,
            Some("INFO" | "+OK") => {}
            Some("-ERR") if line.contains("Permissions Violation") => self.denied.push(line.clone()),
            Some("MSG" | "HMSG") => {
                let total: usize = words[words.len() - 1].parse()?;
                let head: usize = if words[0] == "HMSG" { words[words.len() - 2].parse()? } else { 0 };
                let mut bytes = vec![0; total + 2];
                self.reader.read_exact(&mut bytes).await?;
                self.arrived.push_back(RawMessage {
                    subject: words[1].to_owned(),
                    headers: String::from_utf8_lossy(&bytes[..head]).into_owned(),
                    payload: bytes[head..total].to_vec(),
                });
            }
            _ => bail!("unexpected line from nats-server: {line}"),
        }
        Ok(false)
    }
}
