//! Reads: answered from the applied state, at once or after a barrier.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use dormouse_protocol::data::{InfoDetails, InfoReply};
use dormouse_protocol::{ErrorReply, Level, LogId, OverloadCause, Rev, Timestamp};
use dormouse_subject_state::database::Database;
use futures::future::BoxFuture;

use super::values::RetriedRead;
use super::{Respond, SubjectResult};
use crate::api::{SubjectReply, SubjectRequest, Submission};
use crate::engine::EngineShared;

/// Maximum number of a subject's reads that wait for a barrier.
const MAX_WAITING: usize = 4_096;

/// Data for a reply that is not in the file.
#[derive(Debug, Clone)]
pub(super) struct ReadContext<'a> {
    pub(super) log: &'a LogId,
    pub(super) level: Level,
    pub(super) bucket_rev: Rev,
    pub(super) base_rev: Rev,
    pub(super) tail_bytes: u64,
    pub(super) open_since: Timestamp,
}

/// Whether `request` only reads the file.
pub(super) const fn is_read(request: &SubjectRequest) -> bool {
    matches!(
        request,
        SubjectRequest::Get(_)
            | SubjectRequest::GetAll(_)
            | SubjectRequest::Keys(_)
            | SubjectRequest::Changes(_)
            | SubjectRequest::Info
            | SubjectRequest::GetChunk(_)
            // They do not change the subject, but require that it is served here.
            | SubjectRequest::UploadBegin(_)
            | SubjectRequest::UploadFinish(_)
    )
}

/// Replies to a read of the file; `None` for a page, and for any other request.
pub(super) fn answer(
    database: &Database,
    request: &SubjectRequest,
    max_reply_bytes: usize,
    context: &ReadContext<'_>,
) -> Option<Result<SubjectReply, ErrorReply>> {
    match request {
        SubjectRequest::Get(request) => Some(database.get(request, max_reply_bytes).map(SubjectReply::Get)),
        SubjectRequest::Info => Some(info(database, context).map(|info| SubjectReply::Info(Box::new(info)))),
        SubjectRequest::GetAll(_)
        | SubjectRequest::Keys(_)
        | SubjectRequest::Changes(_)
        | SubjectRequest::Set(_)
        | SubjectRequest::Delete(_)
        | SubjectRequest::DeleteAll(_)
        | SubjectRequest::Configure(_)
        | SubjectRequest::Flush
        | SubjectRequest::Compact
        | SubjectRequest::Destroy(_)
        | SubjectRequest::HandOver
        | SubjectRequest::UploadBegin(_)
        | SubjectRequest::UploadChunk(_)
        | SubjectRequest::UploadFinish(_)
        | SubjectRequest::UploadCancel(_)
        | SubjectRequest::GetChunk(_) => None,
    }
}

/// The bytes of the values in a reply.
pub(super) fn value_bytes(answer: &Result<SubjectReply, ErrorReply>) -> usize {
    match answer {
        Ok(SubjectReply::Get(reply)) => {
            reply.messages.iter().filter_map(|message| message.value.as_ref()).map(Bytes::len).sum()
        }
        _ => 0,
    }
}

fn info(database: &Database, context: &ReadContext<'_>) -> Result<InfoReply, ErrorReply> {
    let range = database.seq_range()?;
    let state = database.state();
    Ok(InfoReply {
        position: state.position(),
        term_base: state.term_base,
        first_seq: range.map(|(first, _)| first),
        last_seq: range.map(|(_, last)| last),
        next_seq: state.next_seq,
        count: state.count,
        bytes: state.bytes,
        config: state.config.clone(),
        level: state.config.level.unwrap_or(context.level),
        server: context.log.server().clone(),
        log: context.log.clone(),
        bucket_rev: context.bucket_rev.min(state.rev),
        details: InfoDetails {
            base_rev: context.base_rev,
            tail_bytes: context.tail_bytes,
            open_since: context.open_since,
            ..database.details()?
        },
    })
}

/// A read that waits for a barrier.
pub(super) enum PendingRead {
    /// A read, answered from the state after the barrier.
    Read(Submission),
    /// A read that is retried because its blob was missing.
    Retried(RetriedRead),
    /// A complete reply that depends on the state.
    Ready(Respond, SubjectResult),
}

impl PendingRead {
    pub(super) fn into_respond(self) -> Respond {
        match self {
            Self::Read(submission) => submission.respond,
            Self::Retried(again) => again.submission.respond,
            Self::Ready(respond, _) => respond,
        }
    }
}

/// Reads that wait for a barrier, in the order in which they came.
pub(super) struct ReadQueue {
    waiting: VecDeque<PendingRead>,
    /// The running barrier, and how many reads, from the front, it covers: those that arrived before it
    /// started.
    barrier: Option<(usize, BoxFuture<'static, Result<(), ErrorReply>>)>,
}

impl ReadQueue {
    pub(super) const fn new() -> Self {
        Self { waiting: VecDeque::new(), barrier: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Queues a read. The queue is bounded, so its memory is bounded.
    pub(super) fn push(&mut self, shared: &Arc<EngineShared>, read: PendingRead) {
        if self.waiting.len() >= MAX_WAITING {
            let reply = ErrorReply::from(OverloadCause::PendingReads);
            return read.into_respond()(Err(reply));
        }
        self.waiting.push_back(read);
        if self.barrier.is_none() {
            self.begin(shared);
        }
    }

    fn begin(&mut self, shared: &Arc<EngineShared>) {
        let shared = Arc::clone(shared);
        self.barrier = Some((self.waiting.len(), Box::pin(async move { shared.read_lease.barrier().await })));
    }

    /// The result of the running barrier; pends while there is none. Cancelling the call loses nothing.
    pub(super) async fn passed(&mut self) -> Result<(), ErrorReply> {
        match &mut self.barrier {
            Some((_, barrier)) => barrier.await,
            None => std::future::pending().await,
        }
    }

    /// Takes the reads that the ended barrier covers, and starts the next barrier for later reads.
    pub(super) fn take(&mut self, shared: &Arc<EngineShared>) -> Vec<PendingRead> {
        let Some((covered, _)) = self.barrier.take() else { return Vec::new() };
        let taken = self.waiting.drain(..covered.min(self.waiting.len())).collect();
        if !self.waiting.is_empty() {
            self.begin(shared);
        }
        taken
    }

    /// Takes all waiting callers: the subject is about to be closed.
    pub(super) fn drain(&mut self) -> Vec<Respond> {
        self.barrier = None;
        self.waiting.drain(..).map(PendingRead::into_respond).collect()
    }
}
