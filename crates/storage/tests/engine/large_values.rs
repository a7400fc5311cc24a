//! Values that are objects of their own: complete before anything refers to them, there as long as anything may.

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::data::{
    ChangesRequest, ConfigureRequest, Expect, GetAllRequest, GetRequest, SetItem, SetOutcome, SetRequest,
    SetResult,
};
use dormouse_protocol::limits::INLINE_LIMIT_BYTES;
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Change, ErrorCode, ErrorReply, Level, Message, Subject};
use dormouse_runtime::Env;
use dormouse_storage::api::{Reply, Request, Submission};
use dormouse_storage::bucket::faults::{FaultPlan, FaultyBucket};
use dormouse_storage::bucket::{Bucket, ObjectStoreBucket, Operation};

use crate::support::{Server, World, subject};

const APP: &str = "app.orders";

/// As a bus with large messages would say.
const MAX_REPLY_BYTES: usize = 8 * 1_024 * 1_024;

/// A value that nothing else contains, and that no compression could hide.
fn value(mark: u64, bytes: usize) -> Bytes {
    let mut state = mark.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut value = Vec::with_capacity(bytes);
    while value.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        value.extend_from_slice(&state.to_le_bytes());
    }
    value.truncate(bytes);
    value.into()
}

fn large(mark: u64) -> Bytes {
    value(mark, INLINE_LIMIT_BYTES + 1)
}

fn set(key: &str, value: &Bytes) -> Request {
    set_item(SetItem { key: Some(key.to_owned()), value: Some(value.clone()), ..SetItem::default() })
}

fn set_item(item: SetItem) -> Request {
    Request::Set(SetRequest { sets: vec![item], ..SetRequest::default() })
}

/// Answers of requests that are under way.
type Answers = mpsc::Receiver<Result<Reply, ErrorReply>>;

trait LargeValues {
    fn begin(&self, app: &Subject, request: Request) -> Answers;
    fn put(&self, app: &Subject, key: &str, value: &Bytes) -> Result<SetResult, ErrorReply>;
    fn message(&self, app: &Subject, key: &str) -> Result<Message, ErrorReply>;
    fn value_of(&self, app: &Subject, key: &str) -> Option<Bytes>;
}

impl LargeValues for Server {
    fn begin(&self, app: &Subject, request: Request) -> Answers {
        let (sender, answers) = mpsc::channel();
        let respond = Box::new(move |answer| drop(sender.send(answer)));
        let _guard = self.runtime.enter();
        self.engine.submit(app, Submission { request, max_reply_bytes: MAX_REPLY_BYTES, respond });
        answers
    }

    fn put(&self, app: &Subject, key: &str, value: &Bytes) -> Result<SetResult, ErrorReply> {
        written(self.begin(app, set(key, value)).recv().unwrap())
    }

    fn message(&self, app: &Subject, key: &str) -> Result<Message, ErrorReply> {
        got(self.begin(app, Request::Get(GetRequest::key(key))).recv().unwrap())
    }

    fn value_of(&self, app: &Subject, key: &str) -> Option<Bytes> {
        let message = self.message(app, key).unwrap();
        assert!(!message.value_omitted);
        message.value
    }
}

fn written(answer: Result<Reply, ErrorReply>) -> Result<SetResult, ErrorReply> {
    match answer? {
        Reply::Set(mut reply) => match reply.results.remove(0) {
            SetOutcome::Ok(result) => Ok(result),
            SetOutcome::Error(error) => Err(error),
        },
        other => panic!("{other:?}"),
    }
}

fn got(answer: Result<Reply, ErrorReply>) -> Result<Message, ErrorReply> {
    match answer? {
        Reply::Get(mut reply) => Ok(reply.messages.remove(0)),
        other => panic!("{other:?}"),
    }
}

impl World {
    /// The objects of the subject's large values.
    fn blobs(&self, app: &Subject) -> Vec<PathBuf> {
        match std::fs::read_dir(self.blob_folder(app)) {
            Ok(folder) => folder.map(|entry| entry.unwrap().path()).collect(),
            Err(_) => Vec::new(),
        }
    }

    fn blob_folder(&self, app: &Subject) -> PathBuf {
        self.folder.path().join("bucket/subjects").join(app.escaped()).join("blobs")
    }
}

