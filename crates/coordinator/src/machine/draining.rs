//! Emptying servers: by an operator's order, which is about a name and is remembered, or by a process's own wish, which
//! is about the process.
//!
//! Either way a server is given nothing new and keeps what it has until it has released it. What a *fresh* log of an
//! emptied server owns is nothing: what is recorded as the server's own then counts for nothing.

use std::time::Duration;

use dormouse_protocol::admin::DrainReply;
use dormouse_protocol::{ErrorReply, ServerName, Subject};

use super::{Answer, AssignmentView, Effects, Machine, Member, News};
use crate::lease::Lease;
use crate::placement::place;
use crate::store::Change;

impl Member {
    /// Whether it is being emptied or was.
    pub(super) fn drains(&self) -> bool {
        self.draining || self.record.drain.is_some()
    }

    /// Whether it was emptied as ordered: its log is younger than the one that was to be emptied.
    pub(super) fn is_drained(&self) -> bool {
        self.record.drain.as_ref().is_some_and(|emptied| *emptied != self.record.log)
    }

    /// Whether it may be, or become, a server that takes subjects.
    fn may_take_subjects(&self) -> bool {
        self.lease.may_hold() && !self.drains()
    }
}

impl Machine {
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
            return Effects::refuse(unknown(server));
        };
        let mut effects = Effects::default();
        if member.record.drain.is_some() != drain {
            member.record.drain = drain.then(|| member.record.log.clone());
            effects.changes.push(Change::Member(member.record.clone()));
            let name = server.clone();
            effects.news.push(if drain { News::DrainOrdered(name) } else { News::DrainTakenBack(name) });
        }
        let entry = member.entry(server, now, view.assigned_subjects(server));
        effects.answer = Some(Ok(Answer::Drain(DrainReply { server: entry })));
        effects
    }

    /// Whether `server` is told to hand over its subjects: not while nobody else could take them.
    pub(super) fn must_drain(&self, server: &ServerName) -> bool {
        let ordered = self.members.get(server).is_some_and(|member| member.record.drain.is_some());
        ordered && self.somebody_may_take()
    }

    pub(super) fn drains(&self, server: &ServerName) -> bool {
        self.members.get(server).is_some_and(Member::drains)
    }

    /// Whether what is recorded as assigned to `server` counts for nothing, since the server was emptied.
    #[must_use]
    pub fn was_emptied(&self, server: &ServerName) -> bool {
        self.members.get(server).is_some_and(Member::is_drained)
    }

    /// Who serves although it was ordered to be emptied, when nobody else can: better it than nobody. Best the one who
    /// had the subject. Nobody is chosen while somebody else may be about to be heard of.
    pub(super) fn last_resort(
        &self,
        subject: &Subject,
        recorded: Option<&ServerName>,
    ) -> Option<&ServerName> {
        if self.somebody_may_take() {
            return None;
        }
        let willing = |(_, member): &(&ServerName, &Member)| {
            matches!(member.lease, Lease::Granted { .. }) && !member.draining
        };
        let had_it = self.members.iter().filter(willing).find(|(name, _)| Some(*name) == recorded);
        had_it.map(|(name, _)| name).or_else(|| {
            let willing = self.members.iter().filter(willing);
            place(subject, willing.map(|(name, member)| (name, member.weight())))
        })
    }

    /// From here on the newest log of `server` may own something: if the server was emptied, it is to be emptied anew.
    pub(super) fn may_own_again(&mut self, server: &ServerName) -> Option<Change> {
        let member = self.members.get_mut(server).filter(|member| member.is_drained())?;
        member.record.drain = Some(member.record.log.clone());
        Some(Change::Member(member.record.clone()))
    }

    fn somebody_may_take(&self) -> bool {
        self.members.values().any(Member::may_take_subjects)
    }
}

/// What an operator is told who names a server that is none.
pub(super) fn unknown(server: &ServerName) -> ErrorReply {
    ErrorReply::bad_request(format!("there is no server {server}: the coordinator has never heard of it"))
}
