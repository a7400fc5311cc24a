//! Every rule, broken: a driver that lies to production's machines, or does what they did not ask for, must come to a
//! broken promise. Where it does not, the test says why. The traces are printed: `cargo nextest run -p dormouse-model
//! --no-capture -E 'binary(broken_rules)'`.

use dormouse_model::action::Action::{self, *};
use dormouse_model::action::Job::Subject;
use dormouse_model::check::Violation::{self, *};
use dormouse_model::explore::nearest_first;
use dormouse_model::settings::{Bases, Lie, Settings};

/// More states than any of these runs needs.
const MOST: usize = 4_000_000;

/// One subject, no reads.
fn bounds(writes: u8, compactions: u8) -> Settings {
    Settings { writes: [writes, 0], compactions, ..Settings::default() }
}

/// The lie breaks a promise, and the same world without it does not in as many states.
#[track_caller]
fn breaks(lie: Lie, settings: &Settings, promise: Violation) {
    let report = nearest_first(&Settings { lie: Some(lie), ..settings.clone() }, MOST);
    println!("{lie:?}: {report}");
    assert_eq!(report.counterexample.map(|found| found.violation), Some(promise));
    let honest = nearest_first(settings, report.states);
    assert!(honest.counterexample.is_none(), "without the lie: {honest}");
}

/// The lie does no harm within these bounds, and nothing was left out.
#[track_caller]
fn harmless(lie: Lie, settings: &Settings) {
    let report = nearest_first(&Settings { lie: Some(lie), ..settings.clone() }, MOST);
    println!("{lie:?}: {report}");
    assert!(report.counterexample.is_none() && report.exhaustive, "{report}");
}

#[test]
fn a_seal_counts_only_once_it_is_seen_to_be_the_highest_slot() {
    // The seal falls into a hole that held only changes of the other subject, so nothing else notices.
    let two = Settings { subjects: 2, opens: [1, 0], writes: [1, 2], ..Settings::default() };
    breaks(Lie::NoListAfterSeal, &two, CannotRebuild);
}

#[test]
fn with_one_subject_the_last_listing_of_a_claim_also_finds_a_void_seal() {
    // A hole is made by a newer base of that very subject: the claim is refused, or overtaken.
    harmless(Lie::NoListAfterSeal, &bounds(2, 1));
}

#[test]
fn the_owner_keeps_its_highest_slot() {
    breaks(Lie::OwnerTrimsHighest, &bounds(2, 1), CannotRebuild);
}

#[test]
fn a_claim_looks_whether_its_manifest_is_the_newest() {
    breaks(Lie::NoListAfterClaim, &bounds(3, 2), CannotRebuild);
}

#[test]
fn what_exists_is_not_ours_segment() {
    breaks(Lie::ExistsIsSuccessForData, &bounds(2, 0), CannotRebuild);
}

#[test]
fn what_exists_is_not_ours_claim() {
    breaks(Lie::ExistsIsSuccessForClaim, &bounds(2, 1), CannotRebuild);
}

#[test]
fn what_exists_is_not_ours_compaction() {
    // The owner believes that its base is the newest, and deletes what the real newest one refers to.
    breaks(Lie::ExistsIsSuccessForCompaction, &bounds(2, 1), CannotRebuild);
}

#[test]
fn what_exists_is_not_ours_seal() {
    breaks(Lie::ExistsIsSuccessForSeal, &bounds(2, 1), CannotRebuild);
}

#[test]
fn the_seal_that_ends_a_log_stays() {
    breaks(Lie::SealsAreDeleted, &bounds(2, 1), CannotRebuild);
}

#[test]
fn a_claim_seals_the_log_of_its_predecessor() {
    breaks(Lie::ClaimWithoutSeal, &bounds(2, 0), CannotRebuild);
}

#[test]
fn a_seal_below_the_highest_slot_ends_nothing() {
    breaks(Lie::SealedIfAnySlotIs, &bounds(3, 1), CannotRebuild);
}

#[test]
fn nothing_is_written_behind_a_seal() {
    breaks(Lie::SameBatchAfterSeal, &bounds(2, 1), CannotRebuild);
}

#[test]
fn a_compaction_looks_whether_its_manifest_is_the_newest() {
    // Its manifest has a number that was collected: its owner deletes a delta that the newest one refers to.
    let deltas = Settings { bases: Bases::Deltas, ..bounds(2, 2) };
    breaks(Lie::NoListAfterCompaction, &deltas, CannotRebuild);
}

#[test]
fn a_release_looks_whether_its_manifest_is_the_newest() {
    let deltas = Settings { bases: Bases::Deltas, releases: 1, ..bounds(2, 1) };
    breaks(Lie::NoListAfterRelease, &deltas, CannotRebuild);
}

#[test]
fn trimming_alone_does_not_need_that_look() {
    // Where every claim and every compaction makes a snapshot, there is no delta of an earlier manifest to be deleted;
    // and slots that a taken subject has left behind are needed by nobody, because claims leave nothing in a foreign log.
    harmless(Lie::NoListAfterCompaction, &Settings { bases: Bases::Snapshots, ..bounds(2, 1) });
}

#[test]
fn a_collector_of_slots_asks_the_newest_manifest() {
    breaks(Lie::CollectorTakesAnyManifest, &bounds(2, 1), CannotRebuild);
}

#[test]
fn a_drain_may_take_a_subject_for_free_without_a_last_look() {
    // What the drain saw was the newest once, or a late one under a number that was collected. No manifest that comes
    // after the seal can name the log again, except one that was on its way before it: and that has a lower number than
    // one that does not need the log.
    let drain = Settings { drains: 1, collector: false, ..bounds(1, 1) };
    harmless(Lie::DrainWithoutLastList, &drain);
}

