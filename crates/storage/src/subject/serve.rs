//! Serving an open subject: requests in, changes through the pipeline, beacons and compactions by themselves.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use dormouse_protocol::{ErrorReply, Event, Position, Subject, Timestamp};
use tokio::sync::{Notify, oneshot};

use super::flush::{Aim, Flush};
use super::open::Opened;
use super::pipeline::{Blocked, Pipeline, STALL_PAUSE};
use super::publish::PublishEnd;
use super::reads::{self, Surroundings, Waiting, WaitingReads};
use super::schedule::{Due, Schedule};
use super::values::{Again, Fetches};
use super::{Inbox, Respond, base, events, upkeep};
use crate::api::{Request, Submission};
use crate::database::{Database, DatabaseError};
use crate::directory::Hold;
use crate::engine::Shared;
use crate::entry::Entry;
use crate::figures::Share;
use crate::keys::BlobName;
use crate::manifest::Manifest;
use crate::mutations::{Mutation, is_there};
use crate::ownership::Verified;
use crate::ownership::publish::Publish;

/// A companion of this size is brought into the file without waiting for a snapshot.
const CHECKPOINT_BYTES: u64 = 4 * 1_024 * 1_024;

/// After this many bytes of changes the companion's size is looked at.
const CHECKPOINT_LOOK_BYTES: usize = 1_024 * 1_024;

/// Most changes of a subject that wait to be planned.
const MAX_WRITES: usize = 4_096;

/// When a caller that was turned away may come again.
const RETRY_AFTER_MS: u64 = 100;

/// Why a subject is not served any more.
pub(super) enum End {
    /// It is closed in good order; requests that wait open it again.
    Closed,
    /// It cannot be served; requests that wait get this answer.
    Refused(ErrorReply),
}

/// The file, except while it is being worked on elsewhere.
struct Held(Option<Database>);

impl Held {
    fn get(&mut self) -> &mut Database {
        // `Serving::apart` puts it back before it returns, and nobody polls the task that panicked in between.
        self.0.as_mut().expect("the file is always back when somebody looks")
    }
}

/// An open subject.
pub(super) struct Serving<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) subject: &'a Subject,
    /// Nobody else opens the file while a clone of it lives.
    pub(super) hold: &'a Arc<Hold>,
    file: Held,
    /// The newest manifest, ours.
    pub(super) manifest: Manifest,
    /// What opening it has shown, until that is seen to.
    opened_with: Option<Verified>,
    /// Large values on their way out, ascending.
    pub(super) deleting: Vec<Weak<Vec<BlobName>>>,
    pub(super) schedule: Schedule,
    pub(super) pipeline: Pipeline,
    pub(super) reads: WaitingReads,
    pub(super) fetches: Fetches,
    writes: VecDeque<Submission>,
    pub(super) flushes: Vec<Flush>,
    /// Those who wait for the subject to be handed over, which is about to begin.
    pub(super) handing_over: Vec<Respond>,
    pub(super) publishing: Option<oneshot::Receiver<PublishEnd>>,
    /// A publication without known outcome, which must be settled before the next.
    pub(super) undecided: Option<Box<Publish>>,
    /// Why the last publication failed.
    pub(super) failure: Option<ErrorReply>,
    written_bytes: usize,
    /// What is acknowledged and not in the file.
    backlog_bytes: Share<'a>,
    /// Since when it is open, by the server's clock: for people.
    open_since: Timestamp,
    pub(super) behind: Share<'a>,
    local_bytes: Share<'a>,
}

