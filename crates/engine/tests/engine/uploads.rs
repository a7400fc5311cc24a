//! Uploads: chunks of a value of any size, its blob in the bucket, its commit by a set, and reads in chunks.

use bytes::Bytes;
use dormouse_bucket::BucketOperation;
use dormouse_engine::api::{SubjectReply, SubjectRequest};
use dormouse_format::checksum::Crc64;
use dormouse_protocol::data::{
    ConfigureRequest, Expect, GetRequest, SetItem, SetOutcome, SetRequest, SetResult,
};
use dormouse_protocol::limits::INLINE_LIMIT_BYTES;
use dormouse_protocol::message::{Discard, SubjectConfig};
use dormouse_protocol::transfer::{
    GetChunkReply, GetChunkRequest, UploadBeginRequest, UploadCancelRequest, UploadChunkRequest,
    UploadFinishRequest, UploadPlace, UploadReply, UploadedValue,
};
use dormouse_protocol::{
    Change, ErrorCode, ErrorReply, Message, ProtocolVersion, RequestId, Rev, Seq, SessionId, Subject,
    UploadId, ValueDigest,
};
use ulid::Ulid;

use crate::support::{Server, World, files_in, set_request, set_result, subject};

const APP: &str = "app.films";
const V: ProtocolVersion = ProtocolVersion::CURRENT;

fn value(mark: u8, bytes: usize) -> Bytes {
    (0..bytes).map(|at| (at % 251) as u8 ^ mark).collect()
}

fn digest(bytes: &[u8]) -> ValueDigest {
    ValueDigest::new(Crc64::of(bytes).to_u64())
}

fn upload(number: u64) -> UploadId {
    UploadId::new(Ulid::from_parts(number, 7))
}

fn uploaded(number: u64, value: &[u8]) -> UploadedValue {
    UploadedValue { upload: upload(number), size: value.len() as u64, digest: digest(value) }
}

fn code<T: std::fmt::Debug>(answer: Result<T, ErrorReply>) -> ErrorCode {
    answer.unwrap_err().code
}

trait Uploads {
    fn upload(&self, app: &Subject, request: SubjectRequest) -> Result<UploadReply, ErrorReply>;
    fn begin(&self, app: &Subject, number: u64) -> Result<UploadReply, ErrorReply>;
    fn send_chunk(
        &self,
        app: &Subject,
        number: u64,
        offset: usize,
        bytes: Bytes,
    ) -> Result<UploadReply, ErrorReply>;
    fn finish(&self, app: &Subject, value: UploadedValue) -> Result<UploadReply, ErrorReply>;
    fn store(&self, app: &Subject, number: u64, value: &Bytes);
    fn commit(&self, app: &Subject, key: &str, value: UploadedValue) -> Result<SetResult, ErrorReply>;
    fn chunk(
        &self,
        app: &Subject,
        of: (Seq, Rev),
        offset: u64,
        length: u64,
    ) -> Result<GetChunkReply, ErrorReply>;
    fn message(&self, app: &Subject, key: &str) -> Option<Message>;
    fn read(&self, app: &Subject, key: &str) -> Vec<u8>;
}

