//! Handover of one subject while the server keeps serving the others.

use std::sync::atomic::Ordering;
use std::time::Duration;

use dormouse_bucket::BucketOperation;
use dormouse_engine::api::{HandoverOutcome, SubjectRequest};
use dormouse_protocol::data::GetRequest;
use dormouse_protocol::{ErrorCode, Level};

use crate::support::{World, large, messages_in, pairs, set_request, set_result, subject};

const APP: &str = "app.orders";

/// Longer than a subject without requests stays open.
const PAST_IDLE_CLOSE: Duration = Duration::from_secs(70);

/// A handover releases one subject as a plain SQLite snapshot while the server keeps serving its other subjects.
#[test]
fn handover_of_one_subject_keeps_others_served() {
    let world = World::on_disk();
    let (app, other) = (subject(APP), subject("app.other"));
    let first = world.server("persist-1");
    for n in 0..10 {
        first.set(&app, &format!("k{n}"), "v").unwrap();
    }
    let last = first.set(&app, "big", &large()).unwrap();
    first.set(&other, "a", "1").unwrap();
    assert_eq!(first.hand_over(&app).unwrap(), HandoverOutcome::Released);
    assert_eq!(*first.authority.released.lock().unwrap(), std::slice::from_ref(&app));
    let figures = first.engine.metrics();
    assert_eq!((figures.handed_over, figures.open_subjects, figures.claims), (1, 1, 2));
    assert_eq!(messages_in(&world.snapshot(&app)).len(), 11, "the snapshot is complete without the log");

    let second = world.server("persist-2");
    let next = second.set(&app, "next", "v").unwrap();
    assert_eq!((next.rev, next.term), (last.rev.next(), last.term.next()));
    assert_eq!(
        first.get(&other, "a").unwrap().as_deref(),
        Some("1"),
        "the server keeps serving the other subject"
    );
    let error = first.get(&app, "big").unwrap_err();
    assert_eq!((error.code, error.owner), (ErrorCode::NotOwner, Some("persist-2".parse().unwrap())));
}

/// A write, read or flush during a handover returns `not_owner` and changes nothing.
#[test]
fn request_during_handover_gets_not_owner() {
    for is_released in [false, true] {
        let world = World::in_memory();
        let app = subject(APP);
        let first = world.server("persist-1");
        first.set(&app, "a", "1").unwrap();
        let held = if is_released {
            world.bucket.hold_answers(BucketOperation::Create, "manifest")
        } else {
            world.bucket.hold_requests(BucketOperation::Create, "manifest")
        };
        let handing_over = first.submit(&app, SubjectRequest::HandOver);
        first.until("the manifest create starts", || held.reached() == 1);
        let asked = [set_request("b", "2"), SubjectRequest::Get(GetRequest::key("a")), SubjectRequest::Flush];
        let asked = asked.map(|request| first.submit(&app, request));
        first.advance(Duration::from_secs(1));
        assert!(asked.iter().all(|asked| asked.try_reply().is_none()), "the requests wait");
        drop(held);
        handing_over.wait(&first).unwrap();
        for asked in asked {
            assert_eq!(asked.wait(&first).unwrap_err().code, ErrorCode::NotOwner);
        }
        assert_eq!(world.server("persist-2").all(&app).unwrap(), pairs(&[("a", "1")]));
    }
}

/// A handover waits for pending writes; the server acks them, and the next owner has them.
#[test]
fn handover_waits_for_pending_writes() {
    let world = World::in_memory();
    let app = subject(APP);
    let first = world.server("persist-1");
    first.set(&app, "a", "1").unwrap();
    let held = world.bucket.hold_requests(BucketOperation::Create, "logs");
    let set = first.submit(&app, set_request("b", "2"));
    let handing_over = first.submit(&app, SubjectRequest::HandOver);
    first.advance(Duration::from_secs(1));
    assert!(handing_over.try_reply().is_none() && set.try_reply().is_none());
    drop(held);
    set_result(set.wait(&first)).unwrap();
    handing_over.wait(&first).unwrap();
    assert_eq!(world.server("persist-2").all(&app).unwrap(), pairs(&[("a", "1"), ("b", "2")]));
}

/// A server hands over its own dormant subject without a claim and without a question to the coordinator.
#[test]
fn dormant_subject_handover_needs_no_claim() {
    let world = World::in_memory();
    let app = subject(APP);
    let first = world.server("persist-1");
    let last = first.set(&app, "a", "1").unwrap();
    first.advance(PAST_IDLE_CLOSE);
    assert_eq!(first.engine.metrics().open_subjects, 0);
    let asked = first.authority.claim_requests.load(Ordering::SeqCst);
    assert_eq!(first.hand_over(&app).unwrap(), HandoverOutcome::Released);
    assert_eq!(first.authority.claim_requests.load(Ordering::SeqCst), asked);
    let next = world.server("persist-2").set(&app, "b", "2").unwrap();
    assert_eq!((next.rev, next.term), (last.rev.next(), last.term.next()), "one claim");
}

