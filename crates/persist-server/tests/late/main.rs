//! Every request arrives late, twice and out of order, and many replies are lost, while a second server takes over.
//! Each request executes once, and a repeat gets the first reply.

mod outcomes;
mod session;
#[path = "../support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dormouse_bus::memory::{MessageInfo, Network};
use dormouse_harness::SeededRng;
use dormouse_protocol::data::*;
use dormouse_protocol::{Op, Rev, SessionId};
use futures::future::join_all;
use outcomes::{Done, Messages, ask_until_answered, by_rev, fold};
use session::{Change, REQUESTS, SESSIONS, SUBJECTS, Session, SessionReply, World};
use support::Fleet;

/// Delivers each request of the caller two or three times: within a second, or up to a minute later, in any order.
/// Loses three in ten replies. Delivers all other messages at once.
struct FaultyNetwork(Mutex<SeededRng>);

impl Network for FaultyNetwork {
    fn delivery_delays(&self, message: MessageInfo<'_>) -> Vec<Duration> {
        let mut rng = self.0.lock().unwrap();
        if message.to == "caller" && message.is_reply {
            return if rng.percent(30) { Vec::new() } else { vec![Duration::from_millis(rng.within(0..50))] };
        }
        if message.from != "caller" || !message.route.as_str().starts_with("persist.server.") {
            return vec![Duration::ZERO];
        }
        let mut copies: Vec<_> = (0..2).map(|_| Duration::from_millis(rng.within(1..900))).collect();
        if rng.percent(40) {
            copies.push(Duration::from_millis(rng.within(1_000..60_000)));
        }
        copies
    }
}

/// Runs all sessions, lets the second server take over when half of the requests are done, and then waits until the
/// last copies have arrived. `destroys` is the percentage of requests that destroy.
async fn run_sessions(destroys: u64) -> (World, Vec<(Change, SessionReply)>) {
    let fleet = Fleet::with_network(Some(Arc::new(FaultyNetwork(Mutex::new(SeededRng::new(5)))))).await;
    let servers = [fleet.serve("a").await, fleet.serve("b").await];
    let sessions: Vec<_> = (0..SESSIONS)
        .map(|number| Session {
            id: SessionId::new(fleet.env.ulid()),
            number,
            counter: 0,
            destroys,
            rng: SeededRng::new(100 + number as u64),
            known: Vec::new(),
        })
        .collect();
    let (moved, answered, unanswered) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let world = World { fleet, servers, moved, answered, unanswered };
    let failover = async {
        world
            .fleet
            .until("half of the requests are done", || {
                world.answered.load(Ordering::Relaxed) >= SESSIONS * REQUESTS / 2
            })
            .await;
        // From here on, requests go to the second server. It claims the subjects and seals the log of the first server,
        // which still receives late copies.
        world.moved.store(true, Ordering::Relaxed);
    };
    let (done, ()) =
        futures::join!(join_all(sessions.into_iter().map(|session| session.run(&world))), failover);
    assert!(world.unanswered.load(Ordering::Relaxed) > 10, "no reply was lost");
    // The last copies arrive a minute late.
    tokio::time::sleep(Duration::from_secs(70)).await;
    let done = done.into_iter().flatten().collect();
    (world, done)
}

async fn info(world: &World, name: &str) -> InfoReply {
    ask_until_answered(world, Op::Info, name, &InfoRequest::default()).await
}

/// Checks that the subject's state is the result of the acknowledged changes.
async fn check_state(world: &World, name: &str, revs: BTreeMap<Rev, Done>) {
    let (messages, config) = fold(revs);
    let page: GetAllReply = ask_until_answered(world, Op::GetAll, name, &GetAllRequest::default()).await;
    assert!(page.cursor.is_none());
    let held: Messages =
        page.messages.into_iter().map(|message| (message.seq, (message.key, message.value))).collect();
    assert_eq!(held, messages);
    let info = info(world, name).await;
    assert_eq!(info.config, config);
    assert!(info.position.term.get() > 1, "no takeover happened");
}

