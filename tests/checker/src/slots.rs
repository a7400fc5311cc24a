//! What every answer, event and message says about the places of the history: which change stands at which (term, rev).

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use dormouse_protocol::data::{SetItem, SetOutcome, SetResult};
use dormouse_protocol::message::{SetChange, SubjectConfig};
use dormouse_protocol::{Change, Headers, Message, Position, Seq};

use crate::history::{Answer, Call, FeedTells, Heard, Op, SubjectHistory};
use crate::operations::{Fate, ItemRef, Operations};
use crate::verdict::{Findings, Property, Source};

/// A message that was written, and by which set.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    pub(crate) message: Rc<Message>,
    pub(crate) item: Option<ItemRef>,
}

/// What stands at one place.
#[derive(Debug, Clone)]
pub(crate) enum Effect {
    Sets(BTreeMap<Seq, Written>),
    /// Messages are removed; which ones, as far as anybody was told.
    Delete(Vec<Seq>),
    /// All up to a seq; `None`: as the operation says.
    DeleteAll(Option<Seq>),
    Configure(SubjectConfig),
    Destroy,
}

#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) op: Option<usize>,
    pub(crate) effect: Effect,
    /// The first who told of it.
    pub(crate) source: Source,
    /// When it was first told of.
    pub(crate) witnessed: Duration,
    /// Who announced it.
    pub(crate) event: Option<usize>,
}

/// All places of which anything is known.
pub(crate) struct Slots<'h> {
    pub(crate) all: BTreeMap<Position, Slot>,
    /// Where each set was found, and by whom.
    pub(crate) places: BTreeMap<ItemRef, Vec<(Position, Source)>>,
    calls: &'h [Call],
}

impl<'h> Slots<'h> {
    pub(crate) fn gather(
        history: &'h SubjectHistory,
        ops: &Operations<'h>,
        findings: &mut Findings<'_>,
    ) -> Self {
        let SubjectHistory { calls, events, .. } = history;
        let mut slots = Self { all: BTreeMap::new(), places: BTreeMap::new(), calls };
        for (place, call) in calls.iter().enumerate() {
            if let (Some((answer, at)), Some(op)) = (call.answer(), ops.of_call[place]) {
                slots.acknowledged(op, answer, (Source::Call(place), at), ops, findings);
            }
        }
        for (place, heard) in events.iter().enumerate() {
            slots.announced(place, heard, ops, findings);
        }
        for (place, call) in calls.iter().enumerate() {
            let Some((answer, at)) = call.answer() else { continue };
            let source = (Source::Call(place), at);
            match answer {
                Answer::Get(reply) => slots.shown(&reply.messages, source, ops, findings),
                Answer::GetAll(reply) => slots.shown(&reply.messages, source, ops, findings),
                Answer::Changes(reply) => {
                    for change in &reply.changes {
                        if let Change::Set(SetChange { message, .. }) = change {
                            slots.message(message, source, ops, findings);
                        }
                    }
                }
                _ => {}
            }
        }
        for (place, feed) in history.feeds.iter().enumerate() {
            for told in &feed.told {
                if let FeedTells::Set { message, .. } = &told.what {
                    slots.message(message, (Source::Feed(place), told.at), ops, findings);
                }
            }
        }
        slots.complete(ops);
        slots
    }

    fn acknowledged(
        &mut self,
        op: usize,
        answer: &Answer,
        source: (Source, Duration),
        ops: &Operations<'h>,
        findings: &mut Findings<'_>,
    ) {
        match (ops.all[op].op, answer) {
            (Op::Set(request), Answer::Set(reply)) => {
                for (place, (item, outcome)) in request.sets.iter().zip(&reply.results).enumerate() {
                    let SetOutcome::Ok(result) = outcome else { continue };
                    // It may be another request's set that had the same message id.
                    if result.duplicate && item.msg_id.as_deref().is_some_and(|id| ops.is_shared(id)) {
                        continue;
                    }
                    let position = Position { term: result.term, rev: result.rev };
                    let item_ref = ItemRef { op, place };
                    let message = Rc::new(written(item, result));
                    let written = Written { message, item: Some(item_ref) };
                    self.set(position, Some(op), written, source, findings);
                }
            }
            (_, Answer::Delete(reply)) if !reply.seqs.is_empty() => {
                self.put(reply.position, Some(op), Effect::Delete(reply.seqs.clone()), source, findings);
            }
            (_, Answer::DeleteAll(reply)) if reply.count > 0 => {
                self.put(reply.position, Some(op), Effect::DeleteAll(None), source, findings);
            }
            (Op::Configure(request), Answer::Configure(reply)) => {
                let effect = Effect::Configure(request.config.clone());
                self.put(reply.position, Some(op), effect, source, findings);
            }
            (_, Answer::Destroy(reply)) => {
                self.put(reply.position, Some(op), Effect::Destroy, source, findings);
            }
            _ => {}
        }
    }

