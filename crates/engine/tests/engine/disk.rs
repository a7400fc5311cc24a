//! A full local disk, and a failing one.

use std::time::Duration;

use dormouse_engine::LogEnd;
use dormouse_protocol::{ErrorCode, Level};

use crate::support::{World, pairs, set_request, set_result, subject};

const APP: &str = "app.orders";

/// On a full disk, writes of levels `interval`, `disk` and `bucket` fail as `unavailable`, reads succeed, and writes
/// resume with free space.
#[test]
fn disk_full_fails_writes_and_keeps_reads_until_freed() {
    for level in [Level::Interval, Level::Disk, Level::Bucket] {
        let world = World::in_memory();
        let (app, disk) = (subject(APP), world.disk(3));
        let server = world.server_on(&disk, "persist-1");
        server.configure(&app, level);
        server.get(&app, "a").unwrap();
        server.set(&app, "a", "1").unwrap();
        server.flush(&app).unwrap();
        disk.limit_free_space(Some(0));
        for _ in 0..10 {
            let error = server.set(&app, "b", "2").unwrap_err();
            assert_eq!(error.code, ErrorCode::Unavailable);
            assert!(error.message.contains("full"), "{error}");
            assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "1")]));
            server.advance(Duration::from_millis(300));
        }
        disk.limit_free_space(None);
        server.advance(Duration::from_secs(1));
        server.set(&app, "c", "3").unwrap();
        assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "1"), ("c", "3")]));
        server.kill();
        let server = world.server_on(&disk, "persist-1");
        assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "1"), ("c", "3")]), "{level:?}");
    }
}

/// A write that failed on a full disk does not block its subject after a handover to another server and back.
#[test]
fn disk_full_failure_does_not_block_reopen() {
    let world = World::in_memory();
    let (app, disk) = (subject(APP), world.disk(3));
    let first = world.server_on(&disk, "persist-1");
    first.set(&app, "a", "1").unwrap();
    disk.limit_free_space(Some(0));
    first.set(&app, "b", "2").unwrap_err();
    first.hand_over(&app).unwrap();
    let second = world.server("persist-2");
    second.set(&app, "c", "3").unwrap();
    second.set(&app, "d", "4").unwrap();
    second.hand_over(&app).unwrap();
    disk.limit_free_space(None);
    first.advance(Duration::from_secs(1));
    first.set(&app, "e", "5").unwrap();
    let expected = pairs(&[("a", "1"), ("c", "3"), ("d", "4"), ("e", "5")]);
    assert_eq!(first.all(&app).unwrap(), expected);
}

/// After a failed sync, the server acks no write and its log ends as poisoned; a restart keeps every acked write.
#[test]
fn sync_failure_stops_acks_and_ends_log() {
    let world = World::in_memory();
    let (app, disk) = (subject(APP), world.disk(3));
    let server = world.server_on(&disk, "persist-1");
    server.configure(&app, Level::Disk);
    server.get(&app, "a").unwrap();
    server.set(&app, "a", "1").unwrap();
    server.flush(&app).unwrap();
    disk.fail_syncs(1);
    let asked = server.submit(&app, set_request("b", "2"));
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
    // After a restart, the unacknowledged write may be there; the acknowledged one is.
    server.kill();
    let server = world.server_on(&disk, "persist-1");
    let found = server.all(&app).unwrap();
    assert!(found == pairs(&[("a", "1")]) || found == pairs(&[("a", "1"), ("b", "2")]), "{found:?}");
    server.set(&app, "d", "4").unwrap();
}

/// A WAL on a disk with short writes keeps every acked write after a power loss.
#[test]
fn wal_on_disk_with_short_writes_loses_nothing() {
    let world = World::in_memory();
    let (app, disk) = (subject(APP), world.disk(3));
    let server = world.server_on(&disk, "persist-1");
    server.configure(&app, Level::Disk);
    server.get(&app, "a").unwrap();
    disk.short_writes(2);
    world.bucket.set_unreachable(true);
    for n in 0..50 {
        server.set(&app, &n.to_string(), "v").unwrap();
    }
    server.lose_power(&disk);
    world.bucket.set_unreachable(false);
    disk.short_writes(0);
    assert_eq!(world.server_on(&disk, "persist-1").info(&app).count, 50);
}
