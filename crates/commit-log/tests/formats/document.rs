//! Checks `docs/formats.md`: its tables alone are enough to parse the golden WAL part.

use std::collections::BTreeSet;

use crate::golden::golden_file;
use crate::table::{crc, document, walk};

/// The golden WAL part matches the tables of `docs/formats.md`, which lists every record kind.
#[test]
fn wal_part_layout_matches_document() {
    let bytes = golden_file("part.wal");
    let header = walk("### Part header", &bytes, 0);
    assert_eq!((header.text("magic"), header.number("format")), ("DORMWAL\n", 1));
    assert_eq!(header.number("format checksum"), crc(&bytes[..12]));
    let summed = &bytes[..header.offset("header checksum")];
    assert_eq!(header.number("header checksum"), crc(summed));
    let (mut at, mut kinds) = (header.end, BTreeSet::new());
    while at < bytes.len() {
        let record = walk("### Part record", &bytes, at);
        assert_eq!(record.at["magic"].1, *b"\xd0rec");
        kinds.insert(record.at["body"].1[0]);
        at = record.end;
    }
    let kinds: BTreeSet<String> = kinds.iter().map(ToString::to_string).collect();
    let known = document();
    assert!(kinds.iter().all(|kind| known.contains(&format!("\n| {kind} "))), "{kinds:?}");
}
