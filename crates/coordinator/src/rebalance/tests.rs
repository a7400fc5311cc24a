use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn name(number: usize) -> ServerName {
    ServerName::new(&format!("s{number}")).unwrap()
}

fn subject(text: &str) -> Subject {
    Subject::new(text).unwrap()
}

/// A server with `assigned` subjects, of which `busy` are busy: requests per second and bytes.
fn server(number: usize, capacity: u32, assigned: u64, busy: &[(u64, u64)]) -> ServerShare {
    let busiest: Vec<_> = busy
        .iter()
        .enumerate()
        .map(|(n, (requests_per_second, bytes))| BusySubject {
            subject: subject(&format!("busy.{number}.{n}")),
            requests_per_second: *requests_per_second,
            bytes: *bytes,
        })
        .collect();
    let quiet = assigned.saturating_sub(busiest.len() as u64);
    ServerShare {
        name: name(number),
        capacity,
        assigned,
        requests_per_second: busy.iter().map(|(requests, _)| requests).sum(),
        busiest,
        candidates: (0..quiet).map(|n| subject(&format!("quiet.{number}.{n}"))).collect(),
    }
}

const UNLIMITED: PlanLimits =
    PlanLimits { most_moves: usize::MAX, most_bytes: usize::MAX, load_is_known: true };

/// The servers after the plan was executed.
fn execute(servers: Vec<ServerShare>, plan: &RebalanceReply) -> Vec<ServerShare> {
    let mut by_name: BTreeMap<_, _> =
        servers.into_iter().map(|server| (server.name.clone(), server)).collect();
    for step in &plan.moves {
        let from = by_name.get_mut(&step.from).unwrap();
        let busy = from.busiest.iter().position(|busy| busy.subject == step.subject);
        let busy = busy.map(|position| from.busiest.remove(position));
        from.candidates.retain(|subject| *subject != step.subject);
        from.assigned -= 1;
        from.requests_per_second -= busy.as_ref().map_or(0, |busy| busy.requests_per_second);
        let to = by_name.get_mut(&step.to).unwrap();
        to.assigned += 1;
        to.requests_per_second += busy.as_ref().map_or(0, |busy| busy.requests_per_second);
        match busy {
            Some(busy) => to.busiest.push(busy),
            None => to.candidates.push(step.subject.clone()),
        }
    }
    by_name.into_values().collect()
}

/// The plan is empty if the fleet is even, cannot be more even, has no capacity or has little load.
#[test]
fn rebalance_of_even_fleet_plans_no_moves() {
    let servers = vec![server(1, 100, 105, &[]), server(2, 100, 95, &[]), server(3, 200, 200, &[])];
    assert_eq!(plan(servers, UNLIMITED).moves, []);
    assert_eq!(plan(Vec::new(), UNLIMITED).moves, []);
    assert_eq!(plan(vec![server(1, 0, 5, &[])], UNLIMITED).moves, []);
    // Three subjects and two subjects cannot be more even.
    assert_eq!(plan(vec![server(1, 100, 3, &[]), server(2, 100, 2, &[])], UNLIMITED).moves, []);
    // A small difference in requests causes no move.
    assert_eq!(plan(vec![server(1, 100, 2, &[(5, 1), (4, 1)]), server(2, 100, 2, &[])], UNLIMITED).moves, []);
}

/// The plan moves subjects until the shares follow the capacities; a server with capacity 0 gets none.
#[test]
fn rebalance_shares_follow_capacities() {
    let servers = vec![server(1, 100, 900, &[]), server(2, 200, 0, &[]), server(3, 0, 0, &[])];
    let plan = plan(servers, UNLIMITED);
    let after: Vec<_> = plan.servers.iter().map(|server| server.assigned_subjects_after).collect();
    assert!((300..=315).contains(&after[0]) && after[2] == 0, "{after:?}");
    assert!(plan.moves.iter().all(|step| step.to == name(2)));
}

/// The plan respects the limits on moves and reply bytes, and moves no busy subject while the load is unknown.
#[test]
fn rebalance_plan_respects_limits() {
    let servers = || vec![server(1, 100, 500, &[]), server(2, 100, 0, &[])];
    assert_eq!(plan(servers(), PlanLimits { most_moves: 7, ..UNLIMITED }).moves.len(), 7);
    let few = plan(servers(), PlanLimits { most_bytes: 1_000, ..UNLIMITED }).moves.len();
    assert!((1..12).contains(&few), "{few}");
    let busy = vec![server(1, 100, 2, &[(100, 1), (100, 1)]), server(2, 100, 2, &[])];
    assert_eq!(plan(busy.clone(), PlanLimits { load_is_known: false, ..UNLIMITED }).moves, []);
    assert_eq!(plan(busy, UNLIMITED).moves.len(), 1);
}

/// The plan does not move a subject whose load would overload each other server.
#[test]
fn rebalance_keeps_subject_too_busy_for_other_servers() {
    let servers = vec![server(1, 100, 1, &[(1_000, 1)]), server(2, 100, 1, &[])];
    assert_eq!(plan(servers, UNLIMITED).moves, []);
}

fn servers() -> impl Strategy<Value = Vec<ServerShare>> {
    let capacity = prop::sample::select(vec![0_u32, 1, 50, 100, 100, 100, 400]);
    let busy = prop::collection::vec((0..2_000_u64, 0..10_000_000_u64), 0..12);
    let one = (capacity, 0..300_u64, busy);
    prop::collection::vec(one, 1..9).prop_map(|all| {
        let mut servers = Vec::new();
        for (capacity, quiet, busy) in all {
            servers.push(server(servers.len(), capacity, quiet + busy.len() as u64, &busy));
        }
        servers
    })
}

proptest! {
    /// A second plan after an executed plan is empty, and the result matches the predicted numbers.
    #[test]
    fn rebalance_after_executed_plan_moves_nothing(servers in servers()) {
        let first = plan(servers.clone(), UNLIMITED);
        let after = execute(servers, &first);
        for (server, predicted) in after.iter().zip(&first.servers) {
            prop_assert_eq!(&server.name, &predicted.name);
            prop_assert_eq!(server.assigned, predicted.assigned_subjects_after);
            prop_assert_eq!(server.requests_per_second, predicted.requests_per_second_after);
        }
        let again = plan(after, UNLIMITED);
        prop_assert_eq!(again.moves, vec![]);
    }

    /// A plan moves each subject at most once and never raises the highest relative request load.
    #[test]
    fn rebalance_moves_each_subject_once_and_never_raises_peak(servers in servers()) {
        let peak = |servers: &[ServerShare], has: fn(&ServerShare) -> f64| {
            let level = |server: &ServerShare| has(server) / f64::from(server.capacity);
            servers.iter().filter(|server| server.capacity > 0).map(level).fold(0.0, f64::max)
        };
        // A server with capacity 0 gives its subjects to others, which raises their load.
        prop_assume!(servers.iter().all(|server| server.capacity > 0 || server.assigned == 0));
        let requests = peak(&servers, |server| server.requests_per_second as f64);
        let first = plan(servers.clone(), UNLIMITED);
        let mut subjects: Vec<_> = first.moves.iter().map(|step| &step.subject).collect();
        subjects.sort();
        subjects.dedup();
        prop_assert_eq!(subjects.len(), first.moves.len());
        let after = execute(servers, &first);
        prop_assert!(peak(&after, |server| server.requests_per_second as f64) <= requests + 1e-9);
    }
}
