//! The metrics of the server, and their text.

use std::sync::Arc;

use dormouse_metrics::MetricsRegistry;
use dormouse_metrics::system::{self, DiskRoom};

/// The metrics of a server process. They outlive its logs: after a takeover or a drain the process continues with a new
/// engine, and its instruments count on.
#[derive(Debug)]
pub struct ServerMetrics {
    registry: MetricsRegistry,
}

impl ServerMetrics {
    /// The metrics of a process whose disk has `room`.
    #[must_use]
    pub fn new(room: DiskRoom) -> Arc<Self> {
        let mut registry = MetricsRegistry::default();
        system::register(&mut registry, room);
        Arc::new(Self { registry })
    }

    /// All metrics in the text format of Prometheus. Does not block.
    #[must_use]
    pub fn text(&self) -> String {
        self.registry.text()
    }
}

#[cfg(test)]
mod tests;
