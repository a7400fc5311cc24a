//! Several engines on one bucket: which one owns a subject, and what the others reply.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use dormouse_protocol::{ErrorCode, Rev};

use crate::support::{World, large, lost_files, messages_in, pairs, subject};

const APP: &str = "app.orders";

/// Another server claims a released subject with all messages and the next seq, rev and term, and so does the first
/// again.
#[test]
fn released_subject_is_claimed_by_another_server() {
    for world in [World::on_disk(), World::in_memory()] {
        let app = subject(APP);
        let first = world.server("persist-1");
        first.set(&app, "a", "1").unwrap();
        let last = first.set(&app, "b", "2").unwrap();
        assert_eq!(first.shutdown().released, 1);

        let second = world.server("persist-2");
        assert_eq!(second.all(&app).unwrap(), pairs(&[("a", "1"), ("b", "2")]));
        let next = second.set(&app, "c", "3").unwrap();
        assert_eq!((next.seq, next.rev, next.term), (last.seq.next(), last.rev.next(), last.term.next()));
        second.shutdown();

        // Back at the server that still has an old local file of the subject.
        let first = world.server("persist-1");
        assert_eq!(first.all(&app).unwrap(), pairs(&[("a", "1"), ("b", "2"), ("c", "3")]));
        assert!(lost_files(&world.data_dir("persist-1")).is_empty());
    }
}

/// A request at another server returns `not_owner` with the live owner, which keeps serving the subject.
#[test]
fn claim_against_live_owner_returns_not_owner() {
    let world = World::in_memory();
    let app = subject(APP);
    let first = world.server("persist-1");
    first.set(&app, "a", "1").unwrap();
    let second = world.server("persist-2");
    let error = second.get(&app, "a").unwrap_err();
    assert_eq!((error.code, error.owner), (ErrorCode::NotOwner, Some("persist-1".parse().unwrap())));
    assert_eq!(first.get(&app, "a").unwrap().as_deref(), Some("1"));
}

/// If two servers claim a subject at the same time, one serves it, and the other returns `not_owner` with that owner.
#[test]
fn claim_race_has_one_owner() {
    let world = World::on_disk();
    let (first, second) =
        (world.running_server("persist-1", |_| {}), world.running_server("persist-2", |_| {}));
    let mut served = [0, 0];
    for n in 0..20 {
        let app = subject(&format!("app.race{n}"));
        let one = std::thread::scope(|scope| {
            let one = scope.spawn(|| first.set(&app, "k", "first"));
            let other = second.set(&app, "k", "second");
            (one.join().unwrap(), other)
        });
        let winner = match &one {
            (Ok(_), Err(error)) => {
                assert_eq!(
                    (error.code.clone(), error.owner.clone()),
                    (ErrorCode::NotOwner, Some("persist-1".parse().unwrap()))
                );
                0
            }
            (Err(error), Ok(_)) => {
                assert_eq!(
                    (error.code.clone(), error.owner.clone()),
                    (ErrorCode::NotOwner, Some("persist-2".parse().unwrap()))
                );
                1
            }
            other => panic!("{other:?}"),
        };
        served[winner] += 1;
        let value = [&first, &second][winner].get(&app, "k").unwrap();
        assert_eq!(value.as_deref(), Some(["first", "second"][winner]));
    }
    assert_eq!(served[0] + served[1], 20);
}

/// A damaged snapshot makes reads fail as `corrupt` with its name, and the server changes and deletes no object.
#[test]
fn damaged_snapshot_is_corrupt_and_kept() {
    let world = World::on_disk();
    let app = subject(APP);
    let first = world.server("persist-1");
    first.set(&app, "a", &large()).unwrap();
    first.shutdown();
    let snapshot = world.snapshot(&app);
    let mut bytes = std::fs::read(&snapshot).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&snapshot, &bytes).unwrap();
    let objects = world.objects(&app);

    let second = world.server("persist-2");
    for _ in 0..2 {
        let error = second.get(&app, "a").unwrap_err();
        assert_eq!(error.code, ErrorCode::Corrupt);
        let name = snapshot.file_name().unwrap().to_string_lossy().into_owned();
        assert!(error.object.unwrap().ends_with(&name));
    }
    assert_eq!(world.objects(&app), objects);
    assert_eq!(std::fs::read(&snapshot).unwrap(), bytes);
}

/// Seqs and revs continue without a gap over six owners, and each claim raises the term by one.
#[test]
fn seqs_and_revs_continue_over_many_owners() {
    let world = World::in_memory();
    let app = subject(APP);
    let mut last = None;
    for round in 0..6_u64 {
        let server = world.server(["persist-1", "persist-2", "persist-3"][(round % 3) as usize]);
        for n in 0..10 {
            let result = server.set(&app, &format!("k{round}-{n}"), "v").unwrap();
            if let Some((seq, rev)) = last {
                assert_eq!((result.seq, result.rev), (seq, rev));
            }
            last = Some((result.seq.next(), result.rev.next()));
        }
        let info = server.info(&app);
        assert_eq!(info.position.term.get(), round + 1);
        assert_eq!(info.term_base, Rev::new(round * 10));
        assert_eq!(info.count, (round + 1) * 10);
        server.shutdown();
    }
}

/// A server that took a subject over and wrote nothing releases it with a plain SQLite snapshot.
#[test]
fn release_after_takeover_publishes_sqlite_snapshot() {
    let world = World::on_disk();
    let app = subject(APP);
    let first = world.server("persist-1");
    first.set(&app, "a", "1").unwrap();
    let log = first.kill();
    world.fleet.declare_dead(&log);
    let second = world.server("persist-2");
    assert_eq!(second.get(&app, "a").unwrap().as_deref(), Some("1"));
    assert_eq!(second.shutdown().released, 1);
    assert_eq!(messages_in(&world.snapshot(&app)), pairs(&[("a", "1")]));
}

/// Puts something else in place of an object of a bucket on disk.
fn replace_object(path: &Path, kind: &str) {
    std::fs::remove_file(path).ok();
    match kind {
        "a folder" => std::fs::create_dir(path).unwrap(),
        "a named pipe" => assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
        _ => symlink(path.file_name().unwrap(), path).unwrap(),
    }
}

/// If a folder, a pipe or a circular link is in place of an object, requests get `corrupt` with its name and the cause.
/// No thread waits for the pipe: otherwise the test would not end.
#[test]
fn claim_over_wrong_directory_entry_is_corrupt() {
    for kind in ["a folder", "a named pipe", "a symbolic link that leads in a circle"] {
        for extension in ["manifest", "sqlite3", "delta"] {
            let world = World::on_disk();
            let (app, fresh) = (subject(APP), subject("app.fresh"));
            let first = world.server("persist-1");
            first.set(&app, "a", "1").unwrap();
            first.shutdown();
            let objects = world.objects_with_extension(&app, extension);
            let Some(object) = objects.last() else { continue };
            replace_object(object, kind);
            let second = world.server("persist-2");
            let error = second.get(&app, "a").unwrap_err();
            let name = object.file_name().unwrap().to_str().unwrap();
            assert_eq!(error.code, ErrorCode::Corrupt, "{kind}: {error:?}");
            assert!(format!("{error:?}").contains(name), "{kind} {name}: {error:?}");
            assert!(format!("{error:?}").contains(kind), "{kind}: {error:?}");
            // Other subjects are not affected.
            second.set(&fresh, "a", "1").unwrap();
        }
    }
}
