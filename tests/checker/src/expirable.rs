//! Removals by retention: messages that may be expired, and messages that a limit may have evicted.
//!
//! Only the subject's own time decides the moment of an expiry. It is not visible from outside, because clocks differ.
//! The checker knows only that a removal is possible.

use dormouse_protocol::Message;
use dormouse_protocol::message::{Discard, SubjectConfig};

use crate::history::Op;
use crate::replay::Replay;
use crate::slots::Effect;

/// Returns whether this configuration makes a subject remove messages by itself.
fn removes(config: &SubjectConfig) -> bool {
    let is_limited = config.max_msgs.is_some() || config.max_bytes.is_some();
    let evicts = config.discard.unwrap_or_default() == Discard::Old;
    config.max_age_ms.is_some() || config.default_ttl_ms.is_some() || (is_limited && evicts)
}

impl Replay<'_, '_> {
    /// Returns whether retention may remove this message at the current position.
    pub(crate) fn retention_may_remove(&self, message: &Message) -> bool {
        self.expires(message) || removes(self.model.config()) || self.may_be_configured()
    }

    /// Returns whether retention may have removed this message at any position.
    pub(crate) fn retention_may_have_removed(&self, message: &Message) -> bool {
        self.expires(message) || self.ops.all.iter().any(|op| is_removing(op.op))
    }

    /// Returns whether retention may remove any message in the whole history.
    pub(crate) fn retention_is_possible(&self) -> bool {
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

    /// Returns whether a configure of unknown position may have enabled retention.
    fn may_be_configured(&self) -> bool {
        let is_unconfirmed = |op: &usize| is_removing(self.ops.all[*op].op);
        self.is_uncertain
            || self.path.iter().any(|step| step.is_gap) && self.unplaced.iter().any(is_unconfirmed)
    }
}

fn is_removing(op: &Op) -> bool {
    matches!(op, Op::Configure(request) if removes(&request.config))
}
