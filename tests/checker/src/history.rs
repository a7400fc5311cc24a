//! What was recorded: who asked what when, what was answered when, and what befell the servers meanwhile.
//!
//! Times are durations since any one moment, on one clock for the whole history.

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
    ErrorReply, Event, Happened, Level, Message, Position, RequestId, Rev, Seq, ServerName, Subject, Term,
    decode,
};

/// Everything that is known of one run.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// What was asked of each subject.
    pub subjects: BTreeMap<Subject, SubjectHistory>,
    /// What befell the servers.
    pub harms: Vec<Harm>,
    /// By what it is judged.
    pub rules: Rules,
}

/// Everything that is known of one subject.
#[derive(Debug, Clone, Default)]
pub struct SubjectHistory {
    /// The calls, in any order. Final reads are calls like any other.
    pub calls: Vec<Call>,
    /// The events that were heard, in any order, each as often as it was heard.
    pub events: Vec<Heard>,
    /// The feeds that were read.
    pub feeds: Vec<Feed>,
    /// The sets that somebody asked for without waiting, each time somebody did.
    pub bursts: Vec<Burst>,
    /// What is known of terms beside what the answers and events say.
    pub terms: BTreeMap<Term, TermFacts>,
    /// What was found in `lost/` in the end. `None`: nobody looked.
    pub set_aside: Option<BTreeSet<Position>>,
}

/// What is known of one term.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TermFacts {
    /// The last rev that the term inherited.
    pub base: Option<Rev>,
    /// Who served under it.
    pub server: Option<ServerName>,
}

/// One call: one request to one server, and what came of it.
///
/// Several calls with the same request id are one operation that was asked for several times.
#[derive(Debug, Clone)]
pub struct Call {
    /// Who asked. Only for people who read the history.
    pub client: u32,
    /// Who was asked, where known.
    pub server: Option<ServerName>,
    /// What was asked.
    pub op: Op,
    /// When.
    pub invoked_at: Duration,
    /// What came back; `None`: nothing ever did.
    pub returned: Option<Returned>,
}

/// The end of a call.
#[derive(Debug, Clone)]
pub struct Returned {
    /// When it came.
    pub at: Duration,
    /// What it says.
    pub outcome: Outcome,
}

/// What was asked. Every value that is set in a subject is different from every other one set there, or it stands in the
/// same request again: by its value it is known who wrote a message.
#[derive(Debug, Clone)]
pub enum Op {
    /// Messages shall be written.
    Set(SetRequest),
    /// Messages shall be removed.
    Delete(DeleteRequest),
    /// All messages shall be removed, or the oldest ones.
    DeleteAll(DeleteAllRequest),
    /// The configuration shall be replaced.
    Configure(ConfigureRequest),
    /// The subject shall be destroyed.
    Destroy(DestroyRequest),
    /// Messages by seq or key.
    Get(GetRequest),
    /// A page of messages.
    GetAll(GetAllRequest),
    /// A page of keys.
    Keys(KeysRequest),
    /// A page of changes.
    Changes(ChangesRequest),
    /// What there is to know but the messages.
    Info,
    /// Everything shall be in the bucket.
    Flush,
}

/// What came of a call.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It was done, and so answered.
    Answered(Answer),
    /// It failed. Whether it happened all the same is what [`ErrorReply::happened`] says.
    Refused(ErrorReply),
    /// Nobody knows: silence, a connection that broke.
    Unknown,
}

/// An answer, one for each [`Op`].
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each is the reply to the operation of its name")]
pub enum Answer {
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

/// An event, and when it was heard.
#[derive(Debug, Clone)]
pub struct Heard {
    /// When.
    pub at: Duration,
    /// What.
    pub event: Event,
}

/// A feed of a client, and what it told its reader.
#[derive(Debug, Clone)]
pub struct Feed {
    /// Whose. Only for people who read the history.
    pub client: u32,
    /// When it was begun.
    pub at: Duration,
    /// Where it begins.
    pub begins: FeedBegins,
    /// Which messages it is about.
    pub keys: FeedKeys,
    /// What it told, in order.
    pub told: Vec<FeedTold>,
}

/// Where a feed begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedBegins {
    /// With what was there.
    Beginning,
    /// At the first position that it named.
    Now,
    /// After this position.
    After(Position),
}

/// Which messages a feed is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeedKeys {
    /// All.
    All,
    /// The one under this key.
    One(String),
    /// Those whose keys start with this.
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

/// What a feed told at once.
#[derive(Debug, Clone)]
pub struct FeedTold {
    /// When.
    pub at: Duration,
    /// What.
    pub what: FeedTells,
    /// Where its reader is then, if it says so.
    pub position: Option<Position>,
}

