//! Reads: checks that each reply equals the state at the position that it names.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::rc::Rc;
use std::time::Duration;

use dormouse_protocol::data::{
    ChangesReply, ChangesRequest, DeleteAllReply, DeleteReply, GetAllReply, GetAllRequest, GetReply,
    GetRequest, InfoReply, KeysReply, KeysRequest,
};
use dormouse_protocol::{Change, Message, Position, Rev, Seq};

use crate::history::{Op, OpResult};
use crate::model::Step;
use crate::replay::Replay;
use crate::slots::is_same;
use crate::verdict::{Property, Source};

impl Replay<'_, '_> {
    /// Compares a reply with the state at the position that the reply names.
    pub(crate) fn observe(&mut self, call: usize) {
        let Some((answer, at)) = self.history.calls[call].answer() else { return };
        let read = Read { source: Source::Call(call), at };
        match (&self.history.calls[call].op, answer) {
            (Op::Get(request), OpResult::Get(reply)) => self.get(read, request, reply),
            (Op::GetAll(request), OpResult::GetAll(reply)) => self.page(read, request, reply),
            (Op::Keys(request), OpResult::Keys(reply)) => self.key_page(read, request, reply),
            (Op::Changes(request), OpResult::Changes(reply)) => self.changes(read, request, reply),
            (Op::Info, OpResult::Info(reply)) => self.info(read, reply),
            (Op::Flush, OpResult::Flush(reply)) => self.is_durable(reply.position, read.source),
            (Op::Delete(request), OpResult::Delete(DeleteReply { position, seqs, .. }))
                if seqs.is_empty() =>
            {
                let named = request.keys.iter().filter_map(|key| self.model.under(key));
                let named = named.chain(request.seqs.iter().filter_map(|seq| self.model.message(*seq)));
                let there: Vec<Rc<Message>> = named.cloned().collect();
                for message in there {
                    self.check_missing(read, *position, &message);
                }
            }
            (Op::DeleteAll(request), OpResult::DeleteAll(DeleteAllReply { position, count: 0, .. }))
                if request.keep_last.unwrap_or(0) == 0 =>
            {
                let end = request.end_seq.unwrap_or(Seq::new(u64::MAX));
                let there: Vec<_> = self.model.range(Seq::new(0), end).cloned().collect();
                for message in there {
                    self.check_missing(read, *position, &message);
                }
            }
            _ => return,
        }
        self.findings.coverage.add(match answer {
            OpResult::Get(_) => "gets",
            OpResult::GetAll(_) => "pages of messages",
            OpResult::Keys(_) => "pages of keys",
            OpResult::Changes(reply) if reply.resync => "resyncs",
            OpResult::Changes(_) => "pages of changes",
            OpResult::Info(_) => "infos",
            OpResult::Flush(_) => "flushes",
            _ => "empty removals",
        });
    }

    /// Handles a message of the state that a reply does not show.
    fn check_missing(&mut self, read: Read, position: Position, message: &Rc<Message>) {
        if self.may_be_gone(message, read.at) {
            let seq = message.seq;
            self.correct_model(|model| {
                model.remove(seq);
            });
            return;
        }
        let sentence = format!(
            "at {position}, {} is missing; it was written at {}",
            name(message),
            position_of(message)
        );
        self.report_violation(Property::ReadsTheState, sentence, read.source, self.source_of(message));
    }

