//! Every request comes late, twice and out of order, and many answers are lost, while a second server takes over: each is carried
//! out once, and answered as it was the first time.

mod session;
#[path = "../support/mod.rs"]
mod support;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dormouse_bus::memory::{Network, Passage};
use dormouse_harness::Dice;
use dormouse_protocol::data::*;
use dormouse_protocol::{Op, Rev, SessionId};
use futures::future::join_all;
use session::{Answer, Change, REQUESTS, SESSIONS, SUBJECTS, Session, World};
use support::Fleet;
use told::{Done, Messages, by_rev, find_out, fold};

/// Delivers each request of the caller two or three times: within a second, or a minute later, in any order; and loses three
/// in ten answers. All else comes at once.
struct Rough(Mutex<Dice>);

impl Network for Rough {
    fn fates(&self, passage: Passage<'_>) -> Vec<Duration> {
        let mut dice = self.0.lock().unwrap();
        if passage.to == "caller" && passage.is_answer {
            return if dice.percent(30) {
                Vec::new()
            } else {
                vec![Duration::from_millis(dice.within(0..50))]
            };
        }
        if passage.from != "caller" || !passage.route.as_str().starts_with("persist.server.") {
            return vec![Duration::ZERO];
        }
        let mut copies: Vec<_> = (0..2).map(|_| Duration::from_millis(dice.within(1..900))).collect();
        if dice.percent(40) {
            copies.push(Duration::from_millis(dice.within(1_000..60_000)));
        }
        copies
    }
}

/// Has all sessions do what they do, and the second server take over when half is done; then waits until the last copies have
/// come. So many in a hundred requests destroy.
async fn play(destroys: u64) -> (World, Vec<(Change, Answer)>) {
    let fleet = Fleet::over(Some(Arc::new(Rough(Mutex::new(Dice::new(5)))))).await;
    let servers = [fleet.serve("a").await, fleet.serve("b").await];
    let sessions: Vec<_> = (0..SESSIONS)
        .map(|number| Session {
            id: SessionId::new(fleet.env.ulid()),
            number,
            counter: 0,
            destroys,
            dice: Dice::new(100 + number as u64),
            known: Vec::new(),
        })
        .collect();
    let (moved, answered, unheard) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let world = World { fleet, servers, moved, answered, unheard };
    let failing_over = async {
        world
            .fleet
            .until("half is done", || world.answered.load(Ordering::Relaxed) >= SESSIONS * REQUESTS / 2)
            .await;
        // From here on the second server is asked. It claims, and ends the log of the first, which goes on hearing what comes
        // late.
        world.moved.store(true, Ordering::Relaxed);
    };
    let (done, ()) =
        futures::join!(join_all(sessions.into_iter().map(|session| session.run(&world))), failing_over);
    assert!(world.unheard.load(Ordering::Relaxed) > 10, "no answer was lost");
    // The last copies come a minute late.
    tokio::time::sleep(Duration::from_secs(70)).await;
    let done = done.into_iter().flatten().collect();
    (world, done)
}

async fn info(world: &World, name: &str) -> InfoReply {
    find_out(world, Op::Info, name, &InfoRequest::default()).await
}

/// What the subject holds is what those changes lead to that were told of.
async fn check_state(world: &World, name: &str, revs: BTreeMap<Rev, Done>) {
    let (messages, config) = fold(revs);
    let page: GetAllReply = find_out(world, Op::GetAll, name, &GetAllRequest::default()).await;
    assert!(page.cursor.is_none());
    let held: Messages =
        page.messages.into_iter().map(|message| (message.seq, (message.key, message.value))).collect();
    assert_eq!(held, messages);
    let info = info(world, name).await;
    assert_eq!(info.config, config);
    assert!(info.position.term.get() > 1, "nobody took over");
}

#[tokio::test(start_paused = true)]
async fn each_request_that_comes_late_twice_and_out_of_order_is_carried_out_once_also_across_a_failover() {
    let (world, done) = play(0).await;
    // Each is sent once more, and answered as it was the first time.
    let mut last = BTreeMap::new();
    for name in SUBJECTS {
        last.insert(name, info(&world, name).await.position);
    }
    for (change, first) in &done {
        let (again, duplicate) = world.carry_out(change).await;
        assert_eq!(&again, first, "{change:?}");
        assert_eq!(duplicate, first.tells_of_repetition(), "{change:?}: {first:?}");
    }

    for name in SUBJECTS {
        let position = info(&world, name).await.position;
        assert_eq!(position, last[name], "a repeat has changed something");
        let revs = by_rev(done.iter().filter(|(change, _)| change.subject == name));
        let told: Vec<u64> = revs.keys().map(|rev| rev.get()).collect();
        let all: Vec<u64> = (1..=position.rev.get()).collect();
        assert_eq!(told, all, "a change was carried out that nobody was told of");
        check_state(&world, name, revs).await;
    }
    let refused = |answer: &Answer| match answer {
        Answer::Refused(_) => true,
        Answer::Set(outcomes) => outcomes.iter().any(|outcome| matches!(outcome, SetOutcome::Error(_))),
        _ => false,
    };
    let refusals = done.iter().filter(|(_, answer)| refused(answer)).count();
    assert!(refusals > 20, "only {refusals} were refused");
}

#[tokio::test(start_paused = true)]
async fn of_a_subject_that_is_destroyed_now_and_then_nothing_is_carried_out_again_either() {
    let (world, done) = play(4).await;
    let (mut destroyed, mut since, mut forgotten) = (0, 0, 0);
    for name in SUBJECTS {
        let done: Vec<_> = done.iter().filter(|(change, _)| change.subject == name).cloned().collect();
        let position = info(&world, name).await.position;
        let revs = by_rev(done.iter());
        let ends = || revs.iter().filter(|(_, done)| matches!(done, Done::Destroy)).map(|(rev, _)| *rev);
        let end = ends().max().expect("it was destroyed");
        destroyed += ends().count();

        // Of what was done since, and of the last destroy, the answer is known. Of all before it, nobody can say any more
        // whether it was done.
        for (change, first) in &done {
            let (again, duplicate) = world.carry_out(change).await;
            match (first, first.rev()) {
                (_, Some(rev)) if rev >= end => {
                    assert_eq!((&again, duplicate), (first, true), "{change:?}");
                    since += 1;
                }
                (_, Some(_)) | (Answer::Forgotten, _) => assert_eq!(again, Answer::Forgotten, "{change:?}"),
                // It found nothing to change, or refused, who knows when.
                (_, None) => assert!(again == *first || again == Answer::Forgotten, "{again:?}"),
            }
        }
        assert_eq!(info(&world, name).await.position, position, "a repeat has changed something");

        let told: BTreeSet<u64> = revs.keys().map(|rev| rev.get()).collect();
        let untold: Vec<u64> = (1..=position.rev.get()).filter(|rev| !told.contains(rev)).collect();
        assert!(untold.iter().all(|rev| *rev < end.get()), "who was carried out since is told: {untold:?}");
        // At most what was carried out and then forgotten before its answer was heard, two revs each.
        let unheard = done.iter().filter(|(_, answer)| *answer == Answer::Forgotten).count();
        assert!(untold.len() <= 2 * unheard, "{untold:?}, and {unheard} do not know");
        forgotten += unheard;
        check_state(&world, name, revs).await;
    }
    assert!(destroyed > 5 && since > 5 && forgotten > 0, "{destroyed}, {since}, {forgotten}");
}
