//! What is left of an acknowledged write after each disaster, by level; and which level a write has.

use std::collections::BTreeSet;
use std::time::Duration;

use dormouse_protocol::data::ConfigureRequest;
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Level, Rev};
use dormouse_storage::api::Request;
use dormouse_storage::wal::faults::FaultyStorage;

use crate::support::{Clockwork, Server, World, at_level, lost_changes, set_request, set_result, subject};

const APP: &str = "app.orders";

/// A server with three writes acknowledged at `level`: one that is in the bucket, one acknowledged a while ago, and one
/// acknowledged just now. The bucket has gone after the first, where the level lets writes go on without it.
fn three_writes(level: Level) -> (World, FaultyStorage, Server) {
    let world = World::in_memory();
    let disk = world.disk(7);
    let server = world.server_on(&disk, "persist-1");
    let app = subject(APP);
    server.configure(&app, level);
    server.get(&app, "k").unwrap();
    server.set(&app, "shipped", "v").unwrap();
    server.flush(&app).unwrap();
    world.bucket.set_gone(level != Level::Bucket);
    server.set(&app, "old", "v").unwrap();
    // More than between two syncs.
    server.pass(Duration::from_millis(1_500));
    server.set(&app, "new", "v").unwrap();
    (world, disk, server)
}

fn keys(server: &Server) -> BTreeSet<String> {
    server.all(&subject(APP)).unwrap().into_iter().map(|(key, _)| key).collect()
}

/// At least `kept`, in the order in which they were acknowledged.
fn assert_kept(found: &BTreeSet<String>, kept: &[&str]) {
    let all = ["shipped", "old", "new"];
    let prefix = found.len();
    let expected: BTreeSet<String> = all[..prefix].iter().map(|key| (*key).to_owned()).collect();
    assert_eq!(*found, expected, "never one without those before it");
    assert!(prefix >= kept.len(), "{found:?} where {kept:?} must be");
}

fn process_killed(level: Level) {
    let (world, disk, server) = three_writes(level);
    server.kill();
    world.bucket.set_gone(false);
    let kept: &[_] = if level == Level::Memory { &["shipped", "old"] } else { &["shipped", "old", "new"] };
    assert_kept(&keys(&world.server_on(&disk, "persist-1")), kept);
}

fn power_lost(level: Level) {
    let (world, disk, server) = three_writes(level);
    server.lose_power(&disk);
    world.bucket.set_gone(false);
    let kept: &[_] = if level < Level::Disk { &["shipped", "old"] } else { &["shipped", "old", "new"] };
    assert_kept(&keys(&world.server_on(&disk, "persist-1")), kept);
}

fn disk_lost(level: Level) {
    let (world, disk, server) = three_writes(level);
    let log = server.lose_disk();
    world.bucket.set_gone(false);
    world.fleet.declare_dead(&log);
    let kept: &[_] = if level < Level::Bucket { &["shipped"] } else { &["shipped", "old", "new"] };
    assert_kept(&keys(&world.server_on(&disk, "persist-1")), kept);
}

fn successor_takes_over(level: Level) {
    let (world, disk, first) = three_writes(level);
    world.bucket.set_gone(false);
    world.fleet.declare_dead(&first.log());
    let second = world.server("persist-2");
    let kept: &[_] = if level < Level::Bucket { &["shipped"] } else { &["shipped", "old", "new"] };
    let found = keys(&second);
    assert_kept(&found, kept);
    second.set(&subject(APP), "next", "v").unwrap();
    // The old server returns with its disk: what was on it is kept aside, and merged never.
    first.kill();
    let first = world.server_on(&disk, "persist-1");
    let data_dir = world.data_dir("persist-1");
    if level == Level::Disk || level == Level::Interval {
        first.until("it is set aside", || lost_changes(&data_dir).len() == 2);
        assert_eq!(
            lost_changes(&data_dir).iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(),
            ["old", "new"]
        );
    }
    first.pass(Duration::from_secs(30));
    assert_eq!(keys(&second).len(), found.len() + 1);
    if level == Level::Bucket {
        assert!(lost_changes(&data_dir).is_empty());
    }
}

