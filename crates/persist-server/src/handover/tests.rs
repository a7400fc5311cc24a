use super::*;

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn subject(name: &str) -> Subject {
    Subject::new(name).unwrap()
}

fn subjects(range: std::ops::Range<usize>) -> Vec<Subject> {
    range.map(|number| subject(&format!("app.{number}"))).collect()
}

fn hand_over(name: &str) -> HandoverEffect {
    HandoverEffect::HandOver(subject(name))
}

fn done(name: &str, gone: bool) -> HandoverInput {
    HandoverInput::Done { subject: subject(name), gone }
}

/// A repeated handover order starts one handover; after a failed handover, a new order starts another.
#[test]
fn handover_order_repeated_runs_once() {
    let mut machine = HandoverMachine::default();
    let order = || HandoverInput::Order(subject("a"));
    assert_eq!(machine.apply(order(), at(0), true), [hand_over("a")]);
    assert_eq!(machine.apply(order(), at(1), true), []);
    assert_eq!(machine.wake_at(), None);
    assert_eq!(machine.apply(done("a", false), at(5), true), []);
    // The handover failed: the machine does not retry on its own, the coordinator repeats the order.
    assert_eq!(machine.wake_at(), None);
    assert_eq!(machine.apply(order(), at(50), true), [hand_over("a")]);
}

/// The server drops handover orders above its limit.
#[test]
fn handover_orders_over_limit_are_dropped() {
    let mut machine = HandoverMachine::default();
    for subject in subjects(0..5_000) {
        machine.apply(HandoverInput::Order(subject), at(0), true);
    }
    assert_eq!(machine.ordered.len(), MAX_ORDERS);
}

/// Without a coordinator the server drops handover orders, and a drain waits until the coordinator is back.
#[test]
fn handover_without_coordinator_starts_nothing() {
    let mut machine = HandoverMachine::default();
    assert_eq!(machine.apply(HandoverInput::Order(subject("a")), at(0), false), []);
    assert_eq!(machine.wake_at(), None, "the coordinator repeats the order when it is back");
    assert_eq!(
        machine.apply(HandoverInput::SetGoal(HandoverGoal::Drain), at(0), false),
        [HandoverEffect::ListOpen]
    );
    assert_eq!(machine.apply(HandoverInput::Open(vec![subject("a")]), at(0), false), []);
    assert_eq!(machine.wake_at(), Some(at(200)), "the machine lists again after the interval");
    assert_eq!(machine.apply(HandoverInput::Tick, at(200), true), [hand_over("a"), HandoverEffect::ListOpen]);
}

/// Drives the machine with a server whose subjects `open` are open, with 30 ms per handover, until it is empty or
/// `until`. Returns the start time of each handover.
fn empty(
    machine: &mut HandoverMachine,
    goal: HandoverGoal,
    mut open: Vec<Subject>,
    until: Duration,
) -> Vec<Duration> {
    let (mut now, mut starts, mut ends) = (Duration::ZERO, Vec::new(), VecDeque::new());
    let mut inputs = VecDeque::from([HandoverInput::SetGoal(goal)]);
    while now < until {
        while let Some(input) = inputs.pop_front() {
            for effect in machine.apply(input, now, true) {
                match effect {
                    HandoverEffect::ListOpen => inputs.push_back(HandoverInput::Open(open.clone())),
                    HandoverEffect::HandOver(subject) => {
                        starts.push(now);
                        ends.push_back((now + at(30), subject));
                    }
                    HandoverEffect::Empty => return starts,
                }
            }
            assert!(ends.len() <= MAX_CONCURRENT_AT_SHUTDOWN);
        }
        let wake_at = machine.wake_at().into_iter().chain(ends.front().map(|(end, _)| *end)).min();
        now = wake_at.expect("the machine has a due time until it is empty").max(now);
        match ends.pop_front_if(|(end, _)| *end <= now) {
            Some((_, subject)) => {
                open.retain(|other| *other != subject);
                inputs.push_back(HandoverInput::Done { subject, gone: true });
            }
            None => inputs.push_back(HandoverInput::Tick),
        }
    }
    panic!("not empty at {now:?}")
}

/// A drain hands over a few subjects at once, with a pause between starts, until none is open.
#[test]
fn drain_hands_over_few_subjects_at_once_at_bounded_rate() {
    let starts = empty(&mut HandoverMachine::default(), HandoverGoal::Drain, subjects(0..500), at(60_000));
    assert_eq!(starts.len(), 500);
    assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= START_PAUSE), "{starts:?}");
    assert!(starts[499] < at(10_000), "{:?}", starts[499]);
    assert_eq!(empty(&mut HandoverMachine::default(), HandoverGoal::Drain, Vec::new(), at(60_000)), []);
}

/// A shutdown hands over 500 subjects within one second, without pauses and without a quiet period at the end.
#[test]
fn shutdown_hands_over_subjects_without_pauses() {
    let starts = empty(&mut HandoverMachine::default(), HandoverGoal::Shutdown, subjects(0..500), at(60_000));
    assert!(starts.len() == 500 && starts[499] < at(1_000), "{:?}", starts[499]);
}

/// If a subject opens again during a shutdown, the server finishes and does not hand it over again.
#[test]
fn shutdown_does_not_hand_over_reopened_subject() {
    let mut machine = HandoverMachine::default();
    assert_eq!(
        machine.apply(HandoverInput::SetGoal(HandoverGoal::Shutdown), at(0), true),
        [HandoverEffect::ListOpen]
    );
    assert_eq!(machine.apply(HandoverInput::Open(vec![subject("a")]), at(0), true), [hand_over("a")]);
    assert_eq!(machine.apply(done("a", true), at(5), true), [HandoverEffect::ListOpen]);
    let open = HandoverInput::Open(vec![subject("a")]);
    assert_eq!(machine.apply(open, at(5), true), [HandoverEffect::Empty], "no other server can take it");
}

/// A drain retries a failed handover after one second and is not complete before it succeeds.
#[test]
fn drain_retries_failed_handover_before_it_completes() {
    let mut machine = HandoverMachine::default();
    machine.apply(HandoverInput::SetGoal(HandoverGoal::Drain), at(0), true);
    assert_eq!(machine.apply(HandoverInput::Open(vec![subject("a")]), at(0), true), [hand_over("a")]);
    assert_eq!(machine.apply(done("a", false), at(100), true), [HandoverEffect::ListOpen]);
    let mut starts = Vec::new();
    for now in (100..3_000).step_by(100) {
        for effect in machine.apply(HandoverInput::Open(vec![subject("a")]), at(now), true) {
            match effect {
                HandoverEffect::HandOver(_) => starts.push(now),
                HandoverEffect::ListOpen => {}
                HandoverEffect::Empty => panic!("the subject is still open"),
            }
        }
    }
    assert_eq!(starts, [1_100], "one retry after the delay, then a handover in progress");
}

/// An undrain ends a running drain, and the server starts no further handover.
#[test]
fn undrain_ends_running_drain() {
    let mut machine = HandoverMachine::default();
    machine.apply(HandoverInput::SetGoal(HandoverGoal::Drain), at(0), true);
    machine.apply(HandoverInput::Open(subjects(0..100)), at(0), true);
    assert_eq!(machine.apply(HandoverInput::SetGoal(HandoverGoal::Serve), at(1), true), []);
    assert_eq!(machine.wake_at(), None);
    assert_eq!(machine.apply(done("app.0", true), at(30), true), []);
    assert_eq!(machine.wake_at(), None);
}
