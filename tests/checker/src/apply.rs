//! One change at a time: whether it follows from the state, and what it makes of it.

use std::rc::Rc;

use dormouse_protocol::data::{DeleteAllRequest, Expect};
use dormouse_protocol::{Change, Message, MessageId, Position, Seq};

use crate::history::{Answer, Op};
use crate::operations::{Fate, ItemRef};
use crate::replay::Replay;
use crate::slots::Slot;
use crate::verdict::{Property, Source};

impl Replay<'_, '_> {
    /// `before` is the last message and the holder of the key as they were before the whole change.
    pub(crate) fn write(
        &mut self,
        position: Position,
        slot: &Slot,
        message: &Rc<Message>,
        item: Option<ItemRef>,
        before: (Option<MessageId>, Option<MessageId>),
    ) {
        let there = self.current(message.seq);
        let (next, is_certain) = self.model.next_seq();
        let asked = item.and_then(|item| self.ops.item(item));
        let given = asked.and_then(|asked| asked.seq);
        if let Some(there) = &there {
            if there.key != message.key || (asked.is_some() && given.is_none()) {
                let sentence = format!("{} was handed out a second time, at {position}", message.seq);
                self.complain(Property::OneName, sentence, slot.source, self.source_of(there));
            }
        } else if message.seq < next && !self.is_vague {
            let gone = self.model.seqs.contains_key(&message.seq);
            let sentence = format!("{} was handed out a second time, at {position}", message.seq);
            if gone || is_certain {
                self.complain(Property::OneName, sentence, slot.source, None);
            }
        } else if message.seq > next && given.is_none() && asked.is_some() && is_certain && !self.is_vague {
            let sentence = format!("{position} wrote {}, and {next} was next", message.seq);
            self.complain(Property::OneName, sentence, slot.source, None);
        }
        if let Some(given) = given
            && given != message.seq
        {
            let sentence = format!("{given} was asked for, and {position} wrote {}", message.seq);
            self.complain(Property::ReadsTheState, sentence, slot.source, None);
        }
        if let Some(expect) = asked.and_then(|asked| asked.expect) {
            self.expected(position, slot, message, expect, before);
        }
        self.replaced_rightly(position, slot, message, there.is_some());
        self.model.write(message);
    }

    fn expected(
        &mut self,
        position: Position,
        slot: &Slot,
        message: &Message,
        expect: Expect,
        (last, holder): (Option<MessageId>, Option<MessageId>),
    ) {
        let (wanted, found) = match expect {
            Expect::Last(wanted) => (wanted, last),
            Expect::Key(wanted) => (wanted, holder),
        };
        if wanted != found && !self.may_be_more() && !self.is_doubtful(found, slot) {
            let name = |id: Option<MessageId>| id.map_or_else(|| "nothing".to_owned(), |id| id.to_string());
            let sentence = format!(
                "{position} wrote {} although it expected {} and there was {}",
                message.seq,
                name(wanted),
                name(found)
            );
            let there = found.and_then(|id| self.current(id.seq)).and_then(|there| self.source_of(&there));
            self.complain(Property::ReadsTheState, sentence, slot.source, there);
        }
    }

    fn is_doubtful(&self, found: Option<MessageId>, slot: &Slot) -> bool {
        let there = found.and_then(|id| self.current(id.seq));
        there.is_some_and(|there| self.may_be_gone(&there, slot.witnessed))
    }

    /// An event says which message a set replaced.
    fn replaced_rightly(&mut self, position: Position, slot: &Slot, message: &Message, in_place: bool) {
        let Some(event) = slot.event else { return };
        let told = self.history.events[event].event.changes.iter().find_map(|change| match change {
            Change::Set(set) if set.message.rev == position.rev && set.message.seq == message.seq => {
                Some(set.replaces)
            }
            _ => None,
        });
        let Some(told) = told else { return };
        let held = message.key.as_deref().and_then(|key| self.model.holder(key));
        let replaces = if in_place { Some(message.seq) } else { held };
        if told != replaces && !self.is_vague && self.path.iter().all(|step| !step.is_hole) {
            let sentence =
                format!("the event of {position} says that it replaced {told:?}, not {replaces:?}");
            self.complain(Property::ReadsTheState, sentence, Source::Event(event), None);
        }
    }

    pub(crate) fn complain(
        &mut self,
        property: Property,
        sentence: String,
        source: Source,
        other: Option<Source>,
    ) {
        self.findings.wrong(property, sentence, std::iter::once(source).chain(other));
    }

