//! The metrics of the coordinator, and their text.

use std::sync::Arc;

use dormouse_metrics::MetricsRegistry;
use dormouse_metrics::system::{self, DiskRoom};

/// The metrics of a coordinator process, across its runs.
#[derive(Debug)]
pub struct CoordinatorMetrics {
    registry: MetricsRegistry,
}

impl CoordinatorMetrics {
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
