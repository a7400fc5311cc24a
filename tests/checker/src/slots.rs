//! Collects what the replies, events and messages show about each position (term, rev) of the history.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use dormouse_protocol::data::{SetItem, SetOutcome, SetResult};
use dormouse_protocol::message::{SetChange, SubjectConfig};
use dormouse_protocol::{Change, Headers, Message, Position, Seq};

use crate::history::{Call, FeedOutputKind, Op, OpResult, ReceivedEvent, SubjectHistory};
use crate::operations::{ItemRef, OperationStatus, Operations};
use crate::verdict::{Findings, Property, Source};

/// A written message, and the set that wrote it.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    pub(crate) message: Rc<Message>,
    pub(crate) item: Option<ItemRef>,
}

/// The change at one position.
#[derive(Debug, Clone)]
pub(crate) enum Effect {
    Sets(BTreeMap<Seq, Written>),
    /// Messages are removed. The set holds the seqs that are reported.
    Delete(Vec<Seq>),
    /// All messages up to a seq are removed; `None`: the operation names the end.
    DeleteAll(Option<Seq>),
    Configure(SubjectConfig),
    Destroy,
}

#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) op: Option<usize>,
    pub(crate) effect: Effect,
    /// The first source that reported it.
    pub(crate) source: Source,
    /// The time of the first report.
    pub(crate) first_seen: Duration,
    /// The event that announced it.
    pub(crate) event: Option<usize>,
}

/// All positions with a report.
pub(crate) struct Slots<'h> {
    pub(crate) all: BTreeMap<Position, Slot>,
    /// The positions at which each set was found, with the source.
    pub(crate) positions: BTreeMap<ItemRef, Vec<(Position, Source)>>,
    calls: &'h [Call],
}

impl<'h> Slots<'h> {
    pub(crate) fn gather(
        history: &'h SubjectHistory,
        ops: &Operations<'h>,
        findings: &mut Findings<'_>,
    ) -> Self {
        let SubjectHistory { calls, events, .. } = history;
        let mut slots = Self { all: BTreeMap::new(), positions: BTreeMap::new(), calls };
        for (index, call) in calls.iter().enumerate() {
            if let (Some((answer, at)), Some(op)) = (call.answer(), ops.of_call[index]) {
                slots.acknowledged(op, answer, (Source::Call(index), at), ops, findings);
            }
        }
        for (index, received) in events.iter().enumerate() {
            slots.announced(index, received, ops, findings);
        }
        for (index, call) in calls.iter().enumerate() {
            let Some((answer, at)) = call.answer() else { continue };
            let source = (Source::Call(index), at);
            match answer {
                OpResult::Get(reply) => slots.shown(&reply.messages, source, ops, findings),
                OpResult::GetAll(reply) => slots.shown(&reply.messages, source, ops, findings),
                OpResult::Changes(reply) => {
                    for change in &reply.changes {
                        if let Change::Set(SetChange { message, .. }) = change {
                            slots.message(message, source, ops, findings);
                        }
                    }
                }
                _ => {}
            }
        }
        for (index, feed) in history.feeds.iter().enumerate() {
            for output in &feed.outputs {
                if let FeedOutputKind::Set { message, .. } = &output.kind {
                    slots.message(message, (Source::Feed(index), output.at), ops, findings);
                }
            }
        }
        slots.complete(ops);
        slots
    }

    fn acknowledged(
        &mut self,
        op: usize,
        answer: &OpResult,
        source: (Source, Duration),
        ops: &Operations<'h>,
        findings: &mut Findings<'_>,
    ) {
        match (ops.all[op].op, answer) {
            (Op::Set(request), OpResult::Set(reply)) => {
                for (index, (item, outcome)) in request.sets.iter().zip(&reply.results).enumerate() {
                    let SetOutcome::Ok(result) = outcome else { continue };
                    // Another request's set may have had the same message id.
                    if result.duplicate && item.msg_id.as_deref().is_some_and(|id| ops.is_shared(id)) {
                        continue;
                    }
                    let position = Position { term: result.term, rev: result.rev };
                    let item_ref = ItemRef { op, index };
                    let message = Rc::new(written(item, result));
                    let written = Written { message, item: Some(item_ref) };
                    self.set(position, Some(op), written, source, findings);
                }
            }
            (_, OpResult::Delete(reply)) if !reply.seqs.is_empty() => {
                self.put(reply.position, Some(op), Effect::Delete(reply.seqs.clone()), source, findings);
            }
            (_, OpResult::DeleteAll(reply)) if reply.count > 0 => {
                self.put(reply.position, Some(op), Effect::DeleteAll(None), source, findings);
            }
            (Op::Configure(request), OpResult::Configure(reply)) => {
                let effect = Effect::Configure(request.config.clone());
                self.put(reply.position, Some(op), effect, source, findings);
            }
            (_, OpResult::Destroy(reply)) => {
                self.put(reply.position, Some(op), Effect::Destroy, source, findings);
            }
            _ => {}
        }
    }

