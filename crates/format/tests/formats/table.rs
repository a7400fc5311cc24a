//! Parses bytes by the tables of `docs/formats.md`. The tests of every crate that defines a stored format include this
//! file.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use dormouse_format::checksum::crc32c;

pub fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/formats.md")
}

pub fn document() -> String {
    fs::read_to_string(path()).unwrap()
}

/// A CRC-32C as wide as [`Fields::number`].
pub fn crc(bytes: &[u8]) -> u64 {
    crc32c(bytes).into()
}

/// The rows of the first table below a heading, each cell without its backquotes.
pub fn table(heading: &str) -> Vec<Vec<String>> {
    let document = document();
    let (_, below) = document
        .split_once(&format!("\n{heading}\n"))
        .unwrap_or_else(|| panic!("the document has no {heading:?}"));
    let rows =
        below.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    rows.skip(2)
        .map(|row| row.split('|').skip(1).map(|cell| cell.trim().replace('`', "")).collect())
        .collect()
}

/// The fields that a table finds in bytes: each field's name with its offset and bytes.
pub struct Fields {
    pub at: BTreeMap<String, (usize, Vec<u8>)>,
    pub end: usize,
}

impl Fields {
    pub fn number(&self, name: &str) -> u64 {
        let (_, bytes) = &self.at[name];
        bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }

    pub fn text(&self, name: &str) -> &str {
        std::str::from_utf8(&self.at[name].1).unwrap()
    }

    pub fn offset(&self, name: &str) -> usize {
        self.at[name].0
    }
}

/// Parses bytes by the table below a heading. The field before gives the length of `bytes` without a number.
pub fn walk(heading: &str, bytes: &[u8], start: usize) -> Fields {
    let (mut at, mut fields, mut length) = (start, BTreeMap::new(), 0);
    for row in table(heading) {
        let size = match row[1].as_str() {
            "u8" => 1,
            "u16" => 2,
            "u32" => 4,
            "u64" => 8,
            "bytes" => length,
            fixed => fixed.strip_suffix(" bytes").and_then(|count| count.parse().ok()).expect("a type"),
        };
        let field = bytes[at..at + size].to_vec();
        if row[0].ends_with("length") {
            length = field.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        }
        fields.insert(row[0].clone(), (at, field));
        at += size;
    }
    Fields { at: fields, end: at }
}
