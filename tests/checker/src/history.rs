//! The record of a run: the calls with their times and replies, and the faults of the servers.
//!
//! Times are durations since an arbitrary moment, on one clock for the whole history.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dormouse_protocol::codec::DecodeError;
use dormouse_protocol::data::{
    ChangesReply, ChangesRequest, ConfigureReply, ConfigureRequest, DeleteAllReply, DeleteAllRequest,
    DeleteReply, DeleteRequest, DestroyReply, DestroyRequest, FlushReply, GetAllReply, GetAllRequest,
    GetReply, GetRequest, InfoReply, KeysReply, KeysRequest, SetReply, SetRequest,
};
use dormouse_protocol::route::Op as Name;
use dormouse_protocol::{
    ErrorReply, Event, Executed, Level, Message, Position, RequestId, Rev, Seq, ServerName, Subject, Term,
    decode,
};

/// The record of one run.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The record of each subject.
    pub subjects: BTreeMap<Subject, SubjectHistory>,
    /// The faults of the servers.
    pub faults: Vec<ServerFault>,
    /// The rules for the verdict.
    pub rules: Rules,
}

/// The record of one subject.
#[derive(Debug, Clone, Default)]
pub struct SubjectHistory {
    /// The calls, in any order. The final reads are calls like any other.
    pub calls: Vec<Call>,
    /// The received events, in any order. An event that was received twice is here twice.
    pub events: Vec<ReceivedEvent>,
    /// The feeds of the clients.
    pub feeds: Vec<Feed>,
    /// The bursts: sets that a caller sent without waiting.
    pub bursts: Vec<Burst>,
    /// Facts about terms that the replies and events do not show.
    pub terms: BTreeMap<Term, TermFacts>,
    /// The positions in `lost/` at the end. `None` if `lost/` was not read.
    pub set_aside: Option<BTreeSet<Position>>,
}

/// The facts about one term.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TermFacts {
    /// The last rev that the term inherited.
    pub base: Option<Rev>,
    /// The server of the term.
    pub server: Option<ServerName>,
}

/// One call: one request to one server, and its outcome.
///
/// Several calls with the same request id are one operation that was sent several times.
#[derive(Debug, Clone)]
pub struct Call {
    /// The client. It is only for readers of the history.
    pub client: u32,
    /// The server, if known.
    pub server: Option<ServerName>,
    /// The request.
    pub op: Op,
    /// The time of the request.
    pub invoked_at: Duration,
    /// The end of the call; `None` if there was none.
    pub returned: Option<Returned>,
}

/// The end of a call.
#[derive(Debug, Clone)]
pub struct Returned {
    /// The time of the end.
    pub at: Duration,
    /// The outcome.
    pub outcome: CallOutcome,
}

/// A request. Every value that is set in a subject differs from every other value set there, except in a repeat of the
/// same request. So the value identifies the writer of a message.
#[derive(Debug, Clone)]
pub enum Op {
    /// Writes messages.
    Set(SetRequest),
    /// Removes messages.
    Delete(DeleteRequest),
    /// Removes all messages, or the oldest ones.
    DeleteAll(DeleteAllRequest),
    /// Replaces the configuration.
    Configure(ConfigureRequest),
    /// Destroys the subject.
    Destroy(DestroyRequest),
    /// Reads messages by seq or key.
    Get(GetRequest),
    /// Reads a page of messages.
    GetAll(GetAllRequest),
    /// Reads a page of keys.
    Keys(KeysRequest),
    /// Reads a page of changes.
    Changes(ChangesRequest),
    /// Reads everything except the messages.
    Info,
    /// Waits until all writes are in the bucket.
    Flush,
}

/// The outcome of a call.
#[derive(Debug, Clone)]
pub enum CallOutcome {
    /// The operation was executed and answered.
    Answered(OpResult),
    /// The operation failed. [`ErrorReply::executed`] says whether it may have been executed nevertheless.
    Refused(ErrorReply),
    /// The outcome is unknown: no reply, or a broken connection.
    Unknown,
}

/// A reply, one variant for each [`Op`].
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each is the reply to the operation of its name")]
pub enum OpResult {
    Set(SetReply),
    Delete(DeleteReply),
    DeleteAll(DeleteAllReply),
    Configure(ConfigureReply),
    Destroy(DestroyReply),
    Get(GetReply),
    GetAll(GetAllReply),
    Keys(KeysReply),
    Changes(ChangesReply),
    Info(Box<InfoReply>),
    Flush(FlushReply),
}

/// A received event.
#[derive(Debug, Clone)]
pub struct ReceivedEvent {
    /// The time of receipt.
    pub at: Duration,
    /// The event.
    pub event: Event,
}

/// A feed of a client, and its output.
#[derive(Debug, Clone)]
pub struct Feed {
    /// The client. It is only for readers of the history.
    pub client: u32,
    /// The time of the start.
    pub at: Duration,
    /// The start position.
    pub begins: FeedBegins,
    /// The messages that the feed covers.
    pub keys: FeedKeys,
    /// The output, in order.
    pub outputs: Vec<FeedOutput>,
}