impl Uploads for Server {
    fn upload(&self, app: &Subject, request: SubjectRequest) -> Result<UploadReply, ErrorReply> {
        match self.run(app, request)? {
            SubjectReply::Upload(reply) => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    fn begin(&self, app: &Subject, number: u64) -> Result<UploadReply, ErrorReply> {
        self.upload(
            app,
            SubjectRequest::UploadBegin(UploadBeginRequest {
                v: V,
                upload: upload(number),
                size: None,
                place: None,
            }),
        )
    }

    fn send_chunk(
        &self,
        app: &Subject,
        number: u64,
        offset: usize,
        bytes: Bytes,
    ) -> Result<UploadReply, ErrorReply> {
        let request = UploadChunkRequest { v: V, upload: upload(number), offset: offset as u64, bytes };
        self.upload(app, SubjectRequest::UploadChunk(request))
    }

    /// Repeats the finish until the value is in the bucket or the upload fails.
    fn finish(&self, app: &Subject, value: UploadedValue) -> Result<UploadReply, ErrorReply> {
        let UploadedValue { upload, size, digest } = value;
        let request = UploadFinishRequest { v: V, upload, size, digest };
        let mut end = None;
        self.until("the value is stored", || {
            end = match self.upload(app, SubjectRequest::UploadFinish(request)) {
                Ok(reply) if !reply.stored && reply.received == size => None,
                end => Some(end),
            };
            end.is_some()
        });
        end.unwrap()
    }

    /// Uploads a whole value into the bucket.
    fn store(&self, app: &Subject, number: u64, value: &Bytes) {
        self.begin(app, number).unwrap();
        for (at, piece) in value.chunks(300_000).enumerate() {
            self.send_chunk(app, number, at * 300_000, value.slice_ref(piece)).unwrap();
        }
        let reply = self.finish(app, uploaded(number, value)).unwrap();
        assert_eq!(reply, UploadReply { received: value.len() as u64, stored: true });
    }

    fn commit(&self, app: &Subject, key: &str, value: UploadedValue) -> Result<SetResult, ErrorReply> {
        set_result(self.run(app, commit(key, value)))
    }

    fn chunk(
        &self,
        app: &Subject,
        of: (Seq, Rev),
        offset: u64,
        length: u64,
    ) -> Result<GetChunkReply, ErrorReply> {
        let request = GetChunkRequest { v: V, seq: of.0, rev: of.1, offset, length };
        match self.run(app, SubjectRequest::GetChunk(request))? {
            SubjectReply::Chunk(reply) => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    fn message(&self, app: &Subject, key: &str) -> Option<Message> {
        match self.run(app, SubjectRequest::Get(GetRequest::key(key))).unwrap() {
            SubjectReply::Get(reply) => reply.messages.into_iter().next(),
            other => panic!("{other:?}"),
        }
    }

    /// The value of a key, read in chunks, with its digest verified.
    fn read(&self, app: &Subject, key: &str) -> Vec<u8> {
        let message = self.message(app, key).unwrap();
        let mut read = Vec::new();
        loop {
            let piece = self.chunk(app, (message.seq, message.rev), read.len() as u64, 200_000).unwrap();
            read.extend_from_slice(&piece.bytes);
            if read.len() as u64 >= piece.size {
                assert_eq!(digest(&read), piece.digest);
                assert_eq!(message.size, piece.size);
                return read;
            }
            assert!(!piece.bytes.is_empty());
        }
    }
}

fn item(key: &str, value: UploadedValue) -> SetItem {
    SetItem { key: Some(key.to_owned()), uploaded: Some(value), ..SetItem::default() }
}

fn commit(key: &str, value: UploadedValue) -> SubjectRequest {
    SubjectRequest::Set(SetRequest { sets: vec![item(key, value)], ..SetRequest::default() })
}

impl World {
    fn blobs_of(&self, app: &Subject) -> usize {
        let folder = self.folder.path().join("bucket/subjects").join(app.escaped()).join("blobs");
        std::fs::read_dir(folder).map_or(0, Iterator::count)
    }

    fn spooled(&self, name: &str) -> usize {
        files_in(&self.data_dir(name).join("uploads")).len()
    }
}

/// An upload is visible only after its commit, is readable in chunks, and survives a takeover.
#[test]
fn upload_is_visible_after_commit_and_read_in_chunks() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    let film = value(1, 20 << 20);
    server.store(&app, 1, &film);
    assert_eq!(server.message(&app, "film"), None, "an uncommitted upload is invisible");
    let written = server.commit(&app, "film", uploaded(1, &film)).unwrap();
    let announced = server.message(&app, "film").unwrap();
    assert_eq!((announced.value, announced.value_omitted, announced.size), (None, true, film.len() as u64));
    assert!(server.read(&app, "film") == film);
    let events = server.events.of(&app);
    let Some(Change::Set(set)) = events.iter().flat_map(|event| &event.changes).next() else { panic!() };
    assert_eq!((set.message.seq, set.message.value_omitted, set.message.size), (written.seq, true, 20 << 20));
    server.until("the spool file is deleted", || world.spooled("persist-1") == 0);
    assert_eq!(server.engine.metrics().upload_bytes, 0);
    // At the end a read is empty. Reads past the end, with another rev or of an unknown seq fail.
    let id = (written.seq, written.rev);
    assert_eq!(server.chunk(&app, id, 20 << 20, 10).unwrap().bytes, Bytes::new());
    assert_eq!(code(server.chunk(&app, id, (20 << 20) + 1, 10)), ErrorCode::BadRequest);
    assert_eq!(code(server.chunk(&app, (written.seq, Rev::new(99)), 0, 10)), ErrorCode::WrongLast);
    assert_eq!(code(server.chunk(&app, (Seq::new(99), written.rev), 0, 10)), ErrorCode::WrongLast);
    // The value survives a takeover.
    let log = server.kill();
    world.fleet.declare_dead(&log);
    let second = world.running_server("persist-2", |_| {});
    assert!(second.read(&app, "film") == film);
}

/// Clients can upload values of any size, also empty, and read them and inline values in chunks.
#[test]
fn upload_of_any_size_and_inline_value_read_in_chunks() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    for (number, length) in
        [0, 1, INLINE_LIMIT_BYTES, INLINE_LIMIT_BYTES + 1, 300_000, 600_000].into_iter().enumerate()
    {
        let (key, whole) = (format!("k{length}"), value(3, length));
        server.store(&app, number as u64, &whole);
        server.commit(&app, &key, uploaded(number as u64, &whole)).unwrap();
        assert!(server.read(&app, &key) == whole, "{length}");
        assert_eq!(
            server.message(&app, &key).unwrap().value,
            Some(whole),
            "a get returns it inline: {length}"
        );
    }
    server.set(&app, "inline", "a small value").unwrap();
    assert_eq!(server.read(&app, "inline"), b"a small value");
}

/// An upload completes with chunks that arrive in any order and more than once.
#[test]
fn upload_chunks_arrive_in_any_order_and_twice() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    let film = value(2, 1_000_000);
    server.begin(&app, 1).unwrap();
    let piece = |at: usize| {
        let request = UploadChunkRequest {
            v: V,
            upload: upload(1),
            offset: (at * 100_000) as u64,
            bytes: film.slice(at * 100_000..(at + 1) * 100_000),
        };
        server.submit(&app, SubjectRequest::UploadChunk(request))
    };
    let asked: Vec<_> = [3, 1, 2, 9, 3, 0, 5, 4, 4, 0, 8, 7, 6].into_iter().map(piece).collect();
    for answer in asked {
        let Ok(SubjectReply::Upload(reply)) = answer.wait(&server) else { panic!() };
        assert!(reply.received > 0);
    }
    assert_eq!(server.begin(&app, 1).unwrap().received, 1_000_000);
    server.finish(&app, uploaded(1, &film)).unwrap();
    server.commit(&app, "film", uploaded(1, &film)).unwrap();
    assert!(server.read(&app, "film") == film);
}

/// An upload with a wrong digest fails as `corrupt`, leaves no object, and can restart from its first byte.
#[test]
fn upload_with_wrong_digest_is_corrupt_and_deleted() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    let film = value(2, 500_000);
    server.begin(&app, 1).unwrap();
    server.send_chunk(&app, 1, 0, film.clone()).unwrap();
    let wrong = UploadedValue { digest: digest(b"something else"), ..uploaded(1, &film) };
    assert_eq!(code(server.finish(&app, wrong)), ErrorCode::Corrupt);
    assert_eq!(code(server.commit(&app, "film", wrong)), ErrorCode::UnknownUpload);
    assert_eq!(server.message(&app, "film"), None);
    server.until("the blob is deleted", || world.blobs_of(&app) == 0);
    // The upload can restart from its first byte.
    assert_eq!(server.begin(&app, 1).unwrap().received, 0);
    server.send_chunk(&app, 1, 0, film.clone()).unwrap();
    server.finish(&app, uploaded(1, &film)).unwrap();
    server.commit(&app, "film", uploaded(1, &film)).unwrap();
    assert!(server.read(&app, "film") == film);
}

