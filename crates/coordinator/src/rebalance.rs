//! Rebalancing plans: pure arithmetic that decides which subjects should move so that each server has its share of the load.
//!
//! There are two kinds of load: requests, which come from a few busy subjects, and subjects, each of which has a small cost.
//! Requests come first. The subject with the most requests per byte moves from a server above its share to the server
//! that is the least loaded with it, if that server stays within its share. Then the plan balances the numbers of subjects,
//! with any subjects that are not known to be busy.
//!
//! The plan starts if a server is outside [`TOLERANCE`], and continues until all servers are within half of it. A move is
//! part of the plan only if the receiver then has no more than the giver. So a new plan after an executed plan moves nothing.

use dormouse_protocol::admin::{PlannedMove, RebalanceReply, ServerBalance};
use dormouse_protocol::fleet::BusySubject;
use dormouse_protocol::{ServerName, Subject};

/// How far from its share a server may be, as a fraction of the share.
pub const TOLERANCE: f64 = 0.1;

/// A difference of fewer requests per second than this causes no move.
const LEAST_REQUESTS_PER_SECOND: f64 = 10.0;

/// The size below which the cost of a move is negligible: smaller subjects are not preferred.
const SMALL_BYTES: u64 = 64 * 1_024;

/// The size of a move in a reply without its names, in bytes.
const MOVE_BYTES: usize = 96;

/// A server that takes part in the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerShare {
    /// Its name.
    pub name: ServerName,
    /// Its share relative to others.
    pub capacity: u32,
    /// Subjects assigned to it.
    pub assigned: u64,
    /// Requests per second.
    pub requests_per_second: u64,
    /// Its busiest subjects.
    pub busiest: Vec<BusySubject>,
    /// Some of its other subjects.
    pub candidates: Vec<Subject>,
}

/// The limits of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanLimits {
    /// The maximum number of moves.
    pub most_moves: usize,
    /// The maximum size of the list of moves, in bytes.
    pub most_bytes: usize,
    /// Whether the reported request rates are reliable; otherwise the plan balances only the numbers of subjects.
    pub load_is_known: bool,
}

/// The servers with more subjects than their share, and the excess of each. Empty if all servers are within the tolerance.
pub fn overfull(servers: &[ServerShare]) -> impl Iterator<Item = (&ServerName, u64)> {
    let scale = LoadDimension::of(servers, 1.0, |server| server.assigned as f64);
    let unbalanced = scale.is_outside(servers, TOLERANCE);
    servers.iter().filter(move |_| unbalanced).filter_map(move |server| {
        let excess = (server.assigned as f64 - scale.share(server)).ceil();
        (excess > 0.0).then_some((&server.name, excess as u64))
    })
}

/// Plans moves between `servers`.
#[must_use]
pub fn plan(servers: Vec<ServerShare>, limits: PlanLimits) -> RebalanceReply {
    let before: Vec<_> = servers.iter().map(|server| (server.assigned, server.requests_per_second)).collect();
    let mut plan = RebalancePlan { servers, limits, moves: Vec::new(), bytes: 0 };
    if limits.load_is_known {
        plan.balance_requests();
    }
    plan.balance_counts();
    let balance = |(server, (assigned, requests)): (ServerShare, (u64, u64))| ServerBalance {
        name: server.name,
        capacity: server.capacity,
        assigned_subjects: assigned,
        assigned_subjects_after: server.assigned,
        requests_per_second: requests,
        requests_per_second_after: server.requests_per_second,
    };
    RebalanceReply { moves: plan.moves, servers: plan.servers.into_iter().zip(before).map(balance).collect() }
}

struct RebalancePlan {
    servers: Vec<ServerShare>,
    limits: PlanLimits,
    moves: Vec<PlannedMove>,
    bytes: usize,
}

impl RebalancePlan {
    fn balance_requests(&mut self) {
        let scale = LoadDimension::of(&self.servers, LEAST_REQUESTS_PER_SECOND, |server| {
            server.requests_per_second as f64
        });
        let mut tolerance = TOLERANCE;
        while scale.is_outside(&self.servers, tolerance) {
            tolerance = TOLERANCE / 2.0;
            let Some((from, position, to)) = self.best_busy_move(&scale) else { return };
            let busy = self.servers[from].busiest.remove(position);
            if !self.add_move(from, to, busy) {
                return;
            }
        }
    }

