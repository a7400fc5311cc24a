//! Checks writes against a subject's configured limits, and selects the messages to evict.
//!
//! Everything is decided before anything changes: a rejected write removes nothing. The excess of a write is
//! evicted in the same entry, after the write, as a separate change.

use dormouse_protocol::limits::MAX_METADATA_BYTES;
use dormouse_protocol::message::{Discard, Removed, SubjectConfig};
use dormouse_protocol::{ErrorReply, Seq};
use dormouse_runtime::injected_bug;

use super::view::{StoredMessage, SubjectView};
use super::{PlanRejection, size};

/// The most bytes of removed messages that one entry names. Later entries remove the rest.
pub(super) const NAMED_BYTES: usize = 1_024 * 1_024;

/// Number of messages read together.
const PAGE: usize = 512;

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

    const fn is_zero(self) -> bool {
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

/// The messages to evict from a view.
#[derive(Debug, Default)]
pub(super) struct Evicted {
    /// The evicted messages, ascending.
    pub(super) removed: Vec<Removed>,
    /// No other message was left to evict. Otherwise enough are evicted, or one entry can name no more and
    /// later entries evict the rest.
    pub(super) is_all: bool,
}

/// The oldest messages of `view`, except those that are `kept`, until the `excess` is gone or one entry can
/// name no more.
pub(super) fn evict(
    view: &impl SubjectView,
    excess: &mut Amount,
    kept: impl Fn(Seq) -> bool,
) -> Result<Evicted, PlanRejection> {
    let (mut evicted, mut is_all) = (Vec::new(), false);
    let (mut from, mut named) = (Seq::default(), 0);
    let limit = if excess.bytes == 0 { PAGE.min(excess.msgs as usize).max(1) } else { PAGE };
    while !excess.is_zero() {
        let page = view.oldest(from, limit)?;
        let Some(last) = page.last().filter(|_| page.len() == limit).map(|last| last.id.seq) else {
            is_all = take(page, excess, &mut named, &kept, &mut evicted);
            break;
        };
        if !take(page, excess, &mut named, &kept, &mut evicted) {
            break;
        }
        from = last.next();
    }
    Ok(Evicted { removed: evicted, is_all })
}

/// As [`evict`], for these messages.
pub(super) fn evict_of(held: Vec<StoredMessage>, excess: &mut Amount) -> Vec<Removed> {
    let (mut evicted, mut named) = (Vec::new(), 0);
    take(held, excess, &mut named, &|_| false, &mut evicted);
    evicted
}

/// Returns whether more can be evicted.
fn take(
    page: Vec<StoredMessage>,
    excess: &mut Amount,
    named: &mut usize,
    kept: &impl Fn(Seq) -> bool,
    evicted: &mut Vec<Removed>,
) -> bool {
    for held in page.into_iter().filter(|held| !kept(held.id.seq)) {
        let size_bytes = held.size;
        let removed = held.removed();
        *named += size::of_removed(&removed);
        if excess.is_zero() || *named > NAMED_BYTES {
            return false;
        }
        evicted.push(removed);
        excess.msgs = excess.msgs.saturating_sub(1);
        excess.bytes = excess.bytes.saturating_sub(size_bytes);
    }
    true
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
