//! Conversions between appends and segments. Pure.

use std::collections::HashMap;

use dormouse_format::segment::{Block, SlotObject};
use dormouse_protocol::{Rev, Subject};

use super::machine::WalMatch;
use crate::wal::{Lsn, WalAppend};

/// Maximum frame bytes of a segment, unless a single append has more.
const SEGMENT_BYTES: usize = 16 << 20;

/// Length of the size and checksum fields before each frame's body.
const FRAME_HEAD_BYTES: usize = 8;

/// Finds the last of `appends`, which are in order, that the segment holds. The segment was shipped after everything
/// that is known as shipped. So if an entry of it is not among `appends`, it was appended after them: the write-ahead
/// log lost it at a loss of power.
pub(super) fn match_segment(slot: &SlotObject, appends: &[WalAppend]) -> WalMatch {
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
                None => return WalMatch::Beyond,
            }
        }
    }
    WalMatch::Through(through)
}

/// The frames of `bytes`, each with its head; earlier checksum checks have shown that they are whole.
fn frames(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = *rest.first_chunk::<4>()?;
        let end = FRAME_HEAD_BYTES.checked_add(u32::from_le_bytes(length) as usize)?;
        let (frame, after) = rest.split_at_checked(end)?;
        rest = after;
        Some(frame)
    })
}

/// The appends for the next segment: those after `after`, up to the size limit.
pub(super) fn next_batch(appends: &[WalAppend], after: Lsn) -> &[WalAppend] {
    let first = appends.partition_point(|append| append.lsn <= after);
    let rest = &appends[first..];
    let mut bytes = 0_usize;
    let mut ends: HashMap<&Subject, Rev> = HashMap::new();
    let count = rest.iter().enumerate().position(|(index, append)| {
        bytes = bytes.saturating_add(append.frames.len());
        // A segment holds one run of a subject: between two terms of one log, another process may have written.
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
