//! Membership: join, heartbeat, leave, and the server list for operators.

use std::collections::btree_map::Entry;
use std::time::Duration;

use dormouse_protocol::fleet::{
    HeartbeatRequest, JoinRequest, LeaseReply, ServerEntry, ServerLoad, ServerState, ServersReply,
};
use dormouse_protocol::limits::{MAX_BUSY_SUBJECTS, MAX_BUSY_TENANTS};
use dormouse_protocol::{ErrorReply, LogId, ServerName};

use super::load::RequestRate;
use super::{
    CoordinatorMachine, CoordinatorReply, Effects, GoneProcess, GoneReason, MemberState, OperatorEvent,
};
use crate::lease::GrantedLease;
use crate::store::{AssignmentView, MemberRecord, StoreChange};

impl MemberState {
    /// Declares the process dead.
    pub(super) fn end(&mut self, why: GoneReason) -> GoneProcess {
        self.lease = GrantedLease::Ended;
        self.record.dead = true;
        GoneProcess { log: self.record.log.clone(), reason: why }
    }

    pub(super) fn entry(&self, name: &ServerName, now: Duration, assigned_subjects: u64) -> ServerEntry {
        let state = match self.lease {
            GrantedLease::Ended => ServerState::Dead,
            _ if self.is_drained() => ServerState::Drained,
            _ if self.is_draining() => ServerState::Draining,
            _ => ServerState::Alive,
        };
        let heard_ms_ago = match self.lease {
            GrantedLease::Granted { last_seen, .. } => {
                Some(u64::try_from(now.saturating_sub(last_seen).as_millis()).unwrap_or(u64::MAX))
            }
            GrantedLease::Inherited { .. } | GrantedLease::Ended => None,
        };
        ServerEntry {
            name: name.clone(),
            log: self.record.log.clone(),
            state,
            heard_ms_ago,
            capacity: self.record.capacity,
            assigned_subjects: if self.is_drained() { 0 } else { assigned_subjects },
            load: self.load,
            version: self.record.version.clone(),
        }
    }
}

impl CoordinatorMachine {
    pub(super) fn join(&mut self, request: JoinRequest, now: Duration) -> Effects {
        let mut record = MemberRecord {
            log: request.log,
            predecessor: request.predecessor,
            capacity: request.capacity,
            version: request.version,
            dead: false,
            drain: None,
        };
        let mut effects = Effects::default();
        match self.members.entry(record.log.server().clone()) {
            Entry::Vacant(vacant) => {
                effects.changes.push(StoreChange::Member(record.clone()));
                let lease = GrantedLease::granted(now, self.ttl);
                vacant.insert(MemberState::new(record.clone(), lease));
            }
            Entry::Occupied(mut occupied) => {
                let holder = occupied.get_mut();
                // A drain order applies to the name.
                record.drain.clone_from(&holder.record.drain);
                if holder.record.log == record.log {
                    if holder.left {
                        let text = format!("{} has left and cannot join again", record.log);
                        return Effects::refuse(ErrorReply::bad_request(text));
                    }
                    record.predecessor.clone_from(&holder.record.predecessor);
                } else {
                    let holder_log = Some(&holder.record.log);
                    if holder.lease.may_be_held() {
                        if record.predecessor.as_ref() != holder_log {
                            return Effects::refuse(ErrorReply::name_in_use(holder.record.log.clone()));
                        }
                        effects.gone.push(holder.end(GoneReason::Replaced));
                    }
                    record.predecessor = Some(holder.record.log.clone());
                    if self.grace_until.is_some() {
                        self.ended_logs.insert(holder.record.log.clone());
                    }
                    holder.load = ServerLoad::default();
                    holder.rate = RequestRate::default();
                    holder.busiest = Vec::new();
                    holder.tenants = Vec::new();
                }
                // The lease belongs to the same process, or is over.
                holder.lease = holder.lease.renewed(now, self.ttl);
                holder.draining = false;
                holder.left = false;
                if holder.record != record {
                    holder.record = record.clone();
                    effects.changes.push(StoreChange::Member(record.clone()));
                }
            }
        }
        if !effects.changes.is_empty() {
            effects.events.push(OperatorEvent::Joined { log: record.log.clone(), capacity: record.capacity });
        }
        effects.answer = Some(Ok(self.lease(record.log.server())));
        effects
    }

    pub(super) fn heartbeat(&mut self, request: HeartbeatRequest, now: Duration) -> Effects {
        if !self.is_member(&request.log) {
            return Effects::refuse(ErrorReply::unknown_server(&request.log));
        }
        if let Some(member) = self.members.get_mut(request.log.server()) {
            member.lease = member.lease.renewed(now, self.ttl);
            member.load = request.load;
            member.rate.note(now, request.load.requests);
            member.busiest = request.busiest;
            member.busiest.truncate(MAX_BUSY_SUBJECTS);
            member.tenants = request.tenants;
            member.tenants.truncate(MAX_BUSY_TENANTS);
            member.draining = request.draining;
        }
        Effects::answer(self.lease(request.log.server()))
    }

    /// A process that is no longer a member gets the same reply: it has already left.
    pub(super) fn leave(&mut self, log: &LogId) -> Effects {
        let mut effects = Effects::answer(CoordinatorReply::Acknowledged);
        if self.is_member(log)
            && let Some(member) = self.members.get_mut(log.server())
        {
            effects.gone.push(member.end(GoneReason::Left));
            member.left = true;
            effects.changes.push(StoreChange::Member(member.record.clone()));
        }
        effects
    }

    pub(super) fn servers(&self, now: Duration, view: &dyn AssignmentView) -> Effects {
        let servers = self
            .members
            .iter()
            .map(|(name, member)| member.entry(name, now, view.assigned_subjects(name)))
            .collect();
        Effects::answer(CoordinatorReply::Servers(ServersReply { incarnation: self.incarnation, servers }))
    }

    fn lease(&self, server: &ServerName) -> CoordinatorReply {
        let ttl_ms = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX);
        let draining = self.must_drain(server);
        CoordinatorReply::Lease(LeaseReply {
            incarnation: self.incarnation,
            ttl_ms,
            draining,
            limits: self.limits.revision(),
        })
    }
}
