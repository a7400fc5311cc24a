//! Checks `docs/formats.md`: its tables alone are enough to parse the golden files.

use std::collections::BTreeSet;
use std::fmt;

use dormouse_format::checksum::Crc64;
use dormouse_format::{delta, frame, index, segment};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::golden::golden_file;
use crate::samples;
use crate::table::{crc, document, table, walk};

/// The golden slots match the tables of `docs/formats.md`.
#[test]
fn slot_layout_matches_document() {
    for (name, kind, slot) in [("birth", 0, 0), ("data", 1, 1), ("seal", 2, 2)] {
        let bytes = golden_file(&format!("segment-{name}.bin"));
        let header = walk("### Slot header", &bytes, 0);
        assert_eq!((header.text("magic").as_bytes(), header.number("format")), (&segment::MAGIC[..], 1));
        assert_eq!((header.number("kind"), header.number("slot")), (kind, slot));
        assert_eq!(header.text("log"), samples::log().to_string());
        let summed = &bytes[..header.offset("header checksum")];
        assert_eq!(header.number("header checksum"), crc(summed));

        let start = bytes.len() - segment::FOOTER_BYTES;
        let footer = walk("### Slot footer", &bytes, start);
        assert_eq!((footer.end, footer.text("magic").as_bytes()), (bytes.len(), &segment::END_MAGIC[..]));
        assert_eq!(footer.number("index offset") + footer.number("index length"), start as u64);
        assert_eq!(footer.number("checksum"), Crc64::of(&bytes[..footer.offset("checksum")]).to_u64());
        assert_eq!(footer.number("footer checksum"), crc(&bytes[start..start + 32]));

        let (mut at, mut block) = (footer.number("index offset") as usize, header.end);
        assert_eq!(footer.number("index checksum"), crc(&bytes[at..start]));
        for _ in 0..footer.number("lines") {
            let line = walk("### Slot index line", &bytes, at);
            let end = block + line.number("length") as usize;
            assert_eq!(line.number("offset"), block as u64);
            assert_eq!(line.number("block checksum"), crc(&bytes[block..end]));
            let entries = frame::decode_all(&bytes[block..end]).unwrap();
            assert_eq!(line.number("entries"), entries.len() as u64);
            assert_eq!(line.number("first_after"), entries[0].after.get());
            assert_eq!(line.number("last_rev"), entries.last().unwrap().last_rev().get());
            (at, block) = (line.end, end);
        }
        assert_eq!((at, block as u64), (start, footer.number("index offset")));
    }
}

/// The golden index matches the tables of `docs/formats.md`.
#[test]
fn index_layout_matches_document() {
    let bytes = golden_file("index.bin");
    let header = walk("### Index header", &bytes, 0);
    assert_eq!((header.text("magic").as_bytes(), header.number("format")), (&index::MAGIC[..], 1));
    assert_eq!((header.number("seal"), header.text("log")), (4, samples::log().to_string().as_str()));
    let end = walk("### Index end", &bytes, bytes.len() - 28);
    assert_eq!(end.number("checksum"), Crc64::of(&bytes[..end.offset("checksum")]).to_u64());
    assert_eq!(end.number("end checksum"), crc(&bytes[bytes.len() - 28..bytes.len() - 4]));
    let (mut at, mut table, mut lines) = (header.end, end.number("table offset") as usize, Vec::new());
    for _ in 0..end.number("subjects") {
        assert_eq!(bytes[table..table + 8], (at as u64).to_le_bytes());
        table += 8;
        let group = walk("### Index group", &bytes, at);
        at = group.end;
        for _ in 0..group.number("lines") {
            let line = walk("### Index line", &bytes, at);
            lines.push((group.text("subject").to_owned(), line.number("slot"), line.number("offset")));
            at = line.end;
        }
    }
    assert_eq!((at, table), (end.number("table offset") as usize, bytes.len() - 28));
    let expected = samples::index().1.into_iter();
    let expected = expected.map(|(slot, line)| (line.subject.to_string(), slot.get(), line.offset));
    assert_eq!(lines, expected.collect::<Vec<_>>());
}

