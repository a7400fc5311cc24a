//! One metric for each value of a label, and histograms of durations.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};

use crate::Label;

/// Upper bounds of the buckets of a [`DurationHistogram`], in seconds: 50 µs, then each bucket about three times the
/// one before, to 30 s.
const BUCKETS_S: [f64; 13] =
    [0.000_05, 0.000_15, 0.000_5, 0.001_5, 0.005, 0.015, 0.05, 0.15, 0.5, 1.5, 5.0, 15.0, 30.0];

/// A histogram of durations, in seconds. Cloning shares it.
#[derive(Debug, Clone)]
pub struct DurationHistogram(Histogram);

impl Default for DurationHistogram {
    fn default() -> Self {
        Self(Histogram::new(BUCKETS_S))
    }
}

impl DurationHistogram {
    /// Counts a duration.
    pub fn observe(&self, duration: Duration) {
        self.0.observe(duration.as_secs_f64());
    }
}

impl EncodeMetric for DurationHistogram {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.0.metric_type()
    }
}

impl TypedMetric for DurationHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

/// One metric for each value of the label `L`; each exists from the start. Cloning shares them.
///
/// [`ByLabel::of`] is an index into an array: no hash, no lock.
#[derive(Debug, Clone)]
pub struct ByLabel<L, M> {
    metrics: Vec<M>,
    label: PhantomData<L>,
}

impl<L: Label, M: Default> Default for ByLabel<L, M> {
    fn default() -> Self {
        Self { metrics: L::ALL.iter().map(|_| M::default()).collect(), label: PhantomData }
    }
}

impl<L: Label, M> ByLabel<L, M> {
    /// The metric of `value`.
    #[must_use]
    pub fn of(&self, value: L) -> &M {
        &self.metrics[value.index()]
    }
}

impl<L: Label, M: EncodeMetric> EncodeMetric for ByLabel<L, M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        for (value, metric) in L::ALL.iter().zip(&self.metrics) {
            let labels = [(L::NAME, value.text())];
            metric.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        self.metrics.first().map_or(MetricType::Unknown, EncodeMetric::metric_type)
    }
}

impl<L: Label, M: TypedMetric> TypedMetric for ByLabel<L, M> {
    const TYPE: MetricType = M::TYPE;
}

/// One metric for each pair of values of the labels `A` and `B`; otherwise as [`ByLabel`].
#[derive(Debug, Clone)]
pub struct ByLabels<A, B, M> {
    metrics: Vec<M>,
    labels: PhantomData<(A, B)>,
}

impl<A: Label, B: Label, M: Default> Default for ByLabels<A, B, M> {
    fn default() -> Self {
        let metrics = (0..A::ALL.len() * B::ALL.len()).map(|_| M::default()).collect();
        Self { metrics, labels: PhantomData }
    }
}

impl<A: Label, B: Label, M> ByLabels<A, B, M> {
    /// The metric of the pair `a`, `b`.
    #[must_use]
    pub fn of(&self, a: A, b: B) -> &M {
        &self.metrics[a.index() * B::ALL.len() + b.index()]
    }
}

impl<A: Label, B: Label, M: EncodeMetric> EncodeMetric for ByLabels<A, B, M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let pairs = A::ALL.iter().flat_map(|a| B::ALL.iter().map(move |b| (a, b)));
        for ((a, b), metric) in pairs.zip(&self.metrics) {
            let labels = [(A::NAME, a.text()), (B::NAME, b.text())];
            metric.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        self.metrics.first().map_or(MetricType::Unknown, EncodeMetric::metric_type)
    }
}

impl<A: Label, B: Label, M: TypedMetric> TypedMetric for ByLabels<A, B, M> {
    const TYPE: MetricType = M::TYPE;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Counter, MetricsRegistry};
    use dormouse_protocol::{Level, Op};

    /// A metric with two labels has one series for each pair of values, also before the first observation.
    #[test]
    fn metric_by_two_labels_has_every_series() {
        let counters: ByLabels<Op, Level, Counter> = ByLabels::default();
        counters.of(Op::Set, Level::Disk).inc_by(3);
        let mut registry = MetricsRegistry::default();
        registry.register("dormouse_calls_total", "Calls", &counters);
        let text = registry.text();
        assert!(text.contains("dormouse_calls_total{op=\"set\",level=\"disk\"} 3\n"), "{text}");
        assert_eq!(text.matches("dormouse_calls_total{").count(), Op::ALL.len() * Level::ALL.len());
    }

    /// A duration counts in the first bucket whose bound is not below it.
    #[test]
    fn duration_histogram_counts_in_its_bucket() {
        let histogram = DurationHistogram::default();
        histogram.observe(Duration::from_millis(1));
        histogram.observe(Duration::from_secs(90));
        let mut registry = MetricsRegistry::default();
        registry.register("dormouse_wait_seconds", "Waits", &histogram);
        let text = registry.text();
        assert!(text.contains("dormouse_wait_seconds_bucket{le=\"0.0005\"} 0\n"), "{text}");
        assert!(text.contains("dormouse_wait_seconds_bucket{le=\"0.0015\"} 1\n"), "{text}");
        assert!(text.contains("dormouse_wait_seconds_bucket{le=\"30\"} 1\n"), "{text}");
        assert!(text.contains("dormouse_wait_seconds_bucket{le=\"+Inf\"} 2\n"), "{text}");
    }
}
