use super::*;

const SINCE: Duration = Duration::from_secs(100);

fn name(number: u64) -> Subject {
    Subject::new(&format!("app.s{number:04}")).unwrap()
}

fn tail(first_slot: u64) -> SubjectTail {
    SubjectTail { first_slot: Slot::new(first_slot), bytes: 1, entries: 1, slots: 1, since: SINCE }
}

/// Subjects 0 to `subjects`, each of which needs the slot with its number, in a log that may keep slots from `lowest` on.
fn view(subjects: u64, lowest: Option<u64>) -> LogView {
    LogView {
        next: Slot::new(subjects),
        lowest_within_limit: lowest.map(Slot::new),
        has_many_tails: false,
        oldest: (0..subjects).map(|number| (name(number), tail(number))).collect(),
    }
}

fn begun(choice: &mut CompactionChoice, view: LogView, now: Duration) -> Vec<Subject> {
    choice.begin_check(0, 1, now);
    choice.begin(view, now)
}

fn names(range: std::ops::Range<u64>) -> Vec<Subject> {
    range.map(name).collect()
}

/// A subject is due for compaction if its tail is too old, has too many slots, or is too many slots back.
#[test]
fn compaction_is_due_for_old_or_distant_tail() {
    let tail = SubjectTail { slots: 1_023, ..tail(5) };
    let at = |slot, seconds| is_due(&tail, Slot::new(slot), Duration::from_secs(seconds));
    assert!(!at(10_005, 3_700));
    assert!(at(10_006, 3_700));
    assert!(at(10_005, 3_701));
    assert!(is_due(&SubjectTail { slots: 1_024, ..tail }, Slot::new(5), SINCE));
}

/// Above the limit of bytes, the subjects below the cut are compacted, the oldest first and a bounded number at once; the
/// others stay.
#[test]
fn oldest_subjects_are_compacted_until_log_fits() {
    let mut choice = CompactionChoice::default();
    assert_eq!(begun(&mut choice, view(20, None), SINCE), []);
    assert_eq!(begun(&mut choice, view(20, Some(10)), SINCE), names(0..8));
    assert_eq!(choice.begin(view(20, Some(10)), SINCE), [], "eight are running");
    choice.ended(name(3), true, SINCE);
    assert_eq!(choice.begin(view(20, Some(10)), SINCE), names(8..9));
    choice.ended(name(0), true, SINCE);
    choice.ended(name(1), true, SINCE);
    assert_eq!(choice.begin(view(20, Some(10)), SINCE), names(9..10), "the rest is above the cut");
}

/// A failed compaction is repeated after a delay, and one that takes long makes room: neither blocks the others.
#[test]
fn failing_and_slow_compactions_do_not_block_others() {
    let mut choice = CompactionChoice::default();
    assert_eq!(begun(&mut choice, view(100, Some(100)), SINCE), names(0..8));
    (0..8).for_each(|number| choice.ended(name(number), false, SINCE));
    assert_eq!(begun(&mut choice, view(100, Some(100)), SINCE), names(8..16));
    let slow = SINCE + SLOW;
    assert_eq!(begun(&mut choice, view(100, Some(100)), slow), names(16..24));
    (8..24).for_each(|number| choice.ended(name(number), true, slow));
    assert_eq!(begun(&mut choice, view(8, Some(8)), slow), []);
    assert_eq!(begun(&mut choice, view(8, Some(8)), SINCE + RETRY_DELAY), names(0..8));
}

/// A subject whose tail stays due after its compaction is not compacted again at once, and the number of compactions per
/// check and at the same time is bounded.
#[test]
fn compactions_are_bounded() {
    let mut choice = CompactionChoice::default();
    assert_eq!(begun(&mut choice, view(1, Some(1)), SINCE), names(0..1));
    choice.ended(name(0), true, SINCE);
    assert_eq!(begun(&mut choice, view(1, Some(1)), SINCE), []);
    assert_eq!(begun(&mut choice, view(1, Some(1)), SINCE + PAUSE), names(0..1));

    let mut choice = CompactionChoice::default();
    choice.begin_check(0, 1, SINCE);
    let mut per_check = 0;
    loop {
        let subjects = choice.begin(view(200, Some(200)), SINCE);
        if subjects.is_empty() {
            break;
        }
        per_check += subjects.len();
        subjects.into_iter().for_each(|subject| choice.ended(subject, true, SINCE));
    }
    assert_eq!(per_check, PER_CHECK);

    let mut choice = CompactionChoice::default();
    let running = (0..20).map(|round| begun(&mut choice, view(200, Some(200)), SINCE + SLOW * round).len());
    assert_eq!(running.sum::<usize>(), MAX_RUNNING);
}

/// Only a log that stays above its limit for a minute is a problem.
#[test]
fn log_over_limit_for_a_minute_is_a_problem() {
    let mut choice = CompactionChoice::default();
    let mut over = |bytes, seconds| choice.begin_check(bytes, 100, Duration::from_secs(seconds));
    let checks = [(101, 10), (101, 69), (100, 70), (101, 80), (101, 139), (101, 140), (100, 141)];
    let problems = checks.map(|(bytes, seconds)| over(bytes, seconds));
    assert_eq!(problems, [false, false, false, false, false, true, false]);
}