#[test]
fn a_drain_looks_whether_the_manifest_that_it_made_is_the_newest() {
    let drain = Settings { drains: 1, collector: false, releases: 1, ..bounds(1, 1) };
    breaks(Lie::DrainReleasesWithoutLastList, &drain, CannotRebuild);
}

#[test]
fn an_owner_that_opens_again_looks_whether_it_still_owns() {
    // A late copy of a refused claim lands under a number that was collected, between the listing and the reading of it.
    let settings = Settings { duplicates: 1, split: true, prologue: two_bases_and_a_claim(), ..bounds(3, 2) };
    breaks(Lie::OwnOpenWithoutLastList, &settings, CannotRebuild);
}

/// The first process writes twice and is bringing its second base; the second has sent its claim upon the first.
fn two_bases_and_a_claim() -> Vec<Action> {
    let x = Subject(0);
    let written = [Write(0, 0), LandSegment(0), SegmentAnswered(0), Write(0, 0), LandSegment(0)];
    let first_base =
        [Compact(0, 0), SegmentAnswered(0), Open(1, 0), Land(0, x), Answered(0, x), Compact(0, 0)];
    let sealed = [Step(1, x), Step(1, x), Step(1, x), Land(1, x), Answered(1, x)];
    written.into_iter().chain(first_base).chain(sealed).collect()
}

#[test]
fn without_late_copies_that_look_is_not_needed() {
    // A manifest that names the process's log and was not made by it as its owner comes of a late copy only. That the
    // subject was taken over meanwhile shows with the first write or read: both meet the seal.
    harmless(Lie::OwnOpenWithoutLastList, &Settings { evictions: 1, reads: 1, ..bounds(2, 0) });
    harmless(Lie::OwnOpenWithoutLastList, &Settings { evictions: 1, split: true, ..bounds(2, 1) });
}

#[test]
fn an_owner_that_opens_again_reads_by_its_books_and_has_failed_its_reads() {
    let settings = Settings { evictions: 1, reads: 1, split: true, ..bounds(2, 0) };
    breaks(Lie::OwnOpenByWhatIsThere, &settings, StaleRead);
}

#[test]
fn a_look_begun_before_a_read_proves_nothing_for_it() {
    breaks(Lie::EarlierLookCounts, &Settings { reads: 2, ..bounds(2, 0) }, StaleRead);
}

#[test]
fn nobody_looks_while_a_create_is_in_flight() {
    breaks(Lie::LookWhilePutting, &Settings { reads: 1, ..bounds(2, 1) }, StaleRead);
}

#[test]
fn a_create_in_flight_proves_nothing_for_a_later_read() {
    // That one issued after the read arrived does, is in every honest run with reads: `reads_by_create`.
    breaks(Lie::CreateInFlightCounts, &Settings { reads: 1, ..bounds(2, 0) }, StaleRead);
}

#[test]
fn a_subject_is_closed_to_reads_before_it_is_released() {
    breaks(Lie::ReadsUntilReleased, &Settings { reads: 1, releases: 1, ..bounds(1, 0) }, StaleRead);
}

#[test]
fn a_subject_stays_closed_until_its_release_is_definite() {
    breaks(Lie::ReopenDuringRelease, &Settings { releases: 1, ..bounds(2, 0) }, CannotRebuild);
}

#[test]
fn a_subject_stays_open_until_its_writes_are_definite() {
    breaks(Lie::EvictWithWritesInFlight, &Settings { evictions: 1, ..bounds(2, 0) }, Forgotten);
}

#[test]
fn a_collector_sees_the_seal_before_it_looks_at_manifests() {
    breaks(Lie::CollectorLooksBeforeSeal, &bounds(2, 0), CannotRebuild);
}

#[test]
fn a_claim_ends_with_the_log_that_it_was_made_for() {
    let settings = Settings { evictions: 1, reads: 1, ..bounds(1, 0) };
    breaks(Lie::ClaimSurvivesLog, &settings, CannotRebuild);
}

/// Leases; the coordinator forgets once whom it has declared dead, or lets it join again.
fn leases() -> Settings {
    Settings { reads: 2, lapses: Some(0), oblivions: 1, restarts: 0, collector: false, ..bounds(1, 0) }
}

#[test]
fn the_authority_is_asked_again_once_the_seal_is_in_place() {
    // While the seal is on its way, the owner gets a lease and passes the barrier that lets it trust it.
    breaks(Lie::NoAskAfterSeal, &leases(), StaleRead);
}

#[test]
fn a_lease_is_trusted_only_after_a_barrier() {
    breaks(Lie::LeaseWithoutBarrier, &leases(), StaleRead);
}

#[test]
fn with_a_coordinator_that_never_forgets_that_barrier_is_not_needed() {
    // A log that was declared dead gets no lease any more, and before that nobody has taken it over.
    harmless(Lie::LeaseWithoutBarrier, &Settings { oblivions: 0, lapses: Some(1), ..leases() });
}

#[test]
fn reads_under_a_lease_rest_on_clocks() {
    // Outside the assumption that a process stops trusting its lease before the coordinator declares its log dead.
    breaks(Lie::DeadDespiteLease, &Settings { oblivions: 0, ..leases() }, StaleRead);
}

#[test]
fn every_lie_has_its_test() {
    let here = include_str!("broken_rules.rs");
    for lie in Lie::ALL {
        assert!(here.contains(&format!("(Lie::{lie:?}, ")), "{lie:?} is told in no test");
    }
}
