//! Sends what waits, with one task per subject that has something on its way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::data::{SetItem, SetOutcome, SetReply, SetResult};
use dormouse_protocol::{Op, Route, Subject};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{Notify, oneshot};

use super::flight::{Flight, Told};
use super::queue::{Company, Entry, Queue};
use crate::call::{Content, Inner};
use crate::error::{Error, IndeterminateCause};
use crate::exchange::whole;
use crate::source::ValueSource;
use crate::subject::Handle;

/// What becomes of the sets of one call: of each, or of all together.
pub(crate) type Outcome = Result<Vec<Result<SetResult, Error>>, Error>;

type Ticket = oneshot::Sender<Outcome>;

/// One subject may hold this part of what all may together, so that one whose server is away leaves room for others.
const PART_OF_ONE_SUBJECT: usize = 4;

/// The sets of all subjects that are on their way.
#[derive(Debug)]
pub(crate) struct Writers {
    limit_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Only of subjects that have something on its way.
    lanes: BTreeMap<Subject, Lane>,
    used_bytes: usize,
}

/// The way to one subject.
#[derive(Debug, Default)]
struct Lane {
    queue: Queue<Ticket>,
    /// Bytes of what waits and of what is in flight.
    used_bytes: usize,
    /// The writer wakes up at this time, or when the request in flight ends.
    wakes_at: Option<Duration>,
    wake: Arc<Notify>,
}

impl Writers {
    /// Nothing is on its way, and no more than `limit_bytes` may be.
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many subjects have something on its way, and how many bytes.
    #[cfg(test)]
    pub(super) fn under_way(&self) -> (usize, usize) {
        let state = self.state();
        (state.lanes.len(), state.used_bytes)
    }

    /// Takes the entry among those that wait; `Some` is the wake-up call of the writer that must be started.
    fn push(&self, subject: &Subject, entry: Entry<Ticket>) -> Result<Option<Arc<Notify>>, Error> {
        let mut state = self.state();
        let used_bytes = state.lanes.get(subject).map_or(0, |lane| lane.used_bytes);
        let size_bytes = entry.size_bytes;
        let limit_of_one = self.limit_bytes / PART_OF_ONE_SUBJECT;
        // What comes alone is never refused here, however large it is: else it could never be sent.
        if (used_bytes > 0 && used_bytes + size_bytes > limit_of_one)
            || (state.used_bytes > 0 && state.used_bytes + size_bytes > self.limit_bytes)
        {
            return Err(Error::QueueFull {
                limit_bytes: if used_bytes > 0 { limit_of_one } else { self.limit_bytes },
            });
        }
        state.used_bytes += size_bytes;
        let is_new = !state.lanes.contains_key(subject);
        let lane = state.lanes.entry(subject.clone()).or_default();
        lane.used_bytes += size_bytes;
        let expires_at = entry.expires_at;
        lane.queue.push(entry);
        if is_new {
            return Ok(Some(Arc::clone(&lane.wake)));
        }
        if lane.wakes_at.is_some_and(|wakes_at| expires_at < wakes_at) {
            lane.wake.notify_one();
        }
        Ok(None)
    }

    /// What goes next; `None` when there is nothing: then the subject is forgotten, and whoever comes starts a writer.
    fn next(&self, subject: &Subject, now: Duration, budget_bytes: usize) -> Option<Flight<Ticket>> {
        self.expire(subject, now);
        let mut state = self.state();
        let lane = state.lanes.get_mut(subject)?;
        let entries = lane.queue.take(budget_bytes);
        if entries.is_empty() {
            state.lanes.remove(subject);
            return None;
        }
        let flight = Flight::new(entries);
        lane.wakes_at = Some(flight.last_expiry());
        Some(flight)
    }

    /// When somebody has waited long enough before the request in flight ends by itself.
    fn next_expiry(&self, subject: &Subject, flight: &Flight<Ticket>) -> Option<Duration> {
        let last = flight.last_expiry();
        let mut state = self.state();
        let lane = state.lanes.get_mut(subject)?;
        let queued = lane.queue.next_expiry().filter(|expiry| *expiry < last);
        let next = queued.into_iter().chain(flight.next_expiry()).min();
        lane.wakes_at = Some(next.unwrap_or(last));
        next
    }

    /// Tells those who have waited long enough. Nothing of theirs was sent.
    fn expire(&self, subject: &Subject, now: Duration) {
        let mut expired = Vec::new();
        {
            let mut state = self.state();
            if let Some(lane) = state.lanes.get_mut(subject) {
                expired = lane.queue.expire(now);
            }
        }
        let size_bytes = expired.iter().map(|entry| entry.size_bytes).sum();
        tell(
            expired.into_iter().map(|Entry { deadline, ticket, .. }| {
                (ticket, Err(Error::Deadline { deadline, last: None }))
            }),
        );
        self.release(subject, size_bytes);
    }

    fn put_back(&self, subject: &Subject, again: Vec<(u64, Entry<Ticket>)>) {
        let at_most = again.len() / 2;
        let mut state = self.state();
        if let Some(lane) = state.lanes.get_mut(subject) {
            lane.queue.put_back(again, at_most);
        }
    }

    /// Gives up whatever is on its way to the subject: who sent it is gone. Those who wait hear nothing, and know so.
    fn abandon(&self, subject: &Subject) {
        let lane = {
            let mut state = self.state();
            let lane = state.lanes.remove(subject);
            state.used_bytes -= lane.as_ref().map_or(0, |lane| lane.used_bytes);
            lane
        };
        drop(lane);
    }

