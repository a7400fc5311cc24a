//! Frozen: what any version ever wrote stays readable as it is. A change of a golden file is a new format.

use dormouse_protocol::{Rev, Slot};
use dormouse_storage::format::index::{self, LogIndex};
use dormouse_storage::format::{delta, frame, segment};

use crate::golden::golden;
use crate::samples;

#[test]
fn the_frame_of_every_entry_is_frozen() {
    for (name, entry) in samples::entries() {
        let encoded = frame::encode(&entry).unwrap();
        let golden = golden(&format!("frame-{name}.bin"), &encoded);
        assert_eq!(encoded, golden, "{name}");
        assert_eq!(frame::decode_all(&golden).unwrap(), [entry], "{name}");
    }
}

#[test]
fn every_kind_of_slot_is_frozen() {
    for (name, (header, encoded)) in
        [("birth", samples::birth()), ("data", samples::data()), ("seal", samples::seal())]
    {
        let golden = golden(&format!("segment-{name}.bin"), &encoded.bytes);
        assert_eq!(encoded.bytes, golden, "{name}");
        let object = segment::decode(&samples::log(), header.slot, golden.into()).unwrap();
        assert_eq!((object.header, object.lines), (header, encoded.lines), "{name}");
        assert_eq!(object.checksum, encoded.checksum, "{name}");
    }
}

#[test]
fn the_index_is_frozen() {
    let (header, lines) = samples::index();
    let encoded = index::encode(&header, lines.clone());
    let golden = golden("index.bin", &encoded);
    assert_eq!(encoded, golden);
    let index = LogIndex::decode(&samples::log(), golden.into()).unwrap();
    let read: Vec<_> = index.subjects().flat_map(|subject| index.lines_of(&subject)).collect();
    assert_eq!((index.header(), read), (&header, lines));
}

#[test]
fn the_delta_is_frozen() {
    let (subject, run) = (samples::subject("app.orders.eu"), samples::run());
    let frames = [samples::frames(&run[..1]), samples::frames(&run[1..])];
    let encoded = delta::encode(&subject, Rev::new(40), frames).unwrap();
    let golden = golden("delta.bin", &encoded.bytes);
    assert_eq!(encoded.bytes, golden);
    let delta = delta::decode(&subject, encoded.last_rev, "a delta", &golden).unwrap();
    assert_eq!((delta.after, delta.last_rev, delta.entries), (Rev::new(40), Rev::new(50), run));
}

#[test]
fn a_slot_knows_its_place() {
    let (_, encoded) = samples::data();
    for (slot, log) in
        [(2, "persist-1-01J9Z3ZZZZZZZZZZZZZZZZZZZZ"), (1, "persist-2-01J9Z3ZZZZZZZZZZZZZZZZZZZZ")]
    {
        let error =
            segment::decode(&log.parse().unwrap(), Slot::new(slot), encoded.bytes.clone()).unwrap_err();
        assert!(error.to_string().starts_with(&format!("logs/{log}/000000000000000{slot}: ")), "{error}");
    }
}
