//! What the spool makes of requests: its own it carries out, and of those that commit uploads it sees how they end.

use std::sync::Arc;

use dormouse_protocol::Subject;
use dormouse_protocol::data::SetOutcome;
use dormouse_protocol::transfer::UploadReply;

use super::machine::Life;
use super::{Respond, UploadKey, key};
use crate::api::{Reply, Request, Submission};
use crate::engine::Shared;
use crate::values;

/// Takes a request that is for the spool alone. One that is for a subject is given back; the uploads that it commits go with
/// the sets that are carried out, and stay, for another attempt, with those that are refused.
pub(crate) fn take(shared: &Arc<Shared>, subject: &Subject, submission: Submission) -> Option<Submission> {
    let Submission { request, max_reply_bytes, respond } = submission;
    match request {
        Request::UploadChunk(request) => {
            shared.spool.chunk(&shared.tasks, subject, request, respond);
            None
        }
        Request::UploadCancel(request) => {
            shared.spool.cancel(&shared.tasks, subject, request);
            respond(Ok(Reply::Upload(UploadReply::default())));
            None
        }
        request => {
            let sets: Vec<(usize, UploadKey)> = values::uploaded_before(&request)
                .map(|(place, value)| (place, key(subject, value.upload)))
                .collect();
            let respond = if sets.is_empty() { respond } else { ending(shared, sets, respond) };
            Some(Submission { request, max_reply_bytes, respond })
        }
    }
}

/// Uploads that a request would commit: none is abandoned while the request waits, however it ends.
struct Committing {
    shared: Arc<Shared>,
    uploads: Vec<(UploadKey, Life)>,
}

impl Committing {
    fn begin(shared: &Arc<Shared>, sets: &[(usize, UploadKey)]) -> Self {
        let mut inner = shared.spool.lock();
        let begin = |(_, key): &(usize, UploadKey)| Some((key.clone(), inner.uploads.commit_begins(key)?));
        Self { shared: Arc::clone(shared), uploads: sets.iter().filter_map(begin).collect() }
    }
}

impl Drop for Committing {
    fn drop(&mut self) {
        let spool = &self.shared.spool;
        let mut inner = spool.lock();
        for (key, life) in &self.uploads {
            inner.uploads.commit_ended(key, *life, spool.env.boot());
        }
        drop(inner);
        spool.begun.notify_one();
    }
}

/// An answer that says that a set was carried out ends the upload whose value it has.
fn ending(shared: &Arc<Shared>, sets: Vec<(usize, UploadKey)>, respond: Respond) -> Respond {
    let committing = Committing::begin(shared, &sets);
    Box::new(move |answer| {
        let Committing { shared, .. } = &committing;
        if let Ok(Reply::Set(reply)) = &answer {
            let is_done = |place: usize| matches!(reply.results.get(place), Some(SetOutcome::Ok(_)));
            let done: Vec<UploadKey> =
                sets.into_iter().filter_map(|(place, key)| is_done(place).then_some(key)).collect();
            shared.spool.end(&shared.tasks, &done);
        }
        drop(committing);
        respond(answer);
    })
}
