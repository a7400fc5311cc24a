//! Sends gets: each by its caller as long as few are in flight, and those that had to wait by a task for each request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_protocol::data::{GetReply, GetRequest};
use dormouse_protocol::{Message, Op, Subject};
use tokio::runtime;
use tokio::sync::oneshot;

use super::flight::{Flight, Told};
use super::lane::{Get, Lane, Place, Wanted};
use crate::call::Inner;
use crate::error::Error;
use crate::subject::Handle;

/// A get that has waited this long, while no request came to its end, waits no longer for those in flight: they may bring
/// values from the bucket, or look for a server. Doubled each time, for what may itself be slow.
const PATIENCE: Duration = Duration::from_millis(20);

type Ticket = oneshot::Sender<Told>;

/// The ways of gets to all subjects to which some are on their way.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Only of subjects to which something is in flight. What waits is not bounded here: each get has a caller who holds it.
    lanes: BTreeMap<Subject, LaneAt>,
    next_place: Place,
}

#[derive(Debug, Default)]
struct LaneAt {
    lane: Lane<Ticket>,
    /// Where what waits is sent from: a caller may end where there is no runtime.
    runtime: Option<runtime::Handle>,
}

impl State {
    const fn place(&mut self) -> Place {
        self.next_place += 1;
        self.next_place
    }
}

/// How a get goes.
enum Entrance {
    /// At once, as the request of this place.
    Open(Place),
    /// With another request, in this place of those that wait.
    Closed { place: Place, ended: u64, told: oneshot::Receiver<Told> },
}

impl Lanes {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To how many subjects something is on its way.
    #[cfg(test)]
    pub(super) fn under_way(&self) -> usize {
        self.state().lanes.len()
    }

    /// A get goes at once, if it may; else `get` waits.
    fn enter(&self, subject: &Subject, get: impl FnOnce(Ticket) -> Get<Ticket>) -> Entrance {
        let mut state = self.state();
        let place = state.place();
        let Some(LaneAt { lane, runtime }) = state.lanes.get_mut(subject) else {
            let mut new = LaneAt::default();
            new.lane.begin();
            state.lanes.insert(subject.clone(), new);
            return Entrance::Open(place);
        };
        if lane.is_free() {
            lane.begin();
            return Entrance::Open(place);
        }
        let (ticket, told) = oneshot::channel();
        lane.push(place, get(ticket));
        *runtime = runtime::Handle::try_current().ok();
        Entrance::Closed { place, ended: lane.ended(), told }
    }

    /// The get at `place` waits no longer.
    fn leave(&self, subject: &Subject, place: Place) {
        let mut state = self.state();
        let left = state.lanes.get_mut(subject).and_then(|at| at.lane.leave(place));
        drop(state);
        drop(left);
    }

    /// Whoever waits at `place` has lost patience. `ended` is how many requests had ended when he was last here.
    fn is_stalled(&self, subject: &Subject, place: Place, ended: &mut u64) -> bool {
        let mut state = self.state();
        let now = state.place();
        let Some(LaneAt { lane, .. }) = state.lanes.get_mut(subject) else { return false };
        let is_stalled = lane.is_stalled(place, *ended);
        *ended = lane.ended();
        if is_stalled {
            lane.pass_by(now);
        }
        is_stalled
    }

    /// The request of `place` has come to its end, for all who had part in it. Whether others wait.
    fn end(&self, subject: &Subject, place: Place) -> bool {
        self.end_with(subject, place, |_| {})
    }

    /// The request of `place` was answered, but for `rest`. Whether anybody waits.
    fn answered(
        &self,
        subject: &Subject,
        place: Place,
        answered: usize,
        mut rest: Vec<(Place, Get<Ticket>)>,
    ) -> bool {
        self.end_with(subject, place, |lane| {
            // A caller drops his end and then leaves: he is seen to be gone, or finds his get where it waits.
            rest.retain(|(_, get)| !get.ticket.is_closed());
            lane.answered(answered, rest);
        })
    }

    /// Who sent the request of `place` is gone without a word. Those who wait hear nothing, and know so.
    fn abandon(&self, subject: &Subject, place: Place) {
        let mut abandoned = None;
        self.end_with(subject, place, |lane| abandoned = Some(lane.clear()));
        drop(abandoned);
    }

    /// A subject to which nothing is on its way then is forgotten.
    fn end_with(&self, subject: &Subject, place: Place, also: impl FnOnce(&mut Lane<Ticket>)) -> bool {
        let mut state = self.state();
        let Some(LaneAt { lane, .. }) = state.lanes.get_mut(subject) else { return false };
        lane.end(place);
        also(lane);
        let is_waiting = lane.is_waiting();
        if lane.is_idle() {
            state.lanes.remove(subject);
        }
        is_waiting
    }

    /// What goes next, and as the request of which place; `None` when nothing may, or nothing waits.
    fn next(
        &self,
        subject: &Subject,
        budget_bytes: usize,
    ) -> Option<(Place, Flight<Ticket>, Option<runtime::Handle>)> {
        let mut state = self.state();
        let place = state.place();
        let LaneAt { lane, runtime } = state.lanes.get_mut(subject)?;
        Some((place, Flight::new(lane.take(budget_bytes)?), runtime.clone()))
    }
}