/// The server rejects the commit of an unknown, incomplete or unstored upload, and of an upload to another subject.
#[test]
fn commit_of_incomplete_upload_is_rejected() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    let film = value(2, 500_000);
    assert_eq!(code(server.commit(&app, "film", uploaded(1, &film))), ErrorCode::UnknownUpload);
    assert_eq!(code(server.send_chunk(&app, 1, 0, film.clone())), ErrorCode::UnknownUpload);
    server.begin(&app, 1).unwrap();
    server.send_chunk(&app, 1, 0, film.slice(..100_000)).unwrap();
    let reply = server.finish(&app, uploaded(1, &film)).unwrap();
    assert_eq!(reply, UploadReply { received: 100_000, stored: false });
    assert_eq!(code(server.commit(&app, "film", uploaded(1, &film))), ErrorCode::UnknownUpload);
    // The upload does not exist for another subject.
    let other = subject("app.other");
    assert_eq!(code(server.send_chunk(&other, 1, 100_000, film.slice(100_000..))), ErrorCode::UnknownUpload);
    assert_eq!(code(server.commit(&other, "film", uploaded(1, &film))), ErrorCode::UnknownUpload);
    assert_eq!(server.message(&app, "film"), None);
}

/// A commit supports request ids, expectations and batches like any set, and each upload is committed at most once.
#[test]
fn commit_supports_set_options_and_uses_upload_once() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    let (one, two) = (value(1, 300_000), value(2, 300_000));
    server.store(&app, 1, &one);
    let id = RequestId { session: SessionId::new(Ulid::from_parts(1, 1)), counter: 1 };
    let set = |sets| SetRequest { request: Some(id), sets, ..SetRequest::default() };
    let first = SubjectRequest::Set(set(vec![item("k", uploaded(1, &one))]));
    let written = set_result(server.run(&app, first.clone())).unwrap();
    // A repeat of the request, after the upload is used.
    let repeated = set_result(server.run(&app, first)).unwrap();
    assert_eq!((repeated.seq, repeated.rev, repeated.duplicate), (written.seq, written.rev, true));
    // Another request cannot use the upload.
    assert_eq!(code(server.commit(&app, "other", uploaded(1, &one))), ErrorCode::UnknownUpload);
    // A commit rejected by its expectation keeps the upload for another attempt.
    server.store(&app, 2, &two);
    let absent = SetItem { expect: Some(Expect::Key(None)), ..item("k", uploaded(2, &two)) };
    let refused = SubjectRequest::Set(SetRequest { sets: vec![absent], ..SetRequest::default() });
    assert_eq!(code(set_result(server.run(&app, refused))), ErrorCode::KeyExists);
    let both = vec![item("a", uploaded(2, &two)), item("b", uploaded(2, &two))];
    let twice = SubjectRequest::Set(SetRequest { sets: both, ..SetRequest::default() });
    assert_eq!(code(server.run(&app, twice)), ErrorCode::BadRequest);
    // In one batch with an inline value.
    let plain = SetItem { key: Some("b".into()), value: Some("v".into()), ..SetItem::default() };
    let sets = vec![item("a", uploaded(2, &two)), plain];
    server
        .run(&app, SubjectRequest::Set(SetRequest { atomic: true, sets, ..SetRequest::default() }))
        .unwrap();
    assert!(server.read(&app, "a") == two && server.read(&app, "b") == b"v" && server.read(&app, "k") == one);
    assert_eq!(world.blobs_of(&app), 2);
}

