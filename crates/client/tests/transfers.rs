//! Uploads and downloads of values of any size, with a server that loses, repeats and delays requests and
//! replies.

mod support;

use std::collections::BTreeMap;
use std::io::{self, Cursor};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use dormouse_client::{
    Error, ErrorCode, ErrorReply, Executed, Kv, MAX_VALUE_IN_MEMORY_BYTES, Message, NewMessage, ValueSource,
};
use dormouse_protocol::data::SetRequest;
use dormouse_protocol::transfer::{
    GetChunkReply, GetChunkRequest, UploadBeginRequest, UploadCancelRequest, UploadChunkRequest,
    UploadFinishRequest, UploadReply, UploadedValue,
};
use dormouse_protocol::{Op, Seq, UploadId, ValueDigest, decode};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use support::{CannedReply, Fleet, at, done, found, message, reply};

const MAX_PAYLOAD: usize = 64 * 1_024;

fn value(bytes: usize) -> Bytes {
    (0..bytes).map(|at| (at % 251) as u8).collect()
}

fn digest(bytes: &[u8]) -> ValueDigest {
    ValueDigest::new(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes))
}

/// The uploads of a server, and the committed values.
#[derive(Default)]
struct Spool {
    uploads: BTreeMap<UploadId, Vec<u8>>,
    committed: Vec<(Bytes, UploadedValue)>,
    cancelled: Vec<UploadId>,
    finishes: usize,
}

impl Spool {
    /// Replies like a server that takes chunks in order only.
    fn answer(&mut self, op: Op, payload: &[u8]) -> CannedReply {
        let unknown = || CannedReply::Error(ErrorReply::unknown_upload("gone"));
        let far = |upload: &Vec<u8>, stored| UploadReply { received: upload.len() as u64, stored };
        match op {
            Op::UploadBegin => {
                let request: UploadBeginRequest = decode(payload).unwrap();
                reply(&far(self.uploads.entry(request.upload).or_default(), false))
            }
            Op::UploadChunk => {
                let request: UploadChunkRequest = decode(payload).unwrap();
                let Some(upload) = self.uploads.get_mut(&request.upload) else { return unknown() };
                match upload.len() as u64 {
                    // A real server would wait for the missing chunk; this one lets the client send again.
                    here if request.offset > here => return CannedReply::Silence,
                    here if request.offset == here => upload.extend_from_slice(&request.bytes),
                    _ => {}
                }
                reply(&far(upload, false))
            }
            Op::UploadFinish => {
                let UploadFinishRequest { upload, size, digest: claimed, .. } = decode(payload).unwrap();
                let Some(bytes) = self.uploads.get(&upload) else { return unknown() };
                if bytes.len() as u64 == size && digest(bytes) != claimed {
                    return CannedReply::Error(ErrorReply::corrupt("upload", "digest mismatch"));
                }
                reply(&far(bytes, bytes.len() as u64 == size))
            }
            Op::UploadCommit => {
                let request: SetRequest = decode(payload).unwrap();
                let uploaded = request.sets[0].uploaded.unwrap();
                let Some(bytes) = self.uploads.remove(&uploaded.upload) else { return unknown() };
                self.committed.push((bytes.into(), uploaded));
                done(payload)
            }
            Op::UploadCancel => {
                let request: UploadCancelRequest = decode(payload).unwrap();
                self.uploads.remove(&request.upload);
                self.cancelled.push(request.upload);
                reply(&UploadReply::default())
            }
            Op::Set => done(payload),
            other => panic!("{other}"),
        }
    }
}

struct World {
    fleet: Fleet,
    spool: Arc<Mutex<Spool>>,
    kv: Kv,
}

