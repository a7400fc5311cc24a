use dormouse_protocol::admin::{RebalanceReply, RebalanceRequest};
use dormouse_protocol::fleet::BusySubject;

use super::super::Candidates;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

impl World {
    fn beat_with(&mut self, log: &LogId, load: ServerLoad, busiest: Vec<BusySubject>) {
        let CoordinatorInput::Heartbeat(request) = heartbeat(log) else { unreachable!() };
        self.ask(CoordinatorInput::Heartbeat(HeartbeatRequest { load, busiest, ..request })).unwrap();
    }

    fn rebalance(&mut self, dry_run: bool, most_moves: u64) -> RebalanceReply {
        let wanted = self.machine.wanted_candidates(&self.store);
        let mut subjects = self.store.assigned_after("", None, 1_000_000).unwrap();
        subjects.retain(|(_, server)| wanted.contains_key(server));
        subjects.extend(self.machine.busy_subjects());
        let request = RebalanceRequest { dry_run, most_moves, ..RebalanceRequest::default() };
        let candidates = Candidates { subjects, reply_bytes: 1 << 20 };
        match self.ask(CoordinatorInput::Rebalance(request, candidates)) {
            Ok(CoordinatorReply::Rebalance(reply)) => reply,
            other => panic!("{other:?}"),
        }
    }

    fn assigned(&mut self, name: &str) -> u64 {
        self.server(name).unwrap().assigned_subjects
    }
}

fn busy(name: &str, requests_per_second: u64, bytes: u64) -> BusySubject {
    BusySubject { subject: subject(name), requests_per_second, bytes }
}

/// A rebalance plan gives a new server its share, and the coordinator executes the plan at a bounded rate.
#[test]
fn rebalance_moves_share_to_new_server_at_bounded_rate() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    for n in 0..1_000 {
        world.claim(&format!("s.{n}"), &one, None).unwrap();
    }
    let two = world.joined("two", 2);
    assert!(
        world.rebalance(true, 100).moves.len() == 100 && world.moves().pending == 0,
        "a dry run moves nothing"
    );
    let plan = world.rebalance(false, 10_000);
    assert!((475..=500).contains(&plan.moves.len()), "{}", plan.moves.len());
    let after: Vec<_> = plan.servers.iter().map(|server| server.assigned_subjects_after).collect();
    assert_eq!(after.iter().sum::<u64>(), 1_000);
    assert!(world.rebalance(true, 10_000).moves.is_empty(), "pending moves count as done");
    // Without releases, the number of moves under way is bounded.
    let orders = world.orders_within(SECOND, &[&one, &two]);
    let ordered: std::collections::BTreeSet<_> = orders.iter().map(|order| order.subject.clone()).collect();
    assert_eq!(ordered.len(), 32);
    let mut seconds = 0;
    while world.moves().pending > 0 {
        seconds += 1;
        for order in world.orders_within(SECOND, &[&one, &two]) {
            world
                .ask(CoordinatorInput::Release(
                    order.subject,
                    ReleaseRequest { v: ProtocolVersion::CURRENT, log: order.log },
                ))
                .unwrap();
        }
    }
    assert!(seconds >= plan.moves.len() / 60, "{seconds} s for {} moves", plan.moves.len());
    assert_eq!(world.moves().done, plan.moves.len() as u64);
    assert_eq!(world.assigned("two"), plan.moves.len() as u64);
    assert!(world.rebalance(true, 10_000).moves.is_empty(), "the fleet is even");
}

/// If the owner releases a subject before its planned move starts, the target gets it without a handover order.
#[test]
fn rebalance_move_released_early_needs_no_order() {
    let mut world = World::new();
    let one = world.joined("one", 1);
    for n in 0..10 {
        world.claim(&format!("s.{n}"), &one, None).unwrap();
    }
    let two = world.joined("two", 2);
    let plan = world.rebalance(false, 1);
    let name = plan.moves[0].subject.to_string();
    world.ask(release(&name, &one)).unwrap();
    let three = world.joined("three", 3);
    assert_eq!(world.claim(&name, &three, None), Err((ErrorCode::NotOwner, Some("two".into()))));
    assert_eq!(world.orders_within(SECOND, &[&one, &two, &three]), []);
    assert_eq!(world.moves().pending, 0);
}

