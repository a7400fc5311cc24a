//! The terms of a subject: the base and the server of each, and the revs that were seen in it.

use std::collections::BTreeMap;

use dormouse_protocol::{Position, Rev, ServerName, Term};

use crate::history::{OpResult, SubjectHistory};
use crate::operations::Operations;
use crate::slots::Slots;
use crate::verdict::{Findings, Property, Source};

/// The facts about one term.
#[derive(Debug, Clone, Default)]
pub(crate) struct TermState {
    /// The last rev that the term inherited: as reported, or the highest that fits the seen revs.
    pub(crate) base: Rev,
    /// Whether the base is reported.
    pub(crate) is_known: bool,
    pub(crate) server: Option<ServerName>,
    /// The lowest and the highest rev that was seen in the term.
    lowest: Option<Rev>,
    pub(crate) highest: Rev,
    /// The source for the base or, without one, the first source for the term.
    pub(crate) source: Option<Source>,
}

pub(crate) struct Terms {
    pub(crate) all: BTreeMap<Term, TermState>,
}

impl Terms {
    pub(crate) fn gather(
        history: &SubjectHistory,
        ops: &Operations<'_>,
        slots: &Slots<'_>,
        findings: &mut Findings<'_>,
    ) -> Self {
        let mut terms = Self { all: BTreeMap::new() };
        for (&term, facts) in &history.terms {
            let state = terms.all.entry(term).or_default();
            state.server.clone_from(&facts.server);
            if let Some(base) = facts.base {
                state.base = base;
                state.is_known = true;
            }
        }
        for (index, received) in history.events.iter().enumerate() {
            let (event, source) = (&received.event, Source::Event(index));
            terms.begins(event.term, event.term_base, source, findings);
            terms.seen(event.position(), source);
        }
        for (&position, slot) in &slots.all {
            terms.wrote(position, slot.source);
        }
        for (index, call) in history.calls.iter().enumerate() {
            let source = Source::Call(index);
            let Some((answer, _)) = call.answer() else { continue };
            let Some(position) = answer.position() else { continue };
            match answer {
                OpResult::Changes(reply) => {
                    terms.begins(position.term, reply.term_base, source, findings);
                    // A page that is not the last names an intermediate position, which may be below the term.
                    if reply.more {
                        terms.seen(Position { rev: reply.term_base, ..position }, source);
                        continue;
                    }
                }
                OpResult::Info(reply) => {
                    terms.begins(position.term, reply.term_base, source, findings);
                    terms.served(position.term, &reply.server, source, findings);
                }
                _ => {}
            }
            terms.seen(position, source);
            // A repeat names the term of the first.
            if let (Some(server), None) = (&call.server, ops.of_call[index]) {
                terms.served(position.term, server, source, findings);
            }
        }
        for (index, feed) in history.feeds.iter().enumerate() {
            for position in feed.outputs.iter().filter_map(|output| output.position) {
                terms.seen(position, Source::Feed(index));
            }
        }
        terms.assign_bases(findings);
        terms
    }

    fn state(&mut self, term: Term, source: Source) -> &mut TermState {
        let state = self.all.entry(term).or_default();
        state.source.get_or_insert(source);
        state
    }

    fn begins(&mut self, term: Term, base: Rev, source: Source, findings: &mut Findings<'_>) {
        let state = self.state(term, source);
        if state.is_known && state.base != base {
            let sentence = format!("{term} has two bases: {} and {base}", state.base);
            findings.report(Property::OneOwner, sentence, state.source.into_iter().chain([source]));
            return;
        }
        if !state.is_known {
            state.source = Some(source);
        }
        state.base = base;
        state.is_known = true;
    }

    fn served(&mut self, term: Term, server: &ServerName, source: Source, findings: &mut Findings<'_>) {
        let state = self.state(term, source);
        match &state.server {
            Some(known) if known != server => {
                let sentence = format!("{term} is served by {known} and by {server}");
                findings.report(Property::OneOwner, sentence, state.source.into_iter().chain([source]));
            }
            Some(_) => {}
            None => {
                state.server = Some(server.clone());
                if !state.is_known {
                    state.source = Some(source);
                }
            }
        }
    }

    /// Records that a reader saw the state of this position. Then every change up to it has reached its level.
    fn seen(&mut self, position: Position, source: Source) {
        let state = self.state(position.term, source);
        state.highest = state.highest.max(position.rev);
        state.lowest = Some(state.lowest.map_or(position.rev, |lowest| lowest.min(position.rev)));
    }

    /// Records a change at this position.
    fn wrote(&mut self, position: Position, source: Source) {
        let below = Rev::new(position.rev.get().saturating_sub(1));
        self.seen(Position { rev: below, ..position }, source);
        let state = self.state(position.term, source);
        state.highest = state.highest.max(position.rev);
    }

    /// Gives every term a base, and checks that later terms inherit no less than earlier ones.
    fn assign_bases(&mut self, findings: &mut Findings<'_>) {
        let mut most = None;
        for state in self.all.values_mut().rev() {
            if !state.is_known {
                let lowest = state.lowest.unwrap_or(state.highest);
                state.base = most.map_or(lowest, |most: Rev| lowest.min(most));
            }
            most = Some(most.map_or(state.base, |most: Rev| most.min(state.base)));
        }
        let mut before: Option<(Term, TermState)> = None;
        for (&term, state) in &self.all {
            if let Some((earlier, known)) = &before
                && state.is_known
                && known.is_known
                && state.base < known.base
            {
                let sentence = format!(
                    "{term} has the base {}, below {earlier} with the base {}",
                    state.base, known.base
                );
                findings.report(
                    Property::BucketIsKept,
                    sentence,
                    known.source.into_iter().chain(state.source),
                );
            }
            if let Some(lowest) = state.lowest
                && state.is_known
                && lowest < state.base
            {
                let sentence = format!("{lowest} was seen under {term}, whose base is {}", state.base);
                findings.report(Property::OneName, sentence, state.source);
            }
            before = Some((term, state.clone()));
        }
    }

    /// Returns whether the path to `later` leads through `earlier`.
    pub(crate) fn leads(&self, earlier: Position, later: Position) -> bool {
        if earlier.term == later.term {
            return earlier.rev <= later.rev;
        }
        let next = self.all.range(earlier.term.next()..=later.term).next();
        earlier.term < later.term && next.is_none_or(|(_, state)| earlier.rev <= state.base)
    }
}
