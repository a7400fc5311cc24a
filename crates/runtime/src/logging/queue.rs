//! The queue between the threads that log and the thread that writes the log.
//!
//! A thread that logs never waits for the reader of the log, and no failed write reaches it. If the queue is full, the
//! newest line is dropped. `tracing_appender::non_blocking` is no substitute: it limits lines and not bytes, and it
//! neither counts nor reports lines that could not be written.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar};
use std::time::Duration;

use crate::Lock;
use crate::lock::{wait, wait_while_for};

/// Maximum bytes of the lines that wait or are being written.
const MAX_BYTES: usize = 4 * 1_024 * 1_024;
/// Pause before a descriptor in non-blocking mode is tried again: it belongs to other processes too, so its mode stays.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// A bounded queue of log lines. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct LogQueue(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Lock<State>,
    /// A line arrived, or one was written or lost.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Box<[u8]>>,
    /// Bytes of `lines` and of the line that is being written.
    bytes: usize,
    /// Lines that were dropped or could not be written.
    lost: u64,
    /// Lost lines that a line of the log reports.
    reported: u64,
}

impl LogQueue {
    /// Adds a line. If there is no room, the line is dropped and counted.
    pub fn push(&self, line: &[u8]) {
        let mut state = self.0.state.lock();
        if line.len() > MAX_BYTES - state.bytes {
            state.lost += 1;
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line.into());
        drop(state);
        self.0.changed.notify_all();
    }

    /// Lines that were dropped or could not be written.
    pub fn lost(&self) -> u64 {
        self.0.state.lock().lost
    }

    /// Blocks the thread until all lines are written or lost, for at most `limit`.
    pub fn flush(&self, limit: Duration) {
        wait_while_for(self.0.state.lock(), &self.0.changed, limit, |state| state.bytes > 0);
    }

    /// Writes the lines to `log`, without an end. After lost lines, when the log takes lines again and all are written,
    /// it calls `report` with their number.
    pub fn write_to(&self, mut log: impl Write, report: impl Fn(u64)) -> ! {
        loop {
            if let Some(lost) = self.write_next(&mut log) {
                report(lost);
            }
        }
    }

    /// Waits for a line and writes it. Returns the number of lost lines that must be reported now.
    fn write_next(&self, log: &mut impl Write) -> Option<u64> {
        let line = self.next_line();
        let written = write_line(log, &line);
        let mut state = self.0.state.lock();
        state.bytes -= line.len();
        let report = match written {
            Ok(()) => (state.lines.is_empty() && state.lost > state.reported).then(|| {
                let lost = state.lost - state.reported;
                state.reported = state.lost;
                lost
            }),
            Err(_) => {
                state.lost += 1;
                None
            }
        };
        drop(state);
        self.0.changed.notify_all();
        report
    }

    /// Its bytes still count, until it is written.
    fn next_line(&self) -> Box<[u8]> {
        let mut state = self.0.state.lock();
        loop {
            if let Some(line) = state.lines.pop_front() {
                return line;
            }
            state = wait(state, &self.0.changed);
        }
    }
}

/// Writes a line, and waits while a descriptor in non-blocking mode is full.
fn write_line(log: &mut impl Write, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match log.write(line) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => line = &line[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            #[expect(clippy::disallowed_methods)] // The writer's thread has nothing else to do.
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(FULL_PAUSE),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a test's log does with the next writes, from the last to the first; then it takes everything.
    struct ScriptedLog {
        failures: Vec<ErrorKind>,
        taken: Vec<u8>,
    }

    impl Write for ScriptedLog {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if let Some(kind) = self.failures.pop() {
                return Err(kind.into());
            }
            // A short write.
            let taken = bytes.len().min(3);
            self.taken.extend(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log(failures: &[ErrorKind]) -> ScriptedLog {
        ScriptedLog { failures: failures.to_vec(), taken: Vec::new() }
    }

    /// A full queue drops the newest line, counts it, and reports it after all others are written.
    #[test]
    fn log_queue_full_drops_newest_and_reports() {
        let (queue, mut log) = (LogQueue::default(), log(&[]));
        queue.push(&vec![b'a'; MAX_BYTES - 2]);
        queue.push(b"b\n");
        queue.push(b"c\n");
        assert_eq!(queue.lost(), 1);
        assert_eq!(queue.write_next(&mut log), None, "a line waits");
        queue.push(b"d\n");
        assert_eq!(queue.write_next(&mut log), None, "a line waits");
        assert_eq!(queue.write_next(&mut log), Some(1));
        assert!(log.taken.ends_with(b"ab\nd\n"));
        queue.push(b"e\n");
        assert_eq!(queue.write_next(&mut log), None, "it is reported once");
    }

    /// A line that cannot be written is lost and counted; the next line is written, and the loss is reported.
    #[test]
    fn log_write_failure_is_counted_and_reported() {
        let (queue, mut log) = (LogQueue::default(), log(&[ErrorKind::StorageFull, ErrorKind::BrokenPipe]));
        for line in [b"1\n", b"2\n", b"3\n"] {
            queue.push(line);
        }
        assert_eq!(queue.write_next(&mut log), None);
        assert_eq!(queue.write_next(&mut log), None);
        assert_eq!(queue.write_next(&mut log), Some(2));
        assert_eq!(log.taken, b"3\n");
    }

    /// A descriptor in non-blocking mode that is full delays a line, and loses nothing of it.
    #[test]
    fn log_in_nonblocking_pipe_keeps_lines_whole() {
        let (queue, mut log) = (LogQueue::default(), log(&[ErrorKind::WouldBlock, ErrorKind::Interrupted]));
        queue.push(b"a whole line\n");
        assert_eq!(queue.write_next(&mut log), None);
        assert_eq!((log.taken.as_slice(), queue.lost()), (&b"a whole line\n"[..], 0));
    }

    /// A flush returns when all lines are written, and after its limit if the log stands still.
    #[test]
    fn log_flush_ends_when_written_or_late() {
        let (queue, mut log) = (LogQueue::default(), log(&[]));
        queue.push(b"1\n");
        queue.flush(Duration::from_millis(1));
        assert_eq!(queue.write_next(&mut log), None);
        queue.flush(Duration::MAX);
    }
}
