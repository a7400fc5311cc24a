use super::*;

fn schedule(puts_per_second: u32) -> ShipSchedule {
    ShipSchedule::new(&LogSettings { max_puts_per_second: puts_per_second, ..LogSettings::default() })
}

const fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

fn waiting(bytes: u64, is_wanted: bool) -> Unshipped {
    Unshipped { bytes, oldest: Some(seconds(100)), is_awaited: is_wanted }
}

/// Unawaited writes ship after the batching delay or at the size limit; awaited writes ship at once.
#[test]
fn ship_schedule_delays_unawaited_writes() {
    let schedule = schedule(50);
    assert_eq!(schedule.decide(&Unshipped::default(), seconds(100)), FlushDecision::Idle);
    assert_eq!(schedule.decide(&waiting(10, false), seconds(100)), FlushDecision::Wait(seconds(101)));
    assert_eq!(schedule.decide(&waiting(10, false), seconds(101)), FlushDecision::Now);
    assert_eq!(schedule.decide(&waiting(4 << 20, false), seconds(100)), FlushDecision::Now);
    assert_eq!(schedule.decide(&waiting(10, true), seconds(100)), FlushDecision::Now);
}

/// Under constant demand, the schedule ships no more segments than the maximum put rate allows.
#[test]
fn ship_schedule_never_exceeds_put_rate() {
    let mut schedule = schedule(2);
    let (mut now, mut puts) = (seconds(100), 0);
    while now < seconds(110) {
        match schedule.decide(&waiting(1, true), now) {
            FlushDecision::Now => {
                schedule.shipping(now);
                puts += 1;
                assert!(puts < 100, "unbounded number of puts");
            }
            FlushDecision::Wait(at) => {
                assert!(at > now);
                now = at;
            }
            FlushDecision::Idle => unreachable!("a write waits"),
        }
    }
    // Two a second for ten seconds, and the unused capacity of one second.
    assert!((20..=22).contains(&puts), "{puts}");
}

/// A maximum put rate below one per second counts as one per second.
#[test]
fn ship_schedule_minimum_rate_is_one_per_second() {
    let mut schedule = schedule(0);
    schedule.shipping(seconds(100));
    assert_eq!(schedule.decide(&waiting(1, true), seconds(100)), FlushDecision::Wait(seconds(101)));
}
