//! How a log ends: who is told what, and what stays on the local disk.

use std::sync::{Arc, OnceLock};

use dormouse_protocol::{ErrorCode, ErrorReply};
use dormouse_runtime::Stop;

use super::{LogEnd, Pending, State, Wakers};

/// That something has come to its end, and how. That the log has is said while the books are locked: whoever sees a
/// write refused because of it sees this too.
#[derive(Debug)]
pub(in crate::log) struct Ending {
    cause: OnceLock<LogEnd>,
    said: Stop,
}

impl Ending {
    pub(in crate::log) fn new() -> Arc<Self> {
        Arc::new(Self { cause: OnceLock::new(), said: Stop::new() })
    }

    pub(in crate::log) fn cause(&self) -> Option<LogEnd> {
        self.cause.get().copied()
    }

    pub(in crate::log) async fn over(&self) {
        self.said.given().await;
    }

    /// The first word counts.
    pub(in crate::log) fn say(&self, end: LogEnd) {
        self.cause.get_or_init(|| end);
        self.said.give();
    }
}

impl State {
    /// What every new request is told once the log is at its end.
    pub(in crate::log) fn refuse_if_ended(&self) -> Result<(), ErrorReply> {
        match self.end {
            None => Ok(()),
            Some(LogEnd::Sealed) => Err(taken_over()),
            Some(LogEnd::Poisoned) => Err(poisoned()),
            Some(LogEnd::Stopped) => Err(ErrorReply::unavailable("this server is being stopped")),
        }
    }

    /// Somebody else has ended the log. What is not acknowledged can no longer be, from this moment on; its writers are
    /// told when the local disk says so too. What is acknowledged at a weaker level stays there, for the next claim.
    pub(in crate::log) fn sealed(&mut self, wakers: &Wakers) {
        // A log ends once. A disk that failed stays failed, whoever else ends the log.
        if self.end.is_some() {
            return;
        }
        self.fail_readers(&taken_over());
        let shippable = self.in_flight.drain(..).chain(self.written.drain(..));
        for pending in shippable.filter(|pending| pending.ticket.doom()) {
            self.to_mark_failed.push((pending.lsn, pending.ticket));
        }
        // What is being written right now may be on the disk a moment later.
        for pending in &self.group {
            if pending.ticket.doom() {
                self.to_mark_failed.push((pending.lsn, Arc::clone(&pending.ticket)));
            }
        }
        // What is acknowledged is still to be written down; the rest was never anywhere.
        self.queue.retain(|pending| !pending.ticket.fail(&taken_over()));
        self.finish(LogEnd::Sealed, wakers);
    }

    /// What lies in the slot cannot be read: whose it is, and so whether the segment in flight is in the log, will not be
    /// known. Its writers are told so; then as [`State::sealed`].
    pub(in crate::log) fn segment_lost_sight_of(&mut self) {
        let unknown =
            ErrorReply::new(ErrorCode::Indeterminate, "the object that the write went into cannot be read");
        for pending in self.in_flight.drain(..) {
            pending.ticket.fail(&unknown);
        }
    }

    /// The local disk, or what is known of it, cannot be trusted any more: nothing is acknowledged from this moment on.
    pub(in crate::log) fn poison(&mut self, wakers: &Wakers) {
        if self.end.is_none() {
            self.abandon("the log failed: whether the write is kept is not known", &poisoned());
            self.group.clear();
            self.queue.clear();
            self.finish(LogEnd::Poisoned, wakers);
        }
    }

    /// Nobody is left to note on the local disk what has failed: its writers are told that they cannot know.
    pub(in crate::log) fn give_up_last_words(&mut self) -> Option<LogEnd> {
        let unknown = ErrorReply::new(ErrorCode::Indeterminate, "the write failed, or is carried out later");
        for (_, ticket) in self.to_mark_failed.drain(..) {
            ticket.fail(&unknown);
        }
        self.end
    }

    /// The process ends without waiting for the bucket.
    pub(in crate::log) fn cut_short(&mut self, wakers: &Wakers) {
        if self.end.is_none() {
            let stopped = ErrorReply::unavailable("this server is being stopped");
            self.abandon("the server stopped before the write reached its level", &stopped);
            self.finish(LogEnd::Stopped, wakers);
        }
    }

    /// Takes nothing more; ends once everything is shipped.
    pub(in crate::log) fn stop(&mut self) {
        self.stopping = true;
        self.want_all();
        self.end_if_stopped();
    }

    pub(super) fn end_if_stopped(&mut self) {
        let nothing = self.queue.is_empty() && self.group.is_empty() && self.written.is_empty();
        if self.stopping && nothing && self.in_flight.is_empty() && self.end.is_none() {
            self.fail_readers(&ErrorReply::unavailable("this server is being stopped"));
            self.set_end(LogEnd::Stopped);
        }
    }

    /// Fails what is not acknowledged. What is, and not yet written down, stays in the queue.
    fn abandon(&mut self, why: &str, for_readers: &ErrorReply) {
        let unknown = ErrorReply::new(ErrorCode::Indeterminate, why);
        self.fail_readers(for_readers);
        for Pending { ticket, .. } in self.in_flight.drain(..).chain(self.written.drain(..)) {
            ticket.fail(&unknown);
        }
        for Pending { ticket, .. } in &self.group {
            ticket.fail(&unknown);
        }
        self.queue.retain(|pending| !pending.ticket.fail(&unknown));
    }

    fn fail_readers(&mut self, failure: &ErrorReply) {
        for (_, reader) in self.readers.drain(..) {
            // Whoever has stopped waiting needs no answer.
            let _ = reader.send(Err(failure.clone()));
        }
    }

    fn set_end(&mut self, end: LogEnd) {
        self.end = Some(end);
        self.ending.say(end);
    }

    fn finish(&mut self, end: LogEnd, wakers: &Wakers) {
        self.set_end(end);
        self.departing = None;
        self.probe = None;
        wakers.disk.notify_one();
        wakers.ship.notify_one();
        wakers.look.notify_one();
        wakers.trim.notify_one();
        wakers.progress.notify_waiters();
    }
}

pub(in crate::log) fn taken_over() -> ErrorReply {
    ErrorReply::not_owner(None)
}

fn poisoned() -> ErrorReply {
    ErrorReply::unavailable("this server's log failed; it has to be restarted")
}
