use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::RequestError;
use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
use dormouse_protocol::data::{GetReply, GetRequest};
use dormouse_protocol::limits::MAX_ITEMS_PER_REQUEST;
use dormouse_protocol::{ErrorReply, Headers, Message, Position, Rev, Route, Seq, Term, Timestamp};
use dormouse_runtime::{Env, SeededEntropy, VirtualClock};
use futures::FutureExt;
use futures::future::join_all;
use proptest::prelude::*;
use tokio::runtime::Builder;

use super::group::{GetGroup, GetGroupOutcome, GetOutcome};
use super::queue::{GetPosition, GetQueue, GetTarget, IN_FLIGHT, PendingGet};
use crate::Client;
use crate::error::{Error, MalformedCause};

const BUDGET: usize = 1_000;

fn seq(number: u64) -> PendingGet<u64> {
    get(number, GetTarget::Seq(Seq::new(number)))
}

fn key(number: u64) -> PendingGet<u64> {
    get(number, GetTarget::Key(number.to_string()))
}

fn get(number: u64, wanted: GetTarget) -> PendingGet<u64> {
    PendingGet {
        wanted,
        deadline: Duration::from_secs(number),
        expires_at: Duration::from_secs(number),
        ticket: number,
    }
}

/// A queue of these gets, each at the position of its ticket, without requests in flight.
fn queue_of(gets: impl IntoIterator<Item = PendingGet<u64>>) -> GetQueue<u64> {
    let mut queue = GetQueue::default();
    gets.into_iter().for_each(|get| queue.push(get.ticket, get));
    queue
}

fn tickets<'a>(gets: impl IntoIterator<Item = &'a (GetPosition, PendingGet<u64>)>) -> Vec<u64> {
    gets.into_iter().map(|(_, get)| get.ticket).collect()
}

/// The tickets of each request, one after the other, until the queue is empty.
fn requests(queue: &mut GetQueue<u64>, budget_bytes: usize) -> Vec<Vec<u64>> {
    let next = || {
        let taken = queue.take(budget_bytes)?;
        queue.end(GetPosition::MAX);
        Some(tickets(&taken))
    };
    std::iter::from_fn(next).collect()
}

fn group_of(gets: impl IntoIterator<Item = PendingGet<u64>>) -> GetGroup<u64> {
    GetGroup::new(gets.into_iter().map(|get| (get.ticket, get)).collect())
}

fn message(number: u64) -> Message {
    Message {
        seq: Seq::new(number),
        term: Term::new(1),
        rev: Rev::new(number),
        key: Some(number.to_string()),
        value: Some(Bytes::from_static(b"v")),
        headers: Headers::default(),
        timestamp: Timestamp::default(),
        size: 1,
        value_omitted: false,
        expires_at: None,
    }
}

fn reply(messages: impl IntoIterator<Item = u64>, answered: u64) -> Result<GetReply, Error> {
    let messages = messages.into_iter().map(message).collect();
    Ok(GetReply { position: Position::default(), messages, answered })
}

/// The result of each get: the seq of its message, or 0 without one.
fn found_seqs(settled: &GetGroupOutcome<u64>) -> Vec<(u64, u64)> {
    let seq = |outcome: &GetOutcome| match outcome {
        GetOutcome::Outcome(Ok(found)) => found.as_ref().map_or(0, |message| message.seq.get()),
        other => panic!("{other:?}"),
    };
    settled.outcomes.iter().map(|(ticket, outcome)| (*ticket, seq(outcome))).collect()
}

fn errors(settled: &GetGroupOutcome<u64>) -> Vec<&Error> {
    let error = |outcome| {
        if let &GetOutcome::Outcome(Err(ref error)) = outcome { error } else { panic!("{outcome:?}") }
    };
    settled.outcomes.iter().map(|(_, outcome)| error(outcome)).collect()
}

/// Returns the tickets of the gets that are to be sent alone.
fn tickets_to_send_alone(settled: &GetGroupOutcome<u64>) -> Vec<u64> {
    let alone = settled.outcomes.iter().filter(|(_, outcome)| matches!(outcome, GetOutcome::SendAlone));
    alone.map(|(ticket, _)| *ticket).collect()
}