impl World {
    /// `trouble` may reply instead of the server. It gets the number of the request, from 0 on.
    async fn new(
        mut trouble: impl FnMut(&mut Spool, Op, usize) -> Option<CannedReply> + Send + 'static,
    ) -> Self {
        let fleet = Fleet::new();
        fleet.broker.set_max_payload(MAX_PAYLOAD);
        fleet.coordinator(|_| at("a")).await;
        let spool = Arc::new(Mutex::new(Spool::default()));
        let served = Arc::clone(&spool);
        fleet
            .server("a", move |op, payload, asked| {
                let mut spool = served.lock().unwrap();
                trouble(&mut spool, op, asked).unwrap_or_else(|| spool.answer(op, payload))
            })
            .await;
        let kv = fleet.client().await.kv("app.x").unwrap();
        Self { fleet, spool, kv }
    }

    fn committed(&self) -> Vec<Bytes> {
        self.spool.lock().unwrap().committed.iter().map(|(bytes, _)| bytes.clone()).collect()
    }
}

/// Values of all lengths around the chunk boundaries arrive complete.
#[tokio::test(start_paused = true)]
async fn upload_near_chunk_boundary_stores_whole_value() {
    let world = World::new(|_, _, _| None).await;
    let chunk = MAX_PAYLOAD - 8 * 1_024;
    for length in [0, 1, chunk - 500, chunk - 1, chunk, chunk + 1, 2 * chunk - 1, 2 * chunk, 2 * chunk + 1] {
        let before = world.committed().len();
        world.kv.put_reader("k", Cursor::new(value(length))).await.unwrap();
        let sent = match world.committed().get(before) {
            Some(bytes) => bytes.clone(),
            // A value that fits in a message is sent in one request.
            None => {
                let sets = world.fleet.arrivals.payloads("a set");
                let request: SetRequest = decode(sets.last().unwrap()).unwrap();
                request.sets[0].value.clone().unwrap()
            }
        };
        assert_eq!(sent, value(length), "{length}");
    }
    assert!(world.spool.lock().unwrap().uploads.is_empty());
}

/// An upload commit carries the request id, key, headers, expectation, size and digest.
#[tokio::test(start_paused = true)]
async fn upload_commit_carries_fields_of_set() {
    let world = World::new(|_, _, _| None).await;
    let message = NewMessage::null().header("type", "film").expect_key(None);
    world.kv.put_reader_with("k", message, Cursor::new(value(200_000))).await.unwrap();
    let commits = world.fleet.arrivals.payloads("a upload_commit");
    let request: SetRequest = decode(&commits[0]).unwrap();
    let item = &request.sets[0];
    assert!(request.request.is_some() && item.value.is_none() && item.expect.is_some());
    assert_eq!((item.key.as_deref(), item.headers.0.len()), (Some("k"), 1));
    let uploaded = item.uploaded.unwrap();
    assert_eq!((uploaded.size, uploaded.digest), (200_000, digest(&value(200_000))));
}

/// The begin request of an upload names the key and the seq of the value.
#[tokio::test(start_paused = true)]
async fn upload_begin_names_key_and_seq() {
    let world = World::new(|_, _, _| None).await;
    world.kv.put_reader("k", Cursor::new(value(200_000))).await.unwrap();
    let at = NewMessage::null().seq(Seq::new(7));
    world.kv.put_reader_with("", at, Cursor::new(value(200_000))).await.unwrap();
    let begins = world.fleet.arrivals.payloads("a upload_begin");
    let places = begins.iter().map(|begin| decode::<UploadBeginRequest>(begin).unwrap().place.unwrap());
    let places: Vec<_> = places.map(|place| (place.key, place.seq)).collect();
    assert_eq!(places, [(Some("k".to_owned()), None), (Some(String::new()), Some(Seq::new(7)))]);
}

/// A put, also in `put_many`, uploads a value that does not fit into one request.
#[tokio::test(start_paused = true)]
async fn put_of_large_value_uses_upload() {
    let world = World::new(|_, _, _| None).await;
    world.kv.put("k", value(500_000)).await.unwrap();
    let results = world.kv.put_many([("a", value(10)), ("b", value(300_000)), ("c", value(10))]).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(world.committed(), [value(500_000), value(300_000)]);
}

