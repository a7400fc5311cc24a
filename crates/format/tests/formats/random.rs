//! Round trips of random content, and rejection of random bytes.

use bytes::Bytes;
use dormouse_format::delta::{self, DeltaDecoder};
use dormouse_format::entry::LogEntry;
use dormouse_format::frame;
use dormouse_format::index::{self, LogIndex};
use dormouse_format::keys::Nonce;
use dormouse_format::record::{RecordOp, SetOperation};
use dormouse_format::segment::{self, SlotHeader, SlotKind};
use dormouse_protocol::{Rev, Seq, Slot};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use crate::fuzzing::CHECKS;
use crate::samples;

fn operation() -> impl Strategy<Value = RecordOp> {
    let set = (1_u64.., any::<Option<String>>(), any::<Option<Vec<u8>>>()).prop_map(|(seq, key, value)| {
        SetOperation { key, value: value.map(Bytes::from), ..samples::minimal_set(seq >> 12) }
    });
    prop_oneof![
        set.clone().prop_map(RecordOp::Set),
        vec(set, 0..4).prop_map(|sets| RecordOp::Batch { sets }),
        any::<(u64, u64)>().prop_map(|(seq, count)| RecordOp::DeleteAll { end_seq: Seq::new(seq), count }),
    ]
}

/// A run of entries that starts at a random rev.
fn run() -> impl Strategy<Value = Vec<LogEntry>> {
    (0_u64..1 << 40, vec(vec(operation(), 0..4), 1..6)).prop_map(|(mut after, all)| {
        let entry = |operations: Vec<RecordOp>| {
            let entry = samples::entry(after, operations);
            after = entry.last_rev().get();
            entry
        };
        all.into_iter().map(entry).collect()
    })
}

proptest! {
    /// Random entries survive the round trip through a segment and through a delta.
    #[test]
    fn segments_and_deltas_round_trip_entries(
        runs in btree_map("[a-zA-Z0-9é_]{1,20}", run(), 1..6),
        slot in 1_u64..,
        nonce: [u8; 16],
    ) {
        let header = SlotHeader {
            kind: SlotKind::Data,
            slot: Slot::new(slot),
            nonce: Nonce::from_bytes(nonce),
            ..samples::data().0
        };
        let blocks = runs.iter().rev().map(|(name, run)| samples::block(name, run)).collect();
        let encoded = segment::encode(&header, blocks);
        let object = segment::decode(&samples::log(), header.slot, encoded.bytes).unwrap();
        prop_assert_eq!(&object.header, &header);
        prop_assert_eq!(object.lines.len(), runs.len());
        for (name, run) in &runs {
            let subject = samples::subject(name);
            prop_assert_eq!(&object.entries_of(&subject).unwrap(), run);
            let frames = object.frames_of(object.line_of(&subject).unwrap());
            let delta = delta::encode(&subject, run[0].after, [frames]).unwrap();
            let read = delta::decode(&subject, delta.last_rev, "a delta", &delta.bytes).unwrap();
            prop_assert_eq!(&read.entries, run);
            let mut decoder = DeltaDecoder::expecting(&subject, delta.last_rev);
            let mut entries = Vec::new();
            for piece in delta.bytes.chunks(5) {
                entries.extend(decoder.push(piece).unwrap());
            }
            prop_assert_eq!((decoder.after(), &entries), (Some(run[0].after), run));
            decoder.finish().unwrap();
        }
    }

    /// A log index returns exactly the random lines that it was encoded from.
    #[test]
    fn index_round_trips_random_lines(slots in vec((1_u64..50, vec("[a-d]{1,3}", 1..20)), 0..20)) {
        let sample = samples::data().1.lines.remove(0);
        let mut lines = std::collections::BTreeMap::new();
        for (slot, names) in slots {
            for name in names {
                let mut line = sample.clone();
                line.subject = samples::subject(&name);
                line.last_rev = Rev::new(slot + 7);
                lines.insert((line.subject.clone(), Slot::new(slot)), line);
            }
        }
        let (header, _) = samples::index();
        let header = index::IndexHeader { seal: Slot::new(50), ..header };
        let all = lines.iter().rev().map(|((_, slot), line)| (*slot, line.clone())).collect();
        let read = LogIndex::decode(&samples::log(), index::encode(&header, all)).unwrap();
        let found = read.subjects().flat_map(|subject| read.lines_of(&subject));
        let expected = lines.into_iter().map(|((_, slot), line)| (slot, line));
        prop_assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    }

    /// The decoders reject random bytes, also behind a valid start, and no decoder check panics.
    #[test]
    fn decoder_rejects_random_bytes(bytes: Vec<u8>, tail: Vec<u8>) {
        prop_assert!(bytes.is_empty() || frame::decode_all(&bytes).is_err());
        prop_assert!(delta::read(&bytes).is_err());
        for (_, check) in CHECKS {
            check(&bytes);
        }
        // Random bytes after a valid start.
        let start = samples::data().1.bytes;
        let bytes = [&start[..tail.len().min(start.len())], &tail[..]].concat();
        prop_assert!(segment::decode(&samples::log(), Slot::new(1), bytes.into()).is_err());
    }

    /// If some bytes of a valid object change and all its checksums are repaired, no check panics, and decoded content
    /// encodes to the same bytes.
    #[test]
    fn changed_objects_with_valid_checksums_never_panic(changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let (header, lines) = samples::index();
        let delta = delta::encode(&samples::subject("a"), Rev::new(40), [samples::frames(&samples::run())]);
        for good in [samples::data().1.bytes, index::encode(&header, lines), delta.unwrap().bytes] {
            let mut bad = good.to_vec();
            for (at, byte) in &changes {
                let at = at.index(bad.len());
                bad[at] = *byte;
            }
            for (_, check) in CHECKS {
                check(&bad);
            }
        }
    }
}
