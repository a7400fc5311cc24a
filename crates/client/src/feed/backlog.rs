//! What a feed has heard and not yet looked at: bounded in number and in bytes, and a loss keeps its place.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// What waits to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Heard {
    /// The bytes of an event.
    Event(Bytes),
    /// Something may be missing here, and nobody can say how much.
    Loss,
}

/// A queue between one who hears and one who tells. What does not fit is dropped, and a loss stands in its place.
#[derive(Debug)]
pub(crate) struct Backlog {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug)]
struct Waiting {
    heard: VecDeque<Heard>,
    room_events: usize,
    room_bytes: usize,
    ended: bool,
}

impl Waiting {
    fn lose(&mut self) {
        // Nothing was heard between two losses in a row, so they are one; this is also what bounds their number.
        if self.heard.back() != Some(&Heard::Loss) {
            self.heard.push_back(Heard::Loss);
        }
    }
}

impl Backlog {
    /// Holds at most so many events, and so many bytes of them.
    pub(crate) fn new(events: usize, bytes: usize) -> Self {
        let waiting =
            Waiting { heard: VecDeque::new(), room_events: events, room_bytes: bytes, ended: false };
        Self { waiting: Mutex::new(waiting), changed: Notify::new() }
    }

    pub(crate) fn event(&self, payload: Bytes) {
        let mut waiting = self.waiting();
        if waiting.room_events == 0 || payload.len() > waiting.room_bytes {
            waiting.lose();
        } else {
            waiting.room_events -= 1;
            waiting.room_bytes -= payload.len();
            waiting.heard.push_back(Heard::Event(payload));
        }
        drop(waiting);
        self.changed.notify_one();
    }

    pub(crate) fn loss(&self) {
        self.waiting().lose();
        self.changed.notify_one();
    }

    /// Nothing more will be heard.
    pub(crate) fn end(&self) {
        self.waiting().ended = true;
        self.changed.notify_one();
    }

    /// The next in order; `None` when all has been taken and nothing more will be heard. For one caller at a time.
    pub(crate) async fn next(&self) -> Option<Heard> {
        loop {
            {
                let mut waiting = self.waiting();
                if let Some(heard) = waiting.heard.pop_front() {
                    if let Heard::Event(payload) = &heard {
                        waiting.room_events += 1;
                        waiting.room_bytes += payload.len();
                    }
                    return Some(heard);
                }
                if waiting.ended {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    // Every critical section leaves the queue and its room consistent, so a panic in one poisons nothing.
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(size: usize) -> Bytes {
        Bytes::from(vec![0; size])
    }

    async fn drain(backlog: &Backlog) -> Vec<Option<usize>> {
        backlog.end();
        let mut sizes = Vec::new();
        while let Some(heard) = backlog.next().await {
            sizes.push(match heard {
                Heard::Event(payload) => Some(payload.len()),
                Heard::Loss => None,
            });
        }
        sizes
    }

    #[tokio::test]
    async fn bytes_are_bounded_and_a_loss_keeps_its_place() {
        let backlog = Backlog::new(100, 10);
        for size in [6, 5, 5, 4, 1] {
            backlog.event(bytes(size));
        }
        assert_eq!(drain(&backlog).await, [Some(6), None, Some(4), None]);
    }

    #[tokio::test]
    async fn the_number_is_bounded_also_where_there_are_no_bytes() {
        let backlog = Backlog::new(2, 10);
        for _ in 0..1_000 {
            backlog.event(bytes(0));
            backlog.loss();
        }
        assert_eq!(drain(&backlog).await, [Some(0), None, Some(0), None]);
    }

    #[tokio::test]
    async fn what_is_taken_makes_room() {
        let backlog = Backlog::new(1, 10);
        for _ in 0..10 {
            backlog.event(bytes(10));
            assert_eq!(backlog.next().await, Some(Heard::Event(bytes(10))));
        }
        assert_eq!(drain(&backlog).await, []);
    }
}