impl<'a> Serving<'a> {
    pub(super) fn new(
        shared: &'a Arc<Shared>,
        subject: &'a Subject,
        hold: &'a Arc<Hold>,
        opened: Opened,
    ) -> Self {
        let Opened { database, verified } = opened;
        let mut serving = Self {
            shared,
            subject,
            hold,
            schedule: Schedule::new(&shared.settings, shared.env.boot()),
            pipeline: Pipeline::new(database.state().rev),
            file: Held(Some(database)),
            manifest: (*verified.manifest).clone(),
            opened_with: Some(verified),
            deleting: Vec::new(),
            reads: WaitingReads::new(),
            fetches: Fetches::default(),
            writes: VecDeque::new(),
            flushes: Vec::new(),
            handing_over: Vec::new(),
            publishing: None,
            undecided: None,
            failure: None,
            written_bytes: 0,
            backlog_bytes: shared.counters.backlog_bytes.share(),
            open_since: upkeep::wall(shared),
            behind: shared.counters.subjects_not_compacted.share(),
            local_bytes: shared.counters.local_bytes.share(),
        };
        serving.count_bytes();
        serving.compact_if_due();
        serving
    }

    /// Serves until the subject is idle, evicted, taken, destroyed, or the engine stops.
    pub(super) async fn run(mut self, inbox: &mut Inbox, close: &Notify) -> End {
        let end = self.serve(inbox, close).await;
        if let End::Closed = end {
            // Changes that were not begun are for the life that follows; they come before what has arrived since.
            for write in std::mem::take(&mut self.writes).into_iter().rev() {
                inbox.waiting.push_front(write);
            }
        }
        // However it ended: nobody may wait for an answer that never comes.
        let reply = match &end {
            End::Refused(reply) => reply.clone(),
            End::Closed => ErrorReply::unavailable("the subject was closed: ask again"),
        };
        self.refuse_all(&reply);
        // Nothing of this life may be under way when the subject is opened again.
        self.pipeline.answer_all(&reply);
        end
    }

