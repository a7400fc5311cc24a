//! Collecting from outside of any server.

use std::sync::Arc;

use crate::support::{World, subject};
use dormouse_protocol::LogId;
use dormouse_runtime::Env;
use dormouse_storage::api::Request;
use dormouse_storage::bucket::{Bucket, BucketPrefix};
use dormouse_storage::collect::{CollectSettings, Collected, collect};
use dormouse_storage::log::SealedLogs;

/// Objects that a collection tells of, and what it came to.
async fn run(world: &World, dry_run: bool) -> (Vec<String>, Collected) {
    let bucket = Arc::clone(&world.bucket) as Arc<dyn Bucket>;
    let mut told = Vec::new();
    let settings = CollectSettings::new(dry_run, 1_000);
    let subjects = [subject("app.a"), subject("app.b")];
    let collected = collect(bucket, &Env::system(), &settings, &subjects, |key| told.push(key.to_string()))
        .await
        .unwrap();
    (told, collected)
}

async fn listed(world: &World) -> Vec<String> {
    let entries = world.bucket.list(&BucketPrefix::ALL).await.unwrap();
    entries.into_iter().map(|entry| entry.key.to_string()).collect()
}

/// A log that is over, with a slot that is needed and, above it, one that is not.
fn a_dead_log(world: &World) -> LogId {
    let server = world.server("persist-1");
    server.set(&subject("app.b"), "k", "needed").unwrap();
    server.set(&subject("app.a"), "k", "not needed").unwrap();
    server.run(&subject("app.a"), Request::Compact).unwrap();
    server.kill()
}

#[test]
fn a_log_that_is_not_sealed_is_left_alone() {
    let world = World::in_memory();
    a_dead_log(&world);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let before = listed(&world).await;
        let (told, collected) = run(&world, false).await;
        assert_eq!((told, collected.logs, collected.sealed), (vec![], 1, 0));
        assert_eq!(listed(&world).await, before);
    });
}

#[test]
fn what_a_sealed_log_holds_goes_as_far_as_nobody_needs_it() {
    let world = World::in_memory();
    let log = a_dead_log(&world);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let env = Env::system();
        let own = LogId::new("persist-2".parse().unwrap(), env.ulid());
        let bucket = Arc::clone(&world.bucket) as Arc<dyn Bucket>;
        assert!(SealedLogs::new(bucket, env, own).seal_only(&log).await.unwrap());

        let before = listed(&world).await;
        let (would_go, collected) = run(&world, true).await;
        assert_eq!(listed(&world).await, before, "a dry run changes nothing");
        assert_eq!((collected.sealed, collected.needing), (1, 1));
        assert_eq!(collected.deleted, would_go.len() as u64);
        let slot = |number: u64| format!("logs/{log}/{number:016x}");
        assert!(would_go.contains(&slot(2)) && !would_go.contains(&slot(1)), "{would_go:?}");

        let (told, _) = run(&world, false).await;
        assert_eq!(told, would_go, "the same is done as was said");
        let left = listed(&world).await;
        assert!(before.iter().all(|key| left.contains(key) != told.contains(key)), "{told:?} of {before:?}");
        assert_eq!(run(&world, false).await.0, [] as [String; 0], "once");
    });
    // Whoever comes next finds everything.
    let server = world.server("persist-2");
    world.fleet.declare_dead(&log);
    for (name, value) in [("app.a", "not needed"), ("app.b", "needed")] {
        assert_eq!(server.get(&subject(name), "k").unwrap().as_deref(), Some(value));
    }
}
