//! The lease rule: scripts, and random runs against a simple count.

use dormouse_runtime::{Entropy, SeededEntropy};

use super::*;

const TTL: Duration = Duration::from_secs(3);
const INTERVAL: Duration = Duration::from_millis(500);

/// Signs of life that are all of `now`.
fn alive(now: Duration) -> LivenessSample {
    LivenessSample { advanced_at: now, round_trip_at: now, control_round_trip_at: now, wal_busy_since: None }
}

/// Checks `sample` at each of the next `checks` due times, and returns the effects.
fn check(
    machine: &mut LivenessMachine,
    checks: u32,
    sample: impl Fn(Duration) -> LivenessSample,
) -> Vec<Option<LivenessEffect>> {
    let mut one = || {
        let now = machine.check_at();
        machine.check(&sample(now), now)
    };
    (0..checks).map(|_| one()).collect()
}

fn machine() -> LivenessMachine {
    LivenessMachine::new(Duration::ZERO, TTL)
}

/// Each sign of life may be one TTL old. An older one forbids the renewal, the data thread's first.
#[test]
fn lease_renewal_needs_each_sign_of_life() {
    let (now, old) = (Duration::from_secs(100), Duration::from_micros(96_999_999));
    let limit = now - TTL;
    let good = alive(limit);
    assert_eq!(LivenessSample { wal_busy_since: Some(limit), ..good }.stall(TTL, now), None);
    let sample = LivenessSample { round_trip_at: old, ..good };
    assert_eq!(sample.stall(TTL, now), Some(StallCause::DataConnection));
    let sample = LivenessSample { wal_busy_since: Some(old), ..sample };
    assert_eq!(sample.stall(TTL, now), Some(StallCause::Wal));
    let sample = LivenessSample { advanced_at: old, ..sample };
    assert_eq!(sample.stall(TTL, now), Some(StallCause::DataThread));
    assert_eq!(LivenessSample { control_round_trip_at: old, ..good }.stall(TTL, now), None);
}

/// Checks come every TTL/6, counted from the last check. A shorter TTL brings the next check forward.
#[test]
fn liveness_check_is_due_every_sixth_of_ttl() {
    let mut machine = machine();
    assert_eq!(machine.check_at(), INTERVAL);
    assert_eq!(machine.check(&alive(Duration::ZERO), INTERVAL / 2), None);
    assert_eq!(machine.check_at(), INTERVAL, "an early check is no check");
    machine.check(&alive(Duration::ZERO), 3 * INTERVAL);
    assert_eq!(machine.check_at(), 4 * INTERVAL);
    machine.set_ttl(TTL / 10, 3 * INTERVAL);
    assert_eq!(machine.check_at(), 3 * INTERVAL + INTERVAL / 10);
}

/// A hanging data thread is logged once, and the process ends at the 18th check in a row.
#[test]
fn stalled_process_ends_after_18_checks() {
    for (cause, sample) in [
        (StallCause::DataThread, LivenessSample { advanced_at: Duration::ZERO, ..alive(Duration::ZERO) }),
        (StallCause::Wal, LivenessSample { wal_busy_since: Some(Duration::ZERO), ..alive(Duration::ZERO) }),
        (
            StallCause::DataConnection,
            LivenessSample { round_trip_at: Duration::ZERO, ..alive(Duration::ZERO) },
        ),
    ] {
        let stalled = |now| match cause {
            StallCause::DataThread => LivenessSample { advanced_at: sample.advanced_at, ..alive(now) },
            StallCause::Wal => LivenessSample { wal_busy_since: sample.wal_busy_since, ..alive(now) },
            StallCause::DataConnection => {
                LivenessSample { round_trip_at: sample.round_trip_at, ..alive(now) }
            }
        };
        let mut machine = machine();
        assert_eq!(check(&mut machine, 6, stalled), [None; 6], "{cause:?}: still within one TTL");
        let mut effects = [None; 18];
        effects[1] = Some(LivenessEffect::Warn(cause));
        effects[17] = Some(LivenessEffect::Exit(cause));
        assert_eq!(check(&mut machine, 18, stalled), effects, "{cause:?}");
    }
}

