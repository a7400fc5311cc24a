//! The metrics of one program, and their text.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, prometheus_text,
};
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

use crate::Label;

/// The media type of [`MetricsRegistry::text`].
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// Maximum number of values of a label whose values are names, such as tenants.
pub const MAX_NAMED: usize = 10;

/// A metric that a registry takes: a counter, a histogram, or a [`ByLabel`](crate::ByLabel) of them.
pub trait Instrument: EncodeMetric + TypedMetric + Clone + fmt::Debug + Send + Sync + 'static {}

impl<M: EncodeMetric + TypedMetric + Clone + fmt::Debug + Send + Sync + 'static> Instrument for M {}

/// The metrics of one program. Nothing is global: a test can have several.
#[derive(Debug, Default)]
pub struct MetricsRegistry {
    registry: Registry,
}

impl MetricsRegistry {
    /// Adds a metric. `name` is the complete name, with the suffix `_total` for a counter; `help` is a sentence
    /// without a full stop.
    ///
    /// # Panics
    /// If a counter's name does not end in `_total`, or another metric's name does.
    pub fn register<M: Instrument>(&mut self, name: &str, help: &str, metric: &M) {
        self.registry.register(stem(name, M::TYPE), help, metric.clone());
    }

    /// Calls `collect` at each scrape for the figures that other code keeps.
    pub fn collect(&mut self, collect: impl Fn(&mut Scrape<'_>) + Send + Sync + 'static) {
        self.registry.register_collector(Box::new(CollectFn(Box::new(collect))));
    }

    /// All metrics in the text format 0.0.4 of Prometheus.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string fails only if a metric refuses to be encoded, and none of this crate does.
        if prometheus_text::encode(&mut text, &self.registry).is_err() {
            text.push_str("# a metric could not be encoded\n");
        }
        text
    }
}

/// The name without the suffix that the encoder adds.
fn stem(name: &str, kind: MetricType) -> &str {
    let stem = name.strip_suffix("_total");
    assert_eq!(stem.is_some(), matches!(kind, MetricType::Counter), "name of a metric: {name}");
    stem.unwrap_or(name)
}

type Collect = Box<dyn Fn(&mut Scrape<'_>) + Send + Sync>;

struct CollectFn(Collect);

impl fmt::Debug for CollectFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CollectFn")
    }
}

impl Collector for CollectFn {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut scrape = Scrape { encoder, result: Ok(()) };
        (self.0)(&mut scrape);
        scrape.result
    }
}

/// A histogram of durations that other code keeps.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HistogramFigures {
    /// Sum of all durations in seconds.
    pub sum_s: f64,
    /// Number of durations.
    pub count: u64,
    /// The upper bound of each bucket in seconds, ascending, and the number of durations in it alone. Durations above
    /// the last bound are in no bucket.
    pub buckets: Vec<(f64, u64)>,
}

/// Takes the figures of one scrape. Names and help are as in [`MetricsRegistry::register`].
#[derive(Debug)]
pub struct Scrape<'a> {
    encoder: DescriptorEncoder<'a>,
    result: fmt::Result,
}

impl Scrape<'_> {
    /// A number that only grows.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.encode(name, help, MetricType::Counter, |encoder| counter(encoder, value));
    }

    /// A number that only grows, in fractions.
    pub fn counter_f64(&mut self, name: &str, help: &str, value: f64) {
        self.encode(name, help, MetricType::Counter, |encoder| {
            encoder.encode_counter::<NoLabelSet, _, f64>(&value, None)
        });
    }

    /// A number that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.encode(name, help, MetricType::Gauge, |encoder| encoder.encode_gauge(&value));
    }

    /// A number that goes up and down, in fractions.
    pub fn gauge_f64(&mut self, name: &str, help: &str, value: f64) {
        self.encode(name, help, MetricType::Gauge, |encoder| encoder.encode_gauge(&value));
    }

    /// A counter for each value of the label `L`.
    pub fn counter_by<L: Label>(&mut self, name: &str, help: &str, value: impl Fn(L) -> u64) {
        self.encode(name, help, MetricType::Counter, |encoder| {
            L::ALL.iter().try_for_each(|label| {
                let labels = [(L::NAME, label.text())];
                counter(&mut encoder.encode_family(&labels)?, value(*label))
            })
        });
    }

    /// A gauge for each value of the label `L`.
    pub fn gauge_by<L: Label>(&mut self, name: &str, help: &str, value: impl Fn(L) -> f64) {
        self.encode(name, help, MetricType::Gauge, |encoder| {
            L::ALL.iter().try_for_each(|label| {
                let labels = [(L::NAME, label.text())];
                encoder.encode_family(&labels)?.encode_gauge(&value(*label))
            })
        });
    }

    /// A histogram for each of `values`, a fixed list of texts of the label `label`.
    pub fn histogram_of<'t>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'t str, HistogramFigures)>,
    ) {
        self.encode(name, help, MetricType::Histogram, |encoder| {
            values.into_iter().try_for_each(|(text, figures)| {
                let labels = [(label, text)];
                let HistogramFigures { sum_s, count, buckets } = &figures;
                encoder.encode_family(&labels)?.encode_histogram::<NoLabelSet>(*sum_s, *count, buckets, None)
            })
        });
    }

    /// A counter for each of `values`, a fixed list of texts of the label `label`.
    pub fn counter_of<'t>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'t str, u64)>,
    ) {
        self.encode(name, help, MetricType::Counter, |encoder| {
            values.into_iter().try_for_each(|(text, value)| {
                let labels = [(label, text)];
                counter(&mut encoder.encode_family(&labels)?, value)
            })
        });
    }

    /// A gauge for each of `values`, a fixed list of texts of the label `label`.
    pub fn gauge_of<'t>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'t str, u64)>,
    ) {
        self.encode(name, help, MetricType::Gauge, |encoder| {
            values.into_iter().try_for_each(|(text, value)| {
                let labels = [(label, text)];
                encoder.encode_family(&labels)?.encode_gauge(&value)
            })
        });
    }

    /// A gauge for each of the first [`MAX_NAMED`] names, such as the busiest tenants. The caller puts the largest
    /// first.
    pub fn bounded<'t>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'t str, f64)>,
    ) {
        self.encode(name, help, MetricType::Gauge, |encoder| {
            values.into_iter().take(MAX_NAMED).try_for_each(|(text, value)| {
                let labels = [(label, text)];
                encoder.encode_family(&labels)?.encode_gauge(&value)
            })
        });
    }

    fn encode(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        write: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
    ) {
        if self.result.is_err() {
            return;
        }
        let help = format!("{help}.");
        self.result = self
            .encoder
            .encode_descriptor(stem(name, kind), &help, None, kind)
            .and_then(|mut encoder| write(&mut encoder));
    }
}

