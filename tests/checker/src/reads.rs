//! Reads: whether an answer is what the state says at the position that the answer names.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::rc::Rc;
use std::time::Duration;

use dormouse_protocol::data::{
    ChangesReply, ChangesRequest, DeleteAllReply, DeleteReply, GetAllReply, GetAllRequest, GetReply,
    GetRequest, InfoReply, KeysReply, KeysRequest,
};
use dormouse_protocol::{Change, Message, Position, Rev, Seq};

use crate::history::{Answer, Op};
use crate::model::Step;
use crate::replay::Replay;
use crate::slots::is_same;
use crate::verdict::{Property, Source};

impl Replay<'_, '_> {
    /// Holds an answer against the state, which is now at the position that the answer names.
    pub(crate) fn observe(&mut self, call: usize) {
        let Some((answer, at)) = self.history.calls[call].answer() else { return };
        let read = Read { source: Source::Call(call), at };
        match (&self.history.calls[call].op, answer) {
            (Op::Get(request), Answer::Get(reply)) => self.get(read, request, reply),
            (Op::GetAll(request), Answer::GetAll(reply)) => self.page(read, request, reply),
            (Op::Keys(request), Answer::Keys(reply)) => self.key_page(read, request, reply),
            (Op::Changes(request), Answer::Changes(reply)) => self.changes(read, request, reply),
            (Op::Info, Answer::Info(reply)) => self.info(read, reply),
            (Op::Flush, Answer::Flush(reply)) => self.is_durable(reply.position, read.source),
            (Op::Delete(request), Answer::Delete(DeleteReply { position, seqs, .. })) if seqs.is_empty() => {
                let named = request.keys.iter().filter_map(|key| self.model.under(key));
                let named = named.chain(request.seqs.iter().filter_map(|seq| self.model.message(*seq)));
                let there: Vec<Rc<Message>> = named.cloned().collect();
                for message in there {
                    self.absent(read, *position, &message);
                }
            }
            (Op::DeleteAll(request), Answer::DeleteAll(DeleteAllReply { position, count: 0, .. }))
                if request.keep_last.unwrap_or(0) == 0 =>
            {
                let end = request.end_seq.unwrap_or(Seq::new(u64::MAX));
                let there: Vec<_> = self.model.range(Seq::new(0), end).cloned().collect();
                for message in there {
                    self.absent(read, *position, &message);
                }
            }
            _ => return,
        }
        self.findings.coverage.add(match answer {
            Answer::Get(_) => "gets",
            Answer::GetAll(_) => "pages of messages",
            Answer::Keys(_) => "pages of keys",
            Answer::Changes(reply) if reply.resync => "resyncs",
            Answer::Changes(_) => "pages of changes",
            Answer::Info(_) => "infos",
            Answer::Flush(_) => "flushes",
            _ => "removals of nothing",
        });
    }

    /// A message that should be there was not shown.
    fn absent(&mut self, read: Read, position: Position, message: &Rc<Message>) {
        if self.may_be_gone(message, read.at) {
            let seq = message.seq;
            self.learn(|model| {
                model.remove(seq);
            });
            return;
        }
        let sentence =
            format!("at {position} {} is missing, which was written at {}", name(message), place(message));
        self.complain(Property::ReadsTheState, sentence, read.source, self.source_of(message));
    }