/// The start position of a feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedBegins {
    /// The feed starts with the current messages.
    Beginning,
    /// The feed starts at the first position that it names.
    Now,
    /// The feed starts after this position.
    After(Position),
}

/// The messages that a feed covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeedKeys {
    /// All messages.
    All,
    /// The message under this key.
    One(String),
    /// The messages whose keys have this prefix.
    Prefix(String),
}

impl FeedKeys {
    pub(crate) fn wants(&self, key: Option<&str>) -> bool {
        match self {
            Self::All => true,
            Self::One(wanted) => key == Some(wanted),
            Self::Prefix(prefix) => key.is_some_and(|key| key.starts_with(prefix.as_str())),
        }
    }
}

/// One output of a feed.
#[derive(Debug, Clone)]
pub struct FeedOutput {
    /// The time.
    pub at: Duration,
    /// The kind of the output.
    pub kind: FeedOutputKind,
    /// The position of the reader after the output, if the output names it.
    pub position: Option<Position>,
}

/// The kinds of feed output; see the client's `Update`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the client's update of its name")]
pub enum FeedOutputKind {
    Set { message: Message, replaces: Option<Seq> },
    Removed { seq: Seq, key: Option<String> },
    Cleared { end_seq: Seq },
    Configured,
    CaughtUp(Position),
    Reset,
}

/// Sets that one caller sent one after another without waiting for their replies.
#[derive(Debug, Clone)]
pub struct Burst {
    /// The client. It is only for readers of the history.
    pub client: u32,
    /// The time at which all outcomes were known.
    pub at: Duration,
    /// The position of each set, in the order of the calls; `None` if it failed or its outcome is unknown.
    pub written: Vec<Option<Position>>,
}

/// A fault of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFault {
    /// The server.
    pub server: ServerName,
    /// The kind of the fault.
    pub kind: ServerFaultKind,
    /// The time since which the server may not have saved accepted changes. Since then the server was paused, cut off
    /// or ended, or it had not finished the recovery of its predecessor's log.
    pub since: Duration,
    /// The time of the end. Changes that are acknowledged later are not affected.
    pub until: Duration,
}

/// The kinds of server faults. The table of `docs/guarantees.md` says which levels may lose writes in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServerFaultKind {
    /// The process was killed. Its disk is intact.
    Killed,
    /// The machine lost power. Unsynced data is gone.
    PowerLost,
    /// The process was killed, and its disk is empty.
    DiskWiped,
    /// The process was killed, and its disk is an older copy; [`ServerFault::since`] is the time of the copy.
    DiskRestored,
    /// The process was paused.
    Paused,
    /// The server did not reach the bucket.
    CutFromBucket,
    /// The server was cut off from the coordinator or the clients.
    CutFromBus,
    /// Another process sealed the server's log, for any reason. It is recorded if no other fault explains the seal,
    /// such as a coordinator that declares a slow server dead.
    TakenOver,
}

/// The rules for the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The servers' default level, for subjects without a level of their own.
    pub default_level: Level,
    /// The longest time that an acknowledged change stays out of the bucket while its server runs and reaches the
    /// bucket.
    pub unshipped: Duration,
    /// The longest time that a change of level `interval` stays unsynced.
    pub unsynced: Duration,
    /// Whether the assumptions of the guarantees about clocks and the coordinator held.
    pub assumptions: Assumptions,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            default_level: Level::Bucket,
            unshipped: Duration::from_secs(11),
            unsynced: Duration::from_secs(1),
            assumptions: Assumptions::Hold,
        }
    }
}

/// Whether clocks kept their rates and only one coordinator was active.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assumptions {
    /// They held: all guarantees apply.
    Hold,
    /// They did not hold: reads may be stale, and weaker levels may lose writes without a fault. The guarantees of
    /// level `bucket` still apply.
    Broken,
}

impl SubjectHistory {
    /// Records a call; returns its index in [`SubjectHistory::calls`].
    pub fn invoked(&mut self, client: u32, server: Option<ServerName>, op: Op, at: Duration) -> usize {
        self.calls.push(Call { client, server, op, invoked_at: at, returned: None });
        self.calls.len() - 1
    }

    /// Records the end of the call at `index`.
    ///
    /// # Panics
    /// If there is no such call.
    pub fn returned(&mut self, index: usize, at: Duration, outcome: CallOutcome) {
        self.calls[index].returned = Some(Returned { at, outcome });
    }
}

impl Call {
    /// Returns the reply and its time, if the call was answered.
    #[must_use]
    pub fn answer(&self) -> Option<(&OpResult, Duration)> {
        match &self.returned {
            Some(Returned { at, outcome: CallOutcome::Answered(answer) }) => Some((answer, *at)),
            _ => None,
        }
    }

    /// Returns whether the outcome is unknown.
    pub(crate) fn is_open(&self) -> bool {
        self.answer().is_none() && self.refusal().is_none()
    }

