//! Limits: what makes room, what is refused, and what is left after a crash in between.

use bytes::Bytes;
use dormouse_protocol::data::{ConfigureRequest, SetItem, SetOutcome, SetReply, SetRequest};
use dormouse_protocol::limits::INLINE_LIMIT_BYTES;
use dormouse_protocol::message::{Discard, SubjectConfig};
use dormouse_protocol::{Change, ErrorCode, ErrorReply, RequestId, SessionId, Subject};
use dormouse_storage::api::{Reply, Request};
use dormouse_storage::bucket::Operation;

use crate::support::{Server, World, pairs, set_request, set_result, subject};

const APP: &str = "app.orders";

fn configured(server: &Server, app: &Subject, config: SubjectConfig) {
    server.run(app, Request::Configure(ConfigureRequest { config, ..ConfigureRequest::default() })).unwrap();
}

fn limited(world: &World, config: SubjectConfig) -> (Subject, Server) {
    let (app, server) = (subject(APP), world.server("persist-1"));
    configured(&server, &app, config);
    (app, server)
}

fn met(answer: Result<impl std::fmt::Debug, ErrorReply>) -> (ErrorCode, String) {
    let error = answer.unwrap_err();
    (error.code, error.limit.unwrap())
}

#[test]
fn the_oldest_make_room_and_watchers_hear_of_it() {
    let world = World::in_memory();
    let (app, server) = limited(&world, SubjectConfig { max_msgs: Some(2), ..SubjectConfig::default() });
    for key in ["a", "b", "a", "c"] {
        server.set(&app, key, "v").unwrap();
    }
    assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "v"), ("c", "v")]));
    let changes: Vec<Change> = server.events.of(&app).into_iter().flat_map(|event| event.changes).collect();
    let Some(Change::Delete(deleted)) = changes.last() else { panic!("{changes:?}") };
    assert_eq!((deleted.rev.get(), deleted.removed[0].key.as_deref()), (6, Some("b")));
    let revs: Vec<u64> = changes.iter().map(|change| change.rev().get()).collect();
    assert_eq!(revs, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn writes_that_follow_each_other_closely_are_counted_before_they_are_applied() {
    let world = World::in_memory();
    let config = SubjectConfig { max_msgs: Some(3), max_bytes: Some(10), ..SubjectConfig::default() };
    let (app, server) = limited(&world, config.clone());
    let held = world.bucket.hold(Operation::Create, "logs/", false);
    let asked: Vec<_> = (0..40).map(|n| server.ask(&app, set_request(&n.to_string(), "four"))).collect();
    server.pass(std::time::Duration::from_secs(1));
    assert!(asked.iter().all(|asked| asked.answer().is_none()));
    drop(held);
    for asked in asked {
        set_result(asked.wait(&server)).unwrap();
    }
    assert_eq!(server.all(&app).unwrap(), pairs(&[("38", "four"), ("39", "four")]));
    let refusing = SubjectConfig { discard: Some(Discard::New), ..config };
    configured(&server, &app, refusing);
    let asked: Vec<_> = (0..4).map(|n| server.ask(&app, set_request(&n.to_string(), "t"))).collect();
    let answers: Vec<_> = asked.iter().map(|asked| set_result(asked.wait(&server))).collect();
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    assert_eq!(met(answers[3].clone()), (ErrorCode::LimitExceeded, "max_msgs".to_owned()));
}

#[test]
fn what_is_refused_removes_nothing_and_uploads_nothing() {
    let world = World::on_disk();
    let (app, server) = limited(&world, SubjectConfig { max_bytes: Some(100), ..SubjectConfig::default() });
    server.set(&app, "a", "v").unwrap();
    let item = SetItem { value: Some(Bytes::from(vec![b'x'; INLINE_LIMIT_BYTES + 1])), ..SetItem::default() };
    let large = Request::Set(SetRequest { sets: vec![item], ..SetRequest::default() });
    assert_eq!(met(set_result(server.run(&app, large))), (ErrorCode::LimitExceeded, "max_bytes".to_owned()));
    assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "v")]));
    assert!(world.objects(&app).iter().all(|path| path.file_name().unwrap() != "blobs"));
}

#[test]
fn a_large_value_that_is_evicted_goes_from_the_bucket() {
    let world = World::on_disk();
    let most = 2 * INLINE_LIMIT_BYTES as u64 + 10;
    let (app, server) = limited(&world, SubjectConfig { max_bytes: Some(most), ..SubjectConfig::default() });
    for key in ["a", "b", "c"] {
        server.set(&app, key, &"x".repeat(INLINE_LIMIT_BYTES + 1)).unwrap();
    }
    let info = server.info(&app);
    assert_eq!((info.count, info.bytes), (2, 2 * (INLINE_LIMIT_BYTES as u64 + 1)));
    assert_eq!((info.details.large_values, info.details.large_value_bytes), (2, info.bytes));
    server.compact(&app).unwrap();
    let blobs = world.folder.path().join("bucket/subjects").join(app.escaped()).join("blobs");
    server.until("its object is gone", || crate::support::files_in(&blobs).len() == 2);
}

/// The process dies when an eviction is in the bucket and nobody has heard of it.
#[test]
fn an_eviction_whose_write_was_never_answered_is_there_with_it_or_not_at_all() {
    for landed in [true, false] {
        let world = World::in_memory();
        let (app, server) = limited(&world, SubjectConfig { max_msgs: Some(1), ..SubjectConfig::default() });
        server.set(&app, "a", "1").unwrap();
        let id = RequestId { session: SessionId::new(7_u128.into()), counter: 1 };
        let Request::Set(set) = set_request("b", "2") else { panic!() };
        let request = Request::Set(SetRequest { request: Some(id), ..set });
        let held = world.bucket.hold(Operation::Create, "logs/", landed);
        let asked = server.ask(&app, request.clone());
        server.until("it is on its way", || held.reached() > 0);
        assert!(asked.answer().is_none());
        assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "1")]), "both together, and not yet");
        let log = server.lose_disk();
        drop(held);
        world.fleet.declare_dead(&log);
        let next = world.server("persist-2");
        let left = if landed { [("b", "2")] } else { [("a", "1")] };
        assert_eq!(next.all(&app).unwrap(), pairs(&left));
        // Asked again, it is carried out if it was not.
        let Ok(Reply::Set(SetReply { results })) = next.run(&app, request) else { panic!() };
        let SetOutcome::Ok(result) = results[0] else { panic!("{results:?}") };
        assert_eq!(result.duplicate, landed);
        assert_eq!(next.all(&app).unwrap(), pairs(&[("b", "2")]));
        assert_eq!(next.info(&app).position.rev.get(), 4);
    }
}
