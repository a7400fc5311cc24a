//! Statistics of one endpoint, in atomics: the path of a request takes no lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use dormouse_protocol::{ErrorReply, Executed, RetryAdvice};
use dormouse_runtime::Lock;

/// Statistics of one endpoint since its start.
#[derive(Debug, Default)]
pub struct EndpointStats {
    requests: AtomicU64,
    errors: AtomicU64,
    processing_nanos: AtomicU64,
    unanswerable: AtomicU64,
    refused: AtomicU64,
    dropped: AtomicU64,
    last_error: Lock<Option<String>>,
}

/// A snapshot of [`EndpointStats`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointSnapshot {
    /// Requests answered, errors included.
    pub requests: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Time from arrival to reply, summed over all requests.
    pub processing: Duration,
    /// Messages dropped because they have no reply address.
    pub unanswerable: u64,
    /// Requests dropped because their reply address is not an inbox.
    pub refused: u64,
    /// Replies dropped because the reply queue was full.
    pub dropped: u64,
    /// The last error that an operator should know.
    pub last_error: Option<String>,
}

impl EndpointStats {
    /// The current statistics.
    #[must_use]
    pub fn read(&self) -> EndpointSnapshot {
        EndpointSnapshot {
            requests: self.requests.load(Relaxed),
            errors: self.errors.load(Relaxed),
            processing: Duration::from_nanos(self.processing_nanos.load(Relaxed)),
            unanswerable: self.unanswerable.load(Relaxed),
            refused: self.refused.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            last_error: self.last_error.lock().clone(),
        }
    }

    /// Requests answered so far, errors included.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    pub(super) fn count_answer(&self, took: Duration) {
        self.requests.fetch_add(1, Relaxed);
        self.processing_nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(super) fn count_error(&self, took: Duration, error: &ErrorReply) {
        self.count_answer(took);
        self.errors.fetch_add(1, Relaxed);
        // An error of the caller says nothing about the service, and a flood of them must not contend for a lock.
        if error.retry() != RetryAdvice::Never || error.executed() != Executed::No || error.object.is_some() {
            *self.last_error.lock() = Some(error.to_string());
        }
    }

    pub(super) fn count_unanswerable(&self) {
        self.unanswerable.fetch_add(1, Relaxed);
    }

    pub(super) fn count_refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    pub(super) fn count_dropped(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }
}
