//! Who is a member: join, heartbeat, leave, and the list for operators.

use std::collections::btree_map::Entry;
use std::time::Duration;

use dormouse_protocol::fleet::{
    HeartbeatRequest, JoinRequest, LeaseReply, ServerEntry, ServerLoad, ServerState, ServersReply,
};
use dormouse_protocol::limits::MAX_BUSY_SUBJECTS;
use dormouse_protocol::{ErrorReply, LogId, ServerName};

use super::load::Rate;
use super::{Answer, AssignmentView, Effects, Gone, Machine, Member, News, Why};
use crate::lease::Lease;
use crate::store::{Change, MemberRecord};

impl Member {
    /// Takes the process for dead.
    pub(super) fn end(&mut self, why: Why) -> Gone {
        self.lease = Lease::Over;
        self.record.dead = true;
        Gone { log: self.record.log.clone(), why }
    }

    pub(super) fn entry(&self, name: &ServerName, now: Duration, assigned_subjects: u64) -> ServerEntry {
        let state = match self.lease {
            Lease::Over => ServerState::Dead,
            _ if self.is_drained() => ServerState::Drained,
            _ if self.drains() => ServerState::Draining,
            _ => ServerState::Alive,
        };
        let heard_ms_ago = match self.lease {
            Lease::Granted { heard, .. } => {
                Some(u64::try_from(now.saturating_sub(heard).as_millis()).unwrap_or(u64::MAX))
            }
            Lease::Inherited { .. } | Lease::Over => None,
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

impl Machine {
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
                effects.changes.push(Change::Member(record.clone()));
                let lease = Lease::granted(now, self.ttl);
                vacant.insert(Member::new(record.clone(), lease));
            }
            Entry::Occupied(mut occupied) => {
                let holder = occupied.get_mut();
                // An order is about the name.
                record.drain.clone_from(&holder.record.drain);
                if holder.record.log == record.log {
                    if holder.left {
                        let text = format!("{} has left: a log that left does not join again", record.log);
                        return Effects::refuse(ErrorReply::bad_request(text));
                    }
                    record.predecessor.clone_from(&holder.record.predecessor);
                } else {
                    let holder_log = Some(&holder.record.log);
                    if holder.lease.may_hold() {
                        if record.predecessor.as_ref() != holder_log {
                            return Effects::refuse(ErrorReply::name_in_use(holder.record.log.clone()));
                        }
                        effects.gone.push(holder.end(Why::Replaced));
                    }
                    record.predecessor = Some(holder.record.log.clone());
                    if self.waits_until.is_some() {
                        self.over.insert(holder.record.log.clone());
                    }
                    holder.load = ServerLoad::default();
                    holder.rate = Rate::default();
                    holder.busiest = Vec::new();
                }
                // Of the same process, or over.
                holder.lease = holder.lease.renewed(now, self.ttl);
                holder.draining = false;
                holder.left = false;
                if holder.record != record {
                    holder.record = record.clone();
                    effects.changes.push(Change::Member(record.clone()));
                }
            }
        }
        if !effects.changes.is_empty() {
            effects.news.push(News::Joined { log: record.log.clone(), capacity: record.capacity });
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
            member.draining = request.draining;
        }
        Effects::answer(self.lease(request.log.server()))
    }

    /// A process that is no member any more is answered the same: what it wanted is so.
    pub(super) fn leave(&mut self, log: &LogId) -> Effects {
        let mut effects = Effects::answer(Answer::Acknowledged);
        if self.is_member(log)
            && let Some(member) = self.members.get_mut(log.server())
        {
            effects.gone.push(member.end(Why::Left));
            member.left = true;
            effects.changes.push(Change::Member(member.record.clone()));
        }
        effects
    }

    pub(super) fn servers(&self, now: Duration, view: &dyn AssignmentView) -> Effects {
        let servers = self
            .members
            .iter()
            .map(|(name, member)| member.entry(name, now, view.assigned_subjects(name)))
            .collect();
        Effects::answer(Answer::Servers(ServersReply { incarnation: self.incarnation, servers }))
    }

    fn lease(&self, server: &ServerName) -> Answer {
        let ttl_ms = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX);
        let draining = self.must_drain(server);
        Answer::Lease(LeaseReply { incarnation: self.incarnation, ttl_ms, draining })
    }
}
