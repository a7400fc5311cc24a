//! Scripts for the lease machine, and a search for a run in which it trusts too long.

use dormouse_protocol::ServerName;
use dormouse_runtime::{Entropy, SeededEntropy};

use super::*;

const TTL_MS: u64 = 3_000;

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn grant(run: u64) -> LeaseReply {
    LeaseReply { incarnation: incarnation(run), ttl_ms: TTL_MS, draining: false }
}

fn incarnation(run: u64) -> Incarnation {
    Incarnation::new(ulid::Ulid::from_parts(run, 0))
}

fn trust(valid_until_ms: u64, generation: u64) -> LeaseEffect {
    LeaseEffect::Trust(Some(Lease {
        valid_until: at(valid_until_ms),
        generation: LeaseGeneration(generation),
    }))
}

const SEND_JOIN: LeaseEffect = LeaseEffect::SendJoin { deadline: JOIN_DEADLINE };
const SEND_HEARTBEAT: LeaseEffect = LeaseEffect::SendHeartbeat { deadline: Duration::from_millis(2_100) };

fn renewed(sent_ms: u64, lease: LeaseReply) -> LeaseInput {
    LeaseInput::Renewed { sent_at: at(sent_ms), lease }
}

fn heartbeat_refused(sent_ms: u64, error: ErrorReply) -> LeaseInput {
    LeaseInput::HeartbeatFailed { sent_at: at(sent_ms), failure: CallFailure::Refused(error) }
}

fn log(server: &str) -> dormouse_protocol::LogId {
    dormouse_protocol::LogId::new(ServerName::new(server).unwrap(), ulid::Ulid::from_parts(1, 1))
}

/// A machine that joined at 0 ms and got its answer at once.
fn member() -> LeaseMachine {
    let mut machine = LeaseMachine::new(at(0), false);
    assert_eq!(machine.apply(LeaseInput::Tick, at(0)), [SEND_JOIN]);
    assert_eq!(
        machine.apply(LeaseInput::Joined { sent_at: at(0), lease: grant(1) }, at(5)),
        [trust(2_100, 1)]
    );
    machine
}

#[test]
fn joins_until_somebody_answers() {
    let mut machine = LeaseMachine::new(at(0), false);
    assert_eq!(machine.apply(LeaseInput::Tick, at(0)), [SEND_JOIN]);
    assert_eq!(machine.wake_at(), None, "nothing is due while the join is in flight");
    assert_eq!(machine.apply(LeaseInput::JoinFailed(CallFailure::Unanswered), at(1_000)), []);
    assert_eq!(machine.wake_at(), Some(at(1_300)));
    assert_eq!(machine.apply(LeaseInput::Tick, at(1_300)), [SEND_JOIN]);
    let busy = CallFailure::Refused(ErrorReply::unavailable("learning"));
    assert_eq!(machine.apply(LeaseInput::JoinFailed(busy), at(1_310)), []);
    assert_eq!(machine.wake_at(), Some(at(1_610)));
}

#[test]
fn a_lease_counts_from_sending() {
    let mut machine = LeaseMachine::new(at(0), false);
    machine.apply(LeaseInput::Tick, at(0));
    let joined = LeaseInput::Joined { sent_at: at(0), lease: grant(1) };
    assert_eq!(machine.apply(joined, at(900)), [trust(2_100, 1)]);
}

#[test]
fn a_grant_that_took_too_long_is_not_trusted() {
    let mut machine = LeaseMachine::new(at(0), false);
    machine.apply(LeaseInput::Tick, at(0));
    let joined = LeaseInput::Joined { sent_at: at(0), lease: grant(1) };
    assert_eq!(machine.apply(joined, at(2_100)), [LeaseEffect::Trust(None), SEND_HEARTBEAT]);
}

