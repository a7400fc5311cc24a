//! Worlds from seeds: their runs are reproducible, and the guarantees hold in them.

use std::fmt::Write as _;

use dormouse_sim::run::run_in;
use dormouse_sim::run_config::lossy_events;
use dormouse_sim::soak::{SoakSummary, soak};
use dormouse_sim::{Profile, run};

/// The number of seeds that `make test` runs.
const SEEDS: u64 = 200;

/// The number of seeds after which a bucket that breaks its contract must be detected.
const UNNOTICED: u64 = 200;

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn assert_clean(summary: &SoakSummary) {
    let mut wrong = String::new();
    for report in summary.failed.values() {
        let (seed, profile) = (report.seed, report.profile.as_str());
        writeln!(wrong, "seed {seed}, profile {profile}:\n{}", report.violations.join("\n")).unwrap();
        writeln!(wrong, "replay: cargo run -p dormouse-sim -- replay {seed} --profile {profile} --trace")
            .unwrap();
    }
    assert!(summary.failed.is_empty(), "{wrong}");
}

/// Two runs of one seed give the same trace byte for byte.
#[test]
fn seed_run_twice_gives_the_same_bytes() {
    for (seed, profile) in (0..8).zip(Profile::ALL.into_iter().cycle()) {
        let (one, other) = (run(seed, profile, None, true), run(seed, profile, None, true));
        if one.text != other.text {
            let differ = one.text.lines().zip(other.text.lines()).position(|(one, other)| one != other);
            let at = differ.unwrap_or(0);
            let lines =
                |text: &str| text.lines().skip(at.saturating_sub(3)).take(6).collect::<Vec<_>>().join("\n");
            panic!("seed {seed} differs at line {at}:\n{}\n---\n{}", lines(&one.text), lines(&other.text));
        }
        assert_eq!((one.digest, one.counts), (other.digest, other.counts), "seed {seed}");
    }
}

/// Two different seeds give different runs.
#[test]
fn seeds_that_differ_give_different_runs() {
    assert_ne!(run(1, Profile::Standard, None, false).digest, run(2, Profile::Standard, None, false).digest);
}

/// The fleet keeps every guarantee under random faults, over 200 seeds.
#[test]
fn fleet_keeps_guarantees_under_all_faults() {
    assert_clean(&soak(0..SEEDS, Profile::Standard, None, threads(), |_| true));
}

/// A request executed before a destroy does not execute again after it, under random faults.
#[test]
fn destroy_under_faults_keeps_request_dedup() {
    let summary = soak(0..40, Profile::Destroys, None, threads(), |_| true);
    assert_clean(&summary);
    let destroyed = summary.counts.get("call: destroy").copied().unwrap_or_default();
    assert!(destroyed > 100, "only {destroyed} in {} worlds", summary.runs);
}

/// A log that grows and is trimmed while another server seals it loses nothing.
#[test]
fn log_trimmed_and_extended_during_a_seal_loses_nothing() {
    let summary = soak(0..40, Profile::Overtaken, None, threads(), |_| true);
    assert_clean(&summary);
    let void = summary.counts.get("void seal").copied().unwrap_or_default();
    assert!(void > 0, "no seal landed in a gap in {} worlds", summary.runs);
}

/// Floods, batches, scans and opens of one tenant fail no call of a polite tenant, and cost no server its lease.
#[test]
fn greedy_tenant_leaves_polite_calls_and_leases_alone() {
    let summary = soak(0..12, Profile::Greedy, None, threads(), |_| true);
    assert_clean(&summary);
    let count = |what: &str| summary.counts.get(what).copied().unwrap_or_default();
    for (what, least) in [("attack: overloaded", 100), ("attack: executed", 1_000), ("polite call", 1_000)] {
        assert!(count(what) > least, "{what}: only {} in {} worlds", count(what), summary.runs);
    }
}

/// Feeds stay exact when events are lost, repeated and delayed.
#[test]
fn feeds_are_exact_with_lost_repeated_and_late_events() {
    for seed in 0..20 {
        let report = run_in(seed, lossy_events(seed), None, false);
        assert!(report.violations.is_empty(), "seed {seed}:\n{}", report.violations.join("\n"));
        let count = |what: &str| report.counts.get(what).copied().unwrap_or_default();
        for what in ["message lost", "message duplicated", "message delayed", "checked: feed positions"] {
            assert!(count(what) > 0, "seed {seed}: {what}: none");
        }
    }
}

/// Two coordinators at the same time lose no `bucket` write.
#[test]
fn two_coordinators_lose_no_bucket_write() {
    assert_clean(&soak(0..20, Profile::TwoCoordinators, None, threads(), |_| true));
}

/// Clock drift beyond the allowance of leases loses no `bucket` write.
#[test]
fn clock_drift_beyond_leases_loses_no_bucket_write() {
    assert_clean(&soak(0..20, Profile::ClockDrift, None, threads(), |_| true));
}

/// The simulation detects a bucket whose listings are stale.
#[test]
fn bucket_with_stale_listings_is_detected() {
    let summary =
        soak(0..UNNOTICED, Profile::StaleList, None, threads(), |report| report.violations.is_empty());
    assert!(!summary.failed.is_empty(), "{} runs, without a violation", summary.runs);
}

/// Every seed in `seeds.txt`, each of which once failed, passes.
#[test]
fn seeds_of_past_failures_pass() {
    for line in include_str!("../seeds.txt").lines() {
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        let [profile, seed] = words[..] else {
            assert!(words.is_empty(), "{line:?} is not a profile and a seed");
            continue;
        };
        let profile = Profile::of_name(profile).expect("a profile");
        let report = run(seed.parse().expect("a number"), profile, None, false);
        assert!(report.violations.is_empty(), "{line}:\n{}", report.violations.join("\n"));
    }
}
