//! Service without a lease, and the confirmation of a lease.

use std::time::Duration;

use dormouse_bucket::BucketOperation;
use dormouse_protocol::{ErrorCode, Level};

use crate::support::{World, set_request, set_result, subject};

const APP: &str = "app.orders";

/// A server without a lease keeps serving reads and writes of its subjects.
#[test]
fn server_without_lease_keeps_serving_owned_subjects() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "a", "1").unwrap();
    server.authority.set_lease(None);
    for n in 0..20 {
        let value = n.to_string();
        server.set(&app, "a", &value).unwrap();
        assert_eq!(server.get(&app, "a").unwrap(), Some(value));
        server.advance(Duration::from_secs(10));
    }
}

/// Without a lease, each read probes the next slot in the bucket, and no read succeeds while the bucket is unreachable.
#[test]
fn read_without_lease_waits_for_barrier() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "a", "1").unwrap();
    server.get(&app, "a").unwrap();
    world.bucket.take_calls();
    server.get(&app, "a").unwrap();
    assert_eq!(world.bucket.take_calls(), [], "under a confirmed lease");
    server.authority.set_lease(None);
    server.get(&app, "a").unwrap();
    assert_eq!(world.bucket.calls(BucketOperation::Get), 1, "the next slot of its log");
    world.bucket.set_unreachable(true);
    let asked = server.submit(&app, dormouse_engine::api::SubjectRequest::Info);
    server.advance(Duration::from_secs(5));
    assert!(!matches!(asked.try_reply(), Some(Ok(_))));
    world.bucket.set_unreachable(false);
    assert_eq!(server.get(&app, "a").unwrap().as_deref(), Some("1"));
}

/// 200 concurrent reads without a lease share at most two slot probes.
#[test]
fn reads_without_lease_share_read_barriers() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "a", "1").unwrap();
    server.authority.set_lease(None);
    world.bucket.take_calls();
    let asked: Vec<_> =
        (0..200).map(|_| server.submit(&app, dormouse_engine::api::SubjectRequest::Info)).collect();
    for asked in asked {
        asked.wait(&server).unwrap();
    }
    assert!(world.bucket.calls(BucketOperation::Get) <= 2, "{}", world.bucket.calls(BucketOperation::Get));
}

/// Without a lease, the server neither acks nor announces a write of a weaker level before it is in the bucket.
#[test]
fn write_without_lease_waits_for_bucket() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.configure(&app, Level::Memory);
    server.get(&app, "a").unwrap();
    server.set(&app, "a", "1").unwrap();
    server.flush(&app).unwrap();
    server.authority.set_lease(None);
    world.bucket.set_unreachable(true);
    let asked = server.submit(&app, set_request("b", "2"));
    server.advance(Duration::from_secs(5));
    assert!(asked.try_reply().is_none());
    assert!(server.events.of(&app).iter().all(|event| event.rev.get() < 3));
    world.bucket.set_unreachable(false);
    set_result(asked.wait(&server)).unwrap();
}

/// Under a lease of a new generation, reads and weak writes wait for the bucket until a barrier confirms the lease.
#[test]
fn lease_of_new_generation_is_confirmed_by_barrier() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.configure(&app, Level::Disk);
    server.get(&app, "a").unwrap();
    server.set(&app, "a", "1").unwrap();
    server.flush(&app).unwrap();
    server.authority.set_lease(Some(2));
    world.bucket.set_unreachable(true);
    let (read, write) = (
        server.submit(&app, dormouse_engine::api::SubjectRequest::Info),
        server.submit(&app, set_request("b", "2")),
    );
    server.advance(Duration::from_secs(3));
    assert!(!matches!(read.try_reply(), Some(Ok(_))) && write.try_reply().is_none());
    world.bucket.set_unreachable(false);
    set_result(write.wait(&server)).unwrap();
    server.get(&app, "a").unwrap();
    world.bucket.set_unreachable(true);
    assert_eq!(server.get(&app, "a").unwrap().as_deref(), Some("1"), "the lease is confirmed from now on");
    server.set(&app, "c", "3").unwrap();
}

/// A server without the coordinator's permission does not claim a subject and returns `not_owner` with the owner.
#[test]
fn claim_needs_coordinator_permission() {
    let world = World::in_memory();
    let app = subject(APP);
    let first = world.server("persist-1");
    first.set(&app, "a", "1").unwrap();
    let second = world.server("persist-2");
    let error = second.get(&app, "a").unwrap_err();
    assert_eq!((error.code, error.owner), (ErrorCode::NotOwner, Some("persist-1".parse().unwrap())));
    assert_eq!(first.get(&app, "a").unwrap().as_deref(), Some("1"));
    first.set(&app, "b", "2").unwrap();
}
