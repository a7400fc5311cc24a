use bytes::Bytes;
use dormouse_protocol::{LogId, Rev, Slot, Subject, Term, Timestamp};
use ulid::Ulid;

use super::index::{IndexHeader, LogIndex};
use super::segment::{Block, FOOTER_BYTES, Footer, SlotHeader, SlotKind};
use super::*;
use crate::checksum::Crc64;
use crate::entry::Entry;
use crate::keys::Nonce;
use crate::plan::Operation;

fn log() -> LogId {
    "persist-1-01J9Z3ZZZZZZZZZZZZZZZZZZZZ".parse().unwrap()
}

fn subject(name: &str) -> Subject {
    Subject::new(name).unwrap()
}

fn entry(after: u64, operations: usize) -> Entry {
    let operation = Operation::DeleteAll { end_seq: dormouse_protocol::Seq::new(after + 1), count: 1 };
    Entry {
        term: Term::new(1),
        after: Rev::new(after),
        accept_time: Timestamp::from_micros(1_700_000_000_000_000 + after),
        request: None,
        operations: vec![operation; operations],
    }
}

fn block(name: &str, entries: &[Entry]) -> Block {
    Block {
        subject: subject(name),
        first_after: entries[0].after,
        last_rev: entries.last().unwrap().last_rev(),
        entries: entries.len() as u32,
        frames: entries.iter().flat_map(|entry| frame::encode(entry).unwrap()).collect(),
    }
}

fn header(kind: SlotKind, slot: u64) -> SlotHeader {
    SlotHeader {
        kind,
        log: log(),
        slot: Slot::new(slot),
        nonce: Nonce::new(Ulid::from(7_u128)),
        previous: Crc64::of(b"before"),
    }
}

#[test]
fn a_segment_gives_back_each_subject_s_entries() {
    let blocks =
        vec![block("b", &[entry(3, 1), entry(4, 2)]), block("a", &[entry(0, 0)]), block("b", &[entry(6, 1)])];
    let encoded = segment::encode(&header(SlotKind::Data, 1), blocks);
    let object = segment::decode(&log(), Slot::new(1), encoded.bytes.clone()).unwrap();
    assert_eq!((&object.header, &object.lines), (&header(SlotKind::Data, 1), &encoded.lines));
    assert_eq!(object.checksum, encoded.checksum);
    assert_eq!(object.entries_of(&subject("b")).unwrap(), [entry(3, 1), entry(4, 2), entry(6, 1)]);
    assert_eq!(object.entries_of(&subject("a")).unwrap(), [entry(0, 0)]);
    assert_eq!(object.entries_of(&subject("c")).unwrap(), []);

    let tail = &encoded.bytes[encoded.bytes.len() - FOOTER_BYTES..];
    let footer = Footer::decode(&log(), Slot::new(1), tail).unwrap();
    assert_eq!(footer.object_bytes(), encoded.bytes.len() as u64);
    let index = read::slice(&encoded.bytes, footer.index.clone()).unwrap();
    let lines = footer.decode_index(&log(), Slot::new(1), index).unwrap();
    assert_eq!(lines, encoded.lines);
    let block = read::slice(&encoded.bytes, lines[0].range()).unwrap();
    assert_eq!(segment::decode_block(&log(), Slot::new(1), &lines[0], block).unwrap(), [entry(0, 0)]);
}

#[test]
fn an_index_gives_back_each_subject_s_lines() {
    let lines = segment::encode(
        &header(SlotKind::Data, 1),
        vec![block("b", &[entry(3, 1)]), block("a", &[entry(0, 0)])],
    )
    .lines;
    let all = vec![
        (Slot::new(2), lines[1].clone()),
        (Slot::new(1), lines[1].clone()),
        (Slot::new(1), lines[0].clone()),
    ];
    let header = IndexHeader { log: log(), seal: Slot::new(3), nonce: Nonce::new(Ulid::from(9_u128)) };
    let index = LogIndex::decode(&log(), index::encode(&header, all)).unwrap();
    assert_eq!(index.header(), &header);
    assert_eq!(index.subjects().collect::<Vec<_>>(), [subject("a"), subject("b")]);
    assert_eq!(
        index.lines_of(&subject("b")),
        [(Slot::new(1), lines[1].clone()), (Slot::new(2), lines[1].clone())]
    );
    assert_eq!(index.lines_of(&subject("aa")), []);
}

#[test]
fn a_delta_gives_back_its_entries() {
    let frames = |entry: &Entry| frame::encode(entry).unwrap();
    let encoded =
        delta::encode(&subject("a"), Rev::new(3), [frames(&entry(3, 2)), frames(&entry(5, 0))]).unwrap();
    let delta = delta::decode(&subject("a"), Rev::new(5), "a delta", &encoded.bytes).unwrap();
    assert_eq!(delta.entries, [entry(3, 2), entry(5, 0)]);
    assert_eq!((delta.after, delta.last_rev), (Rev::new(3), encoded.last_rev));
    assert!(delta::encode(&subject("a"), Rev::new(3), [frames(&entry(4, 2))]).is_err());
    assert!(delta::encode(&subject("a"), Rev::new(3), Vec::<Bytes>::new()).is_err());
}