/// A rebalance moves the subjects with the most requests per byte to the less loaded server, and moves each only once.
#[test]
fn rebalance_moves_busy_subject_to_less_loaded_server_once() {
    let mut world = World::new();
    let (one, two) = (world.joined("one", 1), world.joined("two", 2));
    let names = ["hot", "large", "warm"];
    names.iter().for_each(|name| world.claim(name, &one, None).unwrap());
    for n in 0..3 {
        world.claim(&format!("cold.{n}"), &two, None).unwrap();
    }
    let load = |requests| ServerLoad { requests, ..ServerLoad::default() };
    let beat = |world: &mut World, seconds: u64| {
        for _ in 0..seconds {
            world.now += SECOND;
            let n = world.now.as_secs();
            let reported =
                vec![busy("hot", 400, 1 << 20), busy("large", 400, 1 << 40), busy("warm", 200, 1 << 20)];
            world.beat_with(&one, load(1_000 * n), reported);
            // A report about a subject of another server is ignored.
            world.beat_with(&two, load(10 * n), vec![busy("elsewhere", 9_000, 1)]);
            world.apply(CoordinatorInput::Tick);
        }
    };
    beat(&mut world, 120);
    let plan = world.rebalance(false, 100);
    let moved: Vec<_> = plan.moves.iter().map(|step| (step.subject.as_str(), step.to.as_str())).collect();
    assert_eq!(moved[0], ("hot", "two"), "the most requests per byte");
    assert!(moved.iter().all(|(name, _)| *name != "large" && *name != "elsewhere"), "{moved:?}");
    let [giver, receiver] = plan.servers.as_slice() else { panic!("{plan:?}") };
    assert!((900..=1_000).contains(&giver.requests_per_second), "{giver:?}");
    assert!(receiver.requests_per_second_after >= 400, "{receiver:?}");
    world.apply(CoordinatorInput::Tick);
    for (name, _) in &moved {
        world.ask(release(name, &one)).unwrap();
        assert_eq!(world.locate(name), Ok("two".into()));
    }
    // The reported load does not show the moves yet.
    assert!(world.rebalance(true, 100).moves.iter().all(|step| step.requests_per_second == 0));
}

/// A server with more requests than its share gets fewer new subjects and keeps its assignments.
#[test]
fn server_over_its_load_share_gets_fewer_new_subjects() {
    let mut world = World::new();
    let logs: Vec<_> = (1..=4).map(|n| world.joined(&format!("s{n}"), n)).collect();
    let share = |world: &mut World, from: usize| {
        (from..from + 600).filter(|n| world.open(&format!("new.{n}")) == Ok("s1".into())).count()
    };
    assert!((110..190).contains(&share(&mut world, 0)));
    for _ in 0..100 {
        world.now += SECOND;
        let n = world.now.as_secs();
        for (position, log) in logs.iter().enumerate() {
            let requests = if position == 0 { 5_000 * n } else { 100 * n };
            world.beat_with(log, ServerLoad { requests, ..ServerLoad::default() }, Vec::new());
        }
        world.apply(CoordinatorInput::Tick);
    }
    // Its weight is at least a quarter: 1 of 13 parts.
    let busy = share(&mut world, 10_000);
    assert!((20..85).contains(&busy), "{busy} of 600");
    assert!(world.assigned("s1") >= 110, "assigned subjects stay");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 32, ..Default::default() })]
    /// In random fleets a new server moves no assignment; only the assignments of a leaving or drained server move.
    #[test]
    fn assignments_move_only_off_leaving_or_drained_server(
        servers in 2..6_usize,
        goes in 0..6_usize,
        drains: bool,
    ) {
        let mut world = World::new();
        let mut logs: Vec<_> = (0..servers).map(|n| world.joined(&format!("s{n}"), n as u128)).collect();
        let names: Vec<_> = (0..200).map(|n| format!("x.{n}")).collect();
        let before: Vec<_> = names.iter().map(|name| world.open(name).unwrap()).collect();
        logs.push(world.joined("new", 100));
        let now: Vec<_> = names.iter().map(|name| world.locate(name).unwrap()).collect();
        proptest::prop_assert_eq!(&before, &now);
        let gone = logs.remove(goes % servers);
        if drains {
            world.ask(CoordinatorInput::Drain(gone.server().clone())).unwrap();
            for name in &names {
                world.ask(release(name, &gone)).unwrap();
            }
        } else {
            world.ask(leave(&gone)).unwrap();
        }
        for (name, before) in names.iter().zip(before) {
            let now = world.open(name).unwrap();
            if before == gone.server().as_str() {
                proptest::prop_assert_ne!(now, before);
            } else {
                proptest::prop_assert_eq!(now, before);
            }
        }
        proptest::prop_assert_eq!(world.assigned(gone.server().as_str()), 0);
    }
}

/// Eight servers whose load follows their subjects each get an even share of 100,000 subjects, within 10 %.
#[test]
fn servers_with_proportional_load_get_even_shares() {
    let mut world = World::new();
    let logs: Vec<_> = (1..=8).map(|n| world.joined(&format!("persist-{n}"), n)).collect();
    let mut shares = std::collections::BTreeMap::<String, u64>::new();
    for thousand in 0..100_u64 {
        for n in 0..1_000 {
            let asked = CoordinatorInput::Locate(subject(&format!("app.{thousand}.{n}")));
            let Some(Ok(CoordinatorReply::Located(reply))) =
                world.machine.apply(asked, world.now, &world.store).answer
            else {
                panic!("a server");
            };
            *shares.entry(reply.server.to_string()).or_default() += 1;
        }
        world.now += SECOND;
        for log in &logs {
            let open_subjects = shares.get(log.server().as_str()).copied().unwrap_or(0);
            let load = ServerLoad { open_subjects, requests: 10 * open_subjects, local_bytes: 0 };
            world.beat_with(log, load, Vec::new());
        }
        world.machine.apply(CoordinatorInput::Tick, world.now, &world.store);
    }
    assert_eq!(shares.len(), 8);
    for (server, share) in shares {
        assert!((11_250..=13_750).contains(&share), "{server} has {share} of 100,000");
    }
}
