//! Chunked reads of values, and upload requests to an open subject.

use std::sync::Arc;

use bytes::Bytes;
use dormouse_format::checksum::Crc64;
use dormouse_format::keys::{BlobName, SubjectKeys};
use dormouse_format::record::BlobRef;
use dormouse_protocol::data::GetRequest;
use dormouse_protocol::limits::ENVELOPE_BYTES;
use dormouse_protocol::transfer::{GetChunkReply, GetChunkRequest};
use dormouse_protocol::{ErrorReply, MessageId, ValueDigest};
use dormouse_subject_state::database::Database;
use dormouse_subject_state::plan::UploadQuota;

use super::Respond;
use super::serve::OpenSubject;
use super::values::send_retry;
use crate::api::{SubjectReply, SubjectRequest, Submission};
use crate::spool::{Finish, Spool};
use crate::subject_table::shutting_down;
use crate::values;

/// Maximum size of one chunk, in bytes.
const MAX_CHUNK_BYTES: u64 = 8 * 1_024 * 1_024;

/// Where a value is stored.
enum ValueLocation {
    /// In the file.
    Inline(Bytes),
    Object(BlobRef),
}

impl OpenSubject<'_> {
    /// Replies to a chunk request or an upload request; returns any other request. `missing` is the blob that
    /// an earlier attempt did not find.
    pub(super) fn transfer(
        &mut self,
        submission: Submission,
        missing: Option<BlobName>,
    ) -> Option<Submission> {
        let answer = match &submission.request {
            SubjectRequest::UploadBegin(request) => UploadQuota::of(self.database(), request.place.as_ref())
                .and_then(|room| {
                    let tenant = submission.tenant;
                    let most = self.shared.tenants.max_uploads(tenant);
                    self.shared.spool.begin(self.subject, request, room, tenant, most)
                }),
            SubjectRequest::UploadFinish(request) => {
                let place = self.shared.spool.place(self.subject, request.upload);
                let term = self.database().state().term;
                UploadQuota::of(self.database(), place.as_ref()).and_then(|room| {
                    let finish = Finish { subject: self.subject, term, request: *request, quota: room };
                    Spool::finish(self.shared, &finish)
                })
            }
            SubjectRequest::GetChunk(request) => {
                let request = *request;
                self.chunk(request, submission, missing);
                return None;
            }
            _ => return Some(submission),
        };
        (submission.respond)(answer.map(SubjectReply::Upload));
        None
    }

    fn chunk(&mut self, request: GetChunkRequest, submission: Submission, missing: Option<BlobName>) {
        let most = MAX_CHUNK_BYTES.min(submission.max_reply_bytes.saturating_sub(ENVELOPE_BYTES) as u64);
        match locate_value(self.database(), request) {
            Err(error) => (submission.respond)(Err(error)),
            Ok(ValueLocation::Inline(value)) => {
                let digest = ValueDigest::new(Crc64::of(&value).to_u64());
                let reply = chunk_range(request, value.len() as u64, most).map(|(start, end)| {
                    // Both are within a value in memory.
                    let bytes = value.slice(start as usize..end as usize);
                    SubjectReply::Chunk(GetChunkReply { size: value.len() as u64, digest, bytes })
                });
                (submission.respond)(reply);
            }
            Ok(ValueLocation::Object(blob)) if missing == Some(blob.name) => {
                let key = SubjectKeys::new(self.subject).blob(&blob.name);
                tracing::error!(subject = %self.subject, %key, "blob missing in bucket");
                (submission.respond)(Err(values::missing(&key)));
            }
            Ok(ValueLocation::Object(blob)) => match chunk_range(request, blob.size_bytes, most) {
                Err(error) => (submission.respond)(Err(error)),
                Ok((start, end)) => self.fetch_chunk(submission, blob, start, end),
            },
        }
    }

    fn fetch_chunk(&mut self, submission: Submission, blob: BlobRef, start: u64, end: u64) {
        let digest = ValueDigest::new(blob.crc64.to_u64());
        let reply = move |bytes| SubjectReply::Chunk(GetChunkReply { size: blob.size_bytes, digest, bytes });
        if start == end {
            return (submission.respond)(Ok(reply(Bytes::new())));
        }
        let permit = match self.shared.downloads.admit(end - start) {
            Ok(permit) => permit,
            Err(error) => return (submission.respond)(Err(error)),
        };
        let key = SubjectKeys::new(self.subject).blob(&blob.name);
        let shared = Arc::clone(self.shared);
        let again = self.fetches.sender();
        self.shared.tasks.spawn("fetch a value chunk", async move {
            let _permit = permit;
            let found = tokio::select! {
                biased;
                () = shared.stopping() => return (submission.respond)(Err(shutting_down())),
                found = shared.downloads.fetch_range(shared.bucket.as_ref(), &key, start..end) => found,
            };
            match found {
                Ok(Some(bytes)) => (submission.respond)(Ok(reply(bytes))),
                Ok(None) => send_retry(&again, submission, blob.name).await,
                Err(error) => refuse(submission.respond, &error),
            }
        });
    }
}

