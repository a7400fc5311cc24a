//! Checks writes against a subject's configured limits, and selects the messages to evict.
//!
//! Everything is decided before anything changes: a rejected write removes nothing. The excess of a write is
//! evicted in the same entry, after the write, as a separate change.

use dormouse_protocol::limits::{MAX_KEY_BYTES, MAX_METADATA_BYTES};
use dormouse_protocol::message::{Discard, Removed, SubjectConfig};
use dormouse_protocol::{ErrorReply, Seq};
use dormouse_runtime::injected_bug;

use super::view::{StoredMessage, SubjectView};
use super::{PlanRejection, size};
use crate::database::Slice;

/// The most bytes of removed messages that one entry names. Later entries remove the rest.
pub(super) const NAMED_BYTES: usize = 1_024 * 1_024;

/// A number of messages and of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Amount {
    pub(super) msgs: u64,
    pub(super) bytes: u64,
}

impl Amount {
    /// The amount in a view. Bytes count only if they are limited.
    pub(super) fn of(view: &impl SubjectView) -> Result<Self, PlanRejection> {
        let state = view.state();
        let bytes = match state.config.max_bytes {
            None => 0,
            Some(_) => view.bytes().ok_or(PlanRejection::Undecided)?,
        };
        Ok(Self { msgs: state.count, bytes })
    }

    pub(super) const fn is_zero(self) -> bool {
        self.msgs == 0 && self.bytes == 0
    }

    /// The part above the limits and above the amount `before`: a subject that is already above lowered
    /// limits must not grow, and retention removes its excess.
    pub(super) fn above(self, config: &SubjectConfig, before: Self) -> Self {
        let above = |now: u64, limit: Option<u64>, before: u64| {
            limit.map_or(0, |limit| now.saturating_sub(limit.max(before)))
        };
        Self {
            msgs: above(self.msgs, config.max_msgs, before.msgs),
            bytes: above(self.bytes, config.max_bytes, before.bytes),
        }
    }

    /// Rejects a write that would lead to this amount above the limits.
    pub(super) fn check(self, config: &SubjectConfig, before: Self) -> Result<(), PlanRejection> {
        let above = self.above(config, before);
        let refuse = |limit: &str, now: u64, most: Option<u64>| {
            let most = most.unwrap_or_default();
            let why = format!("{limit}: it would hold {now} where at most {most} is allowed");
            Err(PlanRejection::ByState(ErrorReply::limit_exceeded(limit, why)))
        };
        if above.msgs > 0 {
            return refuse("max_msgs", self.msgs, config.max_msgs);
        }
        if above.bytes > 0 {
            return refuse("max_bytes", self.bytes, config.max_bytes);
        }
        Ok(())
    }
}

/// Whether a write evicts old messages.
pub(super) fn discards_old(config: &SubjectConfig) -> bool {
    config.discard.unwrap_or_default() == Discard::Old || injected_bug!(FullDropsOldest)
}

/// Whether the number of messages or bytes is limited.
pub(super) const fn are_set(config: &SubjectConfig) -> bool {
    config.max_msgs.is_some() || config.max_bytes.is_some()
}

/// Checks the limits of one value, independent of other messages.
pub(super) fn check_value(config: &SubjectConfig, size_bytes: u64) -> Result<(), PlanRejection> {
    let too_large = |limit: &str, most: u64| {
        let (size, most) = (usize::try_from(size_bytes), usize::try_from(most));
        PlanRejection::ByState(ErrorReply::too_large(
            limit,
            size.unwrap_or(usize::MAX),
            most.unwrap_or(usize::MAX),
        ))
    };
    if let Some(most) = config.max_msg_size
        && size_bytes > most
    {
        return Err(too_large("max_msg_size", most));
    }
    let alone = Amount { msgs: 1, bytes: size_bytes };
    alone.check(config, Amount::default())
}

