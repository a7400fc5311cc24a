//! Requests at the spool: it executes its own requests, and tracks the sets that commit uploads.

use std::sync::Arc;

use dormouse_protocol::Subject;
use dormouse_protocol::data::SetOutcome;
use dormouse_protocol::transfer::UploadReply;

use super::machine::UploadGeneration;
use super::{ChunkReplySender, UploadKey, key};
use crate::api::{SubjectReply, SubjectRequest, Submission};
use crate::engine::EngineShared;
use crate::values;

/// Executes a request for the spool itself, and returns a request for a subject to the caller. If a set that commits an
/// upload succeeds, the upload ends. If the set is refused, the upload stays for another attempt.
pub(crate) fn take(
    shared: &Arc<EngineShared>,
    subject: &Subject,
    submission: Submission,
) -> Option<Submission> {
    let Submission { tenant, deadline, received, request, max_reply_bytes, respond } = submission;
    match request {
        SubjectRequest::UploadChunk(request) => {
            shared.spool.chunk(&shared.tasks, subject, request, respond);
            None
        }
        SubjectRequest::UploadCancel(request) => {
            shared.spool.cancel(&shared.tasks, subject, request);
            respond(Ok(SubjectReply::Upload(UploadReply::default())));
            None
        }
        request => {
            let sets: Vec<(usize, UploadKey)> = values::uploaded_before(&request)
                .map(|(index, value)| (index, key(subject, value.upload)))
                .collect();
            let respond = if sets.is_empty() { respond } else { end_uploads_on_reply(shared, sets, respond) };
            Some(Submission { tenant, deadline, received, request, max_reply_bytes, respond })
        }
    }
}

/// Uploads that a request would commit: none expires while the request is pending, for any end of the request.
struct CommitGuard {
    shared: Arc<EngineShared>,
    uploads: Vec<(UploadKey, UploadGeneration)>,
}

impl CommitGuard {
    fn begin(shared: &Arc<EngineShared>, sets: &[(usize, UploadKey)]) -> Self {
        let mut inner = shared.spool.lock();
        let begin = |(_, key): &(usize, UploadKey)| Some((key.clone(), inner.uploads.commit_begins(key)?));
        Self { shared: Arc::clone(shared), uploads: sets.iter().filter_map(begin).collect() }
    }
}

impl Drop for CommitGuard {
    fn drop(&mut self) {
        let spool = &self.shared.spool;
        let mut inner = spool.lock();
        for (key, generation) in &self.uploads {
            inner.uploads.commit_ended(key, *generation, spool.env.boot());
        }
        drop(inner);
        spool.begun.notify_one();
    }
}

/// Wraps `respond`: if the reply reports that a set succeeded, the upload of its value ends.
fn end_uploads_on_reply(
    shared: &Arc<EngineShared>,
    sets: Vec<(usize, UploadKey)>,
    respond: ChunkReplySender,
) -> ChunkReplySender {
    let guard = CommitGuard::begin(shared, &sets);
    Box::new(move |answer| {
        let CommitGuard { shared, .. } = &guard;
        if let Ok(SubjectReply::Set(reply)) = &answer {
            let is_done = |index: usize| matches!(reply.results.get(index), Some(SetOutcome::Ok(_)));
            let done: Vec<UploadKey> =
                sets.into_iter().filter_map(|(index, key)| is_done(index).then_some(key)).collect();
            shared.spool.end(&shared.tasks, &done);
        }
        drop(guard);
        respond(answer);
    })
}
