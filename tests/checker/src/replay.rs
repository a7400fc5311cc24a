//! The walk through a subject's history in the order of (term, rev): every change is applied where it stands, every read
//! is held against the state at the position it names, and what a term did not inherit is taken back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;

use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Level, Message, Position, Rev, Seq, Term};

use crate::feeds::{self, Reader};
use crate::history::{Answer, Harm, Op, Rules, SubjectHistory};
use crate::model::{Model, Step, Undo};
use crate::operations::{Fate, Operations};
use crate::slots::{Effect, Slot, Slots};
use crate::terms::Terms;
use crate::verdict::{Findings, Property, Source};

/// One step of the path that leads to the current state.
pub(crate) struct PathStep {
    /// Its place, the last one of a hole.
    pub(crate) position: Position,
    pub(crate) step: Step,
    /// How durable it had to be to be seen.
    pub(crate) level: Level,
    pub(crate) is_hole: bool,
    undo: Vec<Undo>,
}

/// Everything that is known of one subject while it is being judged.
pub(crate) struct Replay<'c, 'h> {
    pub(crate) history: &'h SubjectHistory,
    pub(crate) rules: Rules,
    pub(crate) harms: &'h [Harm],
    pub(crate) ops: &'c Operations<'h>,
    pub(crate) slots: &'c Slots<'h>,
    pub(crate) terms: &'c Terms,
    pub(crate) findings: &'c mut Findings<'h>,
    pub(crate) model: Model,
    pub(crate) path: Vec<PathStep>,
    /// The step of each place that was walked through, ascending.
    pub(crate) steps: Vec<(Position, Step)>,
    /// Who told of what each step did.
    told: Vec<Option<Source>>,
    /// Up to where each term is in the bucket, and who says so.
    pub(crate) durable: BTreeMap<Term, (Rev, Source)>,
    /// Operations that may have happened at places nobody told of.
    pub(crate) loose: BTreeSet<usize>,
    /// Of each operation, how many places are known.
    placed: HashMap<usize, u64>,
    /// Places that nobody told of, and by when they must have been filled.
    holes: Vec<(Position, u64)>,
    /// What a term inherited cannot be told: whoever reads teaches us.
    pub(crate) is_vague: bool,
    /// Who reads feeds.
    pub(crate) readers: BTreeMap<usize, Reader>,
}

