//! The signals that stop a daemon, and the one that does not.

use std::future::Future;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM and SIGINT, which start the shutdown. SIGHUP, the end of a terminal, has no effect.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    // Nothing reads it: while a process listens for a signal, the signal does not end it.
    _hangup: Signal,
}

impl StopSignals {
    /// Listens for the signals from now on.
    ///
    /// # Errors
    /// The error of the operating system.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The name of the next signal. Cancelling the wait loses no signal.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// The output of `work`. If a signal arrives first, `work` is cancelled.
    ///
    /// # Errors
    /// The name of the signal.
    pub async fn or<T>(&mut self, work: impl Future<Output = T>) -> Result<T, &'static str> {
        tokio::select! {
            biased;
            name = self.next() => Err(name),
            done = work => Ok(done),
        }
    }
}
