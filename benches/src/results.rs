//! What was measured, as it is kept in a file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::load::Round;
use crate::machine::Machine;
use crate::sleepers::Sleepers;

/// One run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Results {
    /// Where.
    pub machine: Machine,
    /// The arguments that make the same run again.
    pub arguments: String,
    /// The arguments but for which scenarios were chosen.
    pub terms: String,
    /// Whether it was what takes long.
    pub long: bool,
    /// Whether everything that belongs into the documentation was measured.
    pub whole: bool,
    /// How long it took, in seconds.
    pub seconds: u64,
    /// Targets in their order, each with what an answered write means there, or why it is left out.
    pub targets: Vec<(String, Outcome)>,
    /// Every scenario, with a line for each target.
    pub scenarios: Vec<Measured>,
    /// What subjects cost that sleep.
    pub sleepers: Vec<Sleepers>,
}

/// Whether a target could be measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// What an answered write means there.
    Promises(String),
    /// Why it is left out.
    LeftOut(String),
}

/// One scenario.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Its name.
    pub name: String,
    /// The table in which it stands.
    pub family: String,
    /// The column there.
    pub column: String,
    /// Whether bytes were counted.
    pub bytes: bool,
    /// A line for each target.
    pub lines: Vec<Line>,
}

impl Measured {
    /// The line of a target.
    #[must_use]
    pub fn line(&self, target: &str) -> Option<&Line> {
        self.lines.iter().find(|line| line.target == target)
    }
}

/// One target in one scenario.
#[derive(Debug, Serialize, Deserialize)]
pub struct Line {
    /// The target.
    pub target: String,
    /// What each round showed, by its number. Empty where it was not measured.
    pub rounds: BTreeMap<usize, Round>,
    /// Why it was not measured, or not to the end.
    pub trouble: Option<String>,
    /// Bytes on disk after the last round.
    pub disk_bytes: u64,
}

impl Line {
    /// The median of one figure over the rounds.
    #[must_use]
    pub fn median(&self, figure: impl Fn(&Round) -> f64) -> Option<f64> {
        median(self.rounds.values().map(figure).collect())
    }

    /// How many times `other`'s figure this one's is, round by round.
    #[must_use]
    pub fn ratios(&self, other: &Self, figure: impl Fn(&Round) -> f64) -> Vec<f64> {
        let both = self.rounds.iter().filter_map(|(round, own)| Some((own, other.rounds.get(round)?)));
        both.map(|(own, other)| figure(own) / figure(other)).filter(|ratio| ratio.is_finite()).collect()
    }
}

/// The middle of some figures; the mean of the two in the middle where there is no one.
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
    /// When it cannot be read or is none of ours.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} holds no results", file.display()))
    }

    /// Writes a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        std::fs::write(file, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// Cores that others used while a target was measured: the median over all rounds.
    #[must_use]
    pub fn others_cores(&self) -> Option<f64> {
        let lines = self.scenarios.iter().flat_map(|scenario| &scenario.lines);
        median(lines.flat_map(|line| line.rounds.values()).map(|round| round.others_cores).collect())
    }

    /// Keeps what an earlier run of the same kind has measured.
    ///
    /// # Errors
    /// When that was another commit, or measured otherwise.
    pub fn keep(&mut self, earlier: Self) -> Result<()> {
        if (&earlier.machine.commit, &earlier.terms) != (&self.machine.commit, &self.terms) {
            bail!("what is there was measured of commit {} with {}", earlier.machine.commit, earlier.terms);
        }
        self.machine.load_before = self.machine.load_before.max(earlier.machine.load_before);
        self.seconds += earlier.seconds;
        self.targets = earlier.targets;
        self.scenarios = earlier.scenarios;
        self.sleepers = earlier.sleepers;
        Ok(())
    }

    /// Says of a target what it promises, or why it is left out.
    pub fn tell(&mut self, target: &str, outcome: Outcome) {
        match self.targets.iter_mut().find(|(name, _)| name == target) {
            Some((_, known)) => *known = outcome,
            None => self.targets.push((target.to_owned(), outcome)),
        }
    }

    /// The scenario of this name.
    #[must_use]
    pub fn scenario(&self, name: &str) -> Option<&Measured> {
        self.scenarios.iter().find(|scenario| scenario.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