    /// A message was shown that should not be there, or not so.
    fn surplus(&mut self, read: Read, position: Position, shown: &Message) {
        // What its writer was told of is known by its place; what nobody told of, nobody could have applied.
        let there = self.current(shown.seq).or_else(|| {
            let key = shown.key.as_deref()?;
            self.model.under(key).cloned()
        });
        if self.is_vague && there.is_none() {
            let message = Rc::new(shown.clone());
            self.learn(|model| model.write(&message));
            return;
        }
        let (sentence, other) = match &there {
            Some(there) => (
                format!(
                    "at {position} {} of {} was shown, and {} of {} is there",
                    name(shown),
                    place(shown),
                    name(there),
                    place(there)
                ),
                self.source_of(there),
            ),
            None => (
                format!("at {position} {} of {} was shown, which is not there", name(shown), place(shown)),
                self.who_changed(shown.seq),
            ),
        };
        let wrote = self.source_of(shown);
        self.findings.wrong(
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
            (_, Some(shown)) => self.surplus(read, position, shown),
            (Some(expected), None) => self.absent(read, position, &expected),
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
            self.surplus(read, reply.position, message);
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
            self.findings.wrong(Property::ReadsTheState, sentence, [read.source]);
        }
        let mut shown: BTreeMap<Seq, &Message> =
            reply.messages.iter().map(|message| (message.seq, message)).collect();
        for message in expected {
            let found = shown.remove(&message.seq);
            self.compare(read, reply.position, Some(message), found);
        }
        for message in shown.into_values() {
            self.surplus(read, reply.position, message);
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
                self.absent(read, reply.position, &message);
            }
        }
        for key in shown {
            if !self.may_be_more() {
                let sentence = format!("at {} the key {key:?} was shown, which is not there", reply.position);
                let cell = self.model.keys.get(key).and_then(|cell| self.told(cell.since()?));
                self.complain(Property::ReadsTheState, sentence, read.source, cell);
            }
        }
    }

    fn info(&mut self, read: Read, reply: &InfoReply) {
        let in_bucket = Position { rev: reply.bucket_rev, ..reply.position };
        self.is_durable(in_bucket, read.source);
        if self.is_vague || self.path.iter().any(|step| step.is_hole) {
            return;
        }
        let seq = |message: Option<&Rc<Message>>| message.map(|message| message.seq);
        let first = seq(self.model.messages().next());
        let last = seq(self.model.messages().next_back());
        let found = (reply.first_seq, reply.last_seq, reply.next_seq, reply.count, reply.bytes);
        let expected = (first, last, self.model.next_seq().0, self.model.count, self.model.bytes);
        if found != expected {
            let sentence = format!(
                "info at {} says (first, last, next, count, bytes) {found:?}, and it is {expected:?}",
                reply.position
            );
            self.complain(Property::ReadsTheState, sentence, read.source, None);
        }
        if reply.config != *self.model.config() {
            let sentence = format!("info at {} shows another configuration than was set", reply.position);
            self.complain(Property::ReadsTheState, sentence, read.source, None);
        }
    }

    fn changes(&mut self, read: Read, request: &ChangesRequest, reply: &ChangesReply) {
        // Whoever is told to read everything reads everything.
        if reply.resync || self.is_vague {
            return;
        }
        let after = request.after;
        let is_known = self.terms.all.contains_key(&after.term);
        if after.rev > Rev::new(0) && is_known && !self.terms.leads(after, reply.position) {
            let sentence = format!("changes lead from {after} to {}, where no way leads", reply.position);
            let between = self.terms.all.range(after.term.next()..).next();
            let source = between.and_then(|(_, state)| state.source);
            self.complain(Property::ChangesLeadThere, sentence, read.source, source);
            return;
        }
        let revs: Vec<Rev> = reply.changes.iter().map(Change::rev).collect();
        let outside = revs.iter().any(|rev| *rev <= after.rev || *rev > reply.position.rev);
        if outside || revs.windows(2).any(|two| two[0] > two[1]) {
            let sentence = format!("changes from {after} to {} tell of {revs:?}", reply.position);
            self.complain(Property::ChangesLeadThere, sentence, read.source, None);
        }
        // A page that is not the last leaves out what the following ones tell better.
        if !reply.more {
            let begin = self.path.partition_point(|step| step.position.rev <= after.rev);
            let since = if begin == 0 { 0 } else { self.path[begin - 1].step };
            let in_hole = self.path[begin..].iter().any(|step| step.is_hole);
            self.fold(read, request, reply, since, in_hole);
        }
    }

    /// Applies the changes to what was there before, and compares with what is there now.
    fn fold(
        &mut self,
        read: Read,
        request: &ChangesRequest,
        reply: &ChangesReply,
        since: Step,
        in_hole: bool,
    ) {
        let mut told: BTreeMap<Seq, Option<&Message>> = BTreeMap::new();
        let mut under: BTreeMap<&str, Seq> = BTreeMap::new();
        for change in &reply.changes {
            match change {
                Change::Set(set) => {
                    let message = &set.message;
                    if let Some(key) = message.key.as_deref() {
                        let before = self.model.under_at(key, since).map(|message| message.seq);
                        for seq in before.into_iter().chain(under.insert(key, message.seq)) {
                            told.insert(seq, None);
                        }
                    }
                    told.insert(message.seq, Some(message));
                }
                Change::Delete(delete) => {
                    for removed in &delete.removed {
                        told.insert(removed.seq, None);
                        if let Some(key) = removed.key.as_deref() {
                            let before = self.model.under_at(key, since).map(|message| message.seq);
                            for seq in before.into_iter().chain(under.remove(key)) {
                                told.insert(seq, None);
                            }
                        }
                    }
                }
                Change::DeleteAll(delete) => {
                    let gone: Vec<Seq> = self.model.seqs.range(..=delete.end_seq).map(|(s, _)| *s).collect();
                    for seq in gone {
                        told.insert(seq, None);
                    }
                }
                Change::Configure(configure) => {
                    if configure.config != *self.model.config() && !in_hole {
                        let sentence = format!(
                            "changes to {} tell of another configuration than was set",
                            reply.position
                        );
                        self.complain(Property::ChangesLeadThere, sentence, read.source, None);
                    }
                }
            }
        }
        let (after, position) = (request.after, reply.position);
        let touched = self.model.seqs.iter().filter(|(_, cell)| cell.since().is_some_and(|at| at > since));
        let mut seqs: BTreeSet<Seq> = touched.map(|(seq, _)| *seq).collect();
        seqs.extend(told.keys());
        for seq in seqs {
            let folded = match told.get(&seq) {
                Some(told) => told.cloned(),
                None => self.model.message_at(seq, since).map(|message| (**message).clone()),
            };
            let there = self.current(seq);
            let agrees = match (&folded, &there) {
                (Some(folded), Some(there)) => is_same(folded, there),
                (None, None) => true,
                _ => false,
            };
            if agrees {
                continue;
            }
            if let (None, Some(there)) = (&folded, &there)
                && self.may_be_gone(there, read.at)
            {
                self.learn(|model| {
                    model.remove(seq);
                });
                continue;
            }
            // Of what only a reader told that it is gone nobody knows since when.
            let since_when = self.model.seqs.get(&seq).and_then(|cell| self.told(cell.since()?));
            if there.is_none() && since_when.is_none() {
                continue;
            }
            let say = |message: Option<String>| message.unwrap_or_else(|| "nothing".to_owned());
            let sentence = format!(
                "who was at {after} and applies the changes to {position} has {} at {seq}, where there is {}",
                say(folded.as_ref().map(|message| format!("{} of {}", name(message), place(message)))),
                say(there.as_deref().map(|message| format!("{} of {}", name(message), place(message)))),
            );
            let wrote = there.and_then(|there| self.source_of(&there)).or_else(|| self.who_changed(seq));
            self.complain(Property::ChangesLeadThere, sentence, read.source, wrote);
            return;
        }
    }
}

/// Who read, and when the answer came.
#[derive(Clone, Copy)]
struct Read {
    source: Source,
    at: Duration,
}

fn place(message: &Message) -> Position {
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
