//! Explores everything within small bounds, with production's machines unchanged. The larger bounds are in `soak.rs`.

use dormouse_model::explore::{Report, deep_first, nearest_first};
use dormouse_model::settings::{Coverage, Settings};

/// More states than any of these runs has.
const MOST: usize = 4_000_000;

/// Explores everything. All guarantees hold, and every counter in `reached` is positive.
#[track_caller]
fn assert_guarantees_hold(settings: &Settings, reached: &[fn(&Coverage) -> u64]) -> Report {
    let report = deep_first(settings, MOST);
    println!("{report}");
    assert!(report.counterexample.is_none() && report.exhaustive, "{report}");
    for (at, count) in reached.iter().enumerate() {
        assert!(count(&report.coverage) > 0, "counter {at} of the list stayed zero: {report}");
    }
    report
}

/// The counters of a claim and its rivals, which every run must reach.
const RIVALS: &[fn(&Coverage) -> u64] = &[
    |seen| seen.seals,
    |seen| seen.lost_answers,
    |seen| seen.own_nonce,
    |seen| seen.recycled_by_claim,
    |seen| seen.failed_claim_verifies,
    |seen| seen.takeovers,
    |seen| seen.ended_logs,
    |seen| seen.acknowledged,
];

fn with(more: &[fn(&Coverage) -> u64]) -> Vec<fn(&Coverage) -> u64> {
    RIVALS.iter().chain(more).copied().collect()
}

/// Two processes write, compact and claim; all guarantees hold, and the visiting order does not change the result.
#[test]
fn two_processes_write_compact_and_claim() {
    let settings = Settings { writes: [2, 0], compactions: 1, lazy: true, ..Settings::default() };
    let reached = with(&[
        |seen| seen.void_seals,
        |seen| seen.recycled_by_compaction,
        |seen| seen.failed_publish_verifies,
        |seen| seen.segments_in_gaps,
        |seen| seen.collected_slots,
        |seen| seen.trimmed_slots,
        |seen| seen.collected_uploads,
        |seen| seen.objects_missing,
        |seen| seen.late_manifests,
    ]);
    let report = assert_guarantees_hold(&settings, &reached);
    // The order in which worlds are visited does not change the set of worlds.
    let nearest = nearest_first(&settings, MOST);
    assert_eq!((nearest.states, nearest.steps), (report.states, report.steps));
    assert_eq!(nearest.coverage, report.coverage);
}

/// Reads that a slot probe or a create confirms miss no acknowledged write.
#[test]
fn reads_miss_no_acked_write() {
    let settings = Settings { writes: [2, 0], compactions: 0, reads: 1, lazy: true, ..Settings::default() };
    assert_guarantees_hold(&settings, &with(&[|seen| seen.reads_by_probe, |seen| seen.reads_by_create]));
}

/// Released subjects are claimed again, and all guarantees hold.
#[test]
fn released_subjects_are_claimed_again() {
    let settings =
        Settings { writes: [1, 0], compactions: 1, releases: 1, lazy: true, ..Settings::default() };
    let reached = with(&[|seen| seen.released_claims, |seen| seen.recycled_by_release]);
    assert_guarantees_hold(&settings, &reached);
}

/// Processes crash while their creates land late, and all guarantees hold.
#[test]
fn processes_crash_and_creates_land_late() {
    let settings = Settings { writes: [2, 0], compactions: 0, crashes: 1, lazy: true, ..Settings::default() };
    let reached = with(&[
        |seen| seen.late_segments,
        |seen| seen.late_seals,
        |seen| seen.late_manifests,
        |seen| seen.segments_in_gaps,
    ]);
    assert_guarantees_hold(&settings, &reached);
}

/// Owners close subjects and reopen them, with reads, and all guarantees hold.
#[test]
fn owners_close_and_reopen_subjects() {
    let settings = Settings { writes: [2, 0], compactions: 0, evictions: 1, reads: 1, ..Settings::default() };
    assert_guarantees_hold(&settings, &with(&[|seen| seen.own_opens, |seen| seen.objects_missing]));
}

/// Two subjects share a log, and all guarantees hold.
#[test]
fn two_subjects_share_a_log() {
    let settings =
        Settings { subjects: 2, opens: [1, 0], writes: [1, 2], restarts: 0, ..Settings::default() };
    assert_guarantees_hold(&settings, &with(&[|seen| seen.void_seals, |seen| seen.recycled_by_compaction]));
}

/// Other steps happen between a listing and the read that follows it, and all guarantees hold.
#[test]
fn listings_and_dependent_reads_are_separate_steps() {
    let settings =
        Settings { writes: [2, 0], compactions: 1, split: true, lazy: true, ..Settings::default() };
    assert_guarantees_hold(&settings, &with(&[|seen| seen.void_seals]));
}

/// Creates become indeterminate or are delivered twice, and all guarantees hold.
#[test]
fn creates_become_indeterminate_and_are_duplicated() {
    let settings = Settings { writes: [1, 0], unknowns: 1, duplicates: 1, ..Settings::default() };
    let reached = with(&[|seen| seen.resumed, |seen| seen.void_seals, |seen| seen.late_segments]);
    assert_guarantees_hold(&settings, &reached);
}

/// A reclaim empties orphaned logs during claims, and all guarantees hold.
#[test]
fn reclaim_empties_logs_during_claims() {
    let settings =
        Settings { writes: [1, 0], drains: 1, collector: false, lazy: true, ..Settings::default() };
    assert_guarantees_hold(&settings, &with(&[|seen| seen.drained, |seen| seen.collected_slots]));
}

/// A subject starts without a manifest, and all guarantees hold.
#[test]
fn subject_starts_without_a_manifest() {
    let settings = Settings { empty: true, writes: [1, 0], reads: 1, releases: 1, ..Settings::default() };
    assert_guarantees_hold(&settings, &with(&[|seen| seen.recycled_by_release]));
}

/// If the coordinator loses its state, reads under a lease miss no acknowledged write.
#[test]
fn leases_stay_safe_if_coordinator_loses_state() {
    let settings = Settings {
        writes: [1, 0],
        compactions: 0,
        reads: 2,
        lapses: Some(0),
        state_losses: 1,
        restarts: 0,
        collector: false,
        ..Settings::default()
    };
    let reached: &[fn(&Coverage) -> u64] = &[
        |seen| seen.reads_by_lease,
        |seen| seen.reads_by_probe,
        |seen| seen.leases_confirmed,
        |seen| seen.leases_after_death,
        |seen| seen.takeovers,
    ];
    assert_guarantees_hold(&settings, reached);
}

/// Three processes write and claim, and all guarantees hold.
#[test]
fn three_processes_write_and_claim() {
    let settings =
        Settings { processes: 3, writes: [1, 0], compactions: 0, restarts: 0, ..Settings::default() };
    assert_guarantees_hold(&settings, &with(&[|seen| seen.void_seals]));
}