/// A rejected commit keeps its upload for another attempt until the upload is idle for too long.
#[test]
fn rejected_commit_keeps_upload_until_idle_timeout() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    let (one, two) = (value(1, 300_000), value(2, 300_000));
    server.set(&app, "k", "v").unwrap();
    server.store(&app, 1, &one);
    server.store(&app, 2, &two);
    let absent =
        |number, value| SetItem { expect: Some(Expect::Key(None)), ..item("k", uploaded(number, value)) };
    let asked = |sets| server.run(&app, SubjectRequest::Set(SetRequest { sets, ..SetRequest::default() }));
    let Ok(SubjectReply::Set(reply)) = asked(vec![absent(1, &one), item("other", uploaded(2, &two))]) else {
        panic!()
    };
    // Each of several sets has its own outcome, and so has its upload.
    assert!(matches!(reply.results[..], [SetOutcome::Error(_), SetOutcome::Ok(_)]), "{reply:?}");
    server.until("the spool file of the second upload is deleted", || world.spooled("persist-1") == 1);
    assert_eq!(code(set_result(asked(vec![absent(1, &one)]))), ErrorCode::KeyExists);
    server.commit(&app, "k", uploaded(1, &one)).unwrap();
    assert!(server.read(&app, "k") == one && server.read(&app, "other") == two);
    // Without another attempt, the upload times out.
    server.store(&app, 3, &one);
    assert_eq!(code(set_result(asked(vec![absent(3, &one)]))), ErrorCode::KeyExists);
    assert_eq!((world.blobs_of(&app), world.spooled("persist-1")), (3, 1));
    server.advance(std::time::Duration::from_secs(31));
    server.until("spool file and blob are deleted", || {
        (world.blobs_of(&app), world.spooled("persist-1")) == (2, 0)
    });
}

