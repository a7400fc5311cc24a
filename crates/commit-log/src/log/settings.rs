//! Settings of the log.

use std::time::Duration;

/// The log's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// How long a write of a weaker level may wait before it is shipped.
    pub ship_interval: Duration,
    /// At this size, writes are shipped without delay.
    pub ship_bytes: u64,
    /// Maximum size of unshipped writes in bytes; above it, the log rejects writes as `overloaded`.
    pub max_unshipped_bytes: u64,
    /// If a write has been unshipped for longer, weaker levels wait for the bucket too.
    pub max_unshipped_age: Duration,
    /// Maximum segments a second, on average. Unused capacity of one second carries over to the next.
    pub max_puts_per_second: u32,
    /// Above this size of all slots in bytes, the subjects that need the oldest ones are compacted.
    pub max_log_bytes: u64,
    /// Maximum time between the WAL write and its sync.
    pub sync_interval: Duration,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            ship_interval: Duration::from_secs(1),
            ship_bytes: 4 << 20,
            max_unshipped_bytes: 64 << 20,
            max_unshipped_age: Duration::from_secs(10),
            max_puts_per_second: 50,
            max_log_bytes: 1 << 30,
            sync_interval: Duration::from_secs(1),
        }
    }
}
