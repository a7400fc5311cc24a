//! What a subject's limits leave for a value that is still on its way up, so that it is refused before it is here.
//!
//! The set that commits it decides; by then there may be more room, or less. What is refused here would be refused by a set
//! of this moment, and with the same answer.

use dormouse_protocol::ErrorReply;
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::transfer::UploadPlace;

use super::limits::{self, Amount};
use super::view::{Held, SubjectView};
use super::{Refusal, check_key};

/// What a value still to come may be. By default there are no limits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UploadRoom {
    /// The limits, and nothing else of the configuration.
    limits: SubjectConfig,
    /// Where a set does not make room for itself, and it is known which it will be: how much there is, and how much of
    /// that will be there beside it.
    beside: Option<(Amount, Amount)>,
}

impl UploadRoom {
    /// What there is for a value that will be at `place`. Where that is not known, what it replaces is not either, and
    /// only what the value may have by itself counts.
    ///
    /// # Errors
    /// `too_large` for a key that is; that the state cannot be read.
    pub fn of(view: &impl SubjectView, place: Option<&UploadPlace>) -> Result<Self, ErrorReply> {
        let config = &view.state().config;
        let limits = SubjectConfig {
            max_msgs: config.max_msgs,
            max_bytes: config.max_bytes,
            max_msg_size: config.max_msg_size,
            discard: config.discard,
            ..SubjectConfig::default()
        };
        let Some(place) = place else { return Ok(Self { limits, beside: None }) };
        place.key.as_deref().map_or(Ok(()), check_key)?;
        if !limits::are_set(config) || limits::makes_room(config) {
            return Ok(Self { limits, beside: None });
        }
        let before = match Amount::of(view) {
            Ok(before) => before,
            // What is pending decides it.
            Err(Refusal::Undecided) => return Ok(Self { limits, beside: None }),
            Err(Refusal::Outright(error) | Refusal::ByState(error) | Refusal::Unreadable(error)) => {
                return Err(error);
            }
        };
        let rest = match replaced(view, place)? {
            None => before,
            Some(gone) => {
                Amount { msgs: before.msgs.saturating_sub(1), bytes: before.bytes.saturating_sub(gone.size) }
            }
        };
        Ok(Self { limits, beside: Some((before, rest)) })
    }

    /// Whether a value of so many bytes may be set.
    ///
    /// # Errors
    /// What the set would be answered: `too_large`, `limit_exceeded`.
    pub fn check(&self, size_bytes: u64) -> Result<(), ErrorReply> {
        let check = || {
            limits::check_value(&self.limits, size_bytes)?;
            let Some((before, rest)) = self.beside else { return Ok(()) };
            let with = Amount { msgs: rest.msgs + 1, bytes: rest.bytes.saturating_add(size_bytes) };
            with.check(&self.limits, before)
        };
        check().map_err(|refusal: Refusal| match refusal {
            Refusal::Outright(error) | Refusal::ByState(error) | Refusal::Unreadable(error) => error,
            Refusal::Undecided => ErrorReply::internal("a limit that depends on nothing is not decided"),
        })
    }
}

/// The message that goes when one is set at `place`.
fn replaced(view: &impl SubjectView, place: &UploadPlace) -> Result<Option<Held>, ErrorReply> {
    if let Some(seq) = place.seq
        && let Some(held) = view.at(seq)?
    {
        return Ok(Some(held));
    }
    match place.key.as_deref().map(|key| view.under(key)).transpose()?.flatten() {
        Some(holder) => view.at(holder.seq),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests;