#[test]
fn renewals_without_a_gap_keep_the_generation() {
    let mut machine = member();
    for beat in 1..10 {
        let sent = beat * 1_000;
        assert_eq!(machine.wake_at(), Some(at(sent)));
        assert_eq!(machine.apply(LeaseInput::Tick, at(sent)), [SEND_HEARTBEAT]);
        assert_eq!(machine.apply(renewed(sent, grant(1)), at(sent + 20)), [trust(sent + 2_100, 1)]);
    }
}

#[test]
fn two_lost_heartbeats_are_made_up_for_within_the_lease() {
    let mut machine = member();
    for sent in [1_000, 1_500, 2_000] {
        assert_eq!(machine.wake_at(), Some(at(sent)));
        assert_eq!(machine.apply(LeaseInput::Tick, at(sent)), [SEND_HEARTBEAT]);
    }
    assert_eq!(machine.apply(renewed(2_000, grant(1)), at(2_010)), [trust(4_100, 1)]);
    assert_eq!(machine.apply(renewed(1_000, grant(1)), at(2_020)), [], "an older grant says nothing new");
}

#[test]
fn a_lapse_is_said_once_and_starts_a_new_generation() {
    let mut machine = member();
    for sent in [1_000, 1_500, 2_000] {
        machine.apply(LeaseInput::Tick, at(sent));
    }
    assert_eq!(machine.wake_at(), Some(at(2_100)));
    assert_eq!(machine.apply(LeaseInput::Tick, at(2_100)), [LeaseEffect::Trust(None), LeaseEffect::Lapsed]);
    assert_eq!(machine.apply(LeaseInput::Tick, at(2_500)), [SEND_HEARTBEAT]);
    assert_eq!(machine.apply(renewed(2_500, grant(1)), at(2_520)), [trust(4_600, 2)]);
}

#[test]
fn a_process_that_follows_another_waits_for_its_name_once_and_for_no_longer_than_a_lease() {
    let in_use = || LeaseInput::JoinFailed(CallFailure::Refused(ErrorReply::name_in_use(log("one"))));
    let exit = [LeaseEffect::Exit(ErrorReply::name_in_use(log("one")))];
    let mut machine = LeaseMachine::new(at(0), false);
    machine.apply(LeaseInput::Tick, at(0));
    assert_eq!(machine.apply(in_use(), at(5)), exit, "a directory that nobody had before");

    let mut machine = LeaseMachine::new(at(0), true);
    machine.apply(LeaseInput::Tick, at(0));
    assert_eq!(machine.apply(in_use(), at(1_000)), []);
    assert_eq!(machine.apply(LeaseInput::Tick, at(1_300)), [SEND_JOIN]);
    assert_eq!(machine.apply(in_use(), at(26_999)), []);
    assert_eq!(machine.apply(LeaseInput::Tick, at(27_299)), [SEND_JOIN]);
    assert_eq!(machine.apply(in_use(), at(27_300)), exit);

    let mut machine = LeaseMachine::new(at(0), true);
    machine.apply(LeaseInput::Tick, at(0));
    machine.apply(LeaseInput::Joined { sent_at: at(0), lease: grant(1) }, at(5));
    machine.apply(LeaseInput::Tick, at(1_000));
    machine.apply(heartbeat_refused(1_000, ErrorReply::unknown_server(&log("one"))), at(1_010));
    assert_eq!(machine.apply(in_use(), at(1_020)), exit, "it was a member: another has taken the name");
}

#[test]
fn who_leaves_believes_nothing_and_sends_nothing_any_more() {
    let unknown = |sent| heartbeat_refused(sent, ErrorReply::unknown_server(&log("one")));
    for late in [unknown(1_000), renewed(1_000, grant(1)), LeaseInput::Hurry, LeaseInput::Tick] {
        let mut machine = member();
        assert_eq!(machine.apply(LeaseInput::Tick, at(1_000)), [SEND_HEARTBEAT]);
        assert_eq!(machine.apply(LeaseInput::Leave, at(1_100)), [LeaseEffect::Trust(None)]);
        assert_eq!(machine.apply(late, at(1_200)), []);
        assert_eq!(machine.wake_at(), None);
        assert_eq!(machine.apply(LeaseInput::Tick, at(60_000)), []);
    }
    // Also while the first join is under way.
    let mut machine = LeaseMachine::new(at(0), false);
    machine.apply(LeaseInput::Tick, at(0));
    assert_eq!(machine.apply(LeaseInput::Leave, at(10)), []);
    assert_eq!(machine.apply(LeaseInput::Joined { sent_at: at(0), lease: grant(1) }, at(20)), []);
}

