use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn name(number: usize) -> ServerName {
    ServerName::new(&format!("s{number}")).unwrap()
}

fn subject(text: &str) -> Subject {
    Subject::new(text).unwrap()
}

/// A server with so many subjects, of which these are busy: requests per second and bytes.
fn server(number: usize, capacity: u32, assigned: u64, busy: &[(u64, u64)]) -> Server {
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
    Server {
        name: name(number),
        capacity,
        assigned,
        requests_per_second: busy.iter().map(|(requests, _)| requests).sum(),
        busiest,
        candidates: (0..quiet).map(|n| subject(&format!("quiet.{number}.{n}"))).collect(),
    }
}

const UNLIMITED: Limits = Limits { most_moves: usize::MAX, most_bytes: usize::MAX, load_is_known: true };

/// The servers once the plan was carried out.
fn carried_out(servers: Vec<Server>, plan: &RebalanceReply) -> Vec<Server> {
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

#[test]
fn an_even_fleet_is_left_alone() {
    let servers = vec![server(1, 100, 105, &[]), server(2, 100, 95, &[]), server(3, 200, 200, &[])];
    assert_eq!(plan(servers, UNLIMITED).moves, []);
    assert_eq!(plan(Vec::new(), UNLIMITED).moves, []);
    assert_eq!(plan(vec![server(1, 0, 5, &[])], UNLIMITED).moves, []);
    // Three and two cannot be more even.
    assert_eq!(plan(vec![server(1, 100, 3, &[]), server(2, 100, 2, &[])], UNLIMITED).moves, []);
    // Nor is it worth a move where hardly anything is asked.
    assert_eq!(plan(vec![server(1, 100, 2, &[(5, 1), (4, 1)]), server(2, 100, 2, &[])], UNLIMITED).moves, []);
}

#[test]
fn shares_follow_capacities() {
    let servers = vec![server(1, 100, 900, &[]), server(2, 200, 0, &[]), server(3, 0, 0, &[])];
    let plan = plan(servers, UNLIMITED);
    let after: Vec<_> = plan.servers.iter().map(|server| server.assigned_subjects_after).collect();
    assert!((300..=315).contains(&after[0]) && after[2] == 0, "{after:?}");
    assert!(plan.moves.iter().all(|step| step.to == name(2)));
}

#[test]
fn a_plan_keeps_to_its_limits() {
    let servers = || vec![server(1, 100, 500, &[]), server(2, 100, 0, &[])];
    assert_eq!(plan(servers(), Limits { most_moves: 7, ..UNLIMITED }).moves.len(), 7);
    let few = plan(servers(), Limits { most_bytes: 1_000, ..UNLIMITED }).moves.len();
    assert!((1..12).contains(&few), "{few}");
    let busy = vec![server(1, 100, 2, &[(100, 1), (100, 1)]), server(2, 100, 2, &[])];
    assert_eq!(plan(busy.clone(), Limits { load_is_known: false, ..UNLIMITED }).moves, []);
    assert_eq!(plan(busy, UNLIMITED).moves.len(), 1);
}

#[test]
fn a_subject_that_is_too_much_for_anybody_else_stays() {
    let servers = vec![server(1, 100, 1, &[(1_000, 1)]), server(2, 100, 1, &[])];
    assert_eq!(plan(servers, UNLIMITED).moves, []);
}

fn servers() -> impl Strategy<Value = Vec<Server>> {
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
    #[test]
    fn planning_again_after_a_plan_was_carried_out_moves_nothing(servers in servers()) {
        let first = plan(servers.clone(), UNLIMITED);
        let after = carried_out(servers, &first);
        for (server, said) in after.iter().zip(&first.servers) {
            prop_assert_eq!(&server.name, &said.name);
            prop_assert_eq!(server.assigned, said.assigned_subjects_after);
            prop_assert_eq!(server.requests_per_second, said.requests_per_second_after);
        }
        let again = plan(after, UNLIMITED);
        prop_assert_eq!(again.moves, vec![]);
    }

    #[test]
    fn a_plan_moves_each_subject_once_and_makes_nothing_worse(servers in servers()) {
        let worst = |servers: &[Server], has: fn(&Server) -> f64| {
            let level = |server: &Server| has(server) / f64::from(server.capacity);
            servers.iter().filter(|server| server.capacity > 0).map(level).fold(0.0, f64::max)
        };
        // Whoever has a capacity of nothing gives what it has to others, for whom that is more.
        prop_assume!(servers.iter().all(|server| server.capacity > 0 || server.assigned == 0));
        let requests = worst(&servers, |server| server.requests_per_second as f64);
        let first = plan(servers.clone(), UNLIMITED);
        let mut subjects: Vec<_> = first.moves.iter().map(|step| &step.subject).collect();
        subjects.sort();
        subjects.dedup();
        prop_assert_eq!(subjects.len(), first.moves.len());
        let after = carried_out(servers, &first);
        prop_assert!(worst(&after, |server| server.requests_per_second as f64) <= requests + 1e-9);
    }
}
