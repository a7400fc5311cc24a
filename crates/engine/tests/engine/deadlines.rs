//! Requests whose caller no longer waits: they are not begun, and their replies do not contradict other copies.

use std::time::Duration;

use dormouse_engine::api::{SubjectReply, SubjectRequest};
use dormouse_protocol::data::{GetRequest, SetItem, SetRequest};
use dormouse_protocol::{ErrorCode, ErrorReply, RequestId};

use crate::support::{PendingReply, Server, World, set_request, set_result, subject};

const APP: &str = "app.orders";

const NO_TIME: Duration = Duration::ZERO;
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn numbered(counter: u64, key: &str) -> SubjectRequest {
    let session = "01J9Z3ZZZZZZZZZZZZZZZZZZZZ".parse().unwrap();
    let item =
        SetItem { key: Some(key.to_owned()), value: Some(key.to_owned().into()), ..SetItem::default() };
    let request = Some(RequestId { session, counter });
    SubjectRequest::Set(SetRequest { request, sets: vec![item], ..SetRequest::default() })
}

/// Submits a request whose caller waits for `left`.
fn submit(server: &Server, left: Duration, request: SubjectRequest) -> PendingReply {
    let _clock = server.runtime.enter();
    server.submit_until(&subject(APP), server.env.boot() + left, request)
}

#[track_caller]
fn assert_not_begun(reply: Result<SubjectReply, ErrorReply>) {
    let error = reply.unwrap_err();
    assert_eq!(error, dormouse_protocol::deadline::time_ran_out());
    assert_eq!(error.code, ErrorCode::Unavailable);
}

/// A request that waits for the open of its subject longer than its caller is refused and changes nothing. It can be
/// repeated.
#[test]
fn deadline_passed_request_is_not_planned() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    let opening = server.authority.reply_gate.try_lock().unwrap();
    let late = [numbered(1, "a"), set_request("b", "1"), SubjectRequest::Get(GetRequest::key("a"))]
        .map(|request| submit(&server, SECOND, request));
    let in_time = submit(&server, MINUTE, numbered(2, "c"));
    server.advance(2 * SECOND);
    drop(opening);
    set_result(in_time.wait(&server)).unwrap();
    late.iter().for_each(|late| assert_not_begun(late.wait(&server)));
    assert_eq!(server.info(&subject(APP)).position.rev.get(), 1);
    assert_eq!(server.engine.metrics().expired, 3);
    let repeated = set_result(submit(&server, MINUTE, numbered(1, "a")).wait(&server)).unwrap();
    assert!(!repeated.duplicate);
}

/// A repeat of a queued request extends the deadline of the first copy: it is executed once, and both copies get its
/// result.
#[test]
fn deadline_of_queued_id_is_extended_by_retry() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    let opening = server.authority.reply_gate.try_lock().unwrap();
    let first = submit(&server, SECOND, numbered(1, "a"));
    let other = submit(&server, SECOND, numbered(2, "b"));
    let repeat = submit(&server, MINUTE, numbered(1, "a"));
    let late_repeat = submit(&server, SECOND, numbered(1, "a"));
    server.advance(2 * SECOND);
    drop(opening);
    let first = set_result(first.wait(&server)).unwrap();
    assert!(!first.duplicate);
    for repeat in [repeat, late_repeat] {
        let repeat = set_result(repeat.wait(&server)).unwrap();
        assert!(repeat.duplicate && repeat.rev == first.rev, "{repeat:?}");
    }
    assert_not_begun(other.wait(&server));
    assert_eq!(server.info(&subject(APP)).position.rev.get(), 1);
}

/// A copy without time left of a planned or executed request gets the result of that request.
#[test]
fn deadline_passed_copy_of_planned_change_gets_its_reply() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    let executed = set_result(submit(&server, MINUTE, numbered(1, "a")).wait(&server)).unwrap();
    world.bucket.set_unreachable(true);
    let planned = submit(&server, MINUTE, numbered(2, "b"));
    server.advance(SECOND);
    let copies = [1, 2].map(|counter| submit(&server, NO_TIME, numbered(counter, "a")));
    server.advance(SECOND);
    assert!(copies[1].try_reply().is_none(), "the change is planned, and has not reached its level");
    world.bucket.set_unreachable(false);
    let planned = set_result(planned.wait(&server)).unwrap();
    for (copy, first) in copies.iter().zip([executed, planned]) {
        let copy = set_result(copy.wait(&server)).unwrap();
        assert!(copy.duplicate && copy.rev == first.rev, "{copy:?}");
    }
}

/// A request without time left opens no subject, also if it has an id.
#[test]
fn deadline_passed_request_opens_no_subject() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    for request in [numbered(1, "a"), set_request("a", "1"), SubjectRequest::Info, SubjectRequest::Flush] {
        assert_not_begun(submit(&server, NO_TIME, request).wait(&server));
    }
    let metrics = server.engine.metrics();
    assert_eq!((metrics.subject_opens, metrics.open_subjects, metrics.expired), (0, 0, 4));
}

/// A change whose deadline passes after planning is finished.
#[test]
fn deadline_passed_after_planning_does_not_stop_change() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    server.set(&subject(APP), "a", "1").unwrap();
    world.bucket.set_unreachable(true);
    let planned = submit(&server, SECOND, numbered(1, "b"));
    server.advance(5 * SECOND);
    assert!(planned.try_reply().is_none());
    world.bucket.set_unreachable(false);
    set_result(planned.wait(&server)).unwrap();
}

/// A subject whose callers no longer wait when its turn to open comes is not opened.
#[test]
fn deadline_passed_before_turn_opens_no_subject() {
    /// One tenant may hold half of the permits for calls.
    const OPENS: usize = 128;
    let world = World::in_memory();
    let server = world.server("persist-1");
    let opening = server.authority.reply_gate.try_lock().unwrap();
    let in_time: Vec<_> = (0..OPENS)
        .map(|number| server.submit(&subject(&format!("app.s{number}")), SubjectRequest::Info))
        .collect();
    server.advance(SECOND);
    let late = submit(&server, SECOND, numbered(1, "a"));
    server.advance(2 * SECOND);
    drop(opening);
    assert_not_begun(late.wait(&server));
    in_time.iter().for_each(|one| drop(one.wait(&server).unwrap()));
    let metrics = server.engine.metrics();
    assert_eq!((metrics.subject_opens, metrics.open_subjects), (OPENS as u64, OPENS as u64));
}