#[test]
fn a_pause_longer_than_the_lease_is_noticed_although_no_timer_ran() {
    let mut machine = member();
    machine.apply(LeaseInput::Tick, at(1_000));
    // Suspended here; the first thing to run is the answer, which would have been in time without the suspension.
    assert_eq!(
        machine.apply(renewed(1_000, grant(1)), at(2_800)),
        [LeaseEffect::Trust(None), LeaseEffect::Lapsed, trust(3_100, 2), SEND_HEARTBEAT]
    );
}

#[test]
fn a_new_run_of_the_coordinator_starts_a_new_generation() {
    let mut machine = member();
    machine.apply(LeaseInput::Tick, at(1_000));
    assert_eq!(machine.apply(renewed(1_000, grant(2)), at(1_010)), [trust(3_100, 2)]);
}

#[test]
fn an_order_to_be_empty_is_told_once_and_so_is_its_end() {
    let emptied = LeaseReply { draining: true, ..grant(1) };
    let mut machine = member();
    machine.apply(LeaseInput::Tick, at(1_000));
    let ordered = machine.apply(renewed(1_000, emptied), at(1_010));
    assert_eq!(ordered, [trust(3_100, 1), LeaseEffect::Ordered(Order::BecomeEmpty)]);
    machine.apply(LeaseInput::Tick, at(2_000));
    assert_eq!(machine.apply(renewed(2_000, emptied), at(2_010)), [trust(4_100, 1)]);
    assert_eq!(machine.apply(renewed(1_000, grant(1)), at(2_020)), [], "an older grant takes nothing back");
    machine.apply(LeaseInput::Tick, at(3_000));
    let ended = machine.apply(renewed(3_000, grant(1)), at(3_010));
    assert_eq!(ended, [trust(5_100, 1), LeaseEffect::Ordered(Order::Serve)]);

    // Who joins under the order has nothing that it had to hand over.
    let mut machine = LeaseMachine::new(at(0), false);
    machine.apply(LeaseInput::Tick, at(0));
    let joined = machine.apply(LeaseInput::Joined { sent_at: at(0), lease: emptied }, at(5));
    assert_eq!(joined, [trust(2_100, 1), LeaseEffect::Ordered(Order::StayEmpty)]);
    // Who was a member before and joins once more does.
    let mut machine = member();
    machine.apply(LeaseInput::Tick, at(1_000));
    machine.apply(heartbeat_refused(1_000, ErrorReply::unknown_server(&log("a"))), at(1_010));
    let joined = machine.apply(LeaseInput::Joined { sent_at: at(1_010), lease: emptied }, at(1_020));
    assert_eq!(joined, [trust(3_110, 2), LeaseEffect::Ordered(Order::BecomeEmpty)]);
}

#[test]
fn a_lease_of_half_a_second_is_kept_by_heartbeats_of_its_own_pace() {
    let short = LeaseReply { ttl_ms: 500, ..grant(1) };
    let mut machine = LeaseMachine::new(at(0), false);
    machine.apply(LeaseInput::Tick, at(0));
    assert_eq!(machine.apply(LeaseInput::Joined { sent_at: at(0), lease: short }, at(5)), [trust(350, 1)]);
    let mut sent = Vec::new();
    while sent.len() < 5 {
        let now = machine.wake_at().unwrap();
        machine.apply(LeaseInput::Tick, now);
        // Of two heartbeats one is lost.
        if sent.len() % 2 == 1 {
            let effects = machine
                .apply(LeaseInput::Renewed { sent_at: now, lease: short }, now + Duration::from_millis(5));
            assert!(matches!(effects[..], [LeaseEffect::Trust(Some(lease))] if lease.generation.0 == 1));
        }
        sent.push(now);
    }
    let pauses = sent.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect::<Vec<_>>();
    assert_eq!(pauses, [83, 166, 83, 166]);
}

