//! Replays a subject's history in the order of (term, rev): it applies every change at its position, compares every
//! read with the state at the position that it names, and undoes the changes that a term did not inherit.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;

use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Level, Message, Position, Rev, Seq, Term};

use crate::feeds::{self, Reader};
use crate::history::{Op, OpResult, Rules, ServerFault, SubjectHistory};
use crate::model::{Model, Step, Undo};
use crate::operations::{OperationStatus, Operations};
use crate::slots::{Effect, Slot, Slots};
use crate::terms::Terms;
use crate::verdict::{Findings, Property, Source};

/// One step of the path that leads to the current state.
pub(crate) struct PathStep {
    /// Its position; for a gap, the last one.
    pub(crate) position: Position,
    pub(crate) step: Step,
    /// The level that a reply or event requires before it can show the step.
    pub(crate) level: Level,
    pub(crate) is_gap: bool,
    undo: Vec<Undo>,
}

/// The state of the judgement of one subject.
pub(crate) struct Replay<'c, 'h> {
    pub(crate) history: &'h SubjectHistory,
    pub(crate) rules: Rules,
    pub(crate) faults: &'h [ServerFault],
    pub(crate) ops: &'c Operations<'h>,
    pub(crate) slots: &'c Slots<'h>,
    pub(crate) terms: &'c Terms,
    pub(crate) findings: &'c mut Findings<'h>,
    pub(crate) model: Model,
    pub(crate) path: Vec<PathStep>,
    /// The step of each replayed position, ascending.
    pub(crate) steps: Vec<(Position, Step)>,
    /// The source that reported each step.
    sources: Vec<Option<Source>>,
    /// The durable watermark of each term, and its source.
    pub(crate) durable: BTreeMap<Term, (Rev, Source)>,
    /// Operations that may have been executed at unreported positions.
    pub(crate) unplaced: BTreeSet<usize>,
    /// The number of known positions of each operation.
    placed: HashMap<usize, u64>,
    /// Unreported positions, and the number of revs at each.
    gaps: Vec<(Position, u64)>,
    /// The inherited state of a term is unknown: the model follows the reads.
    pub(crate) is_uncertain: bool,
    /// The readers of the feeds.
    pub(crate) readers: BTreeMap<usize, Reader>,
}

