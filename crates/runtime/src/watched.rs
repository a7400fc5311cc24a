//! A value that others wait on.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// A value that others wait on, each for what it wants to see.
///
/// Whoever waits is woken in the order in which the waits began. Tokio's watch channel draws that order by lot, so two
/// runs of a simulation would differ.
#[derive(Debug, Default)]
pub struct Watched<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T> Watched<T> {
    /// A value to begin with.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self { value: Mutex::new(value), changed: Notify::new() }
    }

    /// The value as it is now.
    #[must_use]
    pub fn get(&self) -> T
    where
        T: Clone,
    {
        self.lock().clone()
    }

    /// Puts another value in its place, and wakes whoever waits.
    pub fn set(&self, value: T) {
        *self.lock() = value;
        self.changed.notify_waiters();
    }

    /// Changes the value, and wakes whoever waits if `change` says that it did. Nobody sees the value meanwhile.
    pub fn change(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let changed = change(&mut self.lock());
        if changed {
            self.changed.notify_waiters();
        }
        changed
    }

    /// Waits until the value is as `reached` wants it, and returns it so. What it is only for a moment may be missed.
    /// Cancelling the wait leaves nothing behind.
    pub async fn wait_for(&self, mut reached: impl FnMut(&T) -> bool) -> T
    where
        T: Clone,
    {
        loop {
            // Made before the look: what comes after the look is not missed.
            let changed = self.changed.notified();
            let found = Some(self.lock()).filter(|value| reached(value)).map(|value| value.clone());
            match found {
                Some(value) => return value,
                None => changed.await,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        // What is put in or changed is for the caller to keep whole.
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::Tasks;

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_when_the_value_is_reached_and_not_before() {
        let watched = Watched::new(0);
        let wait = watched.wait_for(|value| *value > 1);
        let mut wait = std::pin::pin!(wait);
        assert!(still_waits(&mut wait).await);
        assert!(watched.change(|value| std::mem::replace(value, 1) != 1));
        assert!(!watched.change(|value| std::mem::replace(value, 1) != 1));
        assert!(still_waits(&mut wait).await);
        watched.set(2);
        assert_eq!(wait.await, 2);
        assert_eq!(watched.wait_for(|value| *value == 2).await, watched.get());
    }

    async fn still_waits(wait: &mut (impl Future<Output = i32> + Unpin)) -> bool {
        tokio::time::timeout(Duration::ZERO, wait).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_are_woken_in_the_order_in_which_they_came() {
        let (watched, tasks) = (Arc::new(Watched::new(false)), Tasks::new());
        let woken = Arc::new(Mutex::new(Vec::new()));
        for number in 0..50 {
            let (watched, woken) = (Arc::clone(&watched), Arc::clone(&woken));
            tasks.spawn("waits", async move {
                watched.wait_for(|value| *value).await;
                woken.lock().unwrap().push(number);
            });
        }
        tokio::task::yield_now().await;
        watched.set(true);
        assert_eq!(tasks.finish(Duration::from_secs(5)).await, Ok(()));
        assert_eq!(*woken.lock().unwrap(), (0..50).collect::<Vec<_>>());
    }
}
