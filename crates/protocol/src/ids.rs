//! A newtype for each kind of number and name, so that they cannot be confused.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::limits::MAX_SERVER_NAME_BYTES;
use crate::newtype::{parse_hex, parse_ulid};
use crate::{number_newtype, stored_as_text};

number_newtype! {
    /// Number of a message in its subject. The first is 1; 0 means "before the first".
    #[derive(Default)]
    Seq, "seq"
}
number_newtype! {
    /// A subject's revision: +1 for every change. 0 is the revision of an unchanged subject.
    #[derive(Default)]
    Rev, "rev"
}
number_newtype! {
    /// Ownership epoch of a subject; it grows with each claim. The first is 1.
    #[derive(Default)]
    Term, "term"
}
number_newtype! {
    /// Position of a segment in a log.
    #[derive(Default)]
    Slot, "slot"
}

/// An instant as microseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Wraps a number of microseconds since the Unix epoch.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the Unix epoch.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// The timestamp `millis` milliseconds later, at most the largest timestamp that a file can hold.
    #[must_use]
    pub const fn plus_millis(self, millis: u64) -> Self {
        let micros = self.0.saturating_add(millis.saturating_mul(1_000));
        // Files store timestamps as signed numbers, in order of time.
        Self(if micros > i64::MAX.unsigned_abs() { i64::MAX.unsigned_abs() } else { micros })
    }

    /// Milliseconds since the Unix epoch, rounded down.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000
    }
}

/// The permanent id of a message: the term under which it was written, and its seq.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MessageId {
    /// The term under which the message was written.
    pub term: Term,
    /// The message's seq.
    pub seq: Seq,
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.seq, self.term)
    }
}

/// A state of a subject: all changes up to `rev`, in the history of `term`. Ordered by term, then rev.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Position {
    /// The term.
    pub term: Term,
    /// The revision.
    pub rev: Rev,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.rev, self.term)
    }
}

/// Durability level of a write, from the weakest to the strongest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Acknowledged when the serving process has it in memory.
    Memory,
    /// Acknowledged when it is in the local WAL, which is synced each second.
    Interval,
    /// Acknowledged when it is synced to the local disk.
    Disk,
    /// Acknowledged when it is in the bucket.
    Bucket,
}

impl Level {
    /// All levels, from the weakest to the strongest.
    pub const ALL: [Self; 4] = [Self::Memory, Self::Interval, Self::Disk, Self::Bucket];

    /// The level's name in configurations and on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Interval => "interval",
            Self::Disk => "disk",
            Self::Bucket => "bucket",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Level {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|level| level.as_str() == text)
            .ok_or_else(|| InvalidName::new("level", text, "one of memory, interval, disk, bucket"))
    }
}

/// The text is not a valid name or id of this kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}: it must be {rule}")]
pub struct InvalidName {
    what: &'static str,
    text: String,
    rule: &'static str,
}

impl InvalidName {
    pub(crate) fn new(what: &'static str, text: &str, rule: &'static str) -> Self {
        // A hostile text may be long; the error message is bounded.
        let text = text.chars().take(80).collect();
        Self { what, text, rule }
    }
}

/// The configured name of a persistence server: one route token, one file name.
///
/// 1 to [`MAX_SERVER_NAME_BYTES`] characters from `a-z`, `0-9`, `-` and `_`, starting with a letter or digit. The
/// name `coordinator` is reserved for the coordinator.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerName(Arc<str>);

impl ServerName {
    /// The name under which the coordinator answers health requests; no server may use it.
    pub const COORDINATOR: &'static str = "coordinator";

