//! Statistics of one endpoint, in atomics: the path of a request takes no lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use dormouse_protocol::{ErrorCode, ErrorReply, Executed, OverloadCause, RetryAdvice};
use dormouse_runtime::Lock;

/// Number of known error codes, and one place for all others.
const CODES: usize = ErrorCode::KNOWN.len() + 1;

/// Statistics of one endpoint since its start.
#[derive(Debug, Default)]
pub struct EndpointStats {
    processing_nanos: AtomicU64,
    /// Requests by the bucket of their time from arrival to reply.
    times: [AtomicU64; ANSWER_TIMES.len() + 1],
    errors_by_code: [AtomicU64; CODES],
    overloaded_by_cause: [AtomicU64; OverloadCause::ALL.len()],
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    unanswerable: AtomicU64,
    refused: AtomicU64,
    dropped: AtomicU64,
    last_error: Lock<Option<String>>,
}

/// Upper bounds of the buckets of answer times: 50 µs, then each about three times the one before.
pub const ANSWER_TIMES: [Duration; 13] = [
    Duration::from_micros(50),
    Duration::from_micros(150),
    Duration::from_micros(500),
    Duration::from_micros(1_500),
    Duration::from_millis(5),
    Duration::from_millis(15),
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(500),
    Duration::from_millis(1_500),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(30),
];

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
            requests: self.requests(),
            errors: sum(&self.errors_by_code),
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
        sum(&self.times)
    }

    /// Requests answered within each of [`ANSWER_TIMES`] and not within the bound before; the last number counts the
    /// slower ones.
    #[must_use]
    pub fn answer_times(&self) -> [u64; ANSWER_TIMES.len() + 1] {
        std::array::from_fn(|bucket| self.times[bucket].load(Relaxed))
    }

    /// Requests answered with the error `code`. All codes that this version does not know count together.
    #[must_use]
    pub fn errors_of(&self, code: &ErrorCode) -> u64 {
        self.errors_by_code[code_index(code)].load(Relaxed)
    }

    /// Requests that this process refused as `overloaded` because of `cause`.
    #[must_use]
    pub fn overloaded_of(&self, cause: OverloadCause) -> u64 {
        cause.index().map_or(0, |index| self.overloaded_by_cause[index].load(Relaxed))
    }

    /// Bytes of the requests taken and of the replies queued, payloads only.
    #[must_use]
    pub fn bytes(&self) -> EndpointBytes {
        EndpointBytes { received: self.received_bytes.load(Relaxed), sent: self.sent_bytes.load(Relaxed) }
    }

    pub(super) fn count_bytes(&self, received: usize, sent: usize) {
        self.received_bytes.fetch_add(received as u64, Relaxed);
        self.sent_bytes.fetch_add(sent as u64, Relaxed);
    }

    pub(super) fn count_answer(&self, took: Duration) {
        let bucket = ANSWER_TIMES.iter().position(|bound| took <= *bound).unwrap_or(ANSWER_TIMES.len());
        self.times[bucket].fetch_add(1, Relaxed);
        self.processing_nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(super) fn count_error(&self, took: Duration, error: &ErrorReply) {
        self.count_answer(took);
        self.errors_by_code[code_index(&error.code)].fetch_add(1, Relaxed);
        if let Some(index) = OverloadCause::index_of(error) {
            self.overloaded_by_cause[index].fetch_add(1, Relaxed);
        }
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

/// Bytes through an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EndpointBytes {
    /// Payloads of the requests that were answered.
    pub received: u64,
    /// Payloads of the replies.
    pub sent: u64,
}

fn sum(counters: &[AtomicU64]) -> u64 {
    counters.iter().map(|counter| counter.load(Relaxed)).sum()
}

fn code_index(code: &ErrorCode) -> usize {
    ErrorCode::KNOWN.iter().position(|known| known == code).unwrap_or(CODES - 1)
}