/// An upload does not time out while its commit waits for another write or another value.
#[test]
fn upload_with_waiting_commit_does_not_time_out() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    let film = value(1, 300_000);
    server.store(&app, 1, &film);
    // The commit waits behind another write, and with a value of its own request.
    let held = world.bucket.hold_requests(BucketOperation::Create, "/blobs/");
    let first = server.submit(&app, set_request("first", &"x".repeat(300_000)));
    let other = SetItem { key: Some("other".into()), value: Some(value(2, 300_000)), ..SetItem::default() };
    let sets = vec![item("film", uploaded(1, &film)), other];
    let commit = server.submit(&app, SubjectRequest::Set(SetRequest { sets, ..SetRequest::default() }));
    server.until("the first blob upload starts", || held.reached() == 1);
    server.advance(std::time::Duration::from_secs(40));
    assert!(commit.try_reply().is_none());
    let second = world.bucket.hold_requests(BucketOperation::Create, "/blobs/");
    drop(held);
    set_result(first.wait(&server)).unwrap();
    server.until("the second blob upload starts", || second.reached() == 1);
    server.advance(std::time::Duration::from_secs(40));
    drop(second);
    set_result(commit.wait(&server)).unwrap();
    assert!(server.read(&app, "film") == film);
}

/// After a kill, an upload resumes from its received bytes, and the next claim deletes the unreferenced blob.
#[test]
fn upload_resumes_after_kill() {
    let world = World::on_disk();
    let app = subject(APP);
    let film = value(1, 3_000_000);
    let server = world.running_server("persist-1", |_| {});
    server.begin(&app, 1).unwrap();
    server.send_chunk(&app, 1, 0, film.slice(..1_000_000)).unwrap();
    server.send_chunk(&app, 1, 1_000_000, film.slice(1_000_000..2_000_000)).unwrap();
    server.kill();
    let server = world.running_server("persist-1", |_| {});
    assert_eq!(server.begin(&app, 1).unwrap().received, 2_000_000);
    server.send_chunk(&app, 1, 2_000_000, film.slice(2_000_000..)).unwrap();
    server.finish(&app, uploaded(1, &film)).unwrap();
    // Also after a kill between upload to the bucket and commit.
    server.kill();
    let server = world.running_server("persist-1", |_| {});
    assert_eq!(code(server.commit(&app, "film", uploaded(1, &film))), ErrorCode::UnknownUpload);
    server.finish(&app, uploaded(1, &film)).unwrap();
    server.commit(&app, "film", uploaded(1, &film)).unwrap();
    assert!(server.read(&app, "film") == film);
    // The next claim deletes the unreferenced blob of the killed process.
    server.until("only the committed blob remains", || world.blobs_of(&app) == 1);
}