    /// Handles a shown message that differs from the state.
    fn check_unexpected(&mut self, read: Read, position: Position, shown: &Message) {
        // An acknowledged message is known by its position. A message without a report cannot be in the model.
        let there = self.current(shown.seq).or_else(|| {
            let key = shown.key.as_deref()?;
            self.model.under(key).cloned()
        });
        if self.is_uncertain && there.is_none() {
            let message = Rc::new(shown.clone());
            self.correct_model(|model| model.write(&message));
            return;
        }
        let (sentence, other) = match &there {
            Some(there) => (
                format!(
                    "at {position}, {} of {} was shown, but the state has {} of {}",
                    name(shown),
                    position_of(shown),
                    name(there),
                    position_of(there)
                ),
                self.source_of(there),
            ),
            None => (
                format!(
                    "at {position}, {} of {} was shown, but the state does not have it",
                    name(shown),
                    position_of(shown)
                ),
                self.last_change_at(shown.seq),
            ),
        };
        let wrote = self.source_of(shown);
        self.findings.report(
            Property::ReadsTheState,
            sentence,
            std::iter::once(read.source).chain(wrote).chain(other),
        );
    }

    fn compare(
        &mut self,
        read: Read,
        position: Position,
        expected: Option<Rc<Message>>,
        shown: Option<&Message>,
    ) {
        match (expected, shown) {
            (Some(expected), Some(shown)) if is_same(shown, &expected) => {}
            (_, Some(shown)) => self.check_unexpected(read, position, shown),
            (Some(expected), None) => self.check_missing(read, position, &expected),
            (None, None) => {}
        }
    }

    fn get(&mut self, read: Read, request: &GetRequest, reply: &GetReply) {
        let mut shown = reply.messages.iter().peekable();
        if let Some(seq) = request.seq {
            self.compare(read, reply.position, self.current(seq), shown.next());
        } else if let Some(seqs) = &request.seqs {
            for seq in seqs.iter().take(usize::try_from(reply.answered).unwrap_or(usize::MAX)) {
                let found = shown.next_if(|message| message.seq == *seq);
                self.compare(read, reply.position, self.current(*seq), found);
            }
        } else {
            let keys = request.key.iter().chain(request.keys.iter().flatten());
            let answered = if request.key.is_some() { 1 } else { reply.answered };
            for key in keys.take(usize::try_from(answered).unwrap_or(usize::MAX)) {
                let found = shown.next_if(|message| message.key.as_ref() == Some(key));
                self.compare(read, reply.position, self.model.under(key).cloned(), found);
            }
        }
        for message in shown {
            self.check_unexpected(read, reply.position, message);
        }
    }

    fn page(&mut self, read: Read, request: &GetAllRequest, reply: &GetAllReply) {
        let mut from = request.start_seq.unwrap_or(Seq::new(0));
        let mut to = request.end_seq.unwrap_or(Seq::new(u64::MAX));
        match (reply.cursor, request.reverse) {
            (Some(cursor), false) => to = Seq::new(cursor.get().saturating_sub(1)).min(to),
            (Some(cursor), true) => from = cursor.next().max(from),
            (None, _) => {}
        }
        let prefix = request.key_prefix.as_deref();
        let is_wanted = |message: &&Rc<Message>| {
            prefix.is_none_or(|prefix| message.key.as_ref().is_some_and(|key| key.starts_with(prefix)))
        };
        let expected: Vec<Rc<Message>> = if from > to {
            Vec::new()
        } else {
            self.model.range(from, to).filter(is_wanted).cloned().collect()
        };
        let ordered = reply.messages.windows(2).all(|two| (two[0].seq < two[1].seq) != request.reverse);
        if !ordered {
            let sentence = format!("the page at {} is not in order", reply.position);
            self.findings.report(Property::ReadsTheState, sentence, [read.source]);
        }
        let mut shown: BTreeMap<Seq, &Message> =
            reply.messages.iter().map(|message| (message.seq, message)).collect();
        for message in expected {
            let found = shown.remove(&message.seq);
            self.compare(read, reply.position, Some(message), found);
        }
        for message in shown.into_values() {
            self.check_unexpected(read, reply.position, message);
        }
    }

