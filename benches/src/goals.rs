//! The goals of Dormouse relative to its peers, as ratios within one run, and whether they are met.

use crate::greedy::GreedyFigures;
use crate::load::Round;
use crate::results::{Results, median};
use crate::scenario::usual_name;

/// A figure of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Metric {
    PerSecond,
    P50,
    P99,
    /// The processor time of broker and servers together.
    ProcessorTime,
}

impl Metric {
    fn of(self, round: &Round) -> f64 {
        match self {
            Self::PerSecond => round.per_second,
            Self::P50 => round.p50_us,
            Self::P99 => round.p99_us,
            Self::ProcessorTime => round.broker_us + round.server_us,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::PerSecond => "per second",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::ProcessorTime => "processor time",
        }
    }
}

/// The bound of a goal.
#[derive(Debug, Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// The goal for a ratio.
struct Goal {
    scenario: &'static str,
    figure: Metric,
    ours: &'static str,
    theirs: &'static str,
    bound: Bound,
}

/// A goal and its measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct GoalResult {
    /// The compared quantity.
    pub what: String,
    /// The bound.
    pub bound_text: String,
    /// The measured value; `None` if one side was not measured.
    pub measured: Option<String>,
    /// Whether the goal is met.
    pub met: bool,
    /// Whether the goal belongs to the long scenarios.
    pub long: bool,
}

const fn goal(
    scenario: &'static str,
    figure: Metric,
    ours: &'static str,
    theirs: &'static str,
    bound: Bound,
) -> Goal {
    Goal { scenario, figure, ours, theirs, bound }
}

/// The ratios. `get` and `get_all` do not depend on the level.
const GOALS: &[Goal] = {
    use Bound::{AtLeast, AtMost};
    use Metric::{P50, PerSecond, ProcessorTime};
    &[
        goal("set 128 B, 1 subject, 256 in flight", PerSecond, "dormouse-disk", "echo", AtLeast(0.75)),
        goal("set 128 B, 10000 subjects, 256 in flight", PerSecond, "dormouse-disk", "echo", AtLeast(0.75)),
        goal(
            "set 128 B, 1 subject, 256 in flight",
            PerSecond,
            "dormouse-disk",
            "jetstream-always",
            AtLeast(10.0),
        ),
        goal(
            "set 128 B, 10000 subjects, 256 in flight",
            PerSecond,
            "dormouse-disk",
            "jetstream-always",
            AtLeast(10.0),
        ),
        goal(
            "set 128 B, 10000 subjects, 256 in flight",
            PerSecond,
            "dormouse-interval",
            "jetstream",
            AtLeast(1.0),
        ),
        goal(
            "set 128 B, 1 subject, 4096 in flight",
            PerSecond,
            "dormouse-interval",
            "jetstream",
            AtLeast(1.5),
        ),
        goal("set 128 B, 1 subject, 1 in flight", P50, "dormouse-bucket", "s2-lite", AtMost(0.5)),
        goal("set 128 B, 1 subject, 256 in flight", PerSecond, "dormouse-bucket", "s2-lite", AtLeast(3.0)),
        goal(
            "set 128 B, 10000 subjects, 256 in flight",
            PerSecond,
            "dormouse-bucket",
            "s2-lite",
            AtLeast(3.0),
        ),
        goal("get 128 B, 1 in flight", P50, "dormouse-bucket", "echo", AtMost(1.35)),
        goal("get 128 B, 256 in flight", PerSecond, "dormouse-bucket", "echo", AtLeast(0.8)),
        goal("get_all, 1 subject of 100000 × 128 B", PerSecond, "dormouse-bucket", "jetstream", AtLeast(1.5)),
        goal("get_all, 1 subject of 100000 × 128 B", PerSecond, "dormouse-bucket", "s2-lite", AtLeast(1.0)),
        goal(
            "get_all, 1000 subjects of 100 × 128 B",
            PerSecond,
            "dormouse-bucket",
            "jetstream",
            AtLeast(1.5),
        ),
        goal("get_all, 1000 subjects of 100 × 128 B", PerSecond, "dormouse-bucket", "s2-lite", AtLeast(1.0)),
        goal(
            "set 128 B, 1 subject, 64 in flight",
            ProcessorTime,
            "dormouse-interval",
            "jetstream",
            AtMost(1.5),
        ),
        goal(
            "set 128 B, 1 subject, 256 in flight",
            ProcessorTime,
            "dormouse-interval",
            "jetstream",
            AtMost(1.5),
        ),
        goal(
            "set 128 B, 10000 subjects, 256 in flight",
            ProcessorTime,
            "dormouse-interval",
            "jetstream",
            AtMost(1.5),
        ),
    ]
};

/// The scenario that opens subjects from a local directory.
const OPENING: (&str, &str) = ("open, 200 subjects of 100 kB", "dormouse-bucket");
/// The number of dormant subjects of the goal.
const DORMANT_SUBJECTS: usize = 1_000_000;

/// Returns every goal with its result in a run.
#[must_use]
pub fn judge(results: &Results) -> Vec<GoalResult> {
    let ratios = GOALS.iter().map(|goal| goal.judge(results));
    ratios.chain(opening(results)).chain(dormant(results)).chain(greedy(results)).collect()
}

