//! A server and the local files of an earlier process.

use dormouse_protocol::ErrorCode;

use crate::support::{Server, World, lost_files, pairs, subject};

const APP: &str = "app.orders";

/// The server keeps a damaged local file in `lost/`, serves every acked write and releases the correct state.
#[test]
fn damaged_local_file_never_becomes_snapshot() {
    let world = World::on_disk();
    let app = subject(APP);
    let first = world.server("persist-1");
    let long = "x".repeat(3_000);
    for n in 0..100 {
        first.set(&app, &format!("k{n:02}"), &long).unwrap();
    }
    // A checkpoint has moved every message into the file itself.
    first.compact(&app).unwrap();
    first.set(&app, "in the log", "1").unwrap();
    let acknowledged = first.all(&app).unwrap();
    let data_dir = world.data_dir("persist-1");
    let file = data_dir.join("subjects").join(format!("{}.sqlite3", app.escaped()));
    first.kill();
    // Several pages in the middle are zeroed.
    let mut bytes = std::fs::read(&file).unwrap();
    let (from, to) = (bytes.len() / 2 / 4096 * 4096, bytes.len() / 4 * 3);
    bytes[from..to].fill(0);
    std::fs::write(&file, &bytes).unwrap();

    let second = world.server("persist-1");
    assert!(second.all(&app).unwrap() == acknowledged);
    let lost = lost_files(&data_dir);
    assert!(lost.iter().any(|path| std::fs::read(path).unwrap() == bytes), "{lost:?}");
    second.set(&app, "next", "1").unwrap();
    second.shutdown();
    let other = world.server("persist-2");
    assert_eq!(other.all(&app).unwrap().len(), acknowledged.len() + 1);
}

/// After a reboot of the machine, the server discards its local files and restores the correct values.
#[test]
fn local_file_is_discarded_after_reboot() {
    let world = World::on_disk();
    let app = subject(APP);
    let first = world.server("persist-1");
    let long = "x".repeat(3_000);
    first.set(&app, "k", &long).unwrap();
    first.compact(&app).unwrap();
    let data_dir = world.data_dir("persist-1");
    let file = data_dir.join("subjects").join(format!("{}.sqlite3", app.escaped()));
    first.kill();
    // A sector in the middle of a value never reached the disk: SQLite does not notice.
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.windows(512).position(|some| some == &long.as_bytes()[..512]).unwrap();
    bytes[at..at + 512].fill(0);
    std::fs::write(&file, &bytes).unwrap();
    std::fs::write(data_dir.join("boot-id"), "the machine was started again since\n").unwrap();

    let second = world.server("persist-1");
    assert!(second.get(&app, "k").unwrap().is_some_and(|value| value == long));
    second.until("the discarded files are removed", || !data_dir.join("discarded").exists());
}

/// If the local file cannot be opened, a write fails as `unavailable`, and a later write succeeds.
#[test]
fn local_file_open_failure_is_unavailable() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    let at = world.data_dir("persist-1").join("subjects").join(format!("{}.sqlite3", app.escaped()));
    std::fs::create_dir(&at).unwrap();
    assert_eq!(server.set(&app, "a", "1").unwrap_err().code, ErrorCode::Unavailable);
    std::fs::remove_dir(&at).unwrap();
    assert_served(&server);
}

fn assert_served(server: &Server) {
    let app = subject(APP);
    server.set(&app, "a", "1").unwrap();
    assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "1")]));
}
