//! Plans retention: the removal of expired messages, and of messages above the limits.

use dormouse_format::entry::LogEntry;
use dormouse_format::record::RemovalCause;
use dormouse_protocol::message::Removed;
use dormouse_protocol::{ErrorReply, Timestamp};

use super::delete::{DELETE_RECORD_BYTES, cut};
use super::limits::{self, Amount, NAMED_BYTES};
use super::view::SubjectView;
use super::{PlanContext, PlanRejection, size};

/// Maximum number of messages that expire with one entry: their removal blocks the subject.
const EXPIRED_AT_ONCE: usize = 4_096;

/// Whether [`plan_retention`] would find messages above the subject's limits. Cheap, because it is called
/// often.
#[must_use]
pub fn is_above_limits(view: &impl SubjectView) -> bool {
    let config = &view.state().config;
    limits::are_set(config)
        && limits::discards_old(config)
        && Amount::of(view).is_ok_and(|held| held.above(config, Amount::default()) != Amount::default())
}

/// The entry that removes the messages that are due now: those that have expired at the accept time. If old
/// messages are discarded, it also removes those above the limits. It removes a bounded number: call again
/// once it is applied. `None` if nothing is due.
///
/// # Errors
/// The state cannot be read.
pub fn plan_retention(
    view: &impl SubjectView,
    context: PlanContext<'_>,
) -> Result<Option<LogEntry>, ErrorReply> {
    let state = view.state();
    let accept_time = context.accept_time.max(state.accept_time);
    let (expired, freed) = expired(view, accept_time)?;
    let mut operations = Vec::new();
    let most_bytes = DELETE_RECORD_BYTES.min(context.most_bytes());
    let evicted = match evicted(view, &expired, freed) {
        Ok(evicted) => evicted,
        // It is decided once pending changes are applied.
        Err(PlanRejection::Undecided) => Vec::new(),
        Err(
            PlanRejection::ByRequest(error)
            | PlanRejection::ByState(error)
            | PlanRejection::Unreadable(error),
        ) => {
            return Err(error);
        }
    };
    operations.extend(cut(expired, most_bytes, RemovalCause::Expired));
    operations.extend(cut(evicted, most_bytes, RemovalCause::Evicted));
    if operations.is_empty() {
        return Ok(None);
    }
    Ok(Some(LogEntry { term: state.term, after: state.rev, accept_time, request: None, operations }))
}

/// The expired messages, in order of seq, and the amount that their removal frees.
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

fn evicted(
    view: &impl SubjectView,
    expired: &[Removed],
    freed: Amount,
) -> Result<Vec<Removed>, PlanRejection> {
    let config = &view.state().config;
    if !limits::are_set(config) || !limits::discards_old(config) {
        return Ok(Vec::new());
    }
    let held = Amount::of(view)?;
    let left =
        Amount { msgs: held.msgs.saturating_sub(freed.msgs), bytes: held.bytes.saturating_sub(freed.bytes) };
    let mut excess = left.above(config, Amount::default());
    let is_expired = |seq| expired.binary_search_by_key(&seq, |removed| removed.seq).is_ok();
    Ok(limits::evict(view, &mut excess, is_expired)?.removed)
}

#[cfg(test)]
mod tests;
