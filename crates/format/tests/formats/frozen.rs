//! Frozen formats: each version reads the bytes of every earlier version. A changed golden file means a new format.

use dormouse_format::index::{self, LogIndex};
use dormouse_format::{delta, frame, segment};
use dormouse_protocol::{Rev, Slot};

use crate::golden::{WRITE, golden_file, path};
use crate::samples;

/// The bytes of a golden file. If [`WRITE`] is set, `now` is first written to the file.
fn golden(name: &str, now: &[u8]) -> Vec<u8> {
    let path = path(name);
    if std::env::var_os(WRITE).is_some() && std::fs::read(&path).ok().as_deref() != Some(now) {
        std::fs::write(&path, now).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    golden_file(name)
}

/// The frame of every sample entry matches its golden file byte for byte and decodes to that entry.
#[test]
fn frame_bytes_are_frozen() {
    for (name, entry) in samples::entries() {
        let encoded = frame::encode(&entry).unwrap();
        let golden = golden(&format!("frame-{name}.bin"), &encoded);
        assert_eq!(encoded, golden, "{name}");
        assert_eq!(frame::decode_all(&golden).unwrap(), [entry], "{name}");
    }
}

/// The birth, data and seal slots match their golden files byte for byte and decode to the same content.
#[test]
fn slot_bytes_are_frozen() {
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

/// The log index matches its golden file byte for byte and decodes to the same lines.
#[test]
fn index_bytes_are_frozen() {
    let (header, lines) = samples::index();
    let encoded = index::encode(&header, lines.clone());
    let golden = golden("index.bin", &encoded);
    assert_eq!(encoded, golden);
    let index = LogIndex::decode(&samples::log(), golden.into()).unwrap();
    let read: Vec<_> = index.subjects().flat_map(|subject| index.lines_of(&subject)).collect();
    assert_eq!((index.header(), read), (&header, lines));
}

/// The delta matches its golden file byte for byte and decodes to the same entries.
#[test]
fn delta_bytes_are_frozen() {
    let (subject, run) = (samples::subject("app.orders.eu"), samples::run());
    let frames = [samples::frames(&run[..1]), samples::frames(&run[1..])];
    let encoded = delta::encode(&subject, Rev::new(40), frames).unwrap();
    let golden = golden("delta.bin", &encoded.bytes);
    assert_eq!(encoded.bytes, golden);
    let delta = delta::decode(&subject, encoded.last_rev, "a delta", &golden).unwrap();
    assert_eq!((delta.after, delta.last_rev, delta.entries), (Rev::new(40), Rev::new(50), run));
}

/// A delta of format 1, which has no blocks, decodes to the same entries.
#[test]
fn delta_of_format_1_is_read() {
    let bytes = golden_file("delta-1.bin");
    let delta = delta::decode(&samples::subject("app.orders.eu"), Rev::new(50), "a delta", &bytes).unwrap();
    assert_eq!((delta.after, delta.last_rev, delta.entries), (Rev::new(40), Rev::new(50), samples::run()));
}

/// The decoder rejects a slot under another slot number or log, and the error names the requested object.
#[test]
fn slot_of_other_log_or_number_is_rejected() {
    let (_, encoded) = samples::data();
    for (slot, log) in
        [(2, "persist-1-01J9Z3ZZZZZZZZZZZZZZZZZZZZ"), (1, "persist-2-01J9Z3ZZZZZZZZZZZZZZZZZZZZ")]
    {
        let error =
            segment::decode(&log.parse().unwrap(), Slot::new(slot), encoded.bytes.clone()).unwrap_err();
        assert!(error.to_string().starts_with(&format!("logs/{log}/000000000000000{slot}: ")), "{error}");
    }
}
