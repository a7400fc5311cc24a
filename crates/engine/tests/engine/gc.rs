//! Collection by a tool without a server.

use std::sync::Arc;

use dormouse_bucket::Bucket;
use dormouse_commit_log::log::SealedLogs;
use dormouse_engine::api::SubjectRequest;
use dormouse_engine::gc::{GcError, GcReport, GcSettings, collect};
use dormouse_format::keys::BucketPrefix;
use dormouse_protocol::LogId;
use dormouse_runtime::Env;

use crate::support::{World, subject};

/// Runs a collection; returns the keys that it lists and its report.
async fn run(world: &World, dry_run: bool) -> (Vec<String>, GcReport) {
    let bucket = Arc::clone(&world.bucket) as Arc<dyn Bucket>;
    let mut keys = Vec::new();
    let settings = GcSettings::new(dry_run, 1_000);
    let subjects = [subject("app.a"), subject("app.b")];
    let collected = collect(bucket, &Env::system(), &settings, &subjects, |key| keys.push(key.to_string()))
        .await
        .unwrap();
    (keys, collected)
}

async fn listed(world: &World) -> Vec<String> {
    let entries = world.bucket.list(&BucketPrefix::ALL).await.unwrap();
    entries.into_iter().map(|entry| entry.key.to_string()).collect()
}

/// An orphaned log with a slot that a manifest needs and, above it, one that no manifest needs.
fn orphaned_log(world: &World) -> LogId {
    let server = world.server("persist-1");
    server.set(&subject("app.b"), "k", "needed").unwrap();
    server.set(&subject("app.a"), "k", "not needed").unwrap();
    server.run(&subject("app.a"), SubjectRequest::Compact).unwrap();
    server.kill()
}

/// Collection deletes nothing of a log without a seal.
#[test]
fn collection_keeps_unsealed_log() {
    let world = World::in_memory();
    orphaned_log(&world);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let before = listed(&world).await;
        let (keys, collected) = run(&world, false).await;
        assert_eq!((keys, collected.logs, collected.sealed), (vec![], 1, 0));
        assert_eq!(listed(&world).await, before);
    });
}

/// Collection deletes exactly the objects that its dry run lists, keeps each slot that a manifest needs, and loses no
/// message.
#[test]
fn collection_deletes_unneeded_objects_of_sealed_log() {
    let world = World::in_memory();
    let log = orphaned_log(&world);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let env = Env::system();
        let own = LogId::new("persist-2".parse().unwrap(), env.ulid());
        let bucket = Arc::clone(&world.bucket) as Arc<dyn Bucket>;
        assert!(SealedLogs::new(bucket, env, own).seal_only(&log).await.unwrap());

        let before = listed(&world).await;
        let (dry_run_keys, collected) = run(&world, true).await;
        assert_eq!(listed(&world).await, before, "a dry run changes nothing");
        assert_eq!((collected.sealed, collected.needing), (1, 1));
        assert_eq!(collected.deleted, dry_run_keys.len() as u64);
        let slot = |number: u64| format!("logs/{log}/{number:016x}");
        assert!(dry_run_keys.contains(&slot(2)) && !dry_run_keys.contains(&slot(1)), "{dry_run_keys:?}");

        let (deleted, _) = run(&world, false).await;
        assert_eq!(deleted, dry_run_keys, "the collection deletes the keys of its dry run");
        let left = listed(&world).await;
        assert!(
            before.iter().all(|key| left.contains(key) != deleted.contains(key)),
            "{deleted:?} of {before:?}"
        );
        assert_eq!(run(&world, false).await.0, [] as [String; 0], "a second collection deletes nothing");
    });
    // The next owner finds every message.
    let server = world.server("persist-2");
    world.fleet.declare_dead(&log);
    for (name, value) in [("app.a", "not needed"), ("app.b", "needed")] {
        assert_eq!(server.get(&subject(name), "k").unwrap().as_deref(), Some(value));
    }
}

/// A collection in a bucket that no fleet uses is an error: its URL is probably wrong.
#[test]
fn collection_of_bucket_without_log_fails() {
    let world = World::in_memory();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let bucket = Arc::clone(&world.bucket) as Arc<dyn Bucket>;
        let settings = GcSettings::new(true, 1_000);
        let collected = collect(bucket, &Env::system(), &settings, &[subject("app.a")], |_| {}).await;
        assert!(matches!(collected, Err(GcError::NoLog)), "{collected:?}");
    });
}
