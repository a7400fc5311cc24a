//! Worlds from seeds: that they are the same each time, and that promises are kept in them.

use std::fmt::Write as _;

use dormouse_sim::run::run_in;
use dormouse_sim::setting::deaf;
use dormouse_sim::soak::{Harvest, soak};
use dormouse_sim::{Profile, run};

/// How many seeds `make test` goes through.
const SEEDS: u64 = 200;

/// How many seeds a bucket that breaks its contract may stay unnoticed.
const UNNOTICED: u64 = 200;

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn clean(harvest: &Harvest) {
    let mut wrong = String::new();
    for report in harvest.failed.values() {
        let (seed, profile) = (report.seed, report.profile.as_str());
        writeln!(wrong, "seed {seed}, profile {profile}:\n{}", report.violations.join("\n")).unwrap();
        writeln!(wrong, "again: cargo run -p dormouse-sim -- replay {seed} --profile {profile} --trace")
            .unwrap();
    }
    assert!(harvest.failed.is_empty(), "{wrong}");
}

#[test]
fn the_same_seed_twice_is_the_same_byte_for_byte() {
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

#[test]
fn different_seeds_are_different_worlds() {
    assert_ne!(run(1, Profile::Standard, None, false).digest, run(2, Profile::Standard, None, false).digest);
}

#[test]
fn whatever_befalls_the_fleet_every_promise_is_kept() {
    clean(&soak(0..SEEDS, Profile::Standard, None, threads(), |_| true));
}

#[test]
fn what_was_done_before_a_destroy_is_not_done_again_whatever_befalls_the_fleet() {
    let harvest = soak(0..40, Profile::Destroys, None, threads(), |_| true);
    clean(&harvest);
    let destroyed = harvest.counts.get("call: destroy").copied().unwrap_or_default();
    assert!(destroyed > 100, "only {destroyed} in {} worlds", harvest.runs);
}

#[test]
fn a_log_that_grows_and_is_collected_while_it_is_sealed_loses_nothing() {
    let harvest = soak(0..40, Profile::Overtaken, None, threads(), |_| true);
    clean(&harvest);
    let void = harvest.counts.get("void seal").copied().unwrap_or_default();
    assert!(void > 0, "no seal fell into a hole in {} worlds", harvest.runs);
}

#[test]
fn feeds_are_exact_however_many_events_are_lost_repeated_and_late() {
    for seed in 0..20 {
        let report = run_in(seed, deaf(seed), None, false);
        assert!(report.violations.is_empty(), "seed {seed}:\n{}", report.violations.join("\n"));
        let count = |what: &str| report.counts.get(what).copied().unwrap_or_default();
        for what in ["message lost", "message twice", "message late", "checked: places in feeds"] {
            assert!(count(what) > 0, "seed {seed}: {what}: none");
        }
    }
}

#[test]
fn two_coordinators_lose_no_write_of_the_level_bucket() {
    clean(&soak(0..20, Profile::TwoCoordinators, None, threads(), |_| true));
}

#[test]
fn clocks_beyond_what_leases_allow_for_lose_no_write_of_the_level_bucket() {
    clean(&soak(0..20, Profile::ClockDrift, None, threads(), |_| true));
}

#[test]
fn a_bucket_whose_listings_are_stale_is_found_out() {
    let harvest =
        soak(0..UNNOTICED, Profile::StaleList, None, threads(), |report| report.violations.is_empty());
    assert!(!harvest.failed.is_empty(), "{} runs, and nothing was noticed", harvest.runs);
}

#[test]
fn seeds_that_failed_once_are_clean() {
    for line in include_str!("../seeds.txt").lines() {
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        let [profile, seed] = words[..] else {
            assert!(words.is_empty(), "{line:?} is no profile and seed");
            continue;
        };
        let profile = Profile::of_name(profile).expect("a profile");
        let report = run(seed.parse().expect("a number"), profile, None, false);
        assert!(report.violations.is_empty(), "{line}:\n{}", report.violations.join("\n"));
    }
}
