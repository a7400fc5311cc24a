//! The measured rate of uploads: how large a segment may be, and how long its create may take.
//!
//! A link of any rate carries a segment in about [`SEGMENT_DURATION`], so no upload meets a time limit and starts over.
//! Answers show the rate only of uploads that the bytes dominate, so small segments raise the estimate and never lower it.

#[cfg(test)]
mod tests;

use std::time::Duration;

/// How long the upload of a full segment takes at the measured rate.
const SEGMENT_DURATION: Duration = Duration::from_secs(4);

/// Maximum cost of a segment: it must be small enough to be read back whole. In bytes.
const MAX_SEGMENT_BYTES: u64 = 24 << 20;

/// Cost of the first segment. In bytes.
const FIRST_SEGMENT_BYTES: u64 = 256 << 10;

/// Maximum cost of a segment on the slowest link. Smaller segments cost more requests than they save. In bytes.
const MIN_SEGMENT_BYTES: u64 = 64 << 10;

/// Bounds and begin of the estimate, in bytes per second.
const MAX_RATE: u64 = MAX_SEGMENT_BYTES / SEGMENT_DURATION.as_secs();
const FIRST_RATE: u64 = FIRST_SEGMENT_BYTES / SEGMENT_DURATION.as_secs();
const MIN_RATE: u64 = MIN_SEGMENT_BYTES / SEGMENT_DURATION.as_secs();

/// One segment raises the estimate at most by this factor, so that a segment in a burst does not make the next ones
/// far too large.
const MAX_GROWTH: u64 = 4;

/// A create may take this many times its expected duration, and [`ANSWER_TIMEOUT`] more.
const TIMEOUT_FACTOR: u64 = 4;

/// How long the answer to a create may take beyond the time for its bytes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// An estimate of the rate of uploads to the bucket.
///
/// After a segment of `b` bytes whose create took `t` without a time-out, the sample is `b / t`:
///
/// - A sample above the estimate replaces it, at most four times the estimate.
/// - A sample below the estimate replaces it if the segment had at least half of the largest size at the estimate.
///   Smaller segments show latency instead of the rate.
/// - A segment without an answer in its time halves the estimate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UploadRate {
    bytes_per_second: u64,
}

impl UploadRate {
    /// The estimate before any upload: low, so that the first segment fits a slow link.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes_per_second: FIRST_RATE }
    }

    /// Maximum cost of the next segment in bytes. A single larger entry may exceed it.
    #[must_use]
    pub const fn segment_bytes(&self) -> u64 {
        self.bytes_per_second * SEGMENT_DURATION.as_secs()
    }

    /// How long the create of a segment of `bytes` may take before the bucket is asked what its slot holds.
    #[must_use]
    pub const fn create_timeout(&self, bytes: u64) -> Duration {
        let millis = bytes.saturating_mul(1_000 * TIMEOUT_FACTOR) / self.bytes_per_second;
        ANSWER_TIMEOUT.saturating_add(Duration::from_millis(millis))
    }

    /// A segment of `bytes` was created within its [time](Self::create_timeout), after `duration`.
    pub fn uploaded(&mut self, bytes: u64, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1);
        let sample = bytes.saturating_mul(1_000_000) / micros;
        if sample > self.bytes_per_second {
            self.set(sample.min(self.bytes_per_second * MAX_GROWTH));
        } else if bytes >= self.segment_bytes() / 2 {
            self.set(sample);
        }
    }

    /// A segment had no answer within its [time](Self::create_timeout).
    pub fn timed_out(&mut self) {
        self.set(self.bytes_per_second / 2);
    }

    fn set(&mut self, bytes_per_second: u64) {
        self.bytes_per_second = bytes_per_second.clamp(MIN_RATE, MAX_RATE);
    }
}
