//! Which chunks of a value are to be sent, in flight, or received: a pure machine without I/O or clock.

use std::collections::VecDeque;

use bytes::Bytes;

/// The most bytes that are held until the server has received them.
pub(crate) const WINDOW_BYTES: usize = 4 * 1_024 * 1_024;

/// The most chunks in flight at a time.
const MAX_IN_FLIGHT: usize = 16;

#[derive(Debug)]
struct Chunk {
    offset: u64,
    bytes: Bytes,
    in_flight: bool,
}

impl Chunk {
    fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

/// The chunks between the source and the server.
#[derive(Debug, Default)]
pub(crate) struct UploadWindow {
    /// The server has received all bytes before this offset.
    received: u64,
    /// All bytes before this offset were read from the source.
    read: u64,
    chunks: VecDeque<Chunk>,
}

impl UploadWindow {
    /// How many bytes the server is known to have received.
    pub(crate) const fn received(&self) -> u64 {
        self.received
    }

    /// How many bytes were read.
    pub(crate) const fn read(&self) -> u64 {
        self.read
    }

    /// Whether more bytes may be read.
    pub(crate) fn has_room(&self) -> bool {
        self.chunks.iter().map(|chunk| chunk.bytes.len()).sum::<usize>() < WINDOW_BYTES
    }

    /// Whether the server has received all bytes that were read.
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Adds the next bytes of the source. Bytes that the server already has are skipped.
    pub(crate) fn push(&mut self, mut bytes: Bytes) {
        let mut offset = self.read;
        self.read += bytes.len() as u64;
        let known = self.received.saturating_sub(offset).min(bytes.len() as u64);
        // At most the length of a chunk.
        bytes = bytes.slice(known as usize..);
        offset += known;
        if !bytes.is_empty() {
            self.chunks.push_back(Chunk { offset, bytes, in_flight: false });
        }
    }

    /// The next chunk to send; it is in flight from now on.
    pub(crate) fn next(&mut self) -> Option<(u64, Bytes)> {
        if self.chunks.iter().filter(|chunk| chunk.in_flight).count() >= MAX_IN_FLIGHT {
            return None;
        }
        let chunk = self.chunks.iter_mut().find(|chunk| !chunk.in_flight)?;
        chunk.in_flight = true;
        Some((chunk.offset, chunk.bytes.clone()))
    }

    /// The server reports how many bytes it has received. Returns `false` if these do not include the whole
    /// chunk at `offset`, whose reply this is.
    pub(crate) fn answered(&mut self, offset: u64, received: u64) -> bool {
        self.received = self.received.max(received.min(self.read));
        while self.chunks.front().is_some_and(|chunk| chunk.end() <= self.received) {
            self.chunks.pop_front();
        }
        self.chunks.iter().all(|chunk| chunk.offset != offset)
    }

    /// The chunk at `offset` is too long for a message: it is sent in chunks of `most` bytes. Returns `false`
    /// if it cannot be divided.
    pub(crate) fn split(&mut self, offset: u64, most: usize) -> bool {
        let Some(at) = self.chunks.iter().position(|chunk| chunk.offset == offset) else { return true };
        if most == 0 || self.chunks[at].bytes.len() <= most {
            return false;
        }
        let Some(mut chunk) = self.chunks.remove(at) else { return false };
        let mut into = at;
        while !chunk.bytes.is_empty() {
            let bytes = chunk.bytes.split_to(most.min(chunk.bytes.len()));
            let next = chunk.offset + bytes.len() as u64;
            self.chunks.insert(into, Chunk { offset: chunk.offset, bytes, in_flight: false });
            chunk.offset = next;
            into += 1;
        }
        true
    }

    /// No chunk is in flight any more, and the server has received so many bytes. Returns `false` if the
    /// missing bytes are not held any more either: they must be read again.
    pub(crate) fn resume(&mut self, received: u64) -> bool {
        if received < self.chunks.front().map_or(self.read, |chunk| chunk.offset) {
            return false;
        }
        self.received = received.min(self.read);
        self.chunks.retain(|chunk| chunk.end() > received);
        self.chunks.iter_mut().for_each(|chunk| chunk.in_flight = false);
        true
    }

    /// The source is read again from its first byte, and the server has received so many bytes.
    pub(crate) fn restart(&mut self, received: u64) {
        *self = Self { received, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(length: usize) -> Bytes {
        vec![7; length].into()
    }

    fn window(chunks: usize) -> UploadWindow {
        let mut window = UploadWindow::default();
        (0..chunks).for_each(|_| window.push(bytes(10)));
        window
    }

    fn sent(window: &mut UploadWindow) -> Vec<u64> {
        std::iter::from_fn(|| window.next().map(|(offset, _)| offset)).collect()
    }

    /// The upload window sends chunks once and in order, and keeps them until the server has received them.
    #[test]
    fn upload_window_sends_pieces_once_in_order() {
        let mut window = window(3);
        assert_eq!(sent(&mut window), [0, 10, 20]);
        // Replies may arrive in any order; each reports the bytes received without a gap.
        assert!(window.answered(10, 20));
        assert!(window.answered(0, 20));
        assert!(!window.is_empty());
        assert!(!window.answered(20, 25), "a reply must cover the chunk that it answers");
        assert!(window.answered(20, 30));
        assert_eq!((window.is_empty(), window.received(), window.read()), (true, 30, 30));
    }

    /// The upload window bounds the bytes and the chunks in flight.
    #[test]
    fn upload_window_bounds_bytes_and_pieces_in_flight() {
        let mut window = window(MAX_IN_FLIGHT + 1);
        assert_eq!(sent(&mut window).len(), MAX_IN_FLIGHT);
        assert!(window.has_room());
        window.push(bytes(WINDOW_BYTES));
        assert!(!window.has_room());
        window.answered(0, window.read() - 1);
        assert!(!window.has_room());
        window.answered(0, window.read());
        assert!(window.has_room());
    }

    /// After an interruption, the window resends the missing chunks; if it no longer holds them, the resume fails.
    #[test]
    fn upload_window_resume_resends_missing_pieces() {
        let mut window = window(4);
        sent(&mut window);
        window.answered(0, 10);
        // The server has more than its replies reported: one of them was lost.
        assert!(window.resume(25));
        assert_eq!((sent(&mut window), window.received()), (vec![20, 30], 25));
        // The server has lost bytes that it had acknowledged.
        assert!(!window.resume(19));
        assert!(window.resume(20));
        window.answered(20, 40);
        assert!(window.resume(40));
        assert!(!window.resume(39));
    }

    /// After a restart, the window skips the bytes that the server has received.
    #[test]
    fn upload_window_restart_skips_received_bytes() {
        let mut window = window(4);
        window.restart(15);
        assert_eq!((window.read(), window.received()), (0, 15));
        window.push(bytes(10));
        assert!(window.is_empty());
        window.push(bytes(10));
        let (offset, chunk) = window.next().unwrap();
        assert_eq!((offset, chunk.len()), (15, 5));
    }

    /// The window splits a chunk that exceeds the size limit, and sends the parts again.
    #[test]
    fn upload_window_splits_piece_over_size_limit() {
        let mut window = window(3);
        sent(&mut window);
        assert!(window.split(10, 4));
        let again: Vec<_> =
            std::iter::from_fn(|| window.next().map(|(at, bytes)| (at, bytes.len()))).collect();
        assert_eq!(again, [(10, 4), (14, 4), (18, 2)]);
        assert!(!window.split(18, 2));
        assert!(!window.split(18, 0));
        // It was received in the meantime.
        assert!(window.split(99, 1));
    }
}
