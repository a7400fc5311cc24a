//! Expiry of messages: in time on an open subject, before the first reply of a subject that opens, and with the same
//! result at each owner.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bucket::BucketOperation;
use dormouse_engine::api::{HandoverOutcome, SubjectReply, SubjectRequest};
use dormouse_protocol::data::{ChangesRequest, ConfigureRequest, SetItem, SetRequest};
use dormouse_protocol::message::{DeleteChange, SubjectConfig};
use dormouse_protocol::{Change, ErrorReply, Position, Subject, Timestamp};

use crate::support::{Server, World, pairs, set_result, subject};

const APP: &str = "app.orders";
const HOUR: u64 = 3_600;

/// A set request for one key with a time to live.
fn set_request_with_ttl(key: &str, value: &str, ttl: Duration) -> SubjectRequest {
    let item = SetItem {
        key: Some(key.to_owned()),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        ttl_ms: Some(u64::try_from(ttl.as_millis()).unwrap()),
        ..SetItem::default()
    };
    SubjectRequest::Set(SetRequest { sets: vec![item], ..SetRequest::default() })
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

trait Expiry {
    /// Sets a key with a time to live and returns the position of the change.
    fn set_with_ttl(&self, app: &Subject, key: &str, ttl: Duration) -> Position;
    fn configured(&self, app: &Subject, config: SubjectConfig);
    /// The deletions that the events announce, with their revs.
    fn deletions(&self, app: &Subject) -> Vec<DeleteChange>;
}

impl Expiry for Server {
    fn set_with_ttl(&self, app: &Subject, key: &str, ttl: Duration) -> Position {
        let result = set_result(self.run(app, set_request_with_ttl(key, "v", ttl))).unwrap();
        Position { term: result.term, rev: result.rev }
    }

    fn configured(&self, app: &Subject, config: SubjectConfig) {
        self.run(app, SubjectRequest::Configure(ConfigureRequest { config, ..ConfigureRequest::default() }))
            .unwrap();
    }

    fn deletions(&self, app: &Subject) -> Vec<DeleteChange> {
        let changes = self.events.of(app).into_iter().flat_map(|event| event.changes);
        let deleted = changes.filter_map(|change| match change {
            Change::Delete(deleted) => Some(deleted),
            _ => None,
        });
        deleted.collect()
    }
}

/// A message of an open subject expires in time and never early, and events and change reads report its removal.
#[test]
fn message_expires_in_time_on_open_subject() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    let written = server.set_with_ttl(&app, "k", s(5));
    server.set(&app, "stays", "v").unwrap();
    server.advance(Duration::from_millis(4_900));
    assert_eq!(server.get(&app, "k").unwrap().as_deref(), Some("v"), "never too early");
    server.advance(Duration::from_millis(1_000));
    assert_eq!(server.get(&app, "k").unwrap(), None);
    let [deleted] = server.deletions(&app).try_into().unwrap();
    assert_eq!((deleted.rev.get(), deleted.removed[0].key.as_deref()), (3, Some("k")));
    // A client that missed the event reads the deletion as a change.
    let asked =
        server.run(&app, SubjectRequest::Changes(ChangesRequest { after: written, ..Default::default() }));
    let Ok(SubjectReply::Changes(changes)) = asked else { panic!("{asked:?}") };
    assert!(!changes.resync);
    assert_eq!(changes.changes.last(), Some(&Change::Delete(deleted)));
    assert_eq!(server.info(&app).details.next_expiry, None);
}

/// A message expires in time if the message with the earlier expiry was replaced before.
#[test]
fn message_expires_in_time_after_earlier_one_is_replaced() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    server.set_with_ttl(&app, "first", s(3));
    server.set_with_ttl(&app, "second", Duration::from_millis(3_500));
    // The info request applies both messages to the file; the next set stays in the apply backlog.
    server.info(&app);
    server.set(&app, "first", "stays").unwrap();
    server.advance(s(4));
    let [deleted] = server.deletions(&app).try_into().unwrap();
    assert_eq!(deleted.removed[0].key.as_deref(), Some("second"));
}

/// The server removes 20,000 messages that are due together, without any request.
#[test]
fn messages_due_together_expire_without_requests() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    let keys: Vec<String> = (0..20_000).map(|number| format!("k{number}")).collect();
    for some in keys.chunks(500) {
        let sets = some.iter().map(|key| SetItem {
            key: Some(key.clone()),
            value: Some(Bytes::new()),
            ttl_ms: Some(60_000),
            ..SetItem::default()
        });
        server
            .run(&app, SubjectRequest::Set(SetRequest { sets: sets.collect(), ..SetRequest::default() }))
            .unwrap();
    }
    server.advance(s(62));
    let removed: usize = server.deletions(&app).iter().map(|deleted| deleted.removed.len()).sum();
    assert_eq!(removed, keys.len());
}