impl<'c, 'h> Replay<'c, 'h> {
    pub(crate) fn new(
        (history, rules, harms): (&'h SubjectHistory, Rules, &'h [Harm]),
        (ops, slots, terms): (&'c Operations<'h>, &'c Slots<'h>, &'c Terms),
        findings: &'c mut Findings<'h>,
    ) -> Self {
        let mut placed: HashMap<usize, u64> = HashMap::new();
        for op in slots.all.values().filter_map(|slot| slot.op) {
            *placed.entry(op).or_default() += 1;
        }
        // Of several sets each has a place of its own: that one is known says nothing of the others.
        let has_more = |op: &usize| placed.get(op).is_none_or(|known| *known < ops.all[*op].most_revs());
        let loose = ops.unknown().filter(has_more).collect();
        Self {
            history,
            rules,
            harms,
            ops,
            slots,
            terms,
            findings,
            model: Model::new(),
            path: Vec::new(),
            steps: vec![(Position::default(), 0)],
            told: vec![None],
            durable: BTreeMap::new(),
            loose,
            placed,
            holes: Vec::new(),
            is_vague: false,
            readers: BTreeMap::new(),
        }
    }

    pub(crate) fn walk(&mut self) {
        let mut reads: BTreeMap<Position, Vec<usize>> = BTreeMap::new();
        for (place, call) in self.history.calls.iter().enumerate() {
            if let Some((answer, _)) = call.answer()
                && let Some(position) = answer.position()
                && !matches!(answer, Answer::Set(_))
            {
                reads.entry(position).or_default().push(place);
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
                    let hole_end = if slot.is_some() { mark.rev.get() - 1 } else { mark.rev.get() };
                    if hole_end > before.get() {
                        self.hole(Position { term, rev: Rev::new(hole_end) }, hole_end - before.get());
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
                    self.look_at_feed(feed, mark);
                }
            }
            // What is only known to be there, because a beacon said so.
            if state.highest > before {
                let end = Position { term, rev: state.highest };
                self.hole(end, state.highest.get() - before.get());
            }
        }
        self.holes_are_explained();
    }

    /// A new step, of which `source` told.
    pub(crate) fn advance(&mut self, source: Option<Source>) -> Step {
        let step = self.model.advance();
        self.told.push(source);
        step
    }

    /// The step at the end of which the subject was at this place, or had last been somewhere before it.
    pub(crate) fn step_of(&self, position: Position) -> Step {
        let end = self.steps.partition_point(|(known, _)| *known <= position);
        self.steps[..end].last().map_or(0, |(_, step)| *step)
    }

    /// Who told of what a step did.
    pub(crate) fn told(&self, step: Step) -> Option<Source> {
        self.told.get(step).copied().flatten()
    }

    fn begin_term(&mut self, term: Term, base: Rev, is_known: bool) {
        let source = self.terms.all.get(&term).and_then(|state| state.source);
        let step = self.advance(source);
        let keep = self.path.partition_point(|step| step.position.rev <= base);
        let lost = self.path.split_off(keep);
        let follows = self.steps.last().is_some_and(|(last, _)| last.term.next() == term);
        let through = self.path.last().map(|step| step.position.rev).unwrap_or_default();
        // A term that nobody told of, or whose base nobody told of, may have put something else in the place of what was
        // not yet in the bucket.
        let sure = self.durable.values().map(|(rev, _)| *rev).max().unwrap_or_default();
        let is_told = is_known && follows;
        if !self.is_vague && !is_told && through.max(lost.last().map_or(through, |l| l.position.rev)) > sure {
            self.is_vague = true;
            self.findings.coverage.add("subjects of which a term is not known");
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
            // Revs of earlier terms that nobody told of.
            let position = Position { term, rev: base };
            self.hole(position, base.get() - through.get());
        }
    }

    /// Places of which nobody told what stands there.
    fn hole(&mut self, position: Position, revs: u64) {
        let step = self.advance(None);
        self.findings.coverage.add("changes nobody was told of");
        self.holes.push((position, revs));
        let (next, _) = self.model.next_seq();
        if self.loose.iter().any(|&op| self.ops.all[op].set().is_some()) {
            self.model.set_next(next, false);
        }
        let level = self.model.config().level.unwrap_or(self.rules.default_level);
        self.push(position, step, level, true, None);
    }

    fn push(&mut self, position: Position, step: Step, level: Level, is_hole: bool, source: Option<Source>) {
        let undo = self.model.take_undo();
        self.path.push(PathStep { position, step, level, is_hole, undo });
        self.steps.push((position, step));
        // Whoever was shown this place was shown something that had reached its level.
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
                self.asked_for(
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
        // Of a message that was shown without its value nobody knows who wrote it, and so not what else that wrote.
        let is_hole = match &slot.effect {
            Effect::Sets(sets) => sets.values().any(|written| written.item.is_none()),
            _ => false,
        };
        if is_hole {
            let (next, _) = self.model.next_seq();
            self.model.set_next(next, false);
        }
        self.push(position, step, level, is_hole, Some(slot.source));
    }

    /// Somebody must have asked for a change that only an event tells of.
    pub(crate) fn asked_for(&mut self, position: Position, slot: &Slot, is_it: impl Fn(&Op) -> bool) {
        if slot.op.is_some() {
            return;
        }
        let may = |op: &&crate::operations::Operation<'_>| {
            op.fate != Fate::Refused && op.invoked <= slot.witnessed && is_it(op.op)
        };
        if !self.ops.all.iter().any(|op| may(&op)) {
            let sentence = format!("nobody asked for the change at {position}");
            self.findings.wrong(Property::NothingFromNothing, sentence, [slot.source]);
        }
    }

    /// Whether something may have happened after `rev` of which nobody was told.
    pub(crate) fn has_hole_after(&self, rev: Rev) -> bool {
        self.path.iter().rev().take_while(|step| step.position.rev > rev).any(|step| step.is_hole)
    }

    /// Whether a message that should be there may be gone because of something of which nobody was told.
    pub(crate) fn may_be_gone(&self, message: &Message, by: Duration) -> bool {
        if self.is_vague {
            return true;
        }
        let removes = |op: &usize| {
            let operation = &self.ops.all[*op];
            operation.invoked <= by && may_remove(operation.op, message)
        };
        self.has_hole_after(message.rev) && self.loose.iter().any(removes)
    }

    /// Whether there may be a message, under this key or any, of which nobody was told.
    pub(crate) fn may_be_more(&self) -> bool {
        self.is_vague
            || (self.path.iter().any(|step| step.is_hole)
                && self.loose.iter().any(|&op| self.ops.all[op].set().is_some()))
    }

    /// What a reader was shown is so, whatever we thought.
    pub(crate) fn learn(&mut self, change: impl FnOnce(&mut Model)) {
        let step = self.advance(None);
        change(&mut self.model);
        let undo = self.model.take_undo();
        if let Some(last) = self.path.last_mut() {
            last.undo.extend(undo);
        }
        if let Some((position, _)) = self.steps.last().copied() {
            self.steps.push((position, step));
        }
        self.findings.coverage.add("learned from a reader");
    }

    /// Every place that nobody told of must have been filled by somebody who was not told either.
    fn holes_are_explained(&mut self) {
        if self.is_vague || self.holes.is_empty() {
            return;
        }
        let revs = |op: &usize| {
            let known = self.placed.get(op).copied().unwrap_or_default();
            // One that was lost may have been carried out again.
            self.ops.all[*op].most_revs().saturating_sub(known).max(1)
        };
        let mut room: Vec<(Duration, u64)> =
            self.loose.iter().map(|op| (self.ops.all[*op].invoked, revs(op))).collect();
        room.sort_unstable();
        let mut holes: Vec<(Duration, Position, u64, Option<Source>)> = self
            .holes
            .iter()
            .map(|&(position, revs)| {
                let (by, source) = self.first_told_after(position);
                (by, position, revs, source)
            })
            .collect();
        holes.sort_unstable();
        let mut wanted = 0;
        for (by, position, revs, source) in holes {
            wanted += revs;
            let had: u64 = room.iter().take_while(|(invoked, _)| *invoked <= by).map(|(_, revs)| revs).sum();
            if wanted > had {
                let sentence = format!(
                    "{revs} revs up to {position} were made by nobody: {had} may have been made by operations without \
                     an answer, and {wanted} are missing"
                );
                self.findings.wrong(Property::NothingFromNothing, sentence, source);
                return;
            }
        }
    }

    /// Who first told of this place or a later one of its term.
    fn first_told_after(&self, position: Position) -> (Duration, Option<Source>) {
        let end = Position { rev: Rev::new(u64::MAX), ..position };
        let slots = self.slots.all.range(position..=end).map(|(_, slot)| (slot.witnessed, slot.source));
        let reads = self.history.calls.iter().enumerate().filter_map(|(place, call)| {
            let (answer, at) = call.answer()?;
            let shown = answer.position()?;
            (shown.term == position.term && shown.rev >= position.rev).then_some((at, Source::Call(place)))
        });
        let events = self.history.events.iter().enumerate().filter_map(|(place, heard)| {
            let shown = heard.event.position();
            (shown.term == position.term && shown.rev >= position.rev)
                .then_some((heard.at, Source::Event(place)))
        });
        let first = slots.chain(reads).chain(events).min();
        first.map_or((Duration::MAX, None), |(at, source)| (at, Some(source)))
    }

    /// What stands at the place where this message was written.
    pub(crate) fn source_of(&self, message: &Message) -> Option<Source> {
        let position = Position { term: message.term, rev: message.rev };
        self.slots.all.get(&position).map(|slot| slot.source)
    }

    pub(crate) fn current(&self, seq: Seq) -> Option<Rc<Message>> {
        self.model.message(seq).cloned()
    }
}

/// Whether an operation could remove a message.
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
