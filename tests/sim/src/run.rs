//! One run: a world, its end, and what is to be said of it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Once;
use std::time::Duration;

use dormouse_checker::check;
use dormouse_protocol::{Position, Subject};
use dormouse_runtime::Stop;

use crate::bug::Bug;
use crate::disk;
use crate::nemesis::Nemesis;
use crate::setting::{Profile, Setting};
use crate::trace::Digest;
use crate::workload::last_look;
use crate::world::World;

/// How long a subject may take to be served again once everything is well.
const PATIENCE: Duration = Duration::from_secs(90);

/// How long it takes until what was sent before everything was well has arrived, or never will.
const ECHO: Duration = Duration::from_secs(11);

/// How often it is looked whether feeds have come far enough.
const GLANCE: Duration = Duration::from_millis(100);

thread_local! {
    /// Panics in this thread.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// What is to be said of a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Its profile.
    pub profile: Profile,
    /// What should not be so, each with the history that shows it.
    pub violations: Vec<String>,
    /// What its trace comes to.
    pub digest: Digest,
    /// The trace itself, where it was to be kept.
    pub text: String,
    /// How often what happened.
    pub counts: BTreeMap<String, u64>,
}

/// Runs the world of a seed from beginning to end, with a bug in its servers or clients where there is to be one. The same seed gives
/// the same report.
///
/// # Panics
/// When there is no room for the disks.
#[must_use]
pub fn run(seed: u64, profile: Profile, bug: Option<Bug>, keep_text: bool) -> Report {
    note_panics();
    Bug::break_on_this_thread(bug);
    PANICS.take();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime on this thread");
    let room = disk::room().expect("room for the disks");
    let mut report = runtime.block_on(live(seed, profile, room.path(), keep_text));
    drop(runtime);
    report.violations.extend(PANICS.take().into_iter().map(|panic| format!("a panic: {panic}")));
    report
}

async fn live(seed: u64, profile: Profile, room: &std::path::Path, keep_text: bool) -> Report {
    let setting = Setting::draw(seed, profile);
    let length = setting.length;
    let world = World::new(seed, setting, room, keep_text);
    world.trace.line(format_args!("seed {seed} {:?}", world.setting));
    let stop = Stop::new();
    let enough = Stop::new();
    let nemesis = Nemesis::new(std::sync::Arc::clone(&world), seed, enough.clone());
    world.start(&stop).await;
    world.tasks.spawn("nemesis", nemesis.rage());
    tokio::time::sleep(length).await;
    enough.give();
    world.heal();
    // Clients go on while the fleet recovers.
    tokio::time::sleep(ECHO).await;
    stop.give();
    let mut last = world.last().await;
    let (silent, goals) = last_look(&mut last, &world.trace, PATIENCE).await;
    let late = wait_for_feeds(&world, &goals).await;
    world.end();
    let history = world.recorder.history();
    let verdict = check(&history);
    let mut violations: Vec<String> = verdict.violations.iter().map(ToString::to_string).collect();
    let unserved = silent.iter().map(|subject| format!("{subject} is not served though everything is well"));
    violations.extend(unserved);
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

/// Waits until whoever reads feeds has everything. What is wrong if not.
async fn wait_for_feeds(world: &World, goals: &BTreeMap<Subject, Position>) -> Vec<String> {
    let mut waited = Duration::ZERO;
    loop {
        let behind = world.recorder.feeds_behind(goals);
        if behind.is_empty() || waited >= PATIENCE {
            return behind;
        }
        tokio::time::sleep(GLANCE).await;
        waited += GLANCE;
    }
}

/// Panics are kept with the thread in which they were, instead of being printed.
fn note_panics() {
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