    fn key_page(&mut self, read: Read, request: &KeysRequest, reply: &KeysReply) {
        let from = request.cursor.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let mut shown: BTreeSet<&String> = reply.keys.iter().collect();
        let prefix = request.prefix.as_deref().unwrap_or_default();
        let expected: Vec<String> = self
            .model
            .keys
            .range::<String, _>((from, Bound::Unbounded))
            .filter(|(key, cell)| key.starts_with(prefix) && cell.now().copied().flatten().is_some())
            .map(|(key, _)| key.clone())
            .take_while(|key| reply.cursor.as_ref().is_none_or(|last| key <= last))
            .collect();
        for key in expected {
            if !shown.remove(&key)
                && let Some(message) = self.model.under(&key).cloned()
            {
                self.check_missing(read, reply.position, &message);
            }
        }
        for key in shown {
            if !self.may_be_more() {
                let sentence = format!(
                    "at {}, the key {key:?} was shown, but the state does not have it",
                    reply.position
                );
                let cell = self.model.keys.get(key).and_then(|cell| self.source_of_step(cell.since()?));
                self.report_violation(Property::ReadsTheState, sentence, read.source, cell);
            }
        }
    }

    fn info(&mut self, read: Read, reply: &InfoReply) {
        let in_bucket = Position { rev: reply.bucket_rev, ..reply.position };
        self.is_durable(in_bucket, read.source);
        if self.is_uncertain || self.path.iter().any(|step| step.is_gap) {
            return;
        }
        let seq = |message: Option<&Rc<Message>>| message.map(|message| message.seq);
        let first = seq(self.model.messages().next());
        let last = seq(self.model.messages().next_back());
        let found = (reply.first_seq, reply.last_seq, reply.next_seq, reply.count, reply.bytes);
        let expected = (first, last, self.model.next_seq().0, self.model.count, self.model.bytes);
        if found != expected {
            let sentence = format!(
                "info at {} shows (first, last, next, count, bytes) {found:?}, but it is {expected:?}",
                reply.position
            );
            self.report_violation(Property::ReadsTheState, sentence, read.source, None);
        }
        if reply.config != *self.model.config() {
            let sentence = format!("info at {} shows a configuration that was not set", reply.position);
            self.report_violation(Property::ReadsTheState, sentence, read.source, None);
        }
    }

    fn changes(&mut self, read: Read, request: &ChangesRequest, reply: &ChangesReply) {
        // A `resync` reply makes the client read everything, which is always correct.
        if reply.resync || self.is_uncertain {
            return;
        }
        let after = request.after;
        let is_known = self.terms.all.contains_key(&after.term);
        if after.rev > Rev::new(0) && is_known && !self.terms.leads(after, reply.position) {
            let sentence = format!("changes lead from {after} to {}, but no path does", reply.position);
            let between = self.terms.all.range(after.term.next()..).next();
            let source = between.and_then(|(_, state)| state.source);
            self.report_violation(Property::ChangesLeadThere, sentence, read.source, source);
            return;
        }
        let revs: Vec<Rev> = reply.changes.iter().map(Change::rev).collect();
        let outside = revs.iter().any(|rev| *rev <= after.rev || *rev > reply.position.rev);
        if outside || revs.windows(2).any(|two| two[0] > two[1]) {
            let sentence = format!("changes from {after} to {} contain {revs:?}", reply.position);
            self.report_violation(Property::ChangesLeadThere, sentence, read.source, None);
        }
        // A page that is not the last omits changes that later pages replace.
        if !reply.more {
            let begin = self.path.partition_point(|step| step.position.rev <= after.rev);
            let since = if begin == 0 { 0 } else { self.path[begin - 1].step };
            let in_gap = self.path[begin..].iter().any(|step| step.is_gap);
            self.apply_changes(read, request, reply, since, in_gap);
        }
    }

