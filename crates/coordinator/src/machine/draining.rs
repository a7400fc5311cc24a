//! Drain: by an operator's order, which applies to a server name and is stored, or by request of a process, which applies
//! to that process.
//!
//! In both cases the server gets no new subject and keeps each of its subjects until it has released it. A *new* log of a
//! drained server owns no subject: assignments that are still recorded for that server are then ignored.

use std::time::Duration;

use dormouse_protocol::admin::DrainReply;
use dormouse_protocol::{ErrorReply, ServerName, Subject};

use super::{CoordinatorMachine, CoordinatorReply, Effects, MemberState, OperatorEvent};
use crate::lease::GrantedLease;
use crate::placement::place;
use crate::store::{AssignmentView, StoreChange};

impl MemberState {
    /// Whether the server is draining or drained.
    pub(super) fn is_draining(&self) -> bool {
        self.draining || self.record.drain.is_some()
    }

    /// Whether the server is drained as ordered: its log is newer than the log that the order was for.
    pub(super) fn is_drained(&self) -> bool {
        self.record.drain.as_ref().is_some_and(|ordered| *ordered != self.record.log)
    }

    /// Whether the server takes subjects, or may after its next heartbeat.
    fn may_take_subjects(&self) -> bool {
        self.lease.may_be_held() && !self.is_draining()
    }
}

impl CoordinatorMachine {
    pub(super) fn drain(&mut self, server: &ServerName, now: Duration, view: &dyn AssignmentView) -> Effects {
        self.order_drain(server, true, now, view)
    }

    pub(super) fn undrain(
        &mut self,
        server: &ServerName,
        now: Duration,
        view: &dyn AssignmentView,
    ) -> Effects {
        self.order_drain(server, false, now, view)
    }

    fn order_drain(
        &mut self,
        server: &ServerName,
        drain: bool,
        now: Duration,
        view: &dyn AssignmentView,
    ) -> Effects {
        let Some(member) = self.members.get_mut(server) else {
            return Effects::refuse(unknown_name(server));
        };
        let mut effects = Effects::default();
        if member.record.drain.is_some() != drain {
            member.record.drain = drain.then(|| member.record.log.clone());
            effects.changes.push(StoreChange::Member(member.record.clone()));
            let name = server.clone();
            effects.events.push(if drain {
                OperatorEvent::DrainOrdered(name)
            } else {
                OperatorEvent::DrainCancelled(name)
            });
        }
        let entry = member.entry(server, now, view.assigned_subjects(server));
        effects.answer = Some(Ok(CoordinatorReply::Drain(DrainReply { server: entry })));
        effects
    }

    /// Whether the lease of `server` carries the drain order. It does not while no other server can take the subjects.
    pub(super) fn must_drain(&self, server: &ServerName) -> bool {
        let ordered = self.members.get(server).is_some_and(|member| member.record.drain.is_some());
        ordered && self.has_other_target()
    }

    pub(super) fn is_draining(&self, server: &ServerName) -> bool {
        self.members.get(server).is_some_and(MemberState::is_draining)
    }

    /// Whether the recorded assignments of `server` are ignored, because the server is drained.
    #[must_use]
    pub fn is_known_empty(&self, server: &ServerName) -> bool {
        self.members.get(server).is_some_and(MemberState::is_drained)
    }

    /// If no other server can take the subject, a server that is ordered to drain serves it. The recorded server is
    /// preferred. Returns `None` while another server may still send its first heartbeat.
    pub(super) fn fallback_server(
        &self,
        subject: &Subject,
        recorded: Option<&ServerName>,
    ) -> Option<&ServerName> {
        if self.has_other_target() {
            return None;
        }
        let eligible = |(_, member): &(&ServerName, &MemberState)| {
            matches!(member.lease, GrantedLease::Granted { .. }) && !member.draining
        };
        let previous = self.members.iter().filter(eligible).find(|(name, _)| Some(*name) == recorded);
        previous.map(|(name, _)| name).or_else(|| {
            let eligible = self.members.iter().filter(eligible);
            place(subject, eligible.map(|(name, member)| (name, member.weight())))
        })
    }

    /// From now on the newest log of `server` may own a subject: if the server was drained, it must drain again.
    pub(super) fn mark_not_empty(&mut self, server: &ServerName) -> Option<StoreChange> {
        let member = self.members.get_mut(server).filter(|member| member.is_drained())?;
        member.record.drain = Some(member.record.log.clone());
        Some(StoreChange::Member(member.record.clone()))
    }

    fn has_other_target(&self) -> bool {
        self.members.values().any(MemberState::may_take_subjects)
    }
}

/// The error reply for a server name that the coordinator does not know.
pub(super) fn unknown_name(server: &ServerName) -> ErrorReply {
    ErrorReply::bad_request(format!("unknown server {server}: it has never joined"))
}