/// The client resends an upload chunk if the chunk is lost or its reply is late.
#[tokio::test(start_paused = true)]
async fn upload_chunk_with_lost_request_or_reply_is_resent() {
    let mut chunks = 0;
    let world = World::new(move |_, op, _| {
        chunks += usize::from(op == Op::UploadChunk);
        // One request is lost.
        (op == Op::UploadChunk && chunks == 3).then_some(CannedReply::Silence)
    })
    .await;
    world.kv.put_reader("k", Cursor::new(value(1_000_000))).await.unwrap();
    assert_eq!(world.committed(), [value(1_000_000)]);

    let mut chunks = 0;
    let world = World::new(move |spool, op, _| {
        chunks += usize::from(op == Op::UploadChunk);
        // This reply comes after the attempt has ended, so the client sends its chunk again.
        if op != Op::UploadChunk || chunks != 3 {
            return None;
        }
        let bytes = spool.uploads.values_mut().next().unwrap();
        let received = bytes.len() as u64;
        Some(CannedReply::Late(
            Duration::from_secs(3),
            Box::new(reply(&UploadReply { received, stored: false })),
        ))
    })
    .await;
    world.kv.put_reader("k", Cursor::new(value(1_000_000))).await.unwrap();
    assert_eq!(world.committed(), [value(1_000_000)]);
}

/// Loses every upload once, in the middle.
fn lose_uploads_once() -> impl FnMut(&mut Spool, Op, usize) -> Option<CannedReply> + Send + 'static {
    let mut chunks = 0;
    move |spool, op, _| {
        chunks += usize::from(op == Op::UploadChunk);
        if op == Op::UploadChunk && chunks == 200 {
            spool.uploads.clear();
        }
        None
    }
}

/// If the server loses an upload, the client restarts it from the start position of a seekable source.
#[tokio::test(start_paused = true)]
async fn upload_from_seekable_source_restarts_after_server_loss() {
    let world = World::new(lose_uploads_once()).await;
    let arrived = Arc::new(Mutex::new(Vec::new()));
    let reported = Arc::clone(&arrived);
    let mut source = Cursor::new(value(20_000_000));
    // The bytes before the start position do not belong to the value.
    source.set_position(7);
    let source = ValueSource::seekable(source).on_progress(move |bytes| reported.lock().unwrap().push(bytes));
    world.kv.put_reader("k", source).await.unwrap();
    assert_eq!(world.committed(), [value(20_000_000).slice(7..)]);
    let arrived = arrived.lock().unwrap();
    assert!(arrived.windows(2).any(|pair| pair[1] < pair[0]), "the upload did not restart");
    assert_eq!(arrived.last(), Some(&19_999_993));
}

/// If the server loses an upload from an unseekable source, the call cancels the upload and fails as not executed.
#[tokio::test(start_paused = true)]
async fn upload_from_unseekable_source_fails_after_server_loss() {
    let world = World::new(lose_uploads_once()).await;
    let whole = value(20_000_000);
    let error = world.kv.put_reader("k", &whole[..]).await.unwrap_err();
    assert!(matches!(error, Error::UploadLost), "{error:?}");
    assert_eq!(error.executed(), Executed::No);
    assert!(world.committed().is_empty());
    // The client cancels the upload at the server.
    world.fleet.arrivals.wait_for("a upload_cancel", 1).await;
}

