//! Requests to a subject, and their replies.

use dormouse_protocol::data::{
    ChangesReply, ChangesRequest, ConfigureReply, ConfigureRequest, DeleteAllReply, DeleteAllRequest,
    DeleteReply, DeleteRequest, DestroyReply, DestroyRequest, FlushReply, GetAllReply, GetAllRequest,
    GetReply, GetRequest, InfoReply, KeysReply, KeysRequest, SetReply, SetRequest,
};
use dormouse_protocol::transfer::{
    GetChunkReply, GetChunkRequest, UploadBeginRequest, UploadCancelRequest, UploadChunkRequest,
    UploadFinishRequest, UploadReply,
};

/// An operation on one subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubjectRequest {
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
    /// claims. Sent by the engine.
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

/// A request that changes the subject. The dedup window stores it under its id.
#[derive(Debug, Clone, Copy)]
pub enum ChangeRequest<'a> {
    /// [`SubjectRequest::Set`].
    Set(&'a SetRequest),
    /// [`SubjectRequest::Delete`].
    Delete(&'a DeleteRequest),
    /// [`SubjectRequest::DeleteAll`].
    DeleteAll(&'a DeleteAllRequest),
    /// [`SubjectRequest::Configure`].
    Configure(&'a ConfigureRequest),
    /// [`SubjectRequest::Destroy`].
    Destroy(&'a DestroyRequest),
}

impl SubjectRequest {
    /// The request, if it changes the subject.
    #[must_use]
    pub const fn as_change(&self) -> Option<ChangeRequest<'_>> {
        match self {
            Self::Set(request) => Some(ChangeRequest::Set(request)),
            Self::Delete(request) => Some(ChangeRequest::Delete(request)),
            Self::DeleteAll(request) => Some(ChangeRequest::DeleteAll(request)),
            Self::Configure(request) => Some(ChangeRequest::Configure(request)),
            Self::Destroy(request) => Some(ChangeRequest::Destroy(request)),
            Self::Get(_)
            | Self::GetAll(_)
            | Self::Keys(_)
            | Self::Changes(_)
            | Self::Info
            | Self::Flush
            | Self::Compact
            | Self::HandOver
            | Self::UploadBegin(_)
            | Self::UploadChunk(_)
            | Self::UploadFinish(_)
            | Self::UploadCancel(_)
            | Self::GetChunk(_) => None,
        }
    }
}

/// The reply to a [`SubjectRequest`] of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubjectReply {
    /// To [`SubjectRequest::Set`].
    Set(SetReply),
    /// To [`SubjectRequest::Get`].
    Get(GetReply),
    /// To [`SubjectRequest::GetAll`].
    GetAll(GetAllReply),
    /// To [`SubjectRequest::Keys`].
    Keys(KeysReply),
    /// To [`SubjectRequest::Delete`].
    Delete(DeleteReply),
    /// To [`SubjectRequest::DeleteAll`].
    DeleteAll(DeleteAllReply),
    /// To [`SubjectRequest::Changes`].
    Changes(ChangesReply),
    /// To [`SubjectRequest::Info`].
    Info(Box<InfoReply>),
    /// To [`SubjectRequest::Configure`].
    Configure(ConfigureReply),
    /// To [`SubjectRequest::Flush`] and [`SubjectRequest::Compact`].
    Flush(FlushReply),
    /// To [`SubjectRequest::Destroy`].
    Destroy(DestroyReply),
    /// To [`SubjectRequest::HandOver`].
    HandOver(HandoverOutcome),
    /// To [`SubjectRequest::UploadBegin`], [`SubjectRequest::UploadChunk`], [`SubjectRequest::UploadFinish`] and
    /// [`SubjectRequest::UploadCancel`].
    Upload(UploadReply),
    /// To [`SubjectRequest::GetChunk`].
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