/// A dormant subject that opens expires its due messages before the first reply.
#[test]
fn dormant_subject_expires_messages_before_first_reply() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    server.set_with_ttl(&app, "k", s(1_800));
    server.set(&app, "stays", "v").unwrap();
    server.advance(s(2_700));
    assert_eq!(
        (server.engine.metrics().open_subjects, server.deletions(&app).len()),
        (0, 0),
        "the subject is dormant"
    );
    assert_eq!(server.all(&app).unwrap(), pairs(&[("stays", "v")]), "the first reply");
    assert_eq!(server.deletions(&app).len(), 1);
}

/// An idle subject stays open until a near expiry and closes after it.
#[test]
fn idle_subject_stays_open_for_near_expiry() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    server.set_with_ttl(&app, "k", s(300));
    server.advance(s(290));
    assert_eq!(server.engine.metrics().open_subjects, 1);
    server.advance(s(12));
    assert_eq!(server.deletions(&app).len(), 1);
    server.advance(s(10));
    assert_eq!(server.engine.metrics().open_subjects, 0);
}

/// A set that expects an absent key succeeds if the message of that key is due.
#[test]
fn write_sees_key_of_due_message_as_free() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    server.set_with_ttl(&app, "k", s(HOUR));
    server.advance(s(HOUR + 1));
    let SubjectRequest::Set(mut set) = set_request_with_ttl("k", "2", s(HOUR)) else { panic!() };
    set.sets[0].expect = Some(dormouse_protocol::data::Expect::Key(None));
    set_result(server.run(&app, SubjectRequest::Set(set))).unwrap();
    assert_eq!(server.all(&app).unwrap(), pairs(&[("k", "2")]));
}

/// Kills the owner of a subject and starts the next server with a clock `later` seconds ahead, or behind if negative.
fn takeover_with_clock_offset(later: i64) -> (World, Server, Timestamp) {
    let world = World::in_memory();
    let (app, first) = (subject(APP), world.server("persist-1"));
    first.set_with_ttl(&app, "short", s(10));
    first.set_with_ttl(&app, "long", s(600));
    first.advance(s(12));
    assert_eq!(first.all(&app).unwrap(), pairs(&[("long", "v")]));
    let accepted = first.info(&app).details.accept_time;
    let log = first.kill();
    world.fleet.declare_dead(&log);
    world.wall_seconds.fetch_add(later.cast_unsigned(), Ordering::SeqCst);
    let second = world.server("persist-2");
    (world, second, accepted)
}

/// If the new owner's clock is an hour behind, expired messages stay removed, none expires early, and accept time never
/// goes back.
#[test]
fn owner_clock_behind_keeps_earlier_expiry_decisions() {
    let (world, server, accepted) = takeover_with_clock_offset(-3_600);
    let app = subject(APP);
    assert_eq!(server.all(&app).unwrap(), pairs(&[("long", "v")]), "a removed message stays removed");
    server.set(&app, "k", "v").unwrap();
    assert_eq!(server.info(&app).details.accept_time, accepted, "the subject's accept time does not advance");
    // For the next ten minutes too, although by the first clock the message is due then.
    for _ in 0..20 {
        server.advance(s(30));
        assert_eq!(server.get(&app, "long").unwrap().as_deref(), Some("v"), "never too early");
    }
    server.advance(s(HOUR + 30));
    assert_eq!(server.get(&app, "long").unwrap(), None);
    assert!(server.info(&app).details.accept_time > accepted);
    assert_takeover_rebuilds_same_state(&world, server);
}

/// If the new owner's clock is an hour ahead, messages expire by it, and the accept time never goes back afterwards.
#[test]
fn owner_clock_ahead_expires_messages_and_keeps_time() {
    let (world, server, accepted) = takeover_with_clock_offset(3_600);
    let app = subject(APP);
    assert_eq!(server.all(&app).unwrap(), []);
    let ahead = server.info(&app).details.accept_time;
    assert!(ahead.as_micros() > accepted.as_micros() + 3_000_000_000);
    server.set_with_ttl(&app, "k", s(10));
    assert_takeover_rebuilds_same_state(&world, server);
    // The next owner has a correct clock again.
    world.wall_seconds.fetch_sub(7_200, Ordering::SeqCst);
    let third = world.server("persist-4");
    third.set(&app, "other", "v").unwrap();
    assert!(third.info(&app).details.accept_time >= ahead);
}

