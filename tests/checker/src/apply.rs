//! Checks one change against the model of the state, and applies it.

use std::rc::Rc;

use dormouse_protocol::data::{DeleteAllRequest, Expect};
use dormouse_protocol::{Change, Message, MessageId, Position, Seq};

use crate::history::{Op, OpResult};
use crate::operations::{ItemRef, OperationStatus};
use crate::replay::Replay;
use crate::slots::Slot;
use crate::verdict::{Property, Source};

impl Replay<'_, '_> {
    /// `before` holds the last message and the message under the key, as they were before the whole change.
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
                let sentence = format!("{} was assigned twice, at {position}", message.seq);
                self.report_violation(Property::OneName, sentence, slot.source, self.source_of(there));
            }
        } else if message.seq < next && !self.is_uncertain {
            let is_known = self.model.seqs.contains_key(&message.seq);
            let sentence = format!("{} was assigned twice, at {position}", message.seq);
            if is_known || is_certain {
                self.report_violation(Property::OneName, sentence, slot.source, None);
            }
        } else if message.seq > next && given.is_none() && asked.is_some() && is_certain && !self.is_uncertain
        {
            let sentence = format!("{position} wrote {}, but the next seq is {next}", message.seq);
            self.report_violation(Property::OneName, sentence, slot.source, None);
        }
        if let Some(given) = given
            && given != message.seq
        {
            let sentence = format!("the set names {given}, but {position} wrote {}", message.seq);
            self.report_violation(Property::ReadsTheState, sentence, slot.source, None);
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
            let name =
                |id: Option<MessageId>| id.map_or_else(|| "no message".to_owned(), |id| id.to_string());
            let sentence = format!(
                "{position} wrote {} with the expectation {}, but the subject held {}",
                message.seq,
                name(wanted),
                name(found)
            );
            let there = found.and_then(|id| self.current(id.seq)).and_then(|there| self.source_of(&there));
            self.report_violation(Property::ReadsTheState, sentence, slot.source, there);
        }
    }

    fn is_doubtful(&self, found: Option<MessageId>, slot: &Slot) -> bool {
        let there = found.and_then(|id| self.current(id.seq));
        there.is_some_and(|there| self.may_be_gone(&there, slot.first_seen))
    }

    /// Checks which message a set replaced, against the event of the set.
    fn replaced_rightly(&mut self, position: Position, slot: &Slot, message: &Message, in_place: bool) {
        let Some(event) = slot.event else { return };
        let reported = self.history.events[event].event.changes.iter().find_map(|change| match change {
            Change::Set(set) if set.message.rev == position.rev && set.message.seq == message.seq => {
                Some(set.replaces)
            }
            _ => None,
        });
        let Some(reported) = reported else { return };
        let held = message.key.as_deref().and_then(|key| self.model.holder(key));
        let replaces = if in_place { Some(message.seq) } else { held };
        if reported != replaces && !self.is_uncertain && self.path.iter().all(|step| !step.is_gap) {
            let sentence = format!(
                "the event of {position} names {reported:?} as the replaced message, but it is {replaces:?}"
            );
            self.report_violation(Property::ReadsTheState, sentence, Source::Event(event), None);
        }
    }

    pub(crate) fn report_violation(
        &mut self,
        property: Property,
        sentence: String,
        source: Source,
        other: Option<Source>,
    ) {
        self.findings.report(property, sentence, std::iter::once(source).chain(other));
    }

    /// Removes single messages. `seqs` are the removed seqs that the reply or the event names.
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
            if !there.iter().all(|message| self.retention_may_remove(message)) {
                self.check_requested(position, slot, |op| match op {
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
        // Other messages under these keys are removed too, although no reply or event names them.
        if let Some(Op::Delete(request)) = named {
            for key in &request.keys {
                if let Some(seq) = self.model.holder(key) {
                    self.model.remove(seq);
                }
            }
        }
    }

    fn removed_rightly(&mut self, position: Position, slot: &Slot, held: &[Seq], reported: &[Seq]) {
        for seq in held.iter().filter(|seq| !reported.contains(seq)) {
            let Some(message) = self.current(*seq) else { continue };
            if !self.may_be_gone(&message, slot.first_seen) {
                let sentence = format!("{position} removed {reported:?}, but {seq} matched too");
                self.report_violation(
                    Property::ReadsTheState,
                    sentence,
                    slot.source,
                    self.source_of(&message),
                );
            }
        }
        for seq in reported.iter().filter(|seq| !held.contains(seq)) {
            if !self.may_be_more() {
                let sentence = format!("{position} removed {seq}, but no matching message has that seq");
                self.report_violation(
                    Property::ReadsTheState,
                    sentence,
                    slot.source,
                    self.last_change_at(*seq),
                );
            }
        }
    }

    /// Returns the source of the last change at a seq.
    pub(crate) fn last_change_at(&self, seq: Seq) -> Option<Source> {
        self.source_of_step(self.model.seqs.get(&seq)?.since()?)
    }

    pub(crate) fn delete_all(&mut self, position: Position, slot: &Slot, reported: Option<Seq>) {
        let asked = slot.op.map(|op| self.ops.all[op].op);
        let is_uncertain = self.is_uncertain || self.path.iter().any(|step| step.is_gap);
        let end = match asked {
            // The number of messages is uncertain. The end that the event names is correct.
            Some(Op::DeleteAll(_)) if is_uncertain && reported.is_some() => reported,
            Some(Op::DeleteAll(request)) => {
                if is_uncertain && request.keep_last.is_some_and(|keep| keep > 0) {
                    self.is_uncertain = true;
                }
                self.end_of(request)
            }
            _ => {
                self.check_requested(position, slot, |op| matches!(op, Op::DeleteAll(_) | Op::Destroy(_)));
                reported
            }
        };
        let Some(end) = end else { return };
        let removed: Vec<Seq> = self.model.range(Seq::new(0), end).map(|message| message.seq).collect();
        let count = slot.op.and_then(|op| {
            self.ops.all[op].calls.iter().find_map(|&call| match self.history.calls[call].answer() {
                // A delete that was lost and repeated may have found other messages.
                Some((OpResult::DeleteAll(reply), _)) if reply.position == position => Some(reply.count),
                _ => None,
            })
        });
        if let Some(count) = count
            && count != removed.len() as u64
            && !is_uncertain
        {
            let sentence =
                format!("{position} reports {count} removed messages, but it is {}", removed.len());
            self.report_violation(Property::ReadsTheState, sentence, slot.source, None);
        }
        for seq in removed {
            self.model.remove(seq);
        }
        // The change may be a destroy without a reply. Then the subject has no last message.
        let may_be_destroyed = |op: &&crate::operations::Operation<'_>| {
            matches!(op.op, Op::Destroy(_)) && op.status == OperationStatus::Unknown
        };
        if asked.is_none() && self.ops.all.iter().any(|op| may_be_destroyed(&op)) {
            self.is_uncertain = true;
        }
    }

    /// Returns the last seq that a request removes from the current state.
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
