//! The life of a write: planned, appended to the log, and applied once it is as durable as its level asks.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::BytesMut;
use dormouse_protocol::{ErrorCode, ErrorReply, Level, RequestId, Rev, Subject, Timestamp};
use tokio::sync::Notify;

use super::{Respond, events};
use crate::api::{Request, Submission};
use crate::database::{Database, DatabaseError};
use crate::engine::Shared;
use crate::entry::{Entry, Outcome};
use crate::format::frame;
use crate::log::{Append, Stage, Ticket};
use crate::plan::{self, Context, Pending, Planned};

/// Most changes of one subject that wait for their level. Beyond it writes are turned away; reads go on.
const MAX_IN_FLIGHT: usize = 4_096;

/// When a caller that was turned away may come again.
const RETRY_AFTER_MS: u64 = 50;

/// At about this many bytes an append ends and the next begins.
const APPEND_BYTES: usize = 1_024 * 1_024;

/// At about this many bytes a transaction ends: it keeps its thread to itself.
const APPLY_BYTES: usize = 4 * 1_024 * 1_024;

/// Who is to be told how a change ended, and whether it was a repeat of the request that made it.
type Waiting = (Respond, bool);

/// A change that is planned and not yet applied.
struct InFlight {
    ticket: Arc<Ticket>,
    level: Level,
    entry: Entry,
    bytes: usize,
    outcome: Outcome,
    waiting: Vec<Waiting>,
    /// The largest event that the bus can carry, in bytes.
    max_bytes: usize,
}

/// Planned changes on their way into one append.
#[derive(Default)]
struct Group {
    frames: BytesMut,
    changes: Vec<Draft>,
    level: Option<Level>,
}

struct Draft {
    level: Level,
    entry: Entry,
    bytes: usize,
    outcome: Outcome,
    waiting: Vec<Waiting>,
    max_bytes: usize,
}

/// Why nothing more can be planned at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blocked {
    /// The next request is not for the pipeline.
    Other,
    /// The next request has to see everything applied that came before it.
    UntilApplied,
}

/// What became of applied changes.
pub(super) struct Applied {
    /// How many.
    pub(super) changes: usize,
    /// Bytes written, about.
    pub(super) bytes: usize,
}

/// The changes of one subject that are under way.
pub(super) struct Pipeline {
    in_flight: VecDeque<InFlight>,
    pending: Pending,
    /// Appends that are not in the bucket yet, each with the rev it leads to.
    unshipped: VecDeque<(Arc<Ticket>, Rev)>,
    /// The last rev known to be in the bucket.
    bucket_rev: Rev,
    /// A change has failed: everything planned on top of it fails too, and nothing is planned before that is over.
    failing: bool,
    /// The file could not be written. Nothing is planned before it can.
    pub(super) stalled: Option<ErrorReply>,
    /// Told when a ticket of this subject moves.
    waker: Arc<Notify>,
}

impl Pipeline {
    pub(super) fn new(bucket_rev: Rev) -> Self {
        Self {
            in_flight: VecDeque::new(),
            pending: Pending::default(),
            unshipped: VecDeque::new(),
            bucket_rev,
            failing: false,
            stalled: None,
            waker: Arc::new(Notify::new()),
        }
    }

    /// Waits until a ticket has moved. Cancelling the call loses nothing.
    pub(super) async fn moved(&self) {
        self.waker.notified().await;
    }

