//! Blobs: each is complete before an entry refers to it, and stays as long as an entry can refer to it.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bucket::BucketOperation;
use dormouse_engine::api::{SubjectReply, SubjectRequest, Submission, TenantId};
use dormouse_protocol::data::{
    ChangesRequest, ConfigureRequest, Expect, GetAllRequest, GetRequest, SetItem, SetOutcome, SetRequest,
    SetResult,
};
use dormouse_protocol::limits::INLINE_LIMIT_BYTES;
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Change, ErrorCode, ErrorReply, Level, Message, Subject};
use dormouse_testkit::bucket::FaultPlan;

use crate::support::{Server, World, subject};

const APP: &str = "app.orders";

/// The limit of a bus that allows large messages.
const MAX_REPLY_BYTES: usize = 8 * 1_024 * 1_024;

/// A value that occurs in no other file and does not compress.
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

fn set(key: &str, value: &Bytes) -> SubjectRequest {
    set_item(SetItem { key: Some(key.to_owned()), value: Some(value.clone()), ..SetItem::default() })
}

fn set_item(item: SetItem) -> SubjectRequest {
    SubjectRequest::Set(SetRequest { sets: vec![item], ..SetRequest::default() })
}

/// The replies to pending requests.
type Answers = mpsc::Receiver<Result<SubjectReply, ErrorReply>>;

trait LargeValues {
    fn begin(&self, app: &Subject, request: SubjectRequest) -> Answers;
    fn put(&self, app: &Subject, key: &str, value: &Bytes) -> Result<SetResult, ErrorReply>;
    fn message(&self, app: &Subject, key: &str) -> Result<Message, ErrorReply>;
    fn value_of(&self, app: &Subject, key: &str) -> Option<Bytes>;
}

impl LargeValues for Server {
    fn begin(&self, app: &Subject, request: SubjectRequest) -> Answers {
        let (sender, answers) = mpsc::channel();
        let respond = Box::new(move |answer| drop(sender.send(answer)));
        let _guard = self.runtime.enter();
        self.engine.submit(
            app,
            Submission {
                tenant: TenantId::SHARED,
                deadline: Submission::NO_DEADLINE,
                received: Duration::ZERO,
                request,
                max_reply_bytes: MAX_REPLY_BYTES,
                respond,
            },
        );
        answers
    }

    fn put(&self, app: &Subject, key: &str, value: &Bytes) -> Result<SetResult, ErrorReply> {
        written(self.begin(app, set(key, value)).recv().unwrap())
    }

    fn message(&self, app: &Subject, key: &str) -> Result<Message, ErrorReply> {
        got(self.begin(app, SubjectRequest::Get(GetRequest::key(key))).recv().unwrap())
    }

    fn value_of(&self, app: &Subject, key: &str) -> Option<Bytes> {
        let message = self.message(app, key).unwrap();
        assert!(!message.value_omitted);
        message.value
    }
}

fn written(answer: Result<SubjectReply, ErrorReply>) -> Result<SetResult, ErrorReply> {
    match answer? {
        SubjectReply::Set(mut reply) => match reply.results.remove(0) {
            SetOutcome::Ok(result) => Ok(result),
            SetOutcome::Error(error) => Err(error),
        },
        other => panic!("{other:?}"),
    }
}

fn got(answer: Result<SubjectReply, ErrorReply>) -> Result<Message, ErrorReply> {
    match answer? {
        SubjectReply::Get(mut reply) => Ok(reply.messages.remove(0)),
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

/// Large values survive kill, compaction and failover, and the bytes of each are in one blob and no other file.
#[test]
fn large_values_survive_kill_compaction_and_failover() {
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
    assert_eq!(world.blobs(&app).len(), 2, "a value at the limit stays in the log");
    server.kill();

    let server = world.running_server("persist-1", |_| {});
    all_there(&server);
    server.run(&app, SubjectRequest::Compact).unwrap();
    all_there(&server);
    let log = server.kill();

    world.fleet.declare_dead(&log);
    let server = world.running_server("persist-2", |_| {});
    all_there(&server);
    assert!(server.shutdown().unreleased.is_empty());
    let server = world.running_server("persist-3", |_| {});
    all_there(&server);

    for large in [&medium, &huge] {
        let files = containing(world.folder.path(), &large[..64]);
        assert_eq!(files.len(), 1, "{files:?}");
        assert!(files[0].starts_with(world.blob_folder(&app)));
        assert_eq!(
            std::fs::read(&files[0]).unwrap(),
            large[..],
            "the blob holds exactly the bytes of the value"
        );
    }
    assert!(containing(world.folder.path(), &small[..64]).len() > 1, "the search finds a value in the log");
}

/// The server acks a large value only after its log entry is in the bucket, at any level.
#[test]
fn large_value_ack_waits_for_bucket_at_any_level() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |settings| {
        settings.level = Level::Disk;
        settings.log.ship_interval = Duration::from_secs(3_600);
    });
    server.put(&app, "small", &value(1, 10)).unwrap();
    // From here on the lease is confirmed, and the configured level applies.
    server.message(&app, "small").unwrap();
    server.put(&app, "large", &large(2)).unwrap();
    let log = server.kill();
    // A next owner without the log entry deletes the blob. An entry that only the first server has would refer to no
    // blob.
    world.fleet.declare_dead(&log);
    let second = world.running_server("persist-2", |_| {});
    assert_eq!(second.value_of(&app, "large"), Some(large(2)));
}

