//! Everything that can happen within small bounds, with production's machines as they are. The larger bounds are in
//! `soak.rs`.

use dormouse_model::explore::{Report, deep_first, nearest_first};
use dormouse_model::settings::{Coverage, Settings};

/// More states than any of these runs has.
const MOST: usize = 4_000_000;

/// Goes through everything; all promises are kept, and every place in `reached` was come by.
#[track_caller]
fn holds(settings: &Settings, reached: &[fn(&Coverage) -> u64]) -> Report {
    let report = deep_first(settings, MOST);
    println!("{report}");
    assert!(report.counterexample.is_none() && report.exhaustive, "{report}");
    for (at, count) in reached.iter().enumerate() {
        assert!(count(&report.coverage) > 0, "place {at} of the list was never reached: {report}");
    }
    report
}

/// What a claim and its rivals come by in every run.
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

#[test]
fn two_processes_write_compact_and_claim() {
    let settings = Settings { writes: [2, 0], compactions: 1, lazy: true, ..Settings::default() };
    let reached = with(&[
        |seen| seen.void_seals,
        |seen| seen.recycled_by_compaction,
        |seen| seen.failed_publish_verifies,
        |seen| seen.segments_in_holes,
        |seen| seen.collected_slots,
        |seen| seen.trimmed_slots,
        |seen| seen.collected_uploads,
        |seen| seen.objects_missing,
        |seen| seen.late_manifests,
    ]);
    let report = holds(&settings, &reached);
    // The order in which worlds are visited makes no difference to which there are.
    let nearest = nearest_first(&settings, MOST);
    assert_eq!((nearest.states, nearest.steps), (report.states, report.steps));
    assert_eq!(nearest.coverage, report.coverage);
}

#[test]
fn reads_miss_nothing() {
    let settings = Settings { writes: [2, 0], compactions: 0, reads: 1, lazy: true, ..Settings::default() };
    holds(&settings, &with(&[|seen| seen.reads_by_look, |seen| seen.reads_by_create]));
}

#[test]
fn released_subjects_are_claimed_anew() {
    let settings =
        Settings { writes: [1, 0], compactions: 1, releases: 1, lazy: true, ..Settings::default() };
    let reached = with(&[|seen| seen.released_claims, |seen| seen.recycled_by_release]);
    holds(&settings, &reached);
}

#[test]
fn processes_die_and_what_they_sent_lands_late() {
    let settings = Settings { writes: [2, 0], compactions: 0, crashes: 1, lazy: true, ..Settings::default() };
    let reached = with(&[
        |seen| seen.late_segments,
        |seen| seen.late_seals,
        |seen| seen.late_manifests,
        |seen| seen.segments_in_holes,
    ]);
    holds(&settings, &reached);
}

#[test]
fn owners_close_subjects_and_open_them_again() {
    let settings = Settings { writes: [2, 0], compactions: 0, evictions: 1, reads: 1, ..Settings::default() };
    holds(&settings, &with(&[|seen| seen.own_opens, |seen| seen.objects_missing]));
}

#[test]
fn two_subjects_share_a_log() {
    let settings =
        Settings { subjects: 2, opens: [1, 0], writes: [1, 2], restarts: 0, ..Settings::default() };
    holds(&settings, &with(&[|seen| seen.void_seals, |seen| seen.recycled_by_compaction]));
}

#[test]
fn listings_and_what_is_read_because_of_them_are_apart() {
    let settings =
        Settings { writes: [2, 0], compactions: 1, split: true, lazy: true, ..Settings::default() };
    holds(&settings, &with(&[|seen| seen.void_seals]));
}

#[test]
fn creations_are_given_up_and_delivered_twice() {
    let settings = Settings { writes: [1, 0], unknowns: 1, duplicates: 1, ..Settings::default() };
    let reached = with(&[|seen| seen.resumed, |seen| seen.void_seals, |seen| seen.late_segments]);
    holds(&settings, &reached);
}

#[test]
fn a_drain_empties_logs_while_others_claim() {
    let settings =
        Settings { writes: [1, 0], drains: 1, collector: false, lazy: true, ..Settings::default() };
    holds(&settings, &with(&[|seen| seen.drained, |seen| seen.collected_slots]));
}

#[test]
fn a_subject_begins_with_nothing() {
    let settings = Settings { empty: true, writes: [1, 0], reads: 1, releases: 1, ..Settings::default() };
    holds(&settings, &with(&[|seen| seen.recycled_by_release]));
}

#[test]
fn leases_are_granted_by_a_coordinator_that_forgets() {
    let settings = Settings {
        writes: [1, 0],
        compactions: 0,
        reads: 2,
        lapses: Some(0),
        oblivions: 1,
        restarts: 0,
        collector: false,
        ..Settings::default()
    };
    let reached: &[fn(&Coverage) -> u64] = &[
        |seen| seen.reads_by_lease,
        |seen| seen.reads_by_look,
        |seen| seen.leases_trusted,
        |seen| seen.leases_to_the_dead,
        |seen| seen.takeovers,
    ];
    holds(&settings, reached);
}

#[test]
fn three_processes() {
    let settings =
        Settings { processes: 3, writes: [1, 0], compactions: 0, restarts: 0, ..Settings::default() };
    holds(&settings, &with(&[|seen| seen.void_seals]));
}
