//! Which acked writes survive each failure, by level; and which level a write has.

use std::collections::BTreeSet;
use std::time::Duration;

use dormouse_engine::api::SubjectRequest;
use dormouse_protocol::data::ConfigureRequest;
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Level, Rev};
use dormouse_testkit::disk::FaultyDisk;

use crate::support::{ClockMode, Server, World, at_level, lost_changes, set_request, set_result, subject};

const APP: &str = "app.orders";

/// A server with three writes acked at `level`: one in the bucket, one acked 1.5 seconds ago, and one acked just now.
/// After the first, the bucket is unreachable if the level allows writes without it.
fn server_with_three_acked_writes(level: Level) -> (World, FaultyDisk, Server) {
    let world = World::in_memory();
    let disk = world.disk(7);
    let server = world.server_on(&disk, "persist-1");
    let app = subject(APP);
    server.configure(&app, level);
    server.get(&app, "k").unwrap();
    server.set(&app, "shipped", "v").unwrap();
    server.flush(&app).unwrap();
    world.bucket.set_unreachable(level != Level::Bucket);
    server.set(&app, "old", "v").unwrap();
    // Longer than the interval of syncs.
    server.advance(Duration::from_millis(1_500));
    server.set(&app, "new", "v").unwrap();
    (world, disk, server)
}

fn keys(server: &Server) -> BTreeSet<String> {
    server.all(&subject(APP)).unwrap().into_iter().map(|(key, _)| key).collect()
}

/// Asserts that at least the writes `kept` are found, and that the found ones are a prefix in the order of acks.
fn assert_kept(found: &BTreeSet<String>, kept: &[&str]) {
    let all = ["shipped", "old", "new"];
    let prefix = found.len();
    let expected: BTreeSet<String> = all[..prefix].iter().map(|key| (*key).to_owned()).collect();
    assert_eq!(*found, expected, "a found write without the earlier ones");
    assert!(prefix >= kept.len(), "found {found:?}, expected at least {kept:?}");
}

/// After a process kill, a restart on the same disk finds the acked writes that their level guarantees.
fn process_kill_keeps_writes_by_level(level: Level) {
    let (world, disk, server) = server_with_three_acked_writes(level);
    server.kill();
    world.bucket.set_unreachable(false);
    let kept: &[_] = if level == Level::Memory { &["shipped", "old"] } else { &["shipped", "old", "new"] };
    assert_kept(&keys(&world.server_on(&disk, "persist-1")), kept);
}

/// After a power loss, a restart on the same disk finds the acked writes that their level guarantees.
fn power_loss_keeps_writes_by_level(level: Level) {
    let (world, disk, server) = server_with_three_acked_writes(level);
    server.lose_power(&disk);
    world.bucket.set_unreachable(false);
    let kept: &[_] = if level < Level::Disk { &["shipped", "old"] } else { &["shipped", "old", "new"] };
    assert_kept(&keys(&world.server_on(&disk, "persist-1")), kept);
}

/// After the loss of its disk, a restarted server finds the acked writes that their level guarantees.
fn disk_loss_keeps_writes_by_level(level: Level) {
    let (world, disk, server) = server_with_three_acked_writes(level);
    let log = server.lose_disk();
    world.bucket.set_unreachable(false);
    world.fleet.declare_dead(&log);
    let kept: &[_] = if level < Level::Bucket { &["shipped"] } else { &["shipped", "old", "new"] };
    assert_kept(&keys(&world.server_on(&disk, "persist-1")), kept);
}

/// After a takeover, the new owner has the guaranteed writes, and diverged writes stay in `lost/` and never merge.
fn takeover_keeps_writes_by_level(level: Level) {
    let (world, disk, first) = server_with_three_acked_writes(level);
    world.bucket.set_unreachable(false);
    world.fleet.declare_dead(&first.log());
    let second = world.server("persist-2");
    let kept: &[_] = if level < Level::Bucket { &["shipped"] } else { &["shipped", "old", "new"] };
    let found = keys(&second);
    assert_kept(&found, kept);
    second.set(&subject(APP), "next", "v").unwrap();
    // The old server returns with its disk: its diverged writes are kept in `lost/` and never merged.
    first.kill();
    let first = world.server_on(&disk, "persist-1");
    let data_dir = world.data_dir("persist-1");
    if level == Level::Disk || level == Level::Interval {
        first.until("the writes are kept in lost/", || lost_changes(&data_dir).len() == 2);
        assert_eq!(
            lost_changes(&data_dir).iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(),
            ["old", "new"]
        );
    }
    first.advance(Duration::from_secs(30));
    assert_eq!(keys(&second).len(), found.len() + 1);
    if level == Level::Bucket {
        assert!(lost_changes(&data_dir).is_empty());
    }
}

macro_rules! table {
    ($($level:ident $value:ident: $($failure:ident)*;)*) => { $(mod $level { $(
        #[test]
        fn $failure() {
            super::$failure(dormouse_protocol::Level::$value);
        }
    )* })* };
}