/// A handover during an upload commits nothing; the upload restarts at the new owner and under each later term.
#[test]
fn handover_during_upload_restarts_upload_at_new_owner() {
    let world = World::on_disk();
    let app = subject(APP);
    let film = value(1, 1_000_000);
    let first = world.running_server("persist-1", |_| {});
    first.store(&app, 1, &film);
    first.hand_over(&app).unwrap();
    let second = world.running_server("persist-2", |_| {});
    assert_eq!(second.begin(&app, 1).unwrap().received, 0);
    assert_eq!(code(first.commit(&app, "film", uploaded(1, &film))), ErrorCode::NotOwner);
    assert_eq!(code(second.commit(&app, "film", uploaded(1, &film))), ErrorCode::UnknownUpload);
    assert_eq!(second.message(&app, "film"), None);
    second.store(&app, 1, &film);
    second.commit(&app, "film", uploaded(1, &film)).unwrap();
    assert!(second.read(&app, "film") == film);
    // Back at the first server, under a later term: the blob of the earlier term may be garbage, so the server stores
    // the value again.
    second.hand_over(&app).unwrap();
    assert_eq!(code(first.commit(&app, "again", uploaded(1, &film))), ErrorCode::UnknownUpload);
    first.finish(&app, uploaded(1, &film)).unwrap();
    first.commit(&app, "again", uploaded(1, &film)).unwrap();
    assert!(first.read(&app, "again") == film && first.read(&app, "film") == film);
}

/// A cancelled or idle upload leaves no spool file and no object.
#[test]
fn cancelled_or_idle_upload_leaves_no_file_or_object() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.store(&app, 1, &value(1, 500_000));
    server.store(&app, 2, &value(2, 500_000));
    server.begin(&app, 3).unwrap();
    server.send_chunk(&app, 3, 0, value(3, 100_000)).unwrap();
    assert_eq!((world.blobs_of(&app), world.spooled("persist-1")), (2, 3));
    server
        .upload(&app, SubjectRequest::UploadCancel(UploadCancelRequest { v: V, upload: upload(1) }))
        .unwrap();
    server.until("the first upload is deleted", || {
        (world.blobs_of(&app), world.spooled("persist-1")) == (1, 2)
    });
    // The other uploads become idle.
    server.advance(std::time::Duration::from_secs(31));
    server.until("all uploads are deleted", || (world.blobs_of(&app), world.spooled("persist-1")) == (0, 0));
    assert_eq!(code(server.commit(&app, "film", uploaded(2, &value(2, 500_000)))), ErrorCode::UnknownUpload);
    assert_eq!(server.engine.metrics().uploads, 0);
}

