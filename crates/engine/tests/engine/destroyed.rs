//! A destroy executes once, and no late request from before it executes afterwards, at any later owner.

use std::sync::atomic::Ordering;
use std::time::Duration;

use dormouse_engine::api::{SubjectReply, SubjectRequest};
use dormouse_format::keys::ManifestNumber;
use dormouse_format::manifest::Manifest;
use dormouse_protocol::data::{DestroyReply, DestroyRequest, SetItem, SetRequest, SetResult};
use dormouse_protocol::limits::{SESSION_IDLE_MS, TOMBSTONE_SESSIONS};
use dormouse_protocol::{ErrorCode, ErrorReply, RequestId, SessionId, Subject};
use ulid::Ulid;

use crate::support::{Server, World, pairs, set_result, subject};

const APP: &str = "app.orders";

/// The request id with this session number and this counter.
fn id(session: u64, counter: u64) -> RequestId {
    RequestId { session: SessionId::new(Ulid::from(u128::from(session))), counter }
}

fn set(id: RequestId, key: &str, value: &str) -> SubjectRequest {
    let item =
        SetItem { key: Some(key.to_owned()), value: Some(value.to_owned().into()), ..SetItem::default() };
    SubjectRequest::Set(SetRequest { request: Some(id), sets: vec![item], ..SetRequest::default() })
}

fn destroy(id: RequestId) -> SubjectRequest {
    SubjectRequest::Destroy(DestroyRequest { request: Some(id), ..DestroyRequest::default() })
}

fn destroyed(answer: Result<SubjectReply, ErrorReply>) -> Result<DestroyReply, ErrorReply> {
    match answer? {
        SubjectReply::Destroy(reply) => Ok(reply),
        other => panic!("{other:?}"),
    }
}

/// A destroyed subject with requests from before the destroy and one write after it.
struct DestroyScenario {
    app: Subject,
    destroy_reply: DestroyReply,
    /// The result of the write after the destroy.
    later_write: SetResult,
}

impl DestroyScenario {
    /// Two sessions write, one of them destroys, the other writes again.
    fn begin(server: &Server) -> Self {
        let app = subject(APP);
        set_result(server.run(&app, set(id(1, 1), "a", "old"))).unwrap();
        set_result(server.run(&app, set(id(2, 7), "b", "old"))).unwrap();
        let destroy_reply = destroyed(server.run(&app, destroy(id(1, 2)))).unwrap();
        assert_eq!((destroy_reply.position.rev.get(), destroy_reply.duplicate), (3, false));
        let later_write = set_result(server.run(&app, set(id(2, 8), "c", "new"))).unwrap();
        Self { app, destroy_reply, later_write }
    }

    /// Repeats every request; the sets from before the destroy are `forgotten`.
    fn check(&self, server: &Server) {
        let again = destroyed(server.run(&self.app, destroy(id(1, 2))));
        assert_eq!(again, Ok(DestroyReply { duplicate: true, ..self.destroy_reply }));
        for late in [set(id(1, 1), "a", "old"), set(id(2, 7), "b", "old"), set(id(2, 6), "d", "unknown")] {
            let error = server.run(&self.app, late).unwrap_err();
            assert_eq!(error.code, ErrorCode::Forgotten);
        }
        let repeated = set_result(server.run(&self.app, set(id(2, 8), "c", "new"))).unwrap();
        assert_eq!(repeated, SetResult { duplicate: true, ..self.later_write });
        let error = server.run(&self.app, set(id(1, 2), "e", "the id of the destroy")).unwrap_err();
        assert_eq!(error.code, ErrorCode::BadRequest);
        assert_eq!(server.all(&self.app).unwrap(), pairs(&[("c", "new")]));
        assert_eq!(server.info(&self.app).position.rev, self.later_write.rev, "a repeat changes nothing");
    }
}

/// After a destroy, its repeat returns the first reply, and late earlier requests are `indeterminate` and change
/// nothing.
#[test]
fn destroy_repeat_and_earlier_requests_change_nothing() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    DestroyScenario::begin(&server).check(&server);
}

/// The dedup window keeps a destroy after a restart and after takeovers from tombstone and delta, and from a snapshot.
#[test]
fn destroy_dedup_survives_restart_and_takeovers() {
    let world = World::on_disk();
    let server = world.server("persist-1");
    let scenario = DestroyScenario::begin(&server);
    server.kill();
    let server = world.server("persist-1");
    scenario.check(&server);
    let mut log = server.lose_disk();
    let snapshots = || world.objects_with_extension(&scenario.app, "sqlite3").len();
    // From here on only the bucket has the dedup state: in the tombstone and a delta, and then in a snapshot.
    for name in ["persist-2", "persist-3"] {
        world.fleet.declare_dead(&log);
        let server = world.server(name);
        scenario.check(&server);
        assert_eq!(
            (snapshots(), world.objects_with_extension(&scenario.app, "delta").len()),
            (0, 1),
            "{name}"
        );
        log = server.lose_disk();
    }
    world.fleet.declare_dead(&log);
    let server = world.server("persist-4");
    assert_eq!((server.info(&scenario.app).count, snapshots()), (1, 0));
    // A released subject has a snapshot.
    server.shutdown();
    assert_eq!(snapshots(), 1);
    scenario.check(&world.server("persist-5"));
}

/// A repeated destroy of a subject without later writes returns the first reply on each following owner.
#[test]
fn destroy_dedup_survives_releases_without_later_writes() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    // The subject never had a message.
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