    fn announced(
        &mut self,
        place: usize,
        heard: &'h Heard,
        ops: &Operations<'h>,
        findings: &mut Findings<'_>,
    ) {
        let source = (Source::Event(place), heard.at);
        for change in &heard.event.changes {
            let position = Position { term: heard.event.term, rev: change.rev() };
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
                slot.event = Some(place);
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

    /// Somebody was shown this message.
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
                findings.wrong(
                    Property::OneOwner,
                    format!("{position} wrote two different messages at {}", message.seq),
                    first.into_iter().chain([source.0]),
                );
            }
            if let Some(slot) = self.all.get_mut(&position) {
                slot.witnessed = slot.witnessed.min(source.1);
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

    /// Who wrote a message of which only its reader told. `None`: nobody can have.
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
            // Whoever has asked before without an answer may have been granted it then, lost it, and been refused it now.
            let asked_before = operation.calls.iter().any(|&call| self.calls[call].is_open());
            let refused = operation.fate == Fate::Refused
                || !asked_before && operation.refusal_of(self.calls, item.place).is_some();
            !refused && operation.invoked <= source.1 && of_slot.is_none_or(|op| op == item.op)
        };
        let elsewhere = |item: &&ItemRef| self.places.get(item).is_none_or(Vec::is_empty);
        let found = writers.iter().filter(may).find(elsewhere).or_else(|| writers.iter().find(may));
        if let Some(&found) = found {
            return Some(Some(found));
        }
        let told = std::iter::once(source.0);
        let (property, sentence) = match writers.first() {
            None => (Property::NothingFromNothing, format!("nobody wrote the message at {position}")),
            Some(item) if of_slot.is_some_and(|op| op != item.op) => {
                (Property::OneOwner, format!("{position} belongs to another operation"))
            }
            Some(item) if ops.all[item.op].invoked > source.1 => {
                (Property::NothingFromNothing, format!("{position} was seen before it was asked for"))
            }
            Some(_) => (Property::RefusedIsNotDone, format!("{position} was refused, and is there")),
        };
        let asked = writers.iter().flat_map(|item| ops.sources(item.op));
        let slot = self.all.get(&position).map(|slot| slot.source);
        findings.wrong(property, sentence, told.chain(asked).chain(slot));
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
            let places = self.places.entry(item).or_default();
            if places.iter().all(|(known, _)| *known != position) {
                places.push((position, source.0));
            }
        }
        let seq = written.message.seq;
        match self.all.get_mut(&position) {
            Some(Slot { op: known, effect: Effect::Sets(sets), source: first, witnessed, .. })
                if known.is_none() || op.is_none() || *known == op =>
            {
                if let Some(other) = sets.get(&seq)
                    && !is_same(&written.message, &other.message)
                {
                    let sentence = format!("{position} wrote two different messages at {seq}");
                    findings.wrong(Property::OneOwner, sentence, [*first, source.0]);
                    return;
                }
                *known = known.or(op);
                *witnessed = source.1.min(*witnessed);
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
            self.all.insert(position, Slot { op, effect, source, witnessed: at, event: None });
            return;
        };
        slot.witnessed = slot.witnessed.min(at);
        if let (Effect::DeleteAll(end @ None), Effect::DeleteAll(told)) = (&mut slot.effect, &effect) {
            *end = *told;
        }
        let same_op = slot.op.is_none() || op.is_none() || slot.op == op;
        if !same_op || !is_same_effect(&slot.effect, &effect) {
            let sentence = format!("{position} holds two different changes");
            findings.wrong(Property::OneOwner, sentence, [slot.source, source]);
        }
    }

    /// An entry is there as a whole or not at all: what is known of one set of a request tells where the others are.
    fn complete(&mut self, ops: &Operations<'h>) {
        // Of sets on their own, some may have been refused where there are limits.
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
                // All or none: where one is there, what the others expected was so.
                !decided && (item.expect.is_none() || request.atomic) && item.msg_id.is_none()
            };
            if request.sets.len() < 2 || !request.sets.iter().all(plain) {
                continue;
            }
            let places = request.sets.len();
            let Some(first) = (0..places).find_map(|place| self.seen(ItemRef { op, place })) else {
                continue;
            };
            for (place, item) in request.sets.iter().enumerate() {
                let item_ref = ItemRef { op, place };
                if self.places.get(&item_ref).is_some_and(|places| !places.is_empty()) {
                    continue;
                }
                let known = if request.atomic || !is_limited {
                    Some(first.clone())
                } else {
                    self.before(item_ref, places)
                };
                let Some(Seen { place: known, message, source, at }) = known else { continue };
                let away = |number: u64| (number + place as u64).saturating_sub(known as u64);
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
                self.places.entry(item_ref).or_default().push((position, source));
                let slot = self.all.entry(position).or_insert_with(|| Slot {
                    op: Some(op),
                    effect: Effect::Sets(BTreeMap::new()),
                    source,
                    witnessed: at,
                    event: None,
                });
                if let Effect::Sets(sets) = &mut slot.effect {
                    sets.entry(result.seq).or_insert(written);
                }
            }
        }
    }

    /// What is known of one of the sets of a request.
    fn seen(&self, item: ItemRef) -> Option<Seen> {
        let (position, source) = *self.places.get(&item)?.first()?;
        let slot = self.all.get(&position)?;
        let Effect::Sets(sets) = &slot.effect else { return None };
        let written = sets.values().find(|written| written.item == Some(item))?;
        Some(Seen { place: item.place, message: Rc::clone(&written.message), source, at: slot.witnessed })
    }

    /// The set before this one that was seen, where the next one that was seen stands as far behind it as it was asked for:
    /// then none between them was refused.
    fn before(&self, item: ItemRef, places: usize) -> Option<Seen> {
        let seen = |place: usize| self.seen(ItemRef { place, ..item });
        let before = (0..item.place).rev().find_map(seen)?;
        let after = (item.place + 1..places).find_map(seen)?;
        let apart = after.message.rev.get().checked_sub(before.message.rev.get())?;
        let none_between = apart == (after.place - before.place) as u64;
        (before.message.term == after.message.term && none_between).then_some(before)
    }
}

/// One of the sets of a request, as it was seen.
#[derive(Clone)]
struct Seen {
    place: usize,
    message: Rc<Message>,
    source: Source,
    /// When.
    at: Duration,
}

/// The message that a set wrote which was answered so.
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

/// Whether what was shown is what is known.
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