/// Pages, change reads and events report a large value by its size; a single get returns it if it fits.
#[test]
fn large_value_is_announced_by_size() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    let written = server.put(&app, "a", &large(1)).unwrap();
    let announced = |message: &Message| {
        assert_eq!((message.seq, &message.value, message.value_omitted), (written.seq, &None, true));
        assert_eq!(message.size, large(1).len() as u64);
    };
    match server.begin(&app, SubjectRequest::GetAll(GetAllRequest::default())).recv().unwrap().unwrap() {
        SubjectReply::GetAll(reply) => announced(&reply.messages[0]),
        other => panic!("{other:?}"),
    }
    let keys = GetRequest { keys: Some(vec!["a".to_owned()]), ..GetRequest::default() };
    announced(&got(server.begin(&app, SubjectRequest::Get(keys)).recv().unwrap()).unwrap());
    let seqs = GetRequest { seqs: Some(vec![written.seq]), ..GetRequest::default() };
    announced(&got(server.begin(&app, SubjectRequest::Get(seqs)).recv().unwrap()).unwrap());
    match server.begin(&app, SubjectRequest::Changes(ChangesRequest::default())).recv().unwrap().unwrap() {
        SubjectReply::Changes(reply) => {
            let Some(Change::Set(set)) = reply.changes.first() else { panic!("{reply:?}") };
            announced(&set.message);
        }
        other => panic!("{other:?}"),
    }
    let events = server.events.of(&app);
    let Some(Change::Set(set)) = events.iter().flat_map(|event| &event.changes).next() else { panic!() };
    announced(&set.message);
    // Also if the value would not fit the reply.
    match server.run(&app, SubjectRequest::Get(GetRequest::seq(written.seq))).unwrap() {
        SubjectReply::Get(reply) => assert_eq!(reply.messages[0].value, Some(large(1))),
        other => panic!("{other:?}"),
    }
    let (sender, answer) = mpsc::channel();
    let respond = Box::new(move |answer| drop(sender.send(answer)));
    let request = SubjectRequest::Get(GetRequest::key("a"));
    let _guard = server.runtime.enter();
    server.engine.submit(
        &app,
        Submission {
            tenant: TenantId::SHARED,
            deadline: Submission::NO_DEADLINE,
            received: Duration::ZERO,
            request,
            max_reply_bytes: INLINE_LIMIT_BYTES,
            respond,
        },
    );
    announced(&got(answer.recv().unwrap()).unwrap());
}

/// During the transfer of a large value, reads continue and later writes of the subject keep their order.
#[test]
fn large_value_transfer_keeps_reads_and_write_order() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    server.put(&app, "a", &Bytes::from_static(b"1")).unwrap();
    let held = world.bucket.hold_requests(BucketOperation::Create, "/blobs/");
    let first = server.begin(&app, set("b", &large(1)));
    let second = server.begin(&app, set("c", &Bytes::from_static(b"2")));
    let third = server.begin(&app, set("b", &large(2)));
    server.until("the first blob upload starts", || held.reached() == 1);
    assert_eq!(server.value_of(&app, "a").as_deref(), Some(&b"1"[..]));
    assert_eq!(server.info(&app).count, 1);
    assert!([&first, &second, &third].iter().all(|answers| answers.try_recv().is_err()));
    drop(held);
    let seqs = [first, second, third].map(|answers| written(answers.recv().unwrap()).unwrap().seq.get());
    assert_eq!(seqs, [2, 3, 4]);
    assert_eq!(server.value_of(&app, "b"), Some(large(2)));

    // A slow read of one value does not block reads of others.
    let held = world.bucket.hold_requests(BucketOperation::Get, "/blobs/");
    let slow = server.begin(&app, SubjectRequest::Get(GetRequest::key("b")));
    server.until("the blob read starts", || held.reached() == 1);
    assert_eq!(server.value_of(&app, "a").as_deref(), Some(&b"1"[..]));
    server.put(&app, "a", &Bytes::from_static(b"3")).unwrap();
    assert!(slow.try_recv().is_err());
    drop(held);
    assert_eq!(got(slow.recv().unwrap()).unwrap().value, Some(large(2)));
}