impl<'c, 'h> Replay<'c, 'h> {
    pub(crate) fn new(
        (history, rules, faults): (&'h SubjectHistory, Rules, &'h [ServerFault]),
        (ops, slots, terms): (&'c Operations<'h>, &'c Slots<'h>, &'c Terms),
        findings: &'c mut Findings<'h>,
    ) -> Self {
        let mut placed: HashMap<usize, u64> = HashMap::new();
        for op in slots.all.values().filter_map(|slot| slot.op) {
            *placed.entry(op).or_default() += 1;
        }
        // Each set of a request has its own position, so one known position does not determine the others.
        let has_more = |op: &usize| placed.get(op).is_none_or(|known| *known < ops.all[*op].max_revs());
        let unplaced = ops.unknown().filter(has_more).collect();
        Self {
            history,
            rules,
            faults,
            ops,
            slots,
            terms,
            findings,
            model: Model::new(),
            path: Vec::new(),
            steps: vec![(Position::default(), 0)],
            sources: vec![None],
            durable: BTreeMap::new(),
            unplaced,
            placed,
            gaps: Vec::new(),
            is_uncertain: false,
            readers: BTreeMap::new(),
        }
    }

    pub(crate) fn walk(&mut self) {
        let mut reads: BTreeMap<Position, Vec<usize>> = BTreeMap::new();
        for (index, call) in self.history.calls.iter().enumerate() {
            if let Some((answer, _)) = call.answer()
                && let Some(position) = answer.position()
                && !matches!(answer, OpResult::Set(_))
            {
                reads.entry(position).or_default().push(index);
            }
        }
        let feeds = feeds::marks(&self.history.feeds, self.findings);
        let marks: BTreeSet<Position> =
            self.slots.all.keys().chain(reads.keys()).chain(feeds.keys()).copied().collect();
        let terms = self.terms;
        for (&term, state) in &terms.all {
            self.begin_term(term, state.base, state.is_known);
            let base = Position { term, rev: state.base };
            let mut before = state.base;
            for &mark in marks.range(base..=Position { term, rev: Rev::new(u64::MAX) }) {
                if mark.rev > state.base {
                    let slot = self.slots.all.get(&mark);
                    let gap_end = if slot.is_some() { mark.rev.get() - 1 } else { mark.rev.get() };
                    if gap_end > before.get() {
                        self.gap(Position { term, rev: Rev::new(gap_end) }, gap_end - before.get());
                    }
                    if let Some(slot) = slot {
                        self.change(mark, slot);
                    }
                    before = mark.rev;
                }
                for &call in reads.get(&mark).into_iter().flatten() {
                    self.observe(call);
                }
                for &feed in feeds.get(&mark).into_iter().flatten() {
                    self.check_feed(feed, mark);
                }
            }
            // Revs that only a beacon shows.
            if state.highest > before {
                let end = Position { term, rev: state.highest };
                self.gap(end, state.highest.get() - before.get());
            }
        }
        self.check_gaps();
    }

    /// Starts a new step that `source` reported.
    pub(crate) fn advance(&mut self, source: Option<Source>) -> Step {
        let step = self.model.advance();
        self.sources.push(source);
        step
    }

    /// Returns the step at whose end the subject was at this position, or at the last known position before it.
    pub(crate) fn step_of(&self, position: Position) -> Step {
        let end = self.steps.partition_point(|(known, _)| *known <= position);
        self.steps[..end].last().map_or(0, |(_, step)| *step)
    }

    /// Returns the source that reported a step.
    pub(crate) fn source_of_step(&self, step: Step) -> Option<Source> {
        self.sources.get(step).copied().flatten()
    }

    fn begin_term(&mut self, term: Term, base: Rev, is_known: bool) {
        let source = self.terms.all.get(&term).and_then(|state| state.source);
        let step = self.advance(source);
        let keep = self.path.partition_point(|step| step.position.rev <= base);
        let lost = self.path.split_off(keep);
        let follows = self.steps.last().is_some_and(|(last, _)| last.term.next() == term);
        let through = self.path.last().map(|step| step.position.rev).unwrap_or_default();
        // A term without a report, or without a reported base, may have replaced writes that were not in the bucket.
        let sure = self.durable.values().map(|(rev, _)| *rev).max().unwrap_or_default();
        let has_report = is_known && follows;
        if !self.is_uncertain
            && !has_report
            && through.max(lost.last().map_or(through, |l| l.position.rev)) > sure
        {
            self.is_uncertain = true;
            self.findings.coverage.add("subjects with an unknown term");
        }
        let mut undone = Vec::new();
        for step in lost.iter().rev() {
            undone.push(step.undo.clone());
        }
        for undo in undone {
            self.model.take_back(undo);
        }
        self.model.take_undo();
        self.steps.push((Position { term, rev: base }, step));
        self.lost(term, &lost);
        if base > through && base.get() - through.get() > 0 {
            // Unreported revs of earlier terms.
            let position = Position { term, rev: base };
            self.gap(position, base.get() - through.get());
        }
    }

    /// Adds positions whose changes are unreported.
    fn gap(&mut self, position: Position, revs: u64) {
        let step = self.advance(None);
        self.findings.coverage.add("unreported changes");
        self.gaps.push((position, revs));
        let (next, _) = self.model.next_seq();
        if self.unplaced.iter().any(|&op| self.ops.all[op].set().is_some()) {
            self.model.set_next(next, false);
        }
        let level = self.model.config().level.unwrap_or(self.rules.default_level);
        self.push(position, step, level, true, None);
    }

    fn push(&mut self, position: Position, step: Step, level: Level, is_gap: bool, source: Option<Source>) {
        let undo = self.model.take_undo();
        self.path.push(PathStep { position, step, level, is_gap, undo });
        self.steps.push((position, step));
        // A reader sees a position only after the change has reached its level.
        let is_seen = self.terms.all.get(&position.term).is_some_and(|state| position.rev <= state.highest);
        if level == Level::Bucket
            && is_seen
            && let Some(source) = source.or_else(|| self.terms.all.get(&position.term)?.source)
        {
            self.is_durable(position, source);
        }
    }

    pub(crate) fn is_durable(&mut self, position: Position, source: Source) {
        let known = self.durable.entry(position.term).or_insert((position.rev, source));
        if known.0 < position.rev {
            *known = (position.rev, source);
        }
    }

    fn change(&mut self, position: Position, slot: &Slot) {
        let step = self.advance(Some(slot.source));
        let own = self.model.config().level.unwrap_or(self.rules.default_level);
        let asked = slot.op.and_then(|op| self.ops.all[op].op.level());
        let mut level = asked.map_or(own, |asked| asked.max(own));
        match &slot.effect {
            Effect::Sets(sets) => {
                let before = self.model.last.now().copied().flatten();
                let holders: Vec<_> = sets
                    .values()
                    .map(|written| {
                        written.message.key.as_deref().and_then(|key| self.model.under(key)).map(|m| m.id())
                    })
                    .collect();
                for (written, holder) in sets.values().zip(holders) {
                    self.write(position, slot, &written.message, written.item, (before, holder));
                }
            }
            Effect::Delete(seqs) => self.delete(position, slot, seqs),
            Effect::DeleteAll(end) => self.delete_all(position, slot, *end),
            Effect::Configure(config) => {
                level = Level::Bucket;
                self.check_requested(
                    position,
                    slot,
                    |op| matches!(op, Op::Configure(asked) if asked.config == *config),
                );
                self.model.configure(config.clone());
            }
            Effect::Destroy => {
                level = Level::Bucket;
                let all: Vec<Seq> = self.model.messages().map(|message| message.seq).collect();
                for seq in all {
                    self.model.remove(seq);
                }
                self.model.set_last(None);
                self.model.configure(SubjectConfig::default());
            }
        }
        // If a message was shown without its value, its writer is unknown, and so are the other writes of that request.
        let is_gap = match &slot.effect {
            Effect::Sets(sets) => sets.values().any(|written| written.item.is_none()),
            _ => false,
        };
        if is_gap {
            let (next, _) = self.model.next_seq();
            self.model.set_next(next, false);
        }
        self.push(position, step, level, is_gap, Some(slot.source));
    }

    /// Checks that a request exists for a change that only an event reports.
    pub(crate) fn check_requested(&mut self, position: Position, slot: &Slot, is_it: impl Fn(&Op) -> bool) {
        if slot.op.is_some() {
            return;
        }
        let may = |op: &&crate::operations::Operation<'_>| {
            op.status != OperationStatus::Refused && op.invoked <= slot.first_seen && is_it(op.op)
        };
        if !self.ops.all.iter().any(|op| may(&op)) {
            let sentence = format!("no request asked for the change at {position}");
            self.findings.report(Property::NothingFromNothing, sentence, [slot.source]);
        }
    }

