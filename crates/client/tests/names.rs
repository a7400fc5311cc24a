//! The names of JetStream's methods, and atomic batches: the requests that they send.

mod support;

use std::sync::{Arc, Mutex};

use dormouse_client::{Changes, Error, ErrorKind, ErrorReply, MessageId, Position, Rev, Seq, Term};
use dormouse_protocol::data::{
    ChangesReply, ChangesRequest, DeleteAllReply, DeleteAllRequest, DeleteReply, DeleteRequest, Expect,
    GetReply, GetRequest, SetOutcome, SetReply, SetRequest,
};
use dormouse_protocol::message::SetChange;
use dormouse_protocol::{Change, Op, decode};

use support::{CannedReply, Fleet, at, found, message, nothing, reply, result};

async fn fleet(answers: impl FnMut(Op, &[u8], usize) -> CannedReply + Send + 'static) -> Fleet {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", answers).await;
    fleet
}

fn id(seq: u64) -> MessageId {
    MessageId { term: Term::new(1), seq: Seq::new(seq) }
}

/// A batch is one atomic request, sent after the queued sets, and carries the expectation of each entry.
#[tokio::test(start_paused = true)]
async fn batch_is_one_atomic_request_with_expectations() {
    let fleet = fleet(|_, payload, asked| {
        if asked > 0 {
            return CannedReply::Error(ErrorReply::key_exists(id(9)));
        }
        let sets = decode::<SetRequest>(payload).unwrap().sets.len() as u64;
        let one_rev = |seq| SetOutcome::Ok(dormouse_client::Ack { rev: Rev::new(7), ..result(seq) });
        reply(&SetReply { results: (1..=sets).map(one_rev).collect() })
    })
    .await;
    let client = fleet.client().await;
    let kv = client.kv("app.x").unwrap();
    let before = kv.put("before", "0");
    drop(before);
    let committed = kv.batch().put("a", "1").create("b", "2").update("c", "3", id(4)).commit().await;
    // The first reply went to the sets that were queued before the batch.
    assert_eq!(committed.unwrap_err().kind(), ErrorKind::AlreadyExists);
    let sent: Vec<SetRequest> =
        fleet.arrivals.payloads("a set").iter().map(|sent| decode(sent).unwrap()).collect();
    assert_eq!(sent.iter().map(|request| request.atomic).collect::<Vec<_>>(), [false, true]);
    let expected: Vec<_> = sent[1].sets.iter().map(|set| set.expect).collect();
    assert_eq!(expected, [None, Some(Expect::Key(None)), Some(Expect::Key(Some(id(4))))]);
}

/// A batch returns one rev for all entries; a batch over the maximum payload fails and is never split.
#[tokio::test(start_paused = true)]
async fn batch_has_one_rev_and_is_never_split() {
    let fleet = fleet(|_, payload, _| {
        let sets = decode::<SetRequest>(payload).unwrap().sets.len() as u64;
        let one_rev = |seq| SetOutcome::Ok(dormouse_client::Ack { rev: Rev::new(7), ..result(seq) });
        reply(&SetReply { results: (1..=sets).map(one_rev).collect() })
    })
    .await;
    fleet.broker.set_max_payload(64 * 1_024);
    let stream = fleet.client().await.stream("app.x").unwrap();
    let committed = stream.batch().publish("1").publish("2").commit().await.unwrap();
    assert_eq!(committed.position, Position { term: Term::new(1), rev: Rev::new(7) });
    assert_eq!(committed.messages.iter().map(|ack| ack.seq.get()).collect::<Vec<_>>(), [1, 2]);
    let large = (0..10).fold(stream.batch(), |batch, _| batch.publish(vec![0; 10_000]));
    let error = large.commit().await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error:?}");
    assert_eq!(fleet.arrivals.count("a set"), 1);
}