/// If the window still holds all bytes of a lost upload, the client resumes without seeking the source.
#[tokio::test(start_paused = true)]
async fn upload_lost_within_window_resumes_without_seek() {
    let mut chunks = 0;
    let world = World::new(move |spool, op, _| {
        chunks += usize::from(op == Op::UploadChunk);
        if op == Op::UploadChunk && chunks == 3 {
            spool.uploads.clear();
            return Some(CannedReply::Error(ErrorReply::unknown_upload("gone")));
        }
        // No reply has reached the client before.
        (op == Op::UploadChunk && chunks < 3).then_some(CannedReply::Silence)
    })
    .await;
    let whole = value(1_000_000);
    world.kv.put_reader("k", &whole[..]).await.unwrap();
    assert_eq!(world.committed(), [whole]);
}

/// If the server loses an upload before the commit, the client uploads it again and repeats the commit under its id.
#[tokio::test(start_paused = true)]
async fn upload_lost_before_commit_is_sent_again() {
    let mut commits = 0;
    let world = World::new(move |spool, op, _| {
        commits += usize::from(op == Op::UploadCommit);
        if op == Op::UploadCommit && commits == 1 {
            spool.uploads.clear();
        }
        None
    })
    .await;
    world.kv.put("k", value(1_000_000)).await.unwrap();
    assert_eq!(world.committed(), [value(1_000_000)]);
    // The same request in each attempt.
    let commits = world.fleet.arrivals.payloads("a upload_commit");
    let ids: Vec<_> = commits.iter().map(|set| decode::<SetRequest>(set).unwrap().request.unwrap()).collect();
    assert_eq!((ids.len(), ids[0]), (2, ids[1]));
}

/// An upload gets its id when it is committed: the changes beside it do not make the id old.
#[tokio::test(start_paused = true)]
async fn upload_gets_its_id_at_commit() {
    let world = World::new(|spool, op, _| {
        let is_first = op == Op::UploadFinish && spool.finishes == 0;
        spool.finishes += usize::from(op == Op::UploadFinish);
        is_first.then_some(CannedReply::Silence)
    })
    .await;
    let beside = async {
        world.fleet.arrivals.wait_for("a upload_finish", 1).await;
        for n in 0..1_100 {
            world.kv.put("beside", n.to_string()).await.unwrap();
        }
    };
    let (uploaded, ()) = tokio::join!(world.kv.put_reader("k", Cursor::new(value(200_000))), beside);
    uploaded.unwrap();
    let counter = |payload: &Bytes| decode::<SetRequest>(payload).unwrap().request.unwrap().counter;
    let last = world.fleet.arrivals.payloads("a set").iter().map(counter).max().unwrap();
    assert!(counter(&world.fleet.arrivals.payloads("a upload_commit")[0]) > last);
}

/// If the server loses an upload repeatedly, the call fails with `UploadLost`.
#[tokio::test(start_paused = true)]
async fn upload_lost_repeatedly_fails() {
    let world = World::new(|spool, op, _| {
        if op == Op::UploadCommit {
            spool.uploads.clear();
        }
        None
    })
    .await;
    let error = world.kv.put("k", value(200_000)).await.unwrap_err();
    assert!(matches!(error, Error::UploadLost), "{error:?}");
}

/// If the maximum payload shrinks during an upload, the client sends smaller chunks.
#[tokio::test(start_paused = true)]
async fn upload_adapts_to_shrinking_max_payload() {
    let fleet = Fleet::new();
    fleet.broker.set_max_payload(MAX_PAYLOAD);
    fleet.coordinator(|_| at("a")).await;
    let spool = Arc::new(Mutex::new(Spool::default()));
    let (served, broker) = (Arc::clone(&spool), fleet.broker.clone());
    let mut chunks = 0;
    fleet
        .server("a", move |op, payload, _| {
            chunks += usize::from(op == Op::UploadChunk);
            if chunks == 2 {
                broker.set_max_payload(MAX_PAYLOAD / 2);
            }
            served.lock().unwrap().answer(op, payload)
        })
        .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    kv.put_reader("k", Cursor::new(value(2_000_000))).await.unwrap();
    assert_eq!(spool.lock().unwrap().committed[0].0, value(2_000_000));
    let lengths: Vec<usize> = fleet.arrivals.payloads("a upload_chunk").iter().map(Bytes::len).collect();
    assert!(lengths[0] > MAX_PAYLOAD / 2 && *lengths.last().unwrap() <= MAX_PAYLOAD / 2);
}