/// A rejected or duplicate set uploads no blob, and a request of several sets uploads blobs only for the executed ones.
#[test]
fn rejected_or_duplicate_write_uploads_no_blob() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    server.put(&app, "a", &Bytes::from_static(b"1")).unwrap();
    let held = world.bucket.hold_requests(BucketOperation::Create, "/blobs/");
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
    // Of several sets, only the executed ones upload a blob.
    let sets = vec![item("", Some(Expect::Key(None))), item("", None)];
    server
        .begin(&app, SubjectRequest::Set(SetRequest { sets, ..SetRequest::default() }))
        .recv()
        .unwrap()
        .unwrap();
    assert_eq!(world.blobs(&app).len(), 2);
}

/// If the bucket loses replies, every acked large value is readable after a takeover.
#[test]
fn acked_large_value_is_readable_after_lost_replies() {
    let plan = FaultPlan {
        latency: Duration::from_millis(2),
        timeout: Duration::from_millis(5),
        late_by: Duration::from_millis(20),
        storm: 0,
        ..FaultPlan::frequent()
    };
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    server.put(&app, "first", &Bytes::from_static(b"1")).unwrap();
    world.bucket.set_plan(plan);
    let mut acknowledged = Vec::new();
    for n in 0..60 {
        if server.put(&app, &format!("key-{}", n % 20), &large(n)).is_ok() {
            acknowledged.retain(|(key, _)| *key != n % 20);
            acknowledged.push((n % 20, n));
        }
    }
    assert!(acknowledged.len() >= 10, "{acknowledged:?}");
    world.bucket.set_plan(FaultPlan::none());
    let log = server.kill();
    world.fleet.declare_dead(&log);
    let server = world.running_server("persist-2", |_| {});
    for (key, n) in acknowledged {
        assert_eq!(server.value_of(&app, &format!("key-{key}")), Some(large(n)), "key-{key}");
    }
}

/// If a kill leaves a blob without a log entry, the next owner deletes that blob.
#[test]
fn blob_without_entry_after_kill_is_collected_later() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    server.put(&app, "a", &large(1)).unwrap();
    let held = world.bucket.hold_answers(BucketOperation::Create, "/blobs/");
    let answer = server.begin(&app, set("b", &large(2)));
    server.until("the blob is uploaded and no entry refers to it", || held.reached() == 1);
    let log = server.kill();
    assert!(answer.try_recv().is_err());
    drop(held);
    assert_eq!(world.blobs(&app).len(), 2);

    world.fleet.declare_dead(&log);
    let server = world.running_server("persist-2", |_| {});
    assert_eq!(server.value_of(&app, "a"), Some(large(1)));
    assert_eq!(server.info(&app).count, 1);
    server.until("the orphaned blob is deleted", || world.blobs(&app).len() == 1);
    assert_eq!(server.value_of(&app, "a"), Some(large(1)));
}

/// If the log rejects a set as `overloaded` after its blob upload, the server deletes the blob at once.
#[test]
fn blob_of_overloaded_write_is_deleted_at_once() {
    let world = World::on_disk();
    let (app, other) = (subject(APP), subject("app.other"));
    let server = world.running_server("persist-1", |settings| settings.log.max_unshipped_bytes = 20_000);
    server.put(&app, "a", &Bytes::from_static(b"1")).unwrap();
    server.put(&other, "a", &Bytes::from_static(b"1")).unwrap();
    let held = world.bucket.hold_answers(BucketOperation::Create, "/blobs/");
    let write = server.begin(&app, set("b", &large(2)));
    server.until("the blob is uploaded", || held.reached() == 1);
    assert_eq!(world.blobs(&app).len(), 1);
    // The log is full: the entry does not fit.
    let shipping = world.bucket.hold_requests(BucketOperation::Create, "logs/");
    let first = server.begin(&other, set("b", &value(1, 30_000)));
    server.until("the log is full", || shipping.reached() == 1);
    drop(held);
    assert_eq!(written(write.recv().unwrap()).unwrap_err().code, ErrorCode::Overloaded);
    server.until("the blob is deleted", || world.blobs(&app).is_empty());
    drop(shipping);
    written(first.recv().unwrap()).unwrap();
}

