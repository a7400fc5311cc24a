//! Every rule, broken: if the driver misleads production's machines, or acts without their request, the model must find
//! a violated guarantee. Otherwise the test gives the reason. The tests print the traces: `cargo nextest run -p
//! dormouse-model --no-capture -E 'binary(broken_rules)'`.

use dormouse_model::action::Action::{self, *};
use dormouse_model::action::Job::Subject;
use dormouse_model::check::Violation::{self, *};
use dormouse_model::explore::nearest_first;
use dormouse_model::settings::{Bases, BrokenRule, Settings};

/// More states than any of these runs needs.
const MOST: usize = 4_000_000;

/// One subject, no reads.
fn bounds(writes: u8, compactions: u8) -> Settings {
    Settings { writes: [writes, 0], compactions, ..Settings::default() }
}

/// Asserts that the broken rule violates a guarantee, and that the same world without it does not within as many
/// states.
#[track_caller]
fn breaks(rule: BrokenRule, settings: &Settings, promise: Violation) {
    let report = nearest_first(&Settings { broken_rule: Some(rule), ..settings.clone() }, MOST);
    println!("{rule:?}: {report}");
    assert_eq!(report.counterexample.map(|found| found.violation), Some(promise));
    let unbroken = nearest_first(settings, report.states);
    assert!(unbroken.counterexample.is_none(), "without the broken rule: {unbroken}");
}

/// Asserts that the broken rule is harmless within these bounds, and that the search was complete.
#[track_caller]
fn harmless(rule: BrokenRule, settings: &Settings) {
    let report = nearest_first(&Settings { broken_rule: Some(rule), ..settings.clone() }, MOST);
    println!("{rule:?}: {report}");
    assert!(report.counterexample.is_none() && report.exhaustive, "{report}");
}

/// If a claim trusts a created seal without listing it as the highest slot, a subject cannot be rebuilt.
#[test]
fn seal_must_be_listed_as_the_highest_slot() {
    // The seal lands in a gap that held only changes of the other subject, so no other check fails.
    let two = Settings { subjects: 2, opens: [1, 0], writes: [1, 2], ..Settings::default() };
    breaks(BrokenRule::NoListAfterSeal, &two, CannotRebuild);
}

/// With one subject, skipping the listing after a seal is harmless, because the claim's last listing finds a void seal.
#[test]
fn seal_listing_not_needed_with_one_subject() {
    // A newer base of that very subject makes the gap. The claim is then rejected or superseded.
    harmless(BrokenRule::NoListAfterSeal, &bounds(2, 1));
}

/// If the owner trims its highest slot, a subject cannot be rebuilt.
#[test]
fn owner_must_not_trim_the_highest_slot() {
    breaks(BrokenRule::OwnerTrimsHighest, &bounds(2, 1), CannotRebuild);
}

/// If a claim does not list manifests after its create, a subject cannot be rebuilt.
#[test]
fn claim_must_list_manifests_after_the_create() {
    breaks(BrokenRule::NoListAfterClaim, &bounds(3, 2), CannotRebuild);
}

/// If a taken slot counts as the owner's segment, a subject cannot be rebuilt.
#[test]
fn segment_create_conflict_must_not_count_as_success() {
    breaks(BrokenRule::ExistsIsSuccessForData, &bounds(2, 0), CannotRebuild);
}

/// If an existing manifest counts as the claim's own, a subject cannot be rebuilt.
#[test]
fn claim_create_conflict_must_not_count_as_success() {
    breaks(BrokenRule::ExistsIsSuccessForClaim, &bounds(2, 1), CannotRebuild);
}

/// If an existing manifest counts as the compaction's own, a subject cannot be rebuilt.
#[test]
fn compaction_create_conflict_must_not_be_success() {
    // The owner assumes that its base is the newest, and deletes objects of the real newest one.
    breaks(BrokenRule::ExistsIsSuccessForCompaction, &bounds(2, 1), CannotRebuild);
}

/// If a taken slot counts as the claim's seal, a subject cannot be rebuilt.
#[test]
fn seal_create_conflict_must_not_count_as_success() {
    breaks(BrokenRule::ExistsIsSuccessForSeal, &bounds(2, 1), CannotRebuild);
}

/// If collection deletes the seal of a log, a subject cannot be rebuilt.
#[test]
fn seal_must_not_be_deleted_by_collection() {
    breaks(BrokenRule::SealsAreDeleted, &bounds(2, 1), CannotRebuild);
}

/// If a claim reads the previous owner's log without sealing it, a subject cannot be rebuilt.
#[test]
fn claim_must_seal_the_previous_owners_log() {
    breaks(BrokenRule::ClaimWithoutSeal, &bounds(2, 0), CannotRebuild);
}

