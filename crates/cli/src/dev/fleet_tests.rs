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
    assert_eq!(fleet.phase, Phase::Running);
    fleet
}

fn ready(name: &str) -> Input {
    Input::Ready(name.to_owned())
}

fn ended(name: &str) -> Input {
    Input::Ended(name.to_owned(), "signal 9".to_owned())
}

fn start(name: &str) -> Effect {
    Effect::Start(name.to_owned())
}

fn terminate(name: &str) -> Effect {
    Effect::Terminate(name.to_owned())
}

fn kill(name: &str) -> [Effect; 2] {
    [Effect::Kill(name.to_owned()), Effect::Note(Note::Killed(name.to_owned()))]
}

fn ready_alarm(role: Role) -> Effect {
    Effect::SetAlarm(Alarm::Ready(role), READY_DEADLINE)
}

fn stopped_alarm(role: Role) -> Effect {
    Effect::SetAlarm(Alarm::Stopped(role), role.stop_deadline())
}

#[test]
fn each_role_waits_for_the_one_below() {
    let mut fleet = fleet(false);
    assert_eq!(fleet.begin(), [start("nats"), ready_alarm(Role::Nats)]);
    assert_eq!(fleet.apply(ready("nats")), [start("coordinator"), ready_alarm(Role::Coordinator)]);
    assert_eq!(
        fleet.apply(ready("coordinator")),
        [start("persist-1"), start("persist-2"), ready_alarm(Role::Server)]
    );
    assert_eq!(fleet.apply(ready("persist-2")), []);
    assert_eq!(fleet.apply(ready("persist-1")), [Effect::Announce]);
    // Alarms of moments that have passed do nothing.
    assert_eq!(fleet.apply(Input::Alarm(Alarm::Ready(Role::Server))), []);
}

#[test]
fn stopping_goes_the_other_way_round() {
    let mut fleet = running(false);
    assert_eq!(
        fleet.apply(Input::Stop),
        [Effect::Withdraw, terminate("persist-1"), terminate("persist-2"), stopped_alarm(Role::Server)]
    );
    assert_eq!(fleet.apply(ended("persist-1")), []);
    assert_eq!(fleet.apply(ended("persist-2")), [terminate("coordinator"), stopped_alarm(Role::Coordinator)]);
    assert_eq!(fleet.apply(ended("coordinator")), [terminate("nats"), stopped_alarm(Role::Nats)]);
    assert_eq!(fleet.apply(ended("nats")), [Effect::Finish(Outcome::Stopped)]);
}

#[test]
fn who_does_not_stop_is_killed_and_named() {
    let mut fleet = running(false);
    fleet.apply(Input::Stop);
    fleet.apply(ended("persist-1"));
    assert_eq!(fleet.apply(Input::Alarm(Alarm::Stopped(Role::Server))), kill("persist-2"));
    fleet.apply(ended("persist-2"));
    fleet.apply(ended("coordinator"));
    assert_eq!(fleet.apply(ended("nats")), [Effect::Finish(Outcome::Killed(vec!["persist-2".to_owned()]))]);
}

#[test]
fn a_second_stop_kills_everything_once() {
    let mut fleet = running(false);
    fleet.apply(Input::Stop);
    fleet.apply(ended("persist-1"));
    let expected: Vec<Effect> = ["coordinator", "nats", "persist-2"].into_iter().flat_map(kill).collect();
    assert_eq!(fleet.apply(Input::Stop), expected);
    assert_eq!(fleet.apply(Input::Stop), []);
    // They end in any order.
    assert_eq!(fleet.apply(ended("nats")), []);
    assert_eq!(fleet.apply(ended("coordinator")), []);
    let killed = ["coordinator", "nats", "persist-2"].map(str::to_owned).to_vec();
    assert_eq!(fleet.apply(ended("persist-2")), [Effect::Finish(Outcome::Killed(killed))]);
}

