//! Requests to the engine, and the interfaces that the engine needs.

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
pub enum EngineRequest {
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
    /// Read the changes since a position.
    Changes(ChangesRequest),
    /// Describe the subject.
    Info,
    /// Replace the configuration.
    Configure(ConfigureRequest),
    /// Wait until all writes so far are in the bucket.
    Flush,
    /// Publish a base that holds all writes so far, so that the subject needs no slot of the log. The engine itself
    /// sends it if the subject keeps old slots from being trimmed.
    Compact,
    /// Remove the subject for good.
    Destroy(DestroyRequest),
    /// Release the subject so that another server can claim it. If this process does not own it, do nothing. Never
    /// claims. Sent by [`Engine::hand_over`](crate::Engine::hand_over).
    HandOver,
    /// Begin an upload of a value of any size, or ask for the upload's progress.
    UploadBegin(UploadBeginRequest),
    /// Send a chunk of an upload. Uses no subject.
    UploadChunk(UploadChunkRequest),
    /// Write the uploaded value to the bucket, so that a set can refer to it.
    UploadFinish(UploadFinishRequest),
    /// Cancel an upload. Uses no subject.
    UploadCancel(UploadCancelRequest),
    /// Read a chunk of a value.
    GetChunk(GetChunkRequest),
}

/// The reply to an [`EngineRequest`] of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineReply {
    /// To [`EngineRequest::Set`].
    Set(SetReply),
    /// To [`EngineRequest::Get`].
    Get(GetReply),
    /// To [`EngineRequest::GetAll`].
    GetAll(GetAllReply),
    /// To [`EngineRequest::Keys`].
    Keys(KeysReply),
    /// To [`EngineRequest::Delete`].
    Delete(DeleteReply),
    /// To [`EngineRequest::DeleteAll`].
    DeleteAll(DeleteAllReply),
    /// To [`EngineRequest::Changes`].
    Changes(ChangesReply),
    /// To [`EngineRequest::Info`].
    Info(Box<InfoReply>),
    /// To [`EngineRequest::Configure`].
    Configure(ConfigureReply),
    /// To [`EngineRequest::Flush`] and [`EngineRequest::Compact`].
    Flush(FlushReply),
    /// To [`EngineRequest::Destroy`].
    Destroy(DestroyReply),
    /// To [`EngineRequest::HandOver`].
    HandOver(HandoverOutcome),
    /// To [`EngineRequest::UploadBegin`], [`EngineRequest::UploadChunk`], [`EngineRequest::UploadFinish`] and
    /// [`EngineRequest::UploadCancel`].
    Upload(UploadReply),
    /// To [`EngineRequest::GetChunk`].
    Chunk(GetChunkReply),
}

/// Result of a handover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandoverOutcome {
    /// This process owned the subject and has released it. All of it is in the bucket, and the next claim does not
    /// depend on this process or its log.
    Released,
    /// This process does not own it.
    NotHeld,
}

/// A request with its reply limit and callback. The engine calls `respond` exactly once.
pub struct Submission {
    /// The operation.
    pub request: EngineRequest,
    /// The largest encoded reply that the caller can forward, in bytes. Pages and multi-key replies stay below it.
    pub max_reply_bytes: usize,
    /// Takes the reply. The subject's task calls it, so it must not block: encode, enqueue, return.
    pub respond: Box<dyn FnOnce(Result<EngineReply, ErrorReply>) + Send>,
}

impl std::fmt::Debug for Submission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Submission").field("request", &self.request).finish_non_exhaustive()
    }
}

/// Generation of this process's lease. It changes if a lease may have been interrupted. A lease of a new generation is
/// not confirmed until a read barrier has passed under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseGeneration(pub u64);

/// Permission to serve subjects: the engine's view of the coordinator.
#[async_trait]
pub trait Authority: Send + Sync + 'static {
    /// The generation of the lease that this process holds now; `None` if it holds none.
    fn lease(&self) -> Option<LeaseGeneration>;

    /// Whether this process may claim `subject`. `owner` is the owner that its newest manifest names; `None`: there is
    /// no owner, or it has released the subject. `Ok` with an owner means that the owner's lease has expired, so its
    /// log may be sealed. The engine asks again after the seal, because the owner may have renewed its lease meanwhile.
    /// A wrong authority cannot lose a write of the level `bucket`.
    ///
    /// # Errors
    /// `not_owner` with the server to ask instead; `unavailable` if the coordinator cannot be asked.
    async fn may_claim(&self, subject: &Subject, owner: Option<&LogId>) -> Result<(), ErrorReply>;

    /// Reports that this process has released `subject` and no longer serves it, or never owned it. Returns once the
    /// coordinator has the report, or when a further attempt is useless. Until then the subject is not served here.
    /// Must not fail.
    async fn released(&self, subject: &Subject);
}

/// Takes the events of all subjects, to publish them on the bus.
pub trait EventSink: Send + Sync + 'static {
    /// Takes one event. The subject's task calls it in order of rev, after the changes are durable at their level and
    /// before their replies. Events and replies travel independently: a client can have the reply before a subscriber
    /// has the event. It must not block.
    fn publish(&self, subject: &Subject, event: Event);
}
