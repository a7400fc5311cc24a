//! A destroy happens once, and nothing from before it happens after: whatever comes late, and whoever has the subject by
//! then.

use std::sync::atomic::Ordering;
use std::time::Duration;

use dormouse_protocol::data::{DestroyReply, DestroyRequest, SetItem, SetRequest, SetResult};
use dormouse_protocol::limits::{REMEMBERED_SESSIONS, SESSION_IDLE_MS};
use dormouse_protocol::{ErrorCode, ErrorReply, RequestId, SessionId, Subject};
use dormouse_storage::api::{Reply, Request};
use dormouse_storage::keys::ManifestNumber;
use dormouse_storage::manifest::Manifest;
use ulid::Ulid;

use crate::support::{Server, World, pairs, set_result, subject};

const APP: &str = "app.orders";

/// A request's id: of the session with this number, its request with this one.
fn id(session: u64, counter: u64) -> RequestId {
    RequestId { session: SessionId::new(Ulid::from(u128::from(session))), counter }
}

fn set(id: RequestId, key: &str, value: &str) -> Request {
    let item =
        SetItem { key: Some(key.to_owned()), value: Some(value.to_owned().into()), ..SetItem::default() };
    Request::Set(SetRequest { request: Some(id), sets: vec![item], ..SetRequest::default() })
}

fn destroy(id: RequestId) -> Request {
    Request::Destroy(DestroyRequest { request: Some(id), ..DestroyRequest::default() })
}

fn destroyed(answer: Result<Reply, ErrorReply>) -> Result<DestroyReply, ErrorReply> {
    match answer? {
        Reply::Destroy(reply) => Ok(reply),
        other => panic!("{other:?}"),
    }
}

/// What was asked before the subject was destroyed, and how it went on.
struct Story {
    app: Subject,
    ended: DestroyReply,
    /// What was written since, and that it is there.
    since: SetResult,
}

impl Story {
    /// Two sessions write, one of them destroys, the other writes again.
    fn begin(server: &Server) -> Self {
        let app = subject(APP);
        set_result(server.run(&app, set(id(1, 1), "a", "old"))).unwrap();
        set_result(server.run(&app, set(id(2, 7), "b", "old"))).unwrap();
        let ended = destroyed(server.run(&app, destroy(id(1, 2)))).unwrap();
        assert_eq!((ended.position.rev.get(), ended.duplicate), (3, false));
        let since = set_result(server.run(&app, set(id(2, 8), "c", "new"))).unwrap();
        Self { app, ended, since }
    }

    /// Everything comes once more, the sets as if they had never been heard of.
    fn check(&self, server: &Server) {
        let again = destroyed(server.run(&self.app, destroy(id(1, 2))));
        assert_eq!(again, Ok(DestroyReply { duplicate: true, ..self.ended }));
        for late in
            [set(id(1, 1), "a", "old"), set(id(2, 7), "b", "old"), set(id(2, 6), "d", "never heard of")]
        {
            let error = server.run(&self.app, late).unwrap_err();
            assert_eq!(error.code, ErrorCode::Indeterminate);
        }
        let since = set_result(server.run(&self.app, set(id(2, 8), "c", "new"))).unwrap();
        assert_eq!(since, SetResult { duplicate: true, ..self.since });
        let error = server.run(&self.app, set(id(1, 2), "e", "the id of the destroy")).unwrap_err();
        assert_eq!(error.code, ErrorCode::BadRequest);
        assert_eq!(server.all(&self.app).unwrap(), pairs(&[("c", "new")]));
        assert_eq!(server.info(&self.app).position.rev, self.since.rev, "a repeat has changed something");
    }
}

#[test]
fn a_destroy_that_is_repeated_and_what_came_before_it_change_nothing() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    Story::begin(&server).check(&server);
}

#[test]
fn a_destroy_is_remembered_after_a_restart_and_takeovers_with_and_without_a_snapshot() {
    let world = World::on_disk();
    let server = world.server("persist-1");
    let story = Story::begin(&server);
    server.kill();
    let server = world.server("persist-1");
    story.check(&server);
    let mut log = server.lose_disk();
    let snapshots = || world.objects_like(&story.app, "sqlite3").len();
    // From here on only the bucket remembers: what the tombstone says and a delta, and then a snapshot.
    for name in ["persist-2", "persist-3"] {
        world.fleet.declare_dead(&log);
        let server = world.server(name);
        story.check(&server);
        assert_eq!((snapshots(), world.objects_like(&story.app, "delta").len()), (0, 1), "{name}");
        log = server.lose_disk();
    }
    world.fleet.declare_dead(&log);
    let server = world.server("persist-4");
    assert_eq!((server.info(&story.app).count, snapshots()), (1, 0));
    // What is handed back has a snapshot.
    server.shutdown();
    assert_eq!(snapshots(), 1);
    story.check(&world.server("persist-5"));
}

#[test]
fn a_destroy_is_remembered_by_a_subject_that_nobody_has_written_since() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    // Nothing of it was ever there.
    let ended = destroyed(server.run(&app, destroy(id(1, 5)))).unwrap();
    let report = server.shutdown();
    assert_eq!(report.unreleased, []);
    for name in ["persist-2", "persist-3"] {
        let server = world.server(name);
        let again = destroyed(server.run(&app, destroy(id(1, 5))));
        assert_eq!(again, Ok(DestroyReply { duplicate: true, ..ended }));
        assert_eq!(server.info(&app).position.rev, ended.position.rev);
        assert_eq!(server.shutdown().unreleased, []);
    }
}