/// The get queue sends the oldest get with all gets of the same kind; the skipped gets go in the next request.
#[test]
fn get_queue_sends_oldest_first_and_skips_none_twice() {
    let mut queue = queue_of([seq(0), key(1), seq(2), key(3), seq(4)]);
    assert_eq!(requests(&mut queue, BUDGET), [vec![0, 2, 4], vec![1, 3]]);
    assert!(queue.is_idle());
}

/// A get request holds as many gets as the byte and item limits allow, and at least one.
#[test]
fn get_queue_request_respects_limits_and_is_never_empty() {
    // A seq takes at most nine bytes.
    let mut queue = queue_of((0..5).map(seq));
    assert_eq!(requests(&mut queue, 18), [vec![0, 1], vec![2, 3], vec![4]]);
    let long = |number| get(number, GetTarget::Key("k".repeat(100)));
    assert_eq!(requests(&mut queue_of([long(0), key(1), long(2)]), 20), [[0], [1], [2]]);
    let mut queue = queue_of((0..MAX_ITEMS_PER_REQUEST as u64 + 1).map(seq));
    let sizes: Vec<_> = requests(&mut queue, usize::MAX).iter().map(Vec::len).collect();
    assert_eq!(sizes, [MAX_ITEMS_PER_REQUEST, 1]);
}

/// The get queue sends no request while the limit of requests in flight is reached.
#[test]
fn get_queue_waits_while_in_flight_limit_is_reached() {
    let mut queue = queue_of([seq(10)]);
    for position in 0..IN_FLIGHT as u64 {
        assert!(queue.is_free());
        queue.begin();
        assert_eq!(queue.is_free(), position + 1 < IN_FLIGHT as u64);
    }
    assert!(queue.take(BUDGET).is_none());
    queue.end(0);
    assert_eq!(tickets(&queue.take(BUDGET).unwrap()), [10]);
    assert!(!queue.is_free());
    (1..=IN_FLIGHT as u64).for_each(|position| queue.end(position));
    assert!(queue.is_idle());
}

/// Slow requests do not count toward the in-flight limit; after they end, the limit is the same as before.
#[test]
fn get_queue_excludes_slow_requests_from_in_flight_limit() {
    let mut queue = queue_of([seq(10)]);
    (0..IN_FLIGHT).for_each(|_| queue.begin());
    assert!(queue.is_stalled(10, queue.ended()) && !queue.is_stalled(11, queue.ended()));
    queue.ignore_slow(11);
    assert_eq!(tickets(&queue.take(BUDGET).unwrap()), [10]);
    // The slow requests end, and as many requests as before are allowed.
    (0..IN_FLIGHT as u64).for_each(|position| queue.end(position));
    assert!(queue.is_free());
    queue.begin();
    assert!(!queue.is_free());
    queue.end(12);
    queue.end(13);
    assert!(queue.is_idle() && queue.is_free());
}

/// A waiting get is not stalled if a request ended while it waited.
#[test]
fn get_queue_is_not_stalled_after_request_end() {
    let mut queue = queue_of([seq(10)]);
    (0..IN_FLIGHT).for_each(|_| queue.begin());
    let ended = queue.ended();
    queue.end(0);
    queue.begin();
    assert!(!queue.is_stalled(10, ended));
}

/// Unanswered gets keep their queue position; the next request is limited to the answered number, and a full answer
/// doubles the limit.
#[test]
fn get_queue_keeps_order_of_unanswered_and_limits_next() {
    let mut queue = queue_of((0..8).map(seq));
    let mut first = queue.take(BUDGET).unwrap();
    queue.push(8, seq(8));
    queue.end(9);
    queue.answered(2, first.split_off(2));
    let second = queue.take(BUDGET).unwrap();
    assert_eq!(tickets(&second), [2, 3]);
    queue.end(10);
    // All of them were answered: the next request may have twice as many.
    queue.answered(2, Vec::new());
    assert_eq!(requests(&mut queue, BUDGET), [vec![4, 5, 6, 7], vec![8]]);
}