/// The selection of messages to evict from a view: the oldest ones, until the excess is gone or one entry can
/// name no more.
#[derive(Debug)]
pub(super) struct Eviction {
    /// The amount that is still above the limits.
    excess: Amount,
    /// Where the next read begins.
    from: Seq,
    /// Bytes of the names of the selected messages.
    named: usize,
    removed: Vec<Removed>,
    /// Every old message is selected.
    is_all: bool,
}

impl Eviction {
    /// Nothing is selected yet.
    pub(super) const fn new(excess: Amount) -> Self {
        Self { excess, from: Seq::new(0), named: 0, removed: Vec::new(), is_all: false }
    }

    /// Selects more messages of `view`, except those that are `kept`. Returns whether all are selected; otherwise
    /// the slice is spent.
    pub(super) fn step(
        &mut self,
        view: &impl SubjectView,
        kept: impl Fn(Seq) -> bool,
        slice: &mut Slice,
    ) -> Result<bool, PlanRejection> {
        while !self.excess.is_zero() && !self.is_all {
            if slice.is_spent() {
                return Ok(false);
            }
            let mut limit = slice.rows_left(MAX_KEY_BYTES);
            if self.excess.bytes == 0 {
                limit = limit.min(usize::try_from(self.excess.msgs).unwrap_or(limit));
            }
            let page = view.oldest(self.from, limit)?;
            for held in &page {
                slice.count(held.key.as_ref().map_or(0, String::len));
            }
            let last = page.last().filter(|_| page.len() == limit).map(|last| last.id.seq);
            if !self.take(page, &kept) {
                break;
            }
            match last {
                Some(last) => self.from = last.next(),
                None => self.is_all = true,
            }
        }
        Ok(true)
    }

    /// Whether every old message is selected and the excess is not gone.
    pub(super) const fn wants_more(&self) -> bool {
        self.is_all && !self.excess.is_zero()
    }

    /// Selects from these messages, too, as many as one entry can name.
    pub(super) fn add(&mut self, held: Vec<StoredMessage>) {
        self.named = 0;
        self.take(held, &|_| false);
    }

    /// The selected messages, ascending.
    pub(super) fn into_removed(mut self) -> Vec<Removed> {
        self.removed.sort_unstable_by_key(|removed| removed.seq);
        self.removed
    }

    /// Returns whether more can be selected.
    fn take(&mut self, page: Vec<StoredMessage>, kept: &impl Fn(Seq) -> bool) -> bool {
        for held in page.into_iter().filter(|held| !kept(held.id.seq)) {
            let size_bytes = held.size;
            let removed = held.removed();
            self.named += size::of_removed(&removed);
            if self.excess.is_zero() || self.named > NAMED_BYTES {
                return false;
            }
            self.removed.push(removed);
            self.excess.msgs = self.excess.msgs.saturating_sub(1);
            self.excess.bytes = self.excess.bytes.saturating_sub(size_bytes);
        }
        true
    }
}

/// Checks a configuration by itself.
pub(super) fn check_config(config: &SubjectConfig) -> Result<(), PlanRejection> {
    let SubjectConfig {
        level: _,
        max_msgs,
        max_bytes,
        max_age_ms,
        max_msg_size,
        discard: _,
        default_ttl_ms,
        metadata,
    } = config;
    let limits = [
        ("max_msgs", max_msgs),
        ("max_bytes", max_bytes),
        ("max_age_ms", max_age_ms),
        ("max_msg_size", max_msg_size),
        ("default_ttl_ms", default_ttl_ms),
    ];
    if let Some((name, _)) = limits.iter().find(|(_, limit)| **limit == Some(0)) {
        return Err(PlanRejection::bad_request(format!("{name} is at least 1; leave it out for no limit")));
    }
    let metadata_bytes = metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
    if metadata_bytes > MAX_METADATA_BYTES {
        let error = ErrorReply::too_large("max_metadata_bytes", metadata_bytes, MAX_METADATA_BYTES);
        return Err(PlanRejection::ByRequest(error));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
