//! Fencing: a process whose log another server sealed causes no damage, and restarts with a new log.

use std::sync::atomic::Ordering;
use std::time::Duration;

use dormouse_engine::LogEnd;
use dormouse_engine::api::SubjectRequest;
use dormouse_protocol::data::GetRequest;
use dormouse_protocol::{ErrorCode, Level};

use crate::support::{World, lost_changes, pairs, set_request, set_result, subject};

const APP: &str = "app.orders";

fn ended(server: &crate::support::Server) -> LogEnd {
    let ended = async { tokio::time::timeout(Duration::from_secs(60), server.engine.ended()).await };
    server.runtime.block_on(ended).expect("the log has ended")
}

/// A fenced process acks no write, and the new owner has every write that the old owner acked.
#[test]
fn fenced_process_acks_nothing() {
    let world = World::in_memory();
    let app = subject(APP);
    let first = world.server("persist-1");
    for n in 0..20 {
        first.set(&app, &format!("k{n:02}"), "v").unwrap();
    }
    let acknowledged = first.all(&app).unwrap();
    world.fleet.declare_dead(&first.log());
    let second = world.server("persist-2");
    assert_eq!(second.all(&app).unwrap(), acknowledged);
    let last = second.set(&app, "next", "w").unwrap();

    // The first server was suspended meanwhile and has not noticed the takeover.
    let answers: Vec<_> =
        (0..5).map(|n| first.submit(&app, set_request(&format!("z{n}"), "stale"))).collect();
    assert_eq!(ended(&first), LogEnd::Sealed);
    for answer in &answers {
        let error = answer.wait(&first).unwrap_err();
        assert!(matches!(error.code, ErrorCode::NotOwner), "{error}");
    }
    assert_eq!(first.set(&app, "late", "stale").unwrap_err().code, ErrorCode::NotOwner);
    let expected: Vec<_> = acknowledged.into_iter().chain(pairs(&[("next", "w")])).collect();
    assert_eq!(second.all(&app).unwrap(), expected);
    assert_eq!(second.info(&app).position.rev, last.rev);
}

/// A fenced process restarts with a new log, serves its unclaimed subjects, and returns `not_owner` for the claimed
/// one.
#[test]
fn fenced_process_restarts_with_new_log() {
    let world = World::in_memory();
    let (app, other) = (subject(APP), subject("app.other"));
    let first = world.server("persist-1");
    first.set(&app, "a", "1").unwrap();
    first.set(&other, "b", "2").unwrap();
    let old = first.log();
    world.fleet.declare_dead(&old);
    let second = world.server("persist-2");
    second.set(&app, "c", "3").unwrap();
    first.set(&app, "stale", "4").unwrap_err();
    assert_eq!(ended(&first), LogEnd::Sealed);

    let first = first.restart_after_takeover();
    assert_ne!(first.log(), old);
    // No other server has claimed this subject.
    assert_eq!(first.all(&other).unwrap(), pairs(&[("b", "2")]));
    first.set(&other, "d", "5").unwrap();
    let error = first.get(&app, "a").unwrap_err();
    assert_eq!((error.code, error.owner), (ErrorCode::NotOwner, Some("persist-2".parse().unwrap())));
    second.shutdown();
    assert_eq!(first.all(&app).unwrap(), pairs(&[("a", "1"), ("c", "3")]));
}

/// After its lease ends, a fenced process fails reads and flushes with `not_owner`, also under a new unconfirmed lease.
#[test]
fn fenced_process_fails_reads_after_lease() {
    let world = World::in_memory();
    let app = subject(APP);
    let first = world.server("persist-1");
    first.set(&app, "a", "old").unwrap();
    world.fleet.declare_dead(&first.log());
    let second = world.server("persist-2");
    second.set(&app, "a", "new").unwrap();
    // The coordinator declares a server dead only after its lease. A new lease is unconfirmed before a barrier.
    for lease in [None, Some(2)] {
        first.authority.set_lease(lease);
        assert_eq!(first.get(&app, "a").unwrap_err().code, ErrorCode::NotOwner, "never the stale value");
        assert_eq!(
            first.flush(&app).unwrap_err().code,
            ErrorCode::NotOwner,
            "the new owner has later writes"
        );
    }
}