/// Each of two destroys executes once; the dedup window keeps the last reply, and earlier requests become
/// `indeterminate`.
#[test]
fn two_destroys_execute_once_and_last_reply_is_kept() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    set_result(server.run(&app, set(id(1, 1), "a", "1"))).unwrap();
    let asked = [id(2, 1), id(2, 1), id(3, 1)].map(|id| server.submit(&app, destroy(id)));
    let [first, again, second] = asked.map(|asked| destroyed(asked.wait(&server)).unwrap());
    assert_eq!(again, DestroyReply { duplicate: true, ..first });
    assert_eq!((second.position.rev, second.duplicate), (first.position.rev.next(), false));
    set_result(server.run(&app, set(id(1, 2), "b", "2"))).unwrap();
    assert_eq!(destroyed(server.run(&app, destroy(id(3, 1)))).unwrap().position, second.position);
    for known in [destroy(id(2, 1)), set(id(1, 1), "a", "1")] {
        assert_eq!(server.run(&app, known).unwrap_err().code, ErrorCode::Forgotten);
    }
    assert_eq!(server.all(&app).unwrap(), pairs(&[("b", "2")]));
}

/// If the reply to a destroy is lost, a retry returns its position as a duplicate and changes nothing.
#[test]
fn destroy_with_lost_reply_is_answered_on_retry() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    set_result(server.run(&app, set(id(1, 1), "a", "1"))).unwrap();
    world.bucket.set_answers_lost(true);
    let asked = server.submit(&app, destroy(id(1, 2)));
    assert_eq!(asked.wait(&server).unwrap_err().code, ErrorCode::Indeterminate);
    let refused = server.submit(&app, destroy(id(1, 2)));
    assert_eq!(refused.wait(&server).unwrap_err().code, ErrorCode::Unavailable);
    world.bucket.set_answers_lost(false);
    server.advance(Duration::from_secs(60));
    set_result(server.run(&app, set(id(2, 1), "b", "2"))).unwrap();
    let ended = destroyed(server.run(&app, destroy(id(1, 2)))).unwrap();
    assert_eq!((ended.position.rev.get(), ended.duplicate), (2, true));
    assert_eq!(server.all(&app).unwrap(), pairs(&[("b", "2")]));
}

/// A destroy keeps the newest sessions up to the limit; a late request of the oldest session executes as new.
#[test]
fn destroy_over_session_limit_drops_oldest_session() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    let last = TOMBSTONE_SESSIONS as u64;
    for session in 1..=last {
        set_result(server.run(&app, set(id(session, 1), "a", "1"))).unwrap();
        server.advance(Duration::from_secs(1));
    }
    destroyed(server.run(&app, destroy(id(last + 1, 1)))).unwrap();
    assert!(destroyed(server.run(&app, destroy(id(last + 1, 1)))).unwrap().duplicate);
    for session in 2..=last {
        let error = server.run(&app, set(id(session, 1), "a", "1")).unwrap_err();
        assert_eq!(error.code, ErrorCode::Forgotten, "session {session}");
    }
    assert_eq!(server.all(&app).unwrap(), []);
    // The request of the session over the limit executes as new, as docs/guarantees.md documents.
    set_result(server.run(&app, set(id(1, 1), "a", "1"))).unwrap();
}

/// A destroy keeps a session within its idle limit and drops a session past it.
#[test]
fn destroy_drops_session_past_idle_limit() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    set_result(server.run(&app, set(id(1, 1), "a", "1"))).unwrap();
    server.advance(Duration::from_millis(SESSION_IDLE_MS / 2));
    set_result(server.run(&app, set(id(2, 1), "a", "2"))).unwrap();
    server.advance(Duration::from_millis(SESSION_IDLE_MS / 2 + 120_000));
    server.destroy(&app).unwrap();
    assert_eq!(server.info(&app).details.sessions, 1);
    assert_eq!(server.run(&app, set(id(2, 1), "a", "2")).unwrap_err().code, ErrorCode::Forgotten);
}

/// If the next owner's clock is behind, the accept time never goes back over a destroy, and earlier requests stay
/// `forgotten`.
#[test]
fn subject_time_never_goes_back_over_destroy() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    set_result(server.run(&app, set(id(1, 1), "a", "1"))).unwrap();
    let before = server.info(&app).details.accept_time;
    server.destroy(&app).unwrap();
    server.shutdown();
    // The clock is two idle limits behind: the dedup state from before the destroy does not expire earlier.
    world.wall_seconds.fetch_sub(2 * SESSION_IDLE_MS / 1_000, Ordering::SeqCst);
    let server = world.server("persist-2");
    assert!(server.info(&app).details.accept_time >= before);
    set_result(server.run(&app, set(id(2, 1), "b", "2"))).unwrap();
    assert!(server.info(&app).details.accept_time >= before);
    assert_eq!(server.run(&app, set(id(1, 1), "a", "1")).unwrap_err().code, ErrorCode::Forgotten);
}

/// After a tombstone of the old format without dedup state, a write executes as new at the next rev.
#[test]
fn tombstone_of_old_format_accepts_new_writes() {
    let world = World::on_disk();
    let (app, server) = (subject(APP), world.server("persist-1"));
    set_result(server.run(&app, set(id(1, 1), "a", "1"))).unwrap();
    let ended = destroyed(server.run(&app, destroy(id(1, 2)))).unwrap();
    server.until("only the tombstone remains", || world.objects(&app).len() == 1);
    server.shutdown();
    let path = world.objects(&app).remove(0);
    let number = ManifestNumber::new(2);
    let written = Manifest::decode(&app, number, &std::fs::read(&path).unwrap()).unwrap();
    assert!(written.tombstone && written.tombstone_state.is_some());
    std::fs::write(&path, Manifest { tombstone_state: None, ..written }.encode()).unwrap();
    let server = world.server("persist-2");
    let result = set_result(server.run(&app, set(id(1, 1), "a", "1"))).unwrap();
    assert_eq!((result.rev, result.duplicate), (ended.position.rev.next(), false));
}