#[test]
fn a_death_while_running_is_noted_and_the_fleet_goes_on() {
    let mut fleet = running(false);
    let died = Note::Died { name: "persist-1".to_owned(), how: "signal 9".to_owned(), restarts: false };
    assert_eq!(fleet.apply(ended("persist-1")), [Effect::Note(died), Effect::Update]);
    // What is dead is not waited for.
    assert_eq!(
        fleet.apply(Input::Stop),
        [Effect::Withdraw, terminate("persist-2"), stopped_alarm(Role::Server)]
    );
}

#[test]
fn with_restart_the_dead_come_back() {
    let mut fleet = running(true);
    let died = Note::Died { name: "persist-1".to_owned(), how: "signal 9".to_owned(), restarts: true };
    let restart = Alarm::Restart("persist-1".to_owned());
    assert_eq!(
        fleet.apply(ended("persist-1")),
        [Effect::Note(died), Effect::Update, Effect::SetAlarm(restart.clone(), RESTART_PAUSE)]
    );
    assert_eq!(fleet.apply(Input::Alarm(restart.clone())), [start("persist-1")]);
    assert_eq!(
        fleet.apply(ready("persist-1")),
        [Effect::Note(Note::Back("persist-1".to_owned())), Effect::Update]
    );
    // Nothing comes back while the fleet goes down.
    fleet.apply(ended("persist-1"));
    fleet.apply(Input::Stop);
    assert_eq!(fleet.apply(Input::Alarm(restart)), []);
}

#[test]
fn a_death_before_all_is_ready_brings_the_fleet_down_again() {
    let mut fleet = fleet(true);
    fleet.begin();
    fleet.apply(ready("nats"));
    assert_eq!(
        fleet.apply(ended("coordinator")),
        [Effect::Withdraw, terminate("nats"), stopped_alarm(Role::Nats)]
    );
    let why = "coordinator ended before the fleet was ready (signal 9)".to_owned();
    assert_eq!(fleet.apply(ended("nats")), [Effect::Finish(Outcome::Failed(why))]);
}

#[test]
fn who_is_not_ready_in_time_is_named() {
    let mut fleet = fleet(false);
    fleet.begin();
    fleet.apply(ready("nats"));
    fleet.apply(ready("coordinator"));
    fleet.apply(ready("persist-1"));
    let effects = fleet.apply(Input::Alarm(Alarm::Ready(Role::Server)));
    assert_eq!(
        effects,
        [Effect::Withdraw, terminate("persist-1"), terminate("persist-2"), stopped_alarm(Role::Server)]
    );
    for name in ["persist-1", "persist-2", "coordinator"] {
        fleet.apply(ended(name));
    }
    let why = "persist-2 was not ready within 30 s".to_owned();
    assert_eq!(fleet.apply(ended("nats")), [Effect::Finish(Outcome::Failed(why))]);
}

#[test]
fn a_stop_before_all_is_ready_is_no_failure() {
    let mut fleet = fleet(false);
    fleet.begin();
    assert_eq!(fleet.apply(Input::Stop), [Effect::Withdraw, terminate("nats"), stopped_alarm(Role::Nats)]);
    assert_eq!(fleet.apply(ended("nats")), [Effect::Finish(Outcome::Stopped)]);
}

#[test]
fn trouble_stops_the_fleet_in_order_and_is_told_at_the_end() {
    let mut fleet = running(false);
    let effects = fleet.apply(Input::Trouble("fleet.json cannot be written".to_owned()));
    assert_eq!(effects[..3], [Effect::Withdraw, terminate("persist-1"), terminate("persist-2")]);
    // More of it changes nothing.
    assert_eq!(fleet.apply(Input::Trouble("again".to_owned())), []);
    for name in ["persist-1", "persist-2", "coordinator"] {
        fleet.apply(ended(name));
    }
    let failed = Outcome::Failed("fleet.json cannot be written".to_owned());
    assert_eq!(fleet.apply(ended("nats")), [Effect::Finish(failed)]);
}
