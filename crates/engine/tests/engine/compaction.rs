//! Compaction: when it runs, in which form it writes the base, and which slots and objects it makes unneeded.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bucket::BucketOperation;
use dormouse_engine::EngineSettings;
use dormouse_engine::api::SubjectRequest;
use dormouse_protocol::data::{DeleteAllRequest, SetItem, SetRequest};

use crate::support::{Server, World, files_in, messages_in, pairs, subject};

const APP: &str = "app.orders";

fn fill(server: &Server, name: &str, values: usize, bytes: usize) {
    let value = "x".repeat(bytes);
    for n in 0..values {
        server.set(&subject(APP), &format!("{name}{n}"), &value).unwrap();
    }
}

/// The numbers of deltas and snapshots in the bucket.
fn bases(world: &World) -> (usize, usize) {
    let app = subject(APP);
    (world.objects_with_extension(&app, "delta").len(), world.objects_with_extension(&app, "sqlite3").len())
}

/// A tail above its threshold triggers a compaction, and the threshold grows with the size of the base.
#[test]
fn tail_over_threshold_triggers_compaction() {
    let world = World::on_disk();
    let server = world.server("persist-1");
    fill(&server, "k", 6, 10_000);
    server.advance(Duration::from_secs(30));
    assert_eq!(server.engine.metrics().manifest_publishes, 0, "60 kB are below the threshold");
    fill(&server, "l", 2, 10_000);
    server.until("the base is published", || server.engine.metrics().manifest_publishes == 1);
    assert_eq!(bases(&world), (0, 1));
    // The next compaction starts only when the tail reaches half the size of the base.
    fill(&server, "m", 4, 10_000);
    server.advance(Duration::from_secs(30));
    assert_eq!(server.engine.metrics().manifest_publishes, 1);
}

/// Compaction writes up to eight small deltas, then a snapshot in their place; a large tail leads to a snapshot at
/// once.
#[test]
fn compaction_writes_small_deltas_then_snapshot() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    fill(&server, "k", 40, 10_000);
    server.compact(&app).unwrap();
    server.until("superseded objects are deleted", || bases(&world) == (0, 1));
    for n in 1..=8 {
        fill(&server, &format!("d{n}"), 1, 100);
        server.compact(&app).unwrap();
        server.until("one more delta is published", || bases(&world) == (n, 1));
    }
    fill(&server, "last", 1, 100);
    server.compact(&app).unwrap();
    server.until("a snapshot replaces the deltas", || bases(&world) == (0, 1));

    fill(&server, "e", 1, 100);
    server.compact(&app).unwrap();
    server.until("a delta is published", || bases(&world) == (1, 1));
    fill(&server, "large", 15, 10_000);
    server.compact(&app).unwrap();
    server.until("a tail of more than a quarter of the base leads to a snapshot", || bases(&world) == (0, 1));
    // Deletions do not wait for each other.
    server.until("only one manifest remains", || world.objects_with_extension(&app, "manifest").len() == 1);
}

/// A claim from snapshot, deltas and tail restores the same rows, counts and positions, after a release and after a
/// takeover.
#[test]
fn claim_from_deltas_and_tail_restores_same_rows() {
    for release in [false, true] {
        let world = World::on_disk();
        let app = subject(APP);
        let server = world.server("persist-1");
        fill(&server, "k", 20, 10_000);
        server.compact(&app).unwrap();
        for n in 0..5 {
            fill(&server, &format!("d{n}"), 1, 100);
            server.compact(&app).unwrap();
        }
        fill(&server, "tail", 3, 100);
        let (rows, before) = (server.all(&app).unwrap(), server.info(&app));
        if release {
            server.shutdown();
        } else {
            let log = server.lose_disk();
            world.fleet.declare_dead(&log);
        }
        let second = world.server("persist-2");
        assert!(second.all(&app).unwrap() == rows);
        let after = second.info(&app);
        assert_eq!((after.count, after.bytes, after.next_seq), (before.count, before.bytes, before.next_seq));
        assert_eq!((after.position.rev, after.term_base), (before.position.rev, before.position.rev));
    }
}

/// A compaction and a flush without new changes send no request to the bucket.
#[test]
fn compaction_without_changes_makes_no_bucket_calls() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    fill(&server, "k", 1, 100);
    server.compact(&app).unwrap();
    world.bucket.take_calls();
    server.compact(&app).unwrap();
    server.flush(&app).unwrap();
    assert_eq!(world.bucket.take_calls(), []);
    assert_eq!(server.engine.metrics().manifest_publishes, 1);
}

