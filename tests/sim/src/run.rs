//! One run: a world, its end, and the report.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Once;
use std::time::Duration;

use dormouse_checker::check;
use dormouse_protocol::{Position, Subject};
use dormouse_runtime::Stop;
use dormouse_runtime::injected_bugs::{InjectedBug, inject_on_this_thread};

use crate::disk;
use crate::nemesis::Nemesis;
use crate::run_config::{Profile, RunConfig};
use crate::trace::Digest;
use crate::workload::final_check;
use crate::world::World;

/// The time within which a subject must be served again after the end of the faults.
const SERVE_TIMEOUT: Duration = Duration::from_secs(90);

/// The time within which every message from before the end of the faults arrives or is lost.
const SETTLE_TIME: Duration = Duration::from_secs(11);

/// The interval of the checks of the feeds' positions.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

thread_local! {
    /// The panics in this thread.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// The report of a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Its profile.
    pub profile: Profile,
    /// The violations, each with the history that shows it.
    pub violations: Vec<String>,
    /// The digest of its trace.
    pub digest: Digest,
    /// The trace itself, if it was kept.
    pub text: String,
    /// The number of events by name.
    pub counts: BTreeMap<String, u64>,
}

/// Runs the world of a seed from start to end, with a bug in its servers or clients if `bug` names one. The same seed
/// gives the same report.
///
/// # Panics
/// If the folder for the disks cannot be created.
#[must_use]
pub fn run(seed: u64, profile: Profile, bug: Option<InjectedBug>, keep_text: bool) -> Report {
    run_in(seed, RunConfig::draw(seed, profile), bug, keep_text)
}

/// Does the same as [`run`], in a world with the given configuration.
///
/// # Panics
/// If the folder for the disks cannot be created.
#[must_use]
pub fn run_in(seed: u64, config: RunConfig, bug: Option<InjectedBug>, keep_text: bool) -> Report {
    record_panics();
    inject_on_this_thread(bug);
    PANICS.take();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime on this thread");
    let folder = disk::temp_folder().expect("a folder for the disks");
    let mut report = runtime.block_on(run_world(seed, config, folder.path(), keep_text));
    drop(runtime);
    report.violations.extend(PANICS.take().into_iter().map(|panic| format!("panic: {panic}")));
    report
}

async fn run_world(seed: u64, config: RunConfig, folder: &std::path::Path, keep_text: bool) -> Report {
    let (profile, length) = (config.profile, config.length);
    let world = World::new(seed, config, folder, keep_text);
    world.trace.line(format_args!("seed {seed} {:?}", world.config));
    let stop = Stop::new();
    let enough = Stop::new();
    let nemesis = Nemesis::new(std::sync::Arc::clone(&world), seed, enough.clone());
    world.start(&stop).await;
    world.tasks.spawn("nemesis", nemesis.run());
    tokio::time::sleep(length).await;
    enough.request();
    world.heal();
    // The clients continue while the fleet recovers.
    tokio::time::sleep(SETTLE_TIME).await;
    stop.request();
    let mut last = world.last().await;
    let (unserved_subjects, goals) = final_check(&mut last, &world.trace, SERVE_TIMEOUT).await;
    let late = wait_for_feeds(&world, &goals).await;
    let greedy = if profile == Profile::Greedy { world.judge_greedy().await } else { Vec::new() };
    world.end();
    let history = world.recorder.history();
    let verdict = check(&history);
    let mut violations: Vec<String> = verdict.violations.iter().map(ToString::to_string).collect();
    let unserved = unserved_subjects
        .iter()
        .map(|subject| format!("{subject} is not served after the end of the faults"));
    violations.extend(world.recorder.violations());
    violations.extend(unserved);
    violations.extend(greedy);
    violations.extend(late);
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let lines = world.trace.counts();
    counts.extend(lines.into_iter().map(|(what, times)| (what.to_owned(), times)));
    for (what, times) in &verdict.coverage.counts {
        counts.insert(format!("checked: {what}"), *times);
    }
    let (digest, text) = (world.trace.digest(), world.trace.text());
    Report { seed, profile, violations, digest, text, counts }
}

/// Waits until every reader of feeds has everything. Returns the feeds that have not.
async fn wait_for_feeds(world: &World, goals: &BTreeMap<Subject, Position>) -> Vec<String> {
    let mut waited = Duration::ZERO;
    loop {
        let behind = world.recorder.feeds_behind(goals);
        if behind.is_empty() || waited >= SERVE_TIMEOUT {
            return behind;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
        waited += POLL_INTERVAL;
    }
}

/// Records panics for the thread in which they occur, instead of printing them.
fn record_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let inside = tokio::runtime::Handle::try_current().is_ok();
            if inside {
                PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()));
            } else {
                before(panic);
            }
        }));
    });
}
