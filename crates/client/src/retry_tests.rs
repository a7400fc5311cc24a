use dormouse_protocol::{MessageId, Route, Seq, Term, decode};
use proptest::prelude::*;

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

fn server(name: &str) -> ServerName {
    ServerName::new(name).unwrap()
}

fn refused(error: ErrorReply) -> Failure {
    Failure::Server(Refusal::Reply(Box::new(error)))
}

fn silent() -> RequestError {
    RequestError::Deadline { route: Route::new("r"), deadline: FIRST_TRY }
}

fn nobody() -> RequestError {
    RequestError::NoResponders(Route::new("r"))
}

/// What a fresh call of this kind does after one failure.
fn after(repeat: Repeat, failure: Failure) -> Next {
    Tries::new(repeat, DEADLINE).next(failure, Duration::ZERO, || 7)
}

/// Everything after which it is not known whether the server has done it.
fn unknown_outcomes() -> Vec<Failure> {
    let garbage = decode::<u64>(b"\xc1").unwrap_err();
    vec![
        Failure::Gone(server("a")),
        Failure::Server(Refusal::Request(silent())),
        Failure::Server(Refusal::Request(RequestError::Closed { sent: true })),
        Failure::Server(Refusal::Malformed(Arc::new(garbage))),
        refused(ErrorReply::new(ErrorCode::Indeterminate, "?")),
        refused(ErrorReply::internal("?")),
        refused(ErrorReply::new(ErrorCode::Other("new".into()), "?")),
    ]
}

#[test]
fn a_change_of_unknown_fate_is_never_repeated() {
    for failure in unknown_outcomes() {
        match after(Repeat::Never, failure.clone()) {
            Next::Fail(error) => assert_eq!(error.happened(), Happened::Unknown, "{failure:?}"),
            Next::Retry { .. } => panic!("repeated after {failure:?}"),
        }
    }
}

#[test]
fn a_change_with_an_id_is_repeated_after_silence_and_its_fate_is_open_only_once_the_time_is_over() {
    let unknown = [
        Failure::Gone(server("a")),
        Failure::Server(Refusal::Request(silent())),
        refused(ErrorReply::new(ErrorCode::Indeterminate, "?")),
    ];
    for failure in unknown {
        let mut tries = Tries::new(Repeat::ById, DEADLINE);
        let next = tries.next(failure.clone(), Duration::ZERO, || 7);
        assert!(matches!(next, Next::Retry { target: Target::Fresh, .. }), "{failure:?}: {next:?}");
        // That the next one has done nothing says nothing of the first.
        for refusal in
            [ErrorReply::not_owner(None), ErrorReply::unavailable("?"), ErrorReply::overloaded("?", 1)]
        {
            assert!(matches!(tries.next(refused(refusal), Duration::ZERO, || 7), Next::Retry { .. }));
        }
        let out_of_time = [
            tries.try_deadline(DEADLINE).unwrap_err(),
            tries.given_up(Error::Closed),
            match tries.next(refused(ErrorReply::unavailable("?")), DEADLINE, || 7) {
                Next::Fail(error) => error,
                Next::Retry { .. } => panic!("no time is left"),
            },
            match tries.next(refused(ErrorReply::corrupt("object", "torn")), Duration::ZERO, || 7) {
                Next::Fail(error) => error,
                Next::Retry { .. } => panic!("it stays so"),
            },
        ];
        for error in out_of_time {
            assert!(matches!(error, Error::Indeterminate { .. }), "{failure:?}: {error:?}");
        }
        // These have looked for it first.
        let next = tries.next(refused(ErrorReply::wrong_last(None)), Duration::ZERO, || 7);
        assert!(matches!(next, Next::Fail(Error::WrongLast { .. })), "{next:?}");
        let next =
            tries.next(refused(ErrorReply::new(ErrorCode::UnknownUpload, "gone")), Duration::ZERO, || 7);
        assert!(matches!(next, Next::Fail(Error::Service(_))), "an upload begins again: {next:?}");
    }
    let garbage = Refusal::Malformed(Arc::new(decode::<u64>(b"\xc1").unwrap_err()));
    let next = after(Repeat::ById, Failure::Server(garbage));
    assert!(matches!(next, Next::Fail(Error::Indeterminate { .. })), "another answer is no better: {next:?}");
}

