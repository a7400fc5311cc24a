//! Nothing is visible before it is as durable as its level asks.

use std::sync::atomic::Ordering;
use std::time::Duration;

use dormouse_protocol::{Change, ErrorCode, Level};

use crate::support::{Server, World, pairs, set_request, set_result, subject};

const APP: &str = "app.orders";

fn announced(server: &Server) -> Vec<u64> {
    let events = server.events.of(&subject(APP));
    events.iter().flat_map(|event| &event.changes).map(|change| Change::rev(change).get()).collect()
}

#[test]
fn what_the_bucket_has_not_taken_is_neither_acknowledged_nor_read_nor_announced() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "a", "1").unwrap();
    server.get(&app, "a").unwrap();
    world.bucket.set_gone(true);
    let asked = server.ask(&app, set_request("b", "2"));
    for _ in 0..20 {
        server.pass(Duration::from_secs(1));
        assert!(asked.answer().is_none());
        assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "1")]), "reads go on");
        assert_eq!(announced(&server), [1]);
    }
    assert_eq!(server.info(&app).position.rev.get(), 1);
    world.bucket.set_gone(false);
    assert_eq!(set_result(asked.wait(&server)).unwrap().rev.get(), 2);
    assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "1"), ("b", "2")]));
    server.pass(Duration::from_secs(60));
    assert_eq!(announced(&server), [1, 2], "once");
}

#[test]
fn a_segment_whose_answers_are_lost_becomes_visible_once() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "a", "1").unwrap();
    world.bucket.creates_unanswered.store(true, Ordering::SeqCst);
    let asked = server.ask(&app, set_request("b", "2"));
    server.pass(Duration::from_secs(20));
    assert!(asked.answer().is_none());
    assert_eq!(announced(&server), [1]);
    world.bucket.creates_unanswered.store(false, Ordering::SeqCst);
    set_result(asked.wait(&server)).unwrap();
    assert_eq!(announced(&server), [1, 2]);
    assert_eq!(server.info(&app).count, 2);
}

#[test]
fn weaker_levels_go_on_without_the_bucket_until_something_has_waited_too_long() {
    let world = World::in_memory();
    let (app, local) = (subject(APP), subject("app.local"));
    let server = world.server("persist-1");
    server.configure(&local, Level::Disk);
    server.set(&app, "a", "1").unwrap();
    server.get(&app, "a").unwrap();
    world.bucket.set_gone(true);
    let asked = server.ask(&app, set_request("b", "2"));
    for n in 0..9 {
        server.set(&local, &n.to_string(), "v").unwrap();
        server.pass(Duration::from_secs(1));
    }
    server.pass(Duration::from_secs(2));
    let held = server.ask(&local, set_request("held", "v"));
    server.pass(Duration::from_secs(30));
    assert!(held.answer().is_none() && asked.answer().is_none());
    assert_eq!(server.get(&local, "held").unwrap(), None);
    assert_eq!(server.get(&local, "8").unwrap().as_deref(), Some("v"));
    world.bucket.set_gone(false);
    set_result(held.wait(&server)).unwrap();
    set_result(asked.wait(&server)).unwrap();
    world.bucket.set_gone(true);
    server.set(&local, "again", "v").unwrap();
}

#[test]
fn a_write_of_a_weaker_level_waits_for_a_stronger_one_before_it() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.configure(&app, Level::Memory);
    server.get(&app, "a").unwrap();
    world.bucket.set_gone(true);
    let strong = server.ask(&app, crate::support::at_level(Level::Bucket, set_request("a", "1")));
    let weak = server.ask(&app, set_request("b", "2"));
    server.pass(Duration::from_secs(5));
    assert!(strong.answer().is_none() && weak.answer().is_none());
    assert_eq!(server.all(&app).unwrap(), []);
    world.bucket.set_gone(false);
    let revs = [&strong, &weak].map(|asked| set_result(asked.wait(&server)).unwrap().rev.get());
    assert_eq!(revs, [2, 3]);
}

#[test]
fn above_the_byte_budget_writes_are_turned_away_and_reads_go_on() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server_with("persist-1", |settings| settings.log.max_unshipped_bytes = 3_000_000);
    server.set(&app, "a", "1").unwrap();
    server.get(&app, "a").unwrap();
    world.bucket.set_gone(true);
    let value = "x".repeat(100_000);
    let asked: Vec<_> = (0..60).map(|n| server.ask(&app, set_request(&n.to_string(), &value))).collect();
    server.pass(Duration::from_secs(1));
    let answers: Vec<_> = asked.iter().map(crate::support::Asked::answer).collect();
    assert!(server.engine.figures().log.unshipped_bytes <= 3_000_000);
    let waiting = answers.iter().filter(|answer| answer.is_none()).count();
    assert!((10..30).contains(&waiting), "{waiting}");
    for refused in answers.iter().flatten() {
        let error = set_result(refused.clone()).unwrap_err();
        assert!(error.code == ErrorCode::Overloaded && error.retry_after_ms.is_some(), "{error}");
    }
    assert_eq!(server.get(&app, "a").unwrap().as_deref(), Some("1"));
    world.bucket.set_gone(false);
    for (asked, _) in asked.iter().zip(&answers).filter(|(_, answer)| answer.is_none()) {
        set_result(asked.wait(&server)).unwrap();
    }
    assert_eq!(server.info(&app).count, 1 + waiting as u64);
    server.set(&app, "z", &value).unwrap();
}
