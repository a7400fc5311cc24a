use super::*;

fn pace(puts_per_second: u32) -> Pace {
    Pace::new(&LogSettings { max_puts_per_second: puts_per_second, ..LogSettings::default() })
}

const fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

fn waiting(bytes: u64, is_wanted: bool) -> Waiting {
    Waiting { bytes, oldest: Some(seconds(100)), is_wanted }
}

#[test]
fn what_nobody_waits_for_waits_for_company() {
    let pace = pace(50);
    assert_eq!(pace.decide(&Waiting::default(), seconds(100)), Decision::Idle);
    assert_eq!(pace.decide(&waiting(10, false), seconds(100)), Decision::Wait(seconds(101)));
    assert_eq!(pace.decide(&waiting(10, false), seconds(101)), Decision::Now);
    assert_eq!(pace.decide(&waiting(4 << 20, false), seconds(100)), Decision::Now);
    assert_eq!(pace.decide(&waiting(10, true), seconds(100)), Decision::Now);
}

#[test]
fn however_much_is_wanted_the_bucket_is_not_asked_more_often_than_it_may_cost() {
    let mut pace = pace(2);
    let (mut now, mut puts) = (seconds(100), 0);
    while now < seconds(110) {
        match pace.decide(&waiting(1, true), now) {
            Decision::Now => {
                pace.shipping(now);
                puts += 1;
                assert!(puts < 100, "no end of them");
            }
            Decision::Wait(at) => {
                assert!(at > now);
                now = at;
            }
            Decision::Idle => unreachable!("something waits"),
        }
    }
    // Two a second for ten seconds, and a second's worth that was saved up.
    assert!((20..=22).contains(&puts), "{puts}");
}

#[test]
fn a_ceiling_below_one_a_second_is_one_a_second() {
    let mut pace = pace(0);
    pace.shipping(seconds(100));
    assert_eq!(pace.decide(&waiting(1, true), seconds(100)), Decision::Wait(seconds(101)));
}
