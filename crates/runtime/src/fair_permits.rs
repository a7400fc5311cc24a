//! Permits that users share: each may hold half of what the others leave, and those who wait get permits in turn.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::Lock;

/// See the [module](self). Cloning shares them.
#[derive(Debug, Clone)]
pub struct FairPermits(Arc<Lock<PermitState>>);

#[derive(Debug)]
struct PermitState {
    free: usize,
    /// Permits of each user that holds some.
    held: BTreeMap<u32, usize>,
    /// The users that wait, each in order of arrival. While a permit is free, none of them may hold it.
    waiting: BTreeMap<u32, VecDeque<oneshot::Sender<FairPermit>>>,
    /// The user that had the last turn.
    turn: u32,
}

/// One permit. A drop returns it.
#[derive(Debug)]
pub struct FairPermit {
    /// `None` if it was never given out.
    permits: Option<FairPermits>,
    user: u32,
}

impl FairPermits {
    /// So many free permits.
    #[must_use]
    pub fn new(permits: usize) -> Self {
        Self(Arc::new(Lock::new(PermitState {
            free: permits,
            held: BTreeMap::new(),
            waiting: BTreeMap::new(),
            turn: 0,
        })))
    }

    /// A permit for `user`; `None` if none is free, or if the user holds its share.
    #[must_use]
    pub fn try_acquire(&self, user: u32) -> Option<FairPermit> {
        let mut state = self.0.lock();
        state.may_hold(user).then(|| self.give(&mut state, user))
    }

    /// Waits for a permit for `user`. Cancelling the call takes none.
    pub async fn acquire(&self, user: u32) -> FairPermit {
        let granted = {
            let mut state = self.0.lock();
            if state.may_hold(user) {
                return self.give(&mut state, user);
            }
            let (grant, granted) = oneshot::channel();
            state.waiting.entry(user).or_default().push_back(grant);
            granted
        };
        granted.await.expect("a waiting user is removed only with a permit for it")
    }

    /// How many callers of `user` wait for a permit, and how many of all users. Some of them may be gone. The cost grows
    /// with the number of users that wait.
    #[must_use]
    pub fn waiting(&self, user: u32) -> (usize, usize) {
        let state = self.0.lock();
        let own = state.waiting.get(&user).map_or(0, VecDeque::len);
        (own, state.waiting.values().map(VecDeque::len).sum())
    }

    /// The number of free permits.
    #[must_use]
    pub fn free(&self) -> usize {
        self.0.lock().free
    }

    fn give(&self, state: &mut PermitState, user: u32) -> FairPermit {
        state.free -= 1;
        *state.held.entry(user).or_default() += 1;
        FairPermit { permits: Some(self.clone()), user }
    }

    /// Takes a permit of `user` back, and gives each free permit to the next user that may hold it.
    fn take_back(&self, user: u32) {
        let mut state = self.0.lock();
        state.returned(user);
        while let Some((next, grant)) = state.next_turn() {
            let permit = self.give(&mut state, next);
            if let Err(mut unused) = grant.send(permit) {
                // Its caller is gone. The drop of the permit must not take the lock again.
                unused.permits = None;
                state.returned(next);
            }
        }
    }
}

impl PermitState {
    /// Whether a permit is free for `user`: it holds less than half of what the others leave, or none.
    fn may_hold(&self, user: u32) -> bool {
        let own = self.held.get(&user).copied().unwrap_or_default();
        // The permits that the others do not hold are the free ones and its own.
        self.free > 0 && own < usize::midpoint(self.free, own).max(1)
    }

    fn returned(&mut self, user: u32) {
        self.free += 1;
        if let Some(held) = self.held.get_mut(&user) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&user);
            }
        }
    }

    /// Removes the first caller of the next waiting user that may hold a permit. Passes over no more users than hold a
    /// permit.
    fn next_turn(&mut self) -> Option<(u32, oneshot::Sender<FairPermit>)> {
        if self.free == 0 {
            return None;
        }
        let later = self.waiting.range((Bound::Excluded(self.turn), Bound::Unbounded));
        let mut turns = later.chain(self.waiting.range(..=self.turn)).map(|(user, _)| *user);
        let user = turns.find(|user| self.may_hold(*user))?;
        let callers = self.waiting.get_mut(&user)?;
        let grant = callers.pop_front()?;
        if callers.is_empty() {
            self.waiting.remove(&user);
        }
        self.turn = user;
        Some((user, grant))
    }
}

impl Drop for FairPermit {
    fn drop(&mut self) {
        if let Some(permits) = self.permits.take() {
            permits.take_back(self.user);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    const GREEDY: u32 = 1;
    const POLITE: u32 = 2;

    /// The result of a call, if it is complete.
    fn poll<F: Future>(call: &mut Pin<Box<F>>) -> Option<F::Output> {
        match call.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }

    /// A user may hold half of what others leave, and every user one as long as a permit is free.
    #[test]
    fn fair_permits_leave_half_to_others() {
        let permits = FairPermits::new(8);
        let take = |user| std::iter::from_fn(|| permits.try_acquire(user)).collect::<Vec<_>>();
        let first = take(GREEDY);
        let second = take(POLITE);
        let rest: Vec<_> = (3..9).flat_map(take).collect();
        assert_eq!((first.len(), second.len(), rest.len(), permits.free()), (4, 2, 2, 0));
        drop((first, second, rest));
        assert_eq!(permits.free(), 8);
        assert_eq!(take(POLITE).len(), 4, "a returned permit leaves no trace");
    }

    /// A user whose calls wait gets one permit a turn, and another user does not wait behind them.
    #[test]
    fn fair_permits_are_granted_in_turn() {
        let permits = FairPermits::new(2);
        let held = [permits.try_acquire(GREEDY).unwrap(), permits.try_acquire(3).unwrap()];
        let mut greedy: Vec<_> = (0..9).map(|_| Box::pin(permits.acquire(GREEDY))).collect();
        assert!(greedy.iter_mut().all(|call| poll(call).is_none()));
        let mut polite = Box::pin(permits.acquire(POLITE));
        assert!(poll(&mut polite).is_none());
        drop(held);
        let granted: Vec<_> = greedy.iter_mut().filter_map(poll).collect();
        assert_eq!((granted.len(), permits.free()), (1, 0));
        drop(poll(&mut polite).expect("it waits for one turn of the other"));
        assert_eq!(permits.free(), 1, "the other user holds its share");
    }

    /// A call that was cancelled keeps no permit, whether or not its turn had come.
    #[test]
    fn fair_permits_cancelled_call_keeps_none() {
        let permits = FairPermits::new(1);
        let held = permits.try_acquire(GREEDY).unwrap();
        let mut calls: Vec<_> = (0..3).map(|_| Box::pin(permits.acquire(POLITE))).collect();
        assert!(calls.iter_mut().all(|call| poll(call).is_none()));
        drop(calls.remove(0));
        drop(held);
        assert_eq!(permits.free(), 0, "granted to the second call, which has not seen it");
        drop(calls.remove(0));
        assert!(poll(&mut calls[0]).is_some());
        assert_eq!(permits.free(), 1);
    }
}