/// The server trims the slots that no subject needs and keeps the highest slot in any case.
#[test]
fn trim_deletes_unneeded_slots_except_highest() {
    let world = World::on_disk();
    let (app, other) = (subject(APP), subject("app.other"));
    let server = world.server("persist-1");
    let numbers = |world: &World, server: &Server| -> Vec<PathBuf> {
        world.slots(&server.log()).iter().map(|path| path.file_name().unwrap().into()).collect()
    };
    for n in 0..10 {
        server.set(&app, &n.to_string(), "v").unwrap();
    }
    server.set(&other, "k", "v").unwrap();
    let all = numbers(&world, &server);
    server.compact(&app).unwrap();
    server.until("the slots below the other subject's are trimmed", || numbers(&world, &server).len() == 1);
    assert_eq!(numbers(&world, &server).last(), all.last(), "the highest slot remains");
    server.compact(&other).unwrap();
    server.advance(Duration::from_secs(10));
    assert_eq!(
        numbers(&world, &server),
        [all.last().unwrap().clone()],
        "the highest slot remains although no subject needs it"
    );
    server.set(&app, "next", "v").unwrap();
    server.kill();
    assert_eq!(world.server("persist-1").info(&app).count, 11);
}

/// After a restart, the server reclaims the orphaned log to its seal, and every message stays readable.
#[test]
fn orphaned_log_is_reclaimed_to_seal() {
    let world = World::on_disk();
    let subjects: Vec<_> = (0..10).map(|n| subject(&format!("app.s{n}"))).collect();
    let server = world.server("persist-1");
    for one in &subjects {
        server.set(one, "k", "v").unwrap();
    }
    let old = server.kill();
    let server = world.server("persist-1");
    server.advance(Duration::from_secs(120));
    assert_eq!(world.slots(&old).len(), 1, "only the seal remains");
    assert_eq!(files_in(&world.data_dir("persist-1").join("dead-logs")), [] as [PathBuf; 0]);
    for one in &subjects {
        assert_eq!(server.get(one, "k").unwrap().as_deref(), Some("v"));
    }
}

/// An owned subject that closes and reopens needs no claim and no snapshot download.
#[test]
fn reopen_needs_no_claim_and_no_download() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    fill(&server, "k", 3, 100);
    let before = server.info(&app);
    server.until("the subject is closed", || server.engine.metrics().open_subjects == 0);
    let objects = world.objects(&app);
    world.bucket.take_calls();
    assert_eq!(server.info(&app).position, before.position);
    assert_eq!(world.objects(&app), objects);
    let calls = world.bucket.take_calls();
    assert!(
        calls.iter().all(|(operation, _)| matches!(operation, BucketOperation::List | BucketOperation::Get)),
        "{calls:?}"
    );
}

/// A compaction right after a `delete_all` publishes a snapshot without rows of removed messages.
#[test]
fn compaction_publishes_no_rows_of_removed_messages() {
    let world = World::on_disk();
    let app = subject("app.orders");
    let server = world.server("persist-1");
    let value = Some(Bytes::from_static(b"v"));
    let item = |n| SetItem { key: Some(format!("k{n}")), value: value.clone(), ..SetItem::default() };
    // More than a slice, and too little for a compaction.
    let sets = (0..1_000).map(item).collect();
    server.run(&app, SubjectRequest::Set(SetRequest { sets, ..SetRequest::default() })).unwrap();
    assert_eq!(bases(&world), (0, 0));
    server.run(&app, SubjectRequest::DeleteAll(DeleteAllRequest::default())).unwrap();
    server.set(&app, "k7", "kept").unwrap();
    server.compact(&app).unwrap();
    assert!(messages_in(&world.snapshot(&app)) == pairs(&[("k7", "kept")]));
}