/// If the server is overloaded, the client retries the begin of an upload until the deadline.
#[tokio::test(start_paused = true)]
async fn upload_overloaded_is_retried_until_deadline() {
    let world = World::new(|_, op, asked| {
        (op == Op::UploadBegin && asked < 3)
            .then(|| CannedReply::Error(ErrorReply::overloaded("full", 1_000)))
    })
    .await;
    world.kv.put("k", value(200_000)).await.unwrap();
    assert!(world.fleet.now() >= Duration::from_secs(3));

    let world = World::new(|_, op, _| {
        (op == Op::UploadBegin).then(|| CannedReply::Error(ErrorReply::overloaded("full", 1_000)))
    })
    .await;
    let error = world.kv.put("k", value(200_000)).await.unwrap_err();
    let Error::Deadline { last: Some(last), .. } = &error else { panic!("{error:?}") };
    assert!(matches!(&**last, Error::Service(reply) if reply.code == ErrorCode::Overloaded), "{last:?}");
    assert_eq!(error.executed(), Executed::No);
}

/// A source with one megabyte, then two minutes without data, and then an error.
struct Stalls {
    left: usize,
    stall: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl AsyncRead for Stalls {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left > 0 {
            let count = buffer.remaining().min(self.left);
            buffer.put_slice(&vec![1; count]);
            self.left -= count;
            return Poll::Ready(Ok(()));
        }
        let sleep = || Box::pin(tokio::time::sleep(Duration::from_secs(120)));
        let stall = self.stall.get_or_insert_with(sleep);
        std::task::ready!(stall.as_mut().poll(context));
        Poll::Ready(Err(io::Error::other("the pipe broke")))
    }
}

/// A slow source keeps its upload alive; if the source fails, the client cancels the upload.
#[tokio::test(start_paused = true)]
async fn upload_of_slow_source_stays_alive_until_source_fails() {
    let world = World::new(|_, _, _| None).await;
    let error = world.kv.put_reader("k", Stalls { left: 1_000_000, stall: None }).await.unwrap_err();
    assert!(matches!(error, Error::Source { .. }), "{error:?}");
    assert_eq!(error.executed(), Executed::No);
    // The source is silent for 120 s, and the client for less than 30 s.
    assert!(world.fleet.arrivals.count("a upload_begin") >= 120 / 30);
    world.fleet.arrivals.wait_for("a upload_cancel", 1).await;
    assert!(world.committed().is_empty());
}

/// A server that has one message with this value, and sends it in chunks.
async fn server_with_value(
    whole: Bytes,
    mut trouble: impl FnMut(&mut GetChunkReply, usize) -> Option<CannedReply> + Send + 'static,
) -> (Fleet, Kv) {
    let fleet = Fleet::new();
    fleet.broker.set_max_payload(MAX_PAYLOAD);
    fleet.coordinator(|_| at("a")).await;
    let size = whole.len() as u64;
    fleet
        .server("a", move |op, payload, asked| match op {
            Op::Get => found(Message { size, value_omitted: true, ..message(5, Some("k"), None) }),
            Op::GetChunk => {
                let GetChunkRequest { offset, length, seq, rev, .. } = decode(payload).unwrap();
                assert_eq!((seq.get(), rev.get()), (5, 5));
                let bytes = whole.slice(offset as usize..((offset + length) as usize).min(whole.len()));
                let mut chunk = GetChunkReply { size, digest: digest(&whole), bytes };
                trouble(&mut chunk, asked).unwrap_or_else(|| reply(&chunk))
            }
            other => panic!("{other}"),
        })
        .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    (fleet, kv)
}