fn counter(encoder: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    encoder.encode_counter::<NoLabelSet, _, f64>(&value, None)
}

/// One metric of a scrape.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MetricFamily {
    /// The complete name.
    pub name: String,
    /// The type: `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// The names of the labels, in the order of the text, without the label `le` of histograms.
    pub labels: Vec<String>,
}

/// The metrics in `text`, sorted by name. Tests compare them with the documentation.
#[must_use]
pub fn families(text: &str) -> Vec<MetricFamily> {
    let declared = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let mut families: Vec<MetricFamily> = declared
        .map(|(name, kind)| MetricFamily {
            name: name.to_owned(),
            kind: kind.to_owned(),
            labels: labels_of(text, name, kind),
        })
        .collect();
    families.sort();
    families
}

fn labels_of(text: &str, name: &str, kind: &str) -> Vec<String> {
    let series = if kind == "histogram" { format!("{name}_count{{") } else { format!("{name}{{") };
    let labels = text.lines().find_map(|line| line.strip_prefix(&series)?.split_once('}'));
    let labels = labels.map(|(labels, _)| labels.split(',').filter_map(|label| label.split_once('=')));
    labels.into_iter().flatten().map(|(label, _)| label.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Counter;

    /// Figures of a collector are read at each scrape and have the same form as registered metrics.
    #[test]
    fn collected_figures_are_read_at_each_scrape() {
        let source = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(1));
        let mut registry = MetricsRegistry::default();
        registry.register("dormouse_a_total", "A counter", &Counter::<u64>::default());
        let read = std::sync::Arc::clone(&source);
        registry.collect(move |scrape| {
            let value = read.load(std::sync::atomic::Ordering::Relaxed);
            scrape.counter("dormouse_b_total", "Another", value);
            scrape.gauge_f64("dormouse_c_seconds", "A time", 0.5);
        });
        source.store(7, std::sync::atomic::Ordering::Relaxed);
        let expected = "# HELP dormouse_a_total A counter.\n# TYPE dormouse_a_total counter\ndormouse_a_total 0\n\
                        # HELP dormouse_b_total Another.\n# TYPE dormouse_b_total counter\ndormouse_b_total 7\n\
                        # HELP dormouse_c_seconds A time.\n# TYPE dormouse_c_seconds gauge\ndormouse_c_seconds 0.5\n";
        assert_eq!(registry.text(), expected);
    }

    /// However many names a collector has, a scrape shows the first ten.
    #[test]
    fn names_above_the_bound_are_left_out() {
        let names: Vec<String> = (0..100).map(|number| format!("tenant{number}")).collect();
        let mut registry = MetricsRegistry::default();
        registry.collect(move |scrape| {
            let values = names.iter().map(|name| (name.as_str(), 1.0));
            scrape.bounded("dormouse_tenant_requests", "Requests", "tenant", values);
        });
        let text = registry.text();
        assert_eq!(text.matches("dormouse_tenant_requests{").count(), MAX_NAMED);
        assert!(text.contains("{tenant=\"tenant0\"}"), "{text}");
    }

    /// A counter needs the suffix of counters.
    #[test]
    #[should_panic(expected = "name of a metric")]
    fn counter_without_suffix_panics() {
        MetricsRegistry::default().register("dormouse_a", "A counter", &Counter::<u64>::default());
    }
}