impl Handle {
    /// The one message that `request` asks for, if there is one. A value may be left out that does not fit an answer of its
    /// own.
    pub(crate) async fn fetch(&self, request: &GetRequest) -> Result<Option<Message>, Error> {
        let expires_at = self.inner.env.boot().saturating_add(self.deadline);
        let entrance = match Wanted::of(request) {
            None => return self.fetch_alone(request, self.deadline).await,
            Some(wanted) => self.inner.lanes.enter(&self.subject, |ticket| Get {
                wanted,
                deadline: self.deadline,
                expires_at,
                ticket,
            }),
        };
        let (place, ended, told) = match entrance {
            Entrance::Open(place) => {
                let _alone = Alone { handle: self, place };
                return self.fetch_alone(request, self.deadline).await;
            }
            Entrance::Closed { place, ended, told } => (place, ended, told),
        };
        let mut waiting = Waiting { handle: self, place, ended, is_told: false };
        match waiting.wait(told, expires_at).await? {
            Told::Outcome(outcome) => outcome,
            Told::AskAlone => {
                let left = expires_at.saturating_sub(self.inner.env.boot());
                let outcome = self.fetch_alone(request, left).await;
                outcome.map_err(|error| error.to_caller(self.deadline))
            }
        }
    }

    /// By a request of its own.
    async fn fetch_alone(&self, request: &GetRequest, deadline: Duration) -> Result<Option<Message>, Error> {
        let reply: GetReply = self.inner.call(&self.subject, Op::Get, request, deadline).await?;
        Ok(reply.messages.into_iter().next())
    }
}

/// A get that its caller sends, to its end or until he drops it.
struct Alone<'a> {
    handle: &'a Handle,
    place: Place,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        let Handle { inner, subject, .. } = self.handle;
        if inner.lanes.end(subject, self.place) {
            send_waiting(inner, subject);
        }
    }
}

/// A get that waits, until it is told something or dropped.
struct Waiting<'a> {
    handle: &'a Handle,
    place: Place,
    /// How many requests had ended when it was last looked at.
    ended: u64,
    is_told: bool,
}

impl Waiting<'_> {
    /// Waits for what the request tells with which the get goes.
    async fn wait(&mut self, mut told: oneshot::Receiver<Told>, expires_at: Duration) -> Result<Told, Error> {
        let Handle { inner, subject, deadline, .. } = self.handle;
        let mut patience = PATIENCE;
        loop {
            if inner.tasks.stop().is_given() {
                return Err(Error::Closed);
            }
            let left = expires_at.saturating_sub(inner.env.boot());
            match tokio::time::timeout(left.min(patience), &mut told).await {
                Ok(told) => {
                    self.is_told = true;
                    // Whoever sent it ended without a word, which it does when its runtime is shut down.
                    return told.map_err(|_| Error::Closed);
                }
                Err(_) if left <= patience => {
                    return Err(Error::Deadline { deadline: *deadline, last: None });
                }
                Err(_) => {
                    if inner.lanes.is_stalled(subject, self.place, &mut self.ended) {
                        send_waiting(inner, subject);
                    }
                    patience = patience.saturating_mul(2);
                }
            }
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.is_told {
            self.handle.inner.lanes.leave(&self.handle.subject, self.place);
        }
    }
}

/// Sends what waits and may go. Called whenever that may have become true.
fn send_waiting(inner: &Arc<Inner>, subject: &Subject) {
    while let Some((place, flight, runtime)) = inner.lanes.next(subject, inner.budget_bytes()) {
        // From here on, so that also where there is no runtime no lane is left with what is not in flight.
        let shared = Shared { inner: Arc::clone(inner), subject: subject.clone(), place, is_done: false };
        let Some(runtime) = runtime else { continue };
        let _context = runtime.enter();
        inner.tasks.spawn("gets", shared.run(flight));
    }
}

/// Sends one request for those who waited. Should it not come to an end, with its runtime or by a panic, whoever waits
/// hears of it, and the next get finds a free way all the same.
struct Shared {
    inner: Arc<Inner>,
    subject: Subject,
    place: Place,
    is_done: bool,
}

impl Shared {
    async fn run(mut self, flight: Flight<Ticket>) {
        let answer = self.ask(&flight).await;
        let settled = flight.settle(answer);
        let answered = settled.told.len();
        for (ticket, told) in settled.told {
            // Who has dropped the get does not want to know.
            let _ = ticket.send(told);
        }
        self.is_done = true;
        if self.inner.lanes.answered(&self.subject, self.place, answered, settled.rest) {
            send_waiting(&self.inner, &self.subject);
        }
    }

    async fn ask(&self, flight: &Flight<Ticket>) -> Result<GetReply, Error> {
        let deadline = flight.last_expiry().saturating_sub(self.inner.env.boot());
        let request = flight.request();
        tokio::select! {
            // An answer that comes at the last moment is still an answer.
            biased;
            answer = self.inner.call(&self.subject, Op::Get, &request, deadline) => answer,
            () = self.inner.tasks.stop().given() => Err(Error::Closed),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if !self.is_done {
            self.inner.lanes.abandon(&self.subject, self.place);
        }
    }
}
