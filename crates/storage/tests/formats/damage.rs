//! Damage is noticed, whatever it is; a newer version is named as such; right checksums excuse no contradiction.

use bytes::Bytes;
use dormouse_protocol::{ErrorCode, ErrorReply, Rev, Slot};
use dormouse_storage::checksum::Crc64;
use dormouse_storage::format::index::{self, LogIndex};
use dormouse_storage::format::segment::{self, Footer};
use dormouse_storage::format::{Fault, FormatError, crc32c, delta, frame};

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
    // Frames do not know how many they are: what is cut off between two of them is missed by what holds them.
    if read.len() == samples::run().len() {
        Ok(())
    } else {
        Err(Fault::Damaged("too few".to_owned()).of("frames"))
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

#[test]
fn one_flipped_bit_anywhere_is_noticed() {
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

#[test]
fn a_missing_or_added_byte_is_noticed() {
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

#[test]
fn a_newer_version_is_not_guessed_at() {
    let mut slot = samples::data().1.bytes.to_vec();
    let end = slot.len() - 12;
    (slot[8], slot[end]) = (2, 2);
    let mut index = index_bytes().to_vec();
    let mut delta = delta_bytes().to_vec();
    (index[8], delta[8]) = (2, 2);
    let footer: Read = |bytes| Footer::decode(&samples::log(), Slot::new(1), bytes).map(drop);
    // With or without checksums that we understand.
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
        assert!(matches!(error, FormatError::UnsupportedVersion { format: 2, newest: 1, .. }), "{error}");
        assert_eq!(ErrorReply::from(error).code, ErrorCode::Unavailable);
    }
}

#[test]
fn damage_tells_which_object() {
    let bytes = samples::data().1.bytes;
    let error = ErrorReply::from(read_slot(&bytes[1..]).unwrap_err());
    assert_eq!(error.code, ErrorCode::Corrupt);
    assert_eq!(error.object.as_deref(), Some("logs/persist-1-01J9Z3ZZZZZZZZZZZZZZZZZZZZ/0000000000000001"));
}

#[test]
fn repairing_changes_nothing_that_is_good() {
    let part = include_bytes!("../golden/part.wal");
    assert_eq!(repair::wal(part), part);
    for name in ["manifest-deltas.json", "manifest-tombstone-2.json"] {
        let manifest = golden_file(name);
        assert_eq!(repair::manifest(&manifest), manifest);
    }
}

/// Each of `changes` puts another byte at a place; with every checksum right again it must still be refused.
fn refuse_all(good: &[u8], repaired: fn(&[u8]) -> Vec<u8>, read: Read, changes: &[(usize, u8)]) {
    assert_eq!(repaired(good), good, "there is nothing to repair in what is good");
    for &(at, byte) in changes {
        let mut bad = good.to_vec();
        assert_ne!(bad[at], byte, "byte {at} is so already");
        bad[at] = byte;
        let error = read(&repaired(&bad)).unwrap_err();
        assert!(!error.to_string().contains("checksum"), "byte {at}: {error}");
    }
}

#[test]
fn a_slot_that_contradicts_itself_is_refused() {
    let (_, encoded) = samples::data();
    let good = encoded.bytes;
    let footer = good.len() - 48;
    let index = u64::from_le_bytes(good[footer..footer + 8].try_into().unwrap()) as usize;
    let line = index + 2 + encoded.lines[0].subject.as_str().len();
    refuse_all(
        &good,
        repair::segment,
        read_slot,
        &[
            (8, 0),                         // format 0
            (12, 0),                        // a birth with blocks, not in slot 0
            (12, 2),                        // a seal with blocks
            (12, 3),                        // no kind
            (13, 2),                        // another slot
            (46, b'q'),                     // another log
            (index + 2, b'z'),              // lines not sorted
            (index + 2, b'*'),              // no subject
            (line, good[line] ^ 1),         // a block that does not begin behind the header
            (line + 8, good[line + 8] ^ 1), // a block of another length
            (line + 16, 0),                 // no entries
            (line + 20, 200),               // ends before it begins
            (footer + 16, 2),               // fewer lines
        ],
    );
}

/// Every byte is summed up twice, so that a flipped bit does not show whether both sums are looked at: here one sum is
/// wrong and those above it are right.
#[test]
fn every_checksum_counts_by_itself() {
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
    let numbers = 14 + "app.orders.eu".len();
    delta[numbers + 28] ^= 1;
    let sum = crc32c(&delta[..numbers + 36]);
    delta[numbers + 36..numbers + 40].copy_from_slice(&sum.to_le_bytes());
    assert!(read_delta(&delta).is_err());

    let mut index = index_bytes().to_vec();
    let end = index.len() - 28;
    index[end + 16] ^= 1;
    let sum = crc32c(&index[end..end + 24]);
    index[end + 24..].copy_from_slice(&sum.to_le_bytes());
    assert!(read_index(&index).is_err());
}

#[test]
fn a_block_that_breaks_its_promise_is_refused() {
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

#[test]
fn an_index_that_contradicts_itself_is_refused() {
    let good = index_bytes();
    let first = 37 + samples::log().to_string().len();
    let end = good.len() - 28;
    let table = u64::from_le_bytes(good[end..end + 8].try_into().unwrap()) as usize;
    let lines = first + 2 + "app.Orders".len();
    refuse_all(
        &good,
        repair::index,
        read_index,
        &[
            (8, 0),                   // format 0
            (12, 3),                  // a seal below an entry
            (37, b'q'),               // another log
            (first + 2, b'z'),        // subjects not sorted
            (lines, 0),               // a subject without lines
            (lines, 2),               // more lines than there are
            (lines + 4, 200),         // a slot above the seal
            (table, good[table] ^ 1), // a subject elsewhere than the table says
            (end, good[end] ^ 1),     // a table elsewhere
            (end + 8, 2),             // fewer subjects
        ],
    );
}

#[test]
fn a_delta_that_contradicts_itself_is_refused() {
    let numbers = 14 + "app.orders.eu".len();
    let good = delta_bytes();
    refuse_all(
        &good,
        repair::delta,
        read_delta,
        &[
            (8, 0),                                 // format 0
            (14, b'A'),                             // another subject
            (numbers, 39),                          // begins earlier than its entries
            (numbers + 8, 49),                      // ends earlier
            (numbers + 16, 9),                      // fewer entries
            (numbers + 20, good[numbers + 20] ^ 1), // fewer bytes
        ],
    );
    let elsewhere =
        delta::decode(&samples::subject("app.orders"), Rev::new(50), "a delta", &good).unwrap_err();
    assert!(elsewhere.to_string().contains("app.orders.eu"), "{elsewhere}");
    let other_name =
        delta::decode(&samples::subject("app.orders.eu"), Rev::new(51), "a delta", &good).unwrap_err();
    assert!(other_name.to_string().contains("rev 50"), "{other_name}");
}

#[test]
fn frames_that_no_version_wrote_are_refused() {
    let wrapped =
        |body: &[u8]| repair::frames(&[&(body.len() as u32).to_le_bytes()[..], &[0; 4], body].concat());
    let entry = samples::entry(7, Vec::new());
    let good = dormouse_protocol::encode(&entry).unwrap();
    assert_eq!(frame::decode_all(&wrapped(&good)).unwrap(), std::slice::from_ref(&entry));
    let highest = dormouse_storage::entry::Entry { after: Rev::new(i64::MAX as u64), ..entry.clone() };
    let above = dormouse_storage::entry::Entry { after: Rev::new(1 + i64::MAX as u64), ..entry.clone() };
    let termless = dormouse_storage::entry::Entry { term: Default::default(), ..entry };
    let encode = |entry| dormouse_protocol::encode(entry).unwrap();
    assert!(frame::decode_all(&wrapped(&encode(&highest))).is_ok());
    // Not MessagePack, trailing bytes, nothing at all, no term, a rev that SQLite cannot hold, a field of the future.
    let future = [&[good[0] + 1], &good[1..], b"\xa3new\x01"].concat();
    for bad in
        [&b"\xc1"[..], &[&good[..], b"\xc0"].concat(), b"", &encode(&termless), &encode(&above), &future]
    {
        assert!(frame::decode_all(&wrapped(bad)).is_err(), "{bad:?}");
    }
}