    /// Validates `name` and creates a server name.
    ///
    /// # Errors
    /// [`InvalidName`] if the name violates a rule of [`ServerName`].
    pub fn new(name: &str) -> Result<Self, InvalidName> {
        const RULE: &str = "1 to 63 characters from a-z, 0-9, - and _, starting with a letter or digit, and not `coordinator`";
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        let valid_start = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if valid_start
            && name.len() <= MAX_SERVER_NAME_BYTES
            && name.bytes().all(legal)
            && name != Self::COORDINATOR
        {
            Ok(Self(name.into()))
        } else {
            Err(InvalidName::new("server name", name, RULE))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for ServerName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

stored_as_text!(ServerName);

/// The id of a log, and of the server process that writes it: the server's name and a ULID generated at the start of the
/// process, printed as `persist-1-01J9Z3…`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LogId {
    server: ServerName,
    ulid: Ulid,
}

impl LogId {
    /// Joins a server's name and the ULID of one of its processes.
    #[must_use]
    pub const fn new(server: ServerName, ulid: Ulid) -> Self {
        Self { server, ulid }
    }

    /// The server whose process writes the log.
    #[must_use]
    pub const fn server(&self) -> &ServerName {
        &self.server
    }

    /// The ULID generated at the start of the process.
    #[must_use]
    pub const fn ulid(&self) -> Ulid {
        self.ulid
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.server, self.ulid)
    }
}

impl FromStr for LogId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidName::new("log id", text, "a server name, a dash and an upper-case ULID");
        let (server, ulid) = text.rsplit_once('-').ok_or_else(invalid)?;
        let ulid = parse_ulid(ulid).ok_or_else(invalid)?;
        Ok(Self::new(ServerName::new(server).map_err(|_| invalid())?, ulid))
    }
}

stored_as_text!(LogId);

macro_rules! ulid_id {
    ($(#[$doc:meta])* $name:ident, $word:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Ulid);

        impl $name {
            /// Wraps a ULID generated by the caller.
            #[must_use]
            pub const fn new(ulid: Ulid) -> Self {
                Self(ulid)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse_ulid(text)
                    .map(Self)
                    .ok_or_else(|| InvalidName::new($word, text, "an upper-case ULID"))
            }
        }

        stored_as_text!($name);
    };
}

ulid_id! {
    /// The session of a client, generated when the client connects; the first half of a [`RequestId`].
    SessionId, "session id"
}
ulid_id! {
    /// One run of the coordinator, generated at the start of the run. If it changes, servers must assume that the coordinator
    /// may have lost its leases.
    Incarnation, "incarnation"
}
ulid_id! {
    /// One upload of a value, generated by the uploading client.
    UploadId, "upload id"
}

/// The digest of a value: its CRC-64/NVME, as text 16 lower-case hexadecimal digits (not every language can hold such a
/// number exactly).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ValueDigest(u64);

impl ValueDigest {
    /// Wraps the checksum.
    #[must_use]
    pub const fn new(crc64_nvme: u64) -> Self {
        Self(crc64_nvme)
    }

    /// The bare checksum.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ValueDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for ValueDigest {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_hex(text)
            .map(Self)
            .ok_or_else(|| InvalidName::new("digest", text, "16 lower-case hexadecimal digits"))
    }
}

stored_as_text!(ValueDigest);

/// The permanent id of a changing request, so that it is applied at most once: the session and a growing counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// The client's session.
    pub session: SessionId,
    /// Grows by one with each changing request of the session.
    pub counter: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Terms and positions print with their kind, for example `term 7`.
    #[test]
    fn ids_print_with_kind() {
        assert_eq!(Term::new(7).to_string(), "term 7");
        assert_eq!(Position { term: Term::new(7), rev: Rev::new(41) }.to_string(), "rev 41 of term 7");
    }

    /// A server name is valid only if it can be a route token and a file name, and is not reserved.
    #[test]
    fn server_names_are_route_tokens_and_file_names() {
        for good in ["a", "persist-1", "0_x", &"n".repeat(63)] {
            assert!(ServerName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a.b", "a*", "a b", "é", "coordinator", &"n".repeat(64)] {
            assert!(ServerName::new(bad).is_err(), "{bad}");
        }
    }

    /// A log id round-trips through its text and accepts only one spelling.
    #[test]
    fn log_ids_round_trip_in_one_spelling() {
        let id = LogId::new(
            ServerName::new("persist-1").unwrap(),
            Ulid::from_string("01J9Z3ABCDEFGHJKMNPQRSTVWX").unwrap(),
        );
        assert_eq!(id.to_string().parse::<LogId>(), Ok(id.clone()));
        assert!(id.to_string().to_lowercase().parse::<LogId>().is_err());
        assert!("persist-1".parse::<LogId>().is_err());
        assert!("".parse::<LogId>().is_err());
    }

    /// Levels are ordered by durability and parse only in lower case.
    #[test]
    fn levels_are_ordered_by_durability() {
        assert!(Level::Memory < Level::Interval && Level::Disk < Level::Bucket);
        assert_eq!("disk".parse::<Level>(), Ok(Level::Disk));
        assert!("Disk".parse::<Level>().is_err());
    }
}
