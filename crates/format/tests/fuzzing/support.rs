//! Parts of the checks and repairs of all decoders. The checks of every crate that defines a stored format include this
//! file.

use std::ops::Range;

use dormouse_format::checksum::crc32c;
use dormouse_format::entry::LogEntry;
use dormouse_format::frame;

/// A decoder's check on any bytes. It panics if a property does not hold.
pub type Check = fn(&[u8]);

/// Asserts that decoded entries encode and decode to the same entries.
pub fn assert_entries_round_trip(entries: &[LogEntry]) {
    let frames: Vec<u8> = entries
        .iter()
        .flat_map(|entry| frame::encode(entry).expect("a decoded entry is small enough"))
        .collect();
    assert_eq!(frame::decode_all(&frames).as_deref(), Ok(entries));
}

/// The little-endian number of `N` bytes at an offset; `None` if the bytes end before it does.
pub fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<usize> {
    let taken = bytes.get(at..at.checked_add(N)?)?;
    let number = taken.iter().rev().try_fold(0_u64, |sum, byte| Some(sum << 8 | u64::from(*byte)))?;
    usize::try_from(number).ok()
}

/// Overwrites bytes at an offset; `None` if there are too few.
pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) -> Option<()> {
    bytes.get_mut(at..at.checked_add(value.len())?)?.copy_from_slice(value);
    Some(())
}

/// Writes the CRC-32C of a range.
pub fn put_crc32c(bytes: &mut [u8], of: Range<usize>, at: usize) -> Option<()> {
    let checksum = crc32c(bytes.get(of)?);
    put(bytes, at, &checksum.to_le_bytes())
}
