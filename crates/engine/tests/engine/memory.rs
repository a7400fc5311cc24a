//! Memory in relation to the size of one subject.

use std::process::Command;

use dormouse_bucket::BucketOperation;
use dormouse_engine::api::SubjectRequest;
use dormouse_protocol::data::{SetItem, SetRequest};

use crate::support::{Server, World, subject};

/// Just below the size from which a value is an object of its own.
const VALUE_BYTES: usize = 250 * 1_024;

/// Whether this process runs only this test. Otherwise, a child process has run it.
///
/// In the child, the C library gives freed memory back at once: what it keeps depends on chance.
fn is_alone(test: &str) -> bool {
    const ALONE: &str = "DORMOUSE_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", &format!("memory::{test}"), "--nocapture", "--include-ignored"]);
    child.envs([(ALONE, "1"), ("MALLOC_MMAP_THRESHOLD_", "262144")]);
    assert!(child.status().unwrap().success(), "the test failed in a process of its own");
    false
}

/// The bytes that this process needs during `work`, on top of those before it.
fn memory_for(work: impl FnOnce()) -> u64 {
    // The peak starts again at the current value.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = figure("VmRSS:");
    work();
    figure("VmHWM:").saturating_sub(before)
}

/// A figure of this process's memory, in bytes.
fn figure(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1_024
}

/// Sets so many keys, in rounds whose bytes the log takes at once.
fn fill(server: &Server, name: &str, keys: usize) {
    let app = subject(name);
    let value = "x".repeat(VALUE_BYTES);
    let item = |number: &usize| SetItem {
        key: Some(format!("k{number:05}")),
        value: Some(value.clone().into()),
        ..SetItem::default()
    };
    let numbers: Vec<usize> = (0..keys).collect();
    for round in numbers.chunks(60) {
        let requests = round.chunks(12).map(|some| {
            let sets = some.iter().map(item).collect();
            SubjectRequest::Set(SetRequest { sets, ..SetRequest::default() })
        });
        let pending: Vec<_> = requests.map(|request| server.submit(&app, request)).collect();
        pending.iter().for_each(|one| drop(one.wait(server).unwrap()));
    }
}

/// Writes a subject of so many bytes. Returns the memory for its release, and for its opening on another server.
fn memory_of_move(bytes: usize) -> (u64, u64) {
    let world = World::on_disk();
    let app = subject("app.large");
    let keys = bytes / VALUE_BYTES;
    let first = world.server("persist-1");
    fill(&first, "app.large", keys);
    let release = memory_for(|| drop(first.shutdown()));
    let second = world.server("persist-2");
    let open = memory_for(|| assert_eq!(second.info(&app).count, keys as u64));
    let last = format!("k{:05}", keys - 1);
    assert_eq!(second.get(&app, &last).unwrap().map(|value| value.len()), Some(VALUE_BYTES));
    (release, open)
}

/// Asserts that a subject of so many bytes moves to another server in as much memory as one of 64 MiB.
fn assert_memory_of_move(bytes: usize) {
    let small = memory_of_move(64 << 20);
    let large = memory_of_move(bytes);
    let grows = |small: u64, large: u64| large > small + (64 << 20);
    assert!(!grows(small.0, large.0) && !grows(small.1, large.1), "{small:?} and {large:?} bytes");
}

/// A subject of 512 MiB moves to another server in as much memory as one of 64 MiB: nothing holds a whole snapshot.
#[test]
fn memory_of_move_does_not_grow_with_subject() {
    if is_alone("memory_of_move_does_not_grow_with_subject") {
        assert_memory_of_move(512 << 20);
    }
}

/// The same for a subject of 8 GiB.
#[test]
#[ignore = "takes minutes, and 40 GiB on the disk: make soak-all"]
fn memory_of_move_does_not_grow_to_8_gib() {
    if is_alone("memory_of_move_does_not_grow_to_8_gib") {
        assert_memory_of_move(8 << 30);
    }
}

/// Asserts that another server takes over a subject whose entries are only in the log in less than 128 MiB.
fn assert_memory_of_takeover(tail_bytes: usize) {
    let world = World::on_disk();
    let app = subject("app.large");
    let keys = tail_bytes / VALUE_BYTES;
    let first = world.server("persist-1");
    // No compaction succeeds before the kill.
    let gate = world.bucket.hold_requests(BucketOperation::PutFile, "subjects/");
    fill(&first, "app.large", keys);
    first.flush(&app).unwrap();
    let log = first.kill();
    drop(gate);
    world.fleet.declare_dead(&log);
    let second = world.server("persist-2");
    let memory = memory_for(|| assert_eq!(second.info(&app).count, keys as u64));
    // All of it was in the log, and is in one delta now.
    let deltas = world.objects_with_extension(&app, "delta");
    let sizes: Vec<_> = deltas.iter().map(|path| path.metadata().unwrap().len()).collect();
    assert!(sizes.len() == 1 && sizes[0] > tail_bytes as u64 / 2, "{sizes:?}");
    assert!(memory < 128 << 20, "{memory} bytes");
}

/// A takeover with 256 MiB in the log needs less than 128 MiB.
#[test]
fn memory_of_takeover_does_not_grow_with_tail() {
    if is_alone("memory_of_takeover_does_not_grow_with_tail") {
        assert_memory_of_takeover(256 << 20);
    }
}

/// The same with 2 GiB in the log.
#[test]
#[ignore = "takes minutes, and 10 GiB on the disk: make soak-all"]
fn memory_of_takeover_does_not_grow_to_2_gib() {
    if is_alone("memory_of_takeover_does_not_grow_to_2_gib") {
        assert_memory_of_takeover(2 << 30);
    }
}
