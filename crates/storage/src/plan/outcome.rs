//! What a request is answered, the first time and when it comes again.

use dormouse_protocol::ErrorReply;
use dormouse_protocol::data::SetOutcome;

use super::size;
use crate::api::{Reply, Request};
use crate::entry::Outcome;

impl Outcome {
    /// What the caller is told.
    ///
    /// # Errors
    /// The refusal, if it was one.
    pub fn answer(self) -> Result<Reply, ErrorReply> {
        match self {
            Self::Set(reply) => Ok(Reply::Set(reply)),
            Self::Delete(reply) => Ok(Reply::Delete(reply)),
            Self::DeleteAll(reply) => Ok(Reply::DeleteAll(reply)),
            Self::Configure(reply) => Ok(Reply::Configure(reply)),
            Self::Destroy(reply) => Ok(Reply::Destroy(reply)),
            Self::Refused(error) => Err(error),
        }
    }

    /// The same for a caller who asks again: whatever was carried out is called a duplicate.
    #[must_use]
    pub fn repeated(mut self) -> Self {
        match &mut self {
            Self::Set(reply) => {
                for outcome in &mut reply.results {
                    if let SetOutcome::Ok(result) = outcome {
                        result.duplicate = true;
                    }
                }
            }
            Self::Delete(reply) => reply.duplicate = true,
            Self::DeleteAll(reply) => reply.duplicate = true,
            Self::Configure(reply) => reply.duplicate = true,
            Self::Destroy(reply) => reply.duplicate = true,
            Self::Refused(_) => {}
        }
        self
    }

    /// Whether it can be the answer to this request: a session that uses an id twice must not be told that what it
    /// asks for now was done.
    pub(super) fn answers(&self, request: &Request) -> bool {
        match (self, request) {
            (Self::Set(reply), Request::Set(request)) => reply.results.len() == request.sets.len(),
            (Self::Delete(_), Request::Delete(_))
            | (Self::DeleteAll(_), Request::DeleteAll(_))
            | (Self::Configure(_), Request::Configure(_))
            | (Self::Destroy(_), Request::Destroy(_))
            | (Self::Refused(_), _) => true,
            _ => false,
        }
    }

    /// The most bytes that it takes in an answer.
    pub(super) fn size_bytes(&self) -> usize {
        let of_result = |outcome: &SetOutcome| match outcome {
            SetOutcome::Ok(_) => size::SET_RESULT_BYTES,
            SetOutcome::Error(error) => size::of_error(error),
        };
        match self {
            Self::Set(reply) => reply.results.iter().map(of_result).sum(),
            Self::Delete(reply) => size::of_seqs(reply.seqs.len()),
            Self::DeleteAll(_) | Self::Configure(_) | Self::Destroy(_) => 0,
            Self::Refused(error) => size::of_error(error),
        }
    }
}
