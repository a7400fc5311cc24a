//! What a process finds that comes after another one on the same data directory.

use dormouse_protocol::{ErrorCode, Level, Slot};
use dormouse_storage::bucket::{Bucket, Operation};
use dormouse_storage::format::segment::{self, SlotKind};
use dormouse_storage::keys::{ManifestNumber, SubjectKeys};

use crate::support::{Server, World, lost_changes, pairs, subject};

const APP: &str = "app.orders";

/// A server with a write in the bucket and one that only its disk has.
fn with_unshipped(world: &World) -> Server {
    let app = subject(APP);
    let server = world.server("persist-1");
    server.configure(&app, Level::Disk);
    server.get(&app, "a").unwrap();
    server.set(&app, "a", "1").unwrap();
    server.flush(&app).unwrap();
    world.bucket.set_gone(true);
    server.set(&app, "b", "2").unwrap();
    server
}

#[test]
fn a_restart_brings_what_only_the_disk_had_into_the_old_log_and_ends_that() {
    let world = World::on_disk();
    let app = subject(APP);
    let old = with_unshipped(&world).kill();
    world.bucket.set_gone(false);
    let before = world.slots(&old).len();
    let server = world.server("persist-1");
    let slots = world.slots(&old);
    assert_eq!(slots.len(), before + 2, "a segment and the seal");
    let seal = std::fs::read(slots.last().unwrap()).unwrap();
    let number =
        u64::from_str_radix(slots.last().unwrap().file_name().unwrap().to_str().unwrap(), 16).unwrap();
    let object = segment::decode(&old, Slot::new(number), seal.into());
    assert_eq!(object.unwrap().header.kind, SlotKind::Seal);
    assert!(
        crate::support::files_in(&world.data_dir("persist-1").join("wal")).len() == 1,
        "only the new log's"
    );

    assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "1"), ("b", "2")]));
    assert_ne!(server.log(), old);
    assert_eq!(server.info(&app).bucket_rev, server.info(&app).position.rev);
    // It is in the bucket now, and another server has it.
    let log = server.lose_disk();
    world.fleet.declare_dead(&log);
    assert_eq!(world.server("persist-2").all(&app).unwrap(), pairs(&[("a", "1"), ("b", "2")]));
}

#[test]
fn a_restart_goes_on_from_the_file_that_lies_here() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "a", &crate::support::large()).unwrap();
    server.compact(&app).unwrap();
    server.set(&app, "b", "2").unwrap();
    server.kill();
    let server = world.server("persist-1");
    world.bucket.take_calls();
    assert_eq!(server.all(&app).unwrap().len(), 2);
    assert_eq!(world.bucket.calls(Operation::GetFile), 0, "no snapshot is downloaded");

    // Another one needs it.
    let log = server.kill();
    world.fleet.declare_dead(&log);
    let second = world.server("persist-2");
    assert_eq!(second.all(&app).unwrap().len(), 2);
    assert_eq!(world.bucket.calls(Operation::GetFile), 1);
    second.set(&app, "c", "3").unwrap();
    second.shutdown();
    // And so does the first one now: its file is not the newest any more.
    let first = world.server("persist-1");
    assert_eq!(first.all(&app).unwrap().len(), 3);
    assert_eq!(world.bucket.calls(Operation::GetFile), 2);
}

#[test]
fn what_another_server_has_gone_on_without_is_set_aside_and_never_merged() {
    let world = World::on_disk();
    let app = subject(APP);
    let old = with_unshipped(&world).kill();
    world.bucket.set_gone(false);
    world.fleet.declare_dead(&old);
    let second = world.server("persist-2");
    second.set_at(&app, Level::Bucket, "c", "3").unwrap();
    second.shutdown();

    let first = world.server("persist-1");
    assert_eq!(first.all(&app).unwrap(), pairs(&[("a", "1"), ("c", "3")]));
    first.until("it is set aside", || !lost_changes(&world.data_dir("persist-1")).is_empty());
    assert_eq!(lost_changes(&world.data_dir("persist-1")), pairs(&[("b", "2")]));
    let in_bucket = crate::support::files_in(&world.folder.path().join("bucket/lost").join(app.escaped()));
    assert_eq!(in_bucket.len(), 1, "and in the bucket too");
    first.shutdown();
    let again = world.server("persist-1");
    assert_eq!(again.all(&app).unwrap(), pairs(&[("a", "1"), ("c", "3")]));
    assert_eq!(lost_changes(&world.data_dir("persist-1")).len(), 1, "once");
}

#[test]
fn what_nobody_else_has_claimed_goes_on_though_the_log_was_sealed_by_another() {
    let world = World::in_memory();
    let (app, other) = (subject(APP), subject("app.other"));
    let first = with_unshipped(&world);
    world.bucket.set_gone(false);
    first.set(&other, "k", "v").unwrap();
    world.bucket.set_gone(true);
    first.set(&app, "late", "3").unwrap();
    let old = first.kill();
    world.bucket.set_gone(false);
    world.fleet.declare_dead(&old);
    let second = world.server("persist-2");
    // It seals the log for this subject, and has not looked at the other one.
    second.get(&other, "k").unwrap();
    let first = world.server("persist-1");
    assert_eq!(first.all(&app).unwrap(), pairs(&[("a", "1"), ("b", "2"), ("late", "3")]));
    assert!(lost_changes(&world.data_dir("persist-1")).is_empty());
    assert_eq!(first.get(&other, "k").unwrap_err().code, ErrorCode::NotOwner);
    // What it took along is in the bucket.
    let log = first.lose_disk();
    world.fleet.declare_dead(&log);
    assert_eq!(second.all(&app).unwrap().len(), 3);
}

#[test]
fn a_restart_after_a_kill_between_landing_and_knowing_applies_a_segment_once() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "a", "1").unwrap();
    world.bucket.creates_unanswered.store(true, std::sync::atomic::Ordering::SeqCst);
    let asked = server.ask(&app, crate::support::set_request("b", "2"));
    server.pass(std::time::Duration::from_secs(3));
    assert!(asked.answer().is_none());
    server.kill();
    world.bucket.creates_unanswered.store(false, std::sync::atomic::Ordering::SeqCst);
    let server = world.server("persist-1");
    assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "1"), ("b", "2")]));
    assert_eq!(server.info(&app).position.rev.get(), 2);
}

#[test]
fn starting_asks_the_bucket_the_same_however_many_subjects_there_are() {
    let calls = [0, 100_000].map(|subjects| {
        let world = World::in_memory();
        world.server("persist-1").kill();
        world.server("persist-2").runtime.block_on(async {
            for n in 0..subjects {
                let keys = SubjectKeys::new(&subject(&format!("app.s{n}")));
                world.bucket.create(&keys.manifest(ManifestNumber::new(1)), "{}".into()).await.unwrap();
            }
        });
        world.bucket.take_calls();
        let server = world.server("persist-1");
        server.set(&subject(APP), "k", "v").unwrap();
        let calls = world.bucket.take_calls();
        let of = |folder: &str| calls.iter().filter(|(_, name)| name.contains(folder)).count();
        assert_eq!(of("subjects"), of(&format!("subjects/{APP}")), "none of the others is looked at");
        calls.len()
    });
    assert_eq!(calls[0], calls[1]);
}
