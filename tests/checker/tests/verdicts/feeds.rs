//! Feeds.

use dormouse_checker::{Feed, FeedBegins, FeedKeys, FeedOutput, FeedOutputKind, Property, ServerFaultKind};
use dormouse_protocol::{Level, Message, Position, Seq};

use crate::story::{Story, at, message};

/// A feed of all messages with this output. At its end, the reader is at the last position.
fn feed(story: &mut Story, begins: FeedBegins, outputs: Vec<FeedOutputKind>) {
    let now = story.tick();
    let outputs = outputs.into_iter().map(|kind| {
        let position = if let FeedOutputKind::CaughtUp(position) = kind { Some(position) } else { None };
        FeedOutput { at: now, kind, position }
    });
    let outputs = outputs.collect();
    story.subject.feeds.push(Feed { client: 5, at: now, begins, keys: FeedKeys::All, outputs });
}

fn set(message: Message) -> FeedOutputKind {
    FeedOutputKind::Set { message, replaces: None }
}

fn removed(seq: u64, key: &str) -> FeedOutputKind {
    FeedOutputKind::Removed { seq: Seq::new(seq), key: Some(key.to_owned()) }
}

const fn mark(position: Position) -> FeedOutputKind {
    FeedOutputKind::CaughtUp(position)
}

/// k is set, set again and removed; l is set.
fn story() -> Story {
    let mut story = Story::new();
    story.set("k", "a", 1, at(1, 1)).set("l", "b", 2, at(1, 2)).set("k", "c", 3, at(1, 3));
    story.delete("k", &[3], at(1, 4));
    story
}

/// Applying the output of a feed must give the subject's state at each mark; any other output is a violation.
#[test]
fn feed_output_applied_equals_state_at_each_mark() {
    let (k, l) = (message("k", "a", 1, at(1, 1)), message("l", "b", 2, at(1, 2)));
    let again = message("k", "c", 3, at(1, 3));
    let replacing = FeedOutputKind::Set { message: again.clone(), replaces: Some(Seq::new(1)) };
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
    // A feed that starts later omits replaced messages.
    feed(&mut clean, FeedBegins::Beginning, vec![set(l.clone()), mark(at(1, 4))]);
    let later = vec![set(again.clone()), mark(at(1, 3)), removed(3, "k"), mark(at(1, 4))];
    feed(&mut clean, FeedBegins::After(at(1, 2)), later);
    feed(&mut clean, FeedBegins::Now, vec![mark(at(1, 3)), removed(3, "k"), mark(at(1, 4))]);
    feed(
        &mut clean,
        FeedBegins::Now,
        vec![mark(at(1, 1)), FeedOutputKind::Reset, set(l.clone()), mark(at(1, 4))],
    );
    clean.is_clean();

    let wrong = [
        // The feed omits a removal, or removes another message.
        (FeedBegins::Beginning, vec![set(l.clone()), set(again.clone()), mark(at(1, 3)), mark(at(1, 4))]),
        (FeedBegins::Now, vec![mark(at(1, 3)), mark(at(1, 4))]),
        (FeedBegins::After(at(1, 3)), vec![removed(2, "l"), mark(at(1, 4))]),
        // The feed omits a message, repeats one, or sends one too late.
        (FeedBegins::Beginning, vec![mark(at(1, 4))]),
        (FeedBegins::Beginning, vec![set(l.clone()), set(l.clone()), mark(at(1, 4))]),
        (FeedBegins::After(at(1, 1)), vec![set(l.clone()), mark(at(1, 3))]),
        // The feed goes back, resets a reader that knows its position, or replaces a missing message.
        (FeedBegins::Beginning, vec![set(k), mark(at(1, 1)), mark(at(1, 0))]),
        (FeedBegins::Beginning, vec![FeedOutputKind::Reset, set(l.clone()), mark(at(1, 4))]),
        (
            FeedBegins::Beginning,
            vec![FeedOutputKind::Set { message: l, replaces: Some(Seq::new(1)) }, mark(at(1, 4))],
        ),
    ];
    for (begins, outputs) in wrong {
        let mut broken = story();
        feed(&mut broken, begins, outputs);
        broken.breaks(Property::FeedsAreExact, 4);
    }
}

/// A write that a feed has shown may vanish in a takeover at level `memory`, never at level `bucket`.
#[test]
fn feed_must_not_show_a_bucket_write_that_vanishes() {
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
                FeedOutputKind::Reset,
                set(message("k", "a", 1, at(1, 1))),
                mark(at(2, 1)),
            ],
        );
        story.fault("one", ServerFaultKind::Killed, 0, 100);
        story
    };
    story(Level::Memory).is_clean();
    story(Level::Bucket).breaks(Property::BucketIsKept, 3);
}