/// The files below `folder` that contain `needle`.
fn containing(folder: &Path, needle: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(containing(&path, needle));
        } else if std::fs::read(&path).unwrap().windows(needle.len()).any(|window| window == needle) {
            found.push(path);
        }
    }
    found
}

#[test]
fn large_values_come_back_after_kill_compaction_and_failover_and_lie_in_one_place_only() {
    let world = World::on_disk();
    let app = subject(APP);
    let (small, medium, huge) = (value(1, INLINE_LIMIT_BYTES), value(2, 300 * 1_024), value(3, 5 << 20));
    let server = world.running_server("persist-1", |_| {});
    server.put(&app, "small", &small).unwrap();
    server.put(&app, "medium", &medium).unwrap();
    server.put(&app, "huge", &huge).unwrap();
    let all_there = |server: &Server| {
        assert_eq!(server.value_of(&app, "small"), Some(small.clone()));
        assert_eq!(server.value_of(&app, "medium"), Some(medium.clone()));
        assert_eq!(server.value_of(&app, "huge"), Some(huge.clone()));
    };
    all_there(&server);
    assert_eq!(world.blobs(&app).len(), 2, "what is at the limit stays in the log");
    server.kill();

    let server = world.running_server("persist-1", |_| {});
    all_there(&server);
    server.run(&app, Request::Compact).unwrap();
    all_there(&server);
    let log = server.kill();

    world.fleet.declare_dead(&log);
    let server = world.running_server("persist-2", |_| {});
    all_there(&server);
    assert!(server.shutdown().unreleased.is_empty());
    let server = world.running_server("persist-3", |_| {});
    all_there(&server);

    for large in [&medium, &huge] {
        let places = containing(world.folder.path(), &large[..64]);
        assert_eq!(places.len(), 1, "{places:?}");
        assert!(places[0].starts_with(world.blob_folder(&app)));
        assert_eq!(std::fs::read(&places[0]).unwrap(), large[..], "its bytes and nothing else");
    }
    assert!(containing(world.folder.path(), &small[..64]).len() > 1, "the search finds what is there");
}

#[test]
fn a_large_value_is_acknowledged_once_its_record_is_in_the_bucket_whatever_the_level() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |settings| {
        settings.level = Level::Disk;
        settings.log.ship_interval = Duration::from_secs(3_600);
    });
    server.put(&app, "small", &value(1, 10)).unwrap();
    // From here on the lease is trusted, and the level is what it says.
    server.message(&app, "small").unwrap();
    server.put(&app, "large", &large(2)).unwrap();
    let log = server.kill();
    // Who goes on without the record deletes the value: what the first one kept of it would lead nowhere.
    world.fleet.declare_dead(&log);
    let second = world.running_server("persist-2", |_| {});
    assert_eq!(second.value_of(&app, "large"), Some(large(2)));
}

#[test]
fn pages_changes_and_events_announce_a_large_value_by_its_size() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    let written = server.put(&app, "a", &large(1)).unwrap();
    let announced = |message: &Message| {
        assert_eq!((message.seq, &message.value, message.value_omitted), (written.seq, &None, true));
        assert_eq!(message.size, large(1).len() as u64);
    };
    match server.begin(&app, Request::GetAll(GetAllRequest::default())).recv().unwrap().unwrap() {
        Reply::GetAll(reply) => announced(&reply.messages[0]),
        other => panic!("{other:?}"),
    }
    let keys = GetRequest { keys: Some(vec!["a".to_owned()]), ..GetRequest::default() };
    announced(&got(server.begin(&app, Request::Get(keys)).recv().unwrap()).unwrap());
    let seqs = GetRequest { seqs: Some(vec![written.seq]), ..GetRequest::default() };
    announced(&got(server.begin(&app, Request::Get(seqs)).recv().unwrap()).unwrap());
    match server.begin(&app, Request::Changes(ChangesRequest::default())).recv().unwrap().unwrap() {
        Reply::Changes(reply) => {
            let Some(Change::Set(set)) = reply.changes.first() else { panic!("{reply:?}") };
            announced(&set.message);
        }
        other => panic!("{other:?}"),
    }
    let events = server.events.of(&app);
    let Some(Change::Set(set)) = events.iter().flat_map(|event| &event.changes).next() else { panic!() };
    announced(&set.message);
    // Also where the value would not fit the one answer.
    match server.run(&app, Request::Get(GetRequest::seq(written.seq))).unwrap() {
        Reply::Get(reply) => assert_eq!(reply.messages[0].value, Some(large(1))),
        other => panic!("{other:?}"),
    }
    let (sender, answer) = mpsc::channel();
    let respond = Box::new(move |answer| drop(sender.send(answer)));
    let request = Request::Get(GetRequest::key("a"));
    let _guard = server.runtime.enter();
    server.engine.submit(&app, Submission { request, max_reply_bytes: INLINE_LIMIT_BYTES, respond });
    announced(&got(answer.recv().unwrap()).unwrap());
}

