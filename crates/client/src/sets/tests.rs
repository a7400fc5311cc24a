use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
use dormouse_protocol::data::{SetItem, SetOutcome, SetReply, SetRequest, SetResult};
use dormouse_protocol::{ErrorReply, Level, RequestId, Rev, Route, Seq, SessionId, Term, Timestamp, decode};
use dormouse_runtime::{Env, SeededEntropy, VirtualClock};
use proptest::prelude::*;

use super::flight::{Flight, Told};
use super::queue::{Company, Entry, Queue};
use crate::error::{Error, IndeterminateCause};
use crate::{Client, NewMessage};

const BUDGET: usize = 1_000;

fn entry(number: u64) -> Entry<u64> {
    Entry {
        sets: vec![SetItem { key: Some(number.to_string()), ..SetItem::default() }],
        company: Company::Shared,
        level: None,
        deadline: Duration::from_secs(10),
        expires_at: Duration::from_secs(10),
        size_bytes: 100,
        ticket: number,
    }
}

fn until(number: u64, expires_at_ms: u64) -> Entry<u64> {
    Entry { expires_at: Duration::from_millis(expires_at_ms), ..entry(number) }
}

fn queue_of(entries: impl IntoIterator<Item = Entry<u64>>) -> Queue<u64> {
    let mut queue = Queue::default();
    entries.into_iter().for_each(|entry| queue.push(entry));
    queue
}

/// The tickets of each request, until nothing waits.
fn requests(queue: &mut Queue<u64>) -> Vec<Vec<u64>> {
    let next = || {
        let taken = queue.take(BUDGET);
        (!taken.is_empty()).then(|| taken.iter().map(|(_, entry)| entry.ticket).collect())
    };
    std::iter::from_fn(next).collect()
}

fn flight_of(entries: impl IntoIterator<Item = Entry<u64>>) -> Flight<u64> {
    Flight::new(queue_of(entries).take(BUDGET))
}

fn id(counter: u64) -> RequestId {
    RequestId { session: SessionId::new(ulid::Ulid::from(7_u128)), counter }
}

