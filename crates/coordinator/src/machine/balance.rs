//! Rebalancing: from the members to a plan, and from the plan to moves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dormouse_protocol::admin::RebalanceRequest;
use dormouse_protocol::limits::MAX_MOVES;
use dormouse_protocol::{OverloadCause, ServerName, Subject};

use super::{Candidates, CoordinatorMachine, CoordinatorReply, Effects, MemberState};
use crate::rebalance::{PlanLimits, ServerShare, overfull, plan};
use crate::store::AssignmentView;

impl CoordinatorMachine {
    /// How many candidate subjects a rebalancing needs from each server that has too many.
    #[must_use]
    pub fn wanted_candidates(&self, view: &dyn AssignmentView) -> BTreeMap<ServerName, u64> {
        let servers = self.balanced_servers(view);
        // Some spare ones: a candidate may have moved or be busy.
        overfull(&servers).map(|(name, excess)| (name.clone(), excess + 32)).collect()
    }

    /// The busiest subjects, as reported by the servers. Among the [`Candidates`] they count as busy.
    #[must_use]
    pub fn busy_subjects(&self) -> Vec<(Subject, ServerName)> {
        let named = |(name, member): (&ServerName, &MemberState)| -> Vec<_> {
            member.busiest.iter().map(|busy| (busy.subject.clone(), name.clone())).collect()
        };
        self.members.iter().flat_map(named).collect()
    }

    pub(super) fn rebalance(
        &mut self,
        request: RebalanceRequest,
        candidates: Candidates,
        now: Duration,
        view: &dyn AssignmentView,
    ) -> Effects {
        let room = self.moves.room();
        if room == 0 && !request.dry_run {
            return Effects::refuse(OverloadCause::PendingMoves.into());
        }
        let mut servers = self.balanced_servers(view);
        let Candidates { subjects, reply_bytes } = candidates;
        for server in &mut servers {
            let busy =
                self.members.get(&server.name).map(|member| member.busiest.clone()).unwrap_or_default();
            // A server that reported a busy subject may have handed it over since.
            let movable = |subject: &_| {
                view.assignment(subject).as_ref() == Some(&server.name)
                    && self.moves.target(subject).is_none()
            };
            server.busiest = busy.into_iter().filter(|busy| movable(&busy.subject)).collect();
            let busy: BTreeSet<_> = server.busiest.iter().map(|busy| &busy.subject).collect();
            let own = subjects.iter().filter(|(_, name)| *name == server.name).map(|(subject, _)| subject);
            server.candidates =
                own.filter(|subject| !busy.contains(subject) && movable(subject)).cloned().collect();
        }
        let most_moves = usize::try_from(request.most_moves.min(MAX_MOVES)).unwrap_or(usize::MAX);
        let limits = PlanLimits {
            most_moves: if request.dry_run { most_moves } else { most_moves.min(room) },
            most_bytes: reply_bytes,
            load_is_known: self.moves.load_is_settled(now),
        };
        let plan = plan(servers, limits);
        if !request.dry_run {
            for step in &plan.moves {
                let (subject, from, to) = (step.subject.clone(), step.from.clone(), step.to.clone());
                self.moves.enqueue(subject, from, to, step.requests_per_second);
            }
        }
        Effects::answer(CoordinatorReply::Rebalance(plan))
    }

    /// The servers that take part, with the number of subjects that they will have once the pending moves are done.
    fn balanced_servers(&self, view: &dyn AssignmentView) -> Vec<ServerShare> {
        let (mut incoming, mut outgoing) = (BTreeMap::<_, u64>::new(), BTreeMap::<_, u64>::new());
        for entry in self.moves.table.values() {
            // The source of an operator's single move is not known here; there are few of those.
            if let Some(from) = &entry.from {
                *outgoing.entry(from).or_default() += 1;
                *incoming.entry(&entry.to).or_default() += 1;
            }
        }
        let taking = self.members.iter().filter(|(_, member)| member.takes_subjects());
        let server = |(name, member): (&ServerName, &MemberState)| ServerShare {
            name: name.clone(),
            capacity: member.record.capacity,
            assigned: (view.assigned_subjects(name) + incoming.get(name).copied().unwrap_or(0))
                .saturating_sub(outgoing.get(name).copied().unwrap_or(0)),
            requests_per_second: member.rate.per_second(),
            busiest: Vec::new(),
            candidates: Vec::new(),
        };
        taking.map(server).collect()
    }
}