/// A get that is cancelled in the queue is never sent.
#[test]
fn get_queue_never_sends_cancelled_get() {
    let mut queue = queue_of([seq(0), key(1), key(2)]);
    assert_eq!(queue.remove(1).unwrap().ticket, 1);
    assert!(queue.remove(1).is_none());
    assert_eq!(requests(&mut queue, BUDGET), [[0], [2]]);
    let mut queue = queue_of([seq(0), key(1)]);
    assert_eq!(queue.clear().iter().map(std::collections::BTreeMap::len).sum::<usize>(), 2);
    assert!(queue.is_idle());
}

/// A group of one get is a plain get request; a group of several gets is a list of seqs or keys.
#[test]
fn get_group_of_one_is_plain_get_and_of_several_a_list() {
    assert_eq!(group_of([seq(7)]).request(), GetRequest::seq(Seq::new(7)));
    assert_eq!(group_of([key(7)]).request(), GetRequest::key("7"));
    let seqs = GetRequest { seqs: Some(vec![Seq::new(7), Seq::new(7)]), ..GetRequest::default() };
    assert_eq!(group_of([seq(7), seq(7)]).request(), seqs);
    let keys = GetRequest { keys: Some(vec!["7".into(), "1".into()]), ..GetRequest::default() };
    assert_eq!(group_of([key(7), key(1)]).request(), keys);
    for request in [GetRequest::key(""), GetRequest::seq(Seq::new(0))] {
        assert_eq!(group_of([get(0, GetTarget::of(&request).unwrap())]).request(), request);
    }
    assert_eq!(GetTarget::of(&keys), None);
}

/// Each answered get receives the message that it named, or nothing; unanswered gets return to the queue.
#[test]
fn get_group_returns_matching_message_to_each_get() {
    for ask in [seq, key] {
        let settled = group_of([3, 1, 9, 1].map(ask)).resolve(reply([3, 1, 1], 4));
        assert_eq!(found_seqs(&settled), [(3, 3), (1, 1), (9, 0), (1, 1)]);
        assert!(settled.rest.is_empty());
        let settled = group_of([3, 1, 9, 1].map(ask)).resolve(reply([3], 2));
        assert_eq!(found_seqs(&settled), [(3, 3), (1, 0)]);
        assert_eq!(tickets(&settled.rest), [9, 1]);
    }
}

/// A reply that does not match the request fails all gets of the group as malformed.
#[test]
fn get_group_mismatched_reply_fails_all_gets() {
    for (messages, answered) in [
        (vec![1, 2], 0),
        (vec![1, 2], 3),
        (vec![2, 1], 2),
        (vec![1, 5], 2),
        (vec![1, 1, 2], 2),
        (vec![1, 2], 1),
    ] {
        let settled = group_of([seq(1), seq(2)]).resolve(reply(messages, answered));
        assert_eq!(settled.outcomes.len(), 2);
        assert!(settled.rest.is_empty());
        for error in errors(&settled) {
            let Error::Malformed { cause } = error else { panic!("{error:?}") };
            let counted = matches!(cause, MalformedCause::WrongCount { asked: 2, .. });
            assert_eq!(counted, answered == 0 || answered > 2, "{cause:?}");
        }
    }
    let elsewhere = Message { key: None, ..message(1) };
    let answer = GetReply { position: Position::default(), messages: vec![elsewhere], answered: 2 };
    let settled = group_of([key(1), key(2)]).resolve(Ok(answer));
    assert!(matches!(errors(&settled)[1], Error::Malformed { cause: MalformedCause::UnexpectedMessage }));
}

