//! One open subject: a task that owns the file, takes requests from a bounded queue and replies to them.
//!
//! The task opens, serves and closes the subject, and repeats this as long as requests wait. Only the task
//! accesses the subject's file, and a subject has only one task (see [`crate::subject_table`]).
//!
//! While the subject is open, a write is *planned* against the applied state plus all pending changes, and
//! *appended* to the log. It is announced and acknowledged once it has reached its level, and *applied* to
//! the file before the next read. Reads use only the file.

mod backlog;
mod base;
mod chunks;
mod close;
mod deadline;
mod delta;
mod events;
mod file;
mod flush;
pub(crate) mod garbage;
mod open;
pub(crate) mod page_room;
mod pages;
mod pipeline;
mod planning;
mod publish;
mod reads;
pub(crate) mod restore;
mod retention;
mod serve;
mod timers;
mod values;

pub(crate) use open::{move_stranded_to_lost, newest_manifest, reclaim_subject};

use std::collections::VecDeque;
use std::sync::Arc;

use dormouse_protocol::{ErrorReply, Subject};
use tokio::sync::{Notify, mpsc};

use crate::api::{HandoverOutcome, SubjectReply, SubjectRequest, Submission, TenantId};
use crate::engine::EngineShared;
use crate::subject_table::{FileGuard, SubjectTaskArgs, shutting_down};
use serve::{OpenSubject, SubjectServeEnd};

/// Maximum number of requests taken from the queue at once.
const BURST: usize = 256;

/// The reply to a caller.
type SubjectResult = Result<SubjectReply, ErrorReply>;

/// Sends one reply.
type Respond = Box<dyn FnOnce(SubjectResult) + Send>;

/// The task of one subject.
pub(crate) struct SubjectTask {
    shared: Arc<EngineShared>,
    subject: Subject,
    close: Arc<Notify>,
    // The queue is dropped before the guard: if the queue is closed, the guard still exists while the file is
    // in use.
    inbox: SubjectInbox,
    file_guard: Arc<FileGuard>,
    follows_panic: bool,
}

/// The subject's requests: those in the queue, and those taken from it that are not handled yet.
struct SubjectInbox {
    queue: mpsc::Receiver<Submission>,
    waiting: VecDeque<Submission>,
    taken: Vec<Submission>,
}

impl SubjectInbox {
    /// Waits for requests and takes as many as fit a burst. Called only if no taken request waits, so their number is
    /// bounded. Cancelling the call takes none.
    async fn receive(&mut self) {
        self.queue.recv_many(&mut self.taken, BURST).await;
        self.waiting.extend(self.taken.drain(..));
    }

    /// Whether no request waits to be handled.
    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.queue.is_empty()
    }

    /// Moves the requests in the queue to those that wait.
    fn take_queued(&mut self) {
        for _ in 0..self.queue.len() {
            self.waiting.extend(self.queue.try_recv());
        }
    }

    /// If no caller waits any more, refuses all requests: the subject is not open, so no copy of them is planned.
    fn refuse_if_all_expired(&mut self, shared: &EngineShared) {
        self.take_queued();
        let now = shared.env.boot();
        if self.waiting.iter().all(|submission| submission.is_expired(now)) {
            self.waiting.drain(..).for_each(|submission| shared.refuse_expired(submission));
        }
    }

    /// Whether the first waiting request is a handover.
    fn starts_with_handover(&mut self) -> bool {
        self.take_queued();
        self.waiting.front().is_some_and(|submission| submission.request == SubjectRequest::HandOver)
    }

    /// Replies to all waiting handover requests.
    fn answer_handovers(&mut self, answer: &Result<HandoverOutcome, ErrorReply>) {
        let waiting = std::mem::take(&mut self.waiting);
        for submission in waiting {
            if submission.request == SubjectRequest::HandOver {
                (submission.respond)(answer.clone().map(SubjectReply::HandOver));
            } else {
                self.waiting.push_back(submission);
            }
        }
    }

    /// Sends the same reply to all requests that wait now. Requests that arrive meanwhile are not included:
    /// they may be a consequence of these replies and are handled separately.
    fn refuse(&mut self, reply: &ErrorReply) {
        self.take_queued();
        for submission in self.waiting.drain(..) {
            (submission.respond)(Err(reply.clone()));
        }
    }
}

impl SubjectTask {
    pub(crate) fn new(shared: Arc<EngineShared>, subject: Subject, args: SubjectTaskArgs) -> Self {
        let inbox = SubjectInbox { queue: args.queue, waiting: VecDeque::new(), taken: Vec::new() };
        let SubjectTaskArgs { close, file_guard, follows_panic, .. } = args;
        Self { shared, subject, close, inbox, file_guard, follows_panic }
    }

    /// Opens the subject in the turn of `tenant`. `None`: no caller waits any more, or `only_own` and
    /// this process does not own it.
    async fn open(
        &mut self,
        shared: &Arc<EngineShared>,
        only_own: bool,
        tenant: TenantId,
    ) -> Result<Option<open::Opened>, ErrorReply> {
        let turn = open::wait_for_turn(shared, tenant).await?;
        self.inbox.refuse_if_all_expired(shared);
        if self.inbox.waiting.is_empty() {
            return Ok(None);
        }
        open::open(shared, &self.subject, only_own, tenant, turn).await
    }

    /// Serves the subject until no request waits.
    pub(crate) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        if self.follows_panic {
            // A claim may begin only when no append of the subject's previous task is pending.
            shared.log.wait_resolved(&self.subject).await;
        }
        loop {
            if shared.is_stopping() {
                self.inbox.refuse(&shutting_down());
            } else {
                let only_own = self.inbox.starts_with_handover();
                let tenant = self.inbox.waiting.front().map_or(TenantId::SHARED, |first| first.tenant);
                match Box::pin(self.open(&shared, only_own, tenant)).await {
                    Ok(None) if self.inbox.waiting.is_empty() => {}
                    Ok(None) => {
                        // Reported before any other work, so that the report cannot apply to a later opening
                        // of the subject.
                        shared.authority.released(&self.subject).await;
                        self.inbox.answer_handovers(&Ok(HandoverOutcome::NotHeld));
                    }
                    Ok(Some(opened)) => {
                        shared.log.opened(&self.subject);
                        let serving =
                            OpenSubject::new(&shared, &self.subject, &self.file_guard, tenant, opened);
                        match Box::pin(serving.run(&mut self.inbox, &self.close)).await {
                            SubjectServeEnd::Closed => {}
                            SubjectServeEnd::Refused(reply) => self.inbox.refuse(&reply),
                        }
                    }
                    // Only a handover has asked for the open so far. A request that arrives now starts a new
                    // attempt.
                    Err(reply) if only_own => self.inbox.answer_handovers(&Err(reply)),
                    Err(reply) => self.inbox.refuse(&reply),
                }
            }
            if self.inbox.waiting.is_empty()
                && shared.subject_table.remove_if_queue_empty(&self.subject, &self.inbox.queue)
            {
                return;
            }
        }
    }
}
