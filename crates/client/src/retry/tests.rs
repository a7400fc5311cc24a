use dormouse_protocol::{MessageId, Route, Seq, Term, decode};
use proptest::prelude::*;

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

fn server(name: &str) -> ServerName {
    ServerName::new(name).unwrap()
}

fn refused(error: ErrorReply) -> AttemptError {
    AttemptError::Server(AttemptCause::Reply(Box::new(error)))
}

fn silent() -> RequestError {
    RequestError::Deadline { route: Route::new("r"), deadline: FIRST_TRY }
}

/// Returns the error of a request without responders.
fn no_responders() -> RequestError {
    RequestError::NoResponders(Route::new("r"))
}

/// The step of a fresh call of this kind after one failure.
fn after(repeat: RetryPolicy, failure: AttemptError) -> RetryStep {
    RetryState::new(repeat, DEADLINE).next(failure, Duration::ZERO, || 7)
}

/// All failures after which the outcome is unknown.
fn unknown_outcomes() -> Vec<AttemptError> {
    let garbage = decode::<u64>(b"\xc1").unwrap_err();
    vec![
        AttemptError::Gone(server("a")),
        AttemptError::Server(AttemptCause::Request(silent())),
        AttemptError::Server(AttemptCause::Request(RequestError::Closed { sent: true })),
        AttemptError::Server(AttemptCause::Malformed(Arc::new(garbage))),
        refused(ErrorReply::new(ErrorCode::Indeterminate, "?")),
        refused(ErrorReply::internal("?")),
        refused(ErrorReply::new(ErrorCode::Other("new".into()), "?")),
    ]
}

/// Under the policy `Never`, an unknown outcome ends the call with unknown execution and without a retry.
#[test]
fn retry_policy_without_repeat_ends_on_unknown_outcome() {
    for failure in unknown_outcomes() {
        match after(RetryPolicy::Never, failure.clone()) {
            RetryStep::Fail(error) => assert_eq!(error.executed(), Executed::Unknown, "{failure:?}"),
            RetryStep::Retry { .. } => panic!("repeated after {failure:?}"),
        }
    }
}

/// A change with a request id is retried after an unknown outcome; it is indeterminate only if no retry remains.
#[test]
fn retry_by_request_id_is_indeterminate_only_at_the_end() {
    let unknown = [
        AttemptError::Gone(server("a")),
        AttemptError::Server(AttemptCause::Request(silent())),
        refused(ErrorReply::new(ErrorCode::Indeterminate, "?")),
    ];
    for failure in unknown {
        let mut attempts = RetryState::new(RetryPolicy::ByRequestId, DEADLINE);
        let next = attempts.next(failure.clone(), Duration::ZERO, || 7);
        assert!(matches!(next, RetryStep::Retry { target: RetryTarget::Fresh, .. }), "{failure:?}: {next:?}");
        // If the next attempt was not executed, this does not tell the outcome of the first.
        for refusal in
            [ErrorReply::not_owner(None), ErrorReply::unavailable("?"), ErrorReply::overloaded("?", 1)]
        {
            assert!(matches!(attempts.next(refused(refusal), Duration::ZERO, || 7), RetryStep::Retry { .. }));
        }
        let out_of_time = [
            attempts.attempt_deadline(DEADLINE).unwrap_err(),
            attempts.final_error(Error::Closed),
            match attempts.next(refused(ErrorReply::unavailable("?")), DEADLINE, || 7) {
                RetryStep::Fail(error) => error,
                RetryStep::Retry { .. } => panic!("no time is left"),
            },
            match attempts.next(refused(ErrorReply::corrupt("object", "torn")), Duration::ZERO, || 7) {
                RetryStep::Fail(error) => error,
                RetryStep::Retry { .. } => panic!("the outcome stays unknown"),
            },
        ];
        for error in out_of_time {
            assert!(matches!(error, Error::Indeterminate { .. }), "{failure:?}: {error:?}");
        }
        // These errors come after a search in the dedup window.
        let next = attempts.next(refused(ErrorReply::wrong_last(None)), Duration::ZERO, || 7);
        assert!(matches!(next, RetryStep::Fail(Error::WrongLast { .. })), "{next:?}");
        let next =
            attempts.next(refused(ErrorReply::new(ErrorCode::UnknownUpload, "gone")), Duration::ZERO, || 7);
        assert!(matches!(next, RetryStep::Fail(Error::Service(_))), "an upload restarts: {next:?}");
    }
    let garbage = AttemptCause::Malformed(Arc::new(decode::<u64>(b"\xc1").unwrap_err()));
    let next = after(RetryPolicy::ByRequestId, AttemptError::Server(garbage));
    assert!(
        matches!(next, RetryStep::Fail(Error::Indeterminate { .. })),
        "a further retry cannot help: {next:?}"
    );
}

