//! Feeds.

use dormouse_checker::{Feed, FeedBegins, FeedKeys, FeedTells, FeedTold, HarmKind, Property};
use dormouse_protocol::{Level, Message, Position, Seq};

use crate::story::{Story, at, message};

/// A feed of everything that told this, and at whose end its reader is at the last position.
fn feed(story: &mut Story, begins: FeedBegins, told: Vec<FeedTells>) {
    let now = story.tick();
    let told = told.into_iter().map(|what| {
        let position = if let FeedTells::CaughtUp(position) = what { Some(position) } else { None };
        FeedTold { at: now, what, position }
    });
    let told = told.collect();
    story.subject.feeds.push(Feed { client: 5, at: now, begins, keys: FeedKeys::All, told });
}

fn set(message: Message) -> FeedTells {
    FeedTells::Set { message, replaces: None }
}

fn removed(seq: u64, key: &str) -> FeedTells {
    FeedTells::Removed { seq: Seq::new(seq), key: Some(key.to_owned()) }
}

const fn mark(position: Position) -> FeedTells {
    FeedTells::CaughtUp(position)
}

/// k is set, set again, and removed; l is set.
fn story() -> Story {
    let mut story = Story::new();
    story.set("k", "a", 1, at(1, 1)).set("l", "b", 2, at(1, 2)).set("k", "c", 3, at(1, 3));
    story.delete("k", &[3], at(1, 4));
    story
}

#[test]
fn whoever_applies_a_feed_has_the_state_at_each_mark() {
    let (k, l) = (message("k", "a", 1, at(1, 1)), message("l", "b", 2, at(1, 2)));
    let again = message("k", "c", 3, at(1, 3));
    let replacing = FeedTells::Set { message: again.clone(), replaces: Some(Seq::new(1)) };
    let mut clean = story();
    let whole = vec![
        set(k.clone()),
        mark(at(1, 1)),
        set(l.clone()),
        replacing,
        mark(at(1, 3)),
        removed(3, "k"),
        mark(at(1, 4)),
    ];
    feed(&mut clean, FeedBegins::Beginning, whole);
    // Whoever comes later is spared what is over.
    feed(&mut clean, FeedBegins::Beginning, vec![set(l.clone()), mark(at(1, 4))]);
    let later = vec![set(again.clone()), mark(at(1, 3)), removed(3, "k"), mark(at(1, 4))];
    feed(&mut clean, FeedBegins::After(at(1, 2)), later);
    feed(&mut clean, FeedBegins::Now, vec![mark(at(1, 3)), removed(3, "k"), mark(at(1, 4))]);
    feed(&mut clean, FeedBegins::Now, vec![mark(at(1, 1)), FeedTells::Reset, set(l.clone()), mark(at(1, 4))]);
    clean.is_clean();

    let wrong = [
        // What was removed is not told, or something else is.
        (FeedBegins::Beginning, vec![set(l.clone()), set(again.clone()), mark(at(1, 3)), mark(at(1, 4))]),
        (FeedBegins::Now, vec![mark(at(1, 3)), mark(at(1, 4))]),
        (FeedBegins::After(at(1, 3)), vec![removed(2, "l"), mark(at(1, 4))]),
        // What is there is not told, or twice, or too late.
        (FeedBegins::Beginning, vec![mark(at(1, 4))]),
        (FeedBegins::Beginning, vec![set(l.clone()), set(l.clone()), mark(at(1, 4))]),
        (FeedBegins::After(at(1, 1)), vec![set(l.clone()), mark(at(1, 3))]),
        // It goes back, begins anew though it knows, replaces what was not there.
        (FeedBegins::Beginning, vec![set(k), mark(at(1, 1)), mark(at(1, 0))]),
        (FeedBegins::Beginning, vec![FeedTells::Reset, set(l.clone()), mark(at(1, 4))]),
        (
            FeedBegins::Beginning,
            vec![FeedTells::Set { message: l, replaces: Some(Seq::new(1)) }, mark(at(1, 4))],
        ),
    ];
    for (begins, told) in wrong {
        let mut broken = story();
        feed(&mut broken, begins, told);
        broken.breaks(Property::FeedsAreExact, 4);
    }
}

#[test]
fn a_feed_shows_nothing_of_the_level_bucket_that_vanishes() {
    let lost = message("k", "b", 2, at(1, 2));
    let story = |level| {
        let mut story = Story::of_level(level);
        story.term(1, 0, "one").term(2, 1, "two").set("k", "a", 1, at(1, 1)).lost_set("k", "b");
        feed(
            &mut story,
            FeedBegins::After(at(1, 1)),
            vec![
                set(lost.clone()),
                mark(at(1, 2)),
                FeedTells::Reset,
                set(message("k", "a", 1, at(1, 1))),
                mark(at(2, 1)),
            ],
        );
        story.harm("one", HarmKind::Killed, 0, 100);
        story
    };
    story(Level::Memory).is_clean();
    story(Level::Bucket).breaks(Property::BucketIsKept, 3);
}
