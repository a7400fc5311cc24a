//! Export of a subject to a file, read directly from the bucket: complete, and without an effect on its owner.

use std::path::PathBuf;

use bytes::Bytes;
use dormouse_engine::api::SubjectRequest;
use dormouse_engine::{ExportError, export_snapshot};
use dormouse_protocol::data::{SetItem, SetRequest};
use dormouse_protocol::{Level, Position};

use crate::support::{Server, World, large, messages_in, pairs, subject};

const APP: &str = "app.orders";

impl World {
    fn exported(&self) -> PathBuf {
        self.folder.path().join("exported.sqlite3")
    }

    fn export(&self, server: &Server, name: &str) -> Result<Position, ExportError> {
        // Afterwards only this export can have left a file there.
        let _ = std::fs::remove_file(self.exported());
        let (bucket, path) = (self.bucket.as_ref(), self.exported());
        server.runtime.block_on(export_snapshot(bucket, &server.env, &subject(name), &path))
    }

    /// The messages in the exported file, which must be a plain SQLite file.
    fn content(&self) -> Vec<(String, String)> {
        let path = self.exported();
        assert_eq!(&std::fs::read(&path).unwrap()[18..20], [1, 1], "a rollback journal, not a WAL");
        for sidecar in ["-wal", "-shm", "-journal", "-incoming"] {
            let mut name = path.clone().into_os_string();
            name.push(sidecar);
            assert!(!PathBuf::from(name).exists(), "{sidecar}");
        }
        let connection = rusqlite::Connection::open(&path).unwrap();
        let blob_numbers: i64 = connection
            .query_row("SELECT large_values + large_value_bytes FROM meta", [], |row| row.get(0))
            .unwrap();
        assert_eq!(blob_numbers, 0, "the file holds every value inline and counts no blobs");
        messages_in(&path)
    }
}

/// An export contains snapshot, deltas and tail of a live or dead owner, and changes nothing for that owner.
#[test]
fn export_contains_snapshot_deltas_and_tail() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    assert!(matches!(world.export(&server, APP), Err(ExportError::SubjectNotFound(_))));
    server.set(&app, "a", &large()).unwrap();
    // The message is only in the log.
    assert_eq!(world.export(&server, APP).unwrap(), server.info(&app).position);
    assert_eq!(world.content(), pairs(&[("a", &large())]));
    server.compact(&app).unwrap();
    server.set(&app, "b", "2").unwrap();
    server.compact(&app).unwrap();
    assert_eq!(world.objects_with_extension(&app, "delta").len(), 1);
    server.set(&app, "c", "3").unwrap();
    let position = server.info(&app).position;
    assert_eq!(world.export(&server, APP).unwrap(), position);
    let all = pairs(&[("a", &large()), ("b", "2"), ("c", "3")]);
    assert_eq!(world.content(), all);

    // The owner keeps serving. The export also reads the log of a dead owner, and leaves it unsealed.
    server.set(&app, "d", "4").unwrap();
    let log = server.kill();
    let other = world.server("persist-2");
    assert_eq!(world.export(&other, APP).unwrap().rev, position.rev.next());
    let slots = world.slots(&log);
    world.fleet.declare_dead(&log);
    assert_eq!(world.slots(&log), slots);
    assert_eq!(other.all(&app).unwrap(), world.content());
    assert!(other.shutdown().unreleased.is_empty());
    let third = world.server("persist-3");
    assert_eq!(world.export(&third, APP).unwrap().rev, position.rev.next());
    third.destroy(&app).unwrap();
    assert!(matches!(world.export(&third, APP), Err(ExportError::SubjectNotFound(_))));
    assert!(!world.exported().exists());
}

/// An export fails until the first write is in the bucket, and then contains that write.
#[test]
fn export_before_first_flush_fails() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server_with("persist-1", |settings| settings.level = Level::Memory);
    assert_eq!(server.info(&app).count, 0);
    assert!(matches!(world.export(&server, APP), Err(ExportError::NotFlushed(_))));
    server.set(&app, "a", "1").unwrap();
    let flushed = server.flush(&app).unwrap();
    assert_eq!(world.export(&server, APP).unwrap(), flushed);
    assert_eq!(world.content(), pairs(&[("a", "1")]));
}

/// An export contains large values inline; if a blob is missing, the export fails, names it and leaves no file.
#[test]
fn export_inlines_large_values() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    let values: Vec<String> = (0..10).map(|n| format!("{n}").repeat(300 * 1_024)).collect();
    for (n, value) in values.iter().enumerate() {
        let value = Some(Bytes::copy_from_slice(value.as_bytes()));
        let item = SetItem { key: Some(format!("key-{n}")), value, ..SetItem::default() };
        server
            .run(&app, SubjectRequest::Set(SetRequest { sets: vec![item], ..SetRequest::default() }))
            .unwrap();
    }
    server.set(&app, "small", "1").unwrap();
    let mut expected: Vec<(String, String)> =
        values.iter().enumerate().map(|(n, value)| (format!("key-{n}"), value.clone())).collect();
    expected.push(("small".to_owned(), "1".to_owned()));
    for _ in 0..2 {
        world.export(&server, APP).unwrap();
        assert_eq!(world.content(), expected);
        let file = rusqlite::Connection::open(world.exported()).unwrap();
        let blob_counts = "SELECT (SELECT COUNT(*) FROM messages WHERE blob IS NOT NULL) + (SELECT COUNT(*) FROM dead_blobs)";
        assert_eq!(file.query_row(blob_counts, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
        drop(file);
        server.compact(&app).unwrap();
    }

    let blobs = world.folder.path().join("bucket/subjects").join(app.escaped()).join("blobs");
    let missing = std::fs::read_dir(blobs).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_file(&missing).unwrap();
    let error = world.export(&server, APP).unwrap_err().to_string();
    assert!(error.contains(missing.file_name().unwrap().to_str().unwrap()), "{error}");
    assert!(!world.exported().exists());
}
