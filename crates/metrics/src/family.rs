//! One metric for each value of a label, and histograms of durations.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

use crate::Label;

/// Upper bounds of the buckets of a [`DurationHistogram`]: 50 µs, then each about three times the one before, to 30 s.
const BUCKETS: [Duration; 13] = [
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

/// A histogram of durations, in seconds. Cloning shares it.
///
/// The histogram of the library has a lock, which two threads would share at each request. This one has an atomic per
/// bucket.
#[derive(Debug, Clone, Default)]
pub struct DurationHistogram(Arc<HistogramCells>);

#[derive(Debug, Default)]
struct HistogramCells {
    /// Durations by bucket; the last number counts those above every bound.
    buckets: [AtomicU64; BUCKETS.len() + 1],
    sum_nanos: AtomicU64,
}

impl DurationHistogram {
    /// Counts a duration.
    pub fn observe(&self, duration: Duration) {
        let bucket = BUCKETS.iter().position(|bound| duration <= *bound).unwrap_or(BUCKETS.len());
        self.0.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.0.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Number of durations so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }
}

impl EncodeMetric for DurationHistogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let numbers = self.0.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed));
        let numbers: Vec<u64> = numbers.collect();
        let bounds = BUCKETS.iter().map(Duration::as_secs_f64);
        let buckets: Vec<(f64, u64)> = bounds.zip(numbers.iter().copied()).collect();
        let sum = Duration::from_nanos(self.0.sum_nanos.load(Ordering::Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, numbers.iter().sum(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
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