    fn announced(
        &mut self,
        index: usize,
        received: &'h ReceivedEvent,
        ops: &Operations<'h>,
        findings: &mut Findings<'_>,
    ) {
        let source = (Source::Event(index), received.at);
        for change in &received.event.changes {
            let position = Position { term: received.event.term, rev: change.rev() };
            match change {
                Change::Set(SetChange { message, .. }) => self.message(message, source, ops, findings),
                Change::Delete(delete) => {
                    let seqs = delete.removed.iter().map(|removed| removed.seq).collect();
                    self.put(position, None, Effect::Delete(seqs), source, findings);
                }
                Change::DeleteAll(delete) => {
                    self.put(position, None, Effect::DeleteAll(Some(delete.end_seq)), source, findings);
                }
                Change::Configure(configure) => {
                    self.put(position, None, Effect::Configure(configure.config.clone()), source, findings);
                }
            }
            if let Some(slot) = self.all.get_mut(&position) {
                slot.event = Some(index);
            }
        }
    }

    fn shown(
        &mut self,
        messages: &[Message],
        source: (Source, Duration),
        ops: &Operations<'h>,
        findings: &mut Findings<'_>,
    ) {
        for message in messages {
            self.message(message, source, ops, findings);
        }
    }

    /// Adds a message that was shown to a reader.
    fn message(
        &mut self,
        message: &Message,
        source: (Source, Duration),
        ops: &Operations<'h>,
        findings: &mut Findings<'_>,
    ) {
        let position = Position { term: message.term, rev: message.rev };
        let known = self.all.get(&position);
        if let Some(Slot { effect: Effect::Sets(sets), .. }) = known
            && let Some(written) = sets.get(&message.seq)
        {
            let first = known.map(|slot| slot.source);
            if !is_same(message, &written.message) {
                findings.report(
                    Property::OneOwner,
                    format!("{position} has two different messages at {}", message.seq),
                    first.into_iter().chain([source.0]),
                );
            }
            if let Some(slot) = self.all.get_mut(&position) {
                slot.first_seen = slot.first_seen.min(source.1);
            }
            return;
        }
        let Some(item) = self.writer(message, position, source, ops, findings) else { return };
        let mut message = message.clone();
        if let Some(item) = item.and_then(|item| ops.item(item)) {
            message.value.clone_from(&item.value);
            message.value_omitted = false;
        }
        let written = Written { message: Rc::new(message), item };
        self.set(position, item.map(|item| item.op), written, source, findings);
    }

