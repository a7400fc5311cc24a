//! Plans retention: the removal of expired messages, and of messages above the limits.

use std::collections::BTreeMap;

use dormouse_format::entry::LogEntry;
use dormouse_format::record::RemovalCause;
use dormouse_protocol::limits::MAX_KEY_BYTES;
use dormouse_protocol::message::Removed;
use dormouse_protocol::{ErrorReply, Position, Seq, Timestamp};

use super::delete::{DELETE_RECORD_BYTES, cut};
use super::limits::{self, Amount, Eviction, NAMED_BYTES};
use super::view::{ExpiryCursor, SubjectState, SubjectView};
use super::{PlanContext, PlanRejection, size};
use crate::database::Slice;

/// Maximum number of messages that expire with one entry.
const EXPIRED_AT_ONCE: usize = 4_096;

/// Whether [`RetentionProgress`] would find messages above the subject's limits. Cheap, because it is called
/// often.
#[must_use]
pub fn is_above_limits(view: &impl SubjectView) -> bool {
    let config = &view.state().config;
    limits::are_set(config)
        && limits::discards_old(config)
        && Amount::of(view).is_ok_and(|held| held.above(config, Amount::default()) != Amount::default())
}

/// The planning, in slices, of the entry that removes the messages that are due now: those that have expired at the
/// accept time. If old messages are discarded, it also removes those above the limits. It removes a bounded number:
/// plan again once it is applied.
///
/// As for [`PlanProgress`](super::PlanProgress), nothing of it is in the subject between two slices, and it begins again
/// if the subject has changed.
#[derive(Debug, Default)]
pub struct RetentionProgress(Option<Begun>);

/// A planning that has begun.
#[derive(Debug)]
struct Begun {
    position: Position,
    accept_time: Timestamp,
    cursor: ExpiryCursor,
    /// The expired messages. A message may be found twice, so they are kept by seq.
    expired: BTreeMap<Seq, Removed>,
    /// Bytes of their names.
    named: usize,
    /// The amount that their removal frees.
    freed: Amount,
    /// The messages above the limits, once the expired ones are known.
    eviction: Option<Eviction>,
}

impl RetentionProgress {
    /// Nothing is planned yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Plans one slice. `None`: the slice is spent, and the next call continues. `Some(None)`: nothing is due.
    ///
    /// # Errors
    /// The state cannot be read. Planning begins again with the next call.
    pub fn step(
        &mut self,
        view: &impl SubjectView,
        context: PlanContext<'_>,
        slice: &mut Slice,
    ) -> Result<Option<Option<LogEntry>>, ErrorReply> {
        let state = view.state();
        self.0.take_if(|begun| begun.position != state.position());
        let mut begun = self.0.take().unwrap_or_else(|| Begun::new(state, context));
        if !begun.step(view, slice)? {
            self.0 = Some(begun);
            return Ok(None);
        }
        Ok(Some(begun.into_entry(context)))
    }
}

impl Begun {
    fn new(state: &SubjectState, context: PlanContext<'_>) -> Self {
        Self {
            position: state.position(),
            accept_time: context.accept_time.max(state.accept_time),
            cursor: ExpiryCursor::default(),
            expired: BTreeMap::new(),
            named: 0,
            freed: Amount::default(),
            eviction: None,
        }
    }

    /// Returns whether all messages are selected.
    fn step(&mut self, view: &impl SubjectView, slice: &mut Slice) -> Result<bool, ErrorReply> {
        if self.eviction.is_none() {
            if !self.find_expired(view, slice)? {
                return Ok(false);
            }
            self.eviction = Some(Eviction::new(self.excess(view)));
        }
        let is_expired = |seq| self.expired.contains_key(&seq);
        let selected = match &mut self.eviction {
            Some(eviction) => eviction.step(view, is_expired, slice),
            None => Ok(true),
        };
        selected.map_err(|rejection| match rejection {
            PlanRejection::ByRequest(error)
            | PlanRejection::ByState(error)
            | PlanRejection::Unreadable(error) => error,
            PlanRejection::Undecided => ErrorReply::internal("a selection of messages is undecided"),
        })
    }

    /// Returns whether all expired messages are found that one entry can name.
    fn find_expired(&mut self, view: &impl SubjectView, slice: &mut Slice) -> Result<bool, ErrorReply> {
        let max_age_ms = view.state().config.max_age_ms;
        while !self.cursor.has_ended() && self.expired.len() < EXPIRED_AT_ONCE {
            if slice.is_spent() {
                return Ok(false);
            }
            let limit = slice.rows_left(MAX_KEY_BYTES).min(EXPIRED_AT_ONCE - self.expired.len());
            let found = view.expired(self.accept_time, max_age_ms, &mut self.cursor, limit)?;
            // Rows that pending changes hide count, too: they are read.
            (found.len()..limit).for_each(|_| slice.count(0));
            for held in found {
                slice.count(held.key.as_ref().map_or(0, String::len));
                if self.expired.contains_key(&held.id.seq) {
                    continue;
                }
                let (seq, size_bytes) = (held.id.seq, held.size);
                let removed = held.removed();
                self.named += size::of_removed(&removed);
                if self.named > NAMED_BYTES {
                    return Ok(true);
                }
                self.freed.msgs += 1;
                self.freed.bytes += size_bytes;
                self.expired.insert(seq, removed);
            }
        }
        Ok(true)
    }

    /// The amount above the limits once the expired messages are removed.
    fn excess(&self, view: &impl SubjectView) -> Amount {
        let config = &view.state().config;
        if !limits::are_set(config) || !limits::discards_old(config) {
            return Amount::default();
        }
        // If it depends on pending changes, it is decided once they are applied.
        let Ok(held) = Amount::of(view) else { return Amount::default() };
        let left = Amount {
            msgs: held.msgs.saturating_sub(self.freed.msgs),
            bytes: held.bytes.saturating_sub(self.freed.bytes),
        };
        left.above(config, Amount::default())
    }

    fn into_entry(self, context: PlanContext<'_>) -> Option<LogEntry> {
        let most_bytes = DELETE_RECORD_BYTES.min(context.most_bytes());
        let expired = self.expired.into_values().collect();
        let evicted = self.eviction.map_or_else(Vec::new, Eviction::into_removed);
        let mut operations = cut(expired, most_bytes, RemovalCause::Expired);
        operations.extend(cut(evicted, most_bytes, RemovalCause::Evicted));
        let Position { term, rev } = self.position;
        let entry = LogEntry { term, after: rev, accept_time: self.accept_time, request: None, operations };
        (!entry.operations.is_empty()).then_some(entry)
    }
}

#[cfg(test)]
mod tests;
