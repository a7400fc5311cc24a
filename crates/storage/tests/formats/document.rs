//! Checks `docs/formats.md`: its tables alone are enough to parse the golden WAL part, and it has the SQLite schema.

use std::collections::BTreeSet;
use std::fs;

use crate::golden::{WRITE, golden_file};
use crate::table::{crc, document, path, walk};

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

/// The SQLite schema, application id and schema version match `docs/formats.md`.
#[test]
fn sqlite_schema_matches_document() {
    let source = include_str!("../../src/database/schema.rs");
    let (_, create) = source.split_once("CREATE: &str = \"\n").unwrap();
    let (create, _) = create.split_once("\";\n").unwrap();
    let document = document();
    let (before, rest) = document.split_once("```sql\n").unwrap();
    let (documented, after) = rest.split_once("```\n").unwrap();
    if std::env::var_os(WRITE).is_some() && documented != create {
        fs::write(path(), format!("{before}```sql\n{create}```\n{after}")).unwrap();
        return;
    }
    assert_eq!(documented, create, "docs/formats.md has other tables ({WRITE}=1 writes them)");
    let number = |name: &str| {
        let (_, value) = source.split_once(&format!("{name}: i32 = ")).unwrap();
        value.split_once(';').unwrap().0.replace('_', "")
    };
    for stated in [number("APPLICATION_ID"), format!("`user_version` is {}", number("SCHEMA_VERSION"))] {
        assert!(document.contains(&stated), "{stated}");
    }
}
