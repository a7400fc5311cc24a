//! A process whose log somebody else has ended harms nobody, and goes on with a fresh one.

use std::sync::atomic::Ordering;
use std::time::Duration;

use dormouse_protocol::data::GetRequest;
use dormouse_protocol::{ErrorCode, Level};
use dormouse_storage::LogEnd;
use dormouse_storage::api::Request;

use crate::support::{World, lost_changes, pairs, set_request, set_result, subject};

const APP: &str = "app.orders";

fn ended(server: &crate::support::Server) -> LogEnd {
    let ended = async { tokio::time::timeout(Duration::from_secs(60), server.engine.ended()).await };
    server.runtime.block_on(ended).expect("its log has ended")
}

#[test]
fn a_process_that_was_overtaken_acknowledges_nothing_and_the_successor_has_all_it_acknowledged() {
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

    // It was suspended meanwhile, and knows of nothing.
    let answers: Vec<_> = (0..5).map(|n| first.ask(&app, set_request(&format!("z{n}"), "zombie"))).collect();
    assert_eq!(ended(&first), LogEnd::Sealed);
    for answer in &answers {
        let error = answer.wait(&first).unwrap_err();
        assert!(matches!(error.code, ErrorCode::NotOwner), "{error}");
    }
    assert_eq!(first.set(&app, "late", "zombie").unwrap_err().code, ErrorCode::NotOwner);
    let expected: Vec<_> = acknowledged.into_iter().chain(pairs(&[("next", "w")])).collect();
    assert_eq!(second.all(&app).unwrap(), expected);
    assert_eq!(second.info(&app).position.rev, last.rev);
}

#[test]
fn after_it_was_overtaken_a_process_serves_with_a_fresh_log() {
    let world = World::in_memory();
    let (app, other) = (subject(APP), subject("app.other"));
    let first = world.server("persist-1");
    first.set(&app, "a", "1").unwrap();
    first.set(&other, "b", "2").unwrap();
    let old = first.log();
    world.fleet.declare_dead(&old);
    let second = world.server("persist-2");
    second.set(&app, "c", "3").unwrap();
    first.set(&app, "zombie", "4").unwrap_err();
    assert_eq!(ended(&first), LogEnd::Sealed);

    let first = first.succeed();
    assert_ne!(first.log(), old);
    // Nobody else has claimed this one.
    assert_eq!(first.all(&other).unwrap(), pairs(&[("b", "2")]));
    first.set(&other, "d", "5").unwrap();
    let error = first.get(&app, "a").unwrap_err();
    assert_eq!((error.code, error.owner), (ErrorCode::NotOwner, Some("persist-2".parse().unwrap())));
    second.shutdown();
    assert_eq!(first.all(&app).unwrap(), pairs(&[("a", "1"), ("c", "3")]));
}

#[test]
fn reads_of_an_overtaken_process_fail_once_its_lease_is_over() {
    let world = World::in_memory();
    let app = subject(APP);
    let first = world.server("persist-1");
    first.set(&app, "a", "old").unwrap();
    world.fleet.declare_dead(&first.log());
    let second = world.server("persist-2");
    second.set(&app, "a", "new").unwrap();
    // The coordinator only says so when the lease is over; a new one is not trusted before a barrier.
    for lease in [None, Some(2)] {
        first.authority.set_lease(lease);
        assert_eq!(first.get(&app, "a").unwrap_err().code, ErrorCode::NotOwner, "never the stale value");
        assert_eq!(
            first.flush(&app).unwrap_err().code,
            ErrorCode::NotOwner,
            "there is more than it knows of"
        );
    }
}

#[test]
fn what_an_overtaken_process_acknowledged_at_weaker_levels_is_kept_in_lost_and_never_merged() {
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
    let first = first.succeed();
    first.until("it is set aside", || !lost_changes(&world.data_dir("persist-1")).is_empty());
    assert_eq!(lost_changes(&world.data_dir("persist-1")), pairs(&[("b", "only here")]));
    assert_eq!(second.all(&app).unwrap(), pairs(&[("a", "1"), ("c", "3")]));
}