/// If any seal in a log counts as its end, a subject cannot be rebuilt.
#[test]
fn seal_below_the_highest_slot_must_not_end_a_log() {
    breaks(BrokenRule::SealedIfAnySlotIs, &bounds(3, 1), CannotRebuild);
}

/// If an owner that meets a seal writes its segment after it, a subject cannot be rebuilt.
#[test]
fn owner_must_not_write_after_a_seal() {
    breaks(BrokenRule::SameBatchAfterSeal, &bounds(2, 1), CannotRebuild);
}

/// If a compaction does not list manifests after its create, a subject cannot be rebuilt.
#[test]
fn compaction_must_list_manifests_after_the_create() {
    // The manifest has a number that was collected: its owner deletes a delta that the newest one refers to.
    let deltas = Settings { bases: Bases::Deltas, ..bounds(2, 2) };
    breaks(BrokenRule::NoListAfterCompaction, &deltas, CannotRebuild);
}

/// If a release does not list manifests after its create, a subject cannot be rebuilt.
#[test]
fn release_must_list_manifests_after_the_create() {
    let deltas = Settings { bases: Bases::Deltas, releases: 1, ..bounds(2, 1) };
    breaks(BrokenRule::NoListAfterRelease, &deltas, CannotRebuild);
}

/// If every base is a snapshot, skipping the listing after a compaction is harmless.
#[test]
fn compaction_listing_not_needed_with_snapshot_bases() {
    // If every claim and every compaction makes a snapshot, no delta of an earlier manifest can be deleted. No subject
    // needs the slots that a taken-over subject has left behind, because claims leave nothing in a foreign log.
    harmless(BrokenRule::NoListAfterCompaction, &Settings { bases: Bases::Snapshots, ..bounds(2, 1) });
}

/// If collection decides by an older manifest, a subject cannot be rebuilt.
#[test]
fn collection_must_read_the_newest_manifest() {
    breaks(BrokenRule::CollectorTakesAnyManifest, &bounds(2, 1), CannotRebuild);
}

/// If a manifest does not need the log, a reclaim may treat its subject as free without a last listing.
#[test]
fn reclaim_listing_not_needed_for_a_free_subject() {
    // The reclaim saw a manifest that was the newest earlier, or a late one under a number that was collected. No
    // manifest created after the seal can name the log again, except one already in flight before it. That one has a
    // lower number than a manifest that does not need the log.
    let drain = Settings { drains: 1, collector: false, ..bounds(1, 1) };
    harmless(BrokenRule::ReclaimWithoutLastList, &drain);
}

/// If a reclaim does not list manifests after its create, a subject cannot be rebuilt.
#[test]
fn reclaim_must_list_manifests_after_the_create() {
    let drain = Settings { drains: 1, collector: false, releases: 1, ..bounds(1, 1) };
    breaks(BrokenRule::ReclaimReleaseWithoutLastList, &drain, CannotRebuild);
}

/// If an owner reopens a subject without a last listing, a late duplicate claim makes the subject impossible to
/// rebuild.
#[test]
fn owner_reopen_must_list_manifests() {
    // A late copy of a rejected claim lands under a number that was collected, between the listing and its read.
    let settings = Settings { duplicates: 1, split: true, prologue: two_bases_and_a_claim(), ..bounds(3, 2) };
    breaks(BrokenRule::OwnOpenWithoutLastList, &settings, CannotRebuild);
}

/// The first process writes twice and uploads its second base; the second has sent its claim on the first base.
fn two_bases_and_a_claim() -> Vec<Action> {
    let x = Subject(0);
    let written = [Write(0, 0), LandSegment(0), SegmentAnswered(0), Write(0, 0), LandSegment(0)];
    let first_base =
        [Compact(0, 0), SegmentAnswered(0), Open(1, 0), Land(0, x), Answered(0, x), Compact(0, 0)];
    let sealed = [Step(1, x), Step(1, x), Step(1, x), Land(1, x), Answered(1, x)];
    written.into_iter().chain(first_base).chain(sealed).collect()
}

/// Without duplicate requests, skipping the last listing at a reopen is harmless.
#[test]
fn owner_reopen_listing_not_needed_without_duplicates() {
    // A manifest that names the process's log without its claim comes only from a late copy. A takeover in between
    // shows with the first write or read: both meet the seal.
    harmless(BrokenRule::OwnOpenWithoutLastList, &Settings { evictions: 1, reads: 1, ..bounds(2, 0) });
    harmless(BrokenRule::OwnOpenWithoutLastList, &Settings { evictions: 1, split: true, ..bounds(2, 1) });
}

