//! Durability: the writes that must survive, and the writes that may be lost.

use dormouse_checker::{Assumptions, Property, ServerFaultKind};
use dormouse_protocol::Level;

use crate::story::{Story, at, message};

/// Three writes on the first server at seconds 1 to 6. The second server inherits `revs` of them.
fn inherited(level: Level, revs: u64) -> Story {
    let mut story = Story::of_level(level);
    story.term(1, 0, "persist-1").term(2, revs, "persist-2");
    for number in 1..=3 {
        story.set("", &format!("v{number}"), number, at(1, number));
    }
    story
}

/// A write acknowledged at `bucket` must be in the next term, even after a wiped disk and under broken assumptions.
#[test]
fn bucket_ack_missing_in_next_term_is_violation() {
    let mut story = inherited(Level::Bucket, 3);
    story.fault("persist-1", ServerFaultKind::DiskWiped, 1, 20).beacon(at(2, 3), 3);
    story.is_clean();
    let mut story = inherited(Level::Bucket, 2);
    story.fault("persist-1", ServerFaultKind::DiskWiped, 1, 20).beacon(at(2, 2), 2);
    story.breaks(Property::BucketIsKept, 2);
    story.history.rules.assumptions = Assumptions::Broken;
    story.breaks(Property::BucketIsKept, 2);
}

/// After a flush reply, every earlier write counts as durable, whatever its level.
#[test]
fn flush_makes_all_earlier_writes_durable() {
    let mut story = inherited(Level::Memory, 2);
    story.fault("persist-1", ServerFaultKind::DiskWiped, 1, 20);
    story.is_clean();
    let flushed = dormouse_protocol::data::FlushReply { position: at(1, 3) };
    story.call(
        dormouse_checker::Op::Flush,
        dormouse_checker::CallOutcome::Answered(dormouse_checker::OpResult::Flush(flushed)),
    );
    story.breaks(Property::BucketIsKept, 2);
}

/// An unanswered `bucket` write may vanish in a takeover only if no read has shown it.
#[test]
fn bucket_write_shown_by_read_must_survive_takeover() {
    let mut story = Story::new();
    story.term(1, 0, "persist-1").term(2, 0, "persist-2");
    story.lost_set("k", "a").get("k", vec![], at(2, 0));
    story.is_clean();
    let mut story = Story::new();
    story.term(1, 0, "persist-1").term(2, 0, "persist-2");
    story.lost_set("k", "a").get("k", vec![message("k", "a", 1, at(1, 1))], at(1, 1));
    story.get("k", vec![], at(2, 0));
    story.breaks(Property::BucketIsKept, 2);
}

/// A weaker level may lose only recent writes, and only if a fault hit the server that took them.
#[test]
fn weaker_level_loss_needs_a_matching_fault() {
    for level in [Level::Memory, Level::Interval, Level::Disk] {
        inherited(level, 3).is_clean();
        inherited(level, 2).breaks(Property::WeakerLevelsWithinTheTable, 2);
        for kind in [
            ServerFaultKind::Killed,
            ServerFaultKind::Paused,
            ServerFaultKind::CutFromBucket,
            ServerFaultKind::TakenOver,
        ] {
            let mut story = inherited(level, 2);
            story.fault("persist-1", kind, 8, 20);
            story.is_clean();
            let mut story = inherited(level, 2);
            story.fault("persist-2", kind, 8, 20);
            story.breaks(Property::WeakerLevelsWithinTheTable, 2);
            // A write of that age had been shipped.
            let mut story = inherited(level, 2);
            story.fault("persist-1", kind, 40, 50);
            story.breaks(Property::WeakerLevelsWithinTheTable, 2);
        }
    }
}

/// A server that restarts on an intact disk loses only writes whose level does not keep them there through that fault.
#[test]
fn server_restart_keeps_writes_held_on_disk() {
    let back = |level, kind| {
        let mut story = inherited(level, 2);
        story.term(2, 2, "persist-1").fault("persist-1", kind, 7, 8);
        story
    };
    back(Level::Memory, ServerFaultKind::Killed).is_clean();
    back(Level::Interval, ServerFaultKind::Killed).breaks(Property::WeakerLevelsWithinTheTable, 2);
    back(Level::Disk, ServerFaultKind::Killed).breaks(Property::WeakerLevelsWithinTheTable, 2);
    back(Level::Interval, ServerFaultKind::PowerLost).is_clean();
    back(Level::Disk, ServerFaultKind::PowerLost).breaks(Property::WeakerLevelsWithinTheTable, 2);
    back(Level::Disk, ServerFaultKind::DiskWiped).is_clean();
    back(Level::Disk, ServerFaultKind::DiskRestored).is_clean();
}

/// If a term between two terms of a server is unknown, another server may have owned the subject in between.
#[test]
fn term_gap_allows_a_takeover_by_an_unknown_server() {
    let back = |term| {
        let mut story = inherited(Level::Disk, 2);
        story.subject.terms.remove(&dormouse_protocol::Term::new(2));
        story.term(term, 2, "persist-1").fault("persist-1", ServerFaultKind::CutFromBucket, 7, 8);
        story
    };
    back(3).is_clean();
    back(2).breaks(Property::WeakerLevelsWithinTheTable, 2);
}

/// A write after a configure has the configured level, while the configure itself must survive at `bucket`.
#[test]
fn level_of_a_write_follows_the_config() {
    let weakened = |lost: u64| {
        let mut story = Story::new();
        story.term(1, 0, "persist-1").term(2, lost, "persist-2");
        story.fault("persist-1", ServerFaultKind::Killed, 1, 30);
        story.configure(Level::Memory, at(1, 1)).set("", "a", 1, at(1, 2)).beacon(at(2, lost), lost);
        story
    };
    weakened(1).is_clean();
    weakened(0).breaks(Property::BucketIsKept, 2);
}

/// A later term inherits at least as many revs as an earlier term.
#[test]
fn term_base_never_goes_down() {
    let mut story = Story::new();
    story.set("", "a", 1, at(1, 1)).beacon(at(2, 1), 1).beacon(at(3, 1), 1);
    story.is_clean();
    let mut story = Story::new();
    story.set("", "a", 1, at(1, 1)).beacon(at(2, 1), 1).beacon(at(3, 0), 0);
    story.breaks(Property::BucketIsKept, 2);
}
