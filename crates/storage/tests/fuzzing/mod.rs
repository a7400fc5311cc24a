//! What must hold of any bytes: the fuzz targets run it on what they invent, the tests on the corpus.
//!
//! Every check takes the bytes twice: as they are, and with all checksums made right, because no fuzzer finds a
//! checksum by chance and what is behind it must stand up too.

pub mod repair;

use dormouse_protocol::{LogId, Slot, Subject};
use dormouse_storage::entry::Entry;
use dormouse_storage::format::index::{self, LogIndex};
use dormouse_storage::format::segment::{self, Block, FOOTER_BYTES, Footer};
use dormouse_storage::format::{delta, frame};
use dormouse_storage::manifest::{Manifest, ManifestNumber};
use dormouse_storage::wal::{PartEnd, PartRecord, decode_part};

/// A decoder's check of bytes that may be anything. It panics when something does not hold.
pub type Check = fn(&[u8]);

/// One check per decoder, by the name of its fuzz target.
pub const CHECKS: &[(&str, Check)] = &[
    ("frame", frame),
    ("segment", segment),
    ("index", index),
    ("delta", delta),
    ("manifest", manifest),
    ("wal", wal),
];

fn log() -> LogId {
    "persist-1-01J9Z3ZZZZZZZZZZZZZZZZZZZZ".parse().expect("a log id")
}

/// What was read is written and read again as it was.
fn survive(entries: &[Entry]) {
    let frames: Vec<u8> =
        entries.iter().flat_map(|entry| frame::encode(entry).expect("it was small enough before")).collect();
    assert_eq!(frame::decode_all(&frames).as_deref(), Ok(entries));
}

/// Frames that stand one behind the other.
pub fn frame(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), repair::frames(bytes)] {
        if let Ok(entries) = frame::decode_all(&bytes) {
            survive(&entries);
        }
    }
}

/// A slot object: what is read as one is, byte for byte, what would be written.
pub fn segment(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), repair::segment(bytes)] {
        let slot = Slot::new(repair::slot_of(&bytes));
        if let Ok(footer) = Footer::decode(&log(), slot, &bytes)
            && let Some(index) = bytes.get(..bytes.len() - FOOTER_BYTES)
        {
            let _ = footer.decode_index(&log(), slot, index);
        }
        let Ok(object) = segment::decode(&log(), slot, bytes.clone().into()) else { continue };
        let blocks = object.lines.iter().map(|line| Block {
            subject: line.subject.clone(),
            first_after: line.first_after,
            last_rev: line.last_rev,
            entries: line.entries,
            frames: object.frames_of(line),
        });
        assert_eq!(segment::encode(&object.header, blocks.collect()).bytes, bytes);
        for line in &object.lines {
            if let Ok(entries) = object.entries_of(&line.subject) {
                survive(&entries);
            }
        }
    }
}

/// The index of a sealed log: likewise.
pub fn index(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), repair::index(bytes)] {
        let Ok(index) = LogIndex::decode(&log(), bytes.clone().into()) else { continue };
        let lines: Vec<_> = index.subjects().flat_map(|subject| index.lines_of(&subject)).collect();
        assert_eq!(index.subjects().count(), index.len());
        assert_eq!(index::encode(index.header(), lines), bytes);
    }
}

/// A delta: likewise.
pub fn delta(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), repair::delta(bytes)] {
        let Ok((subject, delta)) = delta::read(&bytes) else { continue };
        let frames = bytes[repair::delta_head(&subject)..].to_vec();
        let again = delta::encode(&subject, delta.after, [frames.into()]).expect("it was a run");
        assert_eq!((again.bytes.as_ref(), again.last_rev), (&bytes[..], delta.last_rev));
        survive(&delta.entries);
    }
}

/// A manifest.
pub fn manifest(bytes: &[u8]) {
    let subject = Subject::new("app.Orders").expect("a subject");
    for number in [1, 42].map(ManifestNumber::new) {
        for bytes in [bytes.to_vec(), repair::manifest(bytes)] {
            if let Ok(manifest) = Manifest::decode(&subject, number, &bytes) {
                assert_eq!(Manifest::decode(&subject, number, &manifest.encode()), Ok(manifest));
            }
        }
    }
}

/// A part of a write-ahead log: it ends within itself, and what is cut off where it says is read as before.
pub fn wal(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), repair::wal(bytes)] {
        let Some(part) = decode_part(&bytes) else { continue };
        for record in &part.records {
            if let PartRecord::Append(append) = record
                && let Ok(entries) = frame::decode_all(&append.frames)
            {
                survive(&entries);
            }
        }
        if let PartEnd::Torn { at } | PartEnd::Damaged { at } = part.end {
            let whole = bytes.get(..at as usize).expect("it ends within itself");
            let again = decode_part(whole).map(|part| part.records);
            assert_eq!(again.unwrap_or_default(), part.records);
        }
    }
}
