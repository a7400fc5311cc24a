//! Larger bounds: minutes each, and up to some gigabytes. `make soak-all` runs them. After `DORMOUSE_MODEL_STATES`
//! states, a run ends as bounded.

use dormouse_model::explore::deep_first;
use dormouse_model::settings::{Bases, Settings};

/// The largest number of states to visit.
const MOST: usize = 60_000_000;

#[track_caller]
fn assert_guarantees_hold(settings: &Settings) {
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
                assert_guarantees_hold(&$settings);
            }
        )*
    };
}

runs! {
    two_processes_with_reads_releases_and_crashes: Settings {
        releases: 1, crashes: 1, reads: 1, lazy: true, ..Settings::default()
    };
    two_processes_with_reads_and_releases: Settings {
        releases: 1, reads: 1, lazy: true, ..Settings::default()
    };
    two_processes_open_a_subject_twice: Settings {
        opens: [2, 0], reads: 1, lazy: true, ..Settings::default()
    };
    two_processes_close_and_reopen_a_subject: Settings {
        opens: [2, 0], evictions: 1, reads: 1, split: true, lazy: true, ..Settings::default()
    };
    duplicate_requests_and_an_eviction: Settings {
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
    delta_bases_with_two_compactions: Settings {
        writes: [3, 0], compactions: 2, releases: 1, bases: Bases::Deltas, lazy: true, ..Settings::default()
    };
    snapshot_bases_with_two_compactions: Settings {
        writes: [3, 0], compactions: 2, bases: Bases::Snapshots, lazy: true, ..Settings::default()
    };
    creates_with_indeterminate_outcomes: Settings {
        unknowns: 2, releases: 1, lazy: true, ..Settings::default()
    };
    leases_with_expiry_and_coordinator_state_loss: Settings {
        reads: 2, writes: [2, 0], lapses: Some(1), state_losses: 1, ..Settings::default()
    };
    reclaims_with_releases_and_crashes: Settings {
        drains: 1, releases: 1, crashes: 1, writes: [2, 0], collector: false, lazy: true, ..Settings::default()
    };
}