/// If a reopening owner reads its log from the bucket and keeps pending reads, a read is stale.
#[test]
fn owner_reopen_must_use_log_state_and_fail_old_reads() {
    let settings = Settings { evictions: 1, reads: 1, split: true, ..bounds(2, 0) };
    breaks(BrokenRule::OwnOpenFromBucket, &settings, StaleRead);
}

/// If a slot probe that began before a read counts as its barrier, the read is stale.
#[test]
fn slot_probe_begun_before_a_read_is_no_barrier() {
    breaks(BrokenRule::EarlierProbeCounts, &Settings { reads: 2, ..bounds(2, 0) }, StaleRead);
}

/// If a slot probe that began during a create counts as a barrier, a read is stale.
#[test]
fn slot_probe_must_wait_for_creates_in_flight() {
    breaks(BrokenRule::ProbeDuringCreate, &Settings { reads: 1, ..bounds(2, 1) }, StaleRead);
}

/// If a create already in flight counts as the barrier of a later read, the read is stale.
#[test]
fn create_in_flight_is_no_barrier_for_a_later_read() {
    // A create that starts after the read arrived does confirm it, in every run without a broken rule:
    // `reads_by_create`.
    breaks(BrokenRule::CreateInFlightCounts, &Settings { reads: 1, ..bounds(2, 0) }, StaleRead);
}

/// If a subject serves reads until its release is definite, a read is stale.
#[test]
fn release_must_stop_reads_first() {
    breaks(BrokenRule::ReadsUntilReleased, &Settings { reads: 1, releases: 1, ..bounds(1, 0) }, StaleRead);
}

/// If a subject reopens while its release is indeterminate, it cannot be rebuilt.
#[test]
fn subject_must_not_reopen_during_indeterminate_release() {
    breaks(BrokenRule::ReopenDuringRelease, &Settings { releases: 1, ..bounds(2, 0) }, CannotRebuild);
}

/// If a subject closes and reopens with writes in flight, an acknowledged write is forgotten.
#[test]
fn subject_must_not_close_with_indeterminate_writes() {
    breaks(BrokenRule::EvictWithWritesInFlight, &Settings { evictions: 1, ..bounds(2, 0) }, Forgotten);
}

/// If collection reads manifests before it sees the seal, a subject cannot be rebuilt.
#[test]
fn collection_must_see_the_seal_before_manifests() {
    breaks(BrokenRule::CollectorReadsBeforeSeal, &bounds(2, 0), CannotRebuild);
}

/// If a claim in progress continues after its own log has ended, a subject cannot be rebuilt.
#[test]
fn claim_must_end_with_the_log_of_the_claimant() {
    let settings = Settings { evictions: 1, reads: 1, ..bounds(1, 0) };
    breaks(BrokenRule::ClaimSurvivesLog, &settings, CannotRebuild);
}

/// Leases; the coordinator loses its record of dead servers once, or lets a dead server join again.
fn leases() -> Settings {
    Settings { reads: 2, lapses: Some(0), state_losses: 1, restarts: 0, collector: false, ..bounds(1, 0) }
}

/// If a claim does not ask the authority again after its seal, a read is stale.
#[test]
fn claim_must_ask_the_authority_again_after_the_seal() {
    // While the seal is in flight, the owner gets a lease and passes the barrier that confirms it.
    breaks(BrokenRule::NoRecheckAfterSeal, &leases(), StaleRead);
}

/// If a lease serves reads before a barrier confirms it, a read is stale.
#[test]
fn lease_must_be_confirmed_by_a_barrier() {
    breaks(BrokenRule::LeaseWithoutBarrier, &leases(), StaleRead);
}

/// If the coordinator never loses its state, a lease without a barrier is harmless.
#[test]
fn lease_barrier_not_needed_if_coordinator_keeps_state() {
    // A log whose server was declared dead gets no lease again, and earlier no process has taken it over.
    harmless(BrokenRule::LeaseWithoutBarrier, &Settings { state_losses: 0, lapses: Some(1), ..leases() });
}

/// If the coordinator declares a log dead while its owner still holds a confirmed lease, a read is stale.
#[test]
fn lease_reads_depend_on_bounded_clock_drift() {
    // This is outside the assumption that a process stops using its lease before the coordinator declares its server
    // dead.
    breaks(BrokenRule::DeadDespiteLease, &Settings { state_losses: 0, ..leases() }, StaleRead);
}

/// Each broken rule of the model is used by a test of this file.
#[test]
fn broken_rules_have_a_test_each() {
    let here = include_str!("broken_rules.rs");
    for rule in BrokenRule::ALL {
        assert!(here.contains(&format!("(BrokenRule::{rule:?}, ")), "{rule:?} has no test");
    }
}
