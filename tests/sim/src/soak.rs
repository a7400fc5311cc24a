//! Many runs, on as many threads as there are cores.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::bug::Bug;
use crate::run::{Report, run};
use crate::setting::Profile;

/// What came of many runs.
#[derive(Debug, Default)]
pub struct Harvest {
    /// How many there were.
    pub runs: u64,
    /// Those with something that should not be so, by seed.
    pub failed: BTreeMap<u64, Report>,
    /// How often what happened in all of them.
    pub counts: BTreeMap<String, u64>,
}

impl Harvest {
    fn take(&mut self, report: Report) {
        self.runs += 1;
        for (what, times) in &report.counts {
            *self.counts.entry(what.clone()).or_default() += times;
        }
        if !report.violations.is_empty() {
            self.failed.insert(report.seed, report);
        }
    }
}

/// How long a run may take in the real world. It takes a fraction of a second: what takes longer than this never ends.
const STUCK: Duration = Duration::from_secs(30);

/// Which seed each thread is at, and since when.
type Current = Mutex<Option<(u64, Instant)>>;

/// Ends the program, with the seed that did it, when a run does not end.
fn watch(current: &[Current], over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        std::thread::park_timeout(Duration::from_secs(1));
        for thread in current {
            let now = *thread.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((seed, since)) = now.filter(|(_, since)| since.elapsed() > STUCK) {
                eprintln!("seed {seed} has run for {:?} and does not end", since.elapsed());
                std::process::exit(3);
            }
        }
    }
}

/// Runs every seed, with a bug where there is to be one, on `threads` threads. `told` hears of each as it ends; when it says no, no more are begun.
///
/// # Panics
/// When a run cannot be made at all.
pub fn soak(
    seeds: Range<u64>,
    profile: Profile,
    bug: Option<Bug>,
    threads: usize,
    told: impl Fn(&Report) -> bool + Sync,
) -> Harvest {
    let (next, harvest) = (AtomicU64::new(seeds.start), Mutex::new(Harvest::default()));
    let current: Vec<Current> = (0..threads.max(1)).map(|_| Mutex::new(None)).collect();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&current, &over));
        let workers: Vec<_> = current
            .iter()
            .map(|current| scope.spawn(|| work(&next, seeds.end, (profile, bug), current, &told, &harvest)))
            .collect();
        let panicked = workers.into_iter().filter_map(|worker| worker.join().err()).next();
        over.store(true, Ordering::Relaxed);
        watcher.thread().unpark();
        if let Some(panic) = panicked {
            std::panic::resume_unwind(panic);
        }
    });
    harvest.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[expect(clippy::disallowed_methods)] // Beside `main.rs` the one place that looks at the real world's clock.
fn work(
    next: &AtomicU64,
    end: u64,
    (profile, bug): (Profile, Option<Bug>),
    current: &Current,
    told: &(impl Fn(&Report) -> bool + Sync),
    harvest: &Mutex<Harvest>,
) {
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            return;
        }
        *current.lock().unwrap_or_else(PoisonError::into_inner) = Some((seed, Instant::now()));
        let report = run(seed, profile, bug, false);
        *current.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if !told(&report) {
            next.store(end, Ordering::Relaxed);
        }
        harvest.lock().unwrap_or_else(PoisonError::into_inner).take(report);
    }
}
