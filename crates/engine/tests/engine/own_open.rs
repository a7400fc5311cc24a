//! Opening a subject that this process owns: which slots of its log it reads.

use std::path::PathBuf;
use std::time::Duration;

use dormouse_bucket::BucketOperation;
use dormouse_engine::api::SubjectRequest;
use dormouse_protocol::data::DeleteRequest;
use dormouse_protocol::{RequestId, Subject};

use crate::support::{Server, World, large, subject};

const APP: &str = "app.orders";
const BUSY: &str = "app.busy";

/// A subject with three entries above its base, in three slots among many of a busy neighbour.
fn sparse_tail(world: &World, server: &Server) -> Subject {
    let (app, busy) = (subject(APP), subject(BUSY));
    server.set(&app, "base", "0").unwrap();
    server.compact(&app).unwrap();
    for n in 0..3 {
        for neighbour in 0..40 {
            server.set(&busy, &format!("k{neighbour}"), "x").unwrap();
        }
        server.set(&app, &format!("k{n}"), "x").unwrap();
    }
    server.advance(Duration::from_secs(90));
    server.until("both subjects are closed", || server.engine.metrics().open_subjects == 0);
    world.bucket.take_calls();
    app
}

/// The slots that the server has read.
fn slots_read(world: &World) -> Vec<String> {
    let calls = world.bucket.take_calls();
    let slots = calls
        .iter()
        .filter(|(operation, name)| *operation == BucketOperation::Get && name.starts_with("logs/"));
    slots.map(|(_, name)| name.clone()).collect()
}

fn local_file(world: &World) -> PathBuf {
    world.data_dir("persist-1").join("subjects").join(format!("{}.sqlite3", subject(APP).escaped()))
}

/// If the local file holds every shipped entry, the open reads no slot, and the next write continues from it.
#[test]
fn own_open_with_complete_file_reads_no_slot() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    let app = sparse_tail(&world, &server);
    assert_eq!(server.all(&app).unwrap().len(), 4);
    assert_eq!(slots_read(&world), [""; 0]);
    server.set(&app, "next", "1").unwrap();
    assert_eq!(server.all(&app).unwrap().len(), 5);
}

/// The same after a request without effect, whose entry has no rev of its own.
#[test]
fn own_open_after_request_without_effect_reads_no_slot() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    let app = subject(APP);
    server.set(&app, "k", "0").unwrap();
    let id = RequestId { session: "01J9Z3ZZZZZZZZZZZZZZZZZZZZ".parse().unwrap(), counter: 1 };
    let keys = vec!["missing".to_owned()];
    let request = DeleteRequest { keys, request: Some(id), ..DeleteRequest::default() };
    let entries = server.engine.metrics().log.entries;
    server.run(&app, SubjectRequest::Delete(request)).unwrap();
    server.flush(&app).unwrap();
    assert_eq!(server.engine.metrics().log.entries, entries + 1);
    server.advance(Duration::from_secs(90));
    server.until("the subject is closed", || server.engine.metrics().open_subjects == 0);
    world.bucket.take_calls();
    assert_eq!(server.all(&app).unwrap().len(), 1);
    assert_eq!(slots_read(&world), [""; 0]);
}

/// Without the local file, the open reads the slots that hold its entries, and none of its neighbour's.
#[test]
fn own_open_without_file_reads_exactly_its_slots() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    let app = sparse_tail(&world, &server);
    std::fs::remove_file(local_file(&world)).unwrap();
    assert_eq!(server.all(&app).unwrap().len(), 4);
    let slots = slots_read(&world);
    let mut distinct = slots.clone();
    distinct.dedup();
    assert_eq!((slots.len(), distinct.len()), (3, 3), "{slots:?}");
}

/// A subject with many small writes in slots of their own is compacted at 1,024 slots, however small its tail is.
#[test]
fn tail_over_limit_of_slots_triggers_compaction() {
    let world = World::all_in_memory();
    let server = world.server("persist-1");
    let app = subject(APP);
    for n in 0..8 {
        server.set(&app, &format!("large{n}"), &large()).unwrap();
    }
    server.compact(&app).unwrap();
    let before = server.engine.metrics().manifest_publishes;
    for n in 0..1_000 {
        server.set(&app, "k", &n.to_string()).unwrap();
    }
    server.advance(Duration::from_secs(5));
    assert_eq!(server.engine.metrics().manifest_publishes, before, "the tail is below half of the snapshot");
    for n in 0..30 {
        server.set(&app, "k", &n.to_string()).unwrap();
    }
    server.until("the base is published", || server.engine.metrics().manifest_publishes > before);
}
