//! Limits of a subject: evictions, rejections, and crashes between them.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use dormouse_bucket::BucketOperation;
use dormouse_engine::api::{SubjectReply, SubjectRequest, TenantId};
use dormouse_protocol::data::{ConfigureRequest, SetItem, SetOutcome, SetReply, SetRequest};
use dormouse_protocol::limits::INLINE_LIMIT_BYTES;
use dormouse_protocol::message::{Discard, SubjectConfig};
use dormouse_protocol::tenant::TenantLimits;
use dormouse_protocol::{Change, ErrorCode, ErrorReply, RequestId, SessionId, Subject};

use crate::support::{Server, World, pairs, set_request, set_result, subject};

const APP: &str = "app.orders";

fn configured(server: &Server, app: &Subject, config: SubjectConfig) {
    server
        .run(app, SubjectRequest::Configure(ConfigureRequest { config, ..ConfigureRequest::default() }))
        .unwrap();
}

fn limited(world: &World, config: SubjectConfig) -> (Subject, Server) {
    let (app, server) = (subject(APP), world.server("persist-1"));
    configured(&server, &app, config);
    (app, server)
}

fn limit_error(answer: Result<impl std::fmt::Debug, ErrorReply>) -> (ErrorCode, String) {
    let error = answer.unwrap_err();
    (error.code, error.limit.unwrap())
}

/// A write over `max_msgs` evicts the oldest message, and events announce the removal with its own rev.
#[test]
fn write_over_limit_evicts_oldest_and_announces_it() {
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

/// Limits count pending writes before they are applied, for eviction of old messages and for rejection of new ones.
#[test]
fn limits_count_pending_writes() {
    let world = World::in_memory();
    let config = SubjectConfig { max_msgs: Some(3), max_bytes: Some(10), ..SubjectConfig::default() };
    let (app, server) = limited(&world, config.clone());
    let held = world.bucket.hold_requests(BucketOperation::Create, "logs/");
    let asked: Vec<_> = (0..40).map(|n| server.submit(&app, set_request(&n.to_string(), "four"))).collect();
    server.advance(std::time::Duration::from_secs(1));
    assert!(asked.iter().all(|asked| asked.try_reply().is_none()));
    drop(held);
    for asked in asked {
        set_result(asked.wait(&server)).unwrap();
    }
    assert_eq!(server.all(&app).unwrap(), pairs(&[("38", "four"), ("39", "four")]));
    let refusing = SubjectConfig { discard: Some(Discard::New), ..config };
    configured(&server, &app, refusing);
    let asked: Vec<_> = (0..4).map(|n| server.submit(&app, set_request(&n.to_string(), "t"))).collect();
    let answers: Vec<_> = asked.iter().map(|asked| set_result(asked.wait(&server))).collect();
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    assert_eq!(limit_error(answers[3].clone()), (ErrorCode::LimitExceeded, "max_msgs".to_owned()));
}

/// A large value over `max_bytes` is rejected, evicts no message and uploads no blob.
#[test]
fn rejected_write_removes_and_uploads_nothing() {
    let world = World::on_disk();
    let (app, server) = limited(&world, SubjectConfig { max_bytes: Some(100), ..SubjectConfig::default() });
    server.set(&app, "a", "v").unwrap();
    let item = SetItem { value: Some(Bytes::from(vec![b'x'; INLINE_LIMIT_BYTES + 1])), ..SetItem::default() };
    let large = SubjectRequest::Set(SetRequest { sets: vec![item], ..SetRequest::default() });
    assert_eq!(
        limit_error(set_result(server.run(&app, large))),
        (ErrorCode::LimitExceeded, "max_bytes".to_owned())
    );
    assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "v")]));
    assert!(world.objects(&app).iter().all(|path| path.file_name().unwrap() != "blobs"));
}

/// After the eviction of a large value, its size counts no more, and a compaction leads to the deletion of its blob.
#[test]
fn evicted_large_value_is_deleted_from_bucket() {
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
    server.until("the blob of the evicted value is deleted", || crate::support::files_in(&blobs).len() == 2);
}

/// If the process is killed before the ack, an eviction and its write are both in the bucket or both absent.
#[test]
fn eviction_is_atomic_with_unacked_write() {
    for is_stored in [true, false] {
        let world = World::in_memory();
        let (app, server) = limited(&world, SubjectConfig { max_msgs: Some(1), ..SubjectConfig::default() });
        server.set(&app, "a", "1").unwrap();
        let id = RequestId { session: SessionId::new(7_u128.into()), counter: 1 };
        let SubjectRequest::Set(set) = set_request("b", "2") else { panic!() };
        let request = SubjectRequest::Set(SetRequest { request: Some(id), ..set });
        let held = if is_stored {
            world.bucket.hold_answers(BucketOperation::Create, "logs/")
        } else {
            world.bucket.hold_requests(BucketOperation::Create, "logs/")
        };
        let asked = server.submit(&app, request.clone());
        server.until("the segment upload starts", || held.reached() > 0);
        assert!(asked.try_reply().is_none());
        assert_eq!(
            server.all(&app).unwrap(),
            pairs(&[("a", "1")]),
            "neither the write nor the eviction is visible"
        );
        let log = server.lose_disk();
        drop(held);
        world.fleet.declare_dead(&log);
        let next = world.server("persist-2");
        let left = if is_stored { [("b", "2")] } else { [("a", "1")] };
        assert_eq!(next.all(&app).unwrap(), pairs(&left));
        // A repeat executes the request if it was not executed before.
        let Ok(SubjectReply::Set(SetReply { results })) = next.run(&app, request) else { panic!() };
        let SetOutcome::Ok(result) = results[0] else { panic!("{results:?}") };
        assert_eq!(result.duplicate, is_stored);
        assert_eq!(next.all(&app).unwrap(), pairs(&[("b", "2")]));
        assert_eq!(next.info(&app).position.rev.get(), 4);
    }
}

/// A creation above the limit of its tenant is refused before the authority records who has the subject.
#[test]
fn creation_over_limit_asks_no_authority() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    let limits = TenantLimits { creations_per_minute: Some(1), ..TenantLimits::NONE };
    server.engine.set_tenant_limits(TenantId::SHARED, limits);
    server.set(&subject("app.one"), "k", "v").unwrap();
    let error = server.set(&subject("app.two"), "k", "v").unwrap_err();
    assert_eq!(error.code, ErrorCode::Overloaded);
    assert_eq!(server.authority.claim_requests.load(Ordering::SeqCst), 1);
    server.set(&subject("app.one"), "k", "w").unwrap();
}
