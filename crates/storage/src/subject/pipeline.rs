//! The life of a write: planned, appended to the log, acknowledged once it is as durable as its level asks, and brought
//! into the file before anybody reads that.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{ErrorCode, ErrorReply, Level, Rev, Subject};
use tokio::sync::Notify;

use super::backlog::{Acknowledged, Backlog};
use super::upkeep::{self, Upkeep};
use super::values::{Attempt, Uploads};
use super::{Answer, Respond, events};
use crate::api::{Request, Submission};
use crate::database::{Database, DatabaseError};
use crate::engine::Shared;
use crate::entry::Entry;
use crate::fail_points::{Step as FailPoint, reach};
use crate::format::frame;
use crate::log::{Append, Stage, Ticket};
use crate::plan::{self, Context, Pending, Planned, SubjectView};
use crate::values::{self, Uploaded};

/// Most changes of one subject that wait for their level. Beyond it writes are turned away; reads go on.
pub(super) const MAX_IN_FLIGHT: usize = 4_096;

/// When a caller that was turned away may come again.
const RETRY_AFTER_MS: u64 = 50;

/// How soon changes are tried again that the file did not take.
pub(super) const STALL_PAUSE: Duration = Duration::from_millis(500);

/// At about this many bytes an append ends and the next begins.
const APPEND_BYTES: usize = 1_024 * 1_024;

/// A change that is decided, or an answer that waits for the changes before it.
pub(super) struct Step {
    change: Option<Change>,
    answer: Answer,
    respond: Option<Respond>,
    /// The largest event that the bus can carry, in bytes.
    max_bytes: usize,
}

impl Step {
    /// A change that nobody has asked for.
    pub(super) fn unasked(change: Change, max_bytes: usize) -> Self {
        Self { change: Some(change), answer: upkeep::unasked(), respond: None, max_bytes }
    }
}

pub(super) struct Change {
    pub(super) entry: Entry,
    pub(super) bytes: usize,
    pub(super) level: Level,
    /// Set when the log has it.
    pub(super) ticket: Option<Arc<Ticket>>,
    /// The large values that it refers to. They go with it, unless the log takes it.
    pub(super) uploaded: Uploaded,
}

/// Steps on their way into one append; all changes among them have one level.
#[derive(Default)]
pub(super) struct Group {
    frames: BytesMut,
    entries: u32,
    level: Option<Level>,
    steps: Vec<Step>,
}

impl Group {
    /// One change on its own.
    pub(super) fn of(frame: Bytes, level: Level, step: Step) -> Self {
        Self { frames: frame.into(), entries: 1, level: Some(level), steps: vec![step] }
    }
}

/// Why nothing more can be planned at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blocked {
    /// The next request is not for the pipeline.
    Other,
    /// The next request has to see everything in the file that came before it.
    UntilApplied,
    /// The next request has large values on their way to the bucket.
    UntilUploaded,
}

/// What became of changes that are acknowledged now.
#[derive(Default)]
pub(super) struct Concluded {
    /// How many revs.
    pub(super) changes: usize,
    /// Answers that changed nothing and tell of the state: like reads, they need to be allowed.
    pub(super) settled: Vec<(Respond, Answer)>,
}

/// The changes of one subject that are under way.
pub(super) struct Pipeline {
    steps: VecDeque<Step>,
    /// What comes before the steps.
    backlog: Backlog,
    /// The backlog and the steps.
    pub(super) pending: Pending,
    /// Appends that are not in the bucket yet, each with the rev it leads to.
    unshipped: VecDeque<(Arc<Ticket>, Rev)>,
    /// The last rev known to be in the bucket.
    bucket_rev: Rev,
    /// Answers to changes that had reached a weaker level when the lease ran out: they wait for the bucket.
    late: VecDeque<(Arc<Ticket>, Respond, Answer)>,
    /// Why a change has failed: everything planned on top of it fails too, and nothing is planned before that is over.
    failing: Option<ErrorReply>,
    /// The file could not be written. Nothing is planned before it can.
    pub(super) stalled: Option<ErrorReply>,
    /// When that is tried again, on the clock that never goes back.
    retry_at: Duration,
    pub(super) uploads: Uploads,
    pub(super) upkeep: Upkeep,
    /// The most bytes that the bus carried for whoever asked last.
    pub(super) bus_bytes: usize,
    /// Told when a ticket of this subject moves.
    pub(super) waker: Arc<Notify>,
}