#[test]
fn a_change_waits_longer_each_time_nobody_answers() {
    let mut tries = Tries::new(Repeat::ById, Duration::from_secs(60));
    let waits = std::iter::repeat_with(|| {
        let wait = tries.try_deadline(Duration::ZERO).unwrap();
        tries.next(Failure::Server(Refusal::Request(silent())), Duration::ZERO, || 7);
        wait.as_secs()
    });
    assert_eq!(waits.take(4).collect::<Vec<_>>(), [2, 4, 8, 16]);
}

#[test]
fn every_change_of_a_subject_may_be_repeated() {
    for op in Op::ALL.iter().copied().filter(|op| op.changes()) {
        assert!(matches!(Repeat::of(op), Repeat::ById | Repeat::Freely), "{op}");
    }
    assert_eq!(Repeat::of(Op::Destroy), Repeat::ById);
}

#[test]
fn a_subject_on_its_way_from_server_to_server_is_followed_until_the_deadline() {
    for repeat in [Repeat::Freely, Repeat::ById] {
        let (mut tries, mut elapsed, mut asked) = (Tries::new(repeat, DEADLINE), Duration::ZERO, 0);
        let error = loop {
            match tries.next(refused(ErrorReply::not_owner(None)), elapsed, || 7) {
                Next::Retry { pause, target } => {
                    assert_eq!(target, Target::Fresh);
                    assert!(pause <= LONGEST_PAUSE * 2);
                    elapsed += pause;
                    asked += 1;
                }
                Next::Fail(error) => break error,
            }
        };
        assert!(
            matches!(error, Error::Deadline { .. }) && elapsed > DEADLINE * 9 / 10,
            "{error:?} at {elapsed:?}"
        );
        assert!((10..60).contains(&asked), "{asked}");
    }
}

#[test]
fn a_bus_that_was_closed_before_the_request_was_sent_leaves_no_doubt() {
    for repeat in [Repeat::Freely, Repeat::Patiently, Repeat::Never] {
        let next = after(repeat, Failure::Server(Refusal::Request(RequestError::Closed { sent: false })));
        assert!(matches!(next, Next::Fail(Error::Closed)), "{next:?}");
    }
}

#[test]
fn a_look_up_is_repeated_for_changes_too() {
    for repeat in [Repeat::Freely, Repeat::Patiently, Repeat::Never] {
        for error in [silent(), nobody(), RequestError::Disconnected] {
            let next = after(repeat, Failure::LookUp(Refusal::Request(error)));
            assert!(matches!(next, Next::Retry { target: Target::Fresh, .. }), "{next:?}");
        }
    }
}

#[test]
fn what_fails_while_looking_for_the_server_has_not_happened() {
    for code in ErrorCode::KNOWN.iter().cloned().chain([ErrorCode::Other("new".into())]) {
        let refusal = Refusal::Reply(Box::new(ErrorReply::new(code.clone(), "?")));
        match after(Repeat::Never, Failure::LookUp(refusal)) {
            Next::Fail(error) => assert_eq!(error.happened(), Happened::No, "{code}"),
            Next::Retry { .. } => assert_ne!(code.retry(), Retry::Never, "{code}"),
        }
    }
}

#[test]
fn without_time_there_is_no_try() {
    for repeat in [Repeat::Freely, Repeat::Patiently, Repeat::Never] {
        let none_left = Tries::new(repeat, DEADLINE).try_deadline(DEADLINE);
        assert!(matches!(none_left, Err(Error::Deadline { .. })), "{none_left:?}");
        assert!(Tries::new(repeat, Duration::ZERO).try_deadline(Duration::ZERO).is_err());
    }
}

#[test]
fn only_two_hints_in_a_row_are_followed() {
    let mut tries = Tries::new(Repeat::Never, DEADLINE);
    let mut targets = Vec::new();
    for _ in 0..4 {
        match tries.next(refused(ErrorReply::not_owner(Some(server("b")))), Duration::ZERO, || 7) {
            Next::Retry { target, .. } => targets.push(target),
            Next::Fail(error) => panic!("{error}"),
        }
    }
    let hint = || Target::Hinted(server("b"));
    assert_eq!(targets, [hint(), hint(), Target::Fresh, hint()]);
}