#[test]
fn while_a_value_is_on_its_way_reads_go_on_and_later_writes_keep_their_order() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    server.put(&app, "a", &Bytes::from_static(b"1")).unwrap();
    let held = world.bucket.hold(Operation::Create, "/blobs/", false);
    let first = server.begin(&app, set("b", &large(1)));
    let second = server.begin(&app, set("c", &Bytes::from_static(b"2")));
    let third = server.begin(&app, set("b", &large(2)));
    server.until("the first is on its way", || held.reached() == 1);
    assert_eq!(server.value_of(&app, "a").as_deref(), Some(&b"1"[..]));
    assert_eq!(server.info(&app).count, 1);
    assert!([&first, &second, &third].iter().all(|answers| answers.try_recv().is_err()));
    drop(held);
    let seqs = [first, second, third].map(|answers| written(answers.recv().unwrap()).unwrap().seq.get());
    assert_eq!(seqs, [2, 3, 4]);
    assert_eq!(server.value_of(&app, "b"), Some(large(2)));

    // And a slow value holds up nobody who reads another.
    let held = world.bucket.hold(Operation::Get, "/blobs/", false);
    let slow = server.begin(&app, Request::Get(GetRequest::key("b")));
    server.until("it is being read", || held.reached() == 1);
    assert_eq!(server.value_of(&app, "a").as_deref(), Some(&b"1"[..]));
    server.put(&app, "a", &Bytes::from_static(b"3")).unwrap();
    assert!(slow.try_recv().is_err());
    drop(held);
    assert_eq!(got(slow.recv().unwrap()).unwrap().value, Some(large(2)));
}

#[test]
fn a_write_that_is_refused_uploads_nothing() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    server.put(&app, "a", &Bytes::from_static(b"1")).unwrap();
    let held = world.bucket.hold(Operation::Create, "/blobs/", false);
    let item = |msg_id: &str, expect| SetItem {
        key: Some("a".to_owned()),
        value: Some(large(1)),
        msg_id: (!msg_id.is_empty()).then(|| msg_id.to_owned()),
        expect,
        ..SetItem::default()
    };
    let refused = server.begin(&app, set_item(item("", Some(Expect::Key(None))))).recv().unwrap();
    assert_eq!(written(refused).unwrap_err().code, ErrorCode::KeyExists);
    assert_eq!(held.reached(), 0);
    drop(held);
    let first = written(server.begin(&app, set_item(item("once", None))).recv().unwrap()).unwrap();
    let again = written(server.begin(&app, set_item(item("once", None))).recv().unwrap()).unwrap();
    assert_eq!((again.seq, again.duplicate), (first.seq, true));
    assert_eq!(world.blobs(&app).len(), 1);
    // Of several sets, only those that are carried out.
    let sets = vec![item("", Some(Expect::Key(None))), item("", None)];
    server.begin(&app, Request::Set(SetRequest { sets, ..SetRequest::default() })).recv().unwrap().unwrap();
    assert_eq!(world.blobs(&app).len(), 2);
}

