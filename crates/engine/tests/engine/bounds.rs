//! Memory, file descriptors and local files stay in proportion to the number of open subjects.

use std::time::Duration;

use crate::support::{World, files_in, large, subject};

/// This process's memory in bytes and open descriptors.
fn used() -> (u64, usize) {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    (pages * 4_096, files_in("/proc/self/fd".as_ref()).len())
}

/// Opens subjects in turn and asserts the bounds of memory, descriptors and open subjects.
fn assert_usage_stays_flat(subjects: usize) {
    let world = World::all_in_memory();
    let server = world.server_with("persist-1", |settings| settings.max_open_subjects = 256);
    let open = |from: usize, to: usize| {
        for n in from..to {
            let one = subject(&format!("app.s{n}"));
            server.until("the subject opens", || server.get(&one, "k").is_ok());
            assert!(server.engine.metrics().open_subjects <= 512);
        }
    };
    open(0, 1_000);
    let (memory, descriptors) = used();
    open(1_000, subjects);
    let (memory_after, descriptors_after) = used();
    // Between zero and twice the limit of subjects are open. Each has two files and a descriptor of the folder.
    assert!(descriptors.max(descriptors_after) < 512 * 3 + 100, "{descriptors} {descriptors_after}");
    // The bucket in memory holds a manifest of half a kilobyte for each subject, under two names.
    let grown = memory_after.saturating_sub(memory) / (subjects as u64 - 1_000);
    assert!(grown < 6 * 1_024, "{grown} bytes per dormant subject");
    server.until("enough subjects are closed", || server.engine.metrics().open_subjects <= 256);
}

/// Opening 2,000 subjects in turn keeps descriptors and the memory per dormant subject within fixed bounds.
#[test]
fn memory_and_descriptors_stay_flat_over_2000_subjects() {
    assert_usage_stays_flat(2_000);
}

/// Opening 20,000 subjects in turn keeps descriptors and the memory per dormant subject within fixed bounds.
#[test]
#[ignore = "takes a minute: make soak-all"]
fn memory_and_descriptors_stay_flat_over_20000_subjects() {
    assert_usage_stays_flat(20_000);
}

/// The server evicts local files above the limit, and every subject stays readable.
#[test]
fn local_cache_over_limit_is_evicted() {
    let world = World::in_memory();
    let server = world.server_with("persist-1", |settings| {
        settings.max_local_bytes = Some(2_000_000);
        settings.idle_close = Duration::from_secs(5);
    });
    let subjects: Vec<_> = (0..40).map(|n| subject(&format!("app.s{n}"))).collect();
    for one in &subjects {
        server.set(one, "k", &large()).unwrap();
    }
    let folder = world.data_dir("persist-1").join("subjects");
    let bytes = || files_in(&folder).iter().map(|file| file.metadata().unwrap().len()).sum::<u64>();
    assert!(bytes() > 3_000_000, "{}", bytes());
    server.advance(Duration::from_secs(130));
    assert!((500_000..2_000_000).contains(&bytes()), "{}", bytes());
    for one in &subjects {
        assert_eq!(server.get(one, "k").unwrap(), Some(large()));
    }
}
