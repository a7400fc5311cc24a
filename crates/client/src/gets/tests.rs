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

use super::flight::{Flight, Settled, Told};
use super::lane::{Get, IN_FLIGHT, Lane, Place, Wanted};
use crate::Client;
use crate::error::{Error, MalformedCause};

const BUDGET: usize = 1_000;

fn seq(number: u64) -> Get<u64> {
    get(number, Wanted::Seq(Seq::new(number)))
}

fn key(number: u64) -> Get<u64> {
    get(number, Wanted::Key(number.to_string()))
}

fn get(number: u64, wanted: Wanted) -> Get<u64> {
    Get {
        wanted,
        deadline: Duration::from_secs(number),
        expires_at: Duration::from_secs(number),
        ticket: number,
    }
}

/// A lane in which these wait, each in the place that its ticket names, and nothing is in flight.
fn lane_of(gets: impl IntoIterator<Item = Get<u64>>) -> Lane<u64> {
    let mut lane = Lane::default();
    gets.into_iter().for_each(|get| lane.push(get.ticket, get));
    lane
}

fn tickets<'a>(gets: impl IntoIterator<Item = &'a (Place, Get<u64>)>) -> Vec<u64> {
    gets.into_iter().map(|(_, get)| get.ticket).collect()
}

/// The tickets of each request, one after the other, until nothing waits.
fn requests(lane: &mut Lane<u64>, budget_bytes: usize) -> Vec<Vec<u64>> {
    let next = || {
        let taken = lane.take(budget_bytes)?;
        lane.end(Place::MAX);
        Some(tickets(&taken))
    };
    std::iter::from_fn(next).collect()
}

