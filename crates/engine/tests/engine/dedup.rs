//! Each changing request executes at most once, at any number of repeats and at any owner.

use std::time::Duration;

use dormouse_engine::api::{SubjectReply, SubjectRequest};
use dormouse_protocol::data::{DeleteRequest, Expect, SetItem, SetOutcome, SetRequest, SetResult};
use dormouse_protocol::limits::{MSG_ID_WINDOW_MS, SESSION_RESULTS};
use dormouse_protocol::{ErrorCode, ErrorReply, Level, MessageId, RequestId};

use crate::support::{Server, World, set_result, subject};

const APP: &str = "app.orders";

fn request(counter: u64) -> Option<RequestId> {
    Some(RequestId { session: "01J9Z3ZZZZZZZZZZZZZZZZZZZZ".parse().unwrap(), counter })
}

fn item(key: &str, value: &str) -> SetItem {
    SetItem { key: Some(key.to_owned()), value: Some(value.to_owned().into()), ..SetItem::default() }
}

fn numbered(counter: u64, item: SetItem) -> SubjectRequest {
    SubjectRequest::Set(SetRequest { request: request(counter), sets: vec![item], ..SetRequest::default() })
}

fn set(server: &Server, request: SubjectRequest) -> Result<SetResult, ErrorReply> {
    set_result(server.run(&subject(APP), request))
}

/// The first reply, marked as duplicate.
fn repeated(first: SetResult) -> SetResult {
    SetResult { duplicate: true, ..first }
}

/// A repeated request returns the first reply, marked as duplicate, and changes nothing.
#[test]
fn repeated_request_returns_first_reply() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    let first = set(&server, numbered(1, item("a", "1"))).unwrap();
    set(&server, numbered(2, item("a", "2"))).unwrap();
    assert_eq!(set(&server, numbered(1, item("a", "1"))), Ok(repeated(first)));
    assert_eq!(server.get(&subject(APP), "a").unwrap().as_deref(), Some("2"));
    assert_eq!(server.info(&subject(APP)).position.rev.get(), 2);
}

/// A repeat of a pending request waits for the ack of the first and returns the same result as duplicate.
#[test]
fn repeat_of_pending_request_waits_for_first_ack() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    set(&server, numbered(1, item("a", "0"))).unwrap();
    world.bucket.set_unreachable(true);
    let asked = [0, 1].map(|_| server.submit(&app, numbered(2, item("a", "1"))));
    server.advance(Duration::from_secs(5));
    assert!(
        asked.iter().all(|asked| asked.try_reply().is_none()),
        "the first write has not reached its level"
    );
    world.bucket.set_unreachable(false);
    let [first, second] = asked.map(|asked| set_result(asked.wait(&server)).unwrap());
    assert_eq!((first.duplicate, second), (false, repeated(first)));
    assert_eq!(server.info(&app).count, 1);
}

/// The server replies at once to a rejected set and to a repeat if no pending change is involved.
#[test]
fn reply_without_pending_changes_is_immediate() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    set(&server, numbered(1, item("a", "0"))).unwrap();
    let announced = server.events.of(&subject(APP)).len();
    let taken = SetItem { expect: Some(Expect::Key(None)), ..item("a", "1") };
    let refused = SetRequest { sets: vec![taken], ..SetRequest::default() };
    let error = set(&server, SubjectRequest::Set(refused)).unwrap_err();
    assert_eq!(error.code, ErrorCode::KeyExists);
    assert_eq!(set(&server, numbered(1, item("a", "0"))).map(|result| result.duplicate), Ok(true));
    // The clock advances only if every task waits for it, and its first timer sends a beacon.
    assert_eq!(server.events.of(&subject(APP)).len(), announced);
}

/// The dedup window recognises a repeat after a restart, a failover and a release.
#[test]
fn dedup_survives_restart_failover_and_release() {
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

/// A request whose ack is lost with its server executes once: its repeat at the new owner is a duplicate.
#[test]
fn unanswered_request_executes_once_over_failover() {
    let world = World::in_memory();
    let (app, first) = (subject(APP), world.server("persist-1"));
    set(&first, numbered(1, item("a", "0"))).unwrap();
    world.bucket.set_answers_lost(true);
    let asked = first.submit(&app, numbered(2, item("b", "1")));
    first.advance(Duration::from_secs(3));
    assert!(asked.try_reply().is_none());
    world.bucket.set_answers_lost(false);
    world.fleet.declare_dead(&first.log());
    let second = world.server("persist-2");
    assert!(set(&second, numbered(2, item("b", "1"))).unwrap().duplicate);
    assert_eq!(second.info(&app).position.rev.get(), 2);
}

/// A repeat outside the dedup window is `indeterminate` and changes nothing, also after a takeover.
#[test]
fn request_outside_dedup_window_is_forgotten() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    let last = SESSION_RESULTS as u64 + 1;
    let counters: Vec<_> = (1..=last).collect();
    for some in counters.chunks(500) {
        let ask = |n: &u64| server.submit(&app, numbered(*n, item("a", &n.to_string())));
        let asked: Vec<_> = some.iter().map(ask).collect();
        asked.iter().for_each(|asked| drop(asked.wait(&server).unwrap()));
    }
    assert!(set(&server, numbered(2, item("a", "again"))).unwrap().duplicate);
    let log = server.lose_disk();
    world.fleet.declare_dead(&log);
    let server = world.server("persist-2");
    let error = server.run(&app, numbered(1, item("a", "again"))).unwrap_err();
    assert_eq!(error.code, ErrorCode::Forgotten);
    assert!(set(&server, numbered(2, item("a", "again"))).unwrap().duplicate);
    assert_eq!(server.get(&app, "a").unwrap(), Some(last.to_string()));
}

