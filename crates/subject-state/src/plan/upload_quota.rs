//! Checks a value that is still being uploaded against the subject's limits, so that it is rejected early.
//!
//! The set that commits the value decides; by then the limits may leave more or less. A value that is
//! rejected here would be rejected by a set at this moment, with the same reply.

use dormouse_protocol::ErrorReply;
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::transfer::UploadPlace;

use super::limits::{self, Amount};
use super::view::{StoredMessage, SubjectView};
use super::{PlanRejection, check_key};

/// The limits for a value that is not uploaded yet. By default there are none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UploadQuota {
    /// The limits, and nothing else of the configuration.
    limits: SubjectConfig,
    /// If a set does not evict others, and its key or seq is known: the current amount, and the amount
    /// without the message that it replaces.
    beside: Option<(Amount, Amount)>,
}

impl UploadQuota {
    /// The quota for a value whose place is unknown: only the limits of the value itself apply.
    #[must_use]
    pub fn without_place(config: &SubjectConfig) -> Self {
        let limits = SubjectConfig {
            max_msgs: config.max_msgs,
            max_bytes: config.max_bytes,
            max_msg_size: config.max_msg_size,
            discard: config.discard,
            ..SubjectConfig::default()
        };
        Self { limits, beside: None }
    }

    /// The quota for a value that will be at `place`. If the place is unknown, the replaced message is
    /// unknown too, and only the limits of the value itself apply.
    ///
    /// # Errors
    /// `too_large` for a key that is too long; or the state cannot be read.
    pub fn of(view: &impl SubjectView, place: Option<&UploadPlace>) -> Result<Self, ErrorReply> {
        let config = &view.state().config;
        let quota = Self::without_place(config);
        let Some(place) = place else { return Ok(quota) };
        place.key.as_deref().map_or(Ok(()), check_key)?;
        if !limits::are_set(config) || limits::discards_old(config) {
            return Ok(quota);
        }
        let before = match Amount::of(view) {
            Ok(before) => before,
            // It depends on pending changes.
            Err(PlanRejection::Undecided) => return Ok(quota),
            Err(
                PlanRejection::ByRequest(error)
                | PlanRejection::ByState(error)
                | PlanRejection::Unreadable(error),
            ) => {
                return Err(error);
            }
        };
        let rest = match replaced(view, place)? {
            None => before,
            Some(gone) => {
                Amount { msgs: before.msgs.saturating_sub(1), bytes: before.bytes.saturating_sub(gone.size) }
            }
        };
        Ok(Self { beside: Some((before, rest)), ..quota })
    }

    /// Whether a value of `size_bytes` may be set.
    ///
    /// # Errors
    /// The reply that the set would get: `too_large`, `limit_exceeded`.
    pub fn check(&self, size_bytes: u64) -> Result<(), ErrorReply> {
        let check = || {
            limits::check_value(&self.limits, size_bytes)?;
            let Some((before, rest)) = self.beside else { return Ok(()) };
            let with = Amount { msgs: rest.msgs + 1, bytes: rest.bytes.saturating_add(size_bytes) };
            with.check(&self.limits, before)
        };
        check().map_err(|refusal: PlanRejection| match refusal {
            PlanRejection::ByRequest(error)
            | PlanRejection::ByState(error)
            | PlanRejection::Unreadable(error) => error,
            PlanRejection::Undecided => {
                ErrorReply::internal("a limit check without pending changes is undecided")
            }
        })
    }
}

/// The message that a set at `place` replaces.
fn replaced(view: &impl SubjectView, place: &UploadPlace) -> Result<Option<StoredMessage>, ErrorReply> {
    if let Some(seq) = place.seq
        && let Some(held) = view.at(seq)?
    {
        return Ok(Some(held));
    }
    match place.key.as_deref().map(|key| view.by_key(key)).transpose()?.flatten() {
        Some(holder) => view.at(holder.seq),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests;
