//! The results, as stored in a file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::greedy::GreedyNeighbour;
use crate::idle_subjects::IdleSubjects;
use crate::load::Round;
use crate::machine::Machine;

/// The results of one run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Results {
    /// The machine.
    pub machine: Machine,
    /// The arguments that repeat the run.
    pub arguments: String,
    /// The arguments without the selection of scenarios.
    pub terms: String,
    /// Whether these are the long scenarios.
    pub long: bool,
    /// Whether everything for the documentation was measured.
    pub whole: bool,
    /// The duration in seconds.
    pub seconds: u64,
    /// The targets in order, each with the meaning of an acknowledged write, or the reason for its absence.
    pub targets: Vec<(String, TargetOutcome)>,
    /// All scenarios, with a line for each target.
    pub scenarios: Vec<Measured>,
    /// The costs of dormant subjects.
    #[serde(rename = "sleepers")]
    pub idle_subjects: Vec<IdleSubjects>,
    /// The polite tenant beside each aggressor.
    #[serde(default)]
    pub greedy: Vec<GreedyNeighbour>,
}

/// Whether a target could be measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetOutcome {
    /// The meaning of an acknowledged write.
    Promises(String),
    /// The reason for its absence.
    LeftOut(String),
}

/// One scenario.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    /// The name.
    pub name: String,
    /// The table of the scenario.
    pub family: String,
    /// The column in that table.
    pub column: String,
    /// Whether bytes are counted.
    pub bytes: bool,
    /// A line for each target.
    pub lines: Vec<TargetResult>,
}

impl Measured {
    /// Returns the line of a target.
    #[must_use]
    pub fn line(&self, target: &str) -> Option<&TargetResult> {
        self.lines.iter().find(|line| line.target == target)
    }
}

/// One target in one scenario.
#[derive(Debug, Serialize, Deserialize)]
pub struct TargetResult {
    /// The target.
    pub target: String,
    /// The result of each round, by its number. Empty if it was not measured.
    pub rounds: BTreeMap<usize, Round>,
    /// The reason why it was not measured, or not completely.
    pub trouble: Option<String>,
    /// Bytes on disk after the last round.
    pub disk_bytes: u64,
}

impl TargetResult {
    /// Returns the median of one figure over the rounds.
    #[must_use]
    pub fn median(&self, figure: impl Fn(&Round) -> f64) -> Option<f64> {
        median(self.rounds.values().map(figure).collect())
    }

    /// Returns the ratio of this target's figure to `other`'s, round by round.
    #[must_use]
    pub fn ratios(&self, other: &Self, figure: impl Fn(&Round) -> f64) -> Vec<f64> {
        let both = self.rounds.iter().filter_map(|(round, own)| Some((own, other.rounds.get(round)?)));
        both.map(|(own, other)| figure(own) / figure(other)).filter(|ratio| ratio.is_finite()).collect()
    }
}

/// Returns the median: the middle figure, or the mean of the two middle ones.
#[must_use]
pub fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => None,
        length if length % 2 == 1 => Some(figures[middle]),
        _ => Some(f64::midpoint(figures[middle - 1], figures[middle])),
    }
}

impl Results {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read or has another format.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} contains no results", file.display()))
    }

    /// Writes a file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        std::fs::write(file, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// Returns the cores that others used while a target was measured: the median over all rounds.
    #[must_use]
    pub fn others_cores(&self) -> Option<f64> {
        let lines = self.scenarios.iter().flat_map(|scenario| &scenario.lines);
        median(lines.flat_map(|line| line.rounds.values()).map(|round| round.others_cores).collect())
    }

    /// Adds the results of an earlier run of the same kind.
    ///
    /// # Errors
    /// If that run had another commit or other settings.
    pub fn keep(&mut self, earlier: Self) -> Result<()> {
        if (&earlier.machine.commit, &earlier.terms) != (&self.machine.commit, &self.terms) {
            bail!("the existing results are of commit {} with {}", earlier.machine.commit, earlier.terms);
        }
        self.machine.load_before = self.machine.load_before.max(earlier.machine.load_before);
        self.seconds += earlier.seconds;
        self.targets = earlier.targets;
        self.scenarios = earlier.scenarios;
        self.idle_subjects = earlier.idle_subjects;
        self.greedy = earlier.greedy;
        Ok(())
    }

    /// Sets the meaning of an acknowledged write of a target, or the reason for its absence.
    pub fn set_outcome(&mut self, target: &str, outcome: TargetOutcome) {
        match self.targets.iter_mut().find(|(name, _)| name == target) {
            Some((_, known)) => *known = outcome,
            None => self.targets.push((target.to_owned(), outcome)),
        }
    }

    /// Returns the scenario with this name.
    #[must_use]
    pub fn scenario(&self, name: &str) -> Option<&Measured> {
        self.scenarios.iter().find(|scenario| scenario.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    /// The median is the middle value, the mean of the two middle values, or nothing for no values.
    #[test]
    fn median_is_the_middle_value() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