/// A delta may be larger than any object that is read at once: a subject of any size opens on another server, after a
/// planned stop and after a kill.
#[test]
fn delta_larger_than_small_objects_is_read() {
    const VALUE_BYTES: usize = 250 * 1_024;
    let world = World::on_disk();
    let app = subject(APP);
    let value = "x".repeat(VALUE_BYTES);
    // Few large requests at once: they reach the bucket before a compaction is due.
    let fill = |server: &Server, range: std::ops::Range<usize>| {
        let item = |number: usize| SetItem {
            key: Some(format!("k{number:04}")),
            value: Some(value.clone().into()),
            ..SetItem::default()
        };
        let numbers: Vec<usize> = range.collect();
        for some in numbers.chunks(135) {
            let requests = some.chunks(15).map(|chunk| {
                let sets = chunk.iter().map(|number| item(*number)).collect();
                SubjectRequest::Set(SetRequest { sets, ..SetRequest::default() })
            });
            let pending: Vec<_> = requests.map(|request| server.submit(&app, request)).collect();
            pending.iter().for_each(|one| drop(one.wait(server).unwrap()));
        }
    };
    let first = world.server("persist-1");
    // A quarter of this snapshot is more than the largest small object.
    fill(&first, 0..720);
    first.compact(&app).unwrap();
    // That base may be a delta above a snapshot made during the fill. A tail between a quarter and half of the
    // snapshot starts no compaction, and the base above it is a snapshot.
    fill(&first, 0..200);
    first.compact(&app).unwrap();
    fill(&first, 720..855);
    first.shutdown();
    let largest = |world: &World| {
        let deltas = world.objects_with_extension(&app, "delta");
        deltas.iter().map(|path| path.metadata().unwrap().len()).max().unwrap_or_default()
    };
    assert!(largest(&world) > 32 << 20, "{}", largest(&world));
    let second = world.server("persist-2");
    assert_eq!(second.info(&app).count, 855);
    assert_eq!(second.get(&app, "k0854").unwrap().map(|value| value.len()), Some(VALUE_BYTES));
    fill(&second, 0..1);
    let log = second.kill();
    world.fleet.declare_dead(&log);
    let third = world.server("persist-3");
    assert_eq!(third.info(&app).count, 855);
    assert_eq!(third.get(&app, "k0854").unwrap().map(|value| value.len()), Some(VALUE_BYTES));
}

/// The bytes of a log's slots in the bucket.
fn slot_bytes(world: &World, server: &Server) -> u64 {
    world.slots(&server.log()).iter().map(|path| std::fs::metadata(path).unwrap().len()).sum()
}

/// Fifty kilobytes of an idle subject do not keep the log of a busy one: the slots stay within the limit of bytes, also
/// after the idle subject has closed, and after a restart.
#[test]
fn log_stays_within_its_limit_of_bytes() {
    const LIMIT: u64 = 1 << 20;
    let world = World::on_disk();
    let (idle, busy) = (subject("app.idle"), subject("app.busy"));
    let small = |settings: &mut EngineSettings| settings.log.max_log_bytes = LIMIT;
    let mut server = world.server_with("persist-1", small);
    for start in 0..2 {
        for round in 0..2 {
            server.set(&idle, "k", &format!("{start}{round}").repeat(25_000)).unwrap();
            if round == 1 {
                server.until("the subjects close", || server.engine.metrics().open_subjects == 0);
            }
            for _ in 0..300 {
                server.set(&busy, "k", &"x".repeat(10_000)).unwrap();
                server.advance(Duration::from_millis(50));
                let bytes = slot_bytes(&world, &server);
                assert!(bytes <= LIMIT, "{bytes} bytes of slots");
            }
        }
        let metrics = server.engine.metrics();
        assert_eq!(metrics.log_bytes, metrics.log.slot_bytes);
        server.until("deletes are complete", || {
            server.engine.metrics().log.slot_bytes == slot_bytes(&world, &server)
        });
        let old = server.kill();
        server = world.server_with("persist-1", small);
        let is_reclaimed = || world.slots(&old).len() == 1 && server.engine.metrics().log_bytes < 1_000;
        server.until("the orphaned log counts", || {
            is_reclaimed() || server.engine.metrics().log_bytes > 10_000
        });
        server.until("the old log is reclaimed", is_reclaimed);
    }
    assert_eq!(server.get(&idle, "k").unwrap().unwrap(), "11".repeat(25_000));
}

/// A log that cannot give up its oldest slots is reported, and other subjects are still compacted. Once the cause is over,
/// the log fits again.
#[test]
fn log_over_its_limit_is_reported() {
    let world = World::on_disk();
    let (stuck, busy) = (subject("app.stuck"), subject("app.busy"));
    let server = world.server_with("persist-1", |settings| settings.log.max_log_bytes = 1 << 20);
    server.set(&stuck, "k", "v").unwrap();
    let held = world.bucket.hold_requests(BucketOperation::PutFile, &stuck.escaped());
    for _ in 0..200 {
        server.set(&busy, "k", &"x".repeat(10_000)).unwrap();
        server.advance(Duration::from_secs(1));
    }
    assert!(server.engine.metrics().log_over_limit);
    assert!(server.engine.metrics().manifest_publishes > 0, "the busy subject has a base");
    drop(held);
    server.until("the log fits", || {
        let metrics = server.engine.metrics();
        !metrics.log_over_limit && metrics.log.retained_bytes < 1 << 20
    });
}
