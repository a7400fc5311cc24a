use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use super::*;

fn told(events: &mut broadcast::Receiver<BusEvent>) -> Vec<BusEvent> {
    std::iter::from_fn(|| events.try_recv().ok()).collect()
}

/// Up on its first connection.
fn up() -> (Shared, broadcast::Receiver<BusEvent>) {
    let shared = Shared::new("_INBOX.me");
    shared.observe(Event::Connected);
    assert!(!shared.is_up(), "nothing has gone there and back");
    assert!(shared.set_up(1) && shared.is_up());
    let events = shared.events.subscribe();
    assert!(!shared.set_up(1), "that is no change");
    (shared, events)
}

#[test]
fn a_proof_holds_for_the_connection_it_was_made_on() {
    let (shared, _events) = up();
    shared.observe(Event::Disconnected);
    assert!(!shared.set_up(1) && !shared.is_up(), "lost before the proof was seen");
    shared.observe(Event::Connected);
    assert!(!shared.set_up(1) && !shared.is_up(), "another one");
    assert!(shared.set_up(2) && shared.is_up());
}

/// Does something at the very moment somebody could notice a change.
struct Moment<F>(F);

impl<F: Fn() + Send + Sync> Wake for Moment<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

/// Makes a change, and does `meanwhile` at the moment it shows in `watched`.
fn as_it_shows<T>(
    watched: &watch::Sender<T>,
    change: impl FnOnce(),
    meanwhile: impl Fn() + Send + Sync + 'static,
) {
    let mut watched = watched.subscribe();
    let mut changed = pin!(watched.changed());
    let waker = Waker::from(Arc::new(Moment(meanwhile)));
    assert!(changed.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    change();
    assert!(changed.poll(&mut Context::from_waker(Waker::noop())).is_ready(), "nothing has changed");
}

#[test]
fn a_connection_that_is_proven_at_once_stays_up() {
    let shared = &up().0;
    let (shows, shown) = mpsc::channel();
    let (proves, proven) = mpsc::channel();
    std::thread::scope(|scope| {
        let prover = scope.spawn(move || {
            shown.recv().unwrap();
            shared.set_up(2);
            // An error means that nobody waited for it.
            let _ = proves.send(());
        });
        let proven = Mutex::new(proven);
        as_it_shows(
            &shared.socket,
            || shared.observe(Event::Connected),
            move || {
                shows.send(()).unwrap();
                // Who tells of the connection is not done yet: the proof waits for that, or comes in between now.
                let _ = proven.lock().unwrap().recv_timeout(Duration::from_millis(100));
            },
        );
        prover.join().unwrap();
    });
    assert!(shared.is_up(), "it was proven and is down");
}

#[test]
fn who_sees_a_change_has_been_told_of_it() {
    let (shared, events) = up();
    let events = Arc::new(Mutex::new(events));
    let told_as_it_shows = |change: &dyn Fn()| {
        let (telling, heard) = mpsc::channel();
        let events = Arc::clone(&events);
        as_it_shows(&shared.link, change, move || {
            telling.send(told(&mut events.lock().unwrap())).unwrap();
        });
        heard.recv().unwrap()
    };
    for generation in 2..4 {
        let lost = told_as_it_shows(&|| shared.observe(Event::Connected));
        assert_eq!(lost, [BusEvent::Disconnected], "connection {generation}");
        let proven = told_as_it_shows(&|| assert!(shared.set_up(generation)));
        assert_eq!(proven, [BusEvent::Connected], "connection {generation}");
    }
    let lost = told_as_it_shows(&|| shared.observe(Event::Disconnected));
    assert_eq!(lost, [BusEvent::Disconnected]);
}

#[test]
fn a_connection_while_one_is_up_is_another_one() {
    let (shared, mut events) = up();
    shared.observe(Event::Connected);
    assert!(!shared.is_up());
    assert_eq!(told(&mut events), [BusEvent::Disconnected]);
    assert!(shared.set_up(2));
}

#[test]
fn events_that_the_library_lost_are_found() {
    // What the library says; the generation that must be proven then.
    for (lost, connects, connected, generation) in [
        ("a loss", 1, false, None),
        ("a loss and a connection", 2, true, Some(2)),
        ("two losses and two connections", 3, true, Some(3)),
    ] {
        let (shared, mut events) = up();
        let mut lookout = Lookout::default();
        shared.look(&mut lookout, 1, true);
        shared.look(&mut lookout, 1, true);
        shared.look(&mut lookout, connects, connected);
        assert!(shared.is_up(), "{lost}: the event may be on its way");
        shared.look(&mut lookout, connects, connected);
        assert!(!shared.is_up(), "{lost}");
        assert_eq!(told(&mut events), [BusEvent::Disconnected], "{lost}");
        if let Some(generation) = generation {
            assert!(shared.set_up(generation), "{lost}");
            assert_eq!(told(&mut events), [BusEvent::Connected], "{lost}");
        }
        shared.look(&mut lookout, connects, connected);
        shared.look(&mut lookout, connects, connected);
        assert_eq!((shared.is_up(), told(&mut events)), (generation.is_some(), Vec::new()), "{lost}");
    }
}

#[test]
fn a_lost_word_of_a_connection_is_made_up_for() {
    let (shared, _events) = up();
    shared.observe(Event::Disconnected);
    let mut lookout = Lookout::default();
    for _ in 0..2 {
        assert!(!shared.socket.borrow().connected);
        shared.look(&mut lookout, 2, true);
    }
    assert!(shared.socket.borrow().connected && shared.set_up(2));
}

#[test]
fn an_event_that_comes_late_is_none_that_was_lost() {
    let (shared, mut events) = up();
    let mut lookout = Lookout::default();
    shared.look(&mut lookout, 2, true);
    shared.observe(Event::Disconnected);
    shared.look(&mut lookout, 2, true);
    shared.observe(Event::Connected);
    assert!(shared.set_up(2));
    shared.look(&mut lookout, 2, true);
    shared.look(&mut lookout, 2, true);
    assert!(shared.is_up());
    assert_eq!(told(&mut events), [BusEvent::Disconnected, BusEvent::Connected]);
}

#[test]
fn closed_is_closed() {
    let (shared, _events) = up();
    assert!(shared.set_closed() && !shared.set_closed());
    shared.observe(Event::Connected);
    assert!(!shared.set_up(2) && shared.is_closed());
}

#[test]
fn refusals_are_read() {
    for (text, expected) in [
        ("Permissions Violation for Publish to \"a.b\"", Some(Violation::Publish("a.b".into()))),
        ("Permissions Violation for Publish to \"a\\\"b\\\\\"", Some(Violation::Publish("a\"b\\".into()))),
        (
            "Permissions Violation for Subscription to \"a.>\"",
            Some(Violation::Subscribe { pattern: "a.>".into(), queue: None }),
        ),
        (
            "Permissions Violation for Subscription to \"a\" using queue \"q\"",
            Some(Violation::Subscribe { pattern: "a".into(), queue: Some("q".into()) }),
        ),
        (
            r#"Permissions Violation for Publish to "a\u200db\U000e0001""#,
            Some(Violation::Publish("a\u{200d}b\u{e0001}".into())),
        ),
        (r#"Permissions Violation for Publish to "a\u200""#, None),
        (r#"Permissions Violation for Publish to "a\ud800""#, None),
        ("Permissions Violation for Publish to \"a", None),
        ("Permissions Violation for Publish to ", None),
        ("Stale Connection", None),
    ] {
        assert_eq!(Violation::parse(text), expected, "{text}");
    }
}
