//! Between appends and segments, both ways. Pure.

use std::collections::HashMap;

use dormouse_protocol::{Rev, Subject};

use super::machine::Found;
use crate::format::segment::{Block, SlotObject};
use crate::wal::{Lsn, WalAppend};

/// Most bytes of frames in one segment, unless a single append has more.
const SEGMENT_BYTES: usize = 16 << 20;

/// Length and checksum before each frame's body.
const FRAME_HEAD_BYTES: usize = 8;

/// What the segment holds of `appends`, which are in order. It was shipped after all that is known as shipped, so what
/// is in it and not among them was appended after the last of them: it was lost from the write-ahead log with the power.
pub(super) fn found_in(slot: &SlotObject, appends: &[WalAppend]) -> Found {
    let mut by_subject: HashMap<&Subject, Vec<&WalAppend>> = HashMap::new();
    for append in appends.iter().filter(|append| slot.line_of(&append.subject).is_some()) {
        by_subject.entry(&append.subject).or_default().push(append);
    }
    let mut through = Lsn::ZERO;
    for line in &slot.lines {
        let known: HashMap<&[u8], Lsn> = by_subject
            .get(&line.subject)
            .into_iter()
            .flatten()
            .flat_map(|append| frames(&append.frames).map(|frame| (frame, append.lsn)))
            .collect();
        for frame in frames(&slot.frames_of(line)) {
            match known.get(frame) {
                Some(lsn) => through = through.max(*lsn),
                None => return Found::Beyond,
            }
        }
    }
    Found::Through(through)
}

/// The frames of `bytes`, each with its head; checksums elsewhere have shown them to be whole.
fn frames(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = *rest.first_chunk::<4>()?;
        let end = FRAME_HEAD_BYTES.checked_add(u32::from_le_bytes(length) as usize)?;
        let (frame, behind) = rest.split_at_checked(end)?;
        rest = behind;
        Some(frame)
    })
}

/// The appends for the next segment: the first after `after`, as many as fit together.
pub(super) fn next_batch(appends: &[WalAppend], after: Lsn) -> &[WalAppend] {
    let first = appends.partition_point(|append| append.lsn <= after);
    let rest = &appends[first..];
    let mut bytes = 0_usize;
    let mut ends: HashMap<&Subject, Rev> = HashMap::new();
    let count = rest.iter().enumerate().position(|(index, append)| {
        bytes = bytes.saturating_add(append.frames.len());
        // A segment holds one run of a subject: between two terms of one log, another may have written.
        let follows =
            ends.insert(&append.subject, append.last_rev).is_none_or(|end| end == append.first_after);
        index > 0 && (bytes > SEGMENT_BYTES || !follows)
    });
    &rest[..count.unwrap_or(rest.len())]
}

pub(super) fn blocks(appends: &[WalAppend]) -> Vec<Block> {
    let block = |append: &WalAppend| Block {
        subject: append.subject.clone(),
        first_after: append.first_after,
        last_rev: append.last_rev,
        entries: append.entries,
        frames: append.frames.clone(),
    };
    appends.iter().map(block).collect()
}