/// A suspended process finds old signs of life in one check. It neither ends nor warns when it continues.
#[test]
fn suspended_process_continues_without_warning() {
    let mut machine = machine();
    let resumed_at = Duration::from_secs(100_000);
    assert_eq!(machine.check(&alive(Duration::ZERO), resumed_at), None);
    assert_eq!(check(&mut machine, 20, alive), [None; 20]);
}

/// An outage of the messaging system stalls both connections: it never ends the process and needs no log line.
#[test]
fn outage_of_both_connections_ends_no_process() {
    let mut machine = machine();
    let outage = |now| LivenessSample { advanced_at: now, ..alive(Duration::ZERO) };
    assert_eq!(check(&mut machine, 1_000, outage), [None; 1_000]);
    let data_still_cut = |now| LivenessSample { round_trip_at: Duration::ZERO, ..alive(now) };
    let effects = check(&mut machine, 18, data_still_cut);
    assert_eq!(effects[17], Some(LivenessEffect::Exit(StallCause::DataConnection)), "{effects:?}");
}

/// A recovery resets the count, and is logged if the stall was.
#[test]
fn liveness_recovery_resets_count() {
    let mut machine = machine();
    let stalled = |now| LivenessSample { advanced_at: Duration::ZERO, ..alive(now) };
    check(&mut machine, 6, stalled);
    assert!(!check(&mut machine, 17, stalled).contains(&Some(LivenessEffect::Exit(StallCause::DataThread))));
    assert_eq!(check(&mut machine, 2, alive), [Some(LivenessEffect::Recovered), None]);
    let effects = check(&mut machine, 17, stalled);
    assert!(!effects.contains(&Some(LivenessEffect::Exit(StallCause::DataThread))), "{effects:?}");
}

/// In random runs, the process ends exactly when 18 checks in a row found a stall by its own fault, and warnings and
/// recoveries alternate.
#[test]
fn liveness_random_runs_match_simple_count() {
    for seed in 0..200 {
        let rng = SeededEntropy::new(seed);
        let below = |limit: u64| rng.next_u64() % limit;
        // Some runs are healthy for long, some stalled for long.
        let chance_of_life = 1 + below(8);
        let mut machine = machine();
        let (mut sample, mut in_a_row, mut is_warned) = (alive(Duration::ZERO), 0, false);
        for _ in 0..400 {
            let now = machine.check_at() + Duration::from_millis(below(50));
            for time in
                [&mut sample.advanced_at, &mut sample.round_trip_at, &mut sample.control_round_trip_at]
            {
                if below(10) < chance_of_life {
                    *time = now;
                }
            }
            if below(10) < 2 {
                sample.wal_busy_since = (below(2) == 0).then_some(now);
            }
            let old = |time: Duration| now - time > TTL;
            let local = old(sample.advanced_at) || sample.wal_busy_since.is_some_and(old);
            let remote = old(sample.round_trip_at) && !old(sample.control_round_trip_at);
            in_a_row = if local || remote { in_a_row + 1 } else { 0 };
            assert_eq!(sample.stall(TTL, now).is_some(), local || old(sample.round_trip_at));
            match machine.check(&sample, now) {
                Some(LivenessEffect::Exit(_)) => {
                    assert_eq!(in_a_row, 18, "seed {seed}");
                    break;
                }
                Some(LivenessEffect::Warn(_)) => assert!(!std::mem::replace(&mut is_warned, true)),
                Some(LivenessEffect::Recovered) => assert!(std::mem::take(&mut is_warned)),
                None => {}
            }
            assert!(in_a_row < 18, "seed {seed}: the process must have ended");
        }
    }
}
