//! One open subject: a task that owns the file, takes requests from a bounded queue, and answers them.
//!
//! The task's life: open → serve → close, and again as long as requests wait. Nobody but the task touches the
//! subject's file, and the task is the only one of its subject (see [`crate::directory`]).
//!
//! While it serves, a write is *planned* against the applied state with everything pending on top, *appended* to the
//! log, announced and acknowledged once the log says that it is as durable as its level asks, and *applied* to the file
//! before anybody reads that. Reads see the file only.

mod backlog;
mod base;
mod chunks;
mod events;
mod flush;
pub(crate) mod garbage;
mod leave;
mod open;
mod pipeline;
mod publish;
mod reads;
pub(crate) mod restore;
mod schedule;
mod serve;
mod upkeep;
mod values;

pub(crate) use open::{drain_subject, lose_surplus, newest_manifest};

use std::collections::VecDeque;
use std::sync::Arc;

use dormouse_protocol::{ErrorReply, Subject};
use tokio::sync::{Notify, mpsc};

use crate::api::{HandedOver, Reply, Request, Submission};
use crate::directory::{Hold, Seat, shutting_down};
use crate::engine::Shared;
use serve::{End, Serving};

/// The most requests that are taken from the queue at once.
const BURST: usize = 256;

/// What a caller is told.
type Answer = Result<Reply, ErrorReply>;

/// Takes one answer.
type Respond = Box<dyn FnOnce(Answer) + Send>;

/// The task of one subject.
pub(crate) struct SubjectTask {
    shared: Arc<Shared>,
    subject: Subject,
    close: Arc<Notify>,
    // In this order: whoever finds the queue closed must find the hold too, as long as the file is in use.
    inbox: Inbox,
    hold: Arc<Hold>,
    follows_panic: bool,
}

/// The subject's requests: those in the queue, and those taken from it that still wait.
struct Inbox {
    queue: mpsc::Receiver<Submission>,
    waiting: VecDeque<Submission>,
    taken: Vec<Submission>,
}

impl Inbox {
    /// Waits for requests and takes as many as fit a burst. Cancelling the call takes none.
    async fn receive(&mut self) {
        self.queue.recv_many(&mut self.taken, BURST).await;
        self.waiting.extend(self.taken.drain(..));
    }

    /// Whether the first that waits asks for no more than to hand the subject over.
    fn begins_with_hand_over(&mut self) -> bool {
        for _ in 0..self.queue.len() {
            self.waiting.extend(self.queue.try_recv());
        }
        self.waiting.front().is_some_and(|submission| submission.request == Request::HandOver)
    }

    /// Answers those who want the subject handed over.
    fn answer_hand_overs(&mut self, answer: &Result<HandedOver, ErrorReply>) {
        let waiting = std::mem::take(&mut self.waiting);
        for submission in waiting {
            if submission.request == Request::HandOver {
                (submission.respond)(answer.clone().map(Reply::HandOver));
            } else {
                self.waiting.push_back(submission);
            }
        }
    }

    /// Gives everything that waits now the same answer. What comes while the answers are given is not of that: it
    /// may come because of them, and deserves a look of its own.
    fn refuse(&mut self, reply: &ErrorReply) {
        for _ in 0..self.queue.len() {
            self.waiting.extend(self.queue.try_recv());
        }
        for submission in self.waiting.drain(..) {
            (submission.respond)(Err(reply.clone()));
        }
    }
}

impl SubjectTask {
    pub(crate) fn new(shared: Arc<Shared>, subject: Subject, seat: Seat) -> Self {
        let inbox = Inbox { queue: seat.queue, waiting: VecDeque::new(), taken: Vec::new() };
        let Seat { close, hold, follows_panic, .. } = seat;
        Self { shared, subject, close, inbox, hold, follows_panic }
    }

    /// Serves the subject until nobody asks for it any more.
    pub(crate) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        if self.follows_panic {
            // A claim may only begin when nothing of the subject's earlier life is under way.
            shared.log.settled(&self.subject).await;
        }
        loop {
            if shared.is_stopping() {
                self.inbox.refuse(&shutting_down());
            } else {
                let only_own = self.inbox.begins_with_hand_over();
                match Box::pin(open::open(&shared, &self.subject, only_own)).await {
                    Ok(None) => {
                        // Said before anything else is looked at, so that it is not said of a later life of the subject.
                        shared.authority.released(&self.subject).await;
                        self.inbox.answer_hand_overs(&Ok(HandedOver::NotHeld));
                    }
                    Ok(Some(opened)) => {
                        shared.log.opened(&self.subject);
                        let serving = Serving::new(&shared, &self.subject, &self.hold, opened);
                        match Box::pin(serving.run(&mut self.inbox, &self.close)).await {
                            End::Closed => {}
                            End::Refused(reply) => self.inbox.refuse(&reply),
                        }
                    }
                    // Nobody else has asked for it to be opened so far, and who comes now may have better luck.
                    Err(reply) if only_own => self.inbox.answer_hand_overs(&Err(reply)),
                    Err(reply) => self.inbox.refuse(&reply),
                }
            }
            if self.inbox.waiting.is_empty() && shared.directory.leave(&self.subject, &self.inbox.queue) {
                return;
            }
        }
    }
}