/// If a group reply omits a value, its get is sent alone; an omission in a direct reply is final.
#[test]
fn get_group_omitted_value_is_requested_alone() {
    let omitted = |number| Message { value: None, value_omitted: true, ..message(number) };
    let answer = |messages| Ok(GetReply { position: Position::default(), messages, answered: 2 });
    let settled = group_of([seq(1), seq(2)]).resolve(answer(vec![omitted(1), message(2)]));
    assert_eq!(tickets_to_send_alone(&settled), [1]);
    assert!(matches!(&settled.outcomes[1], (2, GetOutcome::Outcome(Ok(Some(_))))));
    // A value that a reply of its own omits fits in no reply.
    let settled = group_of([seq(1)]).resolve(answer(vec![omitted(1)]));
    assert_eq!(found_seqs(&settled), [(1, 1)]);
}

/// If one get may cause the error, each get is sent alone; a deadline error reports the deadline of each get.
#[test]
fn get_group_error_splits_group_or_fails_each_get() {
    for error in
        [ErrorReply::bad_request("?"), ErrorReply::too_large("l", 2, 1), ErrorReply::corrupt("o", "torn")]
    {
        let error = Error::from_reply(error);
        assert_eq!(tickets_to_send_alone(&group_of([seq(1), seq(2)]).resolve(Err(error.clone()))), [1, 2]);
        assert_eq!(errors(&group_of([seq(1)]).resolve(Err(error))).len(), 1, "one get");
    }
    let unanswered = RequestError::NoResponders(Route::new("r"));
    let last = Some(Box::new(Error::Unreachable(unanswered)));
    let late = Error::Deadline { deadline: Duration::from_secs(9), last };
    let group = group_of([seq(1), seq(2)]);
    assert_eq!(group.last_expiry(), Duration::from_secs(2));
    let settled = group.resolve(Err(late));
    let deadlines = errors(&settled).into_iter().map(|error| match error {
        Error::Deadline { deadline, last: Some(_) } => deadline.as_secs(),
        other => panic!("{other:?}"),
    });
    assert_eq!(deadlines.collect::<Vec<_>>(), [1, 2]);
}

/// The reply of a server that has the messages of these numbers and answers at most `fits` targets per reply.
fn answer(request: &GetRequest, there: &BTreeSet<u64>, fits: usize) -> GetReply {
    let GetRequest { v: _, seq, key, keys, seqs } = request;
    let by_key = key.iter().chain(keys.iter().flatten()).map(|key| key.parse().unwrap());
    let asked: Vec<u64> =
        by_key.chain(seq.iter().chain(seqs.iter().flatten()).map(|seq| seq.get())).collect();
    let answered = asked.len().min(fits);
    let found = asked[..answered].iter().filter(|number| there.contains(number)).copied();
    reply(found, answered as u64).unwrap()
}

proptest! {
    /// All gets receive exactly one correct result, even if each reply answers only a few of them.
    #[test]
    fn get_queue_answers_all_gets_once_despite_short_replies(
        asked in proptest::collection::vec((any::<bool>(), 1_u64..20), 1..60),
        there in proptest::collection::btree_set(1_u64..20, 0..19),
        fits in 1_usize..10,
    ) {
        let wanted = |by_key, number: u64| {
            if by_key { GetTarget::Key(number.to_string()) } else { GetTarget::Seq(Seq::new(number)) }
        };
        let gets = asked.iter().zip(0..).map(|(&(by_key, number), ticket)| get(ticket, wanted(by_key, number)));
        let mut queue = queue_of(gets);
        let mut results = Vec::new();
        while let Some(taken) = queue.take(BUDGET) {
            let group = GetGroup::new(taken);
            let request = group.request();
            let settled = group.resolve(Ok(answer(&request, &there, fits)));
            results.extend(found_seqs(&settled));
            queue.end(GetPosition::MAX);
            queue.answered(settled.outcomes.len(), settled.rest);
        }
        prop_assert!(queue.is_idle());
        results.sort_unstable();
        let found = |number: u64| if there.contains(&number) { number } else { 0 };
        let expected: Vec<_> = (0..).zip(&asked).map(|(ticket, (_, number))| (ticket, found(*number))).collect();
        prop_assert_eq!(results, expected);
    }
}

