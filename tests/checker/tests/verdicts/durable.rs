//! What must be kept, and what may be lost.

use dormouse_checker::{Assumptions, HarmKind, Property};
use dormouse_protocol::Level;

use crate::story::{Story, at, message};

/// Three writes of the first server at seconds 1 to 6, of which the second inherits so many.
fn inherited(level: Level, revs: u64) -> Story {
    let mut story = Story::of_level(level);
    story.term(1, 0, "persist-1").term(2, revs, "persist-2");
    for number in 1..=3 {
        story.set("", &format!("v{number}"), number, at(1, number));
    }
    story
}

#[test]
fn what_was_acknowledged_at_bucket_is_inherited() {
    let mut story = inherited(Level::Bucket, 3);
    story.harm("persist-1", HarmKind::DiskWiped, 1, 20).beacon(at(2, 3), 3);
    story.is_clean();
    let mut story = inherited(Level::Bucket, 2);
    story.harm("persist-1", HarmKind::DiskWiped, 1, 20).beacon(at(2, 2), 2);
    story.breaks(Property::BucketIsKept, 2);
    story.history.rules.assumptions = Assumptions::Broken;
    story.breaks(Property::BucketIsKept, 2);
}

#[test]
fn what_comes_before_something_in_the_bucket_is_in_the_bucket() {
    let mut story = inherited(Level::Memory, 2);
    story.harm("persist-1", HarmKind::DiskWiped, 1, 20);
    story.is_clean();
    let flushed = dormouse_protocol::data::FlushReply { position: at(1, 3) };
    story.call(
        dormouse_checker::Op::Flush,
        dormouse_checker::Outcome::Answered(dormouse_checker::Answer::Flush(flushed)),
    );
    story.breaks(Property::BucketIsKept, 2);
}

#[test]
fn what_was_shown_at_bucket_never_vanishes() {
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

#[test]
fn weaker_levels_lose_what_their_row_says_and_no_more() {
    for level in [Level::Memory, Level::Interval, Level::Disk] {
        inherited(level, 3).is_clean();
        inherited(level, 2).breaks(Property::WeakerLevelsWithinTheTable, 2);
        for kind in [HarmKind::Killed, HarmKind::Paused, HarmKind::CutFromBucket, HarmKind::TakenOver] {
            let mut story = inherited(level, 2);
            story.harm("persist-1", kind, 8, 20);
            story.is_clean();
            let mut story = inherited(level, 2);
            story.harm("persist-2", kind, 8, 20);
            story.breaks(Property::WeakerLevelsWithinTheTable, 2);
            // What was written so long before had been shipped.
            let mut story = inherited(level, 2);
            story.harm("persist-1", kind, 40, 50);
            story.breaks(Property::WeakerLevelsWithinTheTable, 2);
        }
    }
}

#[test]
fn who_comes_back_with_its_disk_has_what_was_on_it() {
    let back = |level, kind| {
        let mut story = inherited(level, 2);
        story.term(2, 2, "persist-1").harm("persist-1", kind, 7, 8);
        story
    };
    back(Level::Memory, HarmKind::Killed).is_clean();
    back(Level::Interval, HarmKind::Killed).breaks(Property::WeakerLevelsWithinTheTable, 2);
    back(Level::Disk, HarmKind::Killed).breaks(Property::WeakerLevelsWithinTheTable, 2);
    back(Level::Interval, HarmKind::PowerLost).is_clean();
    back(Level::Disk, HarmKind::PowerLost).breaks(Property::WeakerLevelsWithinTheTable, 2);
    back(Level::Disk, HarmKind::DiskWiped).is_clean();
    back(Level::Disk, HarmKind::DiskRestored).is_clean();
}

#[test]
fn who_went_on_in_a_term_nobody_told_of_may_have_been_another() {
    let back = |term| {
        let mut story = inherited(Level::Disk, 2);
        story.subject.terms.remove(&dormouse_protocol::Term::new(2));
        story.term(term, 2, "persist-1").harm("persist-1", HarmKind::CutFromBucket, 7, 8);
        story
    };
    back(3).is_clean();
    back(2).breaks(Property::WeakerLevelsWithinTheTable, 2);
}

#[test]
fn a_level_is_what_was_configured_or_asked_for() {
    let weakened = |lost: u64| {
        let mut story = Story::new();
        story.term(1, 0, "persist-1").term(2, lost, "persist-2");
        story.harm("persist-1", HarmKind::Killed, 1, 30);
        story.configure(Level::Memory, at(1, 1)).set("", "a", 1, at(1, 2)).beacon(at(2, lost), lost);
        story
    };
    weakened(1).is_clean();
    weakened(0).breaks(Property::BucketIsKept, 2);
}

#[test]
fn later_terms_inherit_no_less() {
    let mut story = Story::new();
    story.set("", "a", 1, at(1, 1)).beacon(at(2, 1), 1).beacon(at(3, 1), 1);
    story.is_clean();
    let mut story = Story::new();
    story.set("", "a", 1, at(1, 1)).beacon(at(2, 1), 1).beacon(at(3, 0), 0);
    story.breaks(Property::BucketIsKept, 2);
}
