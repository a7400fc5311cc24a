//! What the log measures while it works.

use dormouse_metrics::{Counter, DurationHistogram, LongestSteps, MetricsRegistry};

/// The instruments of a log. Cloning shares them, so the next log of a process can continue with them.
#[derive(Debug, Clone, Default)]
pub struct LogInstruments {
    /// Time of each sync of the WAL.
    pub(super) wal_syncs: DurationHistogram,
    /// Bytes of the entries written to the WAL.
    pub(super) wal_bytes: Counter,
    /// The longest steps: WAL writes and syncs, encoding of segments.
    pub steps: LongestSteps,
}

impl LogInstruments {
    /// Adds the metrics to a registry, all but those of [`LogInstruments::steps`].
    pub fn register(&self, registry: &mut MetricsRegistry) {
        registry.register("dormouse_wal_sync_seconds", "Time of each sync of the WAL", &self.wal_syncs);
        let help = "Bytes of the entries written to the WAL";
        registry.register("dormouse_wal_written_bytes_total", help, &self.wal_bytes);
    }
}
