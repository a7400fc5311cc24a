//! The decoders detect any damage, report newer versions as such, and reject contradictory fields with valid checksums.

use bytes::Bytes;
use dormouse_format::checksum::{Crc64, crc32c};
use dormouse_format::index::{self, LogIndex};
use dormouse_format::segment::{self, Footer};
use dormouse_format::{DecodeFault, FormatError, delta, frame};
use dormouse_protocol::{ErrorCode, ErrorReply, Rev, Slot};

use crate::fuzzing::repair;
use crate::golden::golden_file;
use crate::samples;

type Read = fn(&[u8]) -> Result<(), FormatError>;

fn read_slot(bytes: &[u8]) -> Result<(), FormatError> {
    segment::decode(&samples::log(), Slot::new(1), Bytes::copy_from_slice(bytes)).map(drop)
}

fn read_index(bytes: &[u8]) -> Result<(), FormatError> {
    LogIndex::decode(&samples::log(), Bytes::copy_from_slice(bytes)).map(drop)
}

fn read_delta(bytes: &[u8]) -> Result<(), FormatError> {
    delta::decode(&samples::subject("app.orders.eu"), Rev::new(50), "a delta", bytes).map(drop)
}

fn read_frames(bytes: &[u8]) -> Result<(), FormatError> {
    let read = frame::decode_all(bytes).map_err(|fault| fault.of("frames"))?;
    // Frames do not store their count. The object around them detects a cut between two frames.
    if read.len() == samples::run().len() {
        Ok(())
    } else {
        Err(DecodeFault::Damaged("too few".to_owned()).of("frames"))
    }
}

fn delta_bytes() -> Bytes {
    let frames = [samples::frames(&samples::run())];
    delta::encode(&samples::subject("app.orders.eu"), Rev::new(40), frames).unwrap().bytes
}

fn index_bytes() -> Bytes {
    let (header, lines) = samples::index();
    index::encode(&header, lines)
}

fn objects() -> [(&'static str, Bytes, Read); 4] {
    [
        ("segment", samples::data().1.bytes, read_slot),
        ("index", index_bytes(), read_index),
        ("delta", delta_bytes(), read_delta),
        ("frames", samples::frames(&samples::run()), read_frames),
    ]
}

/// The decoders of segment, index, delta and frames reject every single flipped bit.
#[test]
fn decoder_rejects_any_flipped_bit() {
    for (name, good, read) in objects() {
        read(&good).unwrap();
        for position in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.to_vec();
                bad[position] ^= 1 << bit;
                assert!(read(&bad).is_err(), "{name}: bit {bit} of byte {position}");
            }
        }
    }
}

/// The decoders of segment, index, delta and frames reject missing bytes, added bytes and zeros.
#[test]
fn decoder_rejects_missing_or_added_bytes() {
    for (name, good, read) in objects() {
        for length in 0..good.len() {
            assert!(read(&good[..length]).is_err(), "{name}: cut to {length} bytes");
            assert!(read(&good[good.len() - length..]).is_err(), "{name}: the last {length} bytes");
        }
        for bad in [[&good[..], b"\0"].concat(), [b"\0", &good[..]].concat(), [&good[..], &good[..]].concat()]
        {
            assert!(read(&bad).is_err(), "{name}: {} bytes", bad.len());
        }
        assert!(read(&vec![0; good.len()]).is_err(), "{name}: zeros");
    }
}

/// The decoders report a newer format version as unsupported, with and without valid checksums.
#[test]
fn decoder_rejects_newer_format_version() {
    let mut slot = samples::data().1.bytes.to_vec();
    let end = slot.len() - 12;
    (slot[8], slot[end]) = (2, 2);
    let mut index = index_bytes().to_vec();
    let mut delta = delta_bytes().to_vec();
    (index[8], delta[8]) = (2, 3);
    let footer: Read = |bytes| Footer::decode(&samples::log(), Slot::new(1), bytes).map(drop);
    // With and without valid checksums.
    for (bytes, read) in [
        (slot.clone(), read_slot as Read),
        (repair::segment(&slot), read_slot),
        (slot, footer),
        (index.clone(), read_index),
        (repair::index(&index), read_index),
        (delta.clone(), read_delta),
        (repair::delta(&delta), read_delta),
    ] {
        let error = read(&bytes).unwrap_err();
        assert!(
            matches!(error, FormatError::UnsupportedVersion { format, newest, .. } if format == newest + 1),
            "{error}"
        );
        assert_eq!(ErrorReply::from(error).code, ErrorCode::Unavailable);
    }
}