#[test]
fn a_write_whose_answer_was_lost_before_the_log_was_sealed_is_kept() {
    let world = World::in_memory();
    let app = subject(APP);
    let first = world.server("persist-1");
    first.set(&app, "a", "1").unwrap();
    // The segment lands, and nobody hears of it.
    world.bucket.creates_unanswered.store(true, Ordering::SeqCst);
    let answer = first.ask(&app, set_request("b", "2"));
    first.pass(Duration::from_secs(5));
    assert!(answer.answer().is_none());
    world.bucket.creates_unanswered.store(false, Ordering::SeqCst);
    world.fleet.declare_dead(&first.log());
    let second = world.server("persist-2");
    assert_eq!(second.all(&app).unwrap(), pairs(&[("a", "1"), ("b", "2")]));
    // Its own create had landed, so it may well say so.
    set_result(answer.wait(&first)).unwrap();
    assert_eq!(first.set(&app, "c", "3").unwrap_err().code, ErrorCode::NotOwner);
}

#[test]
fn a_claim_that_was_allowed_during_a_gap_takes_nothing_from_an_owner_who_is_back() {
    let world = World::in_memory();
    let app = subject(APP);
    let first = world.server("persist-1");
    first.set(&app, "a", "1").unwrap();
    first.authority.set_lease(None);
    world.fleet.declare_dead(&first.log());
    let second = world.server("persist-2");
    let slow = second.authority.answering.blocking_lock();
    let claim = second.ask(&app, Request::Get(GetRequest::key("a")));
    second.until("the claim is allowed", || second.authority.asked.load(Ordering::SeqCst) == 1);

    // Its barrier passes, for nobody has sealed its log yet: from here on it trusts its lease.
    world.fleet.declare_alive(&first.log());
    first.authority.set_lease(Some(2));
    assert_eq!(first.get(&app, "a").unwrap().as_deref(), Some("1"));
    drop(slow);
    let error = claim.wait(&second).unwrap_err();
    assert_eq!((error.code, error.owner), (ErrorCode::NotOwner, Some("persist-1".parse().unwrap())));
    assert_eq!(first.get(&app, "a").unwrap().as_deref(), Some("1"), "still nobody else's");

    // The seal is there all the same. Once the first has met it, its subjects are free.
    assert_eq!(first.set(&app, "b", "2").unwrap_err().code, ErrorCode::NotOwner);
    assert_eq!(ended(&first), LogEnd::Sealed);
    world.fleet.declare_dead(&first.log());
    assert_eq!(first.succeed().all(&app).unwrap(), pairs(&[("a", "1")]));
}

#[test]
fn a_slot_that_is_missing_is_damage_only_to_a_process_whose_log_goes_on() {
    for is_overtaken in [false, true] {
        let world = World::on_disk();
        let (app, other) = (subject(APP), subject("app.other"));
        let first = world.server("persist-1");
        first.set(&other, "b", "2").unwrap();
        first.set(&app, "a", "1").unwrap();
        let slot = world.slots(&first.log()).last().unwrap().clone();
        first.set(&other, "c", "3").unwrap();
        first.until("it is closed", || first.engine.figures().open_subjects == 0);
        // As whoever has ended the log takes it away.
        std::fs::remove_file(slot).unwrap();
        let second = is_overtaken.then(|| {
            world.fleet.declare_dead(&first.log());
            let second = world.server("persist-2");
            second.all(&other).unwrap();
            second
        });
        let error = first.get(&app, "a").unwrap_err();
        let expected = if is_overtaken { ErrorCode::NotOwner } else { ErrorCode::Corrupt };
        assert_eq!(error.code, expected, "{error}");
        drop(second);
    }
}
