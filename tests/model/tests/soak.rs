//! Larger bounds: minutes each, and up to some gigabytes. `make soak-all` runs them; `DORMOUSE_MODEL_STATES` is the number of
//! states after which a run is given up as bounded.

use dormouse_model::explore::deep_first;
use dormouse_model::settings::{Bases, Settings};

/// States to go through at most.
const MOST: usize = 60_000_000;

#[track_caller]
fn holds(settings: &Settings) {
    let most = std::env::var("DORMOUSE_MODEL_STATES").ok().and_then(|text| text.parse().ok());
    let report = deep_first(settings, most.unwrap_or(MOST));
    println!("{report}");
    assert!(report.counterexample.is_none(), "{report}");
}

macro_rules! runs {
    ($($name:ident: $settings:expr;)*) => {
        $(
            #[test]
            #[ignore = "takes minutes: make soak-all"]
            fn $name() {
                holds(&$settings);
            }
        )*
    };
}

runs! {
    two_processes_with_everything: Settings {
        releases: 1, crashes: 1, reads: 1, lazy: true, ..Settings::default()
    };
    two_processes_with_everything_but_crashes: Settings {
        releases: 1, reads: 1, lazy: true, ..Settings::default()
    };
    two_processes_that_open_twice: Settings {
        opens: [2, 0], reads: 1, lazy: true, ..Settings::default()
    };
    two_processes_that_close_and_open: Settings {
        opens: [2, 0], evictions: 1, reads: 1, split: true, lazy: true, ..Settings::default()
    };
    duplicates_and_eviction: Settings {
        duplicates: 1, evictions: 1, writes: [2, 0], split: true, ..Settings::default()
    };
    three_processes_with_reads: Settings {
        processes: 3, writes: [2, 0], reads: 1, lazy: true, ..Settings::default()
    };
    two_subjects_with_crash_and_release: Settings {
        subjects: 2, opens: [1, 0], writes: [1, 2], releases: 1, crashes: 1, reads: 1, lazy: true,
        ..Settings::default()
    };
    two_subjects_both_claimed: Settings {
        subjects: 2, writes: [1, 1], reads: 1, lazy: true, ..Settings::default()
    };
    deltas_on_deltas: Settings {
        writes: [3, 0], compactions: 2, releases: 1, bases: Bases::Deltas, lazy: true, ..Settings::default()
    };
    snapshots_only: Settings {
        writes: [3, 0], compactions: 2, bases: Bases::Snapshots, lazy: true, ..Settings::default()
    };
    unknown_outcomes: Settings {
        unknowns: 2, releases: 1, lazy: true, ..Settings::default()
    };
    leases_beside_everything: Settings {
        reads: 2, writes: [2, 0], lapses: Some(1), oblivions: 1, ..Settings::default()
    };
    drains_beside_everything: Settings {
        drains: 1, releases: 1, crashes: 1, writes: [2, 0], collector: false, lazy: true, ..Settings::default()
    };
}