#[test]
fn of_two_destroys_each_happens_once_and_the_last_is_remembered_with_its_answer() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    set_result(server.run(&app, set(id(1, 1), "a", "1"))).unwrap();
    let asked = [id(2, 1), id(2, 1), id(3, 1)].map(|id| server.ask(&app, destroy(id)));
    let [first, again, second] = asked.map(|asked| destroyed(asked.wait(&server)).unwrap());
    assert_eq!(again, DestroyReply { duplicate: true, ..first });
    assert_eq!((second.position.rev, second.duplicate), (first.position.rev.next(), false));
    set_result(server.run(&app, set(id(1, 2), "b", "2"))).unwrap();
    assert_eq!(destroyed(server.run(&app, destroy(id(3, 1)))).unwrap().position, second.position);
    for known in [destroy(id(2, 1)), set(id(1, 1), "a", "1")] {
        assert_eq!(server.run(&app, known).unwrap_err().code, ErrorCode::Indeterminate);
    }
    assert_eq!(server.all(&app).unwrap(), pairs(&[("b", "2")]));
}

#[test]
fn a_destroy_whose_answer_was_lost_is_answered_when_it_is_asked_again() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    set_result(server.run(&app, set(id(1, 1), "a", "1"))).unwrap();
    world.bucket.creates_unanswered.store(true, Ordering::SeqCst);
    let asked = server.ask(&app, destroy(id(1, 2)));
    assert_eq!(asked.wait(&server).unwrap_err().code, ErrorCode::Indeterminate);
    let refused = server.ask(&app, destroy(id(1, 2)));
    assert_eq!(refused.wait(&server).unwrap_err().code, ErrorCode::Unavailable);
    world.bucket.creates_unanswered.store(false, Ordering::SeqCst);
    server.pass(Duration::from_secs(60));
    set_result(server.run(&app, set(id(2, 1), "b", "2"))).unwrap();
    let ended = destroyed(server.run(&app, destroy(id(1, 2)))).unwrap();
    assert_eq!((ended.position.rev.get(), ended.duplicate), (2, true));
    assert_eq!(server.all(&app).unwrap(), pairs(&[("b", "2")]));
}

#[test]
fn of_more_sessions_than_are_remembered_those_heard_of_first_are_forgotten() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    let last = REMEMBERED_SESSIONS as u64;
    for session in 1..=last {
        set_result(server.run(&app, set(id(session, 1), "a", "1"))).unwrap();
        server.pass(Duration::from_secs(1));
    }
    destroyed(server.run(&app, destroy(id(last + 1, 1)))).unwrap();
    assert!(destroyed(server.run(&app, destroy(id(last + 1, 1)))).unwrap().duplicate);
    for session in 2..=last {
        let error = server.run(&app, set(id(session, 1), "a", "1")).unwrap_err();
        assert_eq!(error.code, ErrorCode::Indeterminate, "session {session}");
    }
    assert_eq!(server.all(&app).unwrap(), []);
    // The one too many is as new, and docs/guarantees.md says so.
    set_result(server.run(&app, set(id(1, 1), "a", "1"))).unwrap();
}

#[test]
fn a_session_that_was_idle_for_longer_than_it_is_remembered_is_not_taken_along() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    set_result(server.run(&app, set(id(1, 1), "a", "1"))).unwrap();
    server.pass(Duration::from_millis(SESSION_IDLE_MS / 2));
    set_result(server.run(&app, set(id(2, 1), "a", "2"))).unwrap();
    server.pass(Duration::from_millis(SESSION_IDLE_MS / 2 + 120_000));
    server.destroy(&app).unwrap();
    assert_eq!(server.info(&app).details.sessions, 1);
    assert_eq!(server.run(&app, set(id(2, 1), "a", "2")).unwrap_err().code, ErrorCode::Indeterminate);
}

#[test]
fn the_time_of_a_subject_does_not_go_back_over_a_destroy() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    set_result(server.run(&app, set(id(1, 1), "a", "1"))).unwrap();
    let before = server.info(&app).details.accept_time;
    server.destroy(&app).unwrap();
    server.shutdown();
    // An hour behind: what the first life knew is not forgotten any sooner.
    world.wall.fetch_sub(2 * SESSION_IDLE_MS / 1_000, Ordering::SeqCst);
    let server = world.server("persist-2");
    assert!(server.info(&app).details.accept_time >= before);
    set_result(server.run(&app, set(id(2, 1), "b", "2"))).unwrap();
    assert!(server.info(&app).details.accept_time >= before);
    assert_eq!(server.run(&app, set(id(1, 1), "a", "1")).unwrap_err().code, ErrorCode::Indeterminate);
}

#[test]
fn a_tombstone_of_a_version_that_remembered_nothing_is_gone_on_from() {
    let world = World::on_disk();
    let (app, server) = (subject(APP), world.server("persist-1"));
    set_result(server.run(&app, set(id(1, 1), "a", "1"))).unwrap();
    let ended = destroyed(server.run(&app, destroy(id(1, 2)))).unwrap();
    server.until("only the tombstone is left", || world.objects(&app).len() == 1);
    server.shutdown();
    let path = world.objects(&app).remove(0);
    let number = ManifestNumber::new(2);
    let written = Manifest::decode(&app, number, &std::fs::read(&path).unwrap()).unwrap();
    assert!(written.tombstone && written.past.is_some());
    std::fs::write(&path, Manifest { past: None, ..written }.encode()).unwrap();
    let server = world.server("persist-2");
    let result = set_result(server.run(&app, set(id(1, 1), "a", "1"))).unwrap();
    assert_eq!((result.rev, result.duplicate), (ended.position.rev.next(), false));
}
