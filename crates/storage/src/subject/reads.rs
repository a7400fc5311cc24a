//! Reads: answered from the applied state, at once or after a barrier.

use std::collections::VecDeque;
use std::sync::Arc;

use dormouse_protocol::data::{InfoDetails, InfoReply};
use dormouse_protocol::{ErrorReply, Level, LogId, Rev, Timestamp};
use futures::future::BoxFuture;

use super::values::Again;
use super::{Answer, Respond};
use crate::api::{Reply, Request, Submission};
use crate::database::Database;
use crate::engine::Shared;

/// Most reads of one subject that wait for a barrier.
const MAX_WAITING: usize = 4_096;

/// When a caller that was turned away may come again.
const RETRY_AFTER_MS: u64 = 100;

/// What a read is told that is not in the file.
#[derive(Debug, Clone)]
pub(super) struct Surroundings<'a> {
    pub(super) log: &'a LogId,
    pub(super) level: Level,
    pub(super) bucket_rev: Rev,
    pub(super) base_rev: Rev,
    pub(super) tail_bytes: u64,
    pub(super) open_since: Timestamp,
}

/// Whether `request` only reads the file.
pub(super) const fn is_read(request: &Request) -> bool {
    matches!(
        request,
        Request::Get(_)
            | Request::GetAll(_)
            | Request::Keys(_)
            | Request::Changes(_)
            | Request::Info
            | Request::GetChunk(_)
            // They change nothing of the subject, and need to know that it is served here.
            | Request::UploadBegin(_)
            | Request::UploadFinish(_)
    )
}

/// Answers a request that changes nothing; `None` for one that does.
pub(super) fn answer(
    database: &Database,
    request: &Request,
    max_reply_bytes: usize,
    around: &Surroundings<'_>,
) -> Option<Result<Reply, ErrorReply>> {
    match request {
        Request::Get(request) => Some(database.get(request, max_reply_bytes).map(Reply::Get)),
        Request::GetAll(request) => Some(database.get_all(request, max_reply_bytes).map(Reply::GetAll)),
        Request::Keys(request) => Some(database.keys(request, max_reply_bytes).map(Reply::Keys)),
        Request::Changes(request) => Some(database.changes(request, max_reply_bytes).map(Reply::Changes)),
        Request::Info => Some(info(database, around).map(|info| Reply::Info(Box::new(info)))),
        Request::Set(_)
        | Request::Delete(_)
        | Request::DeleteAll(_)
        | Request::Configure(_)
        | Request::Flush
        | Request::Compact
        | Request::Destroy(_)
        | Request::HandOver
        | Request::UploadBegin(_)
        | Request::UploadChunk(_)
        | Request::UploadFinish(_)
        | Request::UploadCancel(_)
        | Request::GetChunk(_) => None,
    }
}

fn info(database: &Database, around: &Surroundings<'_>) -> Result<InfoReply, ErrorReply> {
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
        level: state.config.level.unwrap_or(around.level),
        server: around.log.server().clone(),
        log: around.log.clone(),
        bucket_rev: around.bucket_rev.min(state.rev),
        details: InfoDetails {
            base_rev: around.base_rev,
            tail_bytes: around.tail_bytes,
            open_since: around.open_since,
            ..database.details()?
        },
    })
}

/// What waits for a barrier.
pub(super) enum Waiting {
    /// A read, which is answered from the state after the barrier.
    Read(Submission),
    /// The same, when it has been looked for before.
    Again(Again),
    /// An answer that tells of the state and is ready.
    Ready(Respond, Answer),
}

impl Waiting {
    pub(super) fn into_respond(self) -> Respond {
        match self {
            Self::Read(submission) => submission.respond,
            Self::Again(again) => again.submission.respond,
            Self::Ready(respond, _) => respond,
        }
    }
}

/// Reads that wait for a barrier, in the order in which they came.
pub(super) struct WaitingReads {
    waiting: VecDeque<Waiting>,
    /// The barrier under way, and for how many of the reads, from the front, it counts: those that had come before it
    /// was begun.
    barrier: Option<(usize, BoxFuture<'static, Result<(), ErrorReply>>)>,
}

impl WaitingReads {
    pub(super) const fn new() -> Self {
        Self { waiting: VecDeque::new(), barrier: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Lines up a read. At most as many wait as would fit the queue, so that their memory is bounded.
    pub(super) fn push(&mut self, shared: &Arc<Shared>, read: Waiting) {
        if self.waiting.len() >= MAX_WAITING {
            let reply = ErrorReply::overloaded("too many reads wait for the bucket", RETRY_AFTER_MS);
            return read.into_respond()(Err(reply));
        }
        self.waiting.push_back(read);
        if self.barrier.is_none() {
            self.begin(shared);
        }
    }

    fn begin(&mut self, shared: &Arc<Shared>) {
        let shared = Arc::clone(shared);
        self.barrier = Some((self.waiting.len(), Box::pin(async move { shared.trust.barrier().await })));
    }

    /// The end of the barrier under way; never, while there is none. Cancelling the call loses nothing.
    pub(super) async fn passed(&mut self) -> Result<(), ErrorReply> {
        match &mut self.barrier {
            Some((_, barrier)) => barrier.await,
            None => std::future::pending().await,
        }
    }

    /// Takes the reads for which the barrier counted that has just ended, and begins the next one for those that have
    /// come since.
    pub(super) fn take(&mut self, shared: &Arc<Shared>) -> Vec<Waiting> {
        let Some((covered, _)) = self.barrier.take() else { return Vec::new() };
        let taken = self.waiting.drain(..covered.min(self.waiting.len())).collect();
        if !self.waiting.is_empty() {
            self.begin(shared);
        }
        taken
    }

    /// Everybody who waits: the subject is about to be closed.
    pub(super) fn drain(&mut self) -> Vec<Respond> {
        self.barrier = None;
        self.waiting.drain(..).map(Waiting::into_respond).collect()
    }
}