impl Goal {
    fn judge(&self, results: &Results) -> GoalResult {
        let found = results.scenarios.iter().find(|measured| usual_name(&measured.name) == self.scenario);
        let lines = found.and_then(|scenario| {
            Some(scenario.line(self.ours)?.ratios(scenario.line(self.theirs)?, |round| self.figure.of(round)))
        });
        let ratios = lines.unwrap_or_default();
        let (least, most) = ratios
            .iter()
            .fold((f64::MAX, f64::MIN), |(least, most), ratio| (least.min(*ratio), most.max(*ratio)));
        let scenario = found.map_or(self.scenario, |measured| &measured.name);
        let what = format!("{scenario}: `{}` ÷ `{}`, {}", self.ours, self.theirs, self.figure.name());
        let spread = |ratio: f64| format!("{ratio:.2} ({least:.2} – {most:.2})");
        judged(what, self.bound, median(ratios), spread)
    }
}

fn judged(what: String, bound: Bound, measured: Option<f64>, text: impl Fn(f64) -> String) -> GoalResult {
    let (bound_text, met) = match bound {
        Bound::AtLeast(least) => (format!("≥ {least}"), measured.is_some_and(|measured| measured >= least)),
        Bound::AtMost(most) => (format!("≤ {most}"), measured.is_some_and(|measured| measured <= most)),
    };
    GoalResult { what, bound_text, measured: measured.map(text), met, long: false }
}

fn opening(results: &Results) -> Vec<GoalResult> {
    let (scenario, target) = OPENING;
    let line = results.scenario(scenario).and_then(|scenario| scenario.line(target));
    [(Metric::P50, 3.0), (Metric::P99, 15.0)]
        .map(|(figure, most)| {
            let measured = line.and_then(|line| line.median(|round| figure.of(round) / 1e3));
            let what = format!("{scenario}, from a local directory: {} in milliseconds", figure.name());
            judged(what, Bound::AtMost(most), measured, |milliseconds| format!("{milliseconds:.1}"))
        })
        .into()
}

fn dormant(results: &Results) -> Vec<GoalResult> {
    let found = results.idle_subjects.iter().find(|idle_subjects| idle_subjects.subjects == DORMANT_SUBJECTS);
    let figures = found.map(|found| {
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        [
            megabytes(found.server_bytes),
            found.first_answer_s,
            megabytes(found.coordinator_bytes),
            found.first_locate_s,
        ]
    });
    [
        ("memory of the server, in MB", 50.0),
        ("the server's first reply after its start, with a running coordinator, in seconds", 1.0),
        ("memory of the coordinator, in MB", 200.0),
        ("the coordinator's first reply after its start, in seconds", 2.0),
    ]
    .into_iter()
    .enumerate()
    .map(|(index, (what, most))| {
        let what = format!("{DORMANT_SUBJECTS} dormant subjects: {what}");
        let figure = figures.map(|figures| figures[index]);
        GoalResult {
            long: true,
            ..judged(what, Bound::AtMost(most), figure, |figure| format!("{figure:.2}"))
        }
    })
    .collect()
}

/// The goals for a polite tenant beside greedy ones. A trial without figures leaves the goals unmeasured.
fn greedy(results: &Results) -> Vec<GoalResult> {
    let trials: Option<Vec<_>> =
        results.greedy.iter().map(|neighbour| neighbour.figures.as_ref().ok()).collect();
    let trials = trials.filter(|trials| !trials.is_empty());
    let most = |figure: fn(&GreedyFigures) -> f64| {
        trials.as_ref().map(|trials| trials.iter().map(|trial| figure(trial)).fold(0.0, f64::max))
    };
    [
        ("failed polite calls", 0.0, most(|trial| trial.failed as f64)),
        ("lapses of the lease", 0.0, most(|trial| trial.lapses as f64)),
        ("p99 of the polite calls, during ÷ before", 10.0, most(GreedyFigures::slowdown)),
    ]
    .map(|(what, bound, measured)| {
        let what = format!("greedy neighbours, the worst of them: {what}");
        judged(what, Bound::AtMost(bound), measured, |figure| format!("{figure:.1}"))
    })
    .into()
}

#[cfg(test)]
mod tests {
    use super::{Bound, DORMANT_SUBJECTS, GOALS, OPENING, judged, usual_name};
    use crate::{scenario, targets};

    /// Each goal names a scenario and targets that the benchmark measures.
    #[test]
    fn goals_refer_to_measured_scenarios_and_targets() {
        let fewer = scenario::all(scenario::many(20_000));
        let scenarios: Vec<String> = fewer.iter().map(|scenario| usual_name(&scenario.name())).collect();
        for goal in GOALS {
            assert!(scenarios.contains(&goal.scenario.to_owned()), "{}", goal.scenario);
            for target in [goal.ours, goal.theirs] {
                assert!(targets::NAMES.contains(&target), "{target}");
            }
        }
        assert!(scenarios.contains(&OPENING.0.to_owned()) && targets::NAMES.contains(&OPENING.1));
        assert!(crate::run::IDLE_SUBJECTS.iter().any(|(subjects, _)| *subjects == DORMANT_SUBJECTS));
    }

    /// A goal without a measurement counts as not met.
    #[test]
    fn goal_without_a_measurement_is_not_met() {
        let text = |figure: f64| figure.to_string();
        assert!(judged(String::new(), Bound::AtLeast(2.0), Some(2.0), text).met);
        assert!(!judged(String::new(), Bound::AtMost(2.0), Some(2.1), text).met);
        let unknown = judged(String::new(), Bound::AtMost(2.0), None, text);
        assert_eq!((unknown.met, unknown.measured), (false, None));
    }
}