fn refuse(respond: Respond, error: &dormouse_bucket::BucketError) {
    if let dormouse_bucket::BucketError::Corrupt { .. } = error {
        tracing::error!(%error, "blob damaged in bucket");
    }
    respond(Err(ErrorReply::from(error)));
}

/// Locates the value of the message at this seq, if it is still the message that this rev wrote.
fn locate_value(database: &Database, request: GetChunkRequest) -> Result<ValueLocation, ErrorReply> {
    let reply = database.get(&GetRequest::seq(request.seq), usize::MAX)?;
    let message = reply.messages.into_iter().next();
    let message = match message {
        Some(message) if message.rev == request.rev => message,
        other => {
            let actual = other.map(|message| MessageId { term: message.term, seq: message.seq });
            let what = format!("the message at {} was replaced or removed meanwhile", request.seq);
            return Err(ErrorReply { message: what, ..ErrorReply::wrong_last(actual) });
        }
    };
    if message.value_omitted {
        let blob = database.blob_at(message.seq)?;
        return blob
            .map(ValueLocation::Object)
            .ok_or_else(|| ErrorReply::internal("a value is neither in the file nor in an object"));
    }
    message
        .value
        .map(ValueLocation::Inline)
        .ok_or_else(|| ErrorReply::bad_request("the value is null: it has no bytes"))
}

/// The range of bytes to read: start, and exclusive end.
fn chunk_range(request: GetChunkRequest, size: u64, most: u64) -> Result<(u64, u64), ErrorReply> {
    let GetChunkRequest { offset, length, .. } = request;
    let left = size.checked_sub(offset).ok_or_else(|| {
        ErrorReply::bad_request(format!("the value has {size} bytes, fewer than the offset {offset}"))
    })?;
    Ok((offset, offset + length.min(left).min(most)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_protocol::{ProtocolVersion, Rev, Seq};

    /// A chunk ends at the value's end, the requested length or the reply limit; an offset beyond the value is
    /// rejected.
    #[test]
    fn value_chunk_ends_at_value_request_or_reply_limit() {
        let of = |offset, length, size, most| {
            let request = GetChunkRequest {
                v: ProtocolVersion::CURRENT,
                seq: Seq::new(1),
                rev: Rev::new(1),
                offset,
                length,
            };
            chunk_range(request, size, most).ok()
        };
        assert_eq!(of(0, 10, 100, 50), Some((0, 10)));
        assert_eq!(of(95, 10, 100, 50), Some((95, 100)));
        assert_eq!(of(0, u64::MAX, 100, 50), Some((0, 50)));
        assert_eq!(of(100, 10, 100, 50), Some((100, 100)));
        assert_eq!(of(0, 0, 100, 50), Some((0, 0)));
        assert_eq!(of(0, 10, 0, 50), Some((0, 0)));
        assert_eq!(of(101, 10, 100, 50), None);
        assert_eq!(of(u64::MAX, u64::MAX, 100, 50), None);
    }
}