/// Late, duplicated and reordered requests execute once across a takeover, and each repeat gets the first reply.
#[tokio::test(start_paused = true)]
async fn requests_duplicated_reordered_execute_once() {
    let (world, done) = run_sessions(0).await;
    // Each change is sent once more, and gets its first reply.
    let mut last = BTreeMap::new();
    for name in SUBJECTS {
        last.insert(name, info(&world, name).await.position);
    }
    for (change, first) in &done {
        let (again, duplicate) = world.send_until_final(change).await;
        assert_eq!(&again, first, "{change:?}");
        assert_eq!(duplicate, first.marks_duplicate(), "{change:?}: {first:?}");
    }

    for name in SUBJECTS {
        let position = info(&world, name).await.position;
        assert_eq!(position, last[name], "a repeat has changed the subject");
        let revs = by_rev(done.iter().filter(|(change, _)| change.subject == name));
        let acknowledged: Vec<u64> = revs.keys().map(|rev| rev.get()).collect();
        let all: Vec<u64> = (1..=position.rev.get()).collect();
        assert_eq!(acknowledged, all, "a change executed without a reply");
        check_state(&world, name, revs).await;
    }
    let refused = |answer: &SessionReply| match answer {
        SessionReply::Refused(_) => true,
        SessionReply::Set(outcomes) => outcomes.iter().any(|outcome| matches!(outcome, SetOutcome::Error(_))),
        _ => false,
    };
    let refusals = done.iter().filter(|(_, answer)| refused(answer)).count();
    assert!(refusals > 20, "only {refusals} refusals");
}

/// Duplicated requests around destroys execute at most once; repeats of requests before the last destroy are
/// indeterminate.
#[tokio::test(start_paused = true)]
async fn requests_duplicated_around_destroys_execute_once() {
    let (world, done) = run_sessions(4).await;
    let (mut destroyed, mut since, mut indeterminate) = (0, 0, 0);
    for name in SUBJECTS {
        let done: Vec<_> = done.iter().filter(|(change, _)| change.subject == name).cloned().collect();
        let position = info(&world, name).await.position;
        let revs = by_rev(done.iter());
        let ends = || revs.iter().filter(|(_, done)| matches!(done, Done::Destroy)).map(|(rev, _)| *rev);
        let end = ends().max().expect("the subject was destroyed");
        destroyed += ends().count();

        // The last destroy and the changes after it get their first reply. The outcome of all changes before it is
        // indeterminate.
        for (change, first) in &done {
            let (again, duplicate) = world.send_until_final(change).await;
            match (first, first.rev()) {
                (_, Some(rev)) if rev >= end => {
                    assert_eq!((&again, duplicate), (first, true), "{change:?}");
                    since += 1;
                }
                (_, Some(_)) | (SessionReply::Indeterminate, _) => {
                    assert_eq!(again, SessionReply::Indeterminate, "{change:?}");
                }
                // It changed nothing or was refused, before or after the last destroy.
                (_, None) => assert!(again == *first || again == SessionReply::Indeterminate, "{again:?}"),
            }
        }
        assert_eq!(info(&world, name).await.position, position, "a repeat has changed the subject");

        let acknowledged: BTreeSet<u64> = revs.keys().map(|rev| rev.get()).collect();
        let unacknowledged: Vec<u64> =
            (1..=position.rev.get()).filter(|rev| !acknowledged.contains(rev)).collect();
        assert!(
            unacknowledged.iter().all(|rev| *rev < end.get()),
            "a change after the last destroy has no reply: {unacknowledged:?}"
        );
        // Each such rev belongs to a change that executed and lost its dedup record before its reply arrived: two revs
        // each.
        let unanswered = done.iter().filter(|(_, answer)| *answer == SessionReply::Indeterminate).count();
        assert!(
            unacknowledged.len() <= 2 * unanswered,
            "{unacknowledged:?}, and {unanswered} indeterminate changes"
        );
        indeterminate += unanswered;
        check_state(&world, name, revs).await;
    }
    assert!(destroyed > 5 && since > 5 && indeterminate > 0, "{destroyed}, {since}, {indeterminate}");
}