/// The upload quota bounds one subject with `overloaded`, also after a restart, while other subjects still upload.
#[test]
fn upload_quota_bounds_one_subject_and_serves_others() {
    let world = World::on_disk();
    let (app, other) = (subject(APP), subject("app.other"));
    let server = world.running_server("persist-1", |settings| {
        settings.max_uploads = 10;
        settings.max_upload_bytes = 2_000_000;
    });
    let begin = |app: &Subject, number, size| {
        let request = UploadBeginRequest { v: V, upload: upload(number), size: Some(size), place: None };
        server.upload(app, SubjectRequest::UploadBegin(request))
    };
    let begun: Vec<_> = (0..2_000).map(|number| begin(&app, number, 400_000)).collect();
    assert_eq!(begun.iter().filter(|begun| begun.is_ok()).count(), 4);
    for error in begun.into_iter().filter_map(Result::err) {
        assert_eq!((error.code, error.retry_after_ms.is_some()), (ErrorCode::Overloaded, true));
    }
    assert_eq!(code(begin(&other, 9_999, 1_000_001)), ErrorCode::TooLarge);
    assert_eq!(server.engine.metrics().upload_bytes, 800_000, "each upload reserves a tenth of the quota");
    server.store(&other, 1, &value(1, 450_000));
    server.commit(&other, "film", uploaded(1, &value(1, 450_000))).unwrap();
    server.send_chunk(&app, 0, 0, value(1, 400_000)).unwrap();
    assert_eq!(code(server.send_chunk(&app, 1, 0, value(1, 400_001))), ErrorCode::BadRequest);
    // One subject gets at most half of the quota.
    assert_eq!(code(server.send_chunk(&app, 1, 0, value(1, 400_000))), ErrorCode::Overloaded);
    server.set(&app, "k", "v").unwrap();
    server
        .upload(&app, SubjectRequest::UploadCancel(UploadCancelRequest { v: V, upload: upload(0) }))
        .unwrap();
    server.send_chunk(&app, 1, 0, value(1, 400_000)).unwrap();
    server.send_chunk(&app, 2, 0, value(1, 300_000)).unwrap();
    // The quota also applies to spooled uploads after a restart.
    server.kill();
    let server = world.running_server("persist-1", |settings| {
        settings.max_uploads = 10;
        settings.max_upload_bytes = 1_000_000;
    });
    let received = [1, 2].map(|number| server.begin(&app, number).unwrap().received);
    assert_eq!(received, [400_000, 0], "together they exceed the quota of one subject now");
    server.until("the other spool file is deleted", || world.spooled("persist-1") == 1);
}

/// The server rejects an upload over the limits of its subject before its bytes are in the bucket.
#[test]
fn upload_over_subject_limit_rejected_before_bucket() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    let configure = |config| {
        let request = ConfigureRequest { config, ..ConfigureRequest::default() };
        server.run(&app, SubjectRequest::Configure(request)).unwrap();
    };
    let begin = |number, size, place| {
        let request = UploadBeginRequest { v: V, upload: upload(number), size: Some(size), place };
        server.upload(&app, SubjectRequest::UploadBegin(request))
    };
    let under = |key: &str| Some(UploadPlace { key: Some(key.into()), seq: None });
    let limit_error = |answer: Result<UploadReply, ErrorReply>| {
        let error = answer.unwrap_err();
        (error.code, error.limit.unwrap())
    };
    let full = (ErrorCode::LimitExceeded, "max_bytes".to_owned());
    let (film, smaller) = (value(1, 500_000), value(2, 400_000));
    server.store(&app, 1, &film);
    server.commit(&app, "film", uploaded(1, &film)).unwrap();
    let new = Some(Discard::New);
    configure(SubjectConfig { max_bytes: Some(600_000), discard: new, ..SubjectConfig::default() });
    assert_eq!(limit_error(begin(2, 600_001, None)), full);
    assert_eq!(limit_error(begin(2, 400_000, under("other"))), full);
    assert_eq!(limit_error(begin(2, 400_000, Some(UploadPlace::default()))), full);
    // As a replacement of the first value it fits. Without a place the begin is accepted too.
    begin(2, 400_000, under("film")).unwrap();
    begin(3, 400_000, None).unwrap();
    let smallest = SubjectConfig { max_msg_size: Some(300_000), ..SubjectConfig::default() };
    let too_large = (ErrorCode::TooLarge, "max_msg_size".to_owned());
    server.send_chunk(&app, 2, 0, smaller.clone()).unwrap();
    configure(smallest.clone());
    let stored = world.blobs_of(&app);
    assert_eq!(limit_error(server.finish(&app, uploaded(2, &smaller))), too_large);
    assert_eq!(world.blobs_of(&app), stored, "the upload stores no blob");
    // Chunks are checked against the limits at the last begin of the client.
    assert_eq!(limit_error(server.begin(&app, 2)), too_large);
    server.begin(&app, 3).unwrap();
    assert_eq!(limit_error(server.send_chunk(&app, 3, 0, smaller.clone())), too_large);
    // The commit checks the limits again.
    configure(SubjectConfig::default());
    server.finish(&app, uploaded(2, &smaller)).unwrap();
    configure(smallest);
    assert_eq!(code(server.commit(&app, "film", uploaded(2, &smaller))), ErrorCode::TooLarge);
    assert!(server.read(&app, "film") == film);
}

