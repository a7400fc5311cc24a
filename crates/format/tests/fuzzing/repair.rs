//! Repairs every checksum for which the bytes have a field. The formats are implemented from `docs/formats.md`, without
//! the code under test.

use std::ops::Range;

use dormouse_format::checksum::{Crc64, crc32c};

use super::support::{number, put, put_crc32c};

fn put_crc64(bytes: &mut [u8], of: Range<usize>, at: usize) -> Option<()> {
    let checksum = Crc64::of(bytes.get(of)?);
    put(bytes, at, &checksum.to_u64().to_le_bytes())
}

fn repair_frames(bytes: &mut [u8], range: Range<usize>) -> Option<()> {
    let mut at = range.start;
    while at < range.end {
        let end = (at + 8).checked_add(number::<4>(bytes, at)?).filter(|end| *end <= range.end)?;
        let summed = [bytes.get(at..at + 4)?, bytes.get(at + 8..end)?].concat();
        put(bytes, at + 4, &crc32c(&summed).to_le_bytes())?;
        at = end;
    }
    Some(())
}

/// Frames.
pub fn frames(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let range = 0..bytes.len();
    let _ = repair_frames(&mut bytes, range);
    bytes
}

/// The slot that a slot object's header names.
pub fn slot_of(bytes: &[u8]) -> u64 {
    number::<8>(bytes, 13).unwrap_or_default() as u64
}

/// A slot object.
pub fn segment(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let _ = repair_segment(&mut bytes);
    bytes
}

fn repair_segment(bytes: &mut [u8]) -> Option<()> {
    let header = 46 + number::<1>(bytes, 45)?;
    put_crc32c(bytes, 0..header, header)?;
    let footer = bytes.len().checked_sub(48)?;
    let (start, length) = (number::<8>(bytes, footer)?, number::<8>(bytes, footer + 8)?);
    let end = start.checked_add(length).filter(|end| *end <= footer)?;
    let _ = repair_frames(bytes, header + 4..start);
    let mut at = start;
    while at < end {
        at += 2 + number::<2>(bytes, at)?;
        let (offset, length) = (number::<8>(bytes, at)?, number::<8>(bytes, at + 8)?);
        let block = offset..offset.checked_add(length)?;
        let _ = put_crc32c(bytes, block, at + 36);
        at += 40;
    }
    put_crc32c(bytes, start..end, footer + 20)?;
    put_crc64(bytes, 0..footer + 24, footer + 24)?;
    put_crc32c(bytes, footer..footer + 32, footer + 32)
}

/// The index of a sealed log.
pub fn index(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some(end) = bytes.len().checked_sub(28) {
        let _ = put_crc64(&mut bytes, 0..end + 16, end + 16);
        let _ = put_crc32c(&mut bytes, end..end + 24, end + 24);
    }
    bytes
}

/// A delta.
pub fn delta(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let _ = repair_delta(&mut bytes);
    bytes
}

fn repair_delta(bytes: &mut [u8]) -> Option<()> {
    let numbers = 14 + number::<2>(bytes, 12)?;
    if number::<4>(bytes, 8)? == 1 {
        let body = numbers + 40..bytes.len();
        let _ = repair_frames(bytes, body.clone());
        put_crc64(bytes, body, numbers + 28)?;
        return put_crc32c(bytes, 0..numbers + 36, numbers + 36);
    }
    put_crc32c(bytes, 0..numbers + 8, numbers + 8)?;
    let mut at = numbers + 12;
    loop {
        let length = number::<4>(bytes, at)?;
        if length == 0 {
            return put_crc32c(bytes, at..at + 24, at + 24);
        }
        let frames = at + 20..(at + 20).checked_add(length).filter(|end| *end <= bytes.len())?;
        let _ = repair_frames(bytes, frames.clone());
        put_crc64(bytes, frames.clone(), at + 8)?;
        put_crc32c(bytes, at..at + 16, at + 16)?;
        at = frames.end;
    }
}

/// A manifest.
pub fn manifest(bytes: &[u8]) -> Vec<u8> {
    let field = b",\"checksum\":\"";
    let Some(at) = bytes.windows(field.len()).rposition(|window| window == field) else {
        return bytes.to_vec();
    };
    let body = &bytes[..at];
    let checksum = Crc64::of(&[body, b"}"].concat());
    [body, field, checksum.to_string().as_bytes(), b"\"}"].concat()
}
