//! Many runs, on as many threads as there are cores.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dormouse_runtime::Lock;
use dormouse_runtime::injected_bugs::InjectedBug;

use crate::run::{Report, run};
use crate::run_config::Profile;

/// The summary of many runs.
#[derive(Debug, Default)]
pub struct SoakSummary {
    /// The number of runs.
    pub runs: u64,
    /// The runs with violations, by seed.
    pub failed: BTreeMap<u64, Report>,
    /// The number of events by name, over all runs.
    pub counts: BTreeMap<String, u64>,
}

impl SoakSummary {
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

/// The limit for a run in real time. A run takes a fraction of a second: a run over this limit never ends.
const STUCK: Duration = Duration::from_secs(30);

/// The seed of each thread, and its start.
type Current = Lock<Option<(u64, Instant)>>;

/// Ends the program with the seed if a run does not end.
fn watch(current: &[Current], over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        std::thread::park_timeout(Duration::from_secs(1));
        for thread in current {
            let now = *thread.lock();
            if let Some((seed, since)) = now.filter(|(_, since)| since.elapsed() > STUCK) {
                eprintln!("seed {seed} has run for {:?} and does not end", since.elapsed());
                std::process::exit(3);
            }
        }
    }
}

/// Runs every seed on `threads` threads, with a bug if `bug` names one. Calls `on_report` with each report; if it returns
/// false, no more runs start.
///
/// # Panics
/// If a run cannot be set up.
pub fn soak(
    seeds: Range<u64>,
    profile: Profile,
    bug: Option<InjectedBug>,
    threads: usize,
    on_report: impl Fn(&Report) -> bool + Sync,
) -> SoakSummary {
    let (next, summary) = (AtomicU64::new(seeds.start), Lock::new(SoakSummary::default()));
    let current: Vec<Current> = (0..threads.max(1)).map(|_| Lock::new(None)).collect();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&current, &over));
        let workers: Vec<_> = current
            .iter()
            .map(|current| {
                scope.spawn(|| work(&next, seeds.end, (profile, bug), current, &on_report, &summary))
            })
            .collect();
        let panicked = workers.into_iter().filter_map(|worker| worker.join().err()).next();
        over.store(true, Ordering::Relaxed);
        watcher.thread().unpark();
        if let Some(panic) = panicked {
            std::panic::resume_unwind(panic);
        }
    });
    summary.into_inner()
}

#[expect(clippy::disallowed_methods)] // Only this and `main.rs` read the real clock.
fn work(
    next: &AtomicU64,
    end: u64,
    (profile, bug): (Profile, Option<InjectedBug>),
    current: &Current,
    on_report: &(impl Fn(&Report) -> bool + Sync),
    summary: &Lock<SoakSummary>,
) {
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            return;
        }
        *current.lock() = Some((seed, Instant::now()));
        let report = run(seed, profile, bug, false);
        *current.lock() = None;
        if !on_report(&report) {
            next.store(end, Ordering::Relaxed);
        }
        summary.lock().take(report);
    }
}