/// The timeout of an attempt doubles after each attempt without a reply.
#[test]
fn retry_attempt_timeout_doubles_after_silence() {
    let mut attempts = RetryState::new(RetryPolicy::ByRequestId, Duration::from_secs(60));
    let waits = std::iter::repeat_with(|| {
        let wait = attempts.attempt_deadline(Duration::ZERO).unwrap();
        attempts.next(AttemptError::Server(AttemptCause::Request(silent())), Duration::ZERO, || 7);
        wait.as_secs()
    });
    assert_eq!(waits.take(4).collect::<Vec<_>>(), [2, 4, 8, 16]);
}

/// All ops that change a subject have a retry policy that permits a repeat, and a destroy repeats by request id.
#[test]
fn retry_policy_allows_repeat_of_all_changes() {
    for op in Op::ALL.iter().copied().filter(|op| op.changes()) {
        assert!(matches!(RetryPolicy::of(op), RetryPolicy::ByRequestId | RetryPolicy::Idempotent), "{op}");
    }
    assert_eq!(RetryPolicy::of(Op::Destroy), RetryPolicy::ByRequestId);
}

/// If servers reply `not_owner`, the client asks the coordinator again with bounded pauses until the deadline.
#[test]
fn retry_follows_moving_subject_until_deadline() {
    for repeat in [RetryPolicy::Idempotent, RetryPolicy::ByRequestId] {
        let (mut attempts, mut elapsed, mut asked) = (RetryState::new(repeat, DEADLINE), Duration::ZERO, 0);
        let error = loop {
            match attempts.next(refused(ErrorReply::not_owner(None)), elapsed, || 7) {
                RetryStep::Retry { pause, target } => {
                    assert_eq!(target, RetryTarget::Fresh);
                    assert!(pause <= LONGEST_PAUSE * 2);
                    elapsed += pause;
                    asked += 1;
                }
                RetryStep::Fail(error) => break error,
            }
        };
        assert!(
            matches!(error, Error::Deadline { .. }) && elapsed > DEADLINE * 9 / 10,
            "{error:?} at {elapsed:?}"
        );
        assert!((10..60).contains(&asked), "{asked}");
    }
}

/// If the bus closes before the request is sent, the call fails with `Closed` under every policy.
#[test]
fn retry_unsent_request_on_closed_bus_fails_as_closed() {
    for repeat in [RetryPolicy::Idempotent, RetryPolicy::LongRead, RetryPolicy::Never] {
        let next =
            after(repeat, AttemptError::Server(AttemptCause::Request(RequestError::Closed { sent: false })));
        assert!(matches!(next, RetryStep::Fail(Error::Closed)), "{next:?}");
    }
}

/// A failed lookup is repeated under all policies, also for changes.
#[test]
fn retry_repeats_failed_lookup_under_all_policies() {
    for repeat in [RetryPolicy::Idempotent, RetryPolicy::LongRead, RetryPolicy::Never] {
        for error in [silent(), no_responders(), RequestError::Disconnected] {
            let next = after(repeat, AttemptError::LookUp(AttemptCause::Request(error)));
            assert!(matches!(next, RetryStep::Retry { target: RetryTarget::Fresh, .. }), "{next:?}");
        }
    }
}