    /// Returns the error and its time, if it says that the operation was not executed.
    #[must_use]
    pub fn refusal(&self) -> Option<(&ErrorReply, Duration)> {
        match &self.returned {
            Some(Returned { at, outcome: CallOutcome::Refused(error) })
                if error.executed() == Executed::No =>
            {
                Some((error, *at))
            }
            _ => None,
        }
    }
}

impl Op {
    /// Decodes the request of an operation. Returns `None` for operations that are not judged: chunked values.
    ///
    /// # Errors
    /// If the bytes are no such request.
    pub fn from_wire(name: Name, payload: &[u8]) -> Result<Option<Self>, DecodeError> {
        Ok(Some(match name {
            Name::Set => Self::Set(decode(payload)?),
            Name::Delete => Self::Delete(decode(payload)?),
            Name::DeleteAll => Self::DeleteAll(decode(payload)?),
            Name::Configure => Self::Configure(decode(payload)?),
            Name::Destroy => Self::Destroy(decode(payload)?),
            Name::Get => Self::Get(decode(payload)?),
            Name::GetAll => Self::GetAll(decode(payload)?),
            Name::Keys => Self::Keys(decode(payload)?),
            Name::Changes => Self::Changes(decode(payload)?),
            Name::Info => Self::Info,
            Name::Flush => Self::Flush,
            Name::UploadBegin
            | Name::UploadChunk
            | Name::UploadFinish
            | Name::UploadCommit
            | Name::UploadCancel
            | Name::GetChunk => return Ok(None),
        }))
    }

    /// The request id of a changing request.
    #[must_use]
    pub const fn request_id(&self) -> Option<RequestId> {
        match self {
            Self::Set(request) => request.request,
            Self::Delete(request) => request.request,
            Self::DeleteAll(request) => request.request,
            Self::Configure(request) => request.request,
            Self::Destroy(request) => request.request,
            Self::Get(_) | Self::GetAll(_) | Self::Keys(_) | Self::Changes(_) | Self::Info | Self::Flush => {
                None
            }
        }
    }

    /// Returns whether the request can change a subject.
    #[must_use]
    pub const fn changes(&self) -> bool {
        match self {
            Self::Set(_) | Self::Delete(_) | Self::DeleteAll(_) | Self::Configure(_) | Self::Destroy(_) => {
                true
            }
            Self::Get(_) | Self::GetAll(_) | Self::Keys(_) | Self::Changes(_) | Self::Info | Self::Flush => {
                false
            }
        }
    }

    /// The level that the request names, if any.
    pub(crate) const fn level(&self) -> Option<Level> {
        match self {
            Self::Set(request) => request.level,
            Self::Delete(request) => request.level,
            Self::DeleteAll(request) => request.level,
            Self::Configure(_) | Self::Destroy(_) => Some(Level::Bucket),
            Self::Get(_) | Self::GetAll(_) | Self::Keys(_) | Self::Changes(_) | Self::Info | Self::Flush => {
                None
            }
        }
    }
}

impl OpResult {
    /// Decodes the reply to an operation. Returns `None` for operations that are not judged.
    ///
    /// # Errors
    /// If the bytes are no such reply.
    pub fn from_wire(name: Name, payload: &[u8]) -> Result<Option<Self>, DecodeError> {
        Ok(Some(match name {
            Name::Set => Self::Set(decode(payload)?),
            Name::Delete => Self::Delete(decode(payload)?),
            Name::DeleteAll => Self::DeleteAll(decode(payload)?),
            Name::Configure => Self::Configure(decode(payload)?),
            Name::Destroy => Self::Destroy(decode(payload)?),
            Name::Get => Self::Get(decode(payload)?),
            Name::GetAll => Self::GetAll(decode(payload)?),
            Name::Keys => Self::Keys(decode(payload)?),
            Name::Changes => Self::Changes(decode(payload)?),
            Name::Info => Self::Info(Box::new(decode(payload)?)),
            Name::Flush => Self::Flush(decode(payload)?),
            Name::UploadBegin
            | Name::UploadChunk
            | Name::UploadFinish
            | Name::UploadCommit
            | Name::UploadCancel
            | Name::GetChunk => return Ok(None),
        }))
    }

    /// The position that the reply names: for a read, the position of the state; for a set, the position of the last
    /// message.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        match self {
            Self::Set(reply) => {
                let written = reply.results.iter().filter_map(|outcome| match outcome {
                    dormouse_protocol::data::SetOutcome::Ok(ok) => {
                        Some(Position { term: ok.term, rev: ok.rev })
                    }
                    dormouse_protocol::data::SetOutcome::Error(_) => None,
                });
                written.max()
            }
            Self::Delete(reply) => Some(reply.position),
            Self::DeleteAll(reply) => Some(reply.position),
            Self::Configure(reply) => Some(reply.position),
            Self::Destroy(reply) => Some(reply.position),
            Self::Get(reply) => Some(reply.position),
            Self::GetAll(reply) => Some(reply.position),
            Self::Keys(reply) => Some(reply.position),
            Self::Changes(reply) => Some(reply.position),
            Self::Info(reply) => Some(reply.position),
            Self::Flush(reply) => Some(reply.position),
        }
    }
}
