//! Real-time order: an operation that returned before another one started precedes it. Errors have no position of their
//! own, but must be correct at some moment of their call.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dormouse_protocol::data::{Expect, SetOutcome};
use dormouse_protocol::{ErrorCode, ErrorReply, Level, MessageId, Position};

use crate::history::{Assumptions, Op, OpResult};
use crate::replay::Replay;
use crate::slots::Effect;
use crate::verdict::{Property, Source};

/// A read or write with its position and its time.
struct Seen {
    position: Position,
    invoked: Duration,
    returned: Option<Duration>,
    /// It made the change at its position.
    writes: bool,
    /// If the assumptions are broken, it may be out of order.
    may_be_stale: bool,
    source: Source,
}

impl Replay<'_, '_> {
    /// Checks the order of all reads and writes, and the errors.
    pub(crate) fn check_order(&mut self) {
        let mut seen = self.all_seen();
        let received = self.history.events.iter().enumerate().map(|(index, received)| Top {
            at: received.at,
            position: received.event.position(),
            source: Source::Event(index),
        });
        let tops = tops(&seen, received);
        let broken = self.rules.assumptions == Assumptions::Broken;
        for later in seen.iter().filter(|seen| !(broken && seen.may_be_stale)) {
            let end = tops.partition_point(|top| top.at < later.invoked);
            let Some(before) = tops[..end].last() else { continue };
            let is_behind =
                later.position < before.position || (later.writes && later.position == before.position);
            if is_behind && before.source != later.source {
                let done = if later.writes { "written" } else { "shown" };
                let sentence =
                    format!("{} was {done} after {} was reported", later.position, before.position);
                self.findings.report(Property::RealTime, sentence, [before.source, later.source]);
            }
        }
        if broken {
            return;
        }
        seen.sort_by_key(|seen| seen.invoked);
        let mut lowest: Vec<(Duration, Position)> = Vec::new();
        for seen in seen.iter().rev() {
            if lowest.last().is_none_or(|(_, low)| seen.position < *low) {
                lowest.push((seen.invoked, seen.position));
            }
        }
        self.check_refusals(&tops, &lowest);
    }

    fn all_seen(&self) -> Vec<Seen> {
        let mut all = Vec::new();
        for (&position, slot) in &self.slots.all {
            let Some(op) = slot.op else { continue };
            let operation = &self.ops.all[op];
            // This holds only if the acknowledged change is this one: another one may have been lost.
            let own = operation.calls.iter().find(|&&call| {
                self.history.calls[call].answer().is_some_and(|(answer, _)| names(answer, position))
            });
            let level = operation.op.level();
            all.push(Seen {
                position,
                invoked: operation.invoked,
                returned: own.and_then(|&call| self.history.calls[call].answer().map(|(_, at)| at)),
                writes: true,
                may_be_stale: level != Some(Level::Bucket) && self.may_be_weak(position),
                source: own.or(operation.calls.first()).map_or(slot.source, |&call| Source::Call(call)),
            });
        }
        for (index, call) in self.history.calls.iter().enumerate() {
            let Some((answer, at)) = call.answer() else { continue };
            let Some(position) = answer.position() else { continue };
            let (writes_nothing, repeats) = match answer {
                OpResult::Delete(reply) => (reply.seqs.is_empty(), reply.duplicate),
                OpResult::DeleteAll(reply) => (reply.count == 0, reply.duplicate),
                OpResult::Changes(reply) => (!reply.more, false),
                _ => (!call.op.changes(), false),
            };
            if !writes_nothing {
                continue;
            }
            // A repeat names the position of the first.
            let invoked = match self.ops.of_call[index] {
                Some(op) if repeats => self.ops.all[op].invoked,
                _ => call.invoked_at,
            };
            let source = Source::Call(index);
            let returned = Some(at);
            all.push(Seen { position, invoked, returned, writes: false, may_be_stale: true, source });
        }
        all
    }

    fn may_be_weak(&self, position: Position) -> bool {
        self.path.iter().find(|step| step.position == position).is_none_or(|step| step.level < Level::Bucket)
    }

    /// `lowest`: a request from a moment on has at least this position; the latest moment is first.
    fn check_refusals(&mut self, tops: &[Top], lowest: &[(Duration, Position)]) {
        if self.is_uncertain {
            return;
        }
        for index in 0..self.history.calls.len() {
            let call = &self.history.calls[index];
            let invoked = self.ops.of_call[index].map_or(call.invoked_at, |op| self.ops.all[op].invoked);
            let mut refused: Vec<(Option<Expect>, Option<&str>, &ErrorReply, Duration)> = Vec::new();
            match (&call.op, call.refusal(), call.answer()) {
                (Op::Set(request), Some((error, at)), _) => match request.sets.as_slice() {
                    [item] => refused.push((item.expect, item.key.as_deref(), error, at)),
                    _ => continue,
                },
                (Op::Delete(request), Some((error, at)), _) => {
                    refused.push((request.expect, request.keys.first().map(String::as_str), error, at));
                }
                (Op::Set(request), None, Some((OpResult::Set(reply), at))) => {
                    for (item, outcome) in request.sets.iter().zip(&reply.results) {
                        if let SetOutcome::Error(error) = outcome {
                            refused.push((item.expect, item.key.as_deref(), error, at));
                        }
                    }
                }
                _ => continue,
            }
            let first = tops.partition_point(|top| top.at < invoked);
            let low = tops[..first].last().map(|top| top.position).unwrap_or_default();
            for (expect, key, error, at) in refused {
                let names_state = matches!(error.code, ErrorCode::WrongLast | ErrorCode::KeyExists);
                let (Some(expect), true) = (expect, names_state) else { continue };
                let later = lowest.partition_point(|(invoked, _)| *invoked > at);
                let high = lowest[..later].last().map(|(_, position)| *position);
                self.check_refusal(index, expect, key, error.actual, (low, high));
            }
        }
    }

