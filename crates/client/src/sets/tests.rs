use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
use dormouse_protocol::data::{SetItem, SetOutcome, SetReply, SetRequest, SetResult};
use dormouse_protocol::{ErrorReply, Level, RequestId, Rev, Route, Seq, SessionId, Term, Timestamp, decode};
use dormouse_runtime::{Env, SeededEntropy, VirtualClock};
use proptest::prelude::*;

use super::group::{CallerResult, SetGroup};
use super::queue::{Batching, QueuedSet, SetQueue};
use crate::error::{Error, IndeterminateCause};
use crate::{Client, NewMessage};

const BUDGET: usize = 1_000;

fn entry(number: u64) -> QueuedSet<u64> {
    QueuedSet {
        sets: vec![SetItem { key: Some(number.to_string()), ..SetItem::default() }],
        batching: Batching::Shared,
        level: None,
        deadline: Duration::from_secs(10),
        expires_at: Duration::from_secs(10),
        size_bytes: 100,
        ticket: number,
    }
}

fn until(number: u64, expires_at_ms: u64) -> QueuedSet<u64> {
    QueuedSet { expires_at: Duration::from_millis(expires_at_ms), ..entry(number) }
}

fn queue_of(entries: impl IntoIterator<Item = QueuedSet<u64>>) -> SetQueue<u64> {
    let mut queue = SetQueue::default();
    entries.into_iter().for_each(|entry| queue.push(entry));
    queue
}

/// The tickets of each request, until the queue is empty.
fn requests(queue: &mut SetQueue<u64>) -> Vec<Vec<u64>> {
    let next = || {
        let taken = queue.take(BUDGET);
        (!taken.is_empty()).then(|| taken.iter().map(|(_, entry)| entry.ticket).collect())
    };
    std::iter::from_fn(next).collect()
}

fn group_of(entries: impl IntoIterator<Item = QueuedSet<u64>>) -> SetGroup<u64> {
    SetGroup::new(queue_of(entries).take(BUDGET))
}

fn id(counter: u64) -> RequestId {
    RequestId { session: SessionId::new(ulid::Ulid::from(7_u128)), counter }
}

fn next_request(group: &mut SetGroup<u64>, counter: u64) -> SetRequest {
    decode(&group.next_attempt(&Route::new("r"), id(counter))).unwrap()
}

fn keys(request: &SetRequest) -> Vec<&str> {
    request.sets.iter().map(|set| set.key.as_deref().unwrap()).collect()
}

fn ok(seq: u64) -> SetOutcome {
    SetOutcome::Ok(SetResult {
        seq: Seq::new(seq),
        term: Term::new(1),
        rev: Rev::new(seq),
        timestamp: Timestamp::default(),
        duplicate: false,
    })
}

fn tickets(results: &[CallerResult<u64>]) -> Vec<u64> {
    results.iter().map(|(ticket, _)| *ticket).collect()
}

/// The set queue sends sets in order, and as many in one request as fit.
#[test]
fn set_queue_sends_in_order_up_to_size_limit() {
    let mut queue = queue_of((0..25).map(entry));
    let sizes: Vec<_> = requests(&mut queue).iter().map(Vec::len).collect();
    assert_eq!(sizes, [10, 10, 5]);
    let large = QueuedSet { size_bytes: 5_000, ..entry(1) };
    assert_eq!(requests(&mut queue_of([entry(0), large, entry(2)])), [vec![0], vec![1], vec![2]]);
}

/// Only independent sets of one level share a request, and the queue skips none.
#[test]
fn batching_requires_same_level() {
    let disk = |number| QueuedSet { level: Some(Level::Disk), ..entry(number) };
    let atomic = QueuedSet { batching: Batching::Atomic, ..entry(3) };
    let alone = QueuedSet { batching: Batching::Alone, ..entry(5) };
    let mut queue = queue_of([entry(0), disk(1), disk(2), atomic, entry(4), alone, entry(6), entry(7)]);
    assert_eq!(requests(&mut queue), [vec![0], vec![1, 2], vec![3], vec![4], vec![5], vec![6, 7]]);
}

/// Expired sets leave the queue, and the other sets stay.
#[test]
fn set_queue_removes_expired_sets() {
    let mut queue = queue_of([until(0, 30), until(1, 10), until(2, 20)]);
    assert_eq!(queue.next_expiry(), Some(Duration::from_millis(10)));
    let expired: Vec<_> = queue.expire(Duration::from_millis(20)).iter().map(|entry| entry.ticket).collect();
    assert_eq!(expired, [1, 2]);
    assert_eq!(requests(&mut queue), [vec![0]]);
    assert_eq!(queue.next_expiry(), None);
}

/// After an unknown outcome, the group resends the same bytes, also for sets whose callers have expired.
#[test]
fn set_group_unknown_outcome_resends_same_bytes() {
    let mut group = group_of([until(0, 10), until(1, 20)]);
    let first = group.next_attempt(&Route::new("r"), id(1));
    let cause = IndeterminateCause::ServerGone(dormouse_protocol::ServerName::new("a").unwrap());
    group.failed(true, Some(cause));
    let results = group.expire(Duration::from_millis(10));
    assert!(matches!(results[..], [(0, Err(Error::Indeterminate { .. }))]), "{results:?}");
    assert_eq!(group.next_attempt(&Route::new("r"), id(2)), first);
    // The position of the expired caller is kept: the other callers get their own results.
    let settled = group.resolve(Ok(SetReply { results: vec![ok(1), ok(2)] }));
    assert!(
        matches!(&settled.outcomes[..], [(1, Ok(results))] if results[0].as_ref().unwrap().seq == Seq::new(2))
    );
}