/// While an uploaded value goes to the bucket, writes continue and a repeated finish reports that it is not stored.
#[test]
fn upload_to_bucket_does_not_block_writes() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    let film = value(1, 500_000);
    server.begin(&app, 1).unwrap();
    server.send_chunk(&app, 1, 0, film.clone()).unwrap();
    let held = world.bucket.hold_requests(BucketOperation::PutFile, "/blobs/");
    let UploadedValue { upload, size, digest } = uploaded(1, &film);
    let request = SubjectRequest::UploadFinish(UploadFinishRequest { v: V, upload, size, digest });
    assert!(!server.upload(&app, request.clone()).unwrap().stored);
    server.until("the blob upload starts", || held.reached() == 1);
    server.set(&app, "k", "v").unwrap();
    assert!(!server.upload(&app, request).unwrap().stored);
    drop(held);
    server.finish(&app, uploaded(1, &film)).unwrap();
    server.commit(&app, "film", uploaded(1, &film)).unwrap();
    assert!(server.read(&app, "film") == film);
}

/// A chunk read of a replaced message fails with `wrong_last` and never returns bytes of another message.
#[test]
fn chunk_read_of_replaced_message_is_wrong_last() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    let (one, two) = (value(1, 1_000_000), value(2, 1_000_000));
    server.store(&app, 1, &one);
    let first = server.commit(&app, "film", uploaded(1, &one)).unwrap();
    let id = (first.seq, first.rev);
    assert_eq!(server.chunk(&app, id, 0, 1_000).unwrap().bytes, one.slice(..1_000));
    server.store(&app, 2, &two);
    server.commit(&app, "film", uploaded(2, &two)).unwrap();
    assert_eq!(code(server.chunk(&app, id, 1_000, 1_000)), ErrorCode::WrongLast);
    // A message that is replaced in place keeps its seq and gets another rev.
    let second = server.message(&app, "film").unwrap();
    let in_place = SetItem {
        seq: Some(second.seq),
        key: Some("film".into()),
        value: Some("small".into()),
        ..SetItem::default()
    };
    server
        .run(&app, SubjectRequest::Set(SetRequest { sets: vec![in_place], ..SetRequest::default() }))
        .unwrap();
    assert_eq!(code(server.chunk(&app, (second.seq, second.rev), 0, 10)), ErrorCode::WrongLast);
    assert_eq!(server.read(&app, "film"), b"small");
}

/// A chunk read of a missing or truncated blob fails as `corrupt`; the size of the value stays readable.
#[test]
fn chunk_read_of_missing_or_short_blob_is_corrupt() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    let film = value(1, 1_000_000);
    server.store(&app, 1, &film);
    let written = server.commit(&app, "film", uploaded(1, &film)).unwrap();
    let id = (written.seq, written.rev);
    let folder = world.folder.path().join("bucket/subjects").join(app.escaped()).join("blobs");
    let object = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&object, &film[..999_999]).unwrap();
    assert_eq!(server.chunk(&app, id, 0, 100).unwrap().bytes, film.slice(..100));
    assert_eq!(code(server.chunk(&app, id, 999_900, 100)), ErrorCode::Corrupt);
    std::fs::remove_file(&object).unwrap();
    let error = server.chunk(&app, id, 0, 100).unwrap_err();
    assert_eq!(error.code, ErrorCode::Corrupt);
    assert!(error.object.unwrap().contains("/blobs/"));
    // A read of zero bytes still returns the size.
    assert_eq!(server.chunk(&app, id, 0, 0).unwrap().size, 1_000_000);
}
