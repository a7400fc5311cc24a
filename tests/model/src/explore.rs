//! Going through every world that can be reached.

use std::collections::{HashSet, VecDeque};
use std::fmt;

use crate::action::Action;
use crate::check::Violation;
use crate::hash::BuildReady;
use crate::settings::{Coverage, Settings};
use crate::world::World;

/// What a run found.
#[derive(Debug, Clone)]
pub struct Report {
    /// Different worlds.
    pub states: usize,
    /// Steps taken.
    pub steps: u64,
    /// Steps from the beginning to the world that is farthest away; for a search that goes deep first, of its way.
    pub depth: usize,
    /// Nothing was left out.
    pub exhaustive: bool,
    /// What was come by.
    pub coverage: Coverage,
    /// The promise that was broken, and the way there.
    pub counterexample: Option<Counterexample>,
}

/// A way to a broken promise.
#[derive(Debug, Clone)]
pub struct Counterexample {
    /// What was broken.
    pub violation: Violation,
    /// The steps, the last of which broke it.
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

/// Where a world was come to from.
#[derive(Debug, Clone, Copy)]
struct Origin {
    parent: u32,
    action: Action,
}

/// Goes through the worlds in order of their distance, so that a counterexample is as short as any. Stops at the first,
/// or after `most` states.
#[must_use]
pub fn nearest_first(settings: &Settings, most: usize) -> Report {
    let mut seen: HashSet<u128, BuildReady> = HashSet::default();
    let mut origins: Vec<Option<Origin>> = vec![None];
    let mut report = Report::empty();
    let begin = match beginning(settings, &mut report.coverage) {
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

/// The world after the prologue.
fn beginning(settings: &Settings, coverage: &mut Coverage) -> Result<World, Counterexample> {
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
            Violation::Driver("the prologue asks for what cannot happen")
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

/// Goes through the worlds with little memory: deep first. Stops at the first counterexample, which is not the
/// shortest, or after `most` states.
#[must_use]
pub fn deep_first(settings: &Settings, most: usize) -> Report {
    let mut seen: HashSet<u128, BuildReady> = HashSet::default();
    let mut report = Report::empty();
    let begin = match beginning(settings, &mut report.coverage) {
        Ok(begin) => begin,
        Err(counterexample) => return Report { counterexample: Some(counterexample), ..report },
    };
    seen.insert(begin.hash());
    let actions = begin.actions(settings);
    let mut way = vec![(begin, actions, 0_usize)];
    while let Some((world, actions, next)) = way.last_mut() {
        let Some(&action) = actions.get(*next) else {
            way.pop();
            continue;
        };
        *next += 1;
        report.steps += 1;
        match world.step(settings, action, &mut report.coverage) {
            Err(violation) => {
                let steps = way.iter().map(|(_, actions, next)| actions[next - 1]);
                let steps = settings.prologue.iter().copied().chain(steps).collect();
                report.counterexample = Some(Counterexample { violation, steps });
                break;
            }
            Ok(next) => {
                if seen.insert(next.hash()) {
                    let actions = next.actions(settings);
                    way.push((next, actions, 0));
                    report.depth = report.depth.max(way.len());
                }
            }
        }
        if seen.len() >= most {
            break;
        }
    }
    report.states = seen.len();
    report.exhaustive = way.is_empty();
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