/// The error reply for a damaged slot is `corrupt` and names the object.
#[test]
fn corrupt_error_names_object() {
    let bytes = samples::data().1.bytes;
    let error = ErrorReply::from(read_slot(&bytes[1..]).unwrap_err());
    assert_eq!(error.code, ErrorCode::Corrupt);
    assert_eq!(error.object.as_deref(), Some("logs/persist-1-01J9Z3ZZZZZZZZZZZZZZZZZZZZ/0000000000000001"));
}

/// The checksum repair of the fuzz checks leaves valid manifests unchanged.
#[test]
fn checksum_repair_keeps_valid_bytes_unchanged() {
    for name in ["manifest-deltas.json", "manifest-tombstone-2.json"] {
        let manifest = golden_file(name);
        assert_eq!(repair::manifest(&manifest), manifest);
    }
}

/// Asserts that the decoder rejects each of `changes`, a byte at an offset, after a repair of every checksum.
fn assert_all_rejected(good: &[u8], repaired: fn(&[u8]) -> Vec<u8>, read: Read, changes: &[(usize, u8)]) {
    assert_eq!(repaired(good), good, "a repair leaves valid bytes unchanged");
    for &(at, byte) in changes {
        let mut bad = good.to_vec();
        assert_ne!(bad[at], byte, "byte {at} already has this value");
        bad[at] = byte;
        let error = read(&repaired(&bad)).unwrap_err();
        assert!(!error.to_string().contains("checksum"), "byte {at}: {error}");
    }
}

/// The decoder rejects a slot with valid checksums and contradictory fields.
#[test]
fn slot_with_contradictory_fields_is_rejected() {
    let (_, encoded) = samples::data();
    let good = encoded.bytes;
    let footer = good.len() - 48;
    let index = u64::from_le_bytes(good[footer..footer + 8].try_into().unwrap()) as usize;
    let line = index + 2 + encoded.lines[0].subject.as_str().len();
    assert_all_rejected(
        &good,
        repair::segment,
        read_slot,
        &[
            (8, 0),                         // format 0
            (12, 0),                        // a birth with blocks, not in slot 0
            (12, 2),                        // a seal with blocks
            (12, 3),                        // an unknown kind
            (13, 2),                        // another slot
            (46, b'q'),                     // another log
            (index + 2, b'z'),              // lines not sorted
            (index + 2, b'*'),              // not a subject
            (line, good[line] ^ 1),         // a block that does not start after the header
            (line + 8, good[line + 8] ^ 1), // a block of another length
            (line + 16, 0),                 // no entries
            (line + 20, 200),               // ends before it starts
            (footer + 16, 2),               // fewer lines
        ],
    );
}

/// The decoders reject an object if one checksum is wrong and the checksums above it are valid. Two checksums cover
/// each byte, so a flipped bit alone does not prove that a decoder verifies both.
#[test]
fn decoder_verifies_each_checksum_separately() {
    let slot = samples::data().1.bytes;
    let (header, footer) = (46 + samples::log().to_string().len(), slot.len() - 48);
    let index = u64::from_le_bytes(slot[footer..footer + 8].try_into().unwrap()) as usize;
    let block = index + 2 + samples::data().1.lines[0].subject.as_str().len() + 36;
    for at in [header, block, footer + 20, footer + 24, footer + 32] {
        let mut bad = slot.to_vec();
        bad[at] ^= 1;
        if at < footer {
            let sum = crc32c(&bad[index..footer]);
            bad[footer + 20..footer + 24].copy_from_slice(&sum.to_le_bytes());
        }
        if at < footer + 24 {
            let sum = Crc64::of(&bad[..footer + 24]);
            bad[footer + 24..footer + 32].copy_from_slice(&sum.to_u64().to_le_bytes());
        }
        if at < footer + 32 {
            let sum = crc32c(&bad[footer..footer + 32]);
            bad[footer + 32..footer + 36].copy_from_slice(&sum.to_le_bytes());
        }
        assert!(read_slot(&bad).is_err(), "byte {at}");
    }

    let mut delta = delta_bytes().to_vec();
    let block = 26 + "app.orders.eu".len();
    delta[block + 8] ^= 1;
    let sum = crc32c(&delta[block..block + 16]);
    delta[block + 16..block + 20].copy_from_slice(&sum.to_le_bytes());
    assert!(read_delta(&delta).is_err());

    let mut index = index_bytes().to_vec();
    let end = index.len() - 28;
    index[end + 16] ^= 1;
    let sum = crc32c(&index[end..end + 24]);
    index[end + 24..].copy_from_slice(&sum.to_le_bytes());
    assert!(read_index(&index).is_err());
}

