use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use super::*;

/// Returns the events received so far.
fn drain_events(events: &mut broadcast::Receiver<BusEvent>) -> Vec<BusEvent> {
    std::iter::from_fn(|| events.try_recv().ok()).collect()
}

/// A link that is up on its first connection.
fn up() -> (LinkShared, broadcast::Receiver<BusEvent>) {
    let shared = LinkShared::new("test", "_INBOX.me");
    shared.observe(Event::Connected);
    assert!(!shared.is_up(), "no round trip yet");
    assert!(shared.set_up(1) && shared.is_up());
    let events = shared.events.subscribe();
    assert!(!shared.set_up(1), "the link was already up");
    (shared, events)
}

/// A proof makes the link connected only if the tested connection is still the current one.
#[test]
fn link_proof_is_valid_for_one_connection() {
    let (shared, _events) = up();
    shared.observe(Event::Disconnected);
    assert!(!shared.set_up(1) && !shared.is_up(), "lost before the proof");
    shared.observe(Event::Connected);
    assert!(!shared.set_up(1) && !shared.is_up(), "the proof is of the earlier connection");
    assert!(shared.set_up(2) && shared.is_up());
}

/// Runs a function at the moment when a change becomes visible.
struct RunOnWake<F>(F);

impl<F: Fn() + Send + Sync> Wake for RunOnWake<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

