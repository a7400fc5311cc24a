//! The reply to a request, and to its repeats.

use dormouse_format::entry::WriteOutcome;
use dormouse_protocol::ErrorReply;
use dormouse_protocol::data::SetOutcome;

use super::size;
use crate::request::{SubjectReply, SubjectRequest};

/// The reply to the caller.
///
/// # Errors
/// The rejection, if it was one.
pub fn answer(outcome: WriteOutcome) -> Result<SubjectReply, ErrorReply> {
    match outcome {
        WriteOutcome::Set(reply) => Ok(SubjectReply::Set(reply)),
        WriteOutcome::Delete(reply) => Ok(SubjectReply::Delete(reply)),
        WriteOutcome::DeleteAll(reply) => Ok(SubjectReply::DeleteAll(reply)),
        WriteOutcome::Configure(reply) => Ok(SubjectReply::Configure(reply)),
        WriteOutcome::Destroy(reply) => Ok(SubjectReply::Destroy(reply)),
        WriteOutcome::Refused(error) => Err(error),
    }
}

/// The outcome for a repeat: executed changes are marked as duplicates.
pub(super) fn repeated(mut outcome: WriteOutcome) -> WriteOutcome {
    match &mut outcome {
        WriteOutcome::Set(reply) => {
            for outcome in &mut reply.results {
                if let SetOutcome::Ok(result) = outcome {
                    result.duplicate = true;
                }
            }
        }
        WriteOutcome::Delete(reply) => reply.duplicate = true,
        WriteOutcome::DeleteAll(reply) => reply.duplicate = true,
        WriteOutcome::Configure(reply) => reply.duplicate = true,
        WriteOutcome::Destroy(reply) => reply.duplicate = true,
        WriteOutcome::Refused(_) => {}
    }
    outcome
}

/// Whether an outcome can be the reply to this request: a session that uses an id twice must not get a reply that
/// confirms its second request.
pub(super) fn answers(outcome: &WriteOutcome, request: &SubjectRequest) -> bool {
    match (outcome, request) {
        (WriteOutcome::Set(reply), SubjectRequest::Set(request)) => reply.results.len() == request.sets.len(),
        (WriteOutcome::Delete(_), SubjectRequest::Delete(_))
        | (WriteOutcome::DeleteAll(_), SubjectRequest::DeleteAll(_))
        | (WriteOutcome::Configure(_), SubjectRequest::Configure(_))
        | (WriteOutcome::Destroy(_), SubjectRequest::Destroy(_))
        | (WriteOutcome::Refused(_), _) => true,
        _ => false,
    }
}

/// The most bytes that an outcome takes in a reply.
pub(super) fn size_bytes(outcome: &WriteOutcome) -> usize {
    let of_result = |outcome: &SetOutcome| match outcome {
        SetOutcome::Ok(_) => size::SET_RESULT_BYTES,
        SetOutcome::Error(error) => size::of_error(error),
    };
    match outcome {
        WriteOutcome::Set(reply) => reply.results.iter().map(of_result).sum(),
        WriteOutcome::Delete(reply) => size::of_seqs(reply.seqs.len()),
        WriteOutcome::DeleteAll(_) | WriteOutcome::Configure(_) | WriteOutcome::Destroy(_) => 0,
        WriteOutcome::Refused(error) => size::of_error(error),
    }
}