    /// Returns the set that wrote a message that only a reader reports. `None`: no set can have written it.
    fn writer(
        &self,
        message: &Message,
        position: Position,
        source: (Source, Duration),
        ops: &Operations<'h>,
        findings: &mut Findings<'_>,
    ) -> Option<Option<ItemRef>> {
        if message.value_omitted {
            return Some(None);
        }
        let of_slot = self.all.get(&position).and_then(|slot| slot.op);
        let writers = ops.writers(message);
        let may = |item: &&ItemRef| {
            let operation = &ops.all[item.op];
            // A repeat of an unanswered request may be rejected although the first attempt was executed and lost.
            let asked_before = operation.calls.iter().any(|&call| self.calls[call].is_open());
            let refused = operation.status == OperationStatus::Refused
                || !asked_before && operation.refusal_of(self.calls, item.index).is_some();
            !refused && operation.invoked <= source.1 && of_slot.is_none_or(|op| op == item.op)
        };
        let elsewhere = |item: &&ItemRef| self.positions.get(item).is_none_or(Vec::is_empty);
        let found = writers.iter().filter(may).find(elsewhere).or_else(|| writers.iter().find(may));
        if let Some(&found) = found {
            return Some(Some(found));
        }
        let reporter = std::iter::once(source.0);
        let (property, sentence) = match writers.first() {
            None => (Property::NothingFromNothing, format!("no request wrote the message at {position}")),
            Some(item) if of_slot.is_some_and(|op| op != item.op) => {
                (Property::OneOwner, format!("{position} belongs to another operation"))
            }
            Some(item) if ops.all[item.op].invoked > source.1 => {
                (Property::NothingFromNothing, format!("{position} was seen before it was requested"))
            }
            Some(_) => (Property::RefusedIsNotDone, format!("{position} was rejected, but it was executed")),
        };
        let asked = writers.iter().flat_map(|item| ops.sources(item.op));
        let slot = self.all.get(&position).map(|slot| slot.source);
        findings.report(property, sentence, reporter.chain(asked).chain(slot));
        None
    }

    fn set(
        &mut self,
        position: Position,
        op: Option<usize>,
        written: Written,
        source: (Source, Duration),
        findings: &mut Findings<'_>,
    ) {
        if let Some(item) = written.item {
            let positions = self.positions.entry(item).or_default();
            if positions.iter().all(|(known, _)| *known != position) {
                positions.push((position, source.0));
            }
        }
        let seq = written.message.seq;
        match self.all.get_mut(&position) {
            Some(Slot { op: known, effect: Effect::Sets(sets), source: first, first_seen, .. })
                if known.is_none() || op.is_none() || *known == op =>
            {
                if let Some(other) = sets.get(&seq)
                    && !is_same(&written.message, &other.message)
                {
                    let sentence = format!("{position} has two different messages at {seq}");
                    findings.report(Property::OneOwner, sentence, [*first, source.0]);
                    return;
                }
                *known = known.or(op);
                *first_seen = source.1.min(*first_seen);
                sets.insert(seq, written);
            }
            _ => self.put(position, op, Effect::Sets(BTreeMap::from([(seq, written)])), source, findings),
        }
    }

    fn put(
        &mut self,
        position: Position,
        op: Option<usize>,
        effect: Effect,
        (source, at): (Source, Duration),
        findings: &mut Findings<'_>,
    ) {
        let Some(slot) = self.all.get_mut(&position) else {
            self.all.insert(position, Slot { op, effect, source, first_seen: at, event: None });
            return;
        };
        slot.first_seen = slot.first_seen.min(at);
        if let (Effect::DeleteAll(end @ None), Effect::DeleteAll(reported)) = (&mut slot.effect, &effect) {
            *end = *reported;
        }
        let same_op = slot.op.is_none() || op.is_none() || slot.op == op;
        if !same_op || !is_same_effect(&slot.effect, &effect) {
            let sentence = format!("{position} holds two different changes");
            findings.report(Property::OneOwner, sentence, [slot.source, source]);
        }
    }

