//! Recovery: a process starts on the data directory of an earlier process.

use dormouse_bucket::{Bucket, BucketOperation};
use dormouse_format::keys::{ManifestNumber, SubjectKeys};
use dormouse_format::segment::{self, SlotKind};
use dormouse_protocol::{ErrorCode, Level, Slot};

use crate::support::{Server, World, lost_changes, pairs, subject};

const APP: &str = "app.orders";

/// A server with one write in the bucket and one only on its disk.
fn server_with_unshipped_write(world: &World) -> Server {
    let app = subject(APP);
    let server = world.server("persist-1");
    server.configure(&app, Level::Disk);
    server.get(&app, "a").unwrap();
    server.set(&app, "a", "1").unwrap();
    server.flush(&app).unwrap();
    world.bucket.set_unreachable(true);
    server.set(&app, "b", "2").unwrap();
    server
}

/// A restart ships the writes that only the WAL holds into the old log, seals that log and deletes its WAL.
#[test]
fn restart_ships_wal_writes_and_seals_old_log() {
    let world = World::on_disk();
    let app = subject(APP);
    let old = server_with_unshipped_write(&world).kill();
    world.bucket.set_unreachable(false);
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
        "only the WAL of the new log remains"
    );

    assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "1"), ("b", "2")]));
    assert_ne!(server.log(), old);
    assert_eq!(server.info(&app).bucket_rev, server.info(&app).position.rev);
    // The write is in the bucket now, and another server can read it.
    let log = server.lose_disk();
    world.fleet.declare_dead(&log);
    assert_eq!(world.server("persist-2").all(&app).unwrap(), pairs(&[("a", "1"), ("b", "2")]));
}

/// A restart opens a subject from its current local file without a download; a stale or missing file needs one.
#[test]
fn restart_reuses_local_file_without_download() {
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
    assert_eq!(world.bucket.calls(BucketOperation::GetFile), 0, "no snapshot is downloaded");

    // Another server needs the snapshot.
    let log = server.kill();
    world.fleet.declare_dead(&log);
    let second = world.server("persist-2");
    assert_eq!(second.all(&app).unwrap().len(), 2);
    assert_eq!(world.bucket.calls(BucketOperation::GetFile), 1);
    second.set(&app, "c", "3").unwrap();
    second.shutdown();
    // The first server needs it too now, because its local file is stale.
    let first = world.server("persist-1");
    assert_eq!(first.all(&app).unwrap().len(), 3);
    assert_eq!(world.bucket.calls(BucketOperation::GetFile), 2);
}

/// The server keeps diverged writes once in `lost/`, on disk and in the bucket, and never merges them.
#[test]
fn diverged_writes_are_kept_in_lost_and_never_merged() {
    let world = World::on_disk();
    let app = subject(APP);
    let old = server_with_unshipped_write(&world).kill();
    world.bucket.set_unreachable(false);
    world.fleet.declare_dead(&old);
    let second = world.server("persist-2");
    second.set_at(&app, Level::Bucket, "c", "3").unwrap();
    second.shutdown();

    let first = world.server("persist-1");
    assert_eq!(first.all(&app).unwrap(), pairs(&[("a", "1"), ("c", "3")]));
    first.until("the write is kept in lost/", || !lost_changes(&world.data_dir("persist-1")).is_empty());
    assert_eq!(lost_changes(&world.data_dir("persist-1")), pairs(&[("b", "2")]));
    let in_bucket = crate::support::files_in(&world.folder.path().join("bucket/lost").join(app.escaped()));
    assert_eq!(in_bucket.len(), 1, "the write is also kept in the bucket");
    first.shutdown();
    let again = world.server("persist-1");
    assert_eq!(again.all(&app).unwrap(), pairs(&[("a", "1"), ("c", "3")]));
    assert_eq!(lost_changes(&world.data_dir("persist-1")).len(), 1, "the write is kept once");
}

/// If another server sealed the log and did not claim a subject, a restart recovers the stranded writes of that
/// subject.
#[test]
fn stranded_writes_of_unclaimed_subject_are_recovered() {
    let world = World::in_memory();
    let (app, other) = (subject(APP), subject("app.other"));
    let first = server_with_unshipped_write(&world);
    world.bucket.set_unreachable(false);
    first.set(&other, "k", "v").unwrap();
    world.bucket.set_unreachable(true);
    first.set(&app, "late", "3").unwrap();
    let old = first.kill();
    world.bucket.set_unreachable(false);
    world.fleet.declare_dead(&old);
    let second = world.server("persist-2");
    // The second server seals the log to claim this subject, and does not claim the other one.
    second.get(&other, "k").unwrap();
    let first = world.server("persist-1");
    assert_eq!(first.all(&app).unwrap(), pairs(&[("a", "1"), ("b", "2"), ("late", "3")]));
    assert!(lost_changes(&world.data_dir("persist-1")).is_empty());
    assert_eq!(first.get(&other, "k").unwrap_err().code, ErrorCode::NotOwner);
    // The recovered writes are in the bucket.
    let log = first.lose_disk();
    world.fleet.declare_dead(&log);
    assert_eq!(second.all(&app).unwrap().len(), 3);
}

/// After a kill between the slot create and its reply, a restart applies the segment once.
#[test]
fn restart_after_slot_create_applies_segment_once() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "a", "1").unwrap();
    world.bucket.set_answers_lost(true);
    let asked = server.submit(&app, crate::support::set_request("b", "2"));
    server.advance(std::time::Duration::from_secs(3));
    assert!(asked.try_reply().is_none());
    server.kill();
    world.bucket.set_answers_lost(false);
    let server = world.server("persist-1");
    assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "1"), ("b", "2")]));
    assert_eq!(server.info(&app).position.rev.get(), 2);
}

/// The start of a server makes the same number of bucket calls with 0 and with 100,000 subjects.
#[test]
fn server_start_makes_constant_number_of_bucket_calls() {
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
        assert_eq!(of("subjects"), of(&format!("subjects/{APP}")), "the start reads no other subject");
        calls.len()
    });
    assert_eq!(calls[0], calls[1]);
}
