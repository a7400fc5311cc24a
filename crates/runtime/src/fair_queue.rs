//! A queue that serves its users in turn: deficit round robin (M. Shreedhar and G. Varghese, "Efficient Fair Queuing using
//! Deficit Round Robin", SIGCOMM 1995).
//!
//! Each user has a queue of its own, in order of arrival. In its turn a user gets one *quantum* of credit, and its items
//! leave as long as the credit covers their cost. So a user with many or large items delays another user by at most one
//! turn. The order is that of the keys: it has no randomness and does not depend on the time.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

/// The largest cost of an item, in quanta: an item never waits for more turns than this.
const MAX_TURNS: u64 = 16;

/// A queue of items `T` of users `K`. Its owner bounds the number of items.
#[derive(Debug)]
pub struct FairQueue<K, T> {
    quantum: u64,
    /// The users with items.
    users: BTreeMap<K, UserQueue<T>>,
    /// The user whose turn it is.
    turn: Option<K>,
    len: usize,
}

#[derive(Debug)]
struct UserQueue<T> {
    items: VecDeque<(u64, T)>,
    credit: u64,
}

impl<K: Ord + Copy, T> FairQueue<K, T> {
    /// An empty queue. `quantum`: the credit of a turn, in the unit of the costs; at least 1.
    #[must_use]
    pub const fn new(quantum: u64) -> Self {
        let quantum = if quantum == 0 { 1 } else { quantum };
        Self { quantum, users: BTreeMap::new(), turn: None, len: 0 }
    }

    /// Queues an item of `user` behind its earlier items. A cost above 16 quanta counts as 16 quanta, a cost of 0 as 1.
    pub fn push(&mut self, user: K, cost: u64, item: T) {
        let cost = cost.clamp(1, self.quantum.saturating_mul(MAX_TURNS));
        let queue = self.users.entry(user).or_insert_with(|| UserQueue { items: VecDeque::new(), credit: 0 });
        queue.items.push_back((cost, item));
        self.len += 1;
    }

    /// The next item and its user; `None` if the queue is empty. Examines each user with items at most 17 times.
    pub fn pop(&mut self) -> Option<(K, T)> {
        loop {
            let user = match self.turn {
                Some(user) if self.users.contains_key(&user) => user,
                _ => self.begin_next_turn()?,
            };
            let queue = self.users.get_mut(&user)?;
            let cost = queue.items.front().map_or(0, |(cost, _)| *cost);
            if cost > queue.credit {
                self.begin_next_turn()?;
                continue;
            }
            queue.credit -= cost;
            let (_, item) = queue.items.pop_front()?;
            self.len -= 1;
            if queue.items.is_empty() {
                // A user without items keeps no credit, so it cannot save credit for a burst. The key stays the position
                // of the turn.
                self.users.remove(&user);
            }
            return Some((user, item));
        }
    }

    /// Gives the turn and a quantum to the next user with items, in the order of the keys.
    fn begin_next_turn(&mut self) -> Option<K> {
        let later = self.turn.and_then(|turn| {
            self.users.range((Bound::Excluded(turn), Bound::Unbounded)).next().map(|(user, _)| *user)
        });
        let user = later.or_else(|| self.users.keys().next().copied())?;
        self.turn = Some(user);
        if let Some(queue) = self.users.get_mut(&user) {
            queue.credit = queue.credit.saturating_add(self.quantum);
        }
        Some(user)
    }

    /// Number of items.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no item.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of items of `user`.
    #[must_use]
    pub fn len_of(&self, user: K) -> usize {
        self.users.get(&user).map_or(0, |queue| queue.items.len())
    }

    /// Removes all items, and returns them in order of users and arrival.
    pub fn drain(&mut self) -> impl Iterator<Item = (K, T)> + use<K, T> {
        self.len = 0;
        std::mem::take(&mut self.users)
            .into_iter()
            .flat_map(|(user, queue)| queue.items.into_iter().map(move |(_, item)| (user, item)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pop_users(queue: &mut FairQueue<u32, u64>, number: usize) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop()).take(number).map(|(user, _)| user).collect()
    }

    /// Two users get equal shares of the cost, whatever the number and the size of their items.
    #[test]
    fn fair_queue_serves_equal_cost_to_each_user() {
        let mut queue = FairQueue::new(100);
        for item in 0..1_000 {
            queue.push(1, 100, item);
            queue.push(2, 25, item);
        }
        let users = pop_users(&mut queue, 500);
        let cost = |user| users.iter().filter(|one| **one == user).count() * if user == 1 { 100 } else { 25 };
        assert!(cost(1).abs_diff(cost(2)) <= 100, "{} and {}", cost(1), cost(2));
    }

    /// An item of an idle user waits for at most one turn of each other user.
    #[test]
    fn fair_queue_new_user_waits_for_one_turn() {
        let mut queue = FairQueue::new(10);
        for user in [1, 3, 5] {
            for item in 0..10_000 {
                queue.push(user, 10, item);
            }
        }
        pop_users(&mut queue, 7);
        queue.push(4, 10, 0);
        let before = pop_users(&mut queue, 10).iter().position(|user| *user == 4);
        assert!(before.is_some_and(|position| position <= 3), "{before:?}");
    }

    /// The items of one user leave in order of arrival, and an item above the quantum leaves too.
    #[test]
    fn fair_queue_keeps_order_within_a_user() {
        let mut queue = FairQueue::new(8);
        for (item, cost) in [(0, 1), (1, u64::MAX), (2, 0), (3, 30)] {
            queue.push(7_u32, cost, item);
        }
        queue.push(8, 1, 9);
        let mut items: Vec<u64> = std::iter::from_fn(|| queue.pop()).map(|(_, item)| item).collect();
        items.retain(|item| *item != 9);
        assert_eq!(items, [0, 1, 2, 3]);
        assert!(queue.is_empty() && queue.pop().is_none());
    }

    /// A user that was idle has no saved credit.
    #[test]
    fn fair_queue_idle_user_saves_no_credit() {
        let mut queue = FairQueue::new(100);
        for item in 0..50 {
            queue.push(1, 1, item);
            pop_users(&mut queue, 1);
        }
        for item in 0..1_000 {
            queue.push(1, 50, item);
            queue.push(2, 50, item);
        }
        let users = pop_users(&mut queue, 8);
        assert!(users.iter().filter(|user| **user == 1).count() <= 4, "{users:?}");
    }

    /// Lengths count the items of all users and of one, and a drain leaves none.
    #[test]
    fn fair_queue_counts_and_drains_items() {
        let mut queue = FairQueue::new(1);
        queue.push(2, 1, 20);
        queue.push(1, 1, 10);
        queue.push(2, 1, 21);
        assert_eq!((queue.len(), queue.len_of(2), queue.len_of(9)), (3, 2, 0));
        assert_eq!(queue.drain().collect::<Vec<_>>(), [(1, 10), (2, 20), (2, 21)]);
        assert!(queue.is_empty());
    }
}
