//! A value with waiters.

use tokio::sync::Notify;

use crate::lock::Lock;

/// A value with waiters; each waiter has its own condition.
///
/// Waiters are notified in the order in which their waits began. In tokio's watch channel that order is random, so two
/// runs of a simulation would differ.
#[derive(Debug, Default)]
pub struct Observable<T> {
    value: Lock<T>,
    changed: Notify,
}

impl<T> Observable<T> {
    /// Wraps the initial value.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self { value: Lock::new(value), changed: Notify::new() }
    }

    /// The current value.
    #[must_use]
    pub fn get(&self) -> T
    where
        T: Clone,
    {
        self.value.lock().clone()
    }

    /// Replaces the value and notifies all waiters.
    pub fn set(&self, value: T) {
        *self.value.lock() = value;
        self.changed.notify_waiters();
    }

    /// Changes the value. If `change` returns true, all waiters are notified. The value is locked meanwhile.
    pub fn change(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let changed = change(&mut self.value.lock());
        if changed {
            self.changed.notify_waiters();
        }
        changed
    }

    /// Waits until the value satisfies `reached`, and returns it. A value that is set only for a moment may be missed.
    /// Cancelling the wait has no effect on the value.
    pub async fn wait_for(&self, mut reached: impl FnMut(&T) -> bool) -> T
    where
        T: Clone,
    {
        loop {
            // Created before the check: a change after the check is not missed.
            let changed = self.changed.notified();
            let matching = Some(self.value.lock()).filter(|value| reached(value)).map(|value| value.clone());
            match matching {
                Some(value) => return value,
                None => changed.await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::Tasks;

    /// A wait ends only when the value matches its condition.
    #[tokio::test(start_paused = true)]
    async fn observable_wait_ends_only_when_value_matches() {
        let observable = Observable::new(0);
        let wait = observable.wait_for(|value| *value > 1);
        let mut wait = std::pin::pin!(wait);
        assert!(is_wait_pending(&mut wait).await);
        assert!(observable.change(|value| std::mem::replace(value, 1) != 1));
        assert!(!observable.change(|value| std::mem::replace(value, 1) != 1));
        assert!(is_wait_pending(&mut wait).await);
        observable.set(2);
        assert_eq!(wait.await, 2);
        assert_eq!(observable.wait_for(|value| *value == 2).await, observable.get());
    }

    /// Returns whether the wait is still pending.
    async fn is_wait_pending(wait: &mut (impl Future<Output = i32> + Unpin)) -> bool {
        tokio::time::timeout(Duration::ZERO, wait).await.is_err()
    }

    /// Waiters are notified in the order in which their waits began.
    #[tokio::test(start_paused = true)]
    async fn observable_wakes_waiters_in_order_of_arrival() {
        let (observable, tasks) = (Arc::new(Observable::new(false)), Tasks::new());
        let notified = Arc::new(Lock::new(Vec::new()));
        for number in 0..50 {
            let (observable, notified) = (Arc::clone(&observable), Arc::clone(&notified));
            tasks.spawn("waits", async move {
                observable.wait_for(|value| *value).await;
                notified.lock().push(number);
            });
        }
        tokio::task::yield_now().await;
        observable.set(true);
        assert_eq!(tasks.finish(Duration::from_secs(5)).await, Ok(()));
        assert_eq!(*notified.lock(), (0..50).collect::<Vec<_>>());
    }
}