#[test]
fn a_shorter_ttl_shortens_the_lease_at_once() {
    let mut machine = member();
    machine.apply(LeaseInput::Tick, at(1_000));
    let shorter = LeaseReply { ttl_ms: 300, ..grant(1) };
    assert_eq!(machine.apply(renewed(1_000, shorter), at(1_010)), [trust(1_210, 1)]);
}

#[test]
fn who_is_unknown_stops_trusting_and_joins_again() {
    let mut machine = member();
    machine.apply(LeaseInput::Tick, at(1_000));
    machine.apply(LeaseInput::Hurry, at(1_001));
    let unknown = ErrorReply::unknown_server(&log("a"));
    assert_eq!(
        machine.apply(heartbeat_refused(1_000, unknown.clone()), at(1_010)),
        [LeaseEffect::Trust(None), SEND_JOIN]
    );
    assert_eq!(machine.apply(renewed(1_001, grant(1)), at(1_012)), [], "a grant from before is not believed");
    let joined = LeaseInput::Joined { sent_at: at(1_010), lease: grant(1) };
    assert_eq!(machine.apply(joined, at(1_020)), [trust(3_110, 2)]);
    assert_eq!(
        machine.apply(heartbeat_refused(1_001, unknown), at(1_030)),
        [],
        "this was about the time before"
    );
}

#[test]
fn who_is_refused_exits_and_does_nothing_more() {
    for error in [
        ErrorReply::name_in_use(log("a")),
        ErrorReply::bad_request("no"),
        ErrorReply::unsupported_version(dormouse_protocol::ProtocolVersion::CURRENT),
    ] {
        let mut machine = LeaseMachine::new(at(0), false);
        machine.apply(LeaseInput::Tick, at(0));
        let failed = LeaseInput::JoinFailed(CallFailure::Refused(error.clone()));
        assert_eq!(machine.apply(failed, at(10)), [LeaseEffect::Exit(error)]);
        assert_eq!(machine.wake_at(), None);
        assert_eq!(machine.apply(LeaseInput::Tick, at(100_000)), []);
    }
    let mut machine = member();
    machine.apply(LeaseInput::Tick, at(1_000));
    let error = ErrorReply::name_in_use(log("a"));
    assert_eq!(
        machine.apply(heartbeat_refused(1_000, error.clone()), at(1_010)),
        [LeaseEffect::Trust(None), LeaseEffect::Exit(error)]
    );
}

#[test]
fn news_are_sent_at_once() {
    let mut machine = member();
    assert_eq!(machine.apply(LeaseInput::Hurry, at(200)), [SEND_HEARTBEAT]);
    assert_eq!(machine.apply(renewed(200, grant(1)), at(210)), [trust(2_300, 1)]);
}

/// Drives the machine through a random world (slow, lost and refused answers, forgetful coordinators, suspensions)
/// and checks after every step what it trusts against what was granted.
#[test]
fn no_run_trusts_longer_than_it_may() {
    for seed in 0..3_000 {
        World::new(seed).run(120);
    }
}

