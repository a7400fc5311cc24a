//! The terms of a subject: where each begins, who served it, and what of it was ever seen.

use std::collections::BTreeMap;

use dormouse_protocol::{Position, Rev, ServerName, Term};

use crate::history::{Answer, SubjectHistory};
use crate::operations::Operations;
use crate::slots::Slots;
use crate::verdict::{Findings, Property, Source};

/// One term, as far as anything is known of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct TermState {
    /// The last rev it inherited: as was said, or the highest that fits what was seen.
    pub(crate) base: Rev,
    /// Whether anybody said so.
    pub(crate) is_known: bool,
    pub(crate) server: Option<ServerName>,
    /// The lowest and the highest rev that anybody saw under it.
    lowest: Option<Rev>,
    pub(crate) highest: Rev,
    /// Who told of its base, or of it at all.
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
        for (place, heard) in history.events.iter().enumerate() {
            let (event, source) = (&heard.event, Source::Event(place));
            terms.begins(event.term, event.term_base, source, findings);
            terms.seen(event.position(), source);
        }
        for (&position, slot) in &slots.all {
            terms.wrote(position, slot.source);
        }
        for (place, call) in history.calls.iter().enumerate() {
            let source = Source::Call(place);
            let Some((answer, _)) = call.answer() else { continue };
            let Some(position) = answer.position() else { continue };
            match answer {
                Answer::Changes(reply) => {
                    terms.begins(position.term, reply.term_base, source, findings);
                    // A page that is not the last names a place on the way, which may be below the term.
                    if reply.more {
                        terms.seen(Position { rev: reply.term_base, ..position }, source);
                        continue;
                    }
                }
                Answer::Info(reply) => {
                    terms.begins(position.term, reply.term_base, source, findings);
                    terms.served(position.term, &reply.server, source, findings);
                }
                _ => {}
            }
            terms.seen(position, source);
            // A repeat tells of the term of the first.
            if let (Some(server), None) = (&call.server, ops.of_call[place]) {
                terms.served(position.term, server, source, findings);
            }
        }
        for (place, feed) in history.feeds.iter().enumerate() {
            for position in feed.told.iter().filter_map(|told| told.position) {
                terms.seen(position, Source::Feed(place));
            }
        }
        terms.settle(findings);
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
            let sentence = format!("{term} begins after {} and after {base}", state.base);
            findings.wrong(Property::OneOwner, sentence, state.source.into_iter().chain([source]));
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
                findings.wrong(Property::OneOwner, sentence, state.source.into_iter().chain([source]));
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

    /// Somebody was shown the state of this position, so everything up to it has reached its level.
    fn seen(&mut self, position: Position, source: Source) {
        let state = self.state(position.term, source);
        state.highest = state.highest.max(position.rev);
        state.lowest = Some(state.lowest.map_or(position.rev, |lowest| lowest.min(position.rev)));
    }

    /// A change was made there.
    fn wrote(&mut self, position: Position, source: Source) {
        let below = Rev::new(position.rev.get().saturating_sub(1));
        self.seen(Position { rev: below, ..position }, source);
        let state = self.state(position.term, source);
        state.highest = state.highest.max(position.rev);
    }

    /// Gives every term a base, and checks that later terms inherit no less than earlier ones.
    fn settle(&mut self, findings: &mut Findings<'_>) {
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
                    "{term} begins after {}, below {earlier}, which begins after {}",
                    state.base, known.base
                );
                findings.wrong(
                    Property::BucketIsKept,
                    sentence,
                    known.source.into_iter().chain(state.source),
                );
            }
            if let Some(lowest) = state.lowest
                && state.is_known
                && lowest < state.base
            {
                let sentence = format!("{lowest} was seen under {term}, which begins after {}", state.base);
                findings.wrong(Property::OneName, sentence, state.source);
            }
            before = Some((term, state.clone()));
        }
    }

    /// Whether the state at `later` came about by way of `earlier`.
    pub(crate) fn leads(&self, earlier: Position, later: Position) -> bool {
        if earlier.term == later.term {
            return earlier.rev <= later.rev;
        }
        let next = self.all.range(earlier.term.next()..=later.term).next();
        earlier.term < later.term && next.is_none_or(|(_, state)| earlier.rev <= state.base)
    }
}
