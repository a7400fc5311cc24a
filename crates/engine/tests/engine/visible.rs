//! Visibility: a write becomes visible only when it is as durable as its level requires.

use std::time::Duration;

use dormouse_protocol::{Change, ErrorCode, Level};

use crate::support::{Server, World, pairs, set_request, set_result, subject};

const APP: &str = "app.orders";

fn announced(server: &Server) -> Vec<u64> {
    let events = server.events.of(&subject(APP));
    events.iter().flat_map(|event| &event.changes).map(|change| Change::rev(change).get()).collect()
}

/// A write of level `bucket` is neither acked nor read nor announced before it is in the bucket.
#[test]
fn unshipped_write_is_invisible() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "a", "1").unwrap();
    server.get(&app, "a").unwrap();
    world.bucket.set_unreachable(true);
    let asked = server.submit(&app, set_request("b", "2"));
    for _ in 0..20 {
        server.advance(Duration::from_secs(1));
        assert!(asked.try_reply().is_none());
        assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "1")]), "reads continue");
        assert_eq!(announced(&server), [1]);
    }
    assert_eq!(server.info(&app).position.rev.get(), 1);
    world.bucket.set_unreachable(false);
    assert_eq!(set_result(asked.wait(&server)).unwrap().rev.get(), 2);
    assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "1"), ("b", "2")]));
    server.advance(Duration::from_secs(60));
    assert_eq!(announced(&server), [1, 2], "each change is announced once");
}

/// If the bucket loses the replies to a segment upload, its writes become visible once, after the server knows the
/// outcome.
#[test]
fn segment_with_lost_replies_becomes_visible_once() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "a", "1").unwrap();
    world.bucket.set_answers_lost(true);
    let asked = server.submit(&app, set_request("b", "2"));
    server.advance(Duration::from_secs(20));
    assert!(asked.try_reply().is_none());
    assert_eq!(announced(&server), [1]);
    world.bucket.set_answers_lost(false);
    set_result(asked.wait(&server)).unwrap();
    assert_eq!(announced(&server), [1, 2]);
    assert_eq!(server.info(&app).count, 2);
}

/// While the bucket is unreachable, writes of weaker levels continue until the write stall, and then wait for the
/// bucket.
#[test]
fn weak_writes_continue_until_write_stall() {
    let world = World::in_memory();
    let (app, local) = (subject(APP), subject("app.local"));
    let server = world.server("persist-1");
    server.configure(&local, Level::Disk);
    server.set(&app, "a", "1").unwrap();
    server.get(&app, "a").unwrap();
    world.bucket.set_unreachable(true);
    let asked = server.submit(&app, set_request("b", "2"));
    for n in 0..9 {
        server.set(&local, &n.to_string(), "v").unwrap();
        server.advance(Duration::from_secs(1));
    }
    server.advance(Duration::from_secs(2));
    let held = server.submit(&local, set_request("held", "v"));
    server.advance(Duration::from_secs(30));
    assert!(held.try_reply().is_none() && asked.try_reply().is_none());
    assert_eq!(server.get(&local, "held").unwrap(), None);
    assert_eq!(server.get(&local, "8").unwrap().as_deref(), Some("v"));
    world.bucket.set_unreachable(false);
    set_result(held.wait(&server)).unwrap();
    set_result(asked.wait(&server)).unwrap();
    world.bucket.set_unreachable(true);
    server.set(&local, "again", "v").unwrap();
}

/// A write of a weaker level waits for an earlier write of a stronger level in the same subject.
#[test]
fn weak_write_waits_for_earlier_stronger_write() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.configure(&app, Level::Memory);
    server.get(&app, "a").unwrap();
    world.bucket.set_unreachable(true);
    let strong = server.submit(&app, crate::support::at_level(Level::Bucket, set_request("a", "1")));
    let weak = server.submit(&app, set_request("b", "2"));
    server.advance(Duration::from_secs(5));
    assert!(strong.try_reply().is_none() && weak.try_reply().is_none());
    assert_eq!(server.all(&app).unwrap(), []);
    world.bucket.set_unreachable(false);
    let revs = [&strong, &weak].map(|asked| set_result(asked.wait(&server)).unwrap().rev.get());
    assert_eq!(revs, [2, 3]);
}

/// Over `max_unshipped_bytes`, writes get `overloaded` with a retry delay, reads succeed, and accepted writes complete
/// later.
#[test]
fn write_over_unshipped_limit_is_overloaded() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server_with("persist-1", |settings| settings.log.max_unshipped_bytes = 3_000_000);
    server.set(&app, "a", "1").unwrap();
    server.get(&app, "a").unwrap();
    world.bucket.set_unreachable(true);
    let value = "x".repeat(100_000);
    let asked: Vec<_> = (0..60).map(|n| server.submit(&app, set_request(&n.to_string(), &value))).collect();
    server.advance(Duration::from_secs(1));
    let answers: Vec<_> = asked.iter().map(crate::support::PendingReply::try_reply).collect();
    assert!(server.engine.metrics().log.unshipped_bytes <= 3_000_000);
    let waiting = answers.iter().filter(|answer| answer.is_none()).count();
    assert!((10..30).contains(&waiting), "{waiting}");
    for refused in answers.iter().flatten() {
        let error = set_result(refused.clone()).unwrap_err();
        assert!(error.code == ErrorCode::Overloaded && error.retry_after_ms.is_some(), "{error}");
    }
    assert_eq!(server.get(&app, "a").unwrap().as_deref(), Some("1"));
    world.bucket.set_unreachable(false);
    for (asked, _) in asked.iter().zip(&answers).filter(|(_, answer)| answer.is_none()) {
        set_result(asked.wait(&server)).unwrap();
    }
    assert_eq!(server.info(&app).count, 1 + waiting as u64);
    server.set(&app, "z", &value).unwrap();
}