struct World {
    seed: u64,
    chance: SeededEntropy,
    now: Duration,
    machine: LeaseMachine,
    run: u64,
    /// Requests in flight: whether a join, when sent.
    in_flight: Vec<(bool, Duration)>,
    /// Grants the machine has been given: when sent, TTL.
    grants: Vec<(Duration, Duration)>,
    trusted: Option<Lease>,
    /// Generation and coordinator's run of the last trusted lease, and whether trust may have been interrupted since.
    last: Option<(LeaseGeneration, u64)>,
    interrupted: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            chance: SeededEntropy::new(seed),
            now: Duration::ZERO,
            machine: LeaseMachine::new(Duration::ZERO, false),
            run: 1,
            in_flight: Vec::new(),
            grants: Vec::new(),
            trusted: None,
            last: None,
            interrupted: false,
        }
    }

    fn draw(&self, below: u64) -> u64 {
        self.chance.next_u64() % below
    }

    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step();
        }
    }

    fn step(&mut self) {
        let usual = self.machine.wake_at().map_or(at(50), |due| due.saturating_sub(self.now));
        self.now += match self.draw(10) {
            0 => at(self.draw(5_000)),
            1..=5 => usual,
            _ => at(self.draw(40)),
        };
        if self.trusted.is_some_and(|lease| lease.valid_until <= self.now) {
            self.interrupted = true;
        }
        if self.draw(40) == 0 {
            self.run += 1;
        }
        let answered = self.draw(3) > 0 && !self.in_flight.is_empty();
        let mut joined = false;
        let input = if answered {
            let which = usize::try_from(self.draw(self.in_flight.len() as u64)).unwrap();
            let (join, sent_at) = self.in_flight.remove(which);
            let lease = LeaseReply { ttl_ms: [300, 3_000, 3_000][self.draw(3) as usize], ..grant(self.run) };
            match (join, self.draw(6)) {
                (true, 0) => LeaseInput::JoinFailed(CallFailure::Unanswered),
                (false, 0) => LeaseInput::HeartbeatFailed { sent_at, failure: CallFailure::Unanswered },
                (false, 1) => heartbeat_refused(
                    u64::try_from(sent_at.as_millis()).unwrap(),
                    ErrorReply::unknown_server(&log("a")),
                ),
                (_, _) => {
                    self.grants.push((sent_at, at(lease.ttl_ms)));
                    joined = join;
                    if join {
                        LeaseInput::Joined { sent_at, lease }
                    } else {
                        LeaseInput::Renewed { sent_at, lease }
                    }
                }
            }
        } else {
            LeaseInput::Tick
        };
        for effect in self.machine.apply(input, self.now) {
            match effect {
                LeaseEffect::SendJoin { .. } => self.in_flight.push((true, self.now)),
                LeaseEffect::SendHeartbeat { .. } => self.in_flight.push((false, self.now)),
                LeaseEffect::Trust(lease) => self.trust(lease, joined),
                LeaseEffect::Lapsed | LeaseEffect::Ordered(_) => {}
                LeaseEffect::Exit(error) => panic!("seed {}: nobody refused it, yet {error}", self.seed),
            }
        }
    }

    fn trust(&mut self, lease: Option<Lease>, joined: bool) {
        self.trusted = lease;
        let Some(lease) = lease else {
            self.interrupted = true;
            return;
        };
        let seed = self.seed;
        // The newest grant is the one given last: 0.7 TTL from its sending and not a moment longer.
        let covered = self.grants.iter().any(|(sent, ttl)| lease.valid_until <= *sent + *ttl * 7 / 10);
        assert!(covered, "seed {seed}: trusts {lease:?}, but was granted {:?}", self.grants);
        if let Some((generation, run)) = self.last {
            let broken = self.interrupted || joined || run != self.run;
            assert_eq!(generation < lease.generation, broken, "seed {seed}: {generation:?}, then {lease:?}");
        }
        self.last = Some((lease.generation, self.run));
        self.interrupted = false;
    }
}

#[test]
fn the_world_of_the_search_is_not_empty() {
    let mut most = 0;
    for seed in 0..100 {
        let mut world = World::new(seed);
        world.run(120);
        most = most.max(world.last.map_or(0, |(generation, _)| generation.0));
    }
    assert!(most > 5, "runs with several gaps must occur, the most had {most}");
}