fn try_it(flight: &mut Flight<u64>, counter: u64) -> SetRequest {
    decode(&flight.next_try(&Route::new("r"), || id(counter))).unwrap()
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

fn tickets(told: &[Told<u64>]) -> Vec<u64> {
    told.iter().map(|(ticket, _)| *ticket).collect()
}

#[test]
fn what_came_first_goes_first_and_what_fits_goes_together() {
    let mut queue = queue_of((0..25).map(entry));
    let sizes: Vec<_> = requests(&mut queue).iter().map(Vec::len).collect();
    assert_eq!(sizes, [10, 10, 5]);
    let large = Entry { size_bytes: 5_000, ..entry(1) };
    assert_eq!(requests(&mut queue_of([entry(0), large, entry(2)])), [vec![0], vec![1], vec![2]]);
}

#[test]
fn only_independent_sets_of_one_level_go_together_and_nobody_is_passed_over() {
    let disk = |number| Entry { level: Some(Level::Disk), ..entry(number) };
    let atomic = Entry { company: Company::Atomic, ..entry(3) };
    let alone = Entry { company: Company::Alone, ..entry(5) };
    let mut queue = queue_of([entry(0), disk(1), disk(2), atomic, entry(4), alone, entry(6), entry(7)]);
    assert_eq!(requests(&mut queue), [vec![0], vec![1, 2], vec![3], vec![4], vec![5], vec![6, 7]]);
}

#[test]
fn who_has_waited_long_enough_leaves_the_queue() {
    let mut queue = queue_of([until(0, 30), until(1, 10), until(2, 20)]);
    assert_eq!(queue.next_expiry(), Some(Duration::from_millis(10)));
    let expired: Vec<_> = queue.expire(Duration::from_millis(20)).iter().map(|entry| entry.ticket).collect();
    assert_eq!(expired, [1, 2]);
    assert_eq!(requests(&mut queue), [vec![0]]);
    assert_eq!(queue.next_expiry(), None);
}

#[test]
fn a_try_whose_outcome_is_not_known_is_repeated_byte_by_byte() {
    let mut flight = flight_of([until(0, 10), until(1, 20)]);
    let first = flight.next_try(&Route::new("r"), || id(1));
    let cause = IndeterminateCause::ServerGone(dormouse_protocol::ServerName::new("a").unwrap());
    flight.failed(Some(cause));
    let told = flight.expire(Duration::from_millis(10));
    assert!(matches!(told[..], [(0, Err(Error::Indeterminate { .. }))]), "{told:?}");
    assert_eq!(flight.next_try(&Route::new("r"), || id(2)), first);
    // His place is kept: the others get their own results.
    let settled = flight.settle(Ok(SetReply { results: vec![ok(1), ok(2)] }));
    assert!(
        matches!(&settled.told[..], [(1, Ok(results))] if results[0].as_ref().unwrap().seq == Seq::new(2))
    );
}

#[test]
fn who_leaves_while_nothing_was_done_takes_his_set_along() {
    let mut flight = flight_of([until(0, 10), until(1, 20)]);
    assert_eq!(keys(&try_it(&mut flight, 1)), ["0", "1"]);
    flight.failed(None);
    let told = flight.expire(Duration::from_millis(10));
    assert!(matches!(told[..], [(0, Err(Error::Deadline { .. }))]), "{told:?}");
    let again = try_it(&mut flight, 2);
    assert_eq!(keys(&again), ["1"]);
    // Other bytes are another request.
    assert_eq!(again.request, Some(id(2)));
}

#[test]
fn while_a_try_is_on_its_way_nobody_is_told_that_nothing_happened() {
    let mut flight = flight_of([until(0, 10), until(1, 20)]);
    try_it(&mut flight, 1);
    let told = flight.expire(Duration::from_millis(10));
    assert!(matches!(told[..], [(0, Err(Error::Indeterminate { .. }))]), "{told:?}");
    assert!(!flight.is_abandoned());
    assert_eq!(tickets(&flight.expire(Duration::from_millis(20))), [1]);
    assert!(flight.is_abandoned());
}

#[test]
fn an_answer_that_lacks_results_is_taken_for_none() {
    let settled = flight_of([entry(0), entry(1)]).settle(Ok(SetReply { results: vec![ok(1)] }));
    assert_eq!(tickets(&settled.told), [0, 1]);
    assert!(settled.told.iter().all(|(_, told)| matches!(told, Err(Error::Indeterminate { .. }))));
}

/// What a server answers that takes no request in which a set of `poison` is.
fn answer(request: &SetRequest, poison: &[u64]) -> Result<SetReply, Error> {
    let bad = |set: &SetItem| poison.contains(&set.key.as_deref().unwrap().parse().unwrap());
    if request.sets.iter().any(bad) {
        return Err(Error::from_reply(ErrorReply::bad_request("poison")));
    }
    let results = request.sets.iter().map(|set| ok(set.key.as_deref().unwrap().parse().unwrap())).collect();
    Ok(SetReply { results })
}

proptest! {
    #[test]
    fn each_is_told_once_in_order_and_only_who_is_to_blame_fails(
        number in 1_u64..60,
        poison in proptest::collection::vec(0_u64..60, 0..4),
    ) {
        let mut queue = queue_of((0..number).map(entry));
        let mut told: Vec<Told<u64>> = Vec::new();
        let mut sent = Vec::new();
        for counter in 0.. {
            let taken = queue.take(BUDGET);
            if taken.is_empty() {
                break;
            }
            let mut flight = Flight::new(taken);
            let request = try_it(&mut flight, counter);
            let answer = answer(&request, &poison);
            if answer.is_ok() {
                sent.extend(request.sets.iter().map(|set| set.key.clone().unwrap().parse::<u64>().unwrap()));
            }
            let settled = flight.settle(answer);
            told.extend(settled.told);
            let at_most = settled.again.len() / 2;
            queue.put_back(settled.again, at_most);
        }
        prop_assert_eq!(tickets(&told), (0..number).collect::<Vec<_>>());
        for (ticket, outcome) in &told {
            prop_assert_eq!(outcome.is_err(), poison.contains(ticket), "{}", ticket);
        }
        prop_assert_eq!(sent, (0..number).filter(|ticket| !poison.contains(ticket)).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn a_subject_that_has_nothing_on_its_way_costs_nothing() {
    let env =
        Env::simulated(Arc::new(VirtualClock::starting_at(Duration::ZERO)), Arc::new(SeededEntropy::new(1)));
    let bus = Arc::new(MemoryBroker::new().connect(MemoryOptions::named("client")));
    let client = Client::builder().env(env).over(bus).await.unwrap();
    let acks: Vec<_> = (0..100)
        .map(|number| {
            client.stream(&format!("app.s{number}")).unwrap().publish_with(NewMessage::new(Bytes::new()))
        })
        .collect();
    assert_eq!(client.inner.writers.under_way().0, 100);
    for ack in acks {
        assert!(matches!(ack.await, Err(Error::Deadline { .. })));
    }
    // The last writer has told, and now ends.
    while client.inner.writers.under_way() != (0, 0) {
        tokio::task::yield_now().await;
    }
}
