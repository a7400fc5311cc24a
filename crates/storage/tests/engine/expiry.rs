//! Messages that expire: in time on an open subject, before anybody is answered on one that wakes, and everywhere the same.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::data::{ChangesRequest, ConfigureRequest, SetItem, SetRequest};
use dormouse_protocol::message::{DeleteChange, SubjectConfig};
use dormouse_protocol::{Change, ErrorReply, Position, Subject, Timestamp};
use dormouse_storage::api::{HandedOver, Reply, Request};
use dormouse_storage::bucket::Operation;

use crate::support::{Server, World, pairs, set_result, subject};

const APP: &str = "app.orders";
const HOUR: u64 = 3_600;

fn living(key: &str, value: &str, ttl: Duration) -> Request {
    let item = SetItem {
        key: Some(key.to_owned()),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        ttl_ms: Some(u64::try_from(ttl.as_millis()).unwrap()),
        ..SetItem::default()
    };
    Request::Set(SetRequest { sets: vec![item], ..SetRequest::default() })
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

trait Expiry {
    fn let_live(&self, app: &Subject, key: &str, ttl: Duration) -> Position;
    fn configured(&self, app: &Subject, config: SubjectConfig);
    /// What the events say was deleted, with the rev.
    fn deletions(&self, app: &Subject) -> Vec<DeleteChange>;
}

impl Expiry for Server {
    fn let_live(&self, app: &Subject, key: &str, ttl: Duration) -> Position {
        let result = set_result(self.run(app, living(key, "v", ttl))).unwrap();
        Position { term: result.term, rev: result.rev }
    }

    fn configured(&self, app: &Subject, config: SubjectConfig) {
        self.run(app, Request::Configure(ConfigureRequest { config, ..ConfigureRequest::default() }))
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

#[test]
fn on_an_open_subject_a_message_expires_in_time_and_watchers_hear() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    let written = server.let_live(&app, "k", s(5));
    server.set(&app, "stays", "v").unwrap();
    server.pass(Duration::from_millis(4_900));
    assert_eq!(server.get(&app, "k").unwrap().as_deref(), Some("v"), "never too early");
    server.pass(Duration::from_millis(1_000));
    assert_eq!(server.get(&app, "k").unwrap(), None);
    let [deleted] = server.deletions(&app).try_into().unwrap();
    assert_eq!((deleted.rev.get(), deleted.removed[0].key.as_deref()), (3, Some("k")));
    // Whoever was away hears of it too.
    let asked = server.run(&app, Request::Changes(ChangesRequest { after: written, ..Default::default() }));
    let Ok(Reply::Changes(changes)) = asked else { panic!("{asked:?}") };
    assert!(!changes.resync);
    assert_eq!(changes.changes.last(), Some(&Change::Delete(deleted)));
    assert_eq!(server.info(&app).details.next_expiry, None);
}

#[test]
fn a_message_expires_in_time_though_the_one_before_it_is_gone() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    server.let_live(&app, "first", s(3));
    server.let_live(&app, "second", Duration::from_millis(3_500));
    // They are in the file, and what follows is not: that would bring them there.
    server.info(&app);
    server.set(&app, "first", "lives on").unwrap();
    server.pass(s(4));
    let [deleted] = server.deletions(&app).try_into().unwrap();
    assert_eq!(deleted.removed[0].key.as_deref(), Some("second"));
}

#[test]
fn what_expires_together_goes_together_though_nobody_asks() {
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
        server.run(&app, Request::Set(SetRequest { sets: sets.collect(), ..SetRequest::default() })).unwrap();
    }
    server.pass(s(62));
    let removed: usize = server.deletions(&app).iter().map(|deleted| deleted.removed.len()).sum();
    assert_eq!(removed, keys.len());
}

#[test]
fn a_subject_that_wakes_expires_what_came_due_before_it_answers() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    server.let_live(&app, "k", s(1_800));
    server.set(&app, "stays", "v").unwrap();
    server.pass(s(2_700));
    assert_eq!((server.engine.figures().open_subjects, server.deletions(&app).len()), (0, 0), "it sleeps");
    assert_eq!(server.all(&app).unwrap(), pairs(&[("stays", "v")]), "the very first answer");
    assert_eq!(server.deletions(&app).len(), 1);
}

#[test]
fn an_idle_subject_waits_for_what_expires_soon() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    server.let_live(&app, "k", s(300));
    server.pass(s(290));
    assert_eq!(server.engine.figures().open_subjects, 1);
    server.pass(s(12));
    assert_eq!(server.deletions(&app).len(), 1);
    server.pass(s(10));
    assert_eq!(server.engine.figures().open_subjects, 0);
}

#[test]
fn a_write_finds_a_key_free_whose_message_is_due() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    server.let_live(&app, "k", s(HOUR));
    server.pass(s(HOUR + 1));
    let Request::Set(mut set) = living("k", "2", s(HOUR)) else { panic!() };
    set.sets[0].expect = Some(dormouse_protocol::data::Expect::Key(None));
    set_result(server.run(&app, Request::Set(set))).unwrap();
    assert_eq!(server.all(&app).unwrap(), pairs(&[("k", "2")]));
}