/// A key-value entry has the fields of a JetStream entry and can be read by revision.
#[tokio::test(start_paused = true)]
async fn kv_entry_has_jetstream_fields() {
    let fleet = fleet(|_, payload, _| match decode::<GetRequest>(payload).unwrap().key.as_deref() {
        Some("k") => found(message(5, Some("k"), Some("v"))),
        _ => nothing(),
    })
    .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let entry = kv.entry("k").await.unwrap().unwrap();
    assert_eq!((entry.bucket.as_str(), entry.key.as_str()), ("app.x", "k"));
    assert_eq!((entry.value.as_deref(), entry.revision), (Some(&b"v"[..]), id(5)));
    assert_eq!(kv.entry_for_revision("k", id(5)).await.unwrap(), Some(entry.clone()));
    assert_eq!(kv.entry_for_revision("k", id(4)).await.unwrap(), None);
    assert_eq!(dormouse_client::Message::from(entry), message(5, Some("k"), Some("v")));
}

/// Each variant of delete and purge sends the matching request; a purge before the first seq sends none.
#[tokio::test(start_paused = true)]
async fn delete_and_purge_send_matching_requests() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let recorded = Arc::clone(&asked);
    let fleet = fleet(move |op, payload, _| {
        let position = Position::default();
        if op == Op::DeleteAll {
            let request: DeleteAllRequest = decode(payload).unwrap();
            recorded.lock().unwrap().push((request.end_seq.map(Seq::get), request.keep_last));
            return reply(&DeleteAllReply { position, count: 3, duplicate: false });
        }
        let request: DeleteRequest = decode(payload).unwrap();
        let seqs = if request.expect.is_some() { vec![] } else { vec![Seq::new(1)] };
        reply(&DeleteReply { position, seqs, duplicate: false })
    })
    .await;
    let client = fleet.client().await;
    let (kv, stream) = (client.kv("app.x").unwrap(), client.stream("app.x").unwrap());
    assert_eq!(stream.purge().await.unwrap(), 3);
    assert_eq!(stream.purge().keep(2).await.unwrap(), 3);
    assert_eq!(stream.purge().sequence(Seq::new(5)).await.unwrap(), 3);
    // No message is before the first one, so no request is sent; and the last setting counts.
    assert_eq!(stream.purge().keep(2).sequence(Seq::new(1)).await.unwrap(), 0);
    assert_eq!(*asked.lock().unwrap(), [(None, None), (None, Some(2)), (Some(4), None)]);
    assert!(stream.delete_message(Seq::new(1)).await.unwrap());
    assert!(kv.purge("k").await.unwrap());
    kv.delete_expect_revision("k", id(1)).await.unwrap();
}

/// The call `changes` returns the changes with fetched values and their position, or a resync.
#[tokio::test(start_paused = true)]
async fn changes_return_position_or_resync() {
    let fleet = fleet(|op, payload, _| {
        if op == Op::Get {
            let messages = vec![message(2, Some("large"), Some("whole"))];
            return reply(&GetReply { position: Position::default(), messages, answered: 1 });
        }
        let after = decode::<ChangesRequest>(payload).unwrap().after;
        let position = Position { term: Term::new(1), rev: Rev::new(9) };
        let mut changes =
            ChangesReply { position, term_base: Rev::new(0), resync: false, changes: vec![], more: true };
        if after == Position::default() {
            let mut large = message(2, Some("large"), None);
            large.value_omitted = true;
            changes.changes = vec![Change::Set(SetChange { message: large, replaces: None })];
        } else {
            changes.resync = true;
        }
        reply(&changes)
    })
    .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let Changes::Since { changes, position, more } = kv.changes(Position::default()).await.unwrap() else {
        panic!("unexpected resync")
    };
    let whole = Change::Set(SetChange { message: message(2, Some("large"), Some("whole")), replaces: None });
    assert_eq!((changes, position.rev, more), (vec![whole], Rev::new(9), true));
    assert_eq!(kv.changes(position).await.unwrap(), Changes::Resync { position });
}