    /// Returns whether an unreported change may follow `rev`.
    pub(crate) fn has_gap_after(&self, rev: Rev) -> bool {
        self.path.iter().rev().take_while(|step| step.position.rev > rev).any(|step| step.is_gap)
    }

    /// Returns whether an unreported change may have removed a message.
    pub(crate) fn may_be_gone(&self, message: &Message, by: Duration) -> bool {
        if self.is_uncertain {
            return true;
        }
        let removes = |op: &usize| {
            let operation = &self.ops.all[*op];
            operation.invoked <= by && may_remove(operation.op, message)
        };
        self.has_gap_after(message.rev)
            && (self.retention_may_have_removed(message) || self.unplaced.iter().any(removes))
    }

    /// Returns whether an unreported change may have added a message.
    pub(crate) fn may_be_more(&self) -> bool {
        self.is_uncertain
            || (self.path.iter().any(|step| step.is_gap)
                && self.unplaced.iter().any(|&op| self.ops.all[op].set().is_some()))
    }

    /// Changes the model to match a read.
    pub(crate) fn correct_model(&mut self, change: impl FnOnce(&mut Model)) {
        let step = self.advance(None);
        change(&mut self.model);
        let undo = self.model.take_undo();
        if let Some(last) = self.path.last_mut() {
            last.undo.extend(undo);
        }
        if let Some((position, _)) = self.steps.last().copied() {
            self.steps.push((position, step));
        }
        self.findings.coverage.add("model corrected by a read");
    }