/// A reader returns the value in order even if chunks are lost, late or short.
#[tokio::test(start_paused = true)]
async fn download_is_in_order_despite_lost_late_short_chunks() {
    let whole = value(1_000_000);
    let (fleet, kv) = server_with_value(whole.clone(), |chunk, asked| match asked % 5 {
        // Lost, late, or shorter than requested.
        1 if asked < 8 => Some(CannedReply::Silence),
        2 => Some(CannedReply::Late(Duration::from_millis(300), Box::new(reply(chunk)))),
        3 => {
            chunk.bytes.truncate(1_000);
            None
        }
        _ => None,
    })
    .await;
    let mut reader = kv.get_reader("k").await.unwrap().unwrap();
    assert_eq!((reader.size(), reader.message().seq.get()), (1_000_000, 5));
    let mut read = Vec::new();
    reader.read_to_end(&mut read).await.unwrap();
    assert!(read == whole);
    // After the end, the reader stays at the end.
    assert_eq!(reader.read(&mut [0]).await.unwrap(), 0);
    // An ordinary get returns the bytes, too.
    assert!(kv.get("k").await.unwrap().unwrap() == whole);
    assert!(fleet.arrivals.count("a get_chunk") > 20);
}

/// A reader fetches a bounded number of chunks ahead.
#[tokio::test(start_paused = true)]
async fn download_read_ahead_is_bounded() {
    let (fleet, kv) = server_with_value(value(5_000_000), |_, _| None).await;
    let mut reader = kv.get_reader("k").await.unwrap().unwrap();
    reader.read_exact(&mut vec![0; 100_000]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(fleet.arrivals.count("a get_chunk") <= 12, "{}", fleet.arrivals.count("a get_chunk"));
}

/// If the digest of a value does not match, the reader and the get end with an error.
#[tokio::test(start_paused = true)]
async fn download_with_wrong_digest_ends_with_error() {
    let (_fleet, kv) = server_with_value(value(300_000), |chunk, _| {
        if let Some(first) = chunk.bytes.first().filter(|first| **first == 7) {
            let mut changed = chunk.bytes.to_vec();
            changed[0] = first + 1;
            chunk.bytes = changed.into();
        }
        chunk.digest = ValueDigest::new(1);
        None
    })
    .await;
    let mut read = Vec::new();
    let mut reader = kv.get_reader("k").await.unwrap().unwrap();
    let error = reader.read_to_end(&mut read).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert_eq!(read.len(), 300_000);
    assert_eq!(reader.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    let error = kv.get("k").await.unwrap_err();
    assert!(matches!(&error, Error::Service(reply) if reply.code == ErrorCode::Corrupt), "{error:?}");
}

/// If a message is replaced during a download, the reader fails with `WrongLast`.
#[tokio::test(start_paused = true)]
async fn download_of_replaced_message_fails() {
    let (_fleet, kv) = server_with_value(value(3_000_000), |_, asked| {
        (asked > 20).then(|| CannedReply::Error(ErrorReply::wrong_last(None)))
    })
    .await;
    let mut reader = kv.get_reader("k").await.unwrap().unwrap();
    let error = reader.read_to_end(&mut Vec::new()).await.unwrap_err();
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    assert!(matches!(inner, Some(Error::WrongLast { .. })), "{error:?}");
}

/// A get of a value over the memory limit fails with `TooLarge` and names the limit.
#[tokio::test(start_paused = true)]
async fn value_over_memory_limit_requires_reader() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet
        .server("a", |_, _, _| {
            let size = MAX_VALUE_IN_MEMORY_BYTES + 1;
            found(Message { size, value_omitted: true, ..message(5, Some("k"), None) })
        })
        .await;
    let error = fleet.client().await.kv("app.x").unwrap().get("k").await.unwrap_err();
    assert!(
        matches!(&error, Error::TooLarge { limit, .. } if limit == "max_value_in_memory_bytes"),
        "{error:?}"
    );
}