    /// Applies the changes to the earlier state, and compares the result with the current state.
    fn apply_changes(
        &mut self,
        read: Read,
        request: &ChangesRequest,
        reply: &ChangesReply,
        since: Step,
        in_gap: bool,
    ) {
        let mut changed: BTreeMap<Seq, Option<&Message>> = BTreeMap::new();
        let mut under: BTreeMap<&str, Seq> = BTreeMap::new();
        for change in &reply.changes {
            match change {
                Change::Set(set) => {
                    let message = &set.message;
                    if let Some(key) = message.key.as_deref() {
                        let before = self.model.under_at(key, since).map(|message| message.seq);
                        for seq in before.into_iter().chain(under.insert(key, message.seq)) {
                            changed.insert(seq, None);
                        }
                    }
                    changed.insert(message.seq, Some(message));
                }
                Change::Delete(delete) => {
                    for removed in &delete.removed {
                        changed.insert(removed.seq, None);
                        if let Some(key) = removed.key.as_deref() {
                            let before = self.model.under_at(key, since).map(|message| message.seq);
                            for seq in before.into_iter().chain(under.remove(key)) {
                                changed.insert(seq, None);
                            }
                        }
                    }
                }
                Change::DeleteAll(delete) => {
                    let gone: Vec<Seq> = self.model.seqs.range(..=delete.end_seq).map(|(s, _)| *s).collect();
                    for seq in gone {
                        changed.insert(seq, None);
                    }
                }
                Change::Configure(configure) => {
                    if configure.config != *self.model.config() && !in_gap {
                        let sentence =
                            format!("changes to {} contain a configuration that was not set", reply.position);
                        self.report_violation(Property::ChangesLeadThere, sentence, read.source, None);
                    }
                }
            }
        }
        let (after, position) = (request.after, reply.position);
        let touched = self.model.seqs.iter().filter(|(_, cell)| cell.since().is_some_and(|at| at > since));
        let mut seqs: BTreeSet<Seq> = touched.map(|(seq, _)| *seq).collect();
        seqs.extend(changed.keys());
        for seq in seqs {
            let applied = match changed.get(&seq) {
                Some(changed) => changed.cloned(),
                None => self.model.message_at(seq, since).map(|message| (**message).clone()),
            };
            let there = self.current(seq);
            let agrees = match (&applied, &there) {
                (Some(applied), Some(there)) => is_same(applied, there),
                (None, None) => true,
                _ => false,
            };
            if agrees {
                continue;
            }
            if let (None, Some(there)) = (&applied, &there)
                && self.may_be_gone(there, read.at)
            {
                self.correct_model(|model| {
                    model.remove(seq);
                });
                continue;
            }
            // If only a reader showed that a message is gone, the step of its removal is unknown.
            let changed_by = self.model.seqs.get(&seq).and_then(|cell| self.source_of_step(cell.since()?));
            if there.is_none() && changed_by.is_none() {
                continue;
            }
            let say = |message: Option<String>| message.unwrap_or_else(|| "no message".to_owned());
            let sentence = format!(
                "a reader at {after} that applies the changes to {position} has {} at {seq}, but the subject has {}",
                say(applied.as_ref().map(|message| format!("{} of {}", name(message), position_of(message)))),
                say(there.as_deref().map(|message| format!("{} of {}", name(message), position_of(message)))),
            );
            let wrote = there.and_then(|there| self.source_of(&there)).or_else(|| self.last_change_at(seq));
            self.report_violation(Property::ChangesLeadThere, sentence, read.source, wrote);
            return;
        }
    }
}

/// The source of a reply, and its time.
#[derive(Clone, Copy)]
struct Read {
    source: Source,
    at: Duration,
}

fn position_of(message: &Message) -> Position {
    Position { term: message.term, rev: message.rev }
}

fn name(message: &Message) -> String {
    let value = message.value.as_ref().map_or_else(
        || "null".to_owned(),
        |value| format!("{:?}", String::from_utf8_lossy(&value[..value.len().min(32)])),
    );
    match &message.key {
        Some(key) => format!("{key:?}={value} at {}", message.seq),
        None => format!("{value} at {}", message.seq),
    }
}
