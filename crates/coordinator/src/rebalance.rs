//! Which subjects should move so that each server has its share of the work: arithmetic, and nothing else.
//!
//! There are two kinds of work: requests, which a few busy subjects cause, and subjects, each of which costs a little.
//! Requests come first: the busiest subject for its bytes goes from a server above its share to the one that is best off
//! with it, if that one stays within its share. Then numbers: any subject that is not known to be busy does.
//!
//! A plan begins only where somebody is out of [`TOLERANCE`], and goes on to half of it. A step is part of it only when
//! who receives has no more afterwards than who gives. So planning again after a plan was carried out moves nothing.

use dormouse_protocol::admin::{PlannedMove, RebalanceReply, ServerBalance};
use dormouse_protocol::fleet::BusySubject;
use dormouse_protocol::{ServerName, Subject};

/// How far from its share a server may be, as a part of the share.
pub const TOLERANCE: f64 = 0.1;

/// A difference of fewer requests per second than this is not worth a move.
const LEAST_REQUESTS_PER_SECOND: f64 = 10.0;

/// A subject's bytes that cost nothing to speak of: what has less is not preferred for it.
const SMALL_BYTES: u64 = 64 * 1_024;

/// What a move takes in an answer beside its names, in bytes.
const MOVE_BYTES: usize = 96;

/// A server that may give and take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
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

/// What a plan must keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most moves.
    pub most_moves: usize,
    /// Most bytes of the list of moves.
    pub most_bytes: usize,
    /// Whether what is said about requests can be relied on; otherwise only numbers are evened out.
    pub load_is_known: bool,
}

/// How many more subjects than its share each server has, for those that have more, where somebody is out of tolerance.
pub fn overfull(servers: &[Server]) -> impl Iterator<Item = (&ServerName, u64)> {
    let scale = Scale::of(servers, 1.0, |server| server.assigned as f64);
    let unbalanced = scale.is_out_of(servers, TOLERANCE);
    servers.iter().filter(move |_| unbalanced).filter_map(move |server| {
        let excess = (server.assigned as f64 - scale.share(server)).ceil();
        (excess > 0.0).then_some((&server.name, excess as u64))
    })
}

/// Plans moves between `servers`.
#[must_use]
pub fn plan(servers: Vec<Server>, limits: Limits) -> RebalanceReply {
    let before: Vec<_> = servers.iter().map(|server| (server.assigned, server.requests_per_second)).collect();
    let mut plan = Plan { servers, limits, moves: Vec::new(), bytes: 0 };
    if limits.load_is_known {
        plan.even_out_requests();
    }
    plan.even_out_numbers();
    let balance = |(server, (assigned, requests)): (Server, (u64, u64))| ServerBalance {
        name: server.name,
        capacity: server.capacity,
        assigned_subjects: assigned,
        assigned_subjects_after: server.assigned,
        requests_per_second: requests,
        requests_per_second_after: server.requests_per_second,
    };
    RebalanceReply { moves: plan.moves, servers: plan.servers.into_iter().zip(before).map(balance).collect() }
}

struct Plan {
    servers: Vec<Server>,
    limits: Limits,
    moves: Vec<PlannedMove>,
    bytes: usize,
}

impl Plan {
    fn even_out_requests(&mut self) {
        let scale =
            Scale::of(&self.servers, LEAST_REQUESTS_PER_SECOND, |server| server.requests_per_second as f64);
        let mut tolerance = TOLERANCE;
        while scale.is_out_of(&self.servers, tolerance) {
            tolerance = TOLERANCE / 2.0;
            let Some((from, position, to)) = self.busy_step(&scale) else { return };
            let busy = self.servers[from].busiest.remove(position);
            if !self.step(from, to, busy) {
                return;
            }
        }
    }

    /// The busiest subject for its bytes that a server above its share can give to one that stays within its own.
    fn busy_step(&self, scale: &Scale) -> Option<(usize, usize, usize)> {
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

    fn even_out_numbers(&mut self) {
        let scale = Scale::of(&self.servers, 1.0, |server| server.assigned as f64);
        let mut tolerance = TOLERANCE;
        while scale.is_out_of(&self.servers, tolerance) {
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
            if !self.step(from, to, BusySubject { subject, requests_per_second: 0, bytes: 0 }) {
                return;
            }
        }
    }

    /// Who is best off with so much more, and has no more then than who gives it.
    fn receiver(&self, from: usize, amount: f64, scale: &Scale) -> Option<usize> {
        let level = |index: &usize| scale.level(&self.servers[*index], amount);
        let others = (0..self.servers.len()).filter(|to| *to != from && self.servers[*to].capacity > 0);
        let best = others.min_by(|a, b| level(a).total_cmp(&level(b)))?;
        (level(&best) <= scale.level(&self.servers[from], -amount)).then_some(best)
    }

    /// Takes a step into the plan; false when there is no room for it.
    fn step(&mut self, from: usize, to: usize, moved: BusySubject) -> bool {
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

/// One kind of work, and what everybody's share of it is.
struct Scale {
    has: fn(&Server) -> f64,
    per_capacity: f64,
    least: f64,
}

impl Scale {
    /// Differences below `least` do not matter.
    fn of(servers: &[Server], least: f64, has: fn(&Server) -> f64) -> Self {
        let all: f64 = servers.iter().map(has).sum();
        let capacity: f64 = servers.iter().map(|server| f64::from(server.capacity)).sum();
        Self { has, per_capacity: if capacity > 0.0 { all / capacity } else { 0.0 }, least }
    }

    fn has(&self, server: &Server) -> f64 {
        (self.has)(server)
    }

    fn share(&self, server: &Server) -> f64 {
        f64::from(server.capacity) * self.per_capacity
    }

    /// How much a server has for its capacity if it has so much more.
    fn level(&self, server: &Server, more: f64) -> f64 {
        match (self.has(server) + more, f64::from(server.capacity)) {
            (has, capacity) if capacity > 0.0 => has / capacity,
            (has, _) if has > 0.0 => f64::INFINITY,
            _ => 0.0,
        }
    }

    fn is_out_of(&self, servers: &[Server], tolerance: f64) -> bool {
        let least = self.least * tolerance / TOLERANCE;
        servers.iter().any(|server| {
            let share = self.share(server);
            (self.has(server) - share).abs() > (share * tolerance).max(least)
        })
    }
}

#[cfg(test)]
mod tests;
