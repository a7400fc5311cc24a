//! The end of a log: which writes fail with which error, and which stay in the WAL.

use std::sync::{Arc, OnceLock};

use dormouse_protocol::{ErrorCode, ErrorReply};
use dormouse_runtime::Stop;

use super::{LogEnd, LogState, PendingAppend, Wakers};

/// Signals an end and its cause. The end of the log is set under the state lock: if a caller sees a write rejected
/// because of the end, the caller sees the end too.
#[derive(Debug)]
pub(in crate::log) struct EndSignal {
    cause: OnceLock<LogEnd>,
    signal: Stop,
}

impl EndSignal {
    pub(in crate::log) fn new() -> Arc<Self> {
        Arc::new(Self { cause: OnceLock::new(), signal: Stop::new() })
    }

    pub(in crate::log) fn cause(&self) -> Option<LogEnd> {
        self.cause.get().copied()
    }

    pub(in crate::log) async fn wait(&self) {
        self.signal.requested().await;
    }

    /// The first cause counts.
    pub(in crate::log) fn set(&self, end: LogEnd) {
        self.cause.get_or_init(|| end);
        self.signal.request();
    }
}

impl LogState {
    /// The error for every new request after the log has ended.
    pub(in crate::log) fn refuse_if_ended(&self) -> Result<(), ErrorReply> {
        match self.end {
            None => Ok(()),
            Some(LogEnd::Sealed) => Err(taken_over()),
            Some(LogEnd::Poisoned) => Err(poisoned()),
            Some(LogEnd::Stopped) => Err(ErrorReply::unavailable("server is shutting down")),
        }
    }

    /// Another process has sealed the log. From this moment, unacknowledged writes can no longer be acknowledged. Their
    /// writers get the error after the failure is recorded in the WAL. Writes acknowledged at a weaker level stay in
    /// the WAL for the next claim.
    pub(in crate::log) fn sealed(&mut self, wakers: &Wakers) {
        // A log ends once. A failed disk stays the cause, even if another process seals the log later.
        if self.end.is_some() {
            return;
        }
        self.fail_readers(&taken_over());
        let shippable = self.in_flight.drain(..).chain(self.written.drain(..));
        for pending in shippable.filter(|pending| pending.progress.mark_failing()) {
            self.to_mark_failed.push((pending.lsn, pending.progress));
        }
        // The disk task may be writing this group: it may be in the WAL a moment later.
        for pending in &self.group {
            if pending.progress.mark_failing() {
                self.to_mark_failed.push((pending.lsn, Arc::clone(&pending.progress)));
            }
        }
        // Acknowledged appends must still be written to the WAL; the others were never stored.
        self.queue.retain(|pending| !pending.progress.fail(&taken_over()));
        self.finish(LogEnd::Sealed, wakers);
    }

    /// The slot's object is unreadable, so it stays unknown whether the segment in flight is in the log. Its writers
    /// get that error; then as [`LogState::sealed`].
    pub(in crate::log) fn segment_unreadable(&mut self) {
        let unknown = ErrorReply::new(ErrorCode::Indeterminate, "segment of the write is unreadable");
        for pending in self.in_flight.drain(..) {
            pending.progress.fail(&unknown);
        }
    }

    /// The local disk failed, or its state is unknown: nothing is acknowledged from this moment on.
    pub(in crate::log) fn poison(&mut self, wakers: &Wakers) {
        if self.end.is_none() {
            self.abandon("log failed: write outcome unknown", &poisoned());
            self.group.clear();
            self.queue.clear();
            self.finish(LogEnd::Poisoned, wakers);
        }
    }

    /// The disk task is gone, so failed writes cannot be recorded in the WAL: their writers get an unknown outcome.
    pub(in crate::log) fn fail_unrecorded_writes(&mut self) -> Option<LogEnd> {
        let unknown = ErrorReply::new(ErrorCode::Indeterminate, "write failed or may execute later");
        for (_, progress) in self.to_mark_failed.drain(..) {
            progress.fail(&unknown);
        }
        self.end
    }

    /// The process ends without waiting for the bucket.
    pub(in crate::log) fn stop_now(&mut self, wakers: &Wakers) {
        if self.end.is_none() {
            let stopped = ErrorReply::unavailable("server is shutting down");
            self.abandon("server stopped before the write reached its level", &stopped);
            self.finish(LogEnd::Stopped, wakers);
        }
    }

    /// Rejects new appends; the log ends once everything is shipped.
    pub(in crate::log) fn stop(&mut self) {
        self.stopping = true;
        self.request_ship_all();
        self.end_if_stopped();
    }

    pub(super) fn end_if_stopped(&mut self) {
        let nothing = self.queue.is_empty() && self.group.is_empty() && self.written.is_empty();
        if self.stopping && nothing && self.in_flight.is_empty() && self.end.is_none() {
            self.fail_readers(&ErrorReply::unavailable("server is shutting down"));
            self.set_end(LogEnd::Stopped);
        }
    }

    /// Fails unacknowledged appends. Acknowledged appends that are not yet written stay in the queue.
    fn abandon(&mut self, why: &str, for_readers: &ErrorReply) {
        let unknown = ErrorReply::new(ErrorCode::Indeterminate, why);
        self.fail_readers(for_readers);
        for PendingAppend { progress, .. } in self.in_flight.drain(..).chain(self.written.drain(..)) {
            progress.fail(&unknown);
        }
        for PendingAppend { progress, .. } in &self.group {
            progress.fail(&unknown);
        }
        self.queue.retain(|pending| !pending.progress.fail(&unknown));
    }

    fn fail_readers(&mut self, failure: &ErrorReply) {
        for (_, reader) in self.readers.drain(..) {
            // The reader may have stopped waiting.
            let _ = reader.send(Err(failure.clone()));
        }
    }

    fn set_end(&mut self, end: LogEnd) {
        self.end = Some(end);
        self.ending.set(end);
    }

    fn finish(&mut self, end: LogEnd, wakers: &Wakers) {
        self.set_end(end);
        self.segment_to_ship = None;
        self.probe = None;
        wakers.disk.notify_one();
        wakers.ship.notify_one();
        wakers.probe.notify_one();
        wakers.trim.notify_one();
        wakers.progress.notify_waiters();
    }
}

pub(in crate::log) fn taken_over() -> ErrorReply {
    ErrorReply::not_owner(None)
}

fn poisoned() -> ErrorReply {
    ErrorReply::unavailable("log failed, server restart required")
}