fn flight_of(gets: impl IntoIterator<Item = Get<u64>>) -> Flight<u64> {
    Flight::new(gets.into_iter().map(|get| (get.ticket, get)).collect())
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

/// What each was told: the seq that he got, or 0 where there is nothing.
fn got(settled: &Settled<u64>) -> Vec<(u64, u64)> {
    let seq = |told: &Told| match told {
        Told::Outcome(Ok(found)) => found.as_ref().map_or(0, |message| message.seq.get()),
        other => panic!("{other:?}"),
    };
    settled.told.iter().map(|(ticket, told)| (*ticket, seq(told))).collect()
}

fn errors(settled: &Settled<u64>) -> Vec<&Error> {
    let error = |told| if let &Told::Outcome(Err(ref error)) = told { error } else { panic!("{told:?}") };
    settled.told.iter().map(|(_, told)| error(told)).collect()
}

fn asks_alone(settled: &Settled<u64>) -> Vec<u64> {
    let alone = settled.told.iter().filter(|(_, told)| matches!(told, Told::AskAlone));
    alone.map(|(ticket, _)| *ticket).collect()
}

#[test]
fn what_was_called_first_goes_first_with_what_asks_alike_and_nothing_is_passed_over_twice() {
    let mut lane = lane_of([seq(0), key(1), seq(2), key(3), seq(4)]);
    assert_eq!(requests(&mut lane, BUDGET), [vec![0, 2, 4], vec![1, 3]]);
    assert!(lane.is_idle());
}

#[test]
fn a_request_holds_what_fits_and_at_least_one() {
    // A seq may take nine bytes.
    let mut lane = lane_of((0..5).map(seq));
    assert_eq!(requests(&mut lane, 18), [vec![0, 1], vec![2, 3], vec![4]]);
    let long = |number| get(number, Wanted::Key("k".repeat(100)));
    assert_eq!(requests(&mut lane_of([long(0), key(1), long(2)]), 20), [[0], [1], [2]]);
    let mut lane = lane_of((0..MAX_ITEMS_PER_REQUEST as u64 + 1).map(seq));
    let sizes: Vec<_> = requests(&mut lane, usize::MAX).iter().map(Vec::len).collect();
    assert_eq!(sizes, [MAX_ITEMS_PER_REQUEST, 1]);
}

#[test]
fn nothing_goes_while_enough_is_in_flight() {
    let mut lane = lane_of([seq(10)]);
    for place in 0..IN_FLIGHT as u64 {
        assert!(lane.is_free());
        lane.begin();
        assert_eq!(lane.is_free(), place + 1 < IN_FLIGHT as u64);
    }
    assert!(lane.take(BUDGET).is_none());
    lane.end(0);
    assert_eq!(tickets(&lane.take(BUDGET).unwrap()), [10]);
    assert!(!lane.is_free());
    (1..=IN_FLIGHT as u64).for_each(|place| lane.end(place));
    assert!(lane.is_idle());
}

#[test]
fn what_is_slow_counts_for_nothing_until_it_ends() {
    let mut lane = lane_of([seq(10)]);
    (0..IN_FLIGHT).for_each(|_| lane.begin());
    assert!(lane.is_stalled(10, lane.ended()) && !lane.is_stalled(11, lane.ended()));
    lane.pass_by(11);
    assert_eq!(tickets(&lane.take(BUDGET).unwrap()), [10]);
    // The slow ones end, and room is left for as many as before.
    (0..IN_FLIGHT as u64).for_each(|place| lane.end(place));
    assert!(lane.is_free());
    lane.begin();
    assert!(!lane.is_free());
    lane.end(12);
    lane.end(13);
    assert!(lane.is_idle() && lane.is_free());
}

#[test]
fn who_saw_a_request_end_is_not_stalled() {
    let mut lane = lane_of([seq(10)]);
    (0..IN_FLIGHT).for_each(|_| lane.begin());
    let ended = lane.ended();
    lane.end(0);
    lane.begin();
    assert!(!lane.is_stalled(10, ended));
}

#[test]
fn what_was_not_answered_waits_where_it_waited_and_no_more_go_at_once_than_are_answered() {
    let mut lane = lane_of((0..8).map(seq));
    let mut first = lane.take(BUDGET).unwrap();
    lane.push(8, seq(8));
    lane.end(9);
    lane.answered(2, first.split_off(2));
    let second = lane.take(BUDGET).unwrap();
    assert_eq!(tickets(&second), [2, 3]);
    lane.end(10);
    // All of them were answered: twice as many may be next time.
    lane.answered(2, Vec::new());
    assert_eq!(requests(&mut lane, BUDGET), [vec![4, 5, 6, 7], vec![8]]);
}

#[test]
fn who_leaves_does_not_go() {
    let mut lane = lane_of([seq(0), key(1), key(2)]);
    assert_eq!(lane.leave(1).unwrap().ticket, 1);
    assert!(lane.leave(1).is_none());
    assert_eq!(requests(&mut lane, BUDGET), [[0], [2]]);
    let mut lane = lane_of([seq(0), key(1)]);
    assert_eq!(lane.clear().iter().map(std::collections::BTreeMap::len).sum::<usize>(), 2);
    assert!(lane.is_idle());
}

#[test]
fn one_get_goes_as_one_message_and_several_as_a_list() {
    assert_eq!(flight_of([seq(7)]).request(), GetRequest::seq(Seq::new(7)));
    assert_eq!(flight_of([key(7)]).request(), GetRequest::key("7"));
    let seqs = GetRequest { seqs: Some(vec![Seq::new(7), Seq::new(7)]), ..GetRequest::default() };
    assert_eq!(flight_of([seq(7), seq(7)]).request(), seqs);
    let keys = GetRequest { keys: Some(vec!["7".into(), "1".into()]), ..GetRequest::default() };
    assert_eq!(flight_of([key(7), key(1)]).request(), keys);
    for request in [GetRequest::key(""), GetRequest::seq(Seq::new(0))] {
        assert_eq!(flight_of([get(0, Wanted::of(&request).unwrap())]).request(), request);
    }
    assert_eq!(Wanted::of(&keys), None);
}

#[test]
fn each_gets_the_message_that_he_asked_for() {
    for ask in [seq, key] {
        let settled = flight_of([3, 1, 9, 1].map(ask)).settle(reply([3, 1, 1], 4));
        assert_eq!(got(&settled), [(3, 3), (1, 1), (9, 0), (1, 1)]);
        assert!(settled.rest.is_empty());
        let settled = flight_of([3, 1, 9, 1].map(ask)).settle(reply([3], 2));
        assert_eq!(got(&settled), [(3, 3), (1, 0)]);
        assert_eq!(tickets(&settled.rest), [9, 1]);
    }
}

#[test]
fn an_answer_that_does_not_fit_the_question_is_an_error_for_all() {
    for (messages, answered) in [
        (vec![1, 2], 0),
        (vec![1, 2], 3),
        (vec![2, 1], 2),
        (vec![1, 5], 2),
        (vec![1, 1, 2], 2),
        (vec![1, 2], 1),
    ] {
        let settled = flight_of([seq(1), seq(2)]).settle(reply(messages, answered));
        assert_eq!(settled.told.len(), 2);
        assert!(settled.rest.is_empty());
        for error in errors(&settled) {
            let Error::Malformed { cause } = error else { panic!("{error:?}") };
            let counted = matches!(cause, MalformedCause::WrongCount { asked: 2, .. });
            assert_eq!(counted, answered == 0 || answered > 2, "{cause:?}");
        }
    }
    let elsewhere = Message { key: None, ..message(1) };
    let answer = GetReply { position: Position::default(), messages: vec![elsewhere], answered: 2 };
    let settled = flight_of([key(1), key(2)]).settle(Ok(answer));
    assert!(matches!(errors(&settled)[1], Error::Malformed { cause: MalformedCause::NotAsked }));
}

#[test]
fn a_value_that_a_shared_answer_left_out_is_asked_for_alone() {
    let omitted = |number| Message { value: None, value_omitted: true, ..message(number) };
    let answer = |messages| Ok(GetReply { position: Position::default(), messages, answered: 2 });
    let settled = flight_of([seq(1), seq(2)]).settle(answer(vec![omitted(1), message(2)]));
    assert_eq!(asks_alone(&settled), [1]);
    assert!(matches!(&settled.told[1], (2, Told::Outcome(Ok(Some(_))))));
    // What an answer of its own leaves out, no answer holds.
    let settled = flight_of([seq(1)]).settle(answer(vec![omitted(1)]));
    assert_eq!(got(&settled), [(1, 1)]);
}

#[test]
fn where_one_may_be_to_blame_each_asks_alone_and_else_each_is_told_in_his_own_words() {
    for error in
        [ErrorReply::bad_request("?"), ErrorReply::too_large("l", 2, 1), ErrorReply::corrupt("o", "torn")]
    {
        let error = Error::from_reply(error);
        assert_eq!(asks_alone(&flight_of([seq(1), seq(2)]).settle(Err(error.clone()))), [1, 2]);
        assert_eq!(errors(&flight_of([seq(1)]).settle(Err(error))).len(), 1, "it was alone");
    }
    let unanswered = RequestError::NoResponders(Route::new("r"));
    let last = Some(Box::new(Error::Unreachable(unanswered)));
    let late = Error::Deadline { deadline: Duration::from_secs(9), last };
    let flight = flight_of([seq(1), seq(2)]);
    assert_eq!(flight.last_expiry(), Duration::from_secs(2));
    let settled = flight.settle(Err(late));
    let deadlines = errors(&settled).into_iter().map(|error| match error {
        Error::Deadline { deadline, last: Some(_) } => deadline.as_secs(),
        other => panic!("{other:?}"),
    });
    assert_eq!(deadlines.collect::<Vec<_>>(), [1, 2]);
}

/// What a server answers that has the messages of these numbers, and an answer of which speaks of `fits` at most.
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
    #[test]
    fn each_is_told_once_what_is_there_however_little_an_answer_holds(
        asked in proptest::collection::vec((any::<bool>(), 1_u64..20), 1..60),
        there in proptest::collection::btree_set(1_u64..20, 0..19),
        fits in 1_usize..10,
    ) {
        let wanted = |by_key, number: u64| {
            if by_key { Wanted::Key(number.to_string()) } else { Wanted::Seq(Seq::new(number)) }
        };
        let gets = asked.iter().zip(0..).map(|(&(by_key, number), ticket)| get(ticket, wanted(by_key, number)));
        let mut lane = lane_of(gets);
        let mut told = Vec::new();
        while let Some(taken) = lane.take(BUDGET) {
            let flight = Flight::new(taken);
            let request = flight.request();
            let settled = flight.settle(Ok(answer(&request, &there, fits)));
            told.extend(got(&settled));
            lane.end(Place::MAX);
            lane.answered(settled.told.len(), settled.rest);
        }
        prop_assert!(lane.is_idle());
        told.sort_unstable();
        let found = |number: u64| if there.contains(&number) { number } else { 0 };
        let expected: Vec<_> = (0..).zip(&asked).map(|(ticket, (_, number))| (ticket, found(*number))).collect();
        prop_assert_eq!(told, expected);
    }
}

