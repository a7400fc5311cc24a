//! A local disk that is full, and one that fails.

use std::time::Duration;

use dormouse_protocol::{ErrorCode, Level};
use dormouse_storage::LogEnd;

use crate::support::{World, pairs, set_request, set_result, subject};

const APP: &str = "app.orders";

#[test]
fn on_a_full_disk_writes_fail_reads_go_on_and_room_is_noticed() {
    for level in [Level::Interval, Level::Disk, Level::Bucket] {
        let world = World::in_memory();
        let (app, disk) = (subject(APP), world.disk(3));
        let server = world.server_on(&disk, "persist-1");
        server.configure(&app, level);
        server.get(&app, "a").unwrap();
        server.set(&app, "a", "1").unwrap();
        server.flush(&app).unwrap();
        disk.limit_room(Some(0));
        for _ in 0..10 {
            let error = server.set(&app, "b", "2").unwrap_err();
            assert_eq!(error.code, ErrorCode::Unavailable);
            assert!(error.message.contains("full"), "{error}");
            assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "1")]));
            server.pass(Duration::from_millis(300));
        }
        disk.limit_room(None);
        server.pass(Duration::from_secs(1));
        server.set(&app, "c", "3").unwrap();
        assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "1"), ("c", "3")]));
        server.kill();
        let server = world.server_on(&disk, "persist-1");
        assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "1"), ("c", "3")]), "{level:?}");
    }
}

#[test]
fn what_failed_on_a_full_disk_stands_in_nobodys_way_when_the_subject_comes_back() {
    let world = World::in_memory();
    let (app, disk) = (subject(APP), world.disk(3));
    let first = world.server_on(&disk, "persist-1");
    first.set(&app, "a", "1").unwrap();
    disk.limit_room(Some(0));
    first.set(&app, "b", "2").unwrap_err();
    first.hand_over(&app).unwrap();
    let second = world.server("persist-2");
    second.set(&app, "c", "3").unwrap();
    second.set(&app, "d", "4").unwrap();
    second.hand_over(&app).unwrap();
    disk.limit_room(None);
    first.pass(Duration::from_secs(1));
    first.set(&app, "e", "5").unwrap();
    let expected = pairs(&[("a", "1"), ("c", "3"), ("d", "4"), ("e", "5")]);
    assert_eq!(first.all(&app).unwrap(), expected);
}

#[test]
fn after_a_sync_that_failed_nothing_is_acknowledged_and_the_engine_says_so() {
    let world = World::in_memory();
    let (app, disk) = (subject(APP), world.disk(3));
    let server = world.server_on(&disk, "persist-1");
    server.configure(&app, Level::Disk);
    server.get(&app, "a").unwrap();
    server.set(&app, "a", "1").unwrap();
    server.flush(&app).unwrap();
    disk.fail_syncs(1);
    let asked = server.ask(&app, set_request("b", "2"));
    let error = set_result(asked.wait(&server)).unwrap_err();
    assert_eq!(error.code, ErrorCode::Indeterminate, "{error}");
    for level in [Level::Memory, Level::Bucket] {
        let error = server.set_at(&app, level, "c", "3").unwrap_err();
        assert_eq!(error.code, ErrorCode::Unavailable, "{error}");
    }
    let ended = server
        .runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(10), server.engine.ended()).await });
    assert_eq!(ended.unwrap(), LogEnd::Poisoned);
    // After a restart, what was not acknowledged may be there, and what was is.
    server.kill();
    let server = world.server_on(&disk, "persist-1");
    let found = server.all(&app).unwrap();
    assert!(found == pairs(&[("a", "1")]) || found == pairs(&[("a", "1"), ("b", "2")]), "{found:?}");
    server.set(&app, "d", "4").unwrap();
}

#[test]
fn a_write_ahead_log_that_writes_in_pieces_loses_nothing() {
    let world = World::in_memory();
    let (app, disk) = (subject(APP), world.disk(3));
    let server = world.server_on(&disk, "persist-1");
    server.configure(&app, Level::Disk);
    server.get(&app, "a").unwrap();
    disk.short_writes(2);
    world.bucket.set_gone(true);
    for n in 0..50 {
        server.set(&app, &n.to_string(), "v").unwrap();
    }
    server.lose_power(&disk);
    world.bucket.set_gone(false);
    disk.short_writes(0);
    assert_eq!(world.server_on(&disk, "persist-1").info(&app).count, 50);
}
