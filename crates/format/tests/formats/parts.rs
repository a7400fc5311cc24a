//! Parts of objects, as range reads and lookups use them.

use bytes::Bytes;
use dormouse_format::checksum::crc32c;
use dormouse_format::delta::{self, DeltaDecoder};
use dormouse_format::frame;
use dormouse_format::index::{self, LogIndex};
use dormouse_format::record::{RecordOp, SetOperation};
use dormouse_format::segment::{self, FOOTER_BYTES, Footer, MAX_HEADER_BYTES};
use dormouse_protocol::{Rev, Slot};

use crate::samples;

fn part(bytes: &Bytes, range: std::ops::Range<u64>) -> Bytes {
    bytes.slice(range.start as usize..range.end as usize)
}

/// A segment returns the entries of each of its subjects and none for an absent subject.
#[test]
fn segment_returns_entries_of_each_subject() {
    let (header, encoded) = samples::data();
    let object = segment::decode(&samples::log(), header.slot, encoded.bytes).unwrap();
    assert_eq!(object.entries_of(&samples::subject("app.orders.eu")).unwrap(), samples::run());
    assert_eq!(object.entries_of(&samples::subject("app.Orders")).unwrap().len(), 1);
    assert_eq!(object.entries_of(&samples::subject("app.orders")).unwrap(), []);
}

/// Range reads of header, footer, index and block are enough to read one subject of a segment.
#[test]
fn segment_subject_is_read_by_ranges() {
    let (header, encoded) = samples::data();
    let (log, slot) = (samples::log(), header.slot);
    let front = encoded.bytes.slice(..MAX_HEADER_BYTES.min(encoded.bytes.len()));
    assert_eq!(segment::decode_header(&log, slot, &front).unwrap(), header);
    // More than the footer may have been read: the index is often in it.
    for tail_bytes in [FOOTER_BYTES, encoded.bytes.len()] {
        let tail = encoded.bytes.slice(encoded.bytes.len() - tail_bytes..);
        let footer = Footer::decode(&log, slot, &tail).unwrap();
        assert_eq!(footer.object_bytes(), encoded.bytes.len() as u64);
        assert_eq!(footer.checksum, encoded.checksum);
        let lines = footer.decode_index(&log, slot, &part(&encoded.bytes, footer.index.clone())).unwrap();
        assert_eq!(lines, encoded.lines);
    }
    let line = encoded.lines.iter().find(|line| line.subject.as_str() == "app.orders.eu").unwrap();
    let block = part(&encoded.bytes, line.range());
    assert_eq!(segment::decode_block(&log, slot, line, &block).unwrap(), samples::run());
    let error = segment::decode_block(&log, slot, line, &block[1..]).unwrap_err();
    assert!(error.to_string().contains("app.orders.eu"), "{error}");
}

/// A log index returns the lines of all its subjects and none for an absent subject.
#[test]
fn index_finds_all_subjects_and_no_other() {
    let (header, lines) = samples::index();
    let index = LogIndex::decode(&samples::log(), index::encode(&header, lines.clone())).unwrap();
    assert_eq!((index.len(), index.subjects().count()), (3, 3));
    for subject in index.subjects() {
        let expected: Vec<_> = lines.iter().filter(|(_, line)| line.subject == subject).cloned().collect();
        assert_eq!(index.lines_of(&subject), expected);
    }
    for absent in ["a", "app.orders", "app.orders.eu.x", "zzz", "名"] {
        assert_eq!(index.lines_of(&samples::subject(absent)), []);
    }
    let empty = LogIndex::decode(&samples::log(), index::encode(&header, Vec::new())).unwrap();
    assert!(empty.is_empty() && empty.lines_of(&samples::subject("a")).is_empty());
}

/// The encoder rejects a delta with a gap, a wrong start, no entries or a damaged frame.
#[test]
fn delta_with_invalid_run_is_not_encoded() {
    let (subject, run) = (samples::subject("a"), samples::run());
    let with_gap = [samples::frames(&run[..1]), samples::frames(&run[2..])];
    for (after, frames) in [
        (40, with_gap.to_vec()),
        (39, vec![samples::frames(&run)]),
        (40, Vec::new()),
        (40, vec![samples::frames(&run).slice(1..)]),
    ] {
        assert!(delta::encode(&subject, Rev::new(after), frames).is_err());
    }
}

