//! Values read piece by piece, and what their uploads ask of an open subject.

use std::sync::Arc;

use bytes::Bytes;
use dormouse_protocol::data::GetRequest;
use dormouse_protocol::limits::ENVELOPE_BYTES;
use dormouse_protocol::transfer::{GetChunkReply, GetChunkRequest};
use dormouse_protocol::{ErrorReply, MessageId, ValueDigest};

use super::Respond;
use super::serve::Serving;
use super::values::look_again;
use crate::api::{Reply, Request, Submission};
use crate::checksum::Crc64;
use crate::database::Database;
use crate::directory::shutting_down;
use crate::keys::{BlobName, SubjectKeys};
use crate::plan::{BlobRef, UploadRoom};
use crate::spool::{Finish, Spool};
use crate::values;

/// The most that is read at once, in bytes.
const MOST_BYTES: u64 = 8 * 1_024 * 1_024;

/// Where the value lies that a piece is wanted of.
enum Place {
    /// In the file.
    Here(Bytes),
    Elsewhere(BlobRef),
}

impl Serving<'_> {
    /// Answers a request for a piece of a value, or one about an upload; gives any other back. `missing` was looked for in
    /// vain before.
    pub(super) fn transfer(
        &mut self,
        submission: Submission,
        missing: Option<BlobName>,
    ) -> Option<Submission> {
        let answer = match &submission.request {
            Request::UploadBegin(request) => UploadRoom::of(self.database(), request.place.as_ref())
                .and_then(|room| self.shared.spool.begin(self.subject, request, room)),
            Request::UploadFinish(request) => {
                let place = self.shared.spool.place(self.subject, request.upload);
                let term = self.database().state().term;
                UploadRoom::of(self.database(), place.as_ref()).and_then(|room| {
                    let finish = Finish { subject: self.subject, term, request: *request, room };
                    Spool::finish(self.shared, &finish)
                })
            }
            Request::GetChunk(request) => {
                let request = *request;
                self.chunk(request, submission, missing);
                return None;
            }
            _ => return Some(submission),
        };
        (submission.respond)(answer.map(Reply::Upload));
        None
    }

    fn chunk(&mut self, request: GetChunkRequest, submission: Submission, missing: Option<BlobName>) {
        let most = MOST_BYTES.min(submission.max_reply_bytes.saturating_sub(ENVELOPE_BYTES) as u64);
        match place(self.database(), request) {
            Err(error) => (submission.respond)(Err(error)),
            Ok(Place::Here(value)) => {
                let digest = ValueDigest::new(Crc64::of(&value).to_u64());
                let piece = piece(request, value.len() as u64, most).map(|(start, end)| {
                    // Both lie within a value that is in memory.
                    let bytes = value.slice(start as usize..end as usize);
                    Reply::Chunk(GetChunkReply { size: value.len() as u64, digest, bytes })
                });
                (submission.respond)(piece);
            }
            Ok(Place::Elsewhere(blob)) if missing == Some(blob.name) => {
                let key = SubjectKeys::new(self.subject).blob(&blob.name);
                tracing::error!(subject = %self.subject, %key, "the value of a message is missing in the bucket");
                (submission.respond)(Err(values::missing(&key)));
            }
            Ok(Place::Elsewhere(blob)) => match piece(request, blob.size_bytes, most) {
                Err(error) => (submission.respond)(Err(error)),
                Ok((start, end)) => self.fetch_piece(submission, blob, start, end),
            },
        }
    }

    fn fetch_piece(&mut self, submission: Submission, blob: BlobRef, start: u64, end: u64) {
        let digest = ValueDigest::new(blob.crc64.to_u64());
        let reply = move |bytes| Reply::Chunk(GetChunkReply { size: blob.size_bytes, digest, bytes });
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
        self.shared.tasks.spawn("fetch a piece of a value", async move {
            let _permit = permit;
            let found = tokio::select! {
                biased;
                () = shared.stopping() => return (submission.respond)(Err(shutting_down())),
                found = shared.downloads.fetch_range(shared.bucket.as_ref(), &key, start..end) => found,
            };
            match found {
                Ok(Some(bytes)) => (submission.respond)(Ok(reply(bytes))),
                Ok(None) => look_again(&again, submission, blob.name).await,
                Err(error) => refuse(submission.respond, &error),
            }
        });
    }
}

fn refuse(respond: Respond, error: &crate::bucket::BucketError) {
    if let crate::bucket::BucketError::Corrupt { .. } = error {
        tracing::error!(%error, "the value of a message is damaged in the bucket");
    }
    respond(Err(ErrorReply::from(error)));
}

/// Where the value is that is meant: that of the message at this seq, if it is still the one that this rev wrote.
fn place(database: &Database, request: GetChunkRequest) -> Result<Place, ErrorReply> {
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
        return blob.map(Place::Elsewhere).ok_or_else(|| ErrorReply::internal("a value lies nowhere"));
    }
    message
        .value
        .map(Place::Here)
        .ok_or_else(|| ErrorReply::bad_request("the value is null: it has no bytes"))
}

/// The bytes that are read: first, and first behind.
fn piece(request: GetChunkRequest, size: u64, most: u64) -> Result<(u64, u64), ErrorReply> {
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

    #[test]
    fn a_piece_ends_with_the_value_with_what_was_asked_for_or_with_what_fits() {
        let of = |offset, length, size, most| {
            let request = GetChunkRequest {
                v: ProtocolVersion::CURRENT,
                seq: Seq::new(1),
                rev: Rev::new(1),
                offset,
                length,
            };
            piece(request, size, most).ok()
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