macro_rules! table {
    ($($level:ident $value:ident: $($disaster:ident)*;)*) => { $(mod $level { $(
        #[test]
        fn $disaster() {
            super::$disaster(dormouse_protocol::Level::$value);
        }
    )* })* };
}

table! {
    memory Memory: process_killed power_lost disk_lost successor_takes_over;
    interval Interval: process_killed power_lost disk_lost successor_takes_over;
    disk Disk: process_killed power_lost disk_lost successor_takes_over;
    bucket Bucket: process_killed power_lost disk_lost successor_takes_over;
}

#[test]
fn weaker_levels_reach_the_bucket_within_the_ship_interval_and_then_survive_anything() {
    for level in [Level::Memory, Level::Interval, Level::Disk] {
        let world = World::in_memory();
        let app = subject(APP);
        let server = world.server("persist-1");
        server.configure(&app, level);
        server.get(&app, "k").unwrap();
        server.set(&app, "shipped", "v").unwrap();
        server.pass(Duration::from_millis(1_100));
        let log = server.lose_disk();
        world.fleet.declare_dead(&log);
        assert_eq!(keys(&world.server("persist-2")).len(), 1, "{level:?}");
    }
}

/// Whether a write is acknowledged that the bucket does not take.
fn needs_the_bucket(world: &World, server: &Server, level: Option<Level>) -> bool {
    world.bucket.set_gone(true);
    let request = set_request("k", "v");
    let request = level.map_or(request.clone(), |level| at_level(level, request));
    let asked = server.ask(&subject(APP), request);
    server.pass(Duration::from_secs(2));
    let answered = asked.answer();
    world.bucket.set_gone(false);
    let needs = answered.is_none();
    set_result(answered.unwrap_or_else(|| asked.wait(server))).unwrap();
    server.flush(&subject(APP)).unwrap();
    needs
}

#[test]
fn the_subjects_level_counts_before_the_servers_and_a_request_only_raises_it() {
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
        let server = world.start("persist-1", None, Clockwork::Held, |settings| settings.level = default);
        let config = SubjectConfig { level: configured, ..SubjectConfig::default() };
        server.run(&app, Request::Configure(ConfigureRequest { config, ..Default::default() })).unwrap();
        assert_eq!(server.info(&app).level, configured.unwrap_or(default));
        let what = format!("{default:?} {configured:?} {request:?}");
        assert_eq!(needs_the_bucket(&world, &server, request), bucket, "{what}");
        server.shutdown();
    }
}

#[test]
fn a_change_of_the_level_is_itself_in_the_bucket_before_it_counts() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server_with("persist-1", |settings| settings.level = Level::Memory);
    server.get(&app, "k").unwrap();
    server.set(&app, "k", "v").unwrap();
    world.bucket.set_gone(true);
    let config = SubjectConfig { level: Some(Level::Interval), ..SubjectConfig::default() };
    let request = Request::Configure(ConfigureRequest { config, ..Default::default() });
    let asked = server.ask(&app, request);
    server.pass(Duration::from_secs(3));
    assert!(asked.answer().is_none());
    assert_eq!(server.info(&app).level, Level::Memory);
    world.bucket.set_gone(false);
    asked.wait(&server).unwrap();
    assert_eq!((server.info(&app).level, server.info(&app).bucket_rev), (Level::Interval, Rev::new(2)));
}

#[test]
fn writes_alone_come_to_trust_a_lease() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server_with("persist-1", |settings| settings.level = Level::Memory);
    server.set(&app, "first", "v").unwrap();
    server.pass(Duration::from_secs(1));
    assert!(!needs_the_bucket(&world, &server, None));
}
