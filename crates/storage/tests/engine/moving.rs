//! Handing over one subject while the others are served.

use std::sync::atomic::Ordering;
use std::time::Duration;

use dormouse_protocol::data::GetRequest;
use dormouse_protocol::{ErrorCode, Level};
use dormouse_storage::api::{HandedOver, Request};
use dormouse_storage::bucket::Operation;

use crate::support::{World, large, messages_in, pairs, set_request, set_result, subject};

const APP: &str = "app.orders";

/// Longer than a subject stays open that nobody asks for.
const SLEEP: Duration = Duration::from_secs(70);

#[test]
fn a_subject_is_handed_over_while_the_others_are_served() {
    let world = World::on_disk();
    let (app, other) = (subject(APP), subject("app.other"));
    let first = world.server("persist-1");
    for n in 0..10 {
        first.set(&app, &format!("k{n}"), "v").unwrap();
    }
    let last = first.set(&app, "big", &large()).unwrap();
    first.set(&other, "a", "1").unwrap();
    assert_eq!(first.hand_over(&app).unwrap(), HandedOver::Released);
    assert_eq!(*first.authority.released.lock().unwrap(), std::slice::from_ref(&app));
    let figures = first.engine.figures();
    assert_eq!((figures.handed_over, figures.open_subjects, figures.claims), (1, 1, 2));
    assert_eq!(
        messages_in(&world.snapshot(&app)).len(),
        11,
        "a plain file, and nothing of the log is needed"
    );

    let second = world.server("persist-2");
    let next = second.set(&app, "next", "v").unwrap();
    assert_eq!((next.rev, next.term), (last.rev.next(), last.term.next()));
    assert_eq!(first.get(&other, "a").unwrap().as_deref(), Some("1"), "served all the while");
    let error = first.get(&app, "big").unwrap_err();
    assert_eq!((error.code, error.owner), (ErrorCode::NotOwner, Some("persist-2".parse().unwrap())));
}

#[test]
fn who_asks_during_a_hand_over_is_sent_elsewhere_and_nothing_came_of_it() {
    for handed_back in [false, true] {
        let world = World::in_memory();
        let app = subject(APP);
        let first = world.server("persist-1");
        first.set(&app, "a", "1").unwrap();
        let held = world.bucket.hold(Operation::Create, "manifest", handed_back);
        let handing_over = first.ask(&app, Request::HandOver);
        first.until("the manifest is on its way", || held.reached() == 1);
        let asked = [set_request("b", "2"), Request::Get(GetRequest::key("a")), Request::Flush];
        let asked = asked.map(|request| first.ask(&app, request));
        first.pass(Duration::from_secs(1));
        assert!(asked.iter().all(|asked| asked.answer().is_none()), "neither taken nor read");
        drop(held);
        handing_over.wait(&first).unwrap();
        for asked in asked {
            assert_eq!(asked.wait(&first).unwrap_err().code, ErrorCode::NotOwner);
        }
        assert_eq!(world.server("persist-2").all(&app).unwrap(), pairs(&[("a", "1")]));
    }
}

#[test]
fn changes_under_way_when_a_subject_is_handed_over_are_answered_and_kept() {
    let world = World::in_memory();
    let app = subject(APP);
    let first = world.server("persist-1");
    first.set(&app, "a", "1").unwrap();
    let held = world.bucket.hold(Operation::Create, "logs", false);
    let set = first.ask(&app, set_request("b", "2"));
    let handing_over = first.ask(&app, Request::HandOver);
    first.pass(Duration::from_secs(1));
    assert!(handing_over.answer().is_none() && set.answer().is_none());
    drop(held);
    set_result(set.wait(&first)).unwrap();
    handing_over.wait(&first).unwrap();
    assert_eq!(world.server("persist-2").all(&app).unwrap(), pairs(&[("a", "1"), ("b", "2")]));
}

#[test]
fn a_sleeping_subject_of_ones_own_is_handed_over_without_a_claim() {
    let world = World::in_memory();
    let app = subject(APP);
    let first = world.server("persist-1");
    let last = first.set(&app, "a", "1").unwrap();
    first.pass(SLEEP);
    assert_eq!(first.engine.figures().open_subjects, 0);
    let asked = first.authority.asked.load(Ordering::SeqCst);
    assert_eq!(first.hand_over(&app).unwrap(), HandedOver::Released);
    assert_eq!(first.authority.asked.load(Ordering::SeqCst), asked);
    let next = world.server("persist-2").set(&app, "b", "2").unwrap();
    assert_eq!((next.rev, next.term), (last.rev.next(), last.term.next()), "one claim, and nobody was asked");
}

