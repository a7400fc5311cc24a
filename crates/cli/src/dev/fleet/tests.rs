use super::*;

fn fleet(restart: bool) -> Fleet {
    let processes = [
        ("nats", Role::Nats),
        ("coordinator", Role::Coordinator),
        ("persist-1", Role::Server),
        ("persist-2", Role::Server),
    ];
    Fleet::new(processes.map(|(name, role)| (name.to_owned(), role)), restart)
}

fn running(restart: bool) -> Fleet {
    let mut fleet = fleet(restart);
    fleet.begin();
    for name in ["nats", "coordinator", "persist-1", "persist-2"] {
        fleet.apply(ready(name));
    }
    assert_eq!(fleet.phase, FleetPhase::Running);
    fleet
}

fn ready(name: &str) -> FleetInput {
    FleetInput::Ready(name.to_owned())
}

fn ended(name: &str) -> FleetInput {
    FleetInput::Ended(name.to_owned(), "signal 9".to_owned())
}

fn start(name: &str) -> FleetEffect {
    FleetEffect::Start(name.to_owned())
}

fn terminate(name: &str) -> FleetEffect {
    FleetEffect::Terminate(name.to_owned())
}

fn kill(name: &str) -> [FleetEffect; 2] {
    [FleetEffect::Kill(name.to_owned()), FleetEffect::Note(UserNotice::Killed(name.to_owned()))]
}

fn ready_alarm(role: Role) -> FleetEffect {
    FleetEffect::SetTimeout(Timeout::Ready(role), READY_DEADLINE)
}

fn stopped_alarm(role: Role) -> FleetEffect {
    FleetEffect::SetTimeout(Timeout::Stopped(role), role.stop_deadline())
}

/// Each role starts after the role below it is ready; the fleet is announced when all are ready.
#[test]
fn fleet_starts_roles_in_order() {
    let mut fleet = fleet(false);
    assert_eq!(fleet.begin(), [start("nats"), ready_alarm(Role::Nats)]);
    assert_eq!(fleet.apply(ready("nats")), [start("coordinator"), ready_alarm(Role::Coordinator)]);
    assert_eq!(
        fleet.apply(ready("coordinator")),
        [start("persist-1"), start("persist-2"), ready_alarm(Role::Server)]
    );
    assert_eq!(fleet.apply(ready("persist-2")), []);
    assert_eq!(fleet.apply(ready("persist-1")), [FleetEffect::Announce]);
    // Timeouts of earlier phases have no effect.
    assert_eq!(fleet.apply(FleetInput::Timeout(Timeout::Ready(Role::Server))), []);
}

/// The fleet stops servers first, then the coordinator, then NATS.
#[test]
fn fleet_stops_roles_in_reverse_order() {
    let mut fleet = running(false);
    assert_eq!(
        fleet.apply(FleetInput::Stop),
        [
            FleetEffect::RemoveFleetFile,
            terminate("persist-1"),
            terminate("persist-2"),
            stopped_alarm(Role::Server)
        ]
    );
    assert_eq!(fleet.apply(ended("persist-1")), []);
    assert_eq!(fleet.apply(ended("persist-2")), [terminate("coordinator"), stopped_alarm(Role::Coordinator)]);
    assert_eq!(fleet.apply(ended("coordinator")), [terminate("nats"), stopped_alarm(Role::Nats)]);
    assert_eq!(fleet.apply(ended("nats")), [FleetEffect::Finish(FleetOutcome::Stopped)]);
}

/// The fleet kills a process that does not stop in time, and names it in the outcome.
#[test]
fn fleet_kills_and_names_process_that_does_not_stop() {
    let mut fleet = running(false);
    fleet.apply(FleetInput::Stop);
    fleet.apply(ended("persist-1"));
    assert_eq!(fleet.apply(FleetInput::Timeout(Timeout::Stopped(Role::Server))), kill("persist-2"));
    fleet.apply(ended("persist-2"));
    fleet.apply(ended("coordinator"));
    assert_eq!(
        fleet.apply(ended("nats")),
        [FleetEffect::Finish(FleetOutcome::Killed(vec!["persist-2".to_owned()]))]
    );
}

/// A second stop kills each remaining process once.
#[test]
fn fleet_second_stop_kills_all_once() {
    let mut fleet = running(false);
    fleet.apply(FleetInput::Stop);
    fleet.apply(ended("persist-1"));
    let expected: Vec<FleetEffect> =
        ["coordinator", "nats", "persist-2"].into_iter().flat_map(kill).collect();
    assert_eq!(fleet.apply(FleetInput::Stop), expected);
    assert_eq!(fleet.apply(FleetInput::Stop), []);
    // The processes end in any order.
    assert_eq!(fleet.apply(ended("nats")), []);
    assert_eq!(fleet.apply(ended("coordinator")), []);
    let killed = ["coordinator", "nats", "persist-2"].map(str::to_owned).to_vec();
    assert_eq!(fleet.apply(ended("persist-2")), [FleetEffect::Finish(FleetOutcome::Killed(killed))]);
}