/// The golden delta and its frames match the tables of `docs/formats.md`.
#[test]
fn delta_layout_matches_document() {
    let bytes = golden_file("delta.bin");
    let header = walk("### Delta header", &bytes, 0);
    assert_eq!((header.text("magic").as_bytes(), header.number("format")), (&delta::MAGIC[..], 2));
    assert_eq!((header.text("subject"), header.number("after")), ("app.orders.eu", 40));
    assert_eq!(header.number("header checksum"), crc(&bytes[..header.offset("header checksum")]));
    let block = walk("### Delta block", &bytes, header.end);
    let frames = block.end..block.end + block.number("frames length") as usize;
    assert_eq!(block.number("frames checksum"), Crc64::of(&bytes[frames.clone()]).to_u64());
    assert_eq!(block.number("block checksum"), crc(&bytes[header.end..block.offset("block checksum")]));
    check_frames(&bytes[..frames.end], frames.start, block.number("entries"));
    let end = walk("### Delta end", &bytes, frames.end);
    assert_eq!((end.number("frames length"), end.number("zero")), (0, 0));
    assert_eq!((end.number("entries"), end.number("last_rev")), (block.number("entries"), 50));
    assert_eq!(end.number("end checksum"), crc(&bytes[frames.end..end.offset("end checksum")]));
    assert_eq!(end.end, bytes.len());

    let first = golden_file("delta-1.bin");
    let header = walk("### Delta header of format 1", &first, 0);
    assert_eq!((header.number("format"), header.number("last_rev")), (1, 50));
    assert_eq!(header.number("header checksum"), crc(&first[..header.offset("header checksum")]));
    assert_eq!(header.number("frames length"), (first.len() - header.end) as u64);
    assert_eq!(header.number("frames checksum"), Crc64::of(&first[header.end..]).to_u64());
    check_frames(&first, header.end, header.number("entries"));
    let limit = format!("at most {} MiB", delta::MAX_BLOCK_BYTES / (1_024 * 1_024));
    assert!(document().contains(&limit), "{limit}");
    let limit = format!("at most {} MiB", frame::MAX_ENTRY_BYTES / (1_024 * 1_024));
    assert!(document().contains(&limit), "{limit}");
}

/// The bytes from `at` on are this many frames.
fn check_frames(bytes: &[u8], mut at: usize, number: u64) {
    for _ in 0..number {
        let frame = walk("## The frame", bytes, at);
        let summed = [&bytes[at..at + 4], &frame.at["entry"].1].concat();
        assert_eq!(frame.number("checksum"), crc(&summed));
        at = frame.end;
    }
    assert_eq!(at, bytes.len());
}

/// The golden manifests have exactly the fields of `docs/formats.md`, in the same order.
#[test]
fn manifest_fields_match_document_in_order() {
    let documented: Vec<String> =
        table("## The manifest").into_iter().map(|mut row| row.swap_remove(0)).collect();
    for name in ["new", "snapshot", "deltas", "tombstone", "tombstone-2", "after-tombstone-2"] {
        let text = String::from_utf8(golden_file(&format!("manifest-{name}.json"))).unwrap();
        let mut fields = Vec::new();
        let mut rest = text.as_str();
        let is_second = name.ends_with("-2");
        for field in documented.iter().filter(|field| is_second || *field != "past") {
            let (_, after) =
                rest.split_once(&format!("\"{field}\":")).unwrap_or_else(|| panic!("{name}: {field}"));
            fields.push(field.clone());
            rest = after;
        }
        assert_eq!(
            serde_json::from_str::<serde_json::Map<_, _>>(&text).unwrap().len(),
            fields.len(),
            "{name}"
        );
        let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(manifest["format"], if is_second { 2 } else { 1 }, "{name}");
        if is_second {
            let documented: BTreeSet<String> =
                table("### The past").into_iter().map(|mut row| row.swap_remove(0)).collect();
            let past = manifest["past"].as_object().unwrap();
            assert_eq!(documented, past.keys().cloned().collect(), "{name}");
        }
    }
}

/// The names of all maps in a MessagePack value, however deep.
#[derive(Default)]
struct Names(BTreeSet<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self::default())
    }
}

impl<'de> Visitor<'de> for Names {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Self, A::Error> {
        while let Some(Self(names)) = list.next_element()? {
            self.0.extend(names);
        }
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some((name, Self(names))) = map.next_entry::<String, Self>()? {
            // The application chooses the names in metadata.
            if name != "metadata" {
                self.0.extend(names);
            }
            self.0.insert(name);
        }
        Ok(self)
    }
}

/// Every field name in a golden entry is documented, and every documented entry field and operation has a golden entry.
#[test]
fn entry_field_names_are_documented() {
    let (document, protocol) = (document(), include_str!("../../../../PROTOCOL.md"));
    let mut seen = BTreeSet::new();
    for (name, _) in samples::entries() {
        let bytes = golden_file(&format!("frame-{name}.bin"));
        let Names(names) = dormouse_protocol::decode(&bytes[frame::HEAD_BYTES..]).unwrap();
        seen.extend(names);
    }
    for name in &seen {
        // PROTOCOL.md documents replies, errors and configurations.
        let here = document.contains(&format!("`{name}`")) || protocol.contains(&format!("`{name}`"));
        let in_a_list = protocol.contains(&format!("{name}:")) || protocol.contains(&format!("{name}?"));
        assert!(here || in_a_list, "{name} is documented nowhere");
    }
    for heading in [
        "## The entry",
        "An operation is a map with one entry, named after what it does:",
        "| `configure` | `config`: the whole new configuration, as in PROTOCOL.md |",
    ] {
        for row in table(heading) {
            assert!(seen.contains(&row[0]), "no golden entry has {}", row[0]);
        }
    }
}
