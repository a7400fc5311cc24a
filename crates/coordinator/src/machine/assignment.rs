//! Assignment of subjects to servers: locate, claim, release.
//!
//! A locate records nothing: a client may ask for any number of subjects that are never written. A claim records the
//! assignment when it is granted, or when it is refused in favour of another server.
//!
//! SUBTLE: locate, claim and release must agree, or redirects loop. Locate returns the recorded server as long as that
//! server keeps its subjects. Otherwise it returns the server that would get the claim: the target of a move, or a
//! placement. Placements change with members and load, so two clients may be sent to two servers. The first claim is
//! granted, whichever server asks, and recorded. From then on, the other server's claim is refused in favour of the first.
//! A claim is refused only in favour of a server that locate returns from then on.
//!
//! A draining server keeps each subject that it owns until it has released it. A subject that is assigned to a draining
//! server, but has no owner in the bucket, goes to the next server that claims it. If the draining server itself claims
//! it, the claim is redirected to another server.

use std::time::Duration;

use dormouse_protocol::fleet::{ClaimReply, ClaimRequest, LocateReply};
use dormouse_protocol::{ErrorReply, LogId, ServerName, Subject};

use super::{CoordinatorMachine, CoordinatorReply, Effects, MemberState};
use crate::placement::place;
use crate::store::{AssignmentView, StoreChange};

impl CoordinatorMachine {
    /// A recorded assignment is valid as long as its server keeps its subjects. Otherwise the reply is the server that may
    /// claim the subject; nothing is recorded before it does.
    pub(super) fn locate(&self, subject: &Subject, view: &dyn AssignmentView) -> Effects {
        let recorded = view.assignment(subject);
        let valid = recorded.as_ref().filter(|server| self.keeps_subjects(server));
        let target = || self.moves.target(subject).filter(|target| self.takes_subjects(target));
        let server = valid
            .or_else(target)
            .or_else(|| self.place(subject))
            .or_else(|| self.fallback_server(subject, recorded.as_ref()));
        match server {
            Some(server) => {
                Effects::answer(CoordinatorReply::Located(LocateReply { server: server.clone() }))
            }
            None => Effects::refuse(ErrorReply::unavailable(if self.is_in_startup_grace() {
                "the coordinator has just started, and no server that takes subjects has sent a heartbeat yet"
            } else {
                "no live server takes subjects"
            })),
        }
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
            // By the manifest the claimant is the owner, which overrides the recorded assignment.
            Some(owner) if *owner == request.claimant => {}
            Some(owner) if self.may_be_alive(owner) => {
                if owner.server() == claimant {
                    // A redirect to the same server name would loop.
                    let text = format!("{owner}, which owns the subject, may still be alive");
                    return Effects::refuse(ErrorReply::unavailable(text));
                }
                // The owner owns a subject, so it is not drained, regardless of the record.
                let not_empty = self.is_member(owner).then(|| self.mark_not_empty(owner.server())).flatten();
                return self.redirect_to(subject, recorded, owner.server()).with(not_empty);
            }
            Some(_) | None => {
                if let Some(other) = self.preferred_server(subject, claimant, recorded.as_ref()) {
                    return self.redirect_to(subject, recorded, &other);
                }
            }
        }
        Effects::answer(CoordinatorReply::Claimed(ClaimReply { incarnation: self.incarnation }))
            .with(self.mark_not_empty(claimant))
            .with(assign(subject, recorded, claimant))
    }

    /// Removes the assignment, so that the next locate may choose another server. If a move is pending, assigns the
    /// subject to its target. A release by a process that is not the recorded one is outdated and changes nothing.
    pub(super) fn release(
        &mut self,
        subject: Subject,
        log: &LogId,
        now: Duration,
        view: &dyn AssignmentView,
    ) -> Effects {
        let recorded = view.assignment(&subject).filter(|server| server == log.server());
        let Some(previous) = recorded.filter(|_| self.is_member(log)) else {
            return Effects::answer(CoordinatorReply::Acknowledged);
        };
        let change = match self.finish_move_on_release(&subject, &previous, now) {
            Some(server) => StoreChange::Assign { subject, previous: Some(previous), server },
            None => StoreChange::Unassign { subject, previous },
        };
        Effects::answer(CoordinatorReply::Acknowledged).with(Some(change))
    }

    /// The server that gets the subject in place of the claimant, if any. No live process owns the subject.
    fn preferred_server(
        &self,
        subject: &Subject,
        claimant: &ServerName,
        recorded: Option<&ServerName>,
    ) -> Option<ServerName> {
        // No handover is needed any more: only the claim of the target is left of the move.
        if let Some(target) = self.moves.target(subject).filter(|target| self.takes_subjects(target)) {
            return (target != claimant).then(|| target.clone());
        }
        let is_valid = |server: &&ServerName| {
            *server != claimant && self.keeps_subjects(server) && !self.is_draining(server)
        };
        if let Some(recorded) = recorded.filter(is_valid) {
            return Some(recorded.clone());
        }
        // A draining server takes a new subject only if no other server can.
        if self.is_draining(claimant) { self.place(subject).cloned() } else { None }
    }

    /// Redirects the claimant to `server`, and records the assignment so that locate agrees. If locate would still return
    /// another server, nothing is recorded: otherwise claims and locates would undo each other's changes.
    fn redirect_to(&self, subject: &Subject, recorded: Option<ServerName>, server: &ServerName) -> Effects {
        let effects = Effects::refuse(ErrorReply::not_owner(Some(server.clone())));
        if self.keeps_subjects(server) { effects.with(assign(subject, recorded, server)) } else { effects }
    }

    fn place(&self, subject: &Subject) -> Option<&ServerName> {
        let candidates = self.members.iter().filter(|(_, member)| member.takes_subjects());
        place(subject, candidates.map(|(name, member)| (name, member.weight())))
    }

    /// Whether `server` keeps its assigned subjects. During the startup grace an unknown server may be a member that the
    /// coordinator forgot, so it keeps them.
    pub(super) fn keeps_subjects(&self, server: &ServerName) -> bool {
        self.members.get(server).map_or(self.is_in_startup_grace(), MemberState::keeps_subjects)
    }

    /// Whether `server` may get new subjects.
    pub(super) fn takes_subjects(&self, server: &ServerName) -> bool {
        self.members.get(server).is_some_and(MemberState::takes_subjects)
    }

    /// Whether the process that writes `log` may hold a lease.
    fn may_be_alive(&self, log: &LogId) -> bool {
        match self.members.get(log.server()) {
            Some(member) if member.record.log == *log => member.lease.may_be_held(),
            Some(member) if member.record.predecessor.as_ref() == Some(log) => false,
            Some(_) | None => self.is_in_startup_grace() && !self.ended_logs.contains(log),
        }
    }
}

/// The change that assigns the subject to `server`; `None` if it is already assigned to it.
pub(super) fn assign(
    subject: &Subject,
    previous: Option<ServerName>,
    server: &ServerName,
) -> Option<StoreChange> {
    (previous.as_ref() != Some(server)).then(|| StoreChange::Assign {
        subject: subject.clone(),
        previous,
        server: server.clone(),
    })
}