/// A handover of an unowned subject returns `NotHeld`, claims nothing and reports the subject as released.
#[test]
fn handover_of_unowned_subject_reports_it_released() {
    let world = World::in_memory();
    let (app, unknown) = (subject(APP), subject("app.unknown"));
    let first = world.server("persist-1");
    first.set(&app, "a", "1").unwrap();
    let second = world.server("persist-2");
    for name in [&app, &unknown] {
        assert_eq!(second.hand_over(name).unwrap(), HandoverOutcome::NotHeld);
    }
    assert_eq!(second.authority.claim_requests.load(Ordering::SeqCst), 0, "the server claims nothing");
    assert_eq!(*second.authority.released.lock().unwrap(), [app.clone(), unknown]);
    assert_eq!(first.get(&app, "a").unwrap().as_deref(), Some("1"));
    // After the release, the first server does not own the subject either.
    assert_eq!(first.hand_over(&app).unwrap(), HandoverOutcome::Released);
    assert_eq!(first.hand_over(&app).unwrap(), HandoverOutcome::NotHeld);
}

/// Concurrent handover requests for one subject share one handover and one publication.
#[test]
fn concurrent_handover_requests_execute_once() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "a", "1").unwrap();
    let asked: Vec<_> = (0..5).map(|_| server.submit(&app, SubjectRequest::HandOver)).collect();
    for asked in asked {
        asked.wait(&server).unwrap();
    }
    assert_eq!((server.engine.metrics().handed_over, server.engine.metrics().manifest_publishes), (1, 1));
}

/// If the bucket is unreachable, a handover fails as `unavailable`, and the server keeps the subject under the same
/// term.
#[test]
fn handover_without_bucket_keeps_subject_served() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.configure(&app, Level::Disk);
    server.set(&app, "a", "1").unwrap();
    server.get(&app, "a").unwrap();
    world.bucket.set_unreachable(true);
    server.set(&app, "b", "2").unwrap();
    let handing_over = server.submit(&app, SubjectRequest::HandOver);
    server.advance(Duration::from_secs(5));
    assert_eq!(server.get(&app, "b").unwrap().as_deref(), Some("2"), "reads succeed during the handover");
    assert_eq!(handing_over.wait(&server).unwrap_err().code, ErrorCode::Unavailable);
    world.bucket.set_unreachable(false);
    server.set(&app, "c", "3").unwrap();
    assert_eq!(server.info(&app).position.term.get(), 1, "the subject was never released");
    assert_eq!(server.hand_over(&app).unwrap(), HandoverOutcome::Released);
}

/// If a release gets no reply from the bucket, the server resolves its outcome before it accepts a read or write.
#[test]
fn handover_without_reply_is_resolved_before_requests() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "a", "1").unwrap();
    world.bucket.set_answers_lost(true);
    let handing_over = server.submit(&app, SubjectRequest::HandOver);
    server.advance(Duration::from_secs(30));
    let asked = [set_request("b", "2"), SubjectRequest::Get(GetRequest::key("a"))];
    let asked = asked.map(|request| server.submit(&app, request));
    for asked in &asked {
        assert_eq!(asked.wait(&server).unwrap_err().code, ErrorCode::Unavailable);
    }
    assert!(handing_over.try_reply().is_none());
    world.bucket.set_answers_lost(false);
    handing_over.wait(&server).unwrap();
    assert_eq!(world.server("persist-2").all(&app).unwrap(), pairs(&[("a", "1")]));
}

/// An engine that restarts after a drain owns no subject, and another server claims its dormant and open subjects.
#[test]
fn engine_restarted_after_drain_owns_nothing() {
    let world = World::in_memory();
    let (dormant, open) = (subject("app.dormant"), subject("app.open"));
    let first = world.server("persist-1");
    first.set(&dormant, "a", "1").unwrap();
    first.advance(PAST_IDLE_CLOSE);
    first.set(&open, "b", "2").unwrap();
    let old = first.log();
    let first = first.restart_after_drain();
    assert_ne!(first.log(), old);
    assert_eq!((first.engine.metrics().open_subjects, first.engine.metrics().claims), (0, 0));
    world.fleet.declare_dead(&old);
    let second = world.server("persist-2");
    assert_eq!(second.all(&dormant).unwrap(), pairs(&[("a", "1")]));
    assert_eq!(second.all(&open).unwrap(), pairs(&[("b", "2")]));
    assert_eq!(first.get(&open, "b").unwrap_err().code, ErrorCode::NotOwner);
    first.set(&subject("app.new"), "c", "3").unwrap();
}
