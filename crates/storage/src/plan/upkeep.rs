//! What a subject does by itself: what has expired goes, and what is above its limits.

use dormouse_protocol::message::Removed;
use dormouse_protocol::{ErrorReply, Timestamp};

use super::delete::{DELETE_RECORD_BYTES, cut};
use super::limits::{self, Amount, NAMED_BYTES};
use super::record::RemovalCause;
use super::view::SubjectView;
use super::{Context, Refusal, size};
use crate::entry::Entry;

/// The most messages that expire with one entry: they are removed in one go, and meanwhile the subject does nothing else.
const EXPIRED_AT_ONCE: usize = 4_096;

/// Whether [`upkeep`] would find something above the subject's limits. Cheap: asked all the time.
#[must_use]
pub fn is_above_limits(view: &impl SubjectView) -> bool {
    let config = &view.state().config;
    limits::are_set(config)
        && limits::makes_room(config)
        && Amount::of(view).is_ok_and(|held| held.above(config, Amount::default()) != Amount::default())
}

/// The entry that removes what has to go by now: messages whose time is over at the accept time, and, where old messages
/// make room for new ones, what is above the limits. It takes a bounded part of them: ask again once it is applied.
/// `None`: nothing has to go.
///
/// # Errors
/// That the state cannot be read.
pub fn upkeep(view: &impl SubjectView, context: Context<'_>) -> Result<Option<Entry>, ErrorReply> {
    let state = view.state();
    let accept_time = context.accept_time.max(state.accept_time);
    let (expired, freed) = expired(view, accept_time)?;
    let mut operations = Vec::new();
    let most_bytes = DELETE_RECORD_BYTES.min(context.most_bytes());
    let evicted = match evicted(view, &expired, freed) {
        Ok(evicted) => evicted,
        // It is known once what is pending is applied.
        Err(Refusal::Undecided) => Vec::new(),
        Err(Refusal::Outright(error) | Refusal::ByState(error) | Refusal::Unreadable(error)) => {
            return Err(error);
        }
    };
    operations.extend(cut(expired, most_bytes, RemovalCause::Expired));
    operations.extend(cut(evicted, most_bytes, RemovalCause::Evicted));
    if operations.is_empty() {
        return Ok(None);
    }
    Ok(Some(Entry { term: state.term, after: state.rev, accept_time, request: None, operations }))
}

/// What expires, in order of seq, and how much that frees.
fn expired(view: &impl SubjectView, now: Timestamp) -> Result<(Vec<Removed>, Amount), ErrorReply> {
    let mut freed = Amount::default();
    let (mut expired, mut named) = (Vec::new(), 0);
    for held in view.expired(now, view.state().config.max_age_ms, EXPIRED_AT_ONCE)? {
        let size_bytes = held.size;
        let removed = held.removed();
        named += size::of_removed(&removed);
        if named > NAMED_BYTES {
            break;
        }
        freed.msgs += 1;
        freed.bytes += size_bytes;
        expired.push(removed);
    }
    expired.sort_unstable_by_key(|removed| removed.seq);
    Ok((expired, freed))
}

fn evicted(view: &impl SubjectView, expired: &[Removed], freed: Amount) -> Result<Vec<Removed>, Refusal> {
    let config = &view.state().config;
    if !limits::are_set(config) || !limits::makes_room(config) {
        return Ok(Vec::new());
    }
    let held = Amount::of(view)?;
    let left =
        Amount { msgs: held.msgs.saturating_sub(freed.msgs), bytes: held.bytes.saturating_sub(freed.bytes) };
    let mut excess = left.above(config, Amount::default());
    let goes = |seq| expired.binary_search_by_key(&seq, |removed| removed.seq).is_ok();
    Ok(limits::evict(view, &mut excess, goes)?.removed)
}

#[cfg(test)]
mod tests;