/// If a process dies, the fleet reports it, continues, and does not wait for it at the stop.
#[test]
fn fleet_continues_after_process_death() {
    let mut fleet = running(false);
    let died =
        UserNotice::Ended { name: "persist-1".to_owned(), how: "signal 9".to_owned(), restarts: false };
    assert_eq!(fleet.apply(ended("persist-1")), [FleetEffect::Note(died), FleetEffect::Update]);
    // The stop does not wait for an ended process.
    assert_eq!(
        fleet.apply(FleetInput::Stop),
        [FleetEffect::RemoveFleetFile, terminate("persist-2"), stopped_alarm(Role::Server)]
    );
}

/// With the restart option the fleet restarts a dead process after a pause, but not during a stop.
#[test]
fn fleet_with_restart_restarts_dead_process() {
    let mut fleet = running(true);
    let died = UserNotice::Ended { name: "persist-1".to_owned(), how: "signal 9".to_owned(), restarts: true };
    let restart = Timeout::Restart("persist-1".to_owned());
    assert_eq!(
        fleet.apply(ended("persist-1")),
        [
            FleetEffect::Note(died),
            FleetEffect::Update,
            FleetEffect::SetTimeout(restart.clone(), RESTART_PAUSE)
        ]
    );
    assert_eq!(fleet.apply(FleetInput::Timeout(restart.clone())), [start("persist-1")]);
    assert_eq!(
        fleet.apply(ready("persist-1")),
        [FleetEffect::Note(UserNotice::Restarted("persist-1".to_owned())), FleetEffect::Update]
    );
    // No process restarts while the fleet stops.
    fleet.apply(ended("persist-1"));
    fleet.apply(FleetInput::Stop);
    assert_eq!(fleet.apply(FleetInput::Timeout(restart)), []);
}

/// If a process dies before the fleet is ready, the fleet stops in order and names the process.
#[test]
fn fleet_fails_if_process_dies_before_ready() {
    let mut fleet = fleet(true);
    fleet.begin();
    fleet.apply(ready("nats"));
    assert_eq!(
        fleet.apply(ended("coordinator")),
        [FleetEffect::RemoveFleetFile, terminate("nats"), stopped_alarm(Role::Nats)]
    );
    let why = "coordinator ended before the fleet was ready (signal 9)".to_owned();
    assert_eq!(fleet.apply(ended("nats")), [FleetEffect::Finish(FleetOutcome::Failed(why))]);
}

/// If a process is not ready in time, the fleet stops in order and names the process.
#[test]
fn fleet_failure_names_process_not_ready_in_time() {
    let mut fleet = fleet(false);
    fleet.begin();
    fleet.apply(ready("nats"));
    fleet.apply(ready("coordinator"));
    fleet.apply(ready("persist-1"));
    let effects = fleet.apply(FleetInput::Timeout(Timeout::Ready(Role::Server)));
    assert_eq!(
        effects,
        [
            FleetEffect::RemoveFleetFile,
            terminate("persist-1"),
            terminate("persist-2"),
            stopped_alarm(Role::Server)
        ]
    );
    for name in ["persist-1", "persist-2", "coordinator"] {
        fleet.apply(ended(name));
    }
    let why = "persist-2 was not ready within 30 s".to_owned();
    assert_eq!(fleet.apply(ended("nats")), [FleetEffect::Finish(FleetOutcome::Failed(why))]);
}

/// A stop before the fleet is ready is no failure.
#[test]
fn fleet_stop_before_ready_is_no_failure() {
    let mut fleet = fleet(false);
    fleet.begin();
    assert_eq!(
        fleet.apply(FleetInput::Stop),
        [FleetEffect::RemoveFleetFile, terminate("nats"), stopped_alarm(Role::Nats)]
    );
    assert_eq!(fleet.apply(ended("nats")), [FleetEffect::Finish(FleetOutcome::Stopped)]);
}

/// An internal error stops the fleet in order, and the outcome reports the first error.
#[test]
fn fleet_error_stops_all_in_order_and_is_reported() {
    let mut fleet = running(false);
    let effects = fleet.apply(FleetInput::EnvironmentFailed("fleet.json cannot be written".to_owned()));
    assert_eq!(effects[..3], [FleetEffect::RemoveFleetFile, terminate("persist-1"), terminate("persist-2")]);
    // A second error has no effect.
    assert_eq!(fleet.apply(FleetInput::EnvironmentFailed("again".to_owned())), []);
    for name in ["persist-1", "persist-2", "coordinator"] {
        fleet.apply(ended(name));
    }
    let failed = FleetOutcome::Failed("fleet.json cannot be written".to_owned());
    assert_eq!(fleet.apply(ended("nats")), [FleetEffect::Finish(failed)]);
}
