//! Greedy neighbours: the polite tenant of the end-to-end tests beside each aggressor, at full size.

use anyhow::Result;
use dormouse_e2e::greedy::{Aggressor, PoliteFigures, Scale, Trial, TrialOutcome};
use serde::{Deserialize, Serialize};

/// The polite tenant beside one aggressor.
#[derive(Debug, Serialize, Deserialize)]
pub struct GreedyNeighbour {
    /// The aggressor.
    pub aggressor: String,
    /// The figures, or the reason for their absence.
    pub figures: Result<GreedyFigures, String>,
}

/// The figures of one trial.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GreedyFigures {
    /// The durations of the polite calls before the attack.
    pub quiet: Percentiles,
    /// The durations of the polite calls during the attack.
    pub during: Percentiles,
    /// The number of polite calls during the attack.
    pub calls: usize,
    /// The number of polite calls that failed, before and during the attack.
    pub failed: usize,
    /// The number of gaps between leases of the server.
    pub lapses: u64,
    /// The server's resident memory before the attack, in bytes.
    pub bytes_before: u64,
    /// The peak of the server's resident memory, in bytes.
    pub peak_bytes: u64,
    /// The replies that the aggressor got, by kind.
    pub attack: String,
}

/// Durations that shares of the calls do not exceed, in microseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Percentiles {
    /// Half of the calls.
    pub p50_us: f64,
    /// All calls but one of a hundred.
    pub p99_us: f64,
}

impl Percentiles {
    fn of(figures: &PoliteFigures) -> Self {
        let micros = |hundredths| figures.percentile(hundredths).as_secs_f64() * 1e6;
        Self { p50_us: micros(50), p99_us: micros(99) }
    }
}

impl GreedyFigures {
    /// Returns the 99th percentile during the attack in relation to that before it.
    #[must_use]
    pub fn slowdown(&self) -> f64 {
        self.during.p99_us / self.quiet.p99_us
    }
}

impl From<TrialOutcome> for GreedyFigures {
    fn from(outcome: TrialOutcome) -> Self {
        Self {
            quiet: Percentiles::of(&outcome.quiet),
            during: Percentiles::of(&outcome.during),
            calls: outcome.during.succeeded() + outcome.during.failures.len(),
            failed: outcome.quiet.failures.len() + outcome.during.failures.len(),
            lapses: outcome.lapses,
            bytes_before: outcome.bytes_before,
            peak_bytes: outcome.peak_bytes,
            attack: outcome.attack.to_string(),
        }
    }
}

/// Measures one aggressor. A trial that fails is named in the result.
pub async fn measure(aggressor: Aggressor) -> GreedyNeighbour {
    let outcome = Trial { aggressor, scale: Scale::Full }.run().await;
    let figures = outcome.map(GreedyFigures::from).map_err(|error| format!("{error:#}"));
    GreedyNeighbour { aggressor: aggressor.as_str().to_owned(), figures }
}