/// The run check accepts consecutive entries and rejects a run with a missing entry.
#[test]
fn entry_run_with_gap_is_rejected() {
    let run = samples::run();
    assert_eq!(frame::check_run(&run), Ok(()));
    assert_eq!(frame::check_run(&[]), Ok(()));
    for missing in 1..run.len() - 1 {
        let mut with_gap = run.clone();
        with_gap.remove(missing);
        assert!(frame::check_run(&with_gap).is_err(), "without entry {missing}");
    }
}

/// A segment of 100,000 subjects encodes and decodes.
#[test]
fn segment_holds_100000_subjects() {
    let entry = samples::entry(0, vec![RecordOp::Set(samples::minimal_set(1))]);
    let blocks = (0..100_000)
        .rev()
        .map(|number| samples::block(&format!("app.user.{number:06}"), std::slice::from_ref(&entry)));
    let (header, _) = samples::data();
    let encoded = segment::encode(&header, blocks.collect());
    let object = segment::decode(&samples::log(), Slot::new(1), encoded.bytes).unwrap();
    assert_eq!(object.lines.len(), 100_000);
    assert_eq!(object.entries_of(&samples::subject("app.user.077777")).unwrap(), [entry]);
}

/// Whatever the sizes of its entries, a delta that was encoded is decoded, in pieces of any size. Sizes are around each
/// limit: a block, an entry, and nothing.
#[test]
fn delta_of_any_size_is_read_as_written() {
    let subject = samples::subject("a");
    let entry = |after: u64, bytes: usize| {
        let value = Some(Bytes::from(vec![7; bytes]));
        samples::entry(after, vec![RecordOp::Set(SetOperation { value, ..samples::minimal_set(after + 1) })])
    };
    let overhead = frame::encode(&entry(0, 0)).unwrap().len() + 16;
    let most = frame::MAX_ENTRY_BYTES - overhead;
    let block = delta::MAX_BLOCK_BYTES;
    for sizes in [
        vec![0],
        vec![block - overhead, 0, 0],
        vec![block, 0],
        vec![0, block, 0, block - 2 * overhead, 1],
        vec![most],
        vec![0, most, 0],
        vec![block / 2; 5],
        vec![1_000; 9_000],
    ] {
        let run: Vec<_> = sizes.iter().zip(0..).map(|(bytes, after)| entry(after, *bytes)).collect();
        let encoded =
            delta::encode(&subject, Rev::new(0), run.iter().map(|one| frame::encode(one).unwrap())).unwrap();
        for piece_bytes in [1_000_003, 64 * 1_024 * 1_024] {
            let mut decoder = DeltaDecoder::expecting(&subject, encoded.last_rev);
            let mut read = Vec::new();
            for piece in encoded.bytes.chunks(piece_bytes) {
                read.extend(decoder.push(piece).unwrap());
            }
            decoder.finish().unwrap();
            assert!(read == run, "{} entries of {} bytes", run.len(), encoded.bytes.len());
        }
    }
}

/// A block above the size limit is rejected before its frames arrive; so is a delta that ends too early.
#[test]
fn delta_block_above_limit_is_rejected_at_once() {
    let (subject, run) = (samples::subject("a"), samples::run());
    let encoded = delta::encode(&subject, Rev::new(40), [samples::frames(&run)]).unwrap();
    let (block, mut bytes) = (26 + 1, encoded.bytes.to_vec());
    bytes[block..block + 4].copy_from_slice(&(delta::MAX_BLOCK_BYTES as u32 + 1).to_le_bytes());
    let sum = crc32c(&bytes[block..block + 16]);
    bytes[block + 16..block + 20].copy_from_slice(&sum.to_le_bytes());
    let mut decoder = DeltaDecoder::any();
    assert!(decoder.push(&bytes[..block + 20]).unwrap_err().to_string().contains("a block of"));
    let mut decoder = DeltaDecoder::any();
    decoder.push(&encoded.bytes[..encoded.bytes.len() - 1]).unwrap();
    assert!(decoder.finish().is_err());
}