#[test]
fn nothing_is_acknowledged_without_its_value_when_the_bucket_loses_answers() {
    let store = ObjectStoreBucket::in_memory(Env::system());
    let plan = FaultPlan {
        latency: Duration::from_millis(2),
        patience: Duration::from_millis(5),
        late_by: Duration::from_millis(20),
        storm: 0,
        ..FaultPlan::rough()
    };
    let faulty = Arc::new(FaultyBucket::new(Arc::new(store), 7, FaultPlan::calm(), Env::system()));
    let world = World::over(Arc::clone(&faulty) as Arc<dyn Bucket>);
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    server.put(&app, "first", &Bytes::from_static(b"1")).unwrap();
    faulty.set_plan(plan);
    let mut acknowledged = Vec::new();
    for n in 0..60 {
        if server.put(&app, &format!("key-{}", n % 20), &large(n)).is_ok() {
            acknowledged.retain(|(key, _)| *key != n % 20);
            acknowledged.push((n % 20, n));
        }
    }
    assert!(acknowledged.len() >= 10, "{acknowledged:?}");
    faulty.set_plan(FaultPlan::calm());
    let log = server.kill();
    world.fleet.declare_dead(&log);
    let server = world.running_server("persist-2", |_| {});
    for (key, n) in acknowledged {
        assert_eq!(server.value_of(&app, &format!("key-{key}")), Some(large(n)), "key-{key}");
    }
}

#[test]
fn what_a_crash_leaves_between_value_and_record_goes_in_a_later_term() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    server.put(&app, "a", &large(1)).unwrap();
    let held = world.bucket.hold(Operation::Create, "/blobs/", true);
    let answer = server.begin(&app, set("b", &large(2)));
    server.until("it is written and not yet referred to", || held.reached() == 1);
    let log = server.kill();
    assert!(answer.try_recv().is_err());
    drop(held);
    assert_eq!(world.blobs(&app).len(), 2);

    world.fleet.declare_dead(&log);
    let server = world.running_server("persist-2", |_| {});
    assert_eq!(server.value_of(&app, "a"), Some(large(1)));
    assert_eq!(server.info(&app).count, 1);
    server.until("the orphan is gone", || world.blobs(&app).len() == 1);
    assert_eq!(server.value_of(&app, "a"), Some(large(1)));
}

#[test]
fn what_was_written_for_a_write_that_is_turned_away_goes_at_once() {
    let world = World::on_disk();
    let (app, other) = (subject(APP), subject("app.other"));
    let server = world.running_server("persist-1", |settings| settings.log.max_unshipped_bytes = 20_000);
    server.put(&app, "a", &Bytes::from_static(b"1")).unwrap();
    server.put(&other, "a", &Bytes::from_static(b"1")).unwrap();
    let held = world.bucket.hold(Operation::Create, "/blobs/", true);
    let write = server.begin(&app, set("b", &large(2)));
    server.until("its value is written", || held.reached() == 1);
    assert_eq!(world.blobs(&app).len(), 1);
    // The log takes no more: the record finds no room.
    let shipping = world.bucket.hold(Operation::Create, "logs/", false);
    let first = server.begin(&other, set("b", &value(1, 30_000)));
    server.until("the log is full", || shipping.reached() == 1);
    drop(held);
    assert_eq!(written(write.recv().unwrap()).unwrap_err().code, ErrorCode::Overloaded);
    server.until("its value is gone", || world.blobs(&app).is_empty());
    drop(shipping);
    written(first.recv().unwrap()).unwrap();
}

#[test]
fn a_replaced_value_stays_until_the_base_covers_its_replacement() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    let config = SubjectConfig { level: Some(Level::Memory), ..SubjectConfig::default() };
    let configure = Request::Configure(ConfigureRequest { config, ..ConfigureRequest::default() });
    server.run(&app, configure).unwrap();
    server.put(&app, "a", &large(1)).unwrap();
    server.flush(&app).unwrap();
    // A lease is trusted once a read has waited for a barrier; before, every level is `bucket`.
    assert_eq!(server.value_of(&app, "a"), Some(large(1)));
    // A compaction is under way, and while it is, the value is replaced: here, and nowhere else yet.
    let base = [(Operation::Create, ".delta"), (Operation::PutFile, ".sqlite3")]
        .map(|(operation, part)| world.bucket.hold(operation, part, false));
    let compacted = server.begin(&app, Request::Compact);
    server.until("the base is on its way", || base.iter().any(|base| base.reached() == 1));
    let shipping = world.bucket.hold(Operation::Create, "logs/", false);
    // By a small one: a large one would wait for the bucket whatever the level.
    server.put(&app, "a", &value(2, 10)).unwrap();
    assert_eq!(server.value_of(&app, "a"), Some(value(2, 10)));
    let gets = world.bucket.hold(Operation::Get, "/blobs/", false);
    drop(base);
    compacted.recv().unwrap().unwrap();
    // What may be deleted is being deleted; a value would go in the same batch.
    server.until("the older manifest is gone", || world.objects_like(&app, "manifest").len() == 1);
    server.pass(Duration::from_millis(100));
    drop(gets);
    let log = server.kill();
    drop(shipping);

    // The disk goes with the server, and the replacement with it.
    std::fs::remove_dir_all(world.data_dir("persist-1")).unwrap();
    world.fleet.declare_dead(&log);
    let server = world.running_server("persist-2", |_| {});
    assert_eq!(server.value_of(&app, "a"), Some(large(1)));
    // Covered by a base, the replaced one goes.
    server.put(&app, "a", &large(3)).unwrap();
    server.run(&app, Request::Compact).unwrap();
    server.until("only the newest is left", || world.blobs(&app).len() == 1);
    assert_eq!(server.value_of(&app, "a"), Some(large(3)));
}

