//! What may go by itself: messages whose time may be over, and those that a limit may have evicted.
//!
//! When exactly is for the subject's own time to say, which nobody outside can tell: clocks differ. That it may happen at
//! all is known.

use dormouse_protocol::Message;
use dormouse_protocol::message::{Discard, SubjectConfig};

use crate::history::Op;
use crate::replay::Replay;
use crate::slots::Effect;

/// Whether a subject that is configured so removes messages by itself.
fn removes(config: &SubjectConfig) -> bool {
    let is_limited = config.max_msgs.is_some() || config.max_bytes.is_some();
    let makes_room = config.discard.unwrap_or_default() == Discard::Old;
    config.max_age_ms.is_some() || config.default_ttl_ms.is_some() || (is_limited && makes_room)
}

impl Replay<'_, '_> {
    /// Whether this message may go at this place without anybody asking for it.
    pub(crate) fn may_go(&self, message: &Message) -> bool {
        self.expires(message) || removes(self.model.config()) || self.may_be_configured()
    }

    /// Whether this message may have gone at some place or other without anybody asking for it.
    pub(crate) fn may_have_gone(&self, message: &Message) -> bool {
        self.expires(message) || self.ops.all.iter().any(|op| is_removing(op.op))
    }

    /// Whether anything may go in this whole history without anybody asking for it.
    pub(crate) fn anything_may_go(&self) -> bool {
        let has_ttl = |op: &Op| match op {
            Op::Set(request) => request.sets.iter().any(|item| item.ttl_ms.is_some()),
            _ => false,
        };
        self.ops.all.iter().any(|op| is_removing(op.op) || has_ttl(op.op))
    }

    fn expires(&self, message: &Message) -> bool {
        let position = dormouse_protocol::Position { term: message.term, rev: message.rev };
        let item = self.slots.all.get(&position).and_then(|slot| match &slot.effect {
            Effect::Sets(sets) => self.ops.item(sets.get(&message.seq)?.item?),
            _ => None,
        });
        message.expires_at.is_some() || item.is_some_and(|item| item.ttl_ms.is_some())
    }

    /// Somebody who was not told may have configured the subject so, at a place nobody told of.
    fn may_be_configured(&self) -> bool {
        let by_nobody = |op: &usize| is_removing(self.ops.all[*op].op);
        self.is_vague || self.path.iter().any(|step| step.is_hole) && self.loose.iter().any(by_nobody)
    }
}

fn is_removing(op: &Op) -> bool {
    matches!(op, Op::Configure(request) if removes(&request.config))
}
