//! Explores every reachable world.

use std::collections::{HashSet, VecDeque};
use std::fmt;

use crate::action::Action;
use crate::check::Violation;
use crate::hash::BuildReady;
use crate::settings::{Coverage, Settings};
use crate::world::World;

/// The result of a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// The number of different worlds.
    pub states: usize,
    /// The number of steps.
    pub steps: u64,
    /// The number of steps from the start to the most distant world; for a depth-first search, along its path.
    pub depth: usize,
    /// Whether the search was complete.
    pub exhaustive: bool,
    /// Counts of the covered cases.
    pub coverage: Coverage,
    /// The violated guarantee, and the path to it.
    pub counterexample: Option<Counterexample>,
}

/// A path to a violated guarantee.
#[derive(Debug, Clone)]
pub struct Counterexample {
    /// The violated guarantee.
    pub violation: Violation,
    /// The steps; the last one causes the violation.
    pub steps: Vec<Action>,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.steps.iter().enumerate() {
            writeln!(f, "{:3}  {step}", at + 1)?;
        }
        write!(f, "     {}", self.violation)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.exhaustive { "exhaustive" } else { "bounded" };
        write!(f, "{} states, {} steps, {} deep, {kind};", self.states, self.steps, self.depth)?;
        for (name, count) in self.coverage.figures() {
            if count > 0 {
                write!(f, " {name} {count}")?;
            }
        }
        if let Some(counterexample) = &self.counterexample {
            write!(f, "\n{counterexample}")?;
        }
        Ok(())
    }
}

/// The predecessor of a world.
#[derive(Debug, Clone, Copy)]
struct Origin {
    parent: u32,
    action: Action,
}

/// Explores the worlds in order of their distance, so a counterexample has minimal length. Stops at the first
/// counterexample, or after `most` states.
#[must_use]
pub fn nearest_first(settings: &Settings, most: usize) -> Report {
    let mut seen: HashSet<u128, BuildReady> = HashSet::default();
    let mut origins: Vec<Option<Origin>> = vec![None];
    let mut report = Report::empty();
    let begin = match after_prologue(settings, &mut report.coverage) {
        Ok(begin) => begin,
        Err(counterexample) => return Report { counterexample: Some(counterexample), ..report },
    };
    let mut queue = VecDeque::from([(begin, 0_u32, settings.prologue.len())]);
    seen.insert(queue[0].0.hash());
    while let Some((world, id, depth)) = queue.pop_front() {
        report.depth = depth;
        for action in world.actions(settings) {
            report.steps += 1;
            match world.step(settings, action, &mut report.coverage) {
                Err(violation) => {
                    report.states = seen.len();
                    let steps = trace(settings, &origins, id, action);
                    report.counterexample = Some(Counterexample { violation, steps });
                    return report;
                }
                Ok(next) => {
                    if seen.insert(next.hash()) {
                        queue.push_back((next, origins.len() as u32, depth + 1));
                        origins.push(Some(Origin { parent: id, action }));
                    }
                }
            }
        }
        if seen.len() >= most {
            break;
        }
    }
    report.states = seen.len();
    report.exhaustive = queue.is_empty();
    report
}

/// Returns the world after the prologue.
fn after_prologue(settings: &Settings, coverage: &mut Coverage) -> Result<World, Counterexample> {
    let mut world = World::begin(settings);
    for (at, action) in settings.prologue.iter().enumerate() {
        let violation = if world.actions(settings).contains(action) {
            match world.step(settings, *action, coverage) {
                Ok(next) => {
                    world = next;
                    continue;
                }
                Err(violation) => violation,
            }
        } else {
            Violation::Driver("the prologue has an impossible step")
        };
        return Err(Counterexample { violation, steps: settings.prologue[..=at].to_vec() });
    }
    Ok(world)
}

fn trace(settings: &Settings, origins: &[Option<Origin>], mut id: u32, last: Action) -> Vec<Action> {
    let mut steps = vec![last];
    while let Some(origin) = origins[id as usize] {
        steps.push(origin.action);
        id = origin.parent;
    }
    steps.extend(settings.prologue.iter().rev());
    steps.reverse();
    steps
}

/// Explores the worlds with little memory, depth first. Stops at the first counterexample, which need not be the
/// shortest, or after `most` states.
#[must_use]
pub fn deep_first(settings: &Settings, most: usize) -> Report {
    let mut seen: HashSet<u128, BuildReady> = HashSet::default();
    let mut report = Report::empty();
    let begin = match after_prologue(settings, &mut report.coverage) {
        Ok(begin) => begin,
        Err(counterexample) => return Report { counterexample: Some(counterexample), ..report },
    };
    seen.insert(begin.hash());
    let actions = begin.actions(settings);
    let mut path = vec![(begin, actions, 0_usize)];
    while let Some((world, actions, next)) = path.last_mut() {
        let Some(&action) = actions.get(*next) else {
            path.pop();
            continue;
        };
        *next += 1;
        report.steps += 1;
        match world.step(settings, action, &mut report.coverage) {
            Err(violation) => {
                let steps = path.iter().map(|(_, actions, next)| actions[next - 1]);
                let steps = settings.prologue.iter().copied().chain(steps).collect();
                report.counterexample = Some(Counterexample { violation, steps });
                break;
            }
            Ok(next) => {
                if seen.insert(next.hash()) {
                    let actions = next.actions(settings);
                    path.push((next, actions, 0));
                    report.depth = report.depth.max(path.len());
                }
            }
        }
        if seen.len() >= most {
            break;
        }
    }
    report.states = seen.len();
    report.exhaustive = path.is_empty();
    report
}

impl Report {
    fn empty() -> Self {
        Self {
            states: 0,
            steps: 0,
            depth: 0,
            exhaustive: false,
            coverage: Coverage::default(),
            counterexample: None,
        }
    }
}