/// A repeat of a rejected request returns the same error, also after a failover, although it could succeed now.
#[test]
fn rejected_request_stays_rejected_on_repeat() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    set(&server, numbered(1, item("a", "1"))).unwrap();
    let create = SetItem { expect: Some(Expect::Key(None)), ..item("a", "2") };
    let refused = set(&server, numbered(2, create.clone())).unwrap_err();
    assert_eq!(refused.code, ErrorCode::KeyExists);
    let delete =
        DeleteRequest { keys: vec!["a".to_owned()], request: request(3), ..DeleteRequest::default() };
    server.run(&subject(APP), SubjectRequest::Delete(delete.clone())).unwrap();
    // The request could succeed now and must not, because its caller has the error.
    assert_eq!(set(&server, numbered(2, create.clone())).unwrap_err(), refused);
    let log = server.lose_disk();
    world.fleet.declare_dead(&log);
    let server = world.server("persist-3");
    assert_eq!(set(&server, numbered(2, create.clone())).unwrap_err(), refused);
    let SubjectReply::Delete(reply) = server.run(&subject(APP), SubjectRequest::Delete(delete)).unwrap()
    else {
        panic!()
    };
    assert!(reply.duplicate && reply.seqs.len() == 1);
    set(&server, numbered(4, create)).unwrap();
}

/// The dedup window recognises a `msg_id` across sessions and servers; after the window the message is new.
#[test]
fn msg_id_dedup_holds_across_sessions_and_servers() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    let named = || SetItem { msg_id: Some("order-17".to_owned()), ..item("a", "1") };
    let first = set(&server, numbered(1, named())).unwrap();
    let log = server.lose_disk();
    world.fleet.declare_dead(&log);
    let server = world.server("persist-2");
    let unnamed = || SubjectRequest::Set(SetRequest { sets: vec![named()], ..SetRequest::default() });
    assert_eq!(set(&server, unnamed()), Ok(repeated(first)));
    assert_eq!(server.info(&app).position.rev, first.rev);
    server.advance(Duration::from_millis(MSG_ID_WINDOW_MS + 1_000));
    let later = set(&server, unnamed()).unwrap();
    assert!(!later.duplicate && later.rev > first.rev);
}

/// After a kill, an atomic batch is applied completely or not at all, and an acked batch is complete.
#[test]
fn batch_is_atomic_after_kill() {
    for (level, shipped) in [(Level::Disk, false), (Level::Bucket, true), (Level::Bucket, false)] {
        let world = World::in_memory();
        let (app, server) = (subject(APP), world.server("persist-1"));
        server.configure(&app, level);
        server.get(&app, "a").unwrap();
        server.flush(&app).unwrap();
        world.bucket.set_unreachable(!shipped);
        let sets = (0..50).map(|n| item(&n.to_string(), "v")).collect();
        let batch = SetRequest { request: request(1), atomic: true, sets, ..SetRequest::default() };
        let asked = server.submit(&app, SubjectRequest::Set(batch.clone()));
        server.advance(Duration::from_secs(1));
        let answer = asked.try_reply();
        assert_eq!(answer.is_some(), shipped || level == Level::Disk);
        server.kill();
        world.bucket.set_unreachable(false);
        let server = world.server("persist-1");
        let count = server.info(&app).count;
        assert!(count == 50 || answer.is_none() && count == 0, "{count}");
        let SubjectReply::Set(reply) = server.run(&app, SubjectRequest::Set(batch)).unwrap() else {
            panic!()
        };
        let revs: Vec<_> = reply
            .results
            .iter()
            .map(|outcome| matches!(outcome, SetOutcome::Ok(result) if result.rev.get() == 2))
            .collect();
        assert_eq!(revs, [true; 50], "every result has the same rev");
        assert_eq!(server.info(&app).count, 50);
    }
}

/// An expected message id includes the term, so a set detects a failover that reused the seq.
#[test]
fn expectation_includes_term_and_detects_failover() {
    let world = World::in_memory();
    let first = world.server("persist-1");
    let app = subject(APP);
    first.configure(&app, Level::Disk);
    first.get(&app, "a").unwrap();
    let base = set(&first, numbered(1, item("a", "1"))).unwrap();
    first.flush(&app).unwrap();
    world.bucket.set_unreachable(true);
    // Acked below level `bucket`, and lost with the disk.
    let lost = set(&first, numbered(2, item("a", "2"))).unwrap();
    let log = first.lose_disk();
    world.bucket.set_unreachable(false);
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