    /// Checks that the state that an error reports existed at some moment between these positions.
    fn check_refusal(
        &mut self,
        call: usize,
        expect: Expect,
        key: Option<&str>,
        actual: Option<MessageId>,
        (low, high): (Position, Option<Position>),
    ) {
        self.findings.coverage.add("refusals");
        let (first, last) = (
            self.step_of(low),
            high.map_or(self.model.step, |high| self.step_of(high)).max(self.step_of(low)),
        );
        let mut there: BTreeSet<Option<MessageId>> = BTreeSet::new();
        match (expect, key) {
            (Expect::Last(_), _) => there.extend(self.model.last.between(first, last).copied()),
            (Expect::Key(_), Some(key)) => {
                let Some(cell) = self.model.keys.get(key) else {
                    there.insert(None);
                    return self.judge_refusal(call, actual, &there, (low, high));
                };
                if !cell.is_older(first) {
                    there.insert(None);
                }
                let seqs: BTreeSet<_> = cell.between(first, last).copied().collect();
                for seq in seqs {
                    let Some(cell) = seq.and_then(|seq| self.model.seqs.get(&seq)) else {
                        there.insert(None);
                        continue;
                    };
                    let held = cell.between(first, last);
                    there.extend(
                        held.flatten().filter(|m| m.key.as_deref() == Some(key)).map(|m| Some(m.id())),
                    );
                }
            }
            (Expect::Key(_), None) => return,
        }
        self.judge_refusal(call, actual, &there, (low, high));
    }

    fn judge_refusal(
        &mut self,
        call: usize,
        actual: Option<MessageId>,
        there: &BTreeSet<Option<MessageId>>,
        (low, high): (Position, Option<Position>),
    ) {
        if there.contains(&actual) || self.has_gaps() {
            return;
        }
        let name = |id: &Option<MessageId>| id.map_or_else(|| "no message".to_owned(), |id| id.to_string());
        let sentence = format!(
            "an error reports {} as the current message; from {low} to {} it was {}",
            name(&actual),
            high.map_or_else(|| "the end".to_owned(), |high| high.to_string()),
            there.iter().map(name).collect::<Vec<_>>().join(", then ")
        );
        let sources: Vec<Source> = std::iter::once(Source::Call(call))
            .chain(there.iter().flatten().filter_map(|id| {
                let message = self.model.seqs.get(&id.seq)?.now()?.clone()?;
                self.source_of(&message)
            }))
            .collect();
        self.findings.report(Property::RefusedRightly, sentence, sources);
    }

    /// Returns whether a change is unknown.
    fn has_gaps(&self) -> bool {
        self.findings.coverage.counts.contains_key("unreported changes")
    }

    /// Checks that no request executes twice on one path, even if the subject is destroyed in between.
    pub(crate) fn check_once(&mut self) {
        let mut twice: Vec<(Position, Position, Source, Source)> = Vec::new();
        let mut compare = |positions: &[(Position, Source)], terms: &crate::terms::Terms| {
            for (at, &(one, first)) in positions.iter().enumerate() {
                for &(other, second) in &positions[at + 1..] {
                    let (one, other) = (one.min(other), one.max(other));
                    if one != other && terms.leads(one, other) {
                        twice.push((one, other, first, second));
                    }
                }
            }
        };
        for positions in self.slots.positions.values().filter(|positions| positions.len() > 1) {
            compare(positions, self.terms);
        }
        let mut others: BTreeMap<usize, Vec<(Position, Source)>> = BTreeMap::new();
        for (&position, slot) in &self.slots.all {
            if let (Some(op), false) = (slot.op, matches!(slot.effect, Effect::Sets(_))) {
                others.entry(op).or_default().push((position, slot.source));
            }
        }
        for positions in others.values().filter(|positions| positions.len() > 1) {
            compare(positions, self.terms);
        }
        for (one, other, first, second) in twice {
            let sentence = format!("one request was executed twice: at {one} and at {other}");
            self.findings.report(Property::OnceAtMost, sentence, [first, second]);
        }
    }
}

/// Returns whether a reply says that a message was written at this position.
fn names(answer: &OpResult, position: Position) -> bool {
    match answer {
        OpResult::Set(reply) => reply.results.iter().any(|outcome| match outcome {
            SetOutcome::Ok(ok) => Position { term: ok.term, rev: ok.rev } == position,
            SetOutcome::Error(_) => false,
        }),
        _ => answer.position() == Some(position),
    }
}

/// The highest position that was reported up to a moment.
struct Top {
    at: Duration,
    position: Position,
    source: Source,
}

/// Returns the growth of the highest reported position.
fn tops(seen: &[Seen], received: impl Iterator<Item = Top>) -> Vec<Top> {
    let reported =
        |seen: &Seen| Some(Top { at: seen.returned?, position: seen.position, source: seen.source });
    let mut all: Vec<Top> = seen.iter().filter_map(reported).chain(received).collect();
    all.sort_unstable_by_key(|top| (top.at, top.position));
    let mut tops: Vec<Top> = Vec::new();
    for top in all {
        if tops.last().is_none_or(|last| top.position > last.position) {
            tops.push(top);
        }
    }
    tops
}
