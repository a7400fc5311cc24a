//! A subject's own objects take over from the log: when, in which form, and what may then go.

use std::path::PathBuf;
use std::time::Duration;

use dormouse_storage::bucket::Operation;

use crate::support::{Server, World, files_in, subject};

const APP: &str = "app.orders";

fn fill(server: &Server, name: &str, values: usize, bytes: usize) {
    let value = "x".repeat(bytes);
    for n in 0..values {
        server.set(&subject(APP), &format!("{name}{n}"), &value).unwrap();
    }
}

/// Deltas and snapshots that lie in the bucket.
fn bases(world: &World) -> (usize, usize) {
    let app = subject(APP);
    (world.objects_like(&app, "delta").len(), world.objects_like(&app, "sqlite3").len())
}

#[test]
fn a_tail_beyond_its_measure_makes_a_newer_base() {
    let world = World::on_disk();
    let server = world.server("persist-1");
    fill(&server, "k", 6, 10_000);
    server.pass(Duration::from_secs(30));
    assert_eq!(server.engine.figures().publications, 0, "60 kB are not worth it");
    fill(&server, "l", 2, 10_000);
    server.until("there is a base", || server.engine.figures().publications == 1);
    assert_eq!(bases(&world), (0, 1));
    // What is in the base may grow to half as much again before the next.
    fill(&server, "m", 4, 10_000);
    server.pass(Duration::from_secs(30));
    assert_eq!(server.engine.figures().publications, 1);
}

#[test]
fn deltas_are_made_while_they_are_few_and_small_and_then_a_snapshot() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    fill(&server, "k", 40, 10_000);
    server.compact(&app).unwrap();
    server.until("the garbage is gone", || bases(&world) == (0, 1));
    for n in 1..=8 {
        fill(&server, &format!("d{n}"), 1, 100);
        server.compact(&app).unwrap();
        server.until("one more delta", || bases(&world) == (n, 1));
    }
    fill(&server, "last", 1, 100);
    server.compact(&app).unwrap();
    server.until("a snapshot took their place", || bases(&world) == (0, 1));

    fill(&server, "e", 1, 100);
    server.compact(&app).unwrap();
    server.until("a delta", || bases(&world) == (1, 1));
    fill(&server, "large", 15, 10_000);
    server.compact(&app).unwrap();
    server.until("more than a quarter of it asks for a snapshot", || bases(&world) == (0, 1));
    // Nobody waits for one deletion before the next.
    server.until("one manifest is left", || world.objects_like(&app, "manifest").len() == 1);
}

#[test]
fn a_claim_after_deltas_and_a_tail_has_the_same_rows() {
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

#[test]
fn compacting_again_costs_nothing() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    fill(&server, "k", 1, 100);
    server.compact(&app).unwrap();
    world.bucket.take_calls();
    server.compact(&app).unwrap();
    server.flush(&app).unwrap();
    assert_eq!(world.bucket.take_calls(), []);
    assert_eq!(server.engine.figures().publications, 1);
}

#[test]
fn slots_that_nobody_needs_go_and_the_highest_stays() {
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
    server.until("what is below the other's is gone", || numbers(&world, &server).len() == 1);
    assert_eq!(numbers(&world, &server).last(), all.last(), "the highest");
    server.compact(&other).unwrap();
    server.pass(Duration::from_secs(10));
    assert_eq!(numbers(&world, &server), [all.last().unwrap().clone()], "though nobody needs it");
    server.set(&app, "next", "v").unwrap();
    server.kill();
    assert_eq!(world.server("persist-1").info(&app).count, 11);
}

#[test]
fn a_dead_log_is_drained_to_its_seal() {
    let world = World::on_disk();
    let subjects: Vec<_> = (0..10).map(|n| subject(&format!("app.s{n}"))).collect();
    let server = world.server("persist-1");
    for one in &subjects {
        server.set(one, "k", "v").unwrap();
    }
    let old = server.kill();
    let server = world.server("persist-1");
    server.pass(Duration::from_secs(120));
    assert_eq!(world.slots(&old).len(), 1, "its seal");
    assert_eq!(files_in(&world.data_dir("persist-1").join("dead-logs")), [] as [PathBuf; 0]);
    for one in &subjects {
        assert_eq!(server.get(one, "k").unwrap().as_deref(), Some("v"));
    }
}

#[test]
fn a_subject_that_is_closed_and_opened_again_needs_no_claim_and_no_download() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    fill(&server, "k", 3, 100);
    let before = server.info(&app);
    server.until("it is closed", || server.engine.figures().open_subjects == 0);
    let objects = world.objects(&app);
    world.bucket.take_calls();
    assert_eq!(server.info(&app).position, before.position);
    assert_eq!(world.objects(&app), objects);
    let calls = world.bucket.take_calls();
    assert!(
        calls.iter().all(|(operation, _)| matches!(operation, Operation::List | Operation::Get)),
        "{calls:?}"
    );
}
