//! Figures of one endpoint, kept with atomics: nothing on the way of a request takes a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dormouse_protocol::{ErrorReply, Happened, Retry};

/// Figures of one endpoint since its start.
#[derive(Debug, Default)]
pub struct EndpointStats {
    requests: AtomicU64,
    errors: AtomicU64,
    processing_nanos: AtomicU64,
    unanswerable: AtomicU64,
    refused: AtomicU64,
    dropped: AtomicU64,
    last_error: Mutex<Option<String>>,
}

/// A reading of [`EndpointStats`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointFigures {
    /// Requests answered, errors included.
    pub requests: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Time from arrival to answer, summed over all requests.
    pub processing: Duration,
    /// Messages dropped because they named no address for an answer.
    pub unanswerable: u64,
    /// Requests dropped because their address for the answer is not an inbox.
    pub refused: u64,
    /// Answers dropped because the queue of answers was full.
    pub dropped: u64,
    /// The last error that an operator should know.
    pub last_error: Option<String>,
}

impl EndpointStats {
    /// The figures now.
    #[must_use]
    pub fn read(&self) -> EndpointFigures {
        EndpointFigures {
            requests: self.requests.load(Relaxed),
            errors: self.errors.load(Relaxed),
            processing: Duration::from_nanos(self.processing_nanos.load(Relaxed)),
            unanswerable: self.unanswerable.load(Relaxed),
            refused: self.refused.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            last_error: self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
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
        // A caller's own mistake says nothing about the service, and a flood of them must not meet at a lock.
        if error.retry() != Retry::Never || error.happened() != Happened::No || error.object.is_some() {
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
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