/// A client whose subjects have no server.
async fn client() -> Client {
    let env =
        Env::simulated(Arc::new(VirtualClock::starting_at(Duration::ZERO)), Arc::new(SeededEntropy::new(1)));
    let bus = Arc::new(MemoryBroker::new().connect(MemoryOptions::named("client")));
    Client::builder().env(env).over(bus).await.unwrap()
}

/// Polls each once, so that its get is sent or queued.
fn begin<F: Future>(gets: impl IntoIterator<Item = F>) -> Vec<Pin<Box<F>>> {
    let mut gets: Vec<_> = gets.into_iter().map(Box::pin).collect();
    for get in &mut gets {
        assert!(get.as_mut().now_or_never().is_none(), "the get is not pending");
    }
    gets
}

/// The get scheduler keeps state only for subjects with gets in progress.
#[tokio::test(start_paused = true)]
async fn get_scheduler_keeps_no_state_for_idle_subjects() {
    let client = client().await;
    let streams: Vec<_> =
        (0..100).map(|number| client.stream(&format!("app.s{}", number % 20)).unwrap()).collect();
    let gets = begin(streams.iter().map(|stream| stream.get(Seq::new(1))));
    assert_eq!(client.inner.get_scheduler.in_progress(), 20);
    for outcome in join_all(gets).await {
        assert!(matches!(outcome, Err(Error::Deadline { .. })), "{outcome:?}");
    }
    // The last requests have delivered their results and end now.
    while client.inner.get_scheduler.in_progress() > 0 {
        tokio::task::yield_now().await;
    }
}

/// Dropping all gets of a subject, queued or in flight, removes the subject from the get scheduler.
#[tokio::test(start_paused = true)]
async fn get_scheduler_keeps_no_state_after_gets_are_dropped() {
    let client = client().await;
    let stream = client.stream("app.x").unwrap();
    let mut gets = begin((0..10).map(|_| stream.get(Seq::new(1))));
    // First the queued gets; then the ones in flight.
    while gets.pop().is_some() {
        assert_eq!(client.inner.get_scheduler.in_progress(), usize::from(!gets.is_empty()));
    }
}

/// If the runtime ends, queued gets fail with `Closed` and the get scheduler keeps no state of the subject.
#[test]
fn get_scheduler_runtime_end_closes_queued_gets() {
    let runtime = || Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (first, second) = (runtime(), runtime());
    let client = first.block_on(client());
    let stream = client.stream("app.x").unwrap();
    let mut gets = first.block_on(async { begin((0..10).map(|_| stream.get(Seq::new(1)))) });
    // The gets in flight end outside a runtime, which could send the queued ones.
    drop(first);
    gets.drain(..IN_FLIGHT).for_each(drop);
    for outcome in second.block_on(join_all(gets)) {
        assert!(matches!(outcome, Err(Error::Closed)), "{outcome:?}");
    }
    assert_eq!(client.inner.get_scheduler.in_progress(), 0);
}

/// If the task that sends a group ends, the waiting gets fail with `Closed` at once.
#[test]
fn get_scheduler_sender_end_closes_waiting_gets_at_once() {
    let runtime = || Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (first, second) = (runtime(), runtime());
    let client = first.block_on(client());
    let stream = client.stream("app.x").unwrap();
    let (gets, sent_by_its_caller) = first.block_on(async {
        let mut gets = begin((0..5).map(|_| stream.get(Seq::new(1))));
        // The three others are in flight in one request now.
        gets.drain(..IN_FLIGHT).for_each(drop);
        gets.extend(begin((0..5).map(|_| stream.get(Seq::new(1)))));
        let sent_by_its_caller = gets.remove(3);
        (gets, sent_by_its_caller)
    });
    drop(first);
    let _context = second.enter();
    for mut get in gets {
        let outcome = get.as_mut().now_or_never();
        assert!(matches!(outcome, Some(Err(Error::Closed))), "{outcome:?}");
    }
    drop(sent_by_its_caller);
    assert_eq!(client.inner.get_scheduler.in_progress(), 0);
}