/// The decoder rejects a block whose entries contradict its index line.
#[test]
fn block_that_contradicts_index_line_is_rejected() {
    let (header, encoded) = samples::data();
    let at = encoded.lines.iter().position(|line| line.subject.as_str() == "app.orders.eu").unwrap();
    let object = segment::decode(&samples::log(), header.slot, encoded.bytes).unwrap();
    let block = object.frames_of(&object.lines[at]);
    let good = object.lines[at].clone();
    let decode =
        |line: &segment::IndexLine| segment::decode_block(&samples::log(), header.slot, line, &block);
    assert!(decode(&good).is_ok());
    for bad in [
        segment::IndexLine { entries: good.entries - 1, ..good.clone() },
        segment::IndexLine { first_after: good.first_after.next(), ..good.clone() },
        segment::IndexLine { last_rev: good.last_rev.next(), ..good.clone() },
    ] {
        assert!(matches!(decode(&bad), Err(FormatError::Corrupt { .. })), "{bad:?}");
    }
}

/// The decoder rejects an index with valid checksums and contradictory fields.
#[test]
fn index_with_contradictory_fields_is_rejected() {
    let good = index_bytes();
    let first = 37 + samples::log().to_string().len();
    let end = good.len() - 28;
    let table = u64::from_le_bytes(good[end..end + 8].try_into().unwrap()) as usize;
    let lines = first + 2 + "app.Orders".len();
    assert_all_rejected(
        &good,
        repair::index,
        read_index,
        &[
            (8, 0),                   // format 0
            (12, 3),                  // a seal below an entry
            (37, b'q'),               // another log
            (first + 2, b'z'),        // subjects not sorted
            (lines, 0),               // a subject without lines
            (lines, 2),               // more lines than the group has
            (lines + 4, 200),         // a slot above the seal
            (table, good[table] ^ 1), // a subject at another offset than the table has
            (end, good[end] ^ 1),     // a table at another offset
            (end + 8, 2),             // fewer subjects
        ],
    );
}

/// The decoder rejects a delta with valid checksums and contradictory fields, or with another subject or rev than
/// expected.
#[test]
fn delta_with_contradictory_fields_is_rejected() {
    let numbers = 14 + "app.orders.eu".len();
    let good = delta_bytes();
    let (block, end) = (numbers + 12, good.len() - 28);
    assert_all_rejected(
        &good,
        repair::delta,
        read_delta,
        &[
            (8, 0),         // format 0
            (14, b'A'),     // another subject
            (numbers, 39),  // starts earlier than its entries
            (block + 4, 9), // fewer entries in the block
            (end + 4, 1),   // a number that is always 0
            (end + 8, 9),   // fewer entries
            (end + 16, 49), // ends earlier
        ],
    );
    let elsewhere =
        delta::decode(&samples::subject("app.orders"), Rev::new(50), "a delta", &good).unwrap_err();
    assert!(elsewhere.to_string().contains("app.orders.eu"), "{elsewhere}");
    let other_name =
        delta::decode(&samples::subject("app.orders.eu"), Rev::new(51), "a delta", &good).unwrap_err();
    assert!(other_name.to_string().contains("rev 50"), "{other_name}");
}

/// The decoder rejects a frame with a valid checksum and an entry that no version writes.
#[test]
fn frame_with_invalid_entry_is_rejected() {
    let wrapped =
        |body: &[u8]| repair::frames(&[&(body.len() as u32).to_le_bytes()[..], &[0; 4], body].concat());
    let entry = samples::entry(7, Vec::new());
    let good = dormouse_protocol::encode(&entry).unwrap();
    assert_eq!(frame::decode_all(&wrapped(&good)).unwrap(), std::slice::from_ref(&entry));
    let highest = dormouse_format::entry::LogEntry { after: Rev::new(i64::MAX as u64), ..entry.clone() };
    let above = dormouse_format::entry::LogEntry { after: Rev::new(1 + i64::MAX as u64), ..entry.clone() };
    let termless = dormouse_format::entry::LogEntry { term: Default::default(), ..entry };
    let encode = |entry| dormouse_protocol::encode(entry).unwrap();
    assert!(frame::decode_all(&wrapped(&encode(&highest))).is_ok());
    // Not MessagePack, trailing bytes, an empty entry, no term, a rev too large for SQLite, a field of a later version.
    let future = [&[good[0] + 1], &good[1..], b"\xa3new\x01"].concat();
    for bad in
        [&b"\xc1"[..], &[&good[..], b"\xc0"].concat(), b"", &encode(&termless), &encode(&above), &future]
    {
        assert!(frame::decode_all(&wrapped(bad)).is_err(), "{bad:?}");
    }
}