/// The kinds of things that feeds tell; see the client's `Update`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the client's update of its name")]
pub enum FeedTells {
    Set { message: Message, replaces: Option<Seq> },
    Removed { seq: Seq, key: Option<String> },
    Cleared { end_seq: Seq },
    Configured,
    CaughtUp(Position),
    Reset,
}

/// Sets that one caller asked for one after another, without waiting for what became of the ones before.
#[derive(Debug, Clone)]
pub struct Burst {
    /// Whose. Only for people who read the history.
    pub client: u32,
    /// When it was known of all what became of them.
    pub at: Duration,
    /// Where each was written, in the order of the calls; `None` of one that failed, or of which nobody knows.
    pub written: Vec<Option<Position>>,
}

/// What befell a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Harm {
    /// Whom.
    pub server: ServerName,
    /// What.
    pub kind: HarmKind,
    /// Since when it may have done nothing to save what it had accepted: since then it stood still, was cut off or dead,
    /// or had not yet come to terms with what its predecessor left.
    pub since: Duration,
    /// When it was over: what is acknowledged later is not concerned.
    pub until: Duration,
}

/// The kinds of harm. What each may cost at which level is the table of `docs/guarantees.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HarmKind {
    /// Its process was killed; its disk is as it was.
    Killed,
    /// Its power was lost: what was not synced is gone.
    PowerLost,
    /// Its process was killed, and its disk is empty.
    DiskWiped,
    /// Its process was killed, and its disk is as it once was; [`Harm::since`] is when the copy was made.
    DiskRestored,
    /// It stood still.
    Paused,
    /// It did not reach the bucket.
    CutFromBucket,
    /// It did not reach the coordinator or the clients, or they did not reach it.
    CutFromBus,
    /// Its log was sealed by somebody, whatever the reason. To be recorded where nothing else explains it: a coordinator
    /// that took a slow server for dead.
    TakenOver,
}

/// By what a history is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The servers' own level, for subjects that have none.
    pub default_level: Level,
    /// How long an acknowledged change stays out of the bucket at most while its server runs and reaches it.
    pub unshipped: Duration,
    /// How long a change of the level `interval` is not synced at most.
    pub unsynced: Duration,
    /// Whether what the guarantees assume of clocks and the coordinator held.
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

/// Whether clocks kept their rates and one coordinator at a time was at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assumptions {
    /// They held: everything that is promised is expected.
    Hold,
    /// They did not: reads may be stale and weaker levels may be lost without a reason; what is promised of the level
    /// `bucket` is expected all the same.
    Broken,
}

impl SubjectHistory {
    /// Records that a call was made; returns its place in [`SubjectHistory::calls`].
    pub fn invoked(&mut self, client: u32, server: Option<ServerName>, op: Op, at: Duration) -> usize {
        self.calls.push(Call { client, server, op, invoked_at: at, returned: None });
        self.calls.len() - 1
    }

    /// Records the end of the call at `place`.
    ///
    /// # Panics
    /// When there is no such call.
    pub fn returned(&mut self, place: usize, at: Duration, outcome: Outcome) {
        self.calls[place].returned = Some(Returned { at, outcome });
    }
}

impl Call {
    /// The answer and when it came, if the call was answered.
    #[must_use]
    pub fn answer(&self) -> Option<(&Answer, Duration)> {
        match &self.returned {
            Some(Returned { at, outcome: Outcome::Answered(answer) }) => Some((answer, *at)),
            _ => None,
        }
    }

    /// Whether nobody knows what came of it.
    pub(crate) fn is_open(&self) -> bool {
        self.answer().is_none() && self.refusal().is_none()
    }

    /// The refusal and when it came, if it says that nothing has happened.
    #[must_use]
    pub fn refusal(&self) -> Option<(&ErrorReply, Duration)> {
        match &self.returned {
            Some(Returned { at, outcome: Outcome::Refused(error) }) if error.happened() == Happened::No => {
                Some((error, *at))
            }
            _ => None,
        }
    }
}

impl Op {
    /// Reads the request of an operation from its bytes; `None` for one that is not judged: values that travel piece by
    /// piece.
    ///
    /// # Errors
    /// When they are no such request.
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

    /// The id that a changing request carries.
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

    /// Whether it can change a subject.
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

    /// The level that the request asks for, where it asks for one.
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

impl Answer {
    /// Reads the answer to an operation from its bytes; `None` for one that is not judged.
    ///
    /// # Errors
    /// When they are no such answer.
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

    /// The position that the answer names: of a read the state it was read from, of a set the last message written.
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