/// A lookup error means that the request was not executed; only codes that advise a retry are retried.
#[test]
fn retry_lookup_error_means_not_executed() {
    for code in ErrorCode::KNOWN.iter().cloned().chain([ErrorCode::Other("new".into())]) {
        let refusal = AttemptCause::Reply(Box::new(ErrorReply::new(code.clone(), "?")));
        match after(RetryPolicy::Never, AttemptError::LookUp(refusal)) {
            RetryStep::Fail(error) => assert_eq!(error.executed(), Executed::No, "{code}"),
            RetryStep::Retry { .. } => assert_ne!(code.retry(), RetryAdvice::Never, "{code}"),
        }
    }
}

/// No attempt starts at or after the deadline.
#[test]
fn retry_makes_no_attempt_after_deadline() {
    for repeat in [RetryPolicy::Idempotent, RetryPolicy::LongRead, RetryPolicy::Never] {
        let none_left = RetryState::new(repeat, DEADLINE).attempt_deadline(DEADLINE);
        assert!(matches!(none_left, Err(Error::Deadline { .. })), "{none_left:?}");
        assert!(RetryState::new(repeat, Duration::ZERO).attempt_deadline(Duration::ZERO).is_err());
    }
}

/// The client follows two owner hints in a row, then asks the coordinator.
#[test]
fn retry_follows_at_most_two_owner_hints_in_a_row() {
    let mut attempts = RetryState::new(RetryPolicy::Never, DEADLINE);
    let mut targets = Vec::new();
    for _ in 0..4 {
        match attempts.next(refused(ErrorReply::not_owner(Some(server("b")))), Duration::ZERO, || 7) {
            RetryStep::Retry { target, .. } => targets.push(target),
            RetryStep::Fail(error) => panic!("{error}"),
        }
    }
    let hint = || RetryTarget::Hinted(server("b"));
    assert_eq!(targets, [hint(), hint(), RetryTarget::Fresh, hint()]);
}

/// A permanent error ends the call without a retry and with the request not executed.
#[test]
fn retry_stops_on_permanent_error() {
    let id = MessageId { term: Term::new(1), seq: Seq::new(1) };
    for error in [
        ErrorReply::wrong_last(Some(id)),
        ErrorReply::key_exists(id),
        ErrorReply::bad_request("no"),
        ErrorReply::unsupported("this"),
        ErrorReply::too_large("max_payload", 2, 1),
        ErrorReply::corrupt("object", "torn"),
    ] {
        for repeat in [RetryPolicy::Idempotent, RetryPolicy::Never] {
            let next = after(repeat, refused(error.clone()));
            assert!(
                matches!(next, RetryStep::Fail(ref failed) if failed.executed() == Executed::No),
                "{next:?}"
            );
        }
    }
}

/// A deadline is never cut short: if the server asks for a longer pause than is left, the call ends at its
/// deadline, with the last error.
#[test]
fn retry_pause_beyond_deadline_waits_for_deadline() {
    let mut attempts = RetryState::new(RetryPolicy::Never, DEADLINE);
    let next = attempts.next(refused(ErrorReply::overloaded("busy", 2_000)), Duration::from_secs(9), || 7);
    let RetryStep::Retry { pause, .. } = next else { panic!("{next:?}") };
    assert_eq!(pause, Duration::from_secs(1));
    let end = attempts.attempt_deadline(DEADLINE);
    assert!(matches!(end, Err(Error::Deadline { last: Some(_), .. })), "{end:?}");
}

/// If the client's own pause is longer than the time that is left, the call makes a few more attempts instead.
#[test]
fn retry_own_pause_leaves_time_for_attempts() {
    let mut attempts = RetryState::new(RetryPolicy::Idempotent, DEADLINE);
    let mut elapsed = DEADLINE - Duration::from_millis(200);
    let mut left = Vec::new();
    while elapsed < DEADLINE {
        left.push(DEADLINE - elapsed);
        match attempts.next(refused(ErrorReply::unavailable("?")), elapsed, || 7) {
            RetryStep::Retry { pause, .. } => elapsed += pause,
            RetryStep::Fail(error) => panic!("{error}"),
        }
    }
    assert_eq!(elapsed, DEADLINE);
    assert!(left.len() <= 12 && left.iter().any(|left| *left <= Duration::from_millis(25)), "{left:?}");
}