/// A subject whose owner dies, and the next, whose clock says that it is so many seconds later, or earlier.
fn taken_over(later: i64) -> (World, Server, Timestamp) {
    let world = World::in_memory();
    let (app, first) = (subject(APP), world.server("persist-1"));
    first.let_live(&app, "short", s(10));
    first.let_live(&app, "long", s(600));
    first.pass(s(12));
    assert_eq!(first.all(&app).unwrap(), pairs(&[("long", "v")]));
    let accepted = first.info(&app).details.accept_time;
    let log = first.kill();
    world.fleet.declare_dead(&log);
    world.wall.fetch_add(later.cast_unsigned(), Ordering::SeqCst);
    let second = world.server("persist-2");
    (world, second, accepted)
}

#[test]
fn an_owner_whose_clock_is_an_hour_behind_changes_nothing_that_was_decided() {
    let (world, server, accepted) = taken_over(-3_600);
    let app = subject(APP);
    assert_eq!(server.all(&app).unwrap(), pairs(&[("long", "v")]), "what was gone stays gone");
    server.set(&app, "k", "v").unwrap();
    assert_eq!(server.info(&app).details.accept_time, accepted, "the subject's time stands still");
    // For the next ten minutes too, whatever is due then by the first clock.
    for _ in 0..20 {
        server.pass(s(30));
        assert_eq!(server.get(&app, "long").unwrap().as_deref(), Some("v"), "never too early");
    }
    server.pass(s(HOUR + 30));
    assert_eq!(server.get(&app, "long").unwrap(), None);
    assert!(server.info(&app).details.accept_time > accepted);
    agrees(&world, server);
}

#[test]
fn an_owner_whose_clock_is_an_hour_ahead_expires_what_is_due_by_it_and_no_time_goes_back() {
    let (world, server, accepted) = taken_over(3_600);
    let app = subject(APP);
    assert_eq!(server.all(&app).unwrap(), []);
    let ahead = server.info(&app).details.accept_time;
    assert!(ahead.as_micros() > accepted.as_micros() + 3_000_000_000);
    server.let_live(&app, "k", s(10));
    agrees(&world, server);
    // The one after it has a right clock again.
    world.wall.fetch_sub(7_200, Ordering::SeqCst);
    let third = world.server("persist-4");
    third.set(&app, "other", "v").unwrap();
    assert!(third.info(&app).details.accept_time >= ahead);
}

/// Whoever rebuilds the subject from the bucket comes to the same.
fn agrees(world: &World, server: Server) {
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

#[test]
fn an_age_that_many_have_reached_is_met_in_steps() {
    let world = World::all_in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    for _ in 0..2 {
        let sets = vec![SetItem::default(); 6_000];
        server.run(&app, Request::Set(SetRequest { sets, ..SetRequest::default() })).unwrap();
    }
    server.pass(s(100));
    server.set(&app, "young", "v").unwrap();
    server.configured(&app, SubjectConfig { max_age_ms: Some(90_000), ..SubjectConfig::default() });
    server.until("they are gone", || server.info(&app).count == 1);
    let deleted = server.deletions(&app);
    assert_eq!(deleted.iter().map(|deleted| deleted.removed.len()).sum::<usize>(), 12_000);
    assert!(
        deleted.len() > 2 && deleted.iter().all(|deleted| deleted.removed.len() <= 4_096),
        "{}",
        deleted.len()
    );
    agrees(&world, server);
}

#[test]
fn messages_expire_while_a_snapshot_is_on_its_way_up() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    server.set(&app, "stays", &crate::support::large()).unwrap();
    server.let_live(&app, "k", s(5));
    let held = world.bucket.hold(Operation::PutFile, "", false);
    let compacting = server.ask(&app, Request::Compact);
    server.until("the snapshot is on its way", || held.reached() > 0);
    server.pass(s(6));
    assert_eq!(server.get(&app, "k").unwrap(), None);
    drop(held);
    compacting.wait(&server).unwrap();
    assert_eq!(server.info(&app).count, 1);
    agrees(&world, server);
}

#[test]
fn nothing_expires_between_two_owners_and_the_next_sees_to_it() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    server.let_live(&app, "k", s(5));
    let held = world.bucket.hold(Operation::Create, ".manifest", false);
    let before = server.events.of(&app).len();
    let handed_over = server.ask(&app, Request::HandOver);
    server.until("the subject is being released", || held.reached() > 0);
    server.pass(s(10));
    assert_eq!(server.deletions(&app).len(), 0, "{before}");
    drop(held);
    assert!(matches!(handed_over.wait(&server), Ok(Reply::HandOver(HandedOver::Released))));
    world.wall.fetch_add(20, Ordering::SeqCst);
    let second = world.server("persist-2");
    assert_eq!(second.get(&app, "k").unwrap(), None);
    assert_eq!(second.deletions(&app).len(), 1);
}

#[test]
fn while_the_bucket_is_gone_nothing_expires_that_could_come_back() {
    let world = World::in_memory();
    let (app, server) = (subject(APP), world.server("persist-1"));
    server.let_live(&app, "k", s(5));
    world.bucket.set_gone(true);
    server.pass(s(10));
    let found: Result<Option<String>, ErrorReply> = server.get(&app, "k");
    assert_eq!(found.unwrap().as_deref(), Some("v"), "that it is gone is not durable");
    world.bucket.set_gone(false);
    server.until("it is gone", || server.get(&app, "k").unwrap().is_none());
    assert_eq!(server.deletions(&app).len(), 1);
}