    /// The subject with the most requests per byte that a server above its share can give to a server that stays within its
    /// own share.
    fn best_busy_move(&self, scale: &LoadDimension) -> Option<(usize, usize, usize)> {
        let mut best: Option<(f64, (usize, usize, usize))> = None;
        for (from, giver) in self.servers.iter().enumerate() {
            if scale.has(giver) <= scale.share(giver) {
                continue;
            }
            for (position, busy) in giver.busiest.iter().enumerate() {
                let load = busy.requests_per_second as f64;
                let worth = load / (busy.bytes + SMALL_BYTES) as f64;
                if load <= 0.0 || best.is_some_and(|(other, _)| other >= worth) {
                    continue;
                }
                let Some(to) = self.receiver(from, load, scale) else { continue };
                if scale.has(&self.servers[to]) + load <= scale.share(&self.servers[to]) {
                    best = Some((worth, (from, position, to)));
                }
            }
        }
        best.map(|(_, step)| step)
    }

    fn balance_counts(&mut self) {
        let scale = LoadDimension::of(&self.servers, 1.0, |server| server.assigned as f64);
        let mut tolerance = TOLERANCE;
        while scale.is_outside(&self.servers, tolerance) {
            tolerance = TOLERANCE / 2.0;
            let giver = (0..self.servers.len())
                .filter(|from| {
                    let giver = &self.servers[*from];
                    !giver.candidates.is_empty() && scale.has(giver) > scale.share(giver)
                })
                .max_by(|a, b| {
                    let [a, b] = [a, b].map(|from| scale.level(&self.servers[*from], -1.0));
                    a.total_cmp(&b)
                });
            let Some(from) = giver else { return };
            let Some(to) = self.receiver(from, 1.0, &scale) else { return };
            let Some(subject) = self.servers[from].candidates.pop() else { return };
            if !self.add_move(from, to, BusySubject { subject, requests_per_second: 0, bytes: 0 }) {
                return;
            }
        }
    }

    /// The server that is the least loaded after it gets `amount`, if it then has no more than the giver.
    fn receiver(&self, from: usize, amount: f64, scale: &LoadDimension) -> Option<usize> {
        let level = |index: &usize| scale.level(&self.servers[*index], amount);
        let others = (0..self.servers.len()).filter(|to| *to != from && self.servers[*to].capacity > 0);
        let best = others.min_by(|a, b| level(a).total_cmp(&level(b)))?;
        (level(&best) <= scale.level(&self.servers[from], -amount)).then_some(best)
    }

    /// Adds a move to the plan; false if the limits leave no room for it.
    fn add_move(&mut self, from: usize, to: usize, moved: BusySubject) -> bool {
        let BusySubject { subject, requests_per_second, bytes } = moved;
        let [giver, receiver] = [from, to].map(|index| self.servers[index].name.clone());
        let size = subject.as_str().len() + giver.as_str().len() + receiver.as_str().len() + MOVE_BYTES;
        if self.moves.len() >= self.limits.most_moves || self.bytes + size > self.limits.most_bytes {
            return false;
        }
        self.bytes += size;
        let load = requests_per_second;
        let giver_now = &mut self.servers[from];
        giver_now.assigned = giver_now.assigned.saturating_sub(1);
        giver_now.requests_per_second = giver_now.requests_per_second.saturating_sub(load);
        self.servers[to].assigned += 1;
        self.servers[to].requests_per_second += load;
        self.moves.push(PlannedMove { subject, from: giver, to: receiver, requests_per_second, bytes });
        true
    }
}

/// One kind of load, and the share of each server.
struct LoadDimension {
    has: fn(&ServerShare) -> f64,
    per_capacity: f64,
    least: f64,
}

impl LoadDimension {
    /// Differences below `least` are ignored.
    fn of(servers: &[ServerShare], least: f64, has: fn(&ServerShare) -> f64) -> Self {
        let all: f64 = servers.iter().map(has).sum();
        let capacity: f64 = servers.iter().map(|server| f64::from(server.capacity)).sum();
        Self { has, per_capacity: if capacity > 0.0 { all / capacity } else { 0.0 }, least }
    }

    fn has(&self, server: &ServerShare) -> f64 {
        (self.has)(server)
    }

    fn share(&self, server: &ServerShare) -> f64 {
        f64::from(server.capacity) * self.per_capacity
    }

    /// The load per capacity of a server if its load increases by `more`.
    fn level(&self, server: &ServerShare, more: f64) -> f64 {
        match (self.has(server) + more, f64::from(server.capacity)) {
            (has, capacity) if capacity > 0.0 => has / capacity,
            (has, _) if has > 0.0 => f64::INFINITY,
            _ => 0.0,
        }
    }

    fn is_outside(&self, servers: &[ServerShare], tolerance: f64) -> bool {
        let least = self.least * tolerance / TOLERANCE;
        servers.iter().any(|server| {
            let share = self.share(server);
            (self.has(server) - share).abs() > (share * tolerance).max(least)
        })
    }
}

#[cfg(test)]
mod tests;
