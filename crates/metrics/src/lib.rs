//! Metrics of the programs, in the text format of Prometheus.
//!
//! | module | holds |
//! |---|---|
//! | [`label`] | [`Label`]: a label with a fixed list of values |
//! | [`family`] | [`ByLabel`], [`ByLabels`]: one metric for each value of a label, or of two; [`DurationHistogram`] |
//! | [`steps`] | [`LongestSteps`]: the longest step per kind; [`StepTimer`] measures one step |
//! | [`registry`] | [`MetricsRegistry`]: names, help, and the text; [`Scrape`]: figures that are read at each scrape |
//! | [`system`] | memory, descriptors and processor time of the process; room on its disk |
//!
//! A label is a type with a fixed list of values, so the number of series has a bound that the compiler knows. No
//! metric has a label for a subject. The names of tenants are no such type: [`Scrape::bounded`] takes at most
//! [`MAX_NAMED`] of them.
//!
//! A component has a struct of instruments. It creates them without a registry, so tests and the simulation need
//! none, and its program registers them. A figure that exists elsewhere is read at the scrape instead of counted twice.
//!
//! An observation costs a clock reading, which the caller often has already, and a few atomic operations or one
//! uncontended lock. It never waits and never allocates.

pub mod family;
pub mod label;
pub mod registry;
pub mod steps;
pub mod system;

pub use family::{ByLabel, ByLabels, DurationHistogram};
pub use label::Label;
pub use prometheus_client::metrics::counter::Counter;
pub use registry::{CONTENT_TYPE, HistogramFigures, Instrument, MAX_NAMED, MetricsRegistry, Scrape};
pub use steps::{LongestSteps, StepKind, StepTimer};
