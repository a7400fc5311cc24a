//! The received events that are not processed yet: bounded in number and bytes, with a marker for each loss.

use std::collections::VecDeque;
use std::sync::MutexGuard;

use bytes::Bytes;
use dormouse_runtime::Lock;
use tokio::sync::Notify;

/// One entry of the buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Received {
    /// The bytes of an event.
    Event(Bytes),
    /// An unknown number of events may be missing at this position.
    Loss,
}

/// A queue between the receiver and the feed task. Events over a limit are dropped, and a loss marker takes
/// their position.
#[derive(Debug)]
pub(crate) struct ReceiveBuffer {
    state: Lock<BufferState>,
    changed: Notify,
}

#[derive(Debug)]
struct BufferState {
    entries: VecDeque<Received>,
    room_events: usize,
    room_bytes: usize,
    ended: bool,
}

impl BufferState {
    fn push_loss(&mut self) {
        // Two losses in a row are one, since no event came between them; this also bounds the number of
        // markers.
        if self.entries.back() != Some(&Received::Loss) {
            self.entries.push_back(Received::Loss);
        }
    }
}

impl ReceiveBuffer {
    /// Holds at most `events` events of at most `bytes` bytes together.
    pub(crate) fn new(events: usize, bytes: usize) -> Self {
        let state =
            BufferState { entries: VecDeque::new(), room_events: events, room_bytes: bytes, ended: false };
        Self { state: Lock::new(state), changed: Notify::new() }
    }

    pub(crate) fn event(&self, payload: Bytes) {
        let mut state = self.state();
        if state.room_events == 0 || payload.len() > state.room_bytes {
            state.push_loss();
        } else {
            state.room_events -= 1;
            state.room_bytes -= payload.len();
            state.entries.push_back(Received::Event(payload));
        }
        drop(state);
        self.changed.notify_one();
    }

    pub(crate) fn loss(&self) {
        self.state().push_loss();
        self.changed.notify_one();
    }

    /// The subscription has ended.
    pub(crate) fn end(&self) {
        self.state().ended = true;
        self.changed.notify_one();
    }

    /// The next entry in order; `None` when the buffer is empty and the subscription has ended. For one
    /// caller at a time.
    pub(crate) async fn next(&self) -> Option<Received> {
        loop {
            {
                let mut state = self.state();
                if let Some(entry) = state.entries.pop_front() {
                    if let Received::Event(payload) = &entry {
                        state.room_events += 1;
                        state.room_bytes += payload.len();
                    }
                    return Some(entry);
                }
                if state.ended {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    // Every critical section leaves the queue and its limits consistent, so a panic in one poisons nothing.
    fn state(&self) -> MutexGuard<'_, BufferState> {
        self.state.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(size: usize) -> Bytes {
        Bytes::from(vec![0; size])
    }

    async fn drain(buffer: &ReceiveBuffer) -> Vec<Option<usize>> {
        buffer.end();
        let mut sizes = Vec::new();
        while let Some(entry) = buffer.next().await {
            sizes.push(match entry {
                Received::Event(payload) => Some(payload.len()),
                Received::Loss => None,
            });
        }
        sizes
    }

    /// The receive buffer drops events over its byte limit and puts one loss marker in the place of dropped events.
    #[tokio::test]
    async fn receive_buffer_bounds_bytes_and_keeps_loss_position() {
        let buffer = ReceiveBuffer::new(100, 10);
        for size in [6, 5, 5, 4, 1] {
            buffer.event(bytes(size));
        }
        assert_eq!(drain(&buffer).await, [Some(6), None, Some(4), None]);
    }

    /// The receive buffer bounds the number of events and loss markers even if the events hold no bytes.
    #[tokio::test]
    async fn receive_buffer_bounds_count_of_empty_events() {
        let buffer = ReceiveBuffer::new(2, 10);
        for _ in 0..1_000 {
            buffer.event(bytes(0));
            buffer.loss();
        }
        assert_eq!(drain(&buffer).await, [Some(0), None, Some(0), None]);
    }

    /// Reading an event from the receive buffer frees capacity for the next one.
    #[tokio::test]
    async fn receive_buffer_frees_capacity_on_read() {
        let buffer = ReceiveBuffer::new(1, 10);
        for _ in 0..10 {
            buffer.event(bytes(10));
            assert_eq!(buffer.next().await, Some(Received::Event(bytes(10))));
        }
        assert_eq!(drain(&buffer).await, []);
    }
}
