//! The ids of changes. A change keeps its id until it has ended, and no id runs far ahead of an unresolved one.
//!
//! A subject remembers the results of a session's last 1,024 changes.
//! A change whose id is older than these could not be told from one that was executed before.
//! So a client sends no counter that is 512 or more above its oldest unresolved one of the subject: such a
//! change waits for its turn. A destroy is alone in flight, because the subject that begins after it knows
//! only the highest counter of each session.

mod queue;

use std::collections::BTreeMap;
use std::sync::Arc;

use dormouse_protocol::{RequestId, SessionId, Subject};
use dormouse_runtime::Lock;
use tokio::sync::oneshot;

use self::queue::IdQueue;
pub(crate) use self::queue::IdUse;

/// The ids of one session.
#[derive(Debug, Clone)]
pub(crate) struct RequestIds(Arc<SharedIds>);

#[derive(Debug)]
struct SharedIds {
    session: SessionId,
    state: Lock<IdState>,
}

#[derive(Debug, Default)]
struct IdState {
    /// Only subjects with changes that are unresolved or wait for an id.
    subjects: BTreeMap<Subject, IdQueue<oneshot::Sender<HeldId>>>,
    /// Above each counter of the subjects that were removed.
    next_counter: u64,
}

impl RequestIds {
    /// The ids of a new session.
    pub(crate) fn new(session: SessionId) -> Self {
        Self(Arc::new(SharedIds { session, state: Lock::default() }))
    }

    /// The id of the next change of `subject`, in the order of the calls. Waits as long as the id would run
    /// too far ahead of an unresolved one. Cancelling the call gives up the turn.
    pub(crate) async fn next(&self, subject: &Subject, kind: IdUse) -> HeldId {
        loop {
            let (ticket, granted) = oneshot::channel();
            let drawn = {
                let mut state = self.0.state.lock();
                let first = state.next_counter;
                let queue = state.subjects.entry(subject.clone()).or_insert_with(|| IdQueue::new(first));
                queue.draw(kind, ticket)
            };
            let turn = match drawn {
                Ok(counter) => return self.held(subject, counter),
                Err(turn) => TurnGuard { ids: self, subject, turn },
            };
            // The queue keeps the sender until it sends or the turn ends, so the receiver gets the id.
            let granted = granted.await;
            drop(turn);
            if let Ok(id) = granted {
                return id;
            }
        }
    }

    fn held(&self, subject: &Subject, counter: u64) -> HeldId {
        let id = RequestId { session: self.0.session, counter };
        HeldId { ids: self.clone(), subject: subject.clone(), id }
    }

    /// Changes the queue of a subject and passes on the ids that this makes free.
    fn update(
        &self,
        subject: &Subject,
        change: impl FnOnce(&mut IdQueue<oneshot::Sender<HeldId>>) -> Vec<(oneshot::Sender<HeldId>, u64)>,
    ) {
        let granted = {
            let mut state = self.0.state.lock();
            let Some(queue) = state.subjects.get_mut(subject) else { return };
            let granted = change(queue);
            if queue.is_idle() {
                let next = queue.next_counter();
                state.subjects.remove(subject);
                state.next_counter = state.next_counter.max(next);
            }
            granted
        };
        for (ticket, counter) in granted {
            // If the call has ended meanwhile, the id is resolved when it is dropped here.
            drop(ticket.send(self.held(subject, counter)));
        }
    }

    /// How many subjects have unresolved changes.
    #[cfg(test)]
    fn in_progress(&self) -> usize {
        self.0.state.lock().subjects.len()
    }
}

/// The id of an unresolved change. The change is resolved when this is dropped: then the client sends it no
/// more.
#[derive(Debug)]
pub(crate) struct HeldId {
    ids: RequestIds,
    subject: Subject,
    id: RequestId,
}

impl HeldId {
    pub(crate) const fn id(&self) -> RequestId {
        self.id
    }
}

impl Drop for HeldId {
    fn drop(&mut self) {
        let counter = self.id.counter;
        self.ids.update(&self.subject, |queue| queue.resolve(counter, oneshot::Sender::is_closed));
    }
}

/// The place of a waiting change in the queue.
struct TurnGuard<'a> {
    ids: &'a RequestIds,
    subject: &'a Subject,
    turn: u64,
}

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        self.ids.update(self.subject, |queue| queue.leave(self.turn, oneshot::Sender::is_closed));
    }
}

#[cfg(test)]
mod tests;
