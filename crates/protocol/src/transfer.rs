//! Requests and replies by which a value of any size travels, sent on `<prefix>.server.<name>.<op>.<subject>`.
//!
//! Up: `upload_begin`, then the bytes by `upload_chunk`, several under way at a time, then `upload_finish` until the value
//! is in the bucket, then `upload_commit`: a set whose item names the upload in place of a value. Down: `get_chunk`, several
//! under way at a time.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec::{ProtocolVersion, versioned};
use crate::ids::{Rev, Seq, UploadId, ValueDigest};

/// A value that was uploaded, in the place of one that travels with its set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UploadedValue {
    /// The upload.
    pub upload: UploadId,
    /// How many bytes the value has.
    pub size: u64,
    /// Its digest.
    pub digest: ValueDigest,
}

/// Which message a value on its way up will be in: the one under a key, the one at a seq, or, with neither, a new one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UploadPlace {
    /// Its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Its seq, where the set will name one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<Seq>,
}

/// Begins an upload, or asks how far it is. Either keeps it alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadBeginRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The upload: a ULID drawn by the client.
    pub upload: UploadId,
    /// How many bytes will come, where that is known: what cannot be taken is then refused at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The message that the value will be in, where that is known: what the subject's limits will not take there is then
    /// refused before it is in the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<UploadPlace>,
}

/// A piece of the value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadChunkRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The upload.
    pub upload: UploadId,
    /// How many bytes of the value stand before it.
    pub offset: u64,
    /// The bytes; at least one.
    pub bytes: Bytes,
}

/// Everything was sent: check it, and put it in the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadFinishRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The upload.
    pub upload: UploadId,
    /// How many bytes the value has.
    pub size: u64,
    /// Its digest.
    pub digest: ValueDigest,
}

/// Forgets an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadCancelRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The upload.
    pub upload: UploadId,
}

/// How far an upload is: the answer to all that is asked about one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UploadReply {
    /// How many bytes the server has, from the first on without a hole.
    pub received: u64,
    /// The whole value is in the bucket and can be committed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stored: bool,
}

/// Reads a piece of the value of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetChunkRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The message.
    pub seq: Seq,
    /// The rev that wrote it: a message that has been replaced meanwhile is another value.
    pub rev: Rev,
    /// How many bytes of the value to pass over.
    #[serde(default)]
    pub offset: u64,
    /// How many to read at most; 0 asks for size and digest only.
    #[serde(default)]
    pub length: u64,
}

/// A piece of a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetChunkReply {
    /// The size of the whole value in bytes.
    pub size: u64,
    /// The digest of the whole value.
    pub digest: ValueDigest,
    /// The bytes from the offset on: as many as were asked for, were left, and fit.
    pub bytes: Bytes,
}

versioned!(UploadBeginRequest, UploadChunkRequest, UploadFinishRequest, UploadCancelRequest, GetChunkRequest,);