/// Retry pauses grow up to a limit and differ with the random numbers of the caller.
#[test]
fn retry_pauses_are_bounded_and_jittered() {
    let pauses = |seed: u64| -> Vec<Duration> {
        let mut attempts = RetryState::new(RetryPolicy::Never, Duration::MAX);
        (0..20)
            .map(|_| match attempts.next(refused(ErrorReply::unavailable("?")), Duration::ZERO, || seed) {
                RetryStep::Retry { pause, .. } => pause,
                RetryStep::Fail(error) => panic!("{error}"),
            })
            .collect()
    };
    let one = pauses(1);
    assert!(one[0] < Duration::from_millis(50) && one[19] >= LONGEST_PAUSE / 2, "{one:?}");
    assert!(one.iter().all(|pause| *pause <= LONGEST_PAUSE * 2), "{one:?}");
    assert_eq!(one, pauses(1));
    assert_ne!(one, pauses(2));
}

proptest! {
    /// After any failures in any order, a call ends: no attempt and no pause reaches beyond the deadline, and
    /// a change with an unknown outcome is the last attempt.
    #[test]
    fn retry_ends_within_deadline(
        failures in proptest::collection::vec(0_usize..9, 1..400),
        repeat in proptest::sample::select(vec![RetryPolicy::Never, RetryPolicy::Idempotent, RetryPolicy::ByRequestId]),
    ) {
        let change = repeat == RetryPolicy::Never;
        let mut in_doubt = false;
        let mut attempts = RetryState::new(repeat, DEADLINE);
        let mut elapsed = Duration::ZERO;
        for failure in failures {
            let Ok(allowed) = attempts.attempt_deadline(elapsed) else {
                prop_assert!(elapsed >= DEADLINE);
                return Ok(());
            };
            prop_assert!(elapsed + allowed <= DEADLINE);
            // An unanswered attempt takes its whole time, any other a moment.
            elapsed += if failure == 0 { allowed } else { allowed.min(Duration::from_millis(1)) };
            let failure = match failure {
                0 => AttemptError::Server(AttemptCause::Request(silent())),
                1 => AttemptError::Server(AttemptCause::Request(no_responders())),
                2 => AttemptError::Server(AttemptCause::Request(RequestError::Disconnected)),
                3 => AttemptError::LookUp(AttemptCause::Request(silent())),
                4 => AttemptError::Gone(server("a")),
                5 => refused(ErrorReply::not_owner(Some(server("b")))),
                6 => refused(ErrorReply::not_owner(None)),
                7 => refused(ErrorReply::overloaded("busy", 30)),
                _ => refused(ErrorReply::unavailable("lease")),
            };
            let unknown = matches!(failure, AttemptError::Gone(_) | AttemptError::Server(AttemptCause::Request(RequestError::Deadline { .. })));
            match attempts.next(failure, elapsed, || 7) {
                RetryStep::Fail(error) => {
                    let is_open = in_doubt || change && unknown;
                    prop_assert_eq!(error.executed() == Executed::Unknown, is_open || repeat == RetryPolicy::ByRequestId && unknown);
                    return Ok(());
                }
                RetryStep::Retry { pause, .. } => {
                    prop_assert!(!(change && unknown));
                    in_doubt |= unknown && repeat == RetryPolicy::ByRequestId;
                    prop_assert!(elapsed + pause <= DEADLINE);
                    elapsed += pause;
                }
            }
        }
    }
}

/// A forgotten change ends at once, whatever happened to its earlier attempts: no repeat finds out more.
#[test]
fn forgotten_change_ends_at_once() {
    let forgotten = || refused(ErrorReply::forgotten());
    let is_forgotten = |step| matches!(step, RetryStep::Fail(Error::Forgotten(_)));
    for policy in [RetryPolicy::ByRequestId, RetryPolicy::Never] {
        assert!(is_forgotten(after(policy, forgotten())), "{policy:?}");
    }
    let mut attempts = RetryState::new(RetryPolicy::ByRequestId, DEADLINE);
    let first = attempts.next(AttemptError::Server(AttemptCause::Request(silent())), Duration::ZERO, || 7);
    assert!(matches!(first, RetryStep::Retry { .. }));
    assert!(is_forgotten(attempts.next(forgotten(), Duration::ZERO, || 7)));
}
