//! The reply to a request, and to its repeats.

use dormouse_protocol::ErrorReply;
use dormouse_protocol::data::SetOutcome;

use super::size;
use crate::api::{EngineReply, EngineRequest};
use crate::entry::WriteOutcome;

impl WriteOutcome {
    /// The reply to the caller.
    ///
    /// # Errors
    /// The rejection, if it was one.
    pub fn answer(self) -> Result<EngineReply, ErrorReply> {
        match self {
            Self::Set(reply) => Ok(EngineReply::Set(reply)),
            Self::Delete(reply) => Ok(EngineReply::Delete(reply)),
            Self::DeleteAll(reply) => Ok(EngineReply::DeleteAll(reply)),
            Self::Configure(reply) => Ok(EngineReply::Configure(reply)),
            Self::Destroy(reply) => Ok(EngineReply::Destroy(reply)),
            Self::Refused(error) => Err(error),
        }
    }

    /// The same for a repeat: executed changes are marked as duplicates.
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

    /// Whether it can be the reply to this request: a session that uses an id twice must not get a reply that
    /// confirms its second request.
    pub(super) fn answers(&self, request: &EngineRequest) -> bool {
        match (self, request) {
            (Self::Set(reply), EngineRequest::Set(request)) => reply.results.len() == request.sets.len(),
            (Self::Delete(_), EngineRequest::Delete(_))
            | (Self::DeleteAll(_), EngineRequest::DeleteAll(_))
            | (Self::Configure(_), EngineRequest::Configure(_))
            | (Self::Destroy(_), EngineRequest::Destroy(_))
            | (Self::Refused(_), _) => true,
            _ => false,
        }
    }

    /// The most bytes that it takes in a reply.
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