    /// An entry is never split: the position of one set determines the positions of the other sets of the request.
    fn complete(&mut self, ops: &Operations<'h>) {
        // If there are limits, single sets of a request that is not atomic may be rejected.
        let is_limited = ops.all.iter().any(|op| match op.op {
            Op::Configure(request) => {
                let config = &request.config;
                config.max_msgs.or(config.max_bytes).or(config.max_msg_size).is_some()
            }
            _ => false,
        });
        for op in ops.unknown() {
            let Some(request) = ops.all[op].set() else { continue };
            let plain = |item: &SetItem| {
                let decided = item.seq.is_some() || item.timestamp.is_some();
                // In an atomic batch, one written set shows that the expectations of the others held.
                !decided && (item.expect.is_none() || request.atomic) && item.msg_id.is_none()
            };
            if request.sets.len() < 2 || !request.sets.iter().all(plain) {
                continue;
            }
            let len = request.sets.len();
            let Some(first) = (0..len).find_map(|index| self.seen(ItemRef { op, index })) else {
                continue;
            };
            for (index, item) in request.sets.iter().enumerate() {
                let item_ref = ItemRef { op, index };
                if self.positions.get(&item_ref).is_some_and(|positions| !positions.is_empty()) {
                    continue;
                }
                let known = if request.atomic || !is_limited {
                    Some(first.clone())
                } else {
                    self.before(item_ref, len)
                };
                let Some(Seen { index: known, message, source, at }) = known else { continue };
                let away = |number: u64| (number + index as u64).saturating_sub(known as u64);
                let rev = if request.atomic { message.rev.get() } else { away(message.rev.get()) };
                let result = SetResult {
                    seq: Seq::new(away(message.seq.get())),
                    term: message.term,
                    rev: dormouse_protocol::Rev::new(rev),
                    timestamp: item.timestamp.unwrap_or(message.timestamp),
                    duplicate: false,
                };
                let position = Position { term: result.term, rev: result.rev };
                let written = Written { message: Rc::new(written(item, &result)), item: Some(item_ref) };
                self.positions.entry(item_ref).or_default().push((position, source));
                let slot = self.all.entry(position).or_insert_with(|| Slot {
                    op: Some(op),
                    effect: Effect::Sets(BTreeMap::new()),
                    source,
                    first_seen: at,
                    event: None,
                });
                if let Effect::Sets(sets) = &mut slot.effect {
                    sets.entry(result.seq).or_insert(written);
                }
            }
        }
    }

    /// Returns what is known about one set of a request.
    fn seen(&self, item: ItemRef) -> Option<Seen> {
        let (position, source) = *self.positions.get(&item)?.first()?;
        let slot = self.all.get(&position)?;
        let Effect::Sets(sets) = &slot.effect else { return None };
        let written = sets.values().find(|written| written.item == Some(item))?;
        Some(Seen { index: item.index, message: Rc::clone(&written.message), source, at: slot.first_seen })
    }

    /// Returns the known set before this one, if the next known set has the expected distance to it. Then no set
    /// between them was rejected.
    fn before(&self, item: ItemRef, len: usize) -> Option<Seen> {
        let seen = |index: usize| self.seen(ItemRef { index, ..item });
        let before = (0..item.index).rev().find_map(seen)?;
        let after = (item.index + 1..len).find_map(seen)?;
        let apart = after.message.rev.get().checked_sub(before.message.rev.get())?;
        let none_between = apart == (after.index - before.index) as u64;
        (before.message.term == after.message.term && none_between).then_some(before)
    }
}

/// One set of a request, as it was shown.
#[derive(Clone)]
struct Seen {
    index: usize,
    message: Rc<Message>,
    source: Source,
    /// The time.
    at: Duration,
}

/// Returns the message that a set with this result wrote.
fn written(item: &SetItem, result: &SetResult) -> Message {
    Message {
        seq: result.seq,
        term: result.term,
        rev: result.rev,
        key: item.key.clone(),
        value: item.value.clone(),
        headers: Headers(item.headers.0.clone()),
        timestamp: result.timestamp,
        size: item.value.as_ref().map_or(0, |value| value.len() as u64),
        value_omitted: false,
        expires_at: None,
    }
}

/// Returns whether a shown message equals the known one.
pub(crate) fn is_same(shown: &Message, known: &Message) -> bool {
    shown.seq == known.seq
        && (shown.term, shown.rev) == (known.term, known.rev)
        && shown.key == known.key
        && shown.headers == known.headers
        && shown.timestamp == known.timestamp
        && shown.size == known.size
        && (shown.value_omitted || known.value_omitted || shown.value == known.value)
}

fn is_same_effect(one: &Effect, other: &Effect) -> bool {
    match (one, other) {
        (Effect::Delete(one), Effect::Delete(other)) => one == other,
        (Effect::DeleteAll(one), Effect::DeleteAll(other)) => {
            one.is_none() || other.is_none() || one == other
        }
        (Effect::Configure(one), Effect::Configure(other)) => one == other,
        (Effect::Destroy, Effect::Destroy | Effect::DeleteAll(_))
        | (Effect::DeleteAll(_), Effect::Destroy) => true,
        _ => false,
    }
}