impl Pipeline {
    pub(super) fn new(bucket_rev: Rev) -> Self {
        Self {
            steps: VecDeque::new(),
            backlog: Backlog::default(),
            pending: Pending::new(),
            unshipped: VecDeque::new(),
            bucket_rev,
            late: VecDeque::new(),
            failing: None,
            stalled: None,
            retry_at: Duration::ZERO,
            uploads: Uploads::default(),
            upkeep: Upkeep::default(),
            bus_bytes: upkeep::CAUTIOUS_BYTES,
            waker: Arc::new(Notify::new()),
        }
    }

    /// Told when a ticket has moved.
    pub(super) fn waker(&self) -> Arc<Notify> {
        Arc::clone(&self.waker)
    }

    /// Whether every change is concluded, though it may not be in the file yet.
    pub(super) fn is_concluded(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether every change is in the file.
    pub(super) fn is_applied(&self) -> bool {
        self.is_concluded() && self.backlog.is_empty()
    }

    /// What is acknowledged and not in the file.
    pub(super) const fn backlog(&self) -> &Backlog {
        &self.backlog
    }

    /// Whether nothing can be planned for now, whatever it is.
    pub(super) fn is_held_up(&self) -> bool {
        self.failing.is_some() || self.stalled.is_some() || self.steps.len() >= MAX_IN_FLIGHT
    }

    /// Whether an answer can be given that waited for changes before it.
    pub(super) fn has_answer(&self) -> bool {
        self.steps.front().is_some_and(|step| step.change.is_none())
    }

    /// Whether every change is in the file and in the bucket, or has failed.
    pub(super) fn is_settled(&self) -> bool {
        self.is_applied() && self.unshipped.is_empty()
    }

    /// The last rev known to be in the bucket.
    pub(super) const fn bucket_rev(&self) -> Rev {
        self.bucket_rev
    }

    /// The rev to which everything planned leads; `None` when nothing is under way.
    pub(super) fn planned_rev(&self) -> Option<Rev> {
        let planned =
            self.steps.iter().rev().find_map(|step| step.change.as_ref()).map(|change| &change.entry);
        planned.or_else(|| self.backlog.entries().last()).map(Entry::last_rev)
    }

    /// The last append that is not known to be in the bucket.
    pub(super) fn last_unshipped(&self) -> Option<Arc<Ticket>> {
        self.unshipped.back().map(|(ticket, _)| Arc::clone(ticket))
    }

    /// Plans changing requests from the front of `writes` and appends them to the log. Returns why it stopped, if it
    /// did before the end.
    pub(super) fn plan(
        &mut self,
        shared: &Arc<Shared>,
        subject: &Subject,
        database: &Database,
        writes: &mut VecDeque<Submission>,
    ) -> Option<Blocked> {
        self.keep_up(shared, subject, database);
        let mut group = Group::default();
        let blocked = loop {
            let Some(front) = writes.front() else { break None };
            if is_other(&front.request) {
                break Some(Blocked::Other);
            }
            if self.failing.is_some() {
                break Some(Blocked::UntilApplied);
            }
            if !is_change(&front.request) {
                let Some(known) = self.recall(shared, database, front) else { break Some(Blocked::Other) };
                let Some(submission) = writes.pop_front() else { break None };
                self.take(database, known, Uploaded::default(), submission, Level::Bucket, &mut group);
                continue;
            }
            // What is full goes before the next is planned: where the log refuses it, the next is planned without it.
            let level = self.level(shared, database, &front.request);
            if group.frames.len() >= APPEND_BYTES || group.level.is_some_and(|other| other != level) {
                self.append(shared, subject, database, std::mem::take(&mut group));
            }
            let in_flight = self.steps.len() + group.steps.len();
            let (planned, uploaded) = match self.attempt(shared, subject, database, front, in_flight) {
                Attempt::Planned(planned, uploaded) => (planned, uploaded),
                Attempt::UnderWay => break Some(Blocked::UntilUploaded),
            };
            if matches!(planned, Planned::Later) {
                self.uploads.put_back(uploaded);
                break Some(Blocked::UntilApplied);
            }
            let Some(submission) = writes.pop_front() else { break None };
            self.take(database, planned, uploaded, submission, level, &mut group);
        };
        self.append(shared, subject, database, group);
        blocked
    }

    /// What a request is answered that is no entry of the log and yet carried out once, if it is not new.
    fn recall(&self, shared: &Shared, database: &Database, front: &Submission) -> Option<Planned> {
        let context = Context {
            accept_time: upkeep::wall(shared),
            max_message_bytes: front.max_reply_bytes,
            blobs: &[],
        };
        plan::recall(&front.request, &self.pending.view(database), context)
    }

    /// The level that a change has to reach. What a successor could not see must not be acknowledged; and a large value
    /// that a successor sees no record of, it deletes, so that a record which is only here would be worth nothing.
    fn level(&self, shared: &Shared, database: &Database, request: &Request) -> Level {
        if !shared.trust.holds() || values::is_large(request) {
            return Level::Bucket;
        }
        let view = self.pending.view(database);
        plan::required(request, &view.state().config, shared.settings.level)
    }

    /// The same for a change that nobody has asked for.
    pub(super) fn level_of(&self, shared: &Shared, config: &SubjectConfig) -> Level {
        let own = config.level.unwrap_or(shared.settings.level);
        if shared.trust.holds() { own } else { Level::Bucket }
    }

    fn take(
        &mut self,
        database: &Database,
        planned: Planned,
        uploaded: Uploaded,
        submission: Submission,
        level: Level,
        group: &mut Group,
    ) {
        let Submission { request: _, max_reply_bytes: max_bytes, respond } = submission;
        match planned {
            Planned::Answer(answer) => respond(answer),
            Planned::Settle(answer) => {
                group.steps.push(Step { change: None, answer, respond: Some(respond), max_bytes });
            }
            Planned::Write { entry, outcome } => match frame::encode(&entry) {
                Ok(frame) => {
                    group.frames.extend_from_slice(&frame);
                    group.entries += 1;
                    group.level = Some(level);
                    self.pending.push(&entry, database);
                    let change = Change { entry, bytes: frame.len(), level, ticket: None, uploaded };
                    let answer = outcome.answer();
                    group.steps.push(Step {
                        change: Some(change),
                        answer,
                        respond: Some(respond),
                        max_bytes,
                    });
                }
                Err(error) => respond(Err(ErrorReply::internal(error))),
            },
            // The caller has seen to it.
            Planned::Later => respond(Err(ErrorReply::internal("a request was planned out of turn"))),
        }
    }

    /// Returns whether the log has taken it.
    pub(super) fn append(
        &mut self,
        shared: &Shared,
        subject: &Subject,
        database: &Database,
        group: Group,
    ) -> bool {
        let Group { frames, entries, level, mut steps } = group;
        let mut changes = steps.iter().filter_map(|step| step.change.as_ref());
        let Some(first) = changes.next() else {
            self.steps.extend(steps);
            return true;
        };
        let last_rev = changes.next_back().unwrap_or(first).entry.last_rev();
        let append = Append {
            subject: subject.clone(),
            frames: frames.freeze(),
            first_after: first.entry.after,
            last_rev,
            entries,
            level: level.unwrap_or(Level::Bucket),
            waker: Arc::clone(&self.waker),
        };
        reach(FailPoint::Planned);
        match shared.log.append(append) {
            Ok(ticket) => {
                self.unshipped.push_back((Arc::clone(&ticket), last_rev));
                for change in steps.iter_mut().filter_map(|step| step.change.as_mut()) {
                    change.ticket = Some(Arc::clone(&ticket));
                    change.uploaded.keep(&change.entry);
                }
                self.steps.extend(steps);
                true
            }
            Err(refusal) => {
                // What was planned is as if it had never been. Where that comes again and again, less is to be gone through.
                self.plan_on(database);
                self.backlog.hurry();
                for respond in steps.into_iter().filter_map(|step| step.respond) {
                    respond(Err(refusal.clone()));
                }
                false
            }
        }
    }

    /// From now on requests are planned on the backlog and the steps, and on nothing else.
    fn plan_on(&mut self, database: &Database) {
        self.pending.reset();
        let steps = self.steps.iter().filter_map(|step| step.change.as_ref()).map(|change| &change.entry);
        for entry in self.backlog.entries().chain(steps) {
            self.pending.push(entry, database);
        }
    }

    /// Announces and answers every change that has reached its level, in order of rev. Whoever reads the file next has to
    /// [apply](Self::apply) them first.
    pub(super) fn conclude(&mut self, shared: &Shared, subject: &Subject, database: &Database) -> Concluded {
        let mut concluded = Concluded::default();
        self.note_shipped();
        self.answer_late(shared);
        let ready = self.ready(shared);
        if ready > 0 {
            reach(FailPoint::Landed);
            self.tell(shared, subject, database, ready, &mut concluded);
        }
        self.fail_what_failed(database);
        concluded
    }

    /// Brings the file up to everything that is acknowledged, unless it could not be written a moment ago. Returns about
    /// how many bytes that were.
    ///
    /// # Errors
    /// The file can be used no more. [`Pipeline::stalled`] says where it only cannot be written at the moment.
    pub(super) fn apply(
        &mut self,
        subject: &Subject,
        database: &mut Database,
        now: Duration,
    ) -> Result<usize, DatabaseError> {
        let mut bytes = 0;
        if self.stalled_until().is_some_and(|until| until > now) {
            return Ok(bytes);
        }
        while !self.backlog.is_empty() {
            let applied = match apply(&self.backlog, database) {
                Ok(applied) => applied,
                Err(error) => {
                    self.stall(subject, &error, now);
                    database.rollback()?;
                    return if error.is_unfit_file() { Err(error) } else { Ok(bytes) };
                }
            };
            reach(FailPoint::Applied);
            self.stalled = None;
            for change in (0..applied).map_while(|_| self.backlog.pop()) {
                self.pending.applied(&change.entry);
                bytes += change.bytes;
            }
        }
        Ok(bytes)
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

    /// Answers what the bucket has by now. What the end of the log has left on the local disk may be lost or not.
    fn answer_late(&mut self, shared: &Shared) {
        while let Some((ticket, ..)) = self.late.front() {
            let shipped = ticket.stage() == Stage::Shipped;
            if !shipped && !shared.log.is_over() {
                return;
            }
            let Some((_, respond, answer)) = self.late.pop_front() else { return };
            respond(if shipped { answer } else { Err(unknown()) });
        }
    }

    /// How many steps, from the first, may be concluded now.
    fn ready(&self, shared: &Shared) -> usize {
        if self.steps.is_empty() {
            return 0;
        }
        // What a successor could not see must not be acknowledged: it might be serving already.
        let strict = shared.log.holds_weaker() || !shared.trust.holds();
        let is_ready = |step: &&Step| {
            let Some(change) = &step.change else { return true };
            let level = if strict { Level::Bucket } else { change.level };
            let ticket = change.ticket.as_ref();
            ticket.is_some_and(|ticket| matches!(ticket.reached(level), Some(Ok(()))))
        };
        self.steps.iter().take_while(is_ready).count()
    }

    /// The changes are in the log and stay; they are applied as soon as the file takes them.
    fn stall(&mut self, subject: &Subject, error: &DatabaseError, now: Duration) {
        if self.stalled.is_none() {
            tracing::error!(%subject, %error, "changes that are in the log cannot be written to the local file");
        }
        self.stalled = Some(error.reply(subject));
        self.retry_at = now + STALL_PAUSE;
    }

    /// When it is tried again to write the file, while it cannot be written.
    pub(super) fn stalled_until(&self) -> Option<Duration> {
        self.stalled.is_some().then_some(self.retry_at)
    }

    /// Tells the world of the first steps: watchers first, then those who asked.
    fn tell(
        &mut self,
        shared: &Shared,
        subject: &Subject,
        database: &Database,
        ready: usize,
        concluded: &mut Concluded,
    ) {
        let done: Vec<Step> = self.steps.drain(..ready).collect();
        let (now, trusted) = (shared.env.boot(), shared.trust.holds());
        let expiring = database.next_expiry().is_some() || database.state().config.max_age_ms.is_some();
        let max_bytes = done.iter().map(|step| step.max_bytes).min().unwrap_or(usize::MAX);
        let changes = done.iter().filter_map(|step| step.change.as_ref());
        let records: Vec<_> = changes.flat_map(|change| change.entry.records()).collect();
        for event in events::events(&records, database.state().term_base, max_bytes) {
            shared.events.publish(subject, event);
        }
        concluded.changes += records.len();
        for Step { change, answer, respond, .. } in done {
            let Some(Change { entry, bytes, ticket, .. }) = change else {
                concluded.settled.extend(respond.map(|respond| (respond, answer)));
                continue;
            };
            let change = Acknowledged { entry, bytes, is_upkeep: respond.is_none() };
            self.backlog.push(change, now, expiring);
            match (respond, ticket) {
                (Some(respond), Some(ticket)) if !trusted && ticket.stage() != Stage::Shipped => {
                    self.late.push_back((ticket, respond, answer));
                }
                (Some(respond), _) => respond(answer),
                (None, _) => {}
            }
        }
    }

    /// Answers what the log has given up. What was planned on top of it fails as well, and only then is anything new
    /// planned.
    fn fail_what_failed(&mut self, database: &Database) {
        while let Some(front) = self.steps.front() {
            match front.change.as_ref().and_then(|change| change.ticket.as_ref()) {
                Some(ticket) if ticket.stage() == Stage::Failed => {
                    let unknown = || ErrorReply::unavailable("the log has failed");
                    self.failing = Some(ticket.failure().unwrap_or_else(unknown));
                }
                // An answer that spoke of a change that never was.
                None if self.failing.is_some() => {}
                _ => break,
            }
            let Some((step, reply)) = self.steps.pop_front().zip(self.failing.clone()) else { break };
            if let Some(respond) = step.respond {
                respond(Err(reply));
            }
        }
        if self.steps.is_empty() && self.failing.take().is_some() {
            self.plan_on(database);
            self.upkeep.failed();
        }
    }

    /// The file is given up: what the log has made of the changes is applied when the subject is opened again. Drops
    /// every change whose fate is known.
    pub(super) fn forget_applied(&mut self) {
        self.note_shipped();
        self.backlog = Backlog::default();
        while let Some(front) = self.steps.front() {
            let ticket = front.change.as_ref().and_then(|change| change.ticket.as_ref());
            if ticket.is_some_and(|ticket| !matches!(ticket.stage(), Stage::Shipped | Stage::Failed)) {
                break;
            }
            self.steps.pop_front();
        }
    }

    /// Gives everybody who waits the same answer. The changes themselves stay under way.
    pub(super) fn answer_all(&mut self, reply: &ErrorReply) {
        let waiting = self.steps.iter_mut().filter_map(|step| step.respond.take());
        for respond in waiting {
            respond(Err(reply.clone()));
        }
        for (_, respond, _) in self.late.drain(..) {
            respond(Err(unknown()));
        }
    }
}

/// Applies the first changes of the backlog, and returns how many.
fn apply(backlog: &Backlog, database: &mut Database) -> Result<usize, DatabaseError> {
    database.begin()?;
    let mut applied = 0;
    for change in backlog.first() {
        database.apply(&change.entry)?;
        applied += 1;
    }
    database.commit()?;
    Ok(applied)
}

/// The answer to a change that was made, and of which nobody can say whether it lasts.
fn unknown() -> ErrorReply {
    ErrorReply::new(
        ErrorCode::Indeterminate,
        "the server's lease ran out while the change was made: whether it lasts is not known",
    )
}

/// Whether `request` becomes an entry of the log.
const fn is_change(request: &Request) -> bool {
    matches!(request, Request::Set(_) | Request::Delete(_) | Request::DeleteAll(_) | Request::Configure(_))
}

/// Whether `request` changes nothing, so that it does not matter how often it is carried out.
const fn is_other(request: &Request) -> bool {
    !is_change(request) && !matches!(request, Request::Destroy(_))
}

pub(super) fn too_many() -> ErrorReply {
    ErrorReply::overloaded("too many changes of the subject wait for their durability", RETRY_AFTER_MS)
}
