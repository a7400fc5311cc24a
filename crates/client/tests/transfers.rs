//! Values of any size, up and down, against a server that loses, repeats, delays and forgets.

mod support;

use std::collections::BTreeMap;
use std::io::{self, Cursor};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use dormouse_client::{
    Error, ErrorCode, ErrorReply, Happened, Kv, MAX_VALUE_IN_MEMORY_BYTES, Message, NewMessage, ValueSource,
};
use dormouse_protocol::data::SetRequest;
use dormouse_protocol::transfer::{
    GetChunkReply, GetChunkRequest, UploadBeginRequest, UploadCancelRequest, UploadChunkRequest,
    UploadFinishRequest, UploadReply, UploadedValue,
};
use dormouse_protocol::{Op, Seq, UploadId, ValueDigest, decode};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use support::{Answer, Fleet, at, done, found, message, reply};

const MAX_PAYLOAD: usize = 64 * 1_024;

fn value(bytes: usize) -> Bytes {
    (0..bytes).map(|at| (at % 251) as u8).collect()
}

fn digest(bytes: &[u8]) -> ValueDigest {
    ValueDigest::new(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes))
}

/// What a server has of uploads, and what was committed.
#[derive(Default)]
struct Spool {
    uploads: BTreeMap<UploadId, Vec<u8>>,
    committed: Vec<(Bytes, UploadedValue)>,
    cancelled: Vec<UploadId>,
}