    /// Checks that unanswered operations explain every unreported position.
    fn check_gaps(&mut self) {
        // Retention creates revs without a request.
        if self.is_uncertain || self.gaps.is_empty() || self.retention_is_possible() {
            return;
        }
        let revs = |op: &usize| {
            let known = self.placed.get(op).copied().unwrap_or_default();
            // A lost operation may have been executed again.
            self.ops.all[*op].max_revs().saturating_sub(known).max(1)
        };
        let mut unplaced_revs: Vec<(Duration, u64)> =
            self.unplaced.iter().map(|op| (self.ops.all[*op].invoked, revs(op))).collect();
        unplaced_revs.sort_unstable();
        let mut gaps: Vec<(Duration, Position, u64, Option<Source>)> = self
            .gaps
            .iter()
            .map(|&(position, revs)| {
                let (by, source) = self.first_report_after(position);
                (by, position, revs, source)
            })
            .collect();
        gaps.sort_unstable();
        let mut wanted = 0;
        for (by, position, revs, source) in gaps {
            wanted += revs;
            let possible: u64 =
                unplaced_revs.iter().take_while(|(invoked, _)| *invoked <= by).map(|(_, revs)| revs).sum();
            if wanted > possible {
                let sentence = format!(
                    "{revs} revs up to {position} have no cause: unanswered operations may have made {possible}, and \
                     {wanted} are missing",
                );
                self.findings.report(Property::NothingFromNothing, sentence, source);
                return;
            }
        }
    }

    /// Returns the first report of this position or a later one of its term.
    fn first_report_after(&self, position: Position) -> (Duration, Option<Source>) {
        let end = Position { rev: Rev::new(u64::MAX), ..position };
        let slots = self.slots.all.range(position..=end).map(|(_, slot)| (slot.first_seen, slot.source));
        let reads = self.history.calls.iter().enumerate().filter_map(|(index, call)| {
            let (answer, at) = call.answer()?;
            let shown = answer.position()?;
            (shown.term == position.term && shown.rev >= position.rev).then_some((at, Source::Call(index)))
        });
        let events = self.history.events.iter().enumerate().filter_map(|(index, received)| {
            let shown = received.event.position();
            (shown.term == position.term && shown.rev >= position.rev)
                .then_some((received.at, Source::Event(index)))
        });
        let first = slots.chain(reads).chain(events).min();
        first.map_or((Duration::MAX, None), |(at, source)| (at, Some(source)))
    }

    /// Returns the source for the position at which this message was written.
    pub(crate) fn source_of(&self, message: &Message) -> Option<Source> {
        let position = Position { term: message.term, rev: message.rev };
        self.slots.all.get(&position).map(|slot| slot.source)
    }

    pub(crate) fn current(&self, seq: Seq) -> Option<Rc<Message>> {
        self.model.message(seq).cloned()
    }
}

/// Returns whether an operation can remove a message.
fn may_remove(op: &Op, message: &Message) -> bool {
    match op {
        Op::Delete(request) => {
            request.seqs.contains(&message.seq)
                || message.key.as_ref().is_some_and(|key| request.keys.contains(key))
        }
        Op::DeleteAll(request) => request.end_seq.is_none_or(|end| message.seq <= end),
        Op::Destroy(_) => true,
        Op::Set(request) => message.key.is_some() && request.sets.iter().any(|item| item.key == message.key),
        _ => false,
    }
}
