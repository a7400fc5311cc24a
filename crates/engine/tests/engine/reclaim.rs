//! Reclamation of an orphaned log: it copies the entries that subjects need, without their snapshots.

use bytes::Bytes;
use dormouse_bucket::BucketOperation;
use dormouse_engine::api::{SubjectReply, SubjectRequest};
use dormouse_protocol::data::{DeleteRequest, SetItem, SetRequest};
use dormouse_protocol::{Level, RequestId, Subject};

use crate::support::{Server, World, subject};

const APP: &str = "app.orders";

/// Sets keys with these numbers to values of this size, in requests of 8 MiB.
fn fill(server: &Server, app: &Subject, keys: std::ops::Range<usize>, bytes: usize) {
    let value = Bytes::from(vec![b'x'; bytes]);
    let item =
        |n: usize| SetItem { key: Some(format!("k{n}")), value: Some(value.clone()), ..SetItem::default() };
    let numbers: Vec<usize> = keys.collect();
    for numbers in numbers.chunks((8 << 20) / bytes) {
        let sets = numbers.iter().map(|n| item(*n)).collect();
        let set = SetRequest { sets, level: Some(Level::Bucket), ..SetRequest::default() };
        server.run(app, SubjectRequest::Set(set)).unwrap();
    }
}

/// The server is killed, and its successor on the same data directory reclaims the log.
fn restart(world: &World, server: Server) -> Server {
    let old = server.kill();
    world.bucket.take_calls();
    let server = world.server("persist-1");
    server.until("the log is reclaimed to its seal", || world.slots(&old).len() == 1);
    server
}

/// How many snapshots were downloaded.
fn downloads(world: &World) -> usize {
    let calls = world.bucket.take_calls();
    calls.iter().filter(|(operation, _)| *operation == BucketOperation::GetFile).count()
}

/// The reclamation of a subject of 200 MiB with one entry above its base reads less than 1 MiB.
#[test]
fn reclaim_of_large_subject_reads_only_its_entries() {
    let (world, counter) = World::on_disk_counted();
    let app = subject(APP);
    let server = world.server("persist-1");
    // One snapshot of everything is faster than several on the way.
    let gate = world.bucket.hold_requests(BucketOperation::PutFile, "subjects/");
    fill(&server, &app, 0..840, 250 << 10);
    drop(gate);
    server.compact(&app).unwrap();
    server.compact(&app).unwrap();
    assert!(std::fs::metadata(world.snapshot(&app)).unwrap().len() > 200 << 20);
    server.set(&app, "last", "1").unwrap();
    let (position, next_seq) = (server.info(&app).position, server.info(&app).next_seq);
    // The index of the sealed log costs a read of the end of each slot.
    server.until("unneeded slots are deleted", || world.slots(&server.log()).len() == 1);
    counter.take();
    let server = restart(&world, server);
    let read = counter.take();
    assert!(read < 1 << 20, "{read} bytes");
    assert_eq!(downloads(&world), 0);
    assert_eq!(world.objects_with_extension(&app, "delta").len(), 1);
    let info = server.info(&app);
    assert_eq!((info.position.rev, info.next_seq, info.count), (position.rev, next_seq, 841));
    assert_eq!(server.get(&app, "last").unwrap().as_deref(), Some("1"));
}

/// If the manifest has no room for one more delta, the reclamation merges its deltas with the new entries.
#[test]
fn reclaim_at_limit_of_deltas_merges_them() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    fill(&server, &app, 0..40, 10_000);
    server.compact(&app).unwrap();
    for n in 0..8 {
        server.set(&app, &format!("d{n}"), "1").unwrap();
        server.compact(&app).unwrap();
    }
    server.until("eight deltas are published", || world.objects_with_extension(&app, "delta").len() == 8);
    server.set(&app, "last", "1").unwrap();
    let (rows, before) = (server.all(&app).unwrap(), server.info(&app));
    let server = restart(&world, server);
    assert_eq!(downloads(&world), 0);
    server.until("one delta remains", || world.objects_with_extension(&app, "delta").len() == 1);
    assert!(server.all(&app).unwrap() == rows);
    let after = server.info(&app);
    assert_eq!((after.position.rev, after.next_seq), (before.position.rev, before.next_seq));
}

/// The reclamation keeps the replies to requests without effect, and downloads no snapshot for them.
#[test]
fn reclaim_keeps_replies_without_download() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "k", "1").unwrap();
    server.compact(&app).unwrap();
    let id = RequestId { session: "01J9Z3ZZZZZZZZZZZZZZZZZZZZ".parse().unwrap(), counter: 1 };
    let delete = || {
        let keys = vec!["later".to_owned()];
        SubjectRequest::Delete(DeleteRequest { keys, request: Some(id), ..DeleteRequest::default() })
    };
    server.run(&app, delete()).unwrap();
    let server = restart(&world, server);
    assert_eq!(downloads(&world), 0);
    server.set(&app, "later", "1").unwrap();
    match server.run(&app, delete()).unwrap() {
        SubjectReply::Delete(reply) => assert!(reply.duplicate && reply.seqs.is_empty(), "{reply:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(server.get(&app, "later").unwrap().as_deref(), Some("1"));
}

/// The reclamation copies a tail of any length into a delta, whatever the size of the snapshot.
#[test]
fn reclaim_of_long_tail_copies_it() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "k", "1").unwrap();
    server.compact(&app).unwrap();
    // No compaction succeeds before the kill.
    let gate = world.bucket.hold_requests(BucketOperation::PutFile, "subjects/");
    fill(&server, &app, 0..200, 250 << 10);
    let old = server.kill();
    drop(gate);
    world.bucket.take_calls();
    let server = world.server("persist-1");
    server.until("the log is reclaimed to its seal", || world.slots(&old).len() == 1);
    assert_eq!(downloads(&world), 0);
    assert_eq!(world.objects_with_extension(&app, "delta").len(), 1);
    assert_eq!(server.info(&app).count, 201);
}
