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

fn hand_over(name: &str) -> MovingEffect {
    MovingEffect::HandOver(subject(name))
}

fn done(name: &str, gone: bool) -> MovingInput {
    MovingInput::Done { subject: subject(name), gone }
}

#[test]
fn an_order_is_carried_out_once_however_often_it_comes() {
    let mut moving = Moving::default();
    let order = || MovingInput::Order(subject("a"));
    assert_eq!(moving.apply(order(), at(0), true), [hand_over("a")]);
    assert_eq!(moving.apply(order(), at(1), true), []);
    assert_eq!(moving.wake_at(), None);
    assert_eq!(moving.apply(done("a", false), at(5), true), []);
    // It was not possible: the coordinator says it again, and nobody looks by himself.
    assert_eq!(moving.wake_at(), None);
    assert_eq!(moving.apply(order(), at(50), true), [hand_over("a")]);
}

#[test]
fn orders_that_find_no_room_are_dropped() {
    let mut moving = Moving::default();
    for subject in subjects(0..5_000) {
        moving.apply(MovingInput::Order(subject), at(0), true);
    }
    assert_eq!(moving.ordered.len(), MOST_ORDERS);
}

#[test]
fn without_the_coordinator_nothing_is_begun() {
    let mut moving = Moving::default();
    assert_eq!(moving.apply(MovingInput::Order(subject("a")), at(0), false), []);
    assert_eq!(moving.wake_at(), None, "the coordinator says it again when it is back");
    assert_eq!(moving.apply(MovingInput::Wish(Wish::Empty), at(0), false), [MovingEffect::Look]);
    assert_eq!(moving.apply(MovingInput::Open(vec![subject("a")]), at(0), false), []);
    assert_eq!(moving.wake_at(), Some(at(200)), "looked again at leisure");
    assert_eq!(moving.apply(MovingInput::Tick, at(200), true), [hand_over("a"), MovingEffect::Look]);
}

/// Drives the machine with a server that has `open` open and hands each over in 30 ms, until it is empty or `until`.
/// When each was begun.
fn empty(moving: &mut Moving, wish: Wish, mut open: Vec<Subject>, until: Duration) -> Vec<Duration> {
    let (mut now, mut begun, mut ends) = (Duration::ZERO, Vec::new(), VecDeque::new());
    let mut inputs = VecDeque::from([MovingInput::Wish(wish)]);
    while now < until {
        while let Some(input) = inputs.pop_front() {
            for effect in moving.apply(input, now, true) {
                match effect {
                    MovingEffect::Look => inputs.push_back(MovingInput::Open(open.clone())),
                    MovingEffect::HandOver(subject) => {
                        begun.push(now);
                        ends.push_back((now + at(30), subject));
                    }
                    MovingEffect::Empty => return begun,
                }
            }
            assert!(ends.len() <= AT_ONCE_AT_THE_END);
        }
        let wake_at = moving.wake_at().into_iter().chain(ends.front().map(|(end, _)| *end)).min();
        now = wake_at.expect("it is not empty yet").max(now);
        match ends.pop_front_if(|(end, _)| *end <= now) {
            Some((_, subject)) => {
                open.retain(|other| *other != subject);
                inputs.push_back(MovingInput::Done { subject, gone: true });
            }
            None => inputs.push_back(MovingInput::Tick),
        }
    }
    panic!("not empty at {now:?}")
}

#[test]
fn a_server_is_emptied_a_few_at_a_time_and_at_a_bounded_rate() {
    let begun = empty(&mut Moving::default(), Wish::Empty, subjects(0..500), at(60_000));
    assert_eq!(begun.len(), 500);
    assert!(begun.windows(2).all(|pair| pair[1] - pair[0] >= PAUSE), "{begun:?}");
    assert!(begun[499] < at(10_000), "{:?}", begun[499]);
    assert_eq!(empty(&mut Moving::default(), Wish::Empty, Vec::new(), at(60_000)), []);
}

#[test]
fn who_is_to_end_takes_no_pauses_and_does_not_wait_for_what_may_come() {
    let begun = empty(&mut Moving::default(), Wish::End, subjects(0..500), at(60_000));
    assert!(begun.len() == 500 && begun[499] < at(1_000), "{:?}", begun[499]);
}

#[test]
fn what_is_opened_again_at_the_end_stays() {
    let mut moving = Moving::default();
    assert_eq!(moving.apply(MovingInput::Wish(Wish::End), at(0), true), [MovingEffect::Look]);
    assert_eq!(moving.apply(MovingInput::Open(vec![subject("a")]), at(0), true), [hand_over("a")]);
    assert_eq!(moving.apply(done("a", true), at(5), true), [MovingEffect::Look]);
    let open = MovingInput::Open(vec![subject("a")]);
    assert_eq!(moving.apply(open, at(5), true), [MovingEffect::Empty], "nobody else can have it");
}

#[test]
fn what_could_not_be_handed_over_is_tried_again_and_the_server_is_not_empty_before() {
    let mut moving = Moving::default();
    moving.apply(MovingInput::Wish(Wish::Empty), at(0), true);
    assert_eq!(moving.apply(MovingInput::Open(vec![subject("a")]), at(0), true), [hand_over("a")]);
    assert_eq!(moving.apply(done("a", false), at(100), true), [MovingEffect::Look]);
    let mut begun = Vec::new();
    for now in (100..3_000).step_by(100) {
        for effect in moving.apply(MovingInput::Open(vec![subject("a")]), at(now), true) {
            match effect {
                MovingEffect::HandOver(_) => begun.push(now),
                MovingEffect::Look => {}
                MovingEffect::Empty => panic!("it is open"),
            }
        }
    }
    assert_eq!(begun, [1_100], "once it has rested; then it is under way");
}

#[test]
fn an_order_that_is_taken_back_ends_the_emptying() {
    let mut moving = Moving::default();
    moving.apply(MovingInput::Wish(Wish::Empty), at(0), true);
    moving.apply(MovingInput::Open(subjects(0..100)), at(0), true);
    assert_eq!(moving.apply(MovingInput::Wish(Wish::Serve), at(1), true), []);
    assert_eq!(moving.wake_at(), None);
    assert_eq!(moving.apply(done("app.0", true), at(30), true), []);
    assert_eq!(moving.wake_at(), None);
}
