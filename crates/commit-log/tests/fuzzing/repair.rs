//! Repairs every checksum for which a WAL part has a field. The format is implemented from `docs/formats.md`, without the
//! code under test.

use dormouse_format::checksum::crc32c;

use super::support::{number, put, put_crc32c};

/// A part of a write-ahead log.
pub fn wal(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let _ = repair_wal(&mut bytes);
    bytes
}

fn repair_wal(bytes: &mut [u8]) -> Option<()> {
    let name = 34..34 + number::<2>(bytes, 32)?;
    put_crc32c(bytes, 0..12, 12)?;
    put_crc32c(bytes, 0..name.end, name.end)?;
    // The checksums of a record also cover its context: log, part number and offset.
    let context = [bytes.get(name.clone())?, bytes.get(16..24)?].concat();
    let mut at = name.end + 4;
    while at < bytes.len() {
        let end = (at + 24).checked_add(number::<4>(bytes, at + 4)?)?;
        for (of, checksum) in [(at + 24..end, at + 16), (at..at + 20, at + 20)] {
            let summed = [&context[..], &(at as u64).to_le_bytes(), bytes.get(of)?].concat();
            put(bytes, checksum, &crc32c(&summed).to_le_bytes())?;
        }
        at = end;
    }
    Some(())
}
