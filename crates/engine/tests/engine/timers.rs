//! The timers of an open subject, and a bucket that loses replies.

use std::time::Duration;

use dormouse_engine::api::{SubjectReply, SubjectRequest};
use dormouse_protocol::data::DestroyRequest;
use dormouse_protocol::{ErrorCode, ErrorReply};

use crate::support::{PendingReply, Server, World, large, set_request, set_result, subject};

const APP: &str = "app.orders";

/// After a change, an idle subject sends three beacons, closes with a fourth after one minute, and publishes no base.
#[test]
fn change_is_followed_by_beacons_and_close() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    server.set(&app, "k", "v").unwrap();
    server.advance(Duration::from_millis(500));
    let mut seen = Vec::new();
    for _ in 0..70 {
        seen.push((server.events.of(&app).len(), server.engine.metrics().open_subjects));
        server.advance(Duration::from_secs(1));
    }
    let first = |matches: &dyn Fn(&(usize, u64)) -> bool| seen.iter().position(matches).unwrap();
    // A beacon after the claim, the change, then three beacons, and one at the close.
    assert_eq!(seen[0], (2, 1));
    assert_eq!([3, 4, 5, 6].map(|events| first(&|at| at.0 == events)), [1, 5, 30, 60]);
    assert_eq!(first(&|at| at.1 == 0), 60);
    assert_eq!(seen[69], (6, 0), "a dormant subject sends nothing");
    assert_eq!(server.engine.metrics().manifest_publishes, 0, "closing needs no compaction");
}

/// A subject with unshipped changes stays open while the bucket is unreachable, and closes after they are in the
/// bucket.
#[test]
fn subject_with_unshipped_changes_stays_open() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    server.configure(&app, dormouse_protocol::Level::Disk);
    server.get(&app, "k").unwrap();
    world.bucket.set_unreachable(true);
    server.set(&app, "k", "v").unwrap();
    server.advance(Duration::from_secs(600));
    let figures = server.engine.metrics();
    assert!(figures.open_subjects == 1 && figures.log.unshipped_bytes > 0, "{figures:?}");
    world.bucket.set_unreachable(false);
    server.advance(Duration::from_secs(70));
    let figures = server.engine.metrics();
    assert_eq!((figures.open_subjects, figures.log.unshipped_bytes), (0, 0));
}

/// Concurrent compaction requests share one manifest publication.
#[test]
fn compaction_requests_share_one_publication() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    for n in 0..10 {
        server.set(&app, &n.to_string(), "v").unwrap();
    }
    let asked: Vec<_> = (0..20).map(|_| server.submit(&app, SubjectRequest::Compact)).collect();
    for asked in asked {
        let SubjectReply::Flush(reply) = asked.wait(&server).unwrap() else { panic!() };
        assert_eq!(reply.position.rev.get(), 10);
    }
    assert_eq!(server.engine.metrics().manifest_publishes, 1);
}

fn code(answer: Result<SubjectReply, ErrorReply>) -> ErrorCode {
    answer.unwrap_err().code
}

/// Submits a request while the bucket loses the replies to creates.
fn ask_without_bucket_replies<'a>(
    world: &World,
    server: &'a Server,
    request: SubjectRequest,
) -> (&'a Server, PendingReply) {
    world.bucket.set_answers_lost(true);
    let asked = server.submit(&subject(APP), request);
    (server, asked)
}

/// If a manifest create gets no reply, the server resolves its outcome before the next compaction, without a new claim.
#[test]
fn compaction_without_reply_is_resolved_before_next() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    server.set(&app, "a", &large()).unwrap();
    // The manifest is created, and the reply is lost.
    let (_, asked) = ask_without_bucket_replies(&world, &server, SubjectRequest::Compact);
    assert_eq!(code(asked.wait(&server)), ErrorCode::Unavailable);
    server.advance(Duration::from_secs(20));
    assert_eq!(server.engine.metrics().compaction_failing_subjects, 1);
    world.bucket.set_answers_lost(false);
    let last = server.set(&app, "b", "v").unwrap();
    assert_eq!(server.compact(&app).unwrap().rev, last.rev);
    let figures = server.engine.metrics();
    assert_eq!((figures.compaction_failing_subjects, figures.fenced_subjects), (0, 0));
    assert_eq!(server.info(&app).position.term.get(), 1, "the server made no second claim");
    let report = server.shutdown();
    assert_eq!((report.released, report.unreleased.len()), (1, 0));
    assert_eq!(world.server("persist-2").info(&app).count, 2);
}

/// A destroy without a reply from the bucket is `indeterminate`, and the subject rejects writes until its outcome is
/// known.
#[test]
fn destroy_without_reply_is_indeterminate() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    server.set(&app, "a", "1").unwrap();
    let (_, asked) =
        ask_without_bucket_replies(&world, &server, SubjectRequest::Destroy(DestroyRequest::default()));
    assert_eq!(code(asked.wait(&server)), ErrorCode::Indeterminate);
    let refused = server.submit(&app, set_request("b", "v"));
    assert_eq!(set_result(refused.wait(&server)).unwrap_err().code, ErrorCode::Unavailable);
    world.bucket.set_answers_lost(false);
    server.advance(Duration::from_secs(60));
    let info = server.info(&app);
    assert_eq!((info.count, info.position.rev.get(), info.position.term.get()), (0, 2, 2));
}