/// The server keeps diverged writes that a fenced process acked below level `bucket` in `lost/` and never merges them.
#[test]
fn fenced_weak_writes_kept_in_lost() {
    let world = World::in_memory();
    let app = subject(APP);
    let first = world.server("persist-1");
    first.get(&app, "a").unwrap();
    first.configure(&app, Level::Disk);
    first.set(&app, "a", "1").unwrap();
    first.flush(&app).unwrap();
    first.set(&app, "b", "only here").unwrap();
    world.fleet.declare_dead(&first.log());
    let second = world.server("persist-2");
    assert_eq!(second.all(&app).unwrap(), pairs(&[("a", "1")]));
    second.set_at(&app, Level::Bucket, "c", "3").unwrap();

    first.set_at(&app, Level::Bucket, "d", "4").unwrap_err();
    assert_eq!(ended(&first), LogEnd::Sealed);
    let first = first.restart_after_takeover();
    first.until("the write is kept in lost/", || !lost_changes(&world.data_dir("persist-1")).is_empty());
    assert_eq!(lost_changes(&world.data_dir("persist-1")), pairs(&[("b", "only here")]));
    assert_eq!(second.all(&app).unwrap(), pairs(&[("a", "1"), ("c", "3")]));
}

/// If a segment precedes the seal in the log and its reply is lost, a takeover keeps the write and the client gets an
/// ack.
#[test]
fn write_shipped_before_seal_without_reply_is_kept() {
    let world = World::in_memory();
    let app = subject(APP);
    let first = world.server("persist-1");
    first.set(&app, "a", "1").unwrap();
    // The segment is created, and the reply is lost.
    world.bucket.set_answers_lost(true);
    let answer = first.submit(&app, set_request("b", "2"));
    first.advance(Duration::from_secs(5));
    assert!(answer.try_reply().is_none());
    world.bucket.set_answers_lost(false);
    world.fleet.declare_dead(&first.log());
    let second = world.server("persist-2");
    assert_eq!(second.all(&app).unwrap(), pairs(&[("a", "1"), ("b", "2")]));
    // The segment is in the bucket before the seal, so the server can ack it.
    set_result(answer.wait(&first)).unwrap();
    assert_eq!(first.set(&app, "c", "3").unwrap_err().code, ErrorCode::NotOwner);
}

/// If the owner confirms a new lease after another server got permission to claim, that claim fails with `not_owner`.
#[test]
fn claim_allowed_during_lease_gap_spares_returned_owner() {
    let world = World::in_memory();
    let app = subject(APP);
    let first = world.server("persist-1");
    first.set(&app, "a", "1").unwrap();
    first.authority.set_lease(None);
    world.fleet.declare_dead(&first.log());
    let second = world.server("persist-2");
    let slow = second.authority.reply_gate.blocking_lock();
    let claim = second.submit(&app, SubjectRequest::Get(GetRequest::key("a")));
    second.until("the claim is allowed", || second.authority.claim_requests.load(Ordering::SeqCst) == 1);

    // Its barrier passes, because no server has sealed its log yet: from here on its lease is confirmed.
    world.fleet.declare_alive(&first.log());
    first.authority.set_lease(Some(2));
    assert_eq!(first.get(&app, "a").unwrap().as_deref(), Some("1"));
    drop(slow);
    let error = claim.wait(&second).unwrap_err();
    assert_eq!((error.code, error.owner), (ErrorCode::NotOwner, Some("persist-1".parse().unwrap())));
    assert_eq!(
        first.get(&app, "a").unwrap().as_deref(),
        Some("1"),
        "the first server still owns the subject"
    );

    // The log has the seal nevertheless. After the first server finds it, other servers can claim its subjects.
    assert_eq!(first.set(&app, "b", "2").unwrap_err().code, ErrorCode::NotOwner);
    assert_eq!(ended(&first), LogEnd::Sealed);
    world.fleet.declare_dead(&first.log());
    assert_eq!(first.restart_after_takeover().all(&app).unwrap(), pairs(&[("a", "1")]));
}

/// A missing slot is `corrupt` for the owner of a live log and `not_owner` after a takeover.
#[test]
fn missing_slot_is_corrupt_only_while_log_is_live() {
    for after_takeover in [false, true] {
        let world = World::on_disk();
        let (app, other) = (subject(APP), subject("app.other"));
        let first = world.server("persist-1");
        first.set(&other, "b", "2").unwrap();
        first.set(&app, "a", "1").unwrap();
        let slot = world.slots(&first.log()).last().unwrap().clone();
        first.set(&other, "c", "3").unwrap();
        first.until("the subject is closed", || first.engine.metrics().open_subjects == 0);
        // Without the local file, the open needs the slot. A server that reclaims the sealed log deletes it.
        let file = format!("subjects/{}.sqlite3", app.escaped());
        std::fs::remove_file(world.data_dir("persist-1").join(file)).unwrap();
        std::fs::remove_file(slot).unwrap();
        let second = after_takeover.then(|| {
            world.fleet.declare_dead(&first.log());
            let second = world.server("persist-2");
            second.all(&other).unwrap();
            second
        });
        let error = first.get(&app, "a").unwrap_err();
        let expected = if after_takeover { ErrorCode::NotOwner } else { ErrorCode::Corrupt };
        assert_eq!(error.code, expected, "{error}");
        drop(second);
    }
}
