//! Which pieces of a value are to be sent, under way, or done with: a pure machine without I/O or clock.

use std::collections::VecDeque;

use bytes::Bytes;

/// Most bytes that are held until the server has them.
pub(crate) const WINDOW_BYTES: usize = 4 * 1_024 * 1_024;

/// Most pieces under way at a time.
const MOST_IN_FLIGHT: usize = 16;

#[derive(Debug)]
struct Piece {
    offset: u64,
    bytes: Bytes,
    in_flight: bool,
}

impl Piece {
    fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

/// What is between the source and the server.
#[derive(Debug, Default)]
pub(crate) struct Window {
    /// The server has everything before it.
    received: u64,
    /// Everything before it was read from the source.
    read: u64,
    pieces: VecDeque<Piece>,
}

impl Window {
    /// How many bytes the server is known to have.
    pub(crate) const fn received(&self) -> u64 {
        self.received
    }

    /// How many bytes were read.
    pub(crate) const fn read(&self) -> u64 {
        self.read
    }

    /// Whether more may be read.
    pub(crate) fn has_room(&self) -> bool {
        self.pieces.iter().map(|piece| piece.bytes.len()).sum::<usize>() < WINDOW_BYTES
    }

    /// Whether the server has all that was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Takes what was read next. What the server has already is passed over.
    pub(crate) fn push(&mut self, mut bytes: Bytes) {
        let mut offset = self.read;
        self.read += bytes.len() as u64;
        let known = self.received.saturating_sub(offset).min(bytes.len() as u64);
        // At most the length of a piece.
        bytes = bytes.slice(known as usize..);
        offset += known;
        if !bytes.is_empty() {
            self.pieces.push_back(Piece { offset, bytes, in_flight: false });
        }
    }

    /// The next piece to send; it is under way from now on.
    pub(crate) fn next(&mut self) -> Option<(u64, Bytes)> {
        if self.pieces.iter().filter(|piece| piece.in_flight).count() >= MOST_IN_FLIGHT {
            return None;
        }
        let piece = self.pieces.iter_mut().find(|piece| !piece.in_flight)?;
        piece.in_flight = true;
        Some((piece.offset, piece.bytes.clone()))
    }

    /// The server says how much it has. `false`: that does not reach to the end of the piece at `offset`, to which it was
    /// the answer.
    pub(crate) fn answered(&mut self, offset: u64, received: u64) -> bool {
        self.received = self.received.max(received.min(self.read));
        while self.pieces.front().is_some_and(|piece| piece.end() <= self.received) {
            self.pieces.pop_front();
        }
        self.pieces.iter().all(|piece| piece.offset != offset)
    }

    /// The piece at `offset` is too long for a message: it is sent in pieces of `most` bytes. `false`: it is none that
    /// could be divided.
    pub(crate) fn split(&mut self, offset: u64, most: usize) -> bool {
        let Some(at) = self.pieces.iter().position(|piece| piece.offset == offset) else { return true };
        if most == 0 || self.pieces[at].bytes.len() <= most {
            return false;
        }
        let Some(mut piece) = self.pieces.remove(at) else { return false };
        let mut into = at;
        while !piece.bytes.is_empty() {
            let bytes = piece.bytes.split_to(most.min(piece.bytes.len()));
            let next = piece.offset + bytes.len() as u64;
            self.pieces.insert(into, Piece { offset: piece.offset, bytes, in_flight: false });
            piece.offset = next;
            into += 1;
        }
        true
    }

    /// Nothing is under way any more, and the server has so much. `false`: what it lacks is not here any more either; it
    /// has to be read again.
    pub(crate) fn resume(&mut self, received: u64) -> bool {
        if received < self.pieces.front().map_or(self.read, |piece| piece.offset) {
            return false;
        }
        self.received = received.min(self.read);
        self.pieces.retain(|piece| piece.end() > received);
        self.pieces.iter_mut().for_each(|piece| piece.in_flight = false);
        true
    }

    /// The source is read again from its first byte, and the server has so much.
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

    fn window(pieces: usize) -> Window {
        let mut window = Window::default();
        (0..pieces).for_each(|_| window.push(bytes(10)));
        window
    }

    fn sent(window: &mut Window) -> Vec<u64> {
        std::iter::from_fn(|| window.next().map(|(offset, _)| offset)).collect()
    }

    #[test]
    fn pieces_go_once_in_order_until_the_server_has_them() {
        let mut window = window(3);
        assert_eq!(sent(&mut window), [0, 10, 20]);
        // Answers may come in any order; each says how much is there without a hole.
        assert!(window.answered(10, 20));
        assert!(window.answered(0, 20));
        assert!(!window.is_empty());
        assert!(!window.answered(20, 25), "an answer that says less than what it answers");
        assert!(window.answered(20, 30));
        assert_eq!((window.is_empty(), window.received(), window.read()), (true, 30, 30));
    }

    #[test]
    fn bytes_and_pieces_on_their_way_are_bounded() {
        let mut window = window(MOST_IN_FLIGHT + 1);
        assert_eq!(sent(&mut window).len(), MOST_IN_FLIGHT);
        assert!(window.has_room());
        window.push(bytes(WINDOW_BYTES));
        assert!(!window.has_room());
        window.answered(0, window.read() - 1);
        assert!(!window.has_room());
        window.answered(0, window.read());
        assert!(window.has_room());
    }

    #[test]
    fn after_an_interruption_what_the_server_lacks_is_sent_again_as_far_as_it_is_here() {
        let mut window = window(4);
        sent(&mut window);
        window.answered(0, 10);
        // The server has more than its answers said: one of them was lost.
        assert!(window.resume(25));
        assert_eq!((sent(&mut window), window.received()), (vec![20, 30], 25));
        // It has lost what it had acknowledged.
        assert!(!window.resume(19));
        assert!(window.resume(20));
        window.answered(20, 40);
        assert!(window.resume(40));
        assert!(!window.resume(39));
    }

    #[test]
    fn a_source_that_is_read_again_passes_over_what_the_server_has() {
        let mut window = window(4);
        window.restart(15);
        assert_eq!((window.read(), window.received()), (0, 15));
        window.push(bytes(10));
        assert!(window.is_empty());
        window.push(bytes(10));
        let (offset, piece) = window.next().unwrap();
        assert_eq!((offset, piece.len()), (15, 5));
    }

    #[test]
    fn a_piece_that_has_become_too_long_is_divided() {
        let mut window = window(3);
        sent(&mut window);
        assert!(window.split(10, 4));
        let again: Vec<_> =
            std::iter::from_fn(|| window.next().map(|(at, bytes)| (at, bytes.len()))).collect();
        assert_eq!(again, [(10, 4), (14, 4), (18, 2)]);
        assert!(!window.split(18, 2));
        assert!(!window.split(18, 0));
        // It was done with in the meantime.
        assert!(window.split(99, 1));
    }
}
