//! Who serves what: locate, claim, release.
//!
//! SUBTLE: locate, claim and release must agree, or clients run in circles. What locate answers is the recorded server
//! for as long as that keeps its subjects, and a claim is refused only in favour of a server that locate names from then
//! on. A server that drains keeps what it owns until it has released it; what is recorded as its own and nobody owns by
//! the bucket goes to the next server that asks, and a draining one that asks is sent to another.

use std::time::Duration;

use dormouse_protocol::fleet::{ClaimReply, ClaimRequest, LocateReply};
use dormouse_protocol::{ErrorReply, LogId, ServerName, Subject};

use super::{Answer, AssignmentView, Effects, Machine, Member};
use crate::placement::place;
use crate::store::Change;

impl Machine {
    /// A recorded assignment stands as long as its server is there; only then is the subject placed anew.
    pub(super) fn locate(&mut self, subject: &Subject, view: &dyn AssignmentView) -> Effects {
        let recorded = view.assignment(subject);
        if let Some(server) = recorded.clone().filter(|server| self.keeps_subjects(server)) {
            return Effects::answer(Answer::Located(LocateReply { server }));
        }
        let chosen = self.place(subject).or_else(|| self.last_resort(subject, recorded.as_ref()));
        let Some(server) = chosen.cloned() else {
            return Effects::refuse(ErrorReply::unavailable(if self.is_waiting() {
                "the coordinator has just started and no server that takes subjects was heard from yet"
            } else {
                "there is no live server that takes subjects"
            }));
        };
        Effects::answer(Answer::Located(LocateReply { server: server.clone() }))
            .with(self.may_own_again(&server))
            .with(assign(subject, recorded, &server))
    }

    pub(super) fn claim(
        &mut self,
        subject: &Subject,
        request: &ClaimRequest,
        view: &dyn AssignmentView,
    ) -> Effects {
        let claimant = request.claimant.server();
        if !self.is_member(&request.claimant) {
            return Effects::refuse(ErrorReply::unknown_server(&request.claimant));
        }
        let recorded = view.assignment(subject);
        match &request.owner {
            // The bucket says that it has it: nothing that is recorded here is better.
            Some(owner) if *owner == request.claimant => {}
            Some(owner) if self.may_be_alive(owner) => {
                if owner.server() == claimant {
                    // Sending the client back to the same name would lead it in a circle.
                    let text = format!("{owner}, which owns the subject, may still be alive");
                    return Effects::refuse(ErrorReply::unavailable(text));
                }
                // It owns something, so it is not empty, whatever was believed.
                let owns = self.is_member(owner).then(|| self.may_own_again(owner.server())).flatten();
                return self.refer(subject, recorded, owner.server()).with(owns);
            }
            Some(_) | None => {
                if let Some(other) = self.somebody_else(subject, claimant, recorded.as_ref()) {
                    return self.refer(subject, recorded, &other);
                }
            }
        }
        Effects::answer(Answer::Claimed(ClaimReply { incarnation: self.incarnation }))
            .with(self.may_own_again(claimant))
            .with(assign(subject, recorded, claimant))
    }

    /// Forgets where the subject was, so that the next who asks may be sent elsewhere; or gives it to whom it is to be
    /// moved to. What a process says that is not the recorded one is of the past.
    pub(super) fn release(
        &mut self,
        subject: Subject,
        log: &LogId,
        now: Duration,
        view: &dyn AssignmentView,
    ) -> Effects {
        let recorded = view.assignment(&subject).filter(|server| server == log.server());
        let Some(previous) = recorded.filter(|_| self.is_member(log)) else {
            return Effects::answer(Answer::Acknowledged);
        };
        let change = match self.moved_on(&subject, &previous, now) {
            Some(server) => Change::Assign { subject, previous: Some(previous), server },
            None => Change::Unassign { subject, previous },
        };
        Effects::answer(Answer::Acknowledged).with(Some(change))
    }

    /// Who shall have the subject, which no living process owns, instead of the claimant, if anybody.
    fn somebody_else(
        &self,
        subject: &Subject,
        claimant: &ServerName,
        recorded: Option<&ServerName>,
    ) -> Option<ServerName> {
        // Nothing needs to be handed over any more: the move is as good as done.
        if let Some(target) = self.moves.target(subject).filter(|target| self.takes_subjects(target)) {
            return (target != claimant).then(|| target.clone());
        }
        let stands =
            |server: &&ServerName| *server != claimant && self.keeps_subjects(server) && !self.drains(server);
        if let Some(recorded) = recorded.filter(stands) {
            return Some(recorded.clone());
        }
        // Who is draining takes what is new only when nobody else can.
        if self.drains(claimant) { self.place(subject).cloned() } else { None }
    }

    /// Sends the claimant to `server` and sees to it that locate does the same. Where locate would send clients
    /// elsewhere all the same, nothing is recorded: the two would undo each other's changes for as long as somebody
    /// asks.
    fn refer(&self, subject: &Subject, recorded: Option<ServerName>, server: &ServerName) -> Effects {
        let effects = Effects::refuse(ErrorReply::not_owner(Some(server.clone())));
        if self.keeps_subjects(server) { effects.with(assign(subject, recorded, server)) } else { effects }
    }

    fn place(&self, subject: &Subject) -> Option<&ServerName> {
        let candidates = self.members.iter().filter(|(_, member)| member.takes_subjects());
        place(subject, candidates.map(|(name, member)| (name, member.weight())))
    }

    /// Whether what is assigned to `server` stays with it. A server that this run does not know at all may be one
    /// that it forgot.
    pub(super) fn keeps_subjects(&self, server: &ServerName) -> bool {
        self.members.get(server).map_or(self.is_waiting(), Member::keeps_subjects)
    }

    /// Whether `server` may be given subjects it does not have.
    pub(super) fn takes_subjects(&self, server: &ServerName) -> bool {
        self.members.get(server).is_some_and(Member::takes_subjects)
    }

    /// Whether the process that writes `log` may hold a lease.
    fn may_be_alive(&self, log: &LogId) -> bool {
        match self.members.get(log.server()) {
            Some(member) if member.record.log == *log => member.lease.may_hold(),
            Some(member) if member.record.predecessor.as_ref() == Some(log) => false,
            Some(_) | None => self.is_waiting() && !self.over.contains(log),
        }
    }
}

/// The change by which `server` has the subject, unless it has it.
pub(super) fn assign(subject: &Subject, previous: Option<ServerName>, server: &ServerName) -> Option<Change> {
    (previous.as_ref() != Some(server)).then(|| Change::Assign {
        subject: subject.clone(),
        previous,
        server: server.clone(),
    })
}