/// The server keeps the blob of a replaced value until a base covers the replacement.
#[test]
fn replaced_blob_stays_until_base_covers_replacement() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    let config = SubjectConfig { level: Some(Level::Memory), ..SubjectConfig::default() };
    let configure = SubjectRequest::Configure(ConfigureRequest { config, ..ConfigureRequest::default() });
    server.run(&app, configure).unwrap();
    server.put(&app, "a", &large(1)).unwrap();
    server.flush(&app).unwrap();
    // A read with a barrier confirms the lease; before, every level is `bucket`.
    assert_eq!(server.value_of(&app, "a"), Some(large(1)));
    // During a compaction the value is replaced, and the replacement is only at this server yet.
    let base = [(BucketOperation::Create, ".delta"), (BucketOperation::PutFile, ".sqlite3")]
        .map(|(operation, part)| world.bucket.hold_requests(operation, part));
    let compacted = server.begin(&app, SubjectRequest::Compact);
    server.until("the upload of the base starts", || base.iter().any(|base| base.reached() == 1));
    let shipping = world.bucket.hold_requests(BucketOperation::Create, "logs/");
    // The replacement is small: a large value would wait for the bucket at any level.
    server.put(&app, "a", &value(2, 10)).unwrap();
    assert_eq!(server.value_of(&app, "a"), Some(value(2, 10)));
    let gets = world.bucket.hold_requests(BucketOperation::Get, "/blobs/");
    drop(base);
    compacted.recv().unwrap().unwrap();
    // The server is deleting unneeded objects; an unneeded blob would be deleted in the same batch.
    server
        .until("the older manifest is deleted", || world.objects_with_extension(&app, "manifest").len() == 1);
    server.advance(Duration::from_millis(100));
    drop(gets);
    let log = server.kill();
    drop(shipping);

    // The disk is lost with the server, and the replacement with the disk.
    std::fs::remove_dir_all(world.data_dir("persist-1")).unwrap();
    world.fleet.declare_dead(&log);
    let server = world.running_server("persist-2", |_| {});
    assert_eq!(server.value_of(&app, "a"), Some(large(1)));
    // When a base covers the replacement, the server deletes the replaced blob.
    server.put(&app, "a", &large(3)).unwrap();
    server.run(&app, SubjectRequest::Compact).unwrap();
    server.until("only the newest blob remains", || world.blobs(&app).len() == 1);
    assert_eq!(server.value_of(&app, "a"), Some(large(3)));
}

/// If a value is replaced and its blob is deleted during a get, the get returns the new value.
#[test]
fn get_of_replaced_and_deleted_blob_returns_new_value() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    server.put(&app, "a", &large(1)).unwrap();
    let old = world.blobs(&app).pop().unwrap();
    let held = world.bucket.hold_requests(BucketOperation::Get, "/blobs/");
    let slow = server.begin(&app, SubjectRequest::Get(GetRequest::key("a")));
    server.until("the blob read starts", || held.reached() == 1);
    server.put(&app, "a", &large(2)).unwrap();
    server.run(&app, SubjectRequest::Compact).unwrap();
    server.until("the old blob is deleted", || !old.exists());
    drop(held);
    assert_eq!(got(slow.recv().unwrap()).unwrap().value, Some(large(2)));
}

/// A get of a missing or damaged blob fails as `corrupt` with its name, and the message can be replaced.
#[test]
fn missing_or_damaged_blob_is_corrupt_and_named() {
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
    // Also without a lease, when each read waits for a barrier.
    server.authority.set_lease(None);
    named(&server.message(&app, "a").unwrap_err());
    // Everything else of the subject is as before, and the message can be replaced.
    assert_eq!(server.info(&app).count, 1);
    server.authority.set_lease(Some(2));
    server.put(&app, "a", &large(2)).unwrap();
    assert_eq!(server.value_of(&app, "a"), Some(large(2)));
}

/// A destroy deletes every object except the tombstone, and the next process finishes a deletion that a kill
/// interrupted.
#[test]
fn destroyed_subject_leaves_only_tombstone() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    for n in 0..30 {
        server.put(&app, &format!("key-{n}"), &large(n)).unwrap();
    }
    server.run(&app, SubjectRequest::Compact).unwrap();
    server.put(&app, "key-0", &large(100)).unwrap();
    server.destroy(&app).unwrap();
    let left = || {
        let objects = world.objects(&app).into_iter().filter(|path| path.is_file());
        (objects.count(), world.blobs(&app).len())
    };
    server.until("only the tombstone remains", || left() == (1, 0));

    // If a process ends before it has deleted every object, the next owner deletes the rest.
    for n in 0..30 {
        server.put(&app, &format!("key-{n}"), &large(n)).unwrap();
    }
    let held = world.bucket.hold_requests(BucketOperation::Delete, "/blobs/");
    server.destroy(&app).unwrap();
    server.until("the deletion starts", || held.reached() > 0);
    server.kill();
    drop(held);
    assert!(!world.blobs(&app).is_empty());
    let server = world.running_server("persist-1", |_| {});
    assert_eq!(server.info(&app).count, 0);
    server.until("every blob is deleted", || world.blobs(&app).is_empty());
}