#[test]
fn what_is_not_ones_own_is_left_alone_and_said_to_be_free() {
    let world = World::in_memory();
    let (app, unknown) = (subject(APP), subject("app.unknown"));
    let first = world.server("persist-1");
    first.set(&app, "a", "1").unwrap();
    let second = world.server("persist-2");
    for name in [&app, &unknown] {
        assert_eq!(second.hand_over(name).unwrap(), HandedOver::NotHeld);
    }
    assert_eq!(second.authority.asked.load(Ordering::SeqCst), 0, "nothing was claimed");
    assert_eq!(*second.authority.released.lock().unwrap(), [app.clone(), unknown]);
    assert_eq!(first.get(&app, "a").unwrap().as_deref(), Some("1"));
    // A second time it is no more there than elsewhere.
    assert_eq!(first.hand_over(&app).unwrap(), HandedOver::Released);
    assert_eq!(first.hand_over(&app).unwrap(), HandedOver::NotHeld);
}

#[test]
fn hand_overs_that_are_asked_for_together_are_one() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "a", "1").unwrap();
    let asked: Vec<_> = (0..5).map(|_| server.ask(&app, Request::HandOver)).collect();
    for asked in asked {
        asked.wait(&server).unwrap();
    }
    assert_eq!((server.engine.figures().handed_over, server.engine.figures().publications), (1, 1));
}

#[test]
fn a_subject_that_the_bucket_does_not_take_goes_on_being_served() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.configure(&app, Level::Disk);
    server.set(&app, "a", "1").unwrap();
    server.get(&app, "a").unwrap();
    world.bucket.set_gone(true);
    server.set(&app, "b", "2").unwrap();
    let handing_over = server.ask(&app, Request::HandOver);
    server.pass(Duration::from_secs(5));
    assert_eq!(server.get(&app, "b").unwrap().as_deref(), Some("2"), "read all the while");
    assert_eq!(handing_over.wait(&server).unwrap_err().code, ErrorCode::Unavailable);
    world.bucket.set_gone(false);
    server.set(&app, "c", "3").unwrap();
    assert_eq!(server.info(&app).position.term.get(), 1, "it never was anybody else's to claim");
    assert_eq!(server.hand_over(&app).unwrap(), HandedOver::Released);
}

#[test]
fn a_hand_over_without_an_answer_is_settled_before_anything_is_accepted_or_read() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "a", "1").unwrap();
    world.bucket.creates_unanswered.store(true, Ordering::SeqCst);
    let handing_over = server.ask(&app, Request::HandOver);
    server.pass(Duration::from_secs(30));
    let asked = [set_request("b", "2"), Request::Get(GetRequest::key("a"))];
    let asked = asked.map(|request| server.ask(&app, request));
    for asked in &asked {
        assert_eq!(asked.wait(&server).unwrap_err().code, ErrorCode::Unavailable);
    }
    assert!(handing_over.answer().is_none());
    world.bucket.creates_unanswered.store(false, Ordering::SeqCst);
    handing_over.wait(&server).unwrap();
    assert_eq!(world.server("persist-2").all(&app).unwrap(), pairs(&[("a", "1")]));
}

#[test]
fn an_engine_that_begins_anew_owns_nothing_and_whatever_slept_is_anybodys() {
    let world = World::in_memory();
    let (asleep, open) = (subject("app.asleep"), subject("app.open"));
    let first = world.server("persist-1");
    first.set(&asleep, "a", "1").unwrap();
    first.pass(SLEEP);
    first.set(&open, "b", "2").unwrap();
    let old = first.log();
    let first = first.begin_anew();
    assert_ne!(first.log(), old);
    assert_eq!((first.engine.figures().open_subjects, first.engine.figures().claims), (0, 0));
    world.fleet.declare_dead(&old);
    let second = world.server("persist-2");
    assert_eq!(second.all(&asleep).unwrap(), pairs(&[("a", "1")]));
    assert_eq!(second.all(&open).unwrap(), pairs(&[("b", "2")]));
    assert_eq!(first.get(&open, "b").unwrap_err().code, ErrorCode::NotOwner);
    first.set(&subject("app.new"), "c", "3").unwrap();
}