/// Makes a change, and runs `meanwhile` at the moment when it becomes visible in `watched`.
fn run_when_change_is_visible<T>(
    watched: &watch::Sender<T>,
    change: impl FnOnce(),
    meanwhile: impl Fn() + Send + Sync + 'static,
) {
    let mut watched = watched.subscribe();
    let mut changed = pin!(watched.changed());
    let waker = Waker::from(Arc::new(RunOnWake(meanwhile)));
    assert!(changed.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    change();
    assert!(changed.poll(&mut Context::from_waker(Waker::noop())).is_ready(), "the change is not visible");
}

/// If the proof arrives during the connect event, the link stays connected.
#[test]
fn link_proven_during_connect_event_stays_up() {
    let shared = &up().0;
    let (visible, is_visible) = mpsc::channel();
    let (proves, proven) = mpsc::channel();
    std::thread::scope(|scope| {
        let prover = scope.spawn(move || {
            is_visible.recv().unwrap();
            shared.set_up(2);
            // An error means that the receiver has ended.
            let _ = proves.send(());
        });
        let proven = Lock::new(proven);
        run_when_change_is_visible(
            &shared.socket,
            || shared.observe(Event::Connected),
            move || {
                visible.send(()).unwrap();
                // The connect event is still being handled: the proof waits for its end, or happens in between now.
                let _ = proven.lock().recv_timeout(Duration::from_millis(100));
            },
        );
        prover.join().unwrap();
    });
    assert!(shared.is_up(), "the link is down after its proof");
}

/// When a state change of the link is visible, its event has been sent.
#[test]
fn link_event_is_sent_before_change_is_visible() {
    let (shared, events) = up();
    let events = Arc::new(Lock::new(events));
    let events_when_visible = |change: &dyn Fn()| {
        let (sender, received) = mpsc::channel();
        let events = Arc::clone(&events);
        run_when_change_is_visible(&shared.link, change, move || {
            sender.send(drain_events(&mut events.lock())).unwrap();
        });
        received.recv().unwrap()
    };
    for generation in 2..4 {
        let lost = events_when_visible(&|| shared.observe(Event::Connected));
        assert_eq!(lost, [BusEvent::Disconnected], "connection {generation}");
        let proven = events_when_visible(&|| assert!(shared.set_up(generation)));
        assert_eq!(proven, [BusEvent::Connected], "connection {generation}");
    }
    let lost = events_when_visible(&|| shared.observe(Event::Disconnected));
    assert_eq!(lost, [BusEvent::Disconnected]);
}

/// A connect event on a connected link means a new connection: the link reports a disconnect and needs a new proof.
#[test]
fn link_second_connect_event_means_new_connection() {
    let (shared, mut events) = up();
    shared.observe(Event::Connected);
    assert!(!shared.is_up());
    assert_eq!(drain_events(&mut events), [BusEvent::Disconnected]);
    assert!(shared.set_up(2));
}

/// The link detects disconnects and connects that the library did not report.
#[test]
fn link_detects_events_lost_by_library() {
    // The lost events, the polled state of the library, and the generation that needs a proof.
    for (lost, connects, connected, generation) in [
        ("a loss", 1, false, None),
        ("a loss and a connection", 2, true, Some(2)),
        ("two losses and two connections", 3, true, Some(3)),
    ] {
        let (shared, mut events) = up();
        let mut detector = LostEventDetector::default();
        shared.detect_lost_event(&mut detector, 1, true);
        shared.detect_lost_event(&mut detector, 1, true);
        shared.detect_lost_event(&mut detector, connects, connected);
        assert!(shared.is_up(), "{lost}: the event may be in flight");
        shared.detect_lost_event(&mut detector, connects, connected);
        assert!(!shared.is_up(), "{lost}");
        assert_eq!(drain_events(&mut events), [BusEvent::Disconnected], "{lost}");
        if let Some(generation) = generation {
            assert!(shared.set_up(generation), "{lost}");
            assert_eq!(drain_events(&mut events), [BusEvent::Connected], "{lost}");
        }
        shared.detect_lost_event(&mut detector, connects, connected);
        shared.detect_lost_event(&mut detector, connects, connected);
        assert_eq!((shared.is_up(), drain_events(&mut events)), (generation.is_some(), Vec::new()), "{lost}");
    }
}

/// If the library does not report a connect, the link detects the connection.
#[test]
fn link_recovers_lost_connect_event() {
    let (shared, _events) = up();
    shared.observe(Event::Disconnected);
    let mut detector = LostEventDetector::default();
    for _ in 0..2 {
        assert!(!shared.socket.borrow().connected);
        shared.detect_lost_event(&mut detector, 2, true);
    }
    assert!(shared.socket.borrow().connected && shared.set_up(2));
}

/// The link does not count a late event as lost.
#[test]
fn link_late_event_is_not_counted_as_lost() {
    let (shared, mut events) = up();
    let mut detector = LostEventDetector::default();
    shared.detect_lost_event(&mut detector, 2, true);
    shared.observe(Event::Disconnected);
    shared.detect_lost_event(&mut detector, 2, true);
    shared.observe(Event::Connected);
    assert!(shared.set_up(2));
    shared.detect_lost_event(&mut detector, 2, true);
    shared.detect_lost_event(&mut detector, 2, true);
    assert!(shared.is_up());
    assert_eq!(drain_events(&mut events), [BusEvent::Disconnected, BusEvent::Connected]);
}

/// A closed link stays closed, even after a connect event.
#[test]
fn link_closed_stays_closed() {
    let (shared, _events) = up();
    assert!(shared.set_closed() && !shared.set_closed());
    shared.observe(Event::Connected);
    assert!(!shared.set_up(2) && shared.is_closed());
}

/// The parser reads permission violations of the NATS server and ignores other texts.
#[test]
fn permission_violation_text_is_parsed() {
    for (text, expected) in [
        ("Permissions Violation for Publish to \"a.b\"", Some(PermissionViolation::Publish("a.b".into()))),
        (
            "Permissions Violation for Publish to \"a\\\"b\\\\\"",
            Some(PermissionViolation::Publish("a\"b\\".into())),
        ),
        (
            "Permissions Violation for Subscription to \"a.>\"",
            Some(PermissionViolation::Subscribe { pattern: "a.>".into(), queue: None }),
        ),
        (
            "Permissions Violation for Subscription to \"a\" using queue \"q\"",
            Some(PermissionViolation::Subscribe { pattern: "a".into(), queue: Some("q".into()) }),
        ),
        (
            r#"Permissions Violation for Publish to "a\u200db\U000e0001""#,
            Some(PermissionViolation::Publish("a\u{200d}b\u{e0001}".into())),
        ),
        (r#"Permissions Violation for Publish to "a\u200""#, None),
        (r#"Permissions Violation for Publish to "a\ud800""#, None),
        ("Permissions Violation for Publish to \"a", None),
        ("Permissions Violation for Publish to ", None),
        ("Stale Connection", None),
    ] {
        assert_eq!(PermissionViolation::parse(text), expected, "{text}");
    }
}
