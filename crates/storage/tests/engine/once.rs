//! Every changing request is applied at most once, whatever repeats it and wherever the repeat arrives.

use std::time::Duration;

use dormouse_protocol::data::{DeleteRequest, Expect, SetItem, SetOutcome, SetRequest, SetResult};
use dormouse_protocol::limits::{MSG_ID_WINDOW_MS, SESSION_RESULTS};
use dormouse_protocol::{ErrorCode, ErrorReply, Level, MessageId, RequestId};
use dormouse_storage::api::{Reply, Request};

use crate::support::{Server, World, set_result, subject};

const APP: &str = "app.orders";

fn request(counter: u64) -> Option<RequestId> {
    Some(RequestId { session: "01J9Z3ZZZZZZZZZZZZZZZZZZZZ".parse().unwrap(), counter })
}

fn item(key: &str, value: &str) -> SetItem {
    SetItem { key: Some(key.to_owned()), value: Some(value.to_owned().into()), ..SetItem::default() }
}

fn numbered(counter: u64, item: SetItem) -> Request {
    Request::Set(SetRequest { request: request(counter), sets: vec![item], ..SetRequest::default() })
}

fn set(server: &Server, request: Request) -> Result<SetResult, ErrorReply> {
    set_result(server.run(&subject(APP), request))
}

/// What the first answer was, apart from its being a repeat.
fn repeated(first: SetResult) -> SetResult {
    SetResult { duplicate: true, ..first }
}

#[test]
fn a_repeat_is_answered_as_the_first_was_and_changes_nothing() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    let first = set(&server, numbered(1, item("a", "1"))).unwrap();
    set(&server, numbered(2, item("a", "2"))).unwrap();
    assert_eq!(set(&server, numbered(1, item("a", "1"))), Ok(repeated(first)));
    assert_eq!(server.get(&subject(APP), "a").unwrap().as_deref(), Some("2"));
    assert_eq!(server.info(&subject(APP)).position.rev.get(), 2);
}

#[test]
fn a_repeat_of_what_is_pending_waits_for_it() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    set(&server, numbered(1, item("a", "0"))).unwrap();
    world.bucket.set_gone(true);
    let asked = [0, 1].map(|_| server.ask(&app, numbered(2, item("a", "1"))));
    server.pass(Duration::from_secs(5));
    assert!(asked.iter().all(|asked| asked.answer().is_none()), "it has not reached its level");
    world.bucket.set_gone(false);
    let [first, second] = asked.map(|asked| set_result(asked.wait(&server)).unwrap());
    assert_eq!((first.duplicate, second), (false, repeated(first)));
    assert_eq!(server.info(&app).count, 1);
}

#[test]
fn an_answer_that_waits_for_nothing_is_given_at_once() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    set(&server, numbered(1, item("a", "0"))).unwrap();
    let announced = server.events.of(&subject(APP)).len();
    let taken = SetItem { expect: Some(Expect::Key(None)), ..item("a", "1") };
    let refused = SetRequest { sets: vec![taken], ..SetRequest::default() };
    let error = set(&server, Request::Set(refused)).unwrap_err();
    assert_eq!(error.code, ErrorCode::KeyExists);
    assert_eq!(set(&server, numbered(1, item("a", "0"))).map(|result| result.duplicate), Ok(true));
    // The clock goes on when everybody waits for it, and the first thing that it brings is a beacon.
    assert_eq!(server.events.of(&subject(APP)).len(), announced);
}

#[test]
fn a_repeat_is_known_after_a_restart_a_failover_and_a_release() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    let first = set(&server, numbered(1, item("a", "1"))).unwrap();
    server.kill();
    let server = world.server("persist-1");
    assert_eq!(set(&server, numbered(1, item("a", "1"))), Ok(repeated(first)));
    let log = server.lose_disk();
    world.fleet.declare_dead(&log);
    let server = world.server("persist-2");
    assert_eq!(set(&server, numbered(1, item("a", "1"))), Ok(repeated(first)));
    let report = server.shutdown();
    assert_eq!((report.released, report.unreleased), (1, vec![]));
    let server = world.server("persist-3");
    assert_eq!(set(&server, numbered(1, item("a", "1"))), Ok(repeated(first)));
    assert_eq!(server.info(&subject(APP)).position.rev, first.rev);
}

#[test]
fn a_request_that_nobody_heard_the_answer_of_is_applied_once_over_a_failover() {
    let world = World::in_memory();
    let (app, first) = (subject(APP), world.server("persist-1"));
    set(&first, numbered(1, item("a", "0"))).unwrap();
    world.bucket.creates_unanswered.store(true, std::sync::atomic::Ordering::SeqCst);
    let asked = first.ask(&app, numbered(2, item("b", "1")));
    first.pass(Duration::from_secs(3));
    assert!(asked.answer().is_none());
    world.bucket.creates_unanswered.store(false, std::sync::atomic::Ordering::SeqCst);
    world.fleet.declare_dead(&first.log());
    let second = world.server("persist-2");
    assert!(set(&second, numbered(2, item("b", "1"))).unwrap().duplicate);
    assert_eq!(second.info(&app).position.rev.get(), 2);
}