#[test]
fn refusals_that_stay_are_final() {
    let id = MessageId { term: Term::new(1), seq: Seq::new(1) };
    for error in [
        ErrorReply::wrong_last(Some(id)),
        ErrorReply::key_exists(id),
        ErrorReply::bad_request("no"),
        ErrorReply::unsupported("this"),
        ErrorReply::too_large("max_payload", 2, 1),
        ErrorReply::corrupt("object", "torn"),
    ] {
        for repeat in [Repeat::Freely, Repeat::Never] {
            let next = after(repeat, refused(error.clone()));
            assert!(matches!(next, Next::Fail(ref failed) if failed.happened() == Happened::No), "{next:?}");
        }
    }
}

#[test]
fn a_pause_that_would_outlast_the_deadline_is_not_taken() {
    let mut tries = Tries::new(Repeat::Never, DEADLINE);
    let next = tries.next(refused(ErrorReply::overloaded("busy", 2_000)), Duration::from_secs(9), || 7);
    assert!(matches!(next, Next::Fail(Error::Deadline { last: Some(_), .. })), "{next:?}");
}

#[test]
fn pauses_grow_to_a_bound_and_differ_between_callers() {
    let pauses = |seed: u64| -> Vec<Duration> {
        let mut tries = Tries::new(Repeat::Never, Duration::MAX);
        (0..20)
            .map(|_| match tries.next(refused(ErrorReply::unavailable("?")), Duration::ZERO, || seed) {
                Next::Retry { pause, .. } => pause,
                Next::Fail(error) => panic!("{error}"),
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
    /// Whatever happens, in whatever order, a call ends: no try and no pause reaches beyond the deadline, and a change
    /// of unknown fate is the last thing that is tried.
    #[test]
    fn every_call_ends_within_its_deadline(
        failures in proptest::collection::vec(0_usize..9, 1..400),
        repeat in proptest::sample::select(vec![Repeat::Never, Repeat::Freely, Repeat::ById]),
    ) {
        let change = repeat == Repeat::Never;
        let mut in_doubt = false;
        let mut tries = Tries::new(repeat, DEADLINE);
        let mut elapsed = Duration::ZERO;
        for failure in failures {
            let Ok(allowed) = tries.try_deadline(elapsed) else {
                prop_assert!(elapsed >= DEADLINE);
                return Ok(());
            };
            prop_assert!(elapsed + allowed <= DEADLINE);
            // Silence takes all the time it is given, everything else a moment.
            elapsed += if failure == 0 { allowed } else { allowed.min(Duration::from_millis(1)) };
            let failure = match failure {
                0 => Failure::Server(Refusal::Request(silent())),
                1 => Failure::Server(Refusal::Request(nobody())),
                2 => Failure::Server(Refusal::Request(RequestError::Disconnected)),
                3 => Failure::LookUp(Refusal::Request(silent())),
                4 => Failure::Gone(server("a")),
                5 => refused(ErrorReply::not_owner(Some(server("b")))),
                6 => refused(ErrorReply::not_owner(None)),
                7 => refused(ErrorReply::overloaded("busy", 30)),
                _ => refused(ErrorReply::unavailable("lease")),
            };
            let unknown = matches!(failure, Failure::Gone(_) | Failure::Server(Refusal::Request(RequestError::Deadline { .. })));
            match tries.next(failure, elapsed, || 7) {
                Next::Fail(error) => {
                    let is_open = in_doubt || change && unknown;
                    prop_assert_eq!(error.happened() == Happened::Unknown, is_open || repeat == Repeat::ById && unknown);
                    return Ok(());
                }
                Next::Retry { pause, .. } => {
                    prop_assert!(!(change && unknown));
                    in_doubt |= unknown && repeat == Repeat::ById;
                    prop_assert!(elapsed + pause < DEADLINE);
                    elapsed += pause;
                }
            }
        }
    }
}
