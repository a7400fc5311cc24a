//! Memory, descriptors and local files stay in proportion to what is open.

use std::time::Duration;

use crate::support::{World, files_in, large, subject};

/// This process's memory in bytes and open descriptors.
fn used() -> (u64, usize) {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    (pages * 4_096, files_in("/proc/self/fd".as_ref()).len())
}

fn opens_in_turn(subjects: usize) {
    let world = World::all_in_memory();
    let server = world.server_with("persist-1", |settings| settings.max_open_subjects = 256);
    let open = |from: usize, to: usize| {
        for n in from..to {
            let one = subject(&format!("app.s{n}"));
            server.until("there is room", || server.get(&one, "k").is_ok());
            assert!(server.engine.figures().open_subjects <= 512);
        }
    };
    open(0, 1_000);
    let (memory, descriptors) = used();
    open(1_000, subjects);
    let (memory_after, descriptors_after) = used();
    // Open are between none and twice the number that may be, two files each and the folder's.
    assert!(descriptors.max(descriptors_after) < 512 * 3 + 100, "{descriptors} {descriptors_after}");
    // The bucket in memory holds a manifest of half a kilobyte for each, under two names.
    let grown = memory_after.saturating_sub(memory) / (subjects as u64 - 1_000);
    assert!(grown < 6 * 1_024, "{grown} bytes per subject that is not open");
    server.until("enough are closed", || server.engine.figures().open_subjects <= 256);
}

#[test]
fn memory_and_descriptors_stay_flat_over_subjects_opened_in_turn() {
    opens_in_turn(2_000);
}

#[test]
#[ignore = "takes a minute: make soak-all"]
fn memory_and_descriptors_stay_flat_over_twenty_thousand_subjects() {
    opens_in_turn(20_000);
}

#[test]
fn local_files_above_their_room_go_and_cost_a_download_only() {
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
    server.pass(Duration::from_secs(130));
    assert!((500_000..2_000_000).contains(&bytes()), "{}", bytes());
    for one in &subjects {
        assert_eq!(server.get(one, "k").unwrap(), Some(large()));
    }
}
