//! What can be set about the log.

use std::time::Duration;

/// The log's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// How long a write of a weaker level may wait before it is shipped.
    pub ship_interval: Duration,
    /// So many bytes are shipped without waiting.
    pub ship_bytes: u64,
    /// Most bytes that may wait to be shipped; above it, writes are refused as `overloaded`.
    pub max_unshipped_bytes: u64,
    /// When a write has waited so long to be shipped, weaker levels wait for the bucket too.
    pub max_unshipped_age: Duration,
    /// Most segments a second, on average. A quiet second may be made up for in the next.
    pub max_puts_per_second: u32,
    /// How long a write may lie in the local write-ahead log before it is synced.
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
            sync_interval: Duration::from_secs(1),
        }
    }
}