/// A client whose subjects nobody serves.
async fn client() -> Client {
    let env =
        Env::simulated(Arc::new(VirtualClock::starting_at(Duration::ZERO)), Arc::new(SeededEntropy::new(1)));
    let bus = Arc::new(MemoryBroker::new().connect(MemoryOptions::named("client")));
    Client::builder().env(env).over(bus).await.unwrap()
}

/// Polls each once, so that it is on its way.
fn begin<F: Future>(gets: impl IntoIterator<Item = F>) -> Vec<Pin<Box<F>>> {
    let mut gets: Vec<_> = gets.into_iter().map(Box::pin).collect();
    for get in &mut gets {
        assert!(get.as_mut().now_or_never().is_none(), "it is not on its way");
    }
    gets
}

#[tokio::test(start_paused = true)]
async fn a_subject_to_which_nothing_is_on_its_way_costs_nothing() {
    let client = client().await;
    let streams: Vec<_> =
        (0..100).map(|number| client.stream(&format!("app.s{}", number % 20)).unwrap()).collect();
    let gets = begin(streams.iter().map(|stream| stream.get(Seq::new(1))));
    assert_eq!(client.inner.lanes.under_way(), 20);
    for outcome in join_all(gets).await {
        assert!(matches!(outcome, Err(Error::Deadline { .. })), "{outcome:?}");
    }
    // The last requests have told, and now end.
    while client.inner.lanes.under_way() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn gets_that_are_dropped_leave_nothing_behind() {
    let client = client().await;
    let stream = client.stream("app.x").unwrap();
    let mut gets = begin((0..10).map(|_| stream.get(Seq::new(1))));
    // What waits, first; then what is in flight.
    while gets.pop().is_some() {
        assert_eq!(client.inner.lanes.under_way(), usize::from(!gets.is_empty()));
    }
}

#[test]
fn where_the_runtime_ends_whoever_waits_hears_of_it_and_no_way_stays_closed() {
    let runtime = || Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (first, second) = (runtime(), runtime());
    let client = first.block_on(client());
    let stream = client.stream("app.x").unwrap();
    let mut gets = first.block_on(async { begin((0..10).map(|_| stream.get(Seq::new(1)))) });
    // Those in flight end where no runtime is any more that could send for the others.
    drop(first);
    gets.drain(..IN_FLIGHT).for_each(drop);
    for outcome in second.block_on(join_all(gets)) {
        assert!(matches!(outcome, Err(Error::Closed)), "{outcome:?}");
    }
    assert_eq!(client.inner.lanes.under_way(), 0);
}

#[test]
fn whoever_waits_hears_at_once_of_the_end_of_the_task_that_would_send_for_him() {
    let runtime = || Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (first, second) = (runtime(), runtime());
    let client = first.block_on(client());
    let stream = client.stream("app.x").unwrap();
    let (gets, sent_by_its_caller) = first.block_on(async {
        let mut gets = begin((0..5).map(|_| stream.get(Seq::new(1))));
        // The three others are in flight together now.
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
    assert_eq!(client.inner.lanes.under_way(), 0);
}