#[test]
fn a_get_whose_value_was_replaced_and_collected_meanwhile_is_answered() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    server.put(&app, "a", &large(1)).unwrap();
    let old = world.blobs(&app).pop().unwrap();
    let held = world.bucket.hold(Operation::Get, "/blobs/", false);
    let slow = server.begin(&app, Request::Get(GetRequest::key("a")));
    server.until("its value is being read", || held.reached() == 1);
    server.put(&app, "a", &large(2)).unwrap();
    server.run(&app, Request::Compact).unwrap();
    server.until("the old value is gone", || !old.exists());
    drop(held);
    assert_eq!(got(slow.recv().unwrap()).unwrap().value, Some(large(2)));
}

#[test]
fn a_value_that_is_missing_or_damaged_is_corrupt_and_named() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    server.put(&app, "a", &large(1)).unwrap();
    let path = world.blobs(&app).pop().unwrap();
    let named = |error: &ErrorReply| {
        assert_eq!(error.code, ErrorCode::Corrupt);
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(error.object.as_ref().unwrap().ends_with(name), "{error:?}");
    };
    let mut damaged = large(1).to_vec();
    damaged[1_000] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    named(&server.message(&app, "a").unwrap_err());
    std::fs::write(&path, &large(1)[1..]).unwrap();
    named(&server.message(&app, "a").unwrap_err());
    std::fs::remove_file(&path).unwrap();
    named(&server.message(&app, "a").unwrap_err());
    // Also without a lease, when each look waits for a barrier.
    server.authority.set_lease(None);
    named(&server.message(&app, "a").unwrap_err());
    // Everything else of the subject is as before, and the message can be replaced.
    assert_eq!(server.info(&app).count, 1);
    server.authority.set_lease(Some(2));
    server.put(&app, "a", &large(2)).unwrap();
    assert_eq!(server.value_of(&app, "a"), Some(large(2)));
}

#[test]
fn a_destroyed_subject_leaves_its_tombstone_and_nothing_else() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    for n in 0..30 {
        server.put(&app, &format!("key-{n}"), &large(n)).unwrap();
    }
    server.run(&app, Request::Compact).unwrap();
    server.put(&app, "key-0", &large(100)).unwrap();
    server.destroy(&app).unwrap();
    let left = || {
        let objects = world.objects(&app).into_iter().filter(|path| path.is_file());
        (objects.count(), world.blobs(&app).len())
    };
    server.until("the tombstone is alone", || left() == (1, 0));

    // A process that ends before it has deleted everything leaves it to whoever comes next.
    for n in 0..30 {
        server.put(&app, &format!("key-{n}"), &large(n)).unwrap();
    }
    let held = world.bucket.hold(Operation::Delete, "/blobs/", false);
    server.destroy(&app).unwrap();
    server.until("deletion has begun", || held.reached() > 0);
    server.kill();
    drop(held);
    assert!(!world.blobs(&app).is_empty());
    let server = world.running_server("persist-1", |_| {});
    assert_eq!(server.info(&app).count, 0);
    server.until("nothing of it is left", || world.blobs(&app).is_empty());
}
