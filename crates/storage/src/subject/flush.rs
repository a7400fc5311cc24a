//! Waiting until everything so far is in the bucket.

use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::data::FlushReply;
use dormouse_protocol::{ErrorReply, Position, Rev};

use super::Respond;
use super::reads::Waiting;
use super::serve::Serving;
use crate::api::Reply;
use crate::log::{Stage, Ticket};

/// Where everything so far is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    /// In the bucket.
    Log,
    /// In objects of the subject's own.
    Base,
    /// In the bucket, and then the subject is handed over. It is served until then.
    HandOver,
}

/// Somebody who waits until everything so far is in the bucket.
pub(super) struct Flush {
    /// What the bucket is to have in its log; `None`: it has it.
    ticket: Option<Arc<Ticket>>,
    /// A base is to hold it, too.
    base: bool,
    hands_over: bool,
    position: Position,
    pub(super) until: Duration,
    pub(super) respond: Respond,
}

impl Serving<'_> {
    /// Lines up a flush.
    pub(super) fn flush(&mut self, respond: Respond, aim: Aim) {
        let base = match aim {
            Aim::Log => false,
            Aim::Base => true,
            // What takes long is brought to the bucket while the subject is served, so that little is left to bring when it
            // is not.
            Aim::HandOver => self.needs_base_first(),
        };
        let hands_over = aim == Aim::HandOver;
        let ticket = self.pipeline.last_unshipped();
        if ticket.is_some() {
            self.shared.log.ship();
        }
        let position = Position { rev: self.planned_rev(), ..self.position() };
        let until = self.shared.env.boot() + self.shared.settings.flush_patience;
        self.flushes.push(Flush { ticket, base, hands_over, position, until, respond });
    }

    fn planned_rev(&mut self) -> Rev {
        let applied = self.position().rev;
        self.pipeline.planned_rev().unwrap_or(applied)
    }

    /// Answers those whose wait is over, one way or the other.
    pub(super) fn answer_flushes(&mut self) {
        if self.flushes.is_empty() {
            return;
        }
        let now = self.shared.env.boot();
        let is_applied = self.pipeline.is_applied();
        let based = self.manifest.base_rev;
        let mut compact = false;
        let done: Vec<_> = self
            .flushes
            .extract_if(.., |flush| {
                let stage = flush.ticket.as_ref().map(|ticket| ticket.stage());
                let shipped = matches!(stage, None | Some(Stage::Shipped));
                let held = !flush.base || based >= flush.position.rev;
                compact |= shipped && is_applied && !held;
                (shipped && held) || stage == Some(Stage::Failed) || flush.until <= now
            })
            .collect();
        if compact && self.publishing.is_none() {
            self.schedule.ask_compact();
        }
        // That nothing waits to be shipped here says nothing of what a successor has taken since.
        let trusted = self.shared.trust.holds();
        for flush in done {
            let failure = flush.ticket.as_ref().and_then(|ticket| ticket.failure());
            let in_time = flush.until > now
                || flush.ticket.as_ref().is_none_or(|ticket| ticket.stage() == Stage::Shipped);
            let answer = match failure {
                Some(reply) => Err(reply),
                None if in_time && (!flush.base || based >= flush.position.rev) => Ok(flush.position),
                None => Err(self.not_in_bucket()),
            };
            match answer {
                Ok(_) if flush.hands_over => self.handing_over.push(flush.respond),
                Ok(position) => {
                    let answer = Ok(Reply::Flush(FlushReply { position }));
                    if trusted || flush.base {
                        (flush.respond)(answer);
                    } else {
                        self.reads.push(self.shared, Waiting::Ready(flush.respond, answer));
                    }
                }
                Err(reply) => (flush.respond)(Err(reply)),
            }
        }
    }

    pub(super) fn not_in_bucket(&self) -> ErrorReply {
        let why = self.failure.as_ref().map_or("the bucket does not answer", |failure| &failure.message);
        ErrorReply::unavailable(format!("not in the bucket yet: {why}"))
    }
}
