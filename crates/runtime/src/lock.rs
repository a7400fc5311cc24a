//! A mutex without poisoning.

#![expect(clippy::disallowed_types)] // The one place that handles poisoning.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
#[cfg(feature = "logging")]
use std::time::Duration;

/// A mutex that stays usable after a panic of its holder.
///
/// A panic ends only its own task ([`Tasks`](crate::Tasks)). With a poisoned mutex it would also end each other task
/// that shares the value. In return, each holder completes its change of the value before it calls code that can panic.
#[derive(Debug, Default)]
pub struct Lock<T: ?Sized>(Mutex<T>);

impl<T> Lock<T> {
    /// Wraps the value.
    #[must_use]
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Returns the value.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: ?Sized> Lock<T> {
    /// Blocks the thread until the value is free, and locks it until the guard is dropped.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the value if it is free. `None`: another holder has it.
    #[must_use]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// Unlocks the value, waits for a notification of `changed`, and locks the value again.
pub(crate) fn wait<'a, T>(guard: MutexGuard<'a, T>, changed: &Condvar) -> MutexGuard<'a, T> {
    changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// Unlocks the value, and waits until `condition` is false after a notification of `changed`, for at most `limit`.
#[cfg(feature = "logging")]
pub(crate) fn wait_while_for<T>(
    guard: MutexGuard<'_, T>,
    changed: &Condvar,
    limit: Duration,
    condition: impl FnMut(&mut T) -> bool,
) {
    // The caller does not need to know which of the two happened.
    drop(changed.wait_timeout_while(guard, limit, condition).unwrap_or_else(PoisonError::into_inner));
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// After a panic of its holder, a lock keeps the value and remains usable.
    #[test]
    fn lock_stays_usable_after_panic_of_holder() {
        let lock = Lock::new(1);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let mut value = lock.lock();
            *value = 2;
            assert!(lock.try_lock().is_none());
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        assert_eq!(*lock.lock(), 2);
        assert_eq!(lock.try_lock().map(|value| *value), Some(2));
        assert_eq!(lock.into_inner(), 2);
    }
}