impl Spool {
    /// Answers as a server does that takes chunks in order only.
    fn answer(&mut self, op: Op, payload: &[u8]) -> Answer {
        let unknown = || Answer::Error(ErrorReply::unknown_upload("gone"));
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
                    // A real one would wait for what is missing; this one lets the caller ask again.
                    here if request.offset > here => return Answer::Silence,
                    here if request.offset == here => upload.extend_from_slice(&request.bytes),
                    _ => {}
                }
                reply(&far(upload, false))
            }
            Op::UploadFinish => {
                let UploadFinishRequest { upload, size, digest: claimed, .. } = decode(payload).unwrap();
                let Some(bytes) = self.uploads.get(&upload) else { return unknown() };
                if bytes.len() as u64 == size && digest(bytes) != claimed {
                    return Answer::Error(ErrorReply::corrupt("upload", "another digest"));
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
    /// `trouble` may answer in the server's place. It gets the number of the request, from 0 on.
    async fn new(mut trouble: impl FnMut(&mut Spool, Op, usize) -> Option<Answer> + Send + 'static) -> Self {
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

#[tokio::test(start_paused = true)]
async fn values_of_every_length_around_the_borders_arrive_whole() {
    let world = World::new(|_, _, _| None).await;
    let piece = MAX_PAYLOAD - 8 * 1_024;
    for length in [0, 1, piece - 500, piece - 1, piece, piece + 1, 2 * piece - 1, 2 * piece, 2 * piece + 1] {
        let before = world.committed().len();
        world.kv.put_reader("k", Cursor::new(value(length))).await.unwrap();
        let sent = match world.committed().get(before) {
            Some(bytes) => bytes.clone(),
            // What fits a message went in one.
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

#[tokio::test(start_paused = true)]
async fn what_a_set_can_say_is_said_when_an_upload_is_committed() {
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

#[tokio::test(start_paused = true)]
async fn where_a_value_goes_is_said_from_the_beginning() {
    let world = World::new(|_, _, _| None).await;
    world.kv.put_reader("k", Cursor::new(value(200_000))).await.unwrap();
    let at = NewMessage::null().seq(Seq::new(7));
    world.kv.put_reader_with("", at, Cursor::new(value(200_000))).await.unwrap();
    let begins = world.fleet.arrivals.payloads("a upload_begin");
    let places = begins.iter().map(|begin| decode::<UploadBeginRequest>(begin).unwrap().place.unwrap());
    let places: Vec<_> = places.map(|place| (place.key, place.seq)).collect();
    assert_eq!(places, [(Some("k".to_owned()), None), (Some(String::new()), Some(Seq::new(7)))]);
}

#[tokio::test(start_paused = true)]
async fn an_ordinary_put_takes_values_of_any_size() {
    let world = World::new(|_, _, _| None).await;
    world.kv.put("k", value(500_000)).await.unwrap();
    let results = world.kv.put_many([("a", value(10)), ("b", value(300_000)), ("c", value(10))]).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(world.committed(), [value(500_000), value(300_000)]);
}

#[tokio::test(start_paused = true)]
async fn a_chunk_that_is_lost_or_whose_answer_is_lost_is_sent_again() {
    let mut chunks = 0;
    let world = World::new(move |_, op, _| {
        chunks += usize::from(op == Op::UploadChunk);
        // One is lost on its way there.
        (op == Op::UploadChunk && chunks == 3).then_some(Answer::Silence)
    })
    .await;
    world.kv.put_reader("k", Cursor::new(value(1_000_000))).await.unwrap();
    assert_eq!(world.committed(), [value(1_000_000)]);

    let mut chunks = 0;
    let world = World::new(move |spool, op, _| {
        chunks += usize::from(op == Op::UploadChunk);
        // And here the answer comes when nobody waits any more: what it answered comes again.
        if op != Op::UploadChunk || chunks != 3 {
            return None;
        }
        let bytes = spool.uploads.values_mut().next().unwrap();
        let received = bytes.len() as u64;
        Some(Answer::Late(Duration::from_secs(3), Box::new(reply(&UploadReply { received, stored: false }))))
    })
    .await;
    world.kv.put_reader("k", Cursor::new(value(1_000_000))).await.unwrap();
    assert_eq!(world.committed(), [value(1_000_000)]);
}

/// Forgets every upload once, in the middle.
fn forgets() -> impl FnMut(&mut Spool, Op, usize) -> Option<Answer> + Send + 'static {
    let mut chunks = 0;
    move |spool, op, _| {
        chunks += usize::from(op == Op::UploadChunk);
        if op == Op::UploadChunk && chunks == 200 {
            spool.uploads.clear();
        }
        None
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_can_seek_begins_again_where_the_server_has_lost_everything() {
    let world = World::new(forgets()).await;
    let arrived = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&arrived);
    let mut source = Cursor::new(value(20_000_000));
    // What stands before is none of the value.
    source.set_position(7);
    let source = ValueSource::seekable(source).on_progress(move |bytes| told.lock().unwrap().push(bytes));
    world.kv.put_reader("k", source).await.unwrap();
    assert_eq!(world.committed(), [value(20_000_000).slice(7..)]);
    let arrived = arrived.lock().unwrap();
    assert!(arrived.windows(2).any(|pair| pair[1] < pair[0]), "it began again");
    assert_eq!(arrived.last(), Some(&19_999_993));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_cannot_seek_fails_and_nothing_has_happened() {
    let world = World::new(forgets()).await;
    let whole = value(20_000_000);
    let error = world.kv.put_reader("k", &whole[..]).await.unwrap_err();
    assert!(matches!(error, Error::UploadLost), "{error:?}");
    assert_eq!(error.happened(), Happened::No);
    assert!(world.committed().is_empty());
    // It is told that nobody will go on with it.
    world.fleet.arrivals.wait_for("a upload_cancel", 1).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_still_here_needs_no_rewinding() {
    let mut chunks = 0;
    let world = World::new(move |spool, op, _| {
        chunks += usize::from(op == Op::UploadChunk);
        if op == Op::UploadChunk && chunks == 3 {
            spool.uploads.clear();
            return Some(Answer::Error(ErrorReply::unknown_upload("gone")));
        }
        // Not one answer has reached the client before.
        (op == Op::UploadChunk && chunks < 3).then_some(Answer::Silence)
    })
    .await;
    let whole = value(1_000_000);
    world.kv.put_reader("k", &whole[..]).await.unwrap();
    assert_eq!(world.committed(), [whole]);
}

#[tokio::test(start_paused = true)]
async fn a_value_that_got_lost_between_finish_and_commit_is_brought_again() {
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
    // One request, however often it was sent.
    let commits = world.fleet.arrivals.payloads("a upload_commit");
    let ids: Vec<_> = commits.iter().map(|set| decode::<SetRequest>(set).unwrap().request.unwrap()).collect();
    assert_eq!((ids.len(), ids[0]), (2, ids[1]));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_always_forgets_is_given_up() {
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

#[tokio::test(start_paused = true)]
async fn a_payload_that_shrinks_under_way_is_heeded() {
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

#[tokio::test(start_paused = true)]
async fn servers_without_room_are_asked_again_until_the_deadline() {
    let world = World::new(|_, op, asked| {
        (op == Op::UploadBegin && asked < 3).then(|| Answer::Error(ErrorReply::overloaded("full", 1_000)))
    })
    .await;
    world.kv.put("k", value(200_000)).await.unwrap();
    assert!(world.fleet.now() >= Duration::from_secs(3));

    let world = World::new(|_, op, _| {
        (op == Op::UploadBegin).then(|| Answer::Error(ErrorReply::overloaded("full", 1_000)))
    })
    .await;
    let error = world.kv.put("k", value(200_000)).await.unwrap_err();
    let Error::Deadline { last: Some(last), .. } = &error else { panic!("{error:?}") };
    assert!(matches!(&**last, Error::Service(reply) if reply.code == ErrorCode::Overloaded), "{last:?}");
    assert_eq!(error.happened(), Happened::No);
}

/// Gives a megabyte, nothing for two minutes, and then fails.
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

#[tokio::test(start_paused = true)]
async fn a_slow_source_keeps_its_upload_alive_and_a_broken_one_ends_it() {
    let world = World::new(|_, _, _| None).await;
    let error = world.kv.put_reader("k", Stalls { left: 1_000_000, stall: None }).await.unwrap_err();
    assert!(matches!(error, Error::Source { .. }), "{error:?}");
    assert_eq!(error.happened(), Happened::No);
    // 120 s of silence of the source, and never 30 of ours.
    assert!(world.fleet.arrivals.count("a upload_begin") >= 120 / 30);
    world.fleet.arrivals.wait_for("a upload_cancel", 1).await;
    assert!(world.committed().is_empty());
}

/// A server that has one message with this value, and gives it in pieces.
async fn holding(
    whole: Bytes,
    mut trouble: impl FnMut(&mut GetChunkReply, usize) -> Option<Answer> + Send + 'static,
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
                let mut piece = GetChunkReply { size, digest: digest(&whole), bytes };
                trouble(&mut piece, asked).unwrap_or_else(|| reply(&piece))
            }
            other => panic!("{other}"),
        })
        .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    (fleet, kv)
}

#[tokio::test(start_paused = true)]
async fn a_value_is_read_in_order_whatever_becomes_of_its_pieces() {
    let whole = value(1_000_000);
    let (fleet, kv) = holding(whole.clone(), |piece, asked| match asked % 5 {
        // Lost, late, or shorter than asked for.
        1 if asked < 8 => Some(Answer::Silence),
        2 => Some(Answer::Late(Duration::from_millis(300), Box::new(reply(piece)))),
        3 => {
            piece.bytes.truncate(1_000);
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
    // The end stays the end.
    assert_eq!(reader.read(&mut [0]).await.unwrap(), 0);
    // An ordinary get gives the bytes too.
    assert!(kv.get("k").await.unwrap().unwrap() == whole);
    assert!(fleet.arrivals.count("a get_chunk") > 20);
}

#[tokio::test(start_paused = true)]
async fn only_so_much_is_asked_for_ahead_of_the_reader() {
    let (fleet, kv) = holding(value(5_000_000), |_, _| None).await;
    let mut reader = kv.get_reader("k").await.unwrap().unwrap();
    reader.read_exact(&mut vec![0; 100_000]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(fleet.arrivals.count("a get_chunk") <= 12, "{}", fleet.arrivals.count("a get_chunk"));
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_not_what_was_written_ends_in_an_error_and_not_in_an_end() {
    let (_fleet, kv) = holding(value(300_000), |piece, _| {
        if let Some(first) = piece.bytes.first().filter(|first| **first == 7) {
            let mut changed = piece.bytes.to_vec();
            changed[0] = first + 1;
            piece.bytes = changed.into();
        }
        piece.digest = ValueDigest::new(1);
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

#[tokio::test(start_paused = true)]
async fn a_message_that_is_replaced_while_it_is_read_is_no_mixture() {
    let (_fleet, kv) = holding(value(3_000_000), |_, asked| {
        (asked > 20).then(|| Answer::Error(ErrorReply::wrong_last(None)))
    })
    .await;
    let mut reader = kv.get_reader("k").await.unwrap().unwrap();
    let error = reader.read_to_end(&mut Vec::new()).await.unwrap_err();
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    assert!(matches!(inner, Some(Error::WrongLast { .. })), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_too_large_for_memory_is_left_to_a_reader() {
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
