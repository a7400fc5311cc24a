//! What goes on without a lease, and when one is trusted.

use std::time::Duration;

use dormouse_protocol::{ErrorCode, Level};
use dormouse_storage::bucket::Operation;

use crate::support::{World, set_request, set_result, subject};

const APP: &str = "app.orders";

#[test]
fn a_coordinator_that_is_gone_stops_no_subject_that_is_assigned() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "a", "1").unwrap();
    server.authority.set_lease(None);
    for n in 0..20 {
        let value = n.to_string();
        server.set(&app, "a", &value).unwrap();
        assert_eq!(server.get(&app, "a").unwrap(), Some(value));
        server.pass(Duration::from_secs(10));
    }
}

#[test]
fn without_a_lease_each_read_asks_the_bucket_and_none_is_answered_without_it() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "a", "1").unwrap();
    server.get(&app, "a").unwrap();
    world.bucket.take_calls();
    server.get(&app, "a").unwrap();
    assert_eq!(world.bucket.take_calls(), [], "under a lease that is trusted");
    server.authority.set_lease(None);
    server.get(&app, "a").unwrap();
    assert_eq!(world.bucket.calls(Operation::Get), 1, "the next slot of its log");
    world.bucket.set_gone(true);
    let asked = server.ask(&app, dormouse_storage::api::Request::Info);
    server.pass(Duration::from_secs(5));
    assert!(!matches!(asked.answer(), Some(Ok(_))));
    world.bucket.set_gone(false);
    assert_eq!(server.get(&app, "a").unwrap().as_deref(), Some("1"));
}

#[test]
fn reads_that_wait_for_the_bucket_share_one_look() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "a", "1").unwrap();
    server.authority.set_lease(None);
    world.bucket.take_calls();
    let asked: Vec<_> = (0..200).map(|_| server.ask(&app, dormouse_storage::api::Request::Info)).collect();
    for asked in asked {
        asked.wait(&server).unwrap();
    }
    assert!(world.bucket.calls(Operation::Get) <= 2, "{}", world.bucket.calls(Operation::Get));
}

#[test]
fn without_a_lease_a_write_of_any_level_waits_for_the_bucket() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.configure(&app, Level::Memory);
    server.get(&app, "a").unwrap();
    server.set(&app, "a", "1").unwrap();
    server.flush(&app).unwrap();
    server.authority.set_lease(None);
    world.bucket.set_gone(true);
    let asked = server.ask(&app, set_request("b", "2"));
    server.pass(Duration::from_secs(5));
    assert!(asked.answer().is_none());
    assert!(server.events.of(&app).iter().all(|event| event.rev.get() < 3));
    world.bucket.set_gone(false);
    set_result(asked.wait(&server)).unwrap();
}

#[test]
fn a_lease_of_a_new_generation_is_trusted_after_a_look_into_the_bucket() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.configure(&app, Level::Disk);
    server.get(&app, "a").unwrap();
    server.set(&app, "a", "1").unwrap();
    server.flush(&app).unwrap();
    server.authority.set_lease(Some(2));
    world.bucket.set_gone(true);
    let (read, write) =
        (server.ask(&app, dormouse_storage::api::Request::Info), server.ask(&app, set_request("b", "2")));
    server.pass(Duration::from_secs(3));
    assert!(!matches!(read.answer(), Some(Ok(_))) && write.answer().is_none());
    world.bucket.set_gone(false);
    set_result(write.wait(&server)).unwrap();
    server.get(&app, "a").unwrap();
    world.bucket.set_gone(true);
    assert_eq!(server.get(&app, "a").unwrap().as_deref(), Some("1"), "trusted from now on");
    server.set(&app, "c", "3").unwrap();
}

#[test]
fn a_subject_that_is_not_open_is_claimed_only_when_the_coordinator_says_so() {
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
