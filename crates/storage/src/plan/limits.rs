//! What a subject's configured limits make of a write, and what has to go because of them.
//!
//! Everything is decided before anything changes: a write that is refused removes nothing. What a write makes too much
//! goes in the same entry, behind it, as a change of its own.

use dormouse_protocol::limits::MAX_METADATA_BYTES;
use dormouse_protocol::message::{Discard, Removed, SubjectConfig};
use dormouse_protocol::{ErrorReply, Seq};

use super::view::{Held, SubjectView};
use super::{Refusal, size};
use crate::mutations::{Mutation, is_there};

/// The most bytes of removed messages that one entry names. Whatever else is too much goes with the entries behind it.
pub(super) const NAMED_BYTES: usize = 1_024 * 1_024;

/// How many messages are looked at together.
const PAGE: usize = 512;

/// How much of something there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Amount {
    pub(super) msgs: u64,
    pub(super) bytes: u64,
}

impl Amount {
    /// What a view holds. Bytes count only where they are limited.
    pub(super) fn of(view: &impl SubjectView) -> Result<Self, Refusal> {
        let state = view.state();
        let bytes = match state.config.max_bytes {
            None => 0,
            Some(_) => view.bytes().ok_or(Refusal::Undecided)?,
        };
        Ok(Self { msgs: state.count, bytes })
    }

    const fn is_nothing(self) -> bool {
        self.msgs == 0 && self.bytes == 0
    }

    /// What of it is above the limits, and above what there was `before`: a subject that holds too much already, because
    /// its limits were lowered, must not grow, and loses the rest by itself.
    pub(super) fn above(self, config: &SubjectConfig, before: Self) -> Self {
        let above = |now: u64, limit: Option<u64>, before: u64| {
            limit.map_or(0, |limit| now.saturating_sub(limit.max(before)))
        };
        Self {
            msgs: above(self.msgs, config.max_msgs, before.msgs),
            bytes: above(self.bytes, config.max_bytes, before.bytes),
        }
    }

    /// The refusal of a write that would make it so.
    pub(super) fn check(self, config: &SubjectConfig, before: Self) -> Result<(), Refusal> {
        let above = self.above(config, before);
        let refuse = |limit: &str, now: u64, most: Option<u64>| {
            let most = most.unwrap_or_default();
            let why = format!("{limit}: it would hold {now} where at most {most} is allowed");
            Err(Refusal::ByState(ErrorReply::limit_exceeded(limit, why)))
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

/// Whether a write makes room for itself.
pub(super) fn makes_room(config: &SubjectConfig) -> bool {
    config.discard.unwrap_or_default() == Discard::Old || is_there(Mutation::FullLosesTheOldest)
}

/// Whether how much there is is limited.
pub(super) const fn are_set(config: &SubjectConfig) -> bool {
    config.max_msgs.is_some() || config.max_bytes.is_some()
}

/// Checks what one value may have, whatever else there is.
pub(super) fn check_value(config: &SubjectConfig, size_bytes: u64) -> Result<(), Refusal> {
    let too_large = |limit: &str, most: u64| {
        let (size, most) = (usize::try_from(size_bytes), usize::try_from(most));
        Refusal::ByState(ErrorReply::too_large(limit, size.unwrap_or(usize::MAX), most.unwrap_or(usize::MAX)))
    };
    if let Some(most) = config.max_msg_size
        && size_bytes > most
    {
        return Err(too_large("max_msg_size", most));
    }
    let alone = Amount { msgs: 1, bytes: size_bytes };
    alone.check(config, Amount::default())
}

/// What has to go of what a view has.
#[derive(Debug, Default)]
pub(super) struct Evicted {
    /// What goes, ascending.
    pub(super) removed: Vec<Removed>,
    /// Nothing else was left that could go. Otherwise enough goes, or enough is named for one entry and the rest follows.
    pub(super) is_all: bool,
}

/// The oldest messages of `view`, but those that are `kept`, until the `excess` is gone or enough is named for one entry.
pub(super) fn evict(
    view: &impl SubjectView,
    excess: &mut Amount,
    kept: impl Fn(Seq) -> bool,
) -> Result<Evicted, Refusal> {
    let (mut evicted, mut is_all) = (Vec::new(), false);
    let (mut from, mut named) = (Seq::default(), 0);
    let limit = if excess.bytes == 0 { PAGE.min(excess.msgs as usize).max(1) } else { PAGE };
    while !excess.is_nothing() {
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

/// As [`evict`], of these messages.
pub(super) fn evict_of(held: Vec<Held>, excess: &mut Amount) -> Vec<Removed> {
    let (mut evicted, mut named) = (Vec::new(), 0);
    take(held, excess, &mut named, &|_| false, &mut evicted);
    evicted
}

/// Returns whether there is room for more.
fn take(
    page: Vec<Held>,
    excess: &mut Amount,
    named: &mut usize,
    kept: &impl Fn(Seq) -> bool,
    evicted: &mut Vec<Removed>,
) -> bool {
    for held in page.into_iter().filter(|held| !kept(held.id.seq)) {
        let size_bytes = held.size;
        let removed = held.removed();
        *named += size::of_removed(&removed);
        if excess.is_nothing() || *named > NAMED_BYTES {
            return false;
        }
        evicted.push(removed);
        excess.msgs = excess.msgs.saturating_sub(1);
        excess.bytes = excess.bytes.saturating_sub(size_bytes);
    }
    true
}

/// Checks a configuration by itself.
pub(super) fn check_config(config: &SubjectConfig) -> Result<(), Refusal> {
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
        return Err(Refusal::bad_request(format!("{name} is at least 1; leave it out for no limit")));
    }
    let metadata_bytes = metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
    if metadata_bytes > MAX_METADATA_BYTES {
        let error = ErrorReply::too_large("max_metadata_bytes", metadata_bytes, MAX_METADATA_BYTES);
        return Err(Refusal::Outright(error));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
