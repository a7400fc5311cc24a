//! What the engine is asked and what it asks of its surroundings.

use async_trait::async_trait;
use dormouse_protocol::data::{
    ChangesReply, ChangesRequest, ConfigureReply, ConfigureRequest, DeleteAllReply, DeleteAllRequest,
    DeleteReply, DeleteRequest, DestroyReply, DestroyRequest, FlushReply, GetAllReply, GetAllRequest,
    GetReply, GetRequest, InfoReply, KeysReply, KeysRequest, SetReply, SetRequest,
};
use dormouse_protocol::transfer::{
    GetChunkReply, GetChunkRequest, UploadBeginRequest, UploadCancelRequest, UploadChunkRequest,
    UploadFinishRequest, UploadReply,
};
use dormouse_protocol::{ErrorReply, Event, LogId, Subject};

/// An operation on one subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Write messages.
    Set(SetRequest),
    /// Read messages by seq or key.
    Get(GetRequest),
    /// Read a page of messages.
    GetAll(GetAllRequest),
    /// Read a page of keys.
    Keys(KeysRequest),
    /// Remove messages.
    Delete(DeleteRequest),
    /// Remove all messages up to a seq.
    DeleteAll(DeleteAllRequest),
    /// Read what has changed since a position.
    Changes(ChangesRequest),
    /// Describe the subject.
    Info,
    /// Replace the configuration.
    Configure(ConfigureRequest),
    /// Put everything so far in the bucket.
    Flush,
    /// Put everything so far in the bucket, in objects of the subject's own, so that it needs nothing of the log. Asked
    /// by the engine itself when the subject keeps old parts of the log alive.
    Compact,
    /// Remove the subject for good.
    Destroy(DestroyRequest),
    /// Hand the subject back so that another server can have it, where this process owns it; where it does not, do
    /// nothing. Never claims. Asked by [`Engine::hand_over`](crate::Engine::hand_over).
    HandOver,
    /// Begin to bring a value of any size, or ask how far it is.
    UploadBegin(UploadBeginRequest),
    /// Bring a piece of it. Looks at no subject.
    UploadChunk(UploadChunkRequest),
    /// Put it in the bucket, so that a set can refer to it.
    UploadFinish(UploadFinishRequest),
    /// Forget it. Looks at no subject.
    UploadCancel(UploadCancelRequest),
    /// Read a piece of a value.
    GetChunk(GetChunkRequest),
}

/// The answer to a [`Request`] of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To [`Request::Set`].
    Set(SetReply),
    /// To [`Request::Get`].
    Get(GetReply),
    /// To [`Request::GetAll`].
    GetAll(GetAllReply),
    /// To [`Request::Keys`].
    Keys(KeysReply),
    /// To [`Request::Delete`].
    Delete(DeleteReply),
    /// To [`Request::DeleteAll`].
    DeleteAll(DeleteAllReply),
    /// To [`Request::Changes`].
    Changes(ChangesReply),
    /// To [`Request::Info`].
    Info(Box<InfoReply>),
    /// To [`Request::Configure`].
    Configure(ConfigureReply),
    /// To [`Request::Flush`] and [`Request::Compact`].
    Flush(FlushReply),
    /// To [`Request::Destroy`].
    Destroy(DestroyReply),
    /// To [`Request::HandOver`].
    HandOver(HandedOver),
    /// To [`Request::UploadBegin`], [`Request::UploadChunk`], [`Request::UploadFinish`] and [`Request::UploadCancel`].
    Upload(UploadReply),
    /// To [`Request::GetChunk`].
    Chunk(GetChunkReply),
}

/// What came of handing a subject over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandedOver {
    /// It was this process's and is nobody's now: everything of it is in the bucket, and whoever comes next need not
    /// ask.
    Released,
    /// This process does not own it.
    NotHeld,
}

/// A request with all that belongs to it. Its answer is given exactly once, by calling `respond`.
pub struct Submission {
    /// What to do.
    pub request: Request,
    /// The largest encoded reply that the caller can send on, in bytes. Pages and multi-key answers keep below it.
    pub max_reply_bytes: usize,
    /// Takes the answer. Called from the subject's task, so it must not block: encode, enqueue, return.
    pub respond: Box<dyn FnOnce(Result<Reply, ErrorReply>) + Send>,
}

impl std::fmt::Debug for Submission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Submission").field("request", &self.request).finish_non_exhaustive()
    }
}

/// Counts the leases of this process without a gap: it changes when a lease may have been interrupted. A lease of a new
/// generation is not trusted before a barrier was passed under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseGeneration(pub u64);

/// Who may serve what: the engine's view of the coordinator.
#[async_trait]
pub trait Authority: Send + Sync + 'static {
    /// The generation of the lease that this process holds at this moment, or `None` while it holds none.
    fn lease(&self) -> Option<LeaseGeneration>;

    /// May this process claim `subject`, which by its newest manifest belongs to `owner` (`None`: nobody, or it was
    /// released)? A yes with an owner means that the owner's lease is over: its log may be sealed. It is asked again once
    /// that log *is* sealed, for the owner may have come back in between. An authority that is wrong here costs no write
    /// of the level `bucket`.
    ///
    /// # Errors
    /// `not_owner` with the server to ask instead; `unavailable` when the coordinator cannot be asked.
    async fn may_claim(&self, subject: &Subject, owner: Option<&LogId>) -> Result<(), ErrorReply>;

    /// This process has handed `subject` back and serves it no more, or never had it. Returns once whoever places subjects
    /// has heard of it, or when it is no use to go on saying it; the subject is not served here meanwhile. Must not fail.
    async fn released(&self, subject: &Subject);
}

/// Takes the events of all subjects on their way to the bus.
pub trait EventSink: Send + Sync + 'static {
    /// Takes one event. Called from the subject's task, in order of rev, after the changes are durable at their
    /// level, and before their answers are handed over. From here on events and answers go their own ways: a client
    /// may well have the answer before a subscriber has the event. It must not block.
    fn publish(&self, subject: &Subject, event: Event);
}
