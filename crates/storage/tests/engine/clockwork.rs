//! What an open subject does by itself, as its time passes, and with a bucket whose answers get lost.

use std::sync::atomic::Ordering;
use std::time::Duration;

use dormouse_protocol::data::DestroyRequest;
use dormouse_protocol::{ErrorCode, ErrorReply};
use dormouse_storage::api::{Reply, Request};

use crate::support::{Asked, Server, World, large, set_request, set_result, subject};

const APP: &str = "app.orders";

#[test]
fn a_change_is_followed_by_beacons_and_sleep() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    server.set(&app, "k", "v").unwrap();
    server.pass(Duration::from_millis(500));
    let mut seen = Vec::new();
    for _ in 0..70 {
        seen.push((server.events.of(&app).len(), server.engine.figures().open_subjects));
        server.pass(Duration::from_secs(1));
    }
    let first = |what: &dyn Fn(&(usize, u64)) -> bool| seen.iter().position(what).unwrap();
    // A beacon after the claim, the change, then three beacons, and one on closing.
    assert_eq!(seen[0], (2, 1));
    assert_eq!([3, 4, 5, 6].map(|events| first(&|at| at.0 == events)), [1, 5, 30, 60]);
    assert_eq!(first(&|at| at.1 == 0), 60);
    assert_eq!(seen[69], (6, 0), "a sleeping subject does nothing");
    assert_eq!(server.engine.figures().publications, 0, "closing needs no compaction");
}

#[test]
fn what_is_not_in_the_bucket_stays_open() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    server.configure(&app, dormouse_protocol::Level::Disk);
    server.get(&app, "k").unwrap();
    world.bucket.set_gone(true);
    server.set(&app, "k", "v").unwrap();
    server.pass(Duration::from_secs(600));
    let figures = server.engine.figures();
    assert!(figures.open_subjects == 1 && figures.log.unshipped_bytes > 0, "{figures:?}");
    world.bucket.set_gone(false);
    server.pass(Duration::from_secs(70));
    let figures = server.engine.figures();
    assert_eq!((figures.open_subjects, figures.log.unshipped_bytes), (0, 0));
}

#[test]
fn compactions_that_are_asked_for_together_share_one() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    for n in 0..10 {
        server.set(&app, &n.to_string(), "v").unwrap();
    }
    let asked: Vec<_> = (0..20).map(|_| server.ask(&app, Request::Compact)).collect();
    for asked in asked {
        let Reply::Flush(reply) = asked.wait(&server).unwrap() else { panic!() };
        assert_eq!(reply.position.rev.get(), 10);
    }
    assert_eq!(server.engine.figures().publications, 1);
}

fn code(answer: Result<Reply, ErrorReply>) -> ErrorCode {
    answer.unwrap_err().code
}

/// Lets creates go unanswered as soon as the log has what was written.
fn without_answers<'a>(world: &World, server: &'a Server, request: Request) -> (&'a Server, Asked) {
    world.bucket.creates_unanswered.store(true, Ordering::SeqCst);
    let asked = server.ask(&subject(APP), request);
    (server, asked)
}

#[test]
fn a_compaction_without_an_answer_is_settled_before_the_next() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    server.set(&app, "a", &large()).unwrap();
    // The manifest is created, and nobody hears of it.
    let (_, asked) = without_answers(&world, &server, Request::Compact);
    assert_eq!(code(asked.wait(&server)), ErrorCode::Unavailable);
    server.pass(Duration::from_secs(20));
    assert_eq!(server.engine.figures().subjects_not_compacted, 1);
    world.bucket.creates_unanswered.store(false, Ordering::SeqCst);
    let last = server.set(&app, "b", "v").unwrap();
    assert_eq!(server.compact(&app).unwrap().rev, last.rev);
    let figures = server.engine.figures();
    assert_eq!((figures.subjects_not_compacted, figures.lost_subjects), (0, 0));
    assert_eq!(server.info(&app).position.term.get(), 1, "never claimed anew");
    let report = server.shutdown();
    assert_eq!((report.released, report.unreleased.len()), (1, 0));
    assert_eq!(world.server("persist-2").info(&app).count, 2);
}

#[test]
fn a_destroy_without_an_answer_is_indeterminate_and_nothing_is_accepted_until_it_is_known() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    server.set(&app, "a", "1").unwrap();
    let (_, asked) = without_answers(&world, &server, Request::Destroy(DestroyRequest::default()));
    assert_eq!(code(asked.wait(&server)), ErrorCode::Indeterminate);
    let refused = server.ask(&app, set_request("b", "v"));
    assert_eq!(set_result(refused.wait(&server)).unwrap_err().code, ErrorCode::Unavailable);
    world.bucket.creates_unanswered.store(false, Ordering::SeqCst);
    server.pass(Duration::from_secs(60));
    let info = server.info(&app);
    assert_eq!((info.count, info.position.rev.get(), info.position.term.get()), (0, 2, 2));
}
