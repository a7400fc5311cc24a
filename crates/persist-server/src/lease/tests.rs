//! Scripts for the lease machine, and random runs that check that it never holds a lease too long.

use dormouse_protocol::ServerName;
use dormouse_protocol::tenant::LimitsRevision;
use dormouse_runtime::{Entropy, SeededEntropy};

use super::*;

const TTL_MS: u64 = 3_000;

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn grant(run: u64) -> LeaseReply {
    LeaseReply {
        incarnation: incarnation(run),
        ttl_ms: TTL_MS,
        draining: false,
        limits: LimitsRevision::NONE,
    }
}

fn incarnation(run: u64) -> Incarnation {
    Incarnation::new(ulid::Ulid::from_parts(run, 0))
}

fn set_lease(valid_until_ms: u64, generation: u64) -> LeaseEffect {
    LeaseEffect::SetLease(Some(HeldLease {
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

/// A machine that joined at 0 ms and got its reply at 5 ms.
fn member() -> LeaseMachine {
    let mut machine = LeaseMachine::new(at(0), false);
    assert_eq!(machine.apply(LeaseInput::Tick, at(0)), [SEND_JOIN]);
    assert_eq!(
        machine.apply(LeaseInput::Joined { sent_at: at(0), lease: grant(1) }, at(5)),
        [set_lease(2_100, 1)]
    );
    machine
}

/// The server retries a join 300 ms after a lost reply or a retryable error.
#[test]
fn join_is_retried_until_granted() {
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

/// A lease starts when the server sends the request, and lasts 0.7 TTL.
#[test]
fn lease_counts_from_send_time() {
    let mut machine = LeaseMachine::new(at(0), false);
    machine.apply(LeaseInput::Tick, at(0));
    let joined = LeaseInput::Joined { sent_at: at(0), lease: grant(1) };
    assert_eq!(machine.apply(joined, at(900)), [set_lease(2_100, 1)]);
}

/// If the reply arrives after the lease would expire, the server holds no lease and sends a heartbeat at once.
#[test]
fn lease_reply_after_expiry_grants_no_lease() {
    let mut machine = LeaseMachine::new(at(0), false);
    machine.apply(LeaseInput::Tick, at(0));
    let joined = LeaseInput::Joined { sent_at: at(0), lease: grant(1) };
    assert_eq!(machine.apply(joined, at(2_100)), [LeaseEffect::SetLease(None), SEND_HEARTBEAT]);
}

/// Lease renewals without a gap keep the lease generation.
#[test]
fn lease_renewal_without_gap_keeps_generation() {
    let mut machine = member();
    for beat in 1..10 {
        let sent = beat * 1_000;
        assert_eq!(machine.wake_at(), Some(at(sent)));
        assert_eq!(machine.apply(LeaseInput::Tick, at(sent)), [SEND_HEARTBEAT]);
        assert_eq!(machine.apply(renewed(sent, grant(1)), at(sent + 20)), [set_lease(sent + 2_100, 1)]);
    }
}

/// The lease survives two lost heartbeats, and the server ignores the reply to an older heartbeat.
#[test]
fn lease_survives_two_lost_heartbeats() {
    let mut machine = member();
    for sent in [1_000, 1_500, 2_000] {
        assert_eq!(machine.wake_at(), Some(at(sent)));
        assert_eq!(machine.apply(LeaseInput::Tick, at(sent)), [SEND_HEARTBEAT]);
    }
    assert_eq!(machine.apply(renewed(2_000, grant(1)), at(2_010)), [set_lease(4_100, 1)]);
    assert_eq!(machine.apply(renewed(1_000, grant(1)), at(2_020)), [], "the machine ignores an older grant");
}

/// While the data side does not advance, the machine sends no heartbeat, and the lease expires. Afterwards the overdue
/// heartbeat is sent at once.
#[test]
fn lease_expires_while_sending_is_forbidden() {
    let mut machine = member();
    machine.allow(false);
    assert_eq!(machine.wake_at(), Some(at(2_100)), "only the expiry is due");
    assert_eq!(machine.apply(LeaseInput::Tick, at(1_000)), []);
    assert_eq!(machine.apply(LeaseInput::HeartbeatNow, at(1_100)), []);
    let expired = [LeaseEffect::SetLease(None), LeaseEffect::Expired];
    assert_eq!(machine.apply(LeaseInput::Tick, at(2_100)), expired);
    assert_eq!(machine.wake_at(), None);
    machine.allow(true);
    assert_eq!(machine.apply(LeaseInput::Tick, at(2_200)), [SEND_HEARTBEAT]);
}

/// A join waits, too, until the data side advances.
#[test]
fn join_waits_while_sending_is_forbidden() {
    let mut machine = LeaseMachine::new(at(0), false);
    machine.allow(false);
    assert_eq!(machine.apply(LeaseInput::Tick, at(0)), []);
    machine.allow(true);
    assert_eq!(machine.apply(LeaseInput::Tick, at(500)), [SEND_JOIN]);
}

/// The machine reports an expired lease once, and the next lease has a new generation.
#[test]
fn lease_expiry_is_reported_once_and_starts_new_generation() {
    let mut machine = member();
    for sent in [1_000, 1_500, 2_000] {
        machine.apply(LeaseInput::Tick, at(sent));
    }
    assert_eq!(machine.wake_at(), Some(at(2_100)));
    assert_eq!(
        machine.apply(LeaseInput::Tick, at(2_100)),
        [LeaseEffect::SetLease(None), LeaseEffect::Expired]
    );
    assert_eq!(machine.apply(LeaseInput::Tick, at(2_500)), [SEND_HEARTBEAT]);
    assert_eq!(machine.apply(renewed(2_500, grant(1)), at(2_520)), [set_lease(4_600, 2)]);
}

/// A process with a predecessor retries its first join on `name_in_use` for one maximum lease time; otherwise it exits.
#[test]
fn join_after_restart_retries_name_in_use_for_one_lease() {
    let in_use = || LeaseInput::JoinFailed(CallFailure::Refused(ErrorReply::name_in_use(log("one"))));
    let exit = [LeaseEffect::Exit(ErrorReply::name_in_use(log("one")))];
    let mut machine = LeaseMachine::new(at(0), false);
    machine.apply(LeaseInput::Tick, at(0));
    assert_eq!(machine.apply(in_use(), at(5)), exit, "a data directory without a predecessor");

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
    assert_eq!(
        machine.apply(in_use(), at(1_020)),
        exit,
        "it was a member: another process has taken the name"
    );
}

/// A leave drops the lease; late replies and ticks have no effect, even if a join was in flight.
#[test]
fn leave_drops_lease_and_sends_nothing_more() {
    let unknown = |sent| heartbeat_refused(sent, ErrorReply::unknown_server(&log("one")));
    for late in [unknown(1_000), renewed(1_000, grant(1)), LeaseInput::HeartbeatNow, LeaseInput::Tick] {
        let mut machine = member();
        assert_eq!(machine.apply(LeaseInput::Tick, at(1_000)), [SEND_HEARTBEAT]);
        assert_eq!(machine.apply(LeaseInput::Leave, at(1_100)), [LeaseEffect::SetLease(None)]);
        assert_eq!(machine.apply(late, at(1_200)), []);
        assert_eq!(machine.wake_at(), None);
        assert_eq!(machine.apply(LeaseInput::Tick, at(60_000)), []);
    }
    // Also while the first join is in flight.
    let mut machine = LeaseMachine::new(at(0), false);
    machine.apply(LeaseInput::Tick, at(0));
    assert_eq!(machine.apply(LeaseInput::Leave, at(10)), []);
    assert_eq!(machine.apply(LeaseInput::Joined { sent_at: at(0), lease: grant(1) }, at(20)), []);
}

/// If the process is suspended past its lease, the next input reports the expiry before it takes a new lease.
#[test]
fn lease_expiry_during_suspend_is_detected_without_timer() {
    let mut machine = member();
    machine.apply(LeaseInput::Tick, at(1_000));
    // The process is suspended here. The first input is the reply, which would have been in time without the
    // suspension.
    assert_eq!(
        machine.apply(renewed(1_000, grant(1)), at(2_800)),
        [LeaseEffect::SetLease(None), LeaseEffect::Expired, set_lease(3_100, 2), SEND_HEARTBEAT]
    );
}

/// A lease from a new coordinator incarnation has a new generation.
#[test]
fn coordinator_restart_starts_new_lease_generation() {
    let mut machine = member();
    machine.apply(LeaseInput::Tick, at(1_000));
    assert_eq!(machine.apply(renewed(1_000, grant(2)), at(1_010)), [set_lease(3_100, 2)]);
}

/// The machine reports a drain order and its end once; a first join under the order reports `StayDrained`.
#[test]
fn drain_order_and_its_end_are_reported_once() {
    let draining = LeaseReply { draining: true, ..grant(1) };
    let mut machine = member();
    machine.apply(LeaseInput::Tick, at(1_000));
    let ordered = machine.apply(renewed(1_000, draining), at(1_010));
    assert_eq!(ordered, [set_lease(3_100, 1), LeaseEffect::DrainOrderChanged(DrainOrder::Drain)]);
    machine.apply(LeaseInput::Tick, at(2_000));
    assert_eq!(machine.apply(renewed(2_000, draining), at(2_010)), [set_lease(4_100, 1)]);
    assert_eq!(
        machine.apply(renewed(1_000, grant(1)), at(2_020)),
        [],
        "an older grant does not cancel the order"
    );
    machine.apply(LeaseInput::Tick, at(3_000));
    let ended = machine.apply(renewed(3_000, grant(1)), at(3_010));
    assert_eq!(ended, [set_lease(5_100, 1), LeaseEffect::DrainOrderChanged(DrainOrder::Serve)]);

    // A process that joins under the order has nothing to hand over.
    let mut machine = LeaseMachine::new(at(0), false);
    machine.apply(LeaseInput::Tick, at(0));
    let joined = machine.apply(LeaseInput::Joined { sent_at: at(0), lease: draining }, at(5));
    assert_eq!(joined, [set_lease(2_100, 1), LeaseEffect::DrainOrderChanged(DrainOrder::StayDrained)]);
    // A process that was a member before and joins again has to hand over its subjects.
    let mut machine = member();
    machine.apply(LeaseInput::Tick, at(1_000));
    machine.apply(heartbeat_refused(1_000, ErrorReply::unknown_server(&log("a"))), at(1_010));
    let joined = machine.apply(LeaseInput::Joined { sent_at: at(1_010), lease: draining }, at(1_020));
    assert_eq!(joined, [set_lease(3_110, 2), LeaseEffect::DrainOrderChanged(DrainOrder::Drain)]);
}

/// The heartbeat interval follows the TTL, so a lease of 500 ms survives losing each second heartbeat.
#[test]
fn lease_of_500_ms_survives_losing_half_of_heartbeats() {
    let short = LeaseReply { ttl_ms: 500, ..grant(1) };
    let mut machine = LeaseMachine::new(at(0), false);
    machine.apply(LeaseInput::Tick, at(0));
    assert_eq!(
        machine.apply(LeaseInput::Joined { sent_at: at(0), lease: short }, at(5)),
        [set_lease(350, 1)]
    );
    let mut sent = Vec::new();
    while sent.len() < 5 {
        let now = machine.wake_at().unwrap();
        machine.apply(LeaseInput::Tick, now);
        // Each second heartbeat is lost.
        if sent.len() % 2 == 1 {
            let effects = machine
                .apply(LeaseInput::Renewed { sent_at: now, lease: short }, now + Duration::from_millis(5));
            assert!(matches!(effects[..], [LeaseEffect::SetLease(Some(lease))] if lease.generation.0 == 1));
        }
        sent.push(now);
    }
    let pauses = sent.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect::<Vec<_>>();
    assert_eq!(pauses, [83, 166, 83, 166]);
}

/// A grant with a shorter TTL shortens the lease at once.
#[test]
fn lease_ttl_reduction_applies_at_once() {
    let mut machine = member();
    machine.apply(LeaseInput::Tick, at(1_000));
    let shorter = LeaseReply { ttl_ms: 300, ..grant(1) };
    assert_eq!(machine.apply(renewed(1_000, shorter), at(1_010)), [set_lease(1_210, 1)]);
}

/// On `unknown_server` the server drops its lease, joins again, and ignores replies to earlier heartbeats.
#[test]
fn server_unknown_to_coordinator_drops_lease_and_rejoins() {
    let mut machine = member();
    machine.apply(LeaseInput::Tick, at(1_000));
    machine.apply(LeaseInput::HeartbeatNow, at(1_001));
    let unknown = ErrorReply::unknown_server(&log("a"));
    assert_eq!(
        machine.apply(heartbeat_refused(1_000, unknown.clone()), at(1_010)),
        [LeaseEffect::SetLease(None), SEND_JOIN]
    );
    assert_eq!(
        machine.apply(renewed(1_001, grant(1)), at(1_012)),
        [],
        "the machine ignores a grant from before the rejoin"
    );
    let joined = LeaseInput::Joined { sent_at: at(1_010), lease: grant(1) };
    assert_eq!(machine.apply(joined, at(1_020)), [set_lease(3_110, 2)]);
    assert_eq!(
        machine.apply(heartbeat_refused(1_001, unknown), at(1_030)),
        [],
        "the machine ignores a refusal from before the rejoin"
    );
}

/// On a final refusal of a join or heartbeat the server drops its lease, exits and sends nothing more.
#[test]
fn server_refused_by_coordinator_exits_and_sends_nothing() {
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
        [LeaseEffect::SetLease(None), LeaseEffect::Exit(error)]
    );
}

/// If its content changes, the server sends a heartbeat at once.
#[test]
fn heartbeat_is_sent_at_once_when_status_changes() {
    let mut machine = member();
    assert_eq!(machine.apply(LeaseInput::HeartbeatNow, at(200)), [SEND_HEARTBEAT]);
    assert_eq!(machine.apply(renewed(200, grant(1)), at(210)), [set_lease(2_300, 1)]);
}

/// Drives the machine through random runs (slow, lost and refused replies, coordinator restarts, suspensions) and
/// checks after every step the held lease against the grants.
#[test]
fn lease_is_never_held_longer_than_granted_in_random_runs() {
    for seed in 0..3_000 {
        World::new(seed).run(120);
    }
}

struct World {
    seed: u64,
    rng: SeededEntropy,
    now: Duration,
    machine: LeaseMachine,
    run: u64,
    /// Requests in flight: whether it is a join, send time.
    in_flight: Vec<(bool, Duration)>,
    /// Grants that the machine got: send time of the request, TTL.
    grants: Vec<(Duration, Duration)>,
    held: Option<HeldLease>,
    /// Generation and coordinator run of the last held lease, and whether the lease may have been interrupted since.
    last: Option<(LeaseGeneration, u64)>,
    interrupted: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            rng: SeededEntropy::new(seed),
            now: Duration::ZERO,
            machine: LeaseMachine::new(Duration::ZERO, false),
            run: 1,
            in_flight: Vec::new(),
            grants: Vec::new(),
            held: None,
            last: None,
            interrupted: false,
        }
    }

    fn draw(&self, below: u64) -> u64 {
        self.rng.next_u64() % below
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
        if self.held.is_some_and(|lease| lease.valid_until <= self.now) {
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
                LeaseEffect::SetLease(lease) => self.set_lease(lease, joined),
                LeaseEffect::Expired | LeaseEffect::DrainOrderChanged(_) => {}
                LeaseEffect::Exit(error) => {
                    panic!("seed {}: exit without a final refusal: {error}", self.seed)
                }
            }
        }
    }

    fn set_lease(&mut self, lease: Option<HeldLease>, joined: bool) {
        self.held = lease;
        let Some(lease) = lease else {
            self.interrupted = true;
            return;
        };
        let seed = self.seed;
        // A lease lasts at most 0.7 TTL from the send time of its request.
        let covered = self.grants.iter().any(|(sent, ttl)| lease.valid_until <= *sent + *ttl * 7 / 10);
        assert!(covered, "seed {seed}: holds {lease:?}, granted {:?}", self.grants);
        if let Some((generation, run)) = self.last {
            let broken = self.interrupted || joined || run != self.run;
            assert_eq!(generation < lease.generation, broken, "seed {seed}: {generation:?}, then {lease:?}");
        }
        self.last = Some((lease.generation, self.run));
        self.interrupted = false;
    }
}

/// The random lease runs include runs with more than five lease generations.
#[test]
fn lease_random_runs_reach_several_generations() {
    let mut most = 0;
    for seed in 0..100 {
        let mut world = World::new(seed);
        world.run(120);
        most = most.max(world.last.map_or(0, |(generation, _)| generation.0));
    }
    assert!(most > 5, "runs with several gaps must occur, the most had {most}");
}
