//! Many runs, on as many threads as there are cores.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// Runs every seed, on `threads` threads. `told` hears of each as it ends; when it says no, no more are begun.
///
/// # Panics
/// When a run cannot be made at all.
pub fn soak(
    seeds: Range<u64>,
    profile: Profile,
    threads: usize,
    told: impl Fn(&Report) -> bool + Sync,
) -> Harvest {
    let (next, harvest) = (AtomicU64::new(seeds.start), Mutex::new(Harvest::default()));
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let report = run(seed, profile, false);
                    if !told(&report) {
                        next.store(seeds.end, Ordering::Relaxed);
                    }
                    harvest.lock().unwrap_or_else(PoisonError::into_inner).take(report);
                }
            });
        }
    });
    harvest.into_inner().unwrap_or_else(PoisonError::into_inner)
}
