//! Figures of a daemon's endpoints and of its log, for its metrics.

use std::sync::Arc;

use dormouse_bus::{ANSWER_TIMES, EndpointStats};
use dormouse_metrics::{HistogramFigures, Scrape};
use dormouse_protocol::{ErrorCode, OverloadCause};
use dormouse_runtime::logging;

/// The times from arrival to reply at one endpoint.
#[must_use]
pub fn answer_times(stats: &EndpointStats) -> HistogramFigures {
    let times = stats.answer_times();
    let bounds = ANSWER_TIMES.iter().map(std::time::Duration::as_secs_f64);
    HistogramFigures {
        sum_s: stats.read().processing.as_secs_f64(),
        count: times.iter().sum(),
        buckets: bounds.zip(times).collect(),
    }
}

/// The times of an endpoint without requests.
#[must_use]
pub fn no_answer_times() -> HistogramFigures {
    answer_times(&EndpointStats::default())
}

/// Errors by code and overloads by cause, of all `endpoints` together.
pub fn refusals(scrape: &mut Scrape<'_>, endpoints: &[Arc<EndpointStats>]) {
    let other = ErrorCode::Other("other".to_owned());
    let count = |code: &ErrorCode| endpoints.iter().map(|stats| stats.errors_of(code)).sum();
    let codes = ErrorCode::KNOWN.iter().chain([&other]).map(|code| (code.as_str(), count(code)));
    scrape.counter_of("dormouse_errors_total", "Requests answered with an error", "code", codes);
    let count = |cause| endpoints.iter().map(|stats| stats.overloaded_of(cause)).sum();
    let causes = OverloadCause::ALL.into_iter().map(|cause| (cause.name(), count(cause)));
    scrape.counter_of("dormouse_overloaded_total", "Requests refused as overloaded", "reason", causes);
}

/// Lines that the log of this process does not have.
pub fn lost_log_lines(scrape: &mut Scrape<'_>) {
    let help = "Log lines that were dropped or could not be written";
    scrape.counter("dormouse_log_lines_dropped_total", help, logging::lost_lines());
}
