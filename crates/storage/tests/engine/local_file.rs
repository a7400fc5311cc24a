//! What a server makes of the file that a process before it left behind.

use crate::support::{Server, World, lost_files, pairs, subject};
use dormouse_protocol::ErrorCode;

const APP: &str = "app.orders";

#[test]
fn a_damaged_file_never_becomes_a_snapshot() {
    let world = World::on_disk();
    let app = subject(APP);
    let first = world.server("persist-1");
    let long = "x".repeat(3_000);
    for n in 0..100 {
        first.set(&app, &format!("k{n:02}"), &long).unwrap();
    }
    // Everything is in the file itself, as of a checkpoint.
    first.compact(&app).unwrap();
    first.set(&app, "in the log", "1").unwrap();
    let acknowledged = first.all(&app).unwrap();
    let data_dir = world.data_dir("persist-1");
    let file = data_dir.join("subjects").join(format!("{}.sqlite3", app.escaped()));
    first.kill();
    // A run of pages in the middle is gone.
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

#[test]
fn nothing_is_read_from_a_file_that_a_loss_of_power_may_have_torn() {
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
    second.until("what nobody uses is removed", || !data_dir.join("discarded").exists());
}

#[test]
fn a_local_file_that_cannot_be_opened_is_no_open_question() {
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