    /// Whether every change is applied.
    pub(super) fn is_applied(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Whether every change is applied and in the bucket, or has failed.
    pub(super) fn is_settled(&self) -> bool {
        self.in_flight.is_empty() && self.unshipped.is_empty()
    }

    /// The last rev known to be in the bucket.
    pub(super) const fn bucket_rev(&self) -> Rev {
        self.bucket_rev
    }

    /// The rev to which everything planned leads; `None` when nothing is under way.
    pub(super) fn planned_rev(&self) -> Option<Rev> {
        self.in_flight.back().map(|change| change.entry.last_rev())
    }

    /// The last append that is not known to be in the bucket.
    pub(super) fn last_unshipped(&self) -> Option<Arc<Ticket>> {
        self.unshipped.back().map(|(ticket, _)| Arc::clone(ticket))
    }

    /// Plans changing requests from the front of `writes` and appends them to the log. Returns why it stopped, if it
    /// did before the end.
    pub(super) fn plan(
        &mut self,
        shared: &Shared,
        subject: &Subject,
        database: &Database,
        writes: &mut VecDeque<Submission>,
    ) -> Option<Blocked> {
        let mut group = Group::default();
        let trusted = shared.trust.holds();
        let blocked = loop {
            let Some(front) = writes.front() else { break None };
            if !is_change(&front.request) {
                break Some(Blocked::Other);
            }
            if self.failing {
                break Some(Blocked::UntilApplied);
            }
            let full = self.in_flight.len() + group.changes.len() >= MAX_IN_FLIGHT;
            if let Some(refusal) = self.stalled.clone().or_else(|| full.then(too_many)) {
                if let Some(submission) = writes.pop_front() {
                    (submission.respond)(Err(refusal));
                }
                continue;
            }
            let context = Context {
                accept_time: Timestamp::from_micros(shared.env.wall_micros()),
                max_message_bytes: front.max_reply_bytes,
            };
            let planned = plan::plan(&front.request, &self.pending.view(database), context);
            if matches!(planned, Planned::Later) {
                break Some(Blocked::UntilApplied);
            }
            let Some(submission) = writes.pop_front() else { break None };
            self.take(shared, database, planned, submission, trusted, &mut group);
            if group.frames.len() >= APPEND_BYTES {
                self.append(shared, subject, std::mem::take(&mut group));
            }
        };
        self.append(shared, subject, group);
        blocked
    }

    fn take(
        &mut self,
        shared: &Shared,
        database: &Database,
        planned: Planned,
        submission: Submission,
        trusted: bool,
        group: &mut Group,
    ) {
        let Submission { request, max_reply_bytes, respond } = submission;
        match planned {
            Planned::Answer(answer) => respond(answer),
            Planned::Forgotten => respond(Err(ErrorReply::new(
                ErrorCode::Indeterminate,
                "the request is older than what is remembered of its session",
            ))),
            Planned::Repeat(outcome) => match self.first_of(group, plan::request_id(&request)) {
                Some(waiting) => waiting.push((respond, true)),
                None => respond(outcome.reply(true)),
            },
            Planned::Write(entry, outcome) => {
                let level = if trusted {
                    plan::required(&request, &database.state().config, shared.settings.level)
                } else {
                    Level::Bucket
                };
                let frame = frame::encode(&entry);
                let bytes = frame.len();
                group.frames.extend_from_slice(&frame);
                group.level = group.level.max(Some(level));
                self.pending.push(&entry);
                let waiting = vec![(respond, false)];
                group.changes.push(Draft { level, entry, bytes, outcome, waiting, max_bytes: max_reply_bytes });
            }
            // The caller has seen to it.
            Planned::Later => respond(Err(ErrorReply::internal("a request was planned out of turn"))),
        }
    }

    /// Who waits for the request of this name, if it is under way.
    fn first_of<'a>(&'a mut self, group: &'a mut Group, id: Option<RequestId>) -> Option<&'a mut Vec<Waiting>> {
        let is_it = |entry: &Entry| entry.request.as_ref().map(|request| request.id) == id && id.is_some();
        let planned = group.changes.iter_mut().find(|draft| is_it(&draft.entry)).map(|draft| &mut draft.waiting);
        planned.or_else(|| {
            self.in_flight.iter_mut().find(|change| is_it(&change.entry)).map(|change| &mut change.waiting)
        })
    }

    fn append(&mut self, shared: &Shared, subject: &Subject, group: Group) {
        let Group { frames, changes, level } = group;
        let (Some(first), Some(last), Some(level)) = (changes.first(), changes.last(), level) else { return };
        let last_rev = last.entry.last_rev();
        let append = Append {
            subject: subject.clone(),
            frames: frames.freeze(),
            first_after: first.entry.after,
            last_rev,
            entries: u32::try_from(changes.len()).unwrap_or(u32::MAX),
            level,
            waker: Arc::clone(&self.waker),
        };
        match shared.log.append(append) {
            Ok(ticket) => {
                self.unshipped.push_back((Arc::clone(&ticket), last_rev));
                self.in_flight.extend(changes.into_iter().map(|draft| {
                    let Draft { level, entry, bytes, outcome, waiting, max_bytes } = draft;
                    InFlight { ticket: Arc::clone(&ticket), level, entry, bytes, outcome, waiting, max_bytes }
                }));
            }
            Err(refusal) => {
                // What is planned on top of nothing is as if it had never been.
                self.pending.reset();
                for change in &self.in_flight {
                    self.pending.push(&change.entry);
                }
                for (respond, _) in changes.into_iter().flat_map(|draft| draft.waiting) {
                    respond(Err(refusal.clone()));
                }
            }
        }
    }

    /// Applies every change that has reached its level, in order of rev, announces it and answers.
    ///
    /// # Errors
    /// The file can be used no more. [`Pipeline::stalled`] says where it only cannot be written at the moment.
    pub(super) fn advance(
        &mut self,
        shared: &Shared,
        subject: &Subject,
        database: &mut Database,
    ) -> Result<Applied, DatabaseError> {
        let mut applied = Applied { changes: 0, bytes: 0 };
        self.note_shipped();
        loop {
            let ready = self.ready(shared);
            if ready == 0 {
                break;
            }
            if let Err(error) = self.apply(database, ready) {
                self.stall(subject, &error);
                database.rollback()?;
                if error.is_unfit_file() {
                    return Err(error);
                }
                break;
            }
            self.stalled = None;
            self.conclude(shared, subject, database, ready, &mut applied);
        }
        self.fail_what_failed();
        Ok(applied)
    }

    fn note_shipped(&mut self) {
        while let Some((ticket, rev)) = self.unshipped.front() {
            match ticket.stage() {
                Stage::Shipped => self.bucket_rev = self.bucket_rev.max(*rev),
                Stage::Failed => {}
                _ => break,
            }
            self.unshipped.pop_front();
        }
    }

    /// How many changes, from the first, have reached their level and fit one transaction.
    fn ready(&self, shared: &Shared) -> usize {
        if self.in_flight.is_empty() {
            return 0;
        }
        // What a successor could not see must not be acknowledged: it might be serving already.
        let strict = shared.log.holds_weaker() || !shared.trust.holds();
        let mut bytes = 0;
        let ready = self.in_flight.iter().take_while(|change| {
            let level = if strict { Level::Bucket } else { change.level };
            bytes += change.bytes;
            has_reached(change.ticket.stage(), level) && bytes <= APPLY_BYTES.max(change.bytes)
        });
        ready.count()
    }

    fn apply(&self, database: &mut Database, ready: usize) -> Result<(), DatabaseError> {
        database.begin()?;
        for change in self.in_flight.iter().take(ready) {
            database.apply(&change.entry)?;
        }
        database.commit()
    }

    /// The changes are in the log and stay; they are applied as soon as the file takes them.
    fn stall(&mut self, subject: &Subject, error: &DatabaseError) {
        if self.stalled.is_none() {
            tracing::error!(%subject, %error, "changes that are in the log cannot be written to the local file");
        }
        self.stalled = Some(error.reply(subject));
        for (respond, _) in self.in_flight.iter_mut().flat_map(|change| change.waiting.drain(..)) {
            respond(Err(ErrorReply::new(
                ErrorCode::Indeterminate,
                format!("the change is in the log, and cannot be applied at the moment: {error}"),
            )));
        }
    }

    /// Tells the world what was applied: watchers first, then those who asked.
    fn conclude(
        &mut self,
        shared: &Shared,
        subject: &Subject,
        database: &Database,
        ready: usize,
        applied: &mut Applied,
    ) {
        let done: Vec<InFlight> = self.in_flight.drain(..ready).collect();
        let max_bytes = done.iter().map(|change| change.max_bytes).min().unwrap_or(usize::MAX);
        let records: Vec<_> = done.iter().flat_map(|change| change.entry.records()).collect();
        for event in events::events(&records, database.state().term_base, max_bytes) {
            shared.events.publish(subject, event);
        }
        applied.changes += records.len();
        for change in done {
            self.pending.applied(&change.entry);
            applied.bytes += change.bytes;
            for (respond, repeated) in change.waiting {
                respond(change.outcome.reply(repeated));
            }
        }
    }

    /// Answers what the log has given up. What was planned on top of it fails as well, and only then is anything new
    /// planned.
    fn fail_what_failed(&mut self) {
        while let Some(front) = self.in_flight.front() {
            match front.ticket.stage() {
                Stage::Failed => self.failing = true,
                Stage::Shipped | Stage::Synced | Stage::Written if self.failing => {
                    tracing::error!("a change was kept by the log although one before it failed");
                    debug_assert!(false, "the log must fail everything behind a change that failed");
                }
                _ => break,
            }
            let Some(change) = self.in_flight.pop_front() else { break };
            let reply = change.ticket.failure().unwrap_or_else(|| ErrorReply::unavailable("the log has failed"));
            for (respond, _) in change.waiting {
                respond(Err(reply.clone()));
            }
        }
        if self.failing && self.in_flight.is_empty() {
            self.failing = false;
            self.pending.reset();
        }
    }

    /// Gives everybody who waits for a change the same answer. The changes themselves stay under way.
    pub(super) fn answer_all(&mut self, reply: &ErrorReply) {
        for (respond, _) in self.in_flight.iter_mut().flat_map(|change| change.waiting.drain(..)) {
            respond(Err(reply.clone()));
        }
    }
}

/// Whether `request` becomes an entry of the log.
pub(super) const fn is_change(request: &Request) -> bool {
    matches!(
        request,
        Request::Set(_) | Request::Delete(_) | Request::DeleteAll(_) | Request::Configure(_)
    )
}

/// A change of the level `memory` is taken as soon as the operating system has it: so the file is never ahead of the
/// local log.
fn has_reached(stage: Stage, level: Level) -> bool {
    match stage {
        Stage::Accepted | Stage::Failed => false,
        Stage::Written => level <= Level::Interval,
        Stage::Synced => level <= Level::Disk,
        Stage::Shipped => true,
    }
}

fn too_many() -> ErrorReply {
    ErrorReply::overloaded("too many changes of the subject wait for their durability", RETRY_AFTER_MS)
}