#[test]
fn what_is_forgotten_is_indeterminate_and_changes_nothing() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    let last = SESSION_RESULTS as u64 + 1;
    let counters: Vec<_> = (1..=last).collect();
    for some in counters.chunks(500) {
        let ask = |n: &u64| server.ask(&app, numbered(*n, item("a", &n.to_string())));
        let asked: Vec<_> = some.iter().map(ask).collect();
        asked.iter().for_each(|asked| drop(asked.wait(&server).unwrap()));
    }
    assert!(set(&server, numbered(2, item("a", "again"))).unwrap().duplicate);
    let log = server.lose_disk();
    world.fleet.declare_dead(&log);
    let server = world.server("persist-2");
    let error = server.run(&app, numbered(1, item("a", "again"))).unwrap_err();
    assert_eq!(error.code, ErrorCode::Indeterminate);
    assert!(set(&server, numbered(2, item("a", "again"))).unwrap().duplicate);
    assert_eq!(server.get(&app, "a").unwrap(), Some(last.to_string()));
}

#[test]
fn what_was_refused_stays_refused_for_its_request() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    set(&server, numbered(1, item("a", "1"))).unwrap();
    let create = SetItem { expect: Some(Expect::Key(None)), ..item("a", "2") };
    let refused = set(&server, numbered(2, create.clone())).unwrap_err();
    assert_eq!(refused.code, ErrorCode::KeyExists);
    let delete =
        DeleteRequest { keys: vec!["a".to_owned()], request: request(3), ..DeleteRequest::default() };
    server.run(&subject(APP), Request::Delete(delete.clone())).unwrap();
    // Now it could be done, and must not: its caller was told that it was not.
    assert_eq!(set(&server, numbered(2, create.clone())).unwrap_err(), refused);
    let log = server.lose_disk();
    world.fleet.declare_dead(&log);
    let server = world.server("persist-3");
    assert_eq!(set(&server, numbered(2, create.clone())).unwrap_err(), refused);
    let Reply::Delete(reply) = server.run(&subject(APP), Request::Delete(delete)).unwrap() else { panic!() };
    assert!(reply.duplicate && reply.seqs.len() == 1);
    set(&server, numbered(4, create)).unwrap();
}

#[test]
fn an_application_id_is_known_across_sessions_and_servers_within_its_window() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    let named = || SetItem { msg_id: Some("order-17".to_owned()), ..item("a", "1") };
    let first = set(&server, numbered(1, named())).unwrap();
    let log = server.lose_disk();
    world.fleet.declare_dead(&log);
    let server = world.server("persist-2");
    let unnamed = || Request::Set(SetRequest { sets: vec![named()], ..SetRequest::default() });
    assert_eq!(set(&server, unnamed()), Ok(repeated(first)));
    assert_eq!(server.info(&app).position.rev, first.rev);
    server.pass(Duration::from_millis(MSG_ID_WINDOW_MS + 1_000));
    let later = set(&server, unnamed()).unwrap();
    assert!(!later.duplicate && later.rev > first.rev);
}

#[test]
fn an_atomic_batch_is_all_there_or_not_at_all_after_a_kill() {
    for (level, shipped) in [(Level::Disk, false), (Level::Bucket, true), (Level::Bucket, false)] {
        let world = World::in_memory();
        let (app, server) = (subject(APP), world.server("persist-1"));
        server.configure(&app, level);
        server.get(&app, "a").unwrap();
        server.flush(&app).unwrap();
        world.bucket.set_gone(!shipped);
        let sets = (0..50).map(|n| item(&n.to_string(), "v")).collect();
        let batch = SetRequest { request: request(1), atomic: true, sets, ..SetRequest::default() };
        let asked = server.ask(&app, Request::Set(batch.clone()));
        server.pass(Duration::from_secs(1));
        let answer = asked.answer();
        assert_eq!(answer.is_some(), shipped || level == Level::Disk);
        server.kill();
        world.bucket.set_gone(false);
        let server = world.server("persist-1");
        let count = server.info(&app).count;
        assert!(count == 50 || answer.is_none() && count == 0, "{count}");
        let Reply::Set(reply) = server.run(&app, Request::Set(batch)).unwrap() else { panic!() };
        let revs: Vec<_> = reply
            .results
            .iter()
            .map(|outcome| matches!(outcome, SetOutcome::Ok(result) if result.rev.get() == 2))
            .collect();
        assert_eq!(revs, [true; 50], "one rev, whenever it was done");
        assert_eq!(server.info(&app).count, 50);
    }
}

#[test]
fn what_is_expected_is_a_message_of_a_term_so_a_failover_is_noticed() {
    let world = World::in_memory();
    let first = world.server("persist-1");
    let app = subject(APP);
    first.configure(&app, Level::Disk);
    first.get(&app, "a").unwrap();
    let base = set(&first, numbered(1, item("a", "1"))).unwrap();
    first.flush(&app).unwrap();
    world.bucket.set_gone(true);
    // Acknowledged below the bucket's level, and lost with the disk.
    let lost = set(&first, numbered(2, item("a", "2"))).unwrap();
    let log = first.lose_disk();
    world.bucket.set_gone(false);
    world.fleet.declare_dead(&log);
    let second = world.server("persist-2");
    let other = set(&second, numbered(3, item("b", "3"))).unwrap();
    assert_eq!(other.seq, lost.seq, "the same seq");
    let expecting = |id: MessageId, counter| {
        numbered(counter, SetItem { expect: Some(Expect::Last(Some(id))), ..item("c", "4") })
    };
    let error = set(&second, expecting(lost.id(), 4)).unwrap_err();
    assert_eq!((error.code, error.actual), (ErrorCode::WrongLast, Some(other.id())));
    assert_eq!(set(&second, expecting(base.id(), 5)).unwrap_err().code, ErrorCode::WrongLast);
    set(&second, expecting(other.id(), 6)).unwrap();
}