/// If no server has received the request, the next attempt omits expired sets.
#[test]
fn set_group_resend_unreceived_omits_expired_sets() {
    let mut group = group_of([until(0, 10), until(1, 20)]);
    assert_eq!(keys(&next_request(&mut group, 1)), ["0", "1"]);
    group.failed(false, None);
    let results = group.expire(Duration::from_millis(10));
    assert!(matches!(results[..], [(0, Err(Error::Deadline { .. }))]), "{results:?}");
    let again = next_request(&mut group, 1);
    assert_eq!(keys(&again), ["1"]);
}

/// A refused request keeps its content with its id: a copy of it may still be granted.
#[test]
fn set_group_refused_resends_same_bytes() {
    let mut group = group_of([until(0, 10), until(1, 20)]);
    let first = group.next_attempt(&Route::new("r"), id(1));
    group.failed(true, None);
    // A later attempt that no server receives does not change that.
    group.next_attempt(&Route::new("r"), id(1));
    group.failed(false, None);
    let results = group.expire(Duration::from_millis(10));
    assert!(matches!(results[..], [(0, Err(Error::Indeterminate { .. }))]), "{results:?}");
    assert_eq!(group.next_attempt(&Route::new("r"), id(1)), first);
}

/// A set that expires while an attempt is in flight is indeterminate; the group is abandoned when all sets have
/// expired.
#[test]
fn set_group_expiry_in_flight_is_indeterminate() {
    let mut group = group_of([until(0, 10), until(1, 20)]);
    next_request(&mut group, 1);
    let results = group.expire(Duration::from_millis(10));
    assert!(matches!(results[..], [(0, Err(Error::Indeterminate { .. }))]), "{results:?}");
    assert!(!group.is_abandoned());
    assert_eq!(tickets(&group.expire(Duration::from_millis(20))), [1]);
    assert!(group.is_abandoned());
}

/// If a reply has fewer results than the group has sets, all sets are indeterminate.
#[test]
fn set_group_reply_with_missing_results_is_indeterminate() {
    let settled = group_of([entry(0), entry(1)]).resolve(Ok(SetReply { results: vec![ok(1)] }));
    assert_eq!(tickets(&settled.outcomes), [0, 1]);
    assert!(settled.outcomes.iter().all(|(_, outcome)| matches!(outcome, Err(Error::Indeterminate { .. }))));
}

/// The reply of a server that rejects every request with a set in `poison`.
fn answer(request: &SetRequest, poison: &[u64]) -> Result<SetReply, Error> {
    let bad = |set: &SetItem| poison.contains(&set.key.as_deref().unwrap().parse().unwrap());
    if request.sets.iter().any(bad) {
        return Err(Error::from_reply(ErrorReply::bad_request("poison")));
    }
    let results = request.sets.iter().map(|set| ok(set.key.as_deref().unwrap().parse().unwrap())).collect();
    Ok(SetReply { results })
}

proptest! {
    /// Each set receives one result, in order, and only the sets that the server rejects fail.
    #[test]
    fn set_queue_keeps_order_and_fails_only_rejected_sets(
        number in 1_u64..60,
        poison in proptest::collection::vec(0_u64..60, 0..4),
    ) {
        let mut queue = queue_of((0..number).map(entry));
        let mut results: Vec<CallerResult<u64>> = Vec::new();
        let mut sent = Vec::new();
        for counter in 0.. {
            let taken = queue.take(BUDGET);
            if taken.is_empty() {
                break;
            }
            let mut group = SetGroup::new(taken);
            let request = next_request(&mut group, counter);
            let answer = answer(&request, &poison);
            if answer.is_ok() {
                sent.extend(request.sets.iter().map(|set| set.key.clone().unwrap().parse::<u64>().unwrap()));
            }
            let settled = group.resolve(answer);
            results.extend(settled.outcomes);
            let at_most = settled.retry.len() / 2;
            queue.put_back(settled.retry, at_most);
        }
        prop_assert_eq!(tickets(&results), (0..number).collect::<Vec<_>>());
        for (ticket, outcome) in &results {
            prop_assert_eq!(outcome.is_err(), poison.contains(ticket), "{}", ticket);
        }
        prop_assert_eq!(sent, (0..number).filter(|ticket| !poison.contains(ticket)).collect::<Vec<_>>());
    }
}

/// The set scheduler keeps state only for subjects with sets in progress.
#[tokio::test(start_paused = true)]
async fn set_scheduler_keeps_no_state_for_idle_subjects() {
    let env =
        Env::simulated(Arc::new(VirtualClock::starting_at(Duration::ZERO)), Arc::new(SeededEntropy::new(1)));
    let bus = Arc::new(MemoryBroker::new().connect(MemoryOptions::named("client")));
    let client = Client::builder().env(env).over(bus).await.unwrap();
    let acks: Vec<_> = (0..100)
        .map(|number| {
            client.stream(&format!("app.s{number}")).unwrap().publish_with(NewMessage::new(Bytes::new()))
        })
        .collect();
    assert_eq!(client.inner.set_scheduler.in_progress().0, 100);
    for ack in acks {
        assert!(matches!(ack.await, Err(Error::Deadline { .. })));
    }
    // The last sender task has delivered its results and ends now.
    while client.inner.set_scheduler.in_progress() != (0, 0) {
        tokio::task::yield_now().await;
    }
}