    async fn serve(&mut self, inbox: &mut Inbox, close: &Notify) -> End {
        let position = self.position();
        tracing::debug!(subject = %self.subject, %position, "opened");
        self.beacon();
        if let Some(verified) = self.opened_with.take() {
            self.collect(verified).await;
        }
        if let Some(end) = self.wake(inbox).await {
            return end;
        }
        let moved = self.pipeline.waker();
        loop {
            if let Some(end) = self.work(inbox).await {
                return end;
            }
            let pause = self.pause();
            tokio::select! {
                biased;
                () = self.shared.stopping() => {
                    return if self.shared.has_log_ended() {
                        self.abandon(inbox).await
                    } else {
                        self.release(inbox).await
                    };
                }
                end = base::published(&mut self.publishing) => {
                    if let Some(end) = self.published(end).await {
                        return end;
                    }
                }
                () = moved.notified() => {}
                passed = self.reads.passed() => self.barrier_ended(&passed),
                again = self.fetches.again() => self.read_again(again),
                () = inbox.receive() => {}
                () = close.notified() => self.schedule.ask_close(),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Does everything that can be done now.
    async fn work(&mut self, inbox: &mut Inbox) -> Option<End> {
        if !inbox.waiting.is_empty() {
            self.seek_trust();
            self.schedule.used(self.shared.env.boot());
            self.sort(inbox);
        }
        loop {
            self.conclude();
            let blocked = self.pipeline.plan(self.shared, self.subject, self.file.get(), &mut self.writes);
            match blocked {
                Some(Blocked::Other) => {
                    if let Some(end) = self.other(inbox).await {
                        return Some(end);
                    }
                }
                Some(Blocked::UntilApplied) if self.pipeline.is_concluded() => {
                    if let Err(broken) = self.apply() {
                        return Some(self.fail(&broken, inbox).await);
                    }
                }
                // What it waits for is not over, or everything is planned.
                Some(Blocked::UntilApplied | Blocked::UntilUploaded) | None => {
                    // Nothing else would come to give an answer that waits for nothing any more.
                    if !self.pipeline.has_answer() {
                        break;
                    }
                }
            }
        }
        if self.is_apply_due(inbox) {
            // What was just answered goes out first.
            tokio::task::yield_now().await;
            if let Err(broken) = self.apply() {
                return Some(self.fail(&broken, inbox).await);
            }
            // What goes next is looked up in the file.
            self.keep_up();
        }
        self.answer_flushes();
        if !self.handing_over.is_empty()
            && self.publishing.is_none()
            && let Some(end) = self.hand_over(inbox).await
        {
            return Some(end);
        }
        self.checkpoint_if_large().await;
        self.do_what_is_due(inbox).await
    }

    fn seek_trust(&self) {
        if self.shared.trust.to_seek().is_none() {
            return;
        }
        let shared = Arc::clone(self.shared);
        self.shared.tasks.spawn("trust", async move {
            tokio::select! {
                biased;
                () = shared.stopping() => {}
                // Where it fails, the next read or the end of the log says so.
                _ = shared.trust.barrier() => {}
            }
        });
    }

    async fn do_what_is_due(&mut self, inbox: &mut Inbox) -> Option<End> {
        let expires_at = self.expires_at();
        self.schedule.awaits(expires_at);
        loop {
            let (now, busy) = (self.shared.env.boot(), self.is_busy());
            match self.schedule.due(now, busy) {
                Some(Due::Beacon) => self.beacon(),
                Some(Due::Compact) => self.start_compacting().await,
                Some(Due::Close) if inbox.queue.is_empty() => match self.apply() {
                    Err(broken) => return Some(self.fail(&broken, inbox).await),
                    Ok(()) if self.pipeline.is_applied() => return Some(self.close().await),
                    Ok(()) => {}
                },
                // Somebody has just asked for it.
                Some(Due::Close) | None => return None,
            }
        }
    }

    /// How long there is nothing to do, requests aside.
    fn pause(&mut self) -> Duration {
        let flushes = self.flushes.iter().map(|flush| flush.until).min();
        let now = self.shared.env.boot();
        let apply = self.pipeline.stalled_until().or(self.pipeline.backlog().due_at());
        let (shared, (pipeline, database)) = (self.shared, self.pipeline_and_file());
        let upkeep = pipeline.keep_up_at(shared, database);
        let next = self.schedule.next(self.is_busy()).into_iter();
        let next = next.chain(flushes).chain(apply).chain(upkeep).min();
        // An hour: only to have a number.
        next.map_or(Duration::from_secs(3_600), |next| next.saturating_sub(now))
    }

    /// Something of the subject is not in the bucket, or somebody waits.
    fn is_busy(&self) -> bool {
        // An undecided publication may yet come to count: the subject is not left before that is known.
        !self.pipeline.is_concluded()
            || self.pipeline.last_unshipped().is_some()
            || self.pipeline.stalled.is_some()
            || self.undecided.is_some()
            || !self.writes.is_empty()
            || !self.flushes.is_empty()
            || !self.handing_over.is_empty()
            || !self.reads.is_empty()
    }

    /// Answers reads, and lines up everything else.
    fn sort(&mut self, inbox: &mut Inbox) {
        let trusted = self.shared.trust.holds();
        for submission in inbox.waiting.drain(..) {
            if !reads::is_read(&submission.request) {
                if self.writes.len() < MAX_WRITES {
                    self.writes.push_back(submission);
                } else {
                    let reply =
                        ErrorReply::overloaded("too many changes of the subject wait", RETRY_AFTER_MS);
                    (submission.respond)(Err(reply));
                }
            } else if trusted {
                self.read(submission, None);
            } else {
                self.reads.push(self.shared, Waiting::Read(submission));
            }
        }
    }

    /// The value of a message was gone when it was asked for: what does the subject say now?
    fn read_again(&mut self, again: Again) {
        if self.shared.trust.holds() {
            self.read(again.submission, Some(again.missing));
        } else {
            self.reads.push(self.shared, Waiting::Again(again));
        }
    }

    fn read(&mut self, submission: Submission, missing: Option<BlobName>) {
        if let Err(reply) = self.bring_up() {
            return (submission.respond)(Err(reply));
        }
        let Some(submission) = self.transfer(submission, missing) else { return };
        let around = Surroundings {
            log: self.shared.log.id(),
            level: self.shared.settings.level,
            bucket_rev: self.pipeline.bucket_rev(),
            base_rev: self.manifest.base_rev,
            tail_bytes: self.shared.log.tail(self.subject).map_or(0, |tail| tail.bytes),
            open_since: self.open_since,
        };
        let answer = reads::answer(self.file.get(), &submission.request, submission.max_reply_bytes, &around);
        let answer = answer.unwrap_or_else(|| Err(ErrorReply::internal("a change was taken for a read")));
        self.answer_read(submission, answer, missing);
    }

    fn barrier_ended(&mut self, passed: &Result<(), ErrorReply>) {
        for waiting in self.reads.take(self.shared) {
            match (waiting, passed) {
                (Waiting::Read(read), Ok(())) => self.read(read, None),
                (Waiting::Again(again), Ok(())) => self.read(again.submission, Some(again.missing)),
                (Waiting::Ready(respond, answer), Ok(())) => respond(answer),
                (waiting, Err(reply)) => waiting.into_respond()(Err(reply.clone())),
            }
        }
    }

    /// Tells of what the log has made durable, and brings the file up to it.
    pub(super) fn advance(&mut self) -> Result<(), DatabaseError> {
        self.conclude();
        self.apply()
    }

    /// Brings the file up to everything that is acknowledged, as far as it can be written.
    fn apply(&mut self) -> Result<(), DatabaseError> {
        let (now, database) = (self.shared.env.boot(), self.file.get());
        let applied = self.pipeline.apply(self.subject, database, now);
        self.backlog_bytes.set(self.pipeline.backlog().bytes() as u64);
        self.written_bytes += applied?;
        Ok(())
    }

    /// Brings the file up to everything that is acknowledged, for somebody who reads it.
    fn bring_up(&mut self) -> Result<(), ErrorReply> {
        if is_there(Mutation::ReadsBehind) {
            return Ok(());
        }
        // A file that can be used no more is found again, and seen to, when there is no reader to answer.
        self.apply().map_err(|error| error.reply(self.subject))?;
        if self.pipeline.backlog().is_empty() {
            return Ok(());
        }
        let cannot = || ErrorReply::unavailable("the local file cannot be written");
        Err(self.pipeline.stalled.clone().unwrap_or_else(cannot))
    }

    fn is_apply_due(&self, inbox: &Inbox) -> bool {
        let is_idle = self.pipeline.is_concluded() && inbox.queue.is_empty();
        // Of those who wait some want the file in the bucket.
        let is_wanted = !self.flushes.is_empty() || !self.handing_over.is_empty();
        let of_all = self.shared.counters.backlog_bytes.get();
        let is_due = self.pipeline.backlog().is_due(self.shared.env.boot(), of_all);
        let is_worth_it = is_idle && self.pipeline.backlog().is_worth_a_transaction();
        is_due || is_wanted || is_worth_it || self.pipeline.stalled.is_some()
    }

    /// Tells of what the log has made durable.
    fn conclude(&mut self) {
        let database = self.file.get();
        let concluded = self.pipeline.conclude(self.shared, self.subject, database);
        if concluded.changes > 0 {
            self.schedule.changed(self.shared.env.boot());
            self.shared.counters.changes.add(concluded.changes as u64);
        }
        self.backlog_bytes.set(self.pipeline.backlog().bytes() as u64);
        if !concluded.settled.is_empty() {
            let trusted = self.shared.trust.holds();
            for (respond, answer) in concluded.settled {
                if trusted {
                    respond(answer);
                } else {
                    self.reads.push(self.shared, Waiting::Ready(respond, answer));
                }
            }
        }
        self.compact_if_due();
    }

    /// Carries out the request at the front, which is no change.
    async fn other(&mut self, inbox: &mut Inbox) -> Option<End> {
        let submission = self.writes.pop_front()?;
        match submission.request {
            Request::Flush => self.flush(submission.respond, Aim::Log),
            Request::Compact => self.flush(submission.respond, Aim::Base),
            Request::HandOver => self.flush(submission.respond, Aim::HandOver),
            Request::Destroy(request) => {
                return self.destroy(request.request, submission.respond, inbox).await;
            }
            _ => (submission.respond)(Err(ErrorReply::internal("a read was lined up with the changes"))),
        }
        None
    }

    /// Works on the file where blocking stalls nobody else.
    pub(super) async fn apart<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Database) -> T + Send + 'static,
    ) -> T {
        // See `Held::get`.
        let mut database = self.file.0.take().expect("the file is always back when somebody looks");
        let (database, done) = self
            .shared
            .env
            .blocking(move || {
                let done = work(&mut database);
                (database, done)
            })
            .await;
        self.file.0 = Some(database);
        done
    }

    pub(super) fn pipeline_and_file(&mut self) -> (&mut Pipeline, &Database) {
        (&mut self.pipeline, self.file.get())
    }

    pub(super) fn database(&mut self) -> &mut Database {
        self.file.get()
    }

    /// The file, for good.
    pub(super) const fn take_file(&mut self) -> Option<Database> {
        self.file.0.take()
    }

    /// Tells watchers where the subject is.
    pub(super) fn beacon(&mut self) {
        let state = self.file.get().state();
        let rev = self.pipeline.backlog().entries().last().map_or(state.rev, Entry::last_rev);
        let event = Event { rev, ..events::beacon(state) };
        self.shared.events.publish(self.subject, event);
    }

    pub(super) fn position(&mut self) -> Position {
        self.file.get().state().position()
    }

    pub(super) fn count_bytes(&mut self) {
        let bytes = self.file.get().file_bytes();
        self.local_bytes.set(bytes);
        self.hold.set_bytes(bytes);
        self.written_bytes = 0;
    }

    /// Keeps the companion small between snapshots.
    async fn checkpoint_if_large(&mut self) {
        if self.written_bytes < CHECKPOINT_LOOK_BYTES || self.publishing.is_some() {
            return;
        }
        self.written_bytes = 0;
        if self.file.get().wal_bytes() > CHECKPOINT_BYTES
            && let Err(error) = self.apart(Database::checkpoint).await
        {
            tracing::warn!(subject = %self.subject, %error, "cannot bring the write-ahead file into the local file");
        }
    }

    /// Turns away everybody who waits for something other than a change.
    pub(super) fn refuse_all(&mut self, reply: &ErrorReply) {
        self.pipeline.abandon_uploads();
        let writes = self.writes.drain(..).map(|write| write.respond);
        let flushes = self.flushes.drain(..).map(|flush| flush.respond).chain(self.handing_over.drain(..));
        for respond in writes.chain(flushes).chain(self.reads.drain()) {
            respond(Err(reply.clone()));
        }
    }

    /// Waits until every change is applied and in the bucket, or has failed. Nothing new is planned meanwhile.
    pub(super) async fn settle_changes(&mut self) -> Result<(), DatabaseError> {
        let moved = self.pipeline.waker();
        loop {
            self.advance()?;
            // What was acknowledged at a weaker level before the log came to its end is never shipped in it.
            if self.pipeline.is_settled() || self.shared.log.end().is_some() && self.pipeline.is_applied() {
                return Ok(());
            }
            let stalled = self.pipeline.stalled.is_some();
            if stalled && self.shared.has_log_ended() {
                // They are in the log; whoever goes on from it applies them.
                return Ok(());
            }
            self.shared.log.ship();
            tokio::select! {
                biased;
                () = moved.notified() => {}
                _ = self.shared.log.ended(), if self.shared.log.end().is_none() => {}
                () = tokio::time::sleep(STALL_PAUSE), if stalled => {}
            }
        }
    }
}