table! {
    memory Memory: process_kill_keeps_writes_by_level power_loss_keeps_writes_by_level disk_loss_keeps_writes_by_level takeover_keeps_writes_by_level;
    interval Interval: process_kill_keeps_writes_by_level power_loss_keeps_writes_by_level disk_loss_keeps_writes_by_level takeover_keeps_writes_by_level;
    disk Disk: process_kill_keeps_writes_by_level power_loss_keeps_writes_by_level disk_loss_keeps_writes_by_level takeover_keeps_writes_by_level;
    bucket Bucket: process_kill_keeps_writes_by_level power_loss_keeps_writes_by_level disk_loss_keeps_writes_by_level takeover_keeps_writes_by_level;
}

/// Writes of weaker levels are in the bucket within the ship interval and then survive the loss of the disk.
#[test]
fn weak_writes_ship_within_interval_and_survive_disk_loss() {
    for level in [Level::Memory, Level::Interval, Level::Disk] {
        let world = World::in_memory();
        let app = subject(APP);
        let server = world.server("persist-1");
        server.configure(&app, level);
        server.get(&app, "k").unwrap();
        server.set(&app, "shipped", "v").unwrap();
        server.advance(Duration::from_millis(1_100));
        let log = server.lose_disk();
        world.fleet.declare_dead(&log);
        assert_eq!(keys(&world.server("persist-2")).len(), 1, "{level:?}");
    }
}

/// Whether the ack of a write waits for an unreachable bucket.
fn write_needs_bucket(world: &World, server: &Server, level: Option<Level>) -> bool {
    world.bucket.set_unreachable(true);
    let request = set_request("k", "v");
    let request = level.map_or(request.clone(), |level| at_level(level, request));
    let asked = server.submit(&subject(APP), request);
    server.advance(Duration::from_secs(2));
    let answered = asked.try_reply();
    world.bucket.set_unreachable(false);
    let needs = answered.is_none();
    set_result(answered.unwrap_or_else(|| asked.wait(server))).unwrap();
    server.flush(&subject(APP)).unwrap();
    needs
}

/// The level of a subject overrides the server's default, and a request can only raise it.
#[test]
fn subject_level_overrides_server_and_request_raises_it() {
    let world = World::in_memory();
    let app = subject(APP);
    for (default, configured, request, bucket) in [
        (Level::Bucket, None, None, true),
        (Level::Disk, None, None, false),
        (Level::Disk, None, Some(Level::Bucket), true),
        (Level::Bucket, Some(Level::Memory), None, false),
        (Level::Memory, Some(Level::Bucket), None, true),
        (Level::Memory, Some(Level::Bucket), Some(Level::Memory), true),
        (Level::Bucket, Some(Level::Interval), Some(Level::Bucket), true),
    ] {
        let server = world.start("persist-1", None, ClockMode::Paused, |settings| settings.level = default);
        let config = SubjectConfig { level: configured, ..SubjectConfig::default() };
        server
            .run(&app, SubjectRequest::Configure(ConfigureRequest { config, ..Default::default() }))
            .unwrap();
        assert_eq!(server.info(&app).level, configured.unwrap_or(default));
        let case = format!("{default:?} {configured:?} {request:?}");
        assert_eq!(write_needs_bucket(&world, &server, request), bucket, "{case}");
        server.shutdown();
    }
}

/// A change of the level takes effect only after the change itself is in the bucket.
#[test]
fn level_change_takes_effect_once_in_bucket() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server_with("persist-1", |settings| settings.level = Level::Memory);
    server.get(&app, "k").unwrap();
    server.set(&app, "k", "v").unwrap();
    world.bucket.set_unreachable(true);
    let config = SubjectConfig { level: Some(Level::Interval), ..SubjectConfig::default() };
    let request = SubjectRequest::Configure(ConfigureRequest { config, ..Default::default() });
    let asked = server.submit(&app, request);
    server.advance(Duration::from_secs(3));
    assert!(asked.try_reply().is_none());
    assert_eq!(server.info(&app).level, Level::Memory);
    world.bucket.set_unreachable(false);
    asked.wait(&server).unwrap();
    assert_eq!((server.info(&app).level, server.info(&app).bucket_rev), (Level::Interval, Rev::new(2)));
}

/// Writes without any read confirm a lease, so later weak writes need no bucket.
#[test]
fn lease_is_confirmed_by_writes_alone() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server_with("persist-1", |settings| settings.level = Level::Memory);
    server.set(&app, "first", "v").unwrap();
    server.advance(Duration::from_secs(1));
    assert!(!write_needs_bucket(&world, &server, None));
}

/// Changes that reach their level together are announced and acknowledged in slices: a flood of one subject does not keep
/// its thread.
#[test]
fn changes_ready_together_are_acknowledged_in_slices() {
    const CHANGES: usize = 700;
    let world = World::in_memory();
    let server = world.server("persist-1");
    let app = subject("app.one");
    server.set(&app, "k", "first").unwrap();
    let before = server.events.of(&app).len();
    let request = |number: usize| at_level(Level::Bucket, set_request(&format!("k{number}"), "v"));
    let pending: Vec<_> = (0..CHANGES).map(|number| server.submit(&app, request(number))).collect();
    for one in &pending {
        one.wait(&server).unwrap();
    }
    let events = server.events.of(&app).split_off(before);
    let announced: Vec<_> =
        events.iter().map(|event| event.changes.len()).filter(|&count| count > 0).collect();
    assert_eq!(announced.iter().sum::<usize>(), CHANGES);
    assert!(announced.len() >= 3 && announced.iter().all(|&count| count <= 256), "{announced:?}");
}