/// Asserts that a takeover rebuilds the same state from the bucket.
fn assert_takeover_rebuilds_same_state(world: &World, server: Server) {
    let app = subject(APP);
    let (all, info) = (server.all(&app).unwrap(), server.info(&app));
    let log = server.kill();
    world.fleet.declare_dead(&log);
    let next = world.server("persist-3");
    let rebuilt = next.info(&app);
    assert_eq!((rebuilt.count, rebuilt.bytes, rebuilt.next_seq), (info.count, info.bytes, info.next_seq));
    assert_eq!(rebuilt.position.rev, info.position.rev);
    assert_eq!(rebuilt.details.next_expiry, info.details.next_expiry);
    assert!(rebuilt.details.accept_time >= info.details.accept_time);
    assert_eq!(next.all(&app).unwrap(), all);
    let log = next.kill();
    world.fleet.declare_dead(&log);
}

/// Retention by maximum age removes 12,000 messages in deletes of at most 4,096 each.
#[test]
fn retention_by_max_age_runs_in_bounded_steps() {
    let world = World::all_in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    for _ in 0..2 {
        let sets = vec![SetItem::default(); 6_000];
        server.run(&app, SubjectRequest::Set(SetRequest { sets, ..SetRequest::default() })).unwrap();
    }
    server.advance(s(100));
    server.set(&app, "young", "v").unwrap();
    server.configured(&app, SubjectConfig { max_age_ms: Some(90_000), ..SubjectConfig::default() });
    server.until("the old messages are removed", || server.info(&app).count == 1);
    let deleted = server.deletions(&app);
    assert_eq!(deleted.iter().map(|deleted| deleted.removed.len()).sum::<usize>(), 12_000);
    assert!(
        deleted.len() > 2 && deleted.iter().all(|deleted| deleted.removed.len() <= 4_096),
        "{}",
        deleted.len()
    );
    assert_takeover_rebuilds_same_state(&world, server);
}

/// A message expires in time while a snapshot uploads, and a takeover rebuilds the same state.
#[test]
fn message_expires_during_snapshot_upload() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    server.set(&app, "stays", &crate::support::large()).unwrap();
    server.set_with_ttl(&app, "k", s(5));
    let held = world.bucket.hold_requests(BucketOperation::PutFile, "");
    let compacting = server.submit(&app, SubjectRequest::Compact);
    server.until("the snapshot upload starts", || held.reached() > 0);
    server.advance(s(6));
    assert_eq!(server.get(&app, "k").unwrap(), None);
    drop(held);
    compacting.wait(&server).unwrap();
    assert_eq!(server.info(&app).count, 1);
    assert_takeover_rebuilds_same_state(&world, server);
}

/// A message that becomes due during a handover expires at the next owner.
#[test]
fn message_due_during_handover_expires_at_next_owner() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    server.set_with_ttl(&app, "k", s(5));
    let held = world.bucket.hold_requests(BucketOperation::Create, ".manifest");
    let before = server.events.of(&app).len();
    let handed_over = server.submit(&app, SubjectRequest::HandOver);
    server.until("the subject is being released", || held.reached() > 0);
    server.advance(s(10));
    assert_eq!(server.deletions(&app).len(), 0, "{before}");
    drop(held);
    assert!(matches!(handed_over.wait(&server), Ok(SubjectReply::HandOver(HandoverOutcome::Released))));
    world.wall_seconds.fetch_add(20, Ordering::SeqCst);
    let second = world.server("persist-2");
    assert_eq!(second.get(&app, "k").unwrap(), None);
    assert_eq!(second.deletions(&app).len(), 1);
}

/// While the bucket is unreachable, a due message stays readable, because its removal is not durable yet.
#[test]
fn message_stays_until_expiry_is_durable() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    server.set_with_ttl(&app, "k", s(5));
    world.bucket.set_unreachable(true);
    server.advance(s(10));
    let found: Result<Option<String>, ErrorReply> = server.get(&app, "k");
    assert_eq!(found.unwrap().as_deref(), Some("v"), "its removal is not durable");
    world.bucket.set_unreachable(false);
    server.until("the message is removed", || server.get(&app, "k").unwrap().is_none());
    assert_eq!(server.deletions(&app).len(), 1);
}