    fn release(&self, subject: &Subject, size_bytes: usize) {
        let mut state = self.state();
        state.used_bytes -= size_bytes;
        if let Some(lane) = state.lanes.get_mut(subject) {
            lane.used_bytes -= size_bytes;
        }
    }
}

fn tell(told: impl IntoIterator<Item = Told<Ticket>>) {
    for (ticket, outcome) in told {
        // Who has dropped the acknowledgement does not want to know.
        let _ = ticket.send(outcome);
    }
}

impl Inner {
    /// Has `entry` sent after everything for `subject` that was queued before it, and tells what became of it.
    ///
    /// # Errors
    /// [`Error::QueueFull`]; [`Error::Closed`].
    pub(crate) fn queue(
        self: &Arc<Self>,
        subject: &Subject,
        entry: Entry<()>,
    ) -> Result<oneshot::Receiver<Outcome>, Error> {
        if self.tasks.stop().is_given() {
            return Err(Error::Closed);
        }
        let (ticket, outcome) = oneshot::channel();
        let Entry { sets, company, level, deadline, size_bytes, .. } = entry;
        let expires_at = match company {
            // An upload has a deadline for each step.
            Company::Large => Duration::MAX,
            Company::Shared | Company::Alone | Company::Atomic => self.env.boot().saturating_add(deadline),
        };
        let entry = Entry { sets, company, level, deadline, expires_at, size_bytes, ticket };
        if let Some(wake) = self.writers.push(subject, entry)? {
            // From here on, so that also a call outside a runtime, which ends here, leaves no lane without a writer.
            let writer = Writer { inner: Arc::clone(self), subject: subject.clone(), is_done: false };
            self.tasks.spawn("sets", writer.run(wake));
        }
        Ok(outcome)
    }
}

/// Sends everything that waits for a subject. Should it not come to an end, with its runtime or by a panic, the next set
/// finds a free way all the same.
struct Writer {
    inner: Arc<Inner>,
    subject: Subject,
    is_done: bool,
}

impl Writer {
    /// Request after request.
    async fn run(mut self, wake: Arc<Notify>) {
        loop {
            let budget_bytes = self.inner.budget_bytes();
            let now = self.inner.env.boot();
            let Some(flight) = self.inner.writers.next(&self.subject, now, budget_bytes) else {
                // The lane went with its last set; another one may be there by now.
                self.is_done = true;
                return;
            };
            send(&self.inner, &self.subject, &wake, flight).await;
            // Those who have just been told may have more to write: what they queue at once goes along.
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.is_done {
            self.inner.writers.abandon(&self.subject);
        }
    }
}

/// Sends one request, and tells its callers what became of it, each in time.
async fn send(inner: &Arc<Inner>, subject: &Subject, wake: &Notify, mut flight: Flight<Ticket>) {
    let size_bytes = flight.size_bytes();
    let deadline = flight.last_expiry().saturating_sub(inner.env.boot());
    let upload = flight.large().map(|item| upload(inner, subject, &flight, item));
    let flight = Mutex::new(flight);
    let content = Sets { inner, flight: &flight };
    let answer = {
        let mut call = std::pin::pin!(async {
            match upload {
                Some(upload) => upload.await,
                None => inner.call_with(subject, Op::Set, &content, deadline, whole).await,
            }
        });
        loop {
            let next = inner.writers.next_expiry(subject, &lock(&flight));
            tokio::select! {
                // An answer that comes at the last moment is still an answer.
                biased;
                answer = &mut call => break Some(answer),
                () = wake.notified() => {}
                () = until(inner, next) => {}
            }
            let now = inner.env.boot();
            inner.writers.expire(subject, now);
            tell(lock(&flight).expire(now));
            if lock(&flight).is_abandoned() {
                break None;
            }
        }
    };
    let flight = flight.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut left_bytes = 0;
    if let Some(answer) = answer {
        let settled = flight.settle(answer);
        tell(settled.told);
        left_bytes = settled.again.iter().map(|(_, entry)| entry.size_bytes).sum();
        inner.writers.put_back(subject, settled.again);
    }
    inner.writers.release(subject, size_bytes - left_bytes);
}

/// Writes one set whose value goes up piece by piece, in its turn.
fn upload(
    inner: &Arc<Inner>,
    subject: &Subject,
    flight: &Flight<Ticket>,
    mut item: SetItem,
) -> BoxFuture<'static, Result<SetReply, Error>> {
    let (deadline, level) = flight.terms();
    let handle = Handle { inner: Arc::clone(inner), subject: subject.clone(), deadline, level };
    async move {
        let value = item.value.take().unwrap_or_default();
        let result = handle.set_from(item, ValueSource::bytes(value)).await?;
        Ok(SetReply { results: vec![SetOutcome::Ok(result)] })
    }
    .boxed()
}

async fn until(inner: &Inner, time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time.saturating_sub(inner.env.boot())).await,
        None => std::future::pending().await,
    }
}

fn lock<T>(flight: &Mutex<Flight<T>>) -> MutexGuard<'_, Flight<T>> {
    flight.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a call sends whose content is a flight.
struct Sets<'a> {
    inner: &'a Inner,
    flight: &'a Mutex<Flight<Ticket>>,
}

impl Content for Sets<'_> {
    fn next_try(&self, route: &Route) -> Bytes {
        lock(self.flight).next_try(route, || self.inner.next_request())
    }

    fn failed(&self, doubt: Option<&IndeterminateCause>) {
        lock(self.flight).failed(doubt.cloned());
    }
}