    /// Messages are removed one by one; `seqs` are those that were, as was told.
    pub(crate) fn delete(&mut self, position: Position, slot: &Slot, seqs: &[Seq]) {
        let named = slot.op.map(|op| self.ops.all[op].op);
        if let Some(Op::Delete(request)) = named {
            let mut held: Vec<Seq> = request.keys.iter().filter_map(|key| self.model.holder(key)).collect();
            held.extend(request.seqs.iter().filter(|seq| self.model.message(**seq).is_some()));
            held.sort_unstable();
            held.dedup();
            self.removed_rightly(position, slot, &held, seqs);
            if let Some(expect) = request.expect {
                let key = request.keys.first().and_then(|key| self.model.under(key)).cloned();
                let before = (self.model.last.now().copied().flatten(), key.as_ref().map(|key| key.id()));
                if let Some(first) = seqs.first().and_then(|seq| self.current(*seq)) {
                    self.expected(position, slot, &first, expect, before);
                }
            }
        } else {
            let there = seqs.iter().filter_map(|seq| self.current(*seq)).collect::<Vec<_>>();
            if !there.iter().all(|message| self.may_go(message)) {
                self.asked_for(position, slot, |op| match op {
                    Op::Delete(request) => there.iter().all(|message| {
                        request.seqs.contains(&message.seq)
                            || message.key.as_ref().is_some_and(|key| request.keys.contains(key))
                    }),
                    _ => false,
                });
            }
            let held: Vec<Seq> = there.iter().map(|message| message.seq).collect();
            self.removed_rightly(position, slot, &held, seqs);
        }
        for seq in seqs {
            self.model.remove(*seq);
        }
        // Whatever else was under these keys is gone as well: nobody was told of it.
        if let Some(Op::Delete(request)) = named {
            for key in &request.keys {
                if let Some(seq) = self.model.holder(key) {
                    self.model.remove(seq);
                }
            }
        }
    }

    fn removed_rightly(&mut self, position: Position, slot: &Slot, held: &[Seq], told: &[Seq]) {
        for seq in held.iter().filter(|seq| !told.contains(seq)) {
            let Some(message) = self.current(*seq) else { continue };
            if !self.may_be_gone(&message, slot.witnessed) {
                let sentence = format!("{position} removed {told:?}, and {seq} was there too");
                self.complain(Property::ReadsTheState, sentence, slot.source, self.source_of(&message));
            }
        }
        for seq in told.iter().filter(|seq| !held.contains(seq)) {
            if !self.may_be_more() {
                let sentence = format!("{position} removed {seq}, which was not there to be removed");
                self.complain(Property::ReadsTheState, sentence, slot.source, self.who_changed(*seq));
            }
        }
    }

    /// Who last changed what is at a seq.
    pub(crate) fn who_changed(&self, seq: Seq) -> Option<Source> {
        self.told(self.model.seqs.get(&seq)?.since()?)
    }

    pub(crate) fn delete_all(&mut self, position: Position, slot: &Slot, told: Option<Seq>) {
        let asked = slot.op.map(|op| self.ops.all[op].op);
        let in_doubt = self.is_vague || self.path.iter().any(|step| step.is_hole);
        let end = match asked {
            // How many there are is not certain; whoever announced it knew.
            Some(Op::DeleteAll(_)) if in_doubt && told.is_some() => told,
            Some(Op::DeleteAll(request)) => {
                if in_doubt && request.keep_last.is_some_and(|keep| keep > 0) {
                    self.is_vague = true;
                }
                self.end_of(request)
            }
            _ => {
                self.asked_for(position, slot, |op| matches!(op, Op::DeleteAll(_) | Op::Destroy(_)));
                told
            }
        };
        let Some(end) = end else { return };
        let gone: Vec<Seq> = self.model.range(Seq::new(0), end).map(|message| message.seq).collect();
        let count = slot.op.and_then(|op| {
            self.ops.all[op].calls.iter().find_map(|&call| match self.history.calls[call].answer() {
                // One that was lost and asked for again may have found others there.
                Some((Answer::DeleteAll(reply), _)) if reply.position == position => Some(reply.count),
                _ => None,
            })
        });
        if let Some(count) = count
            && count != gone.len() as u64
            && !in_doubt
        {
            let sentence = format!("{position} says that it removed {count}, and there were {}", gone.len());
            self.complain(Property::ReadsTheState, sentence, slot.source, None);
        }
        for seq in gone {
            self.model.remove(seq);
        }
        // It may have been a destruction nobody was told of; then there is no last message any more.
        let may_be_destroyed = |op: &&crate::operations::Operation<'_>| {
            matches!(op.op, Op::Destroy(_)) && op.fate == Fate::Unknown
        };
        if asked.is_none() && self.ops.all.iter().any(|op| may_be_destroyed(&op)) {
            self.is_vague = true;
        }
    }

    /// The last seq that a request removes, given what is there.
    fn end_of(&self, request: &DeleteAllRequest) -> Option<Seq> {
        let newest = Seq::new(self.model.next_seq().0.get().saturating_sub(1));
        match (request.end_seq, request.keep_last) {
            (Some(end), _) => Some(end.min(newest)),
            (None, None | Some(0)) => Some(newest),
            (None, Some(keep)) => {
                let keep = usize::try_from(keep).unwrap_or(usize::MAX);
                self.model.messages().rev().nth(keep).map(|message| message.seq)
            }
        }
    }
}
