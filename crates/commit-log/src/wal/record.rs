//! The bytes of a part: a header, then records. `docs/formats.md` specifies them.

use bytes::{BufMut, Bytes};
use crc_fast::{CrcAlgorithm, Digest};
use dormouse_protocol::{LogId, Rev, Slot, Subject};

use super::{Lsn, ShippedUpTo, WalAppend};

/// The newest format of a part that this version writes and reads.
pub(super) const WAL_FORMAT: u32 = 1;

/// The first bytes of a part.
const PART_MAGIC: [u8; 8] = *b"DORMWAL\n";

/// The first bytes of a record: the search after damage looks for them.
const RECORD_MAGIC: [u8; 4] = *b"\xd0rec";

/// Magic, format, and their checksum: the same in every future format.
const FORMAT_BYTES: usize = 16;

/// Magic, length, synced, checksum of the body, checksum of the head.
const HEAD_BYTES: usize = 24;

/// Maximum length of a record.
pub(super) const MAX_RECORD_BYTES: usize = 256 << 20;

const APPEND: u8 = 1;
const SHIPPED: u8 = 2;
const FAILED: u8 = 3;
const RESOLVED: u8 = 4;

/// Content of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalPart {
    /// The log.
    pub log: LogId,
    /// Its number among the log's parts, from 1.
    pub number: u64,
    /// The highest append in the earlier parts.
    pub before: Lsn,
    /// The whole records, in order, up to the first invalid one.
    pub records: Vec<PartRecord>,
    /// How it ends.
    pub end: PartEnd,
}

/// A record of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartRecord {
    /// Entries of a subject were accepted.
    Append(WalAppend),
    /// The shipped position of the log.
    Shipped(ShippedUpTo),
    /// The appends of these ranges, both ends included, were reported as failed.
    Failed(Vec<(Lsn, Lsn)>),
    /// The subject is resolved: it needs nothing from this log any more.
    Resolved(Subject),
}

/// How a part ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartEnd {
    /// With a whole record.
    Whole,
    /// With bytes that were never synced: the process ended or the power failed during the write.
    Torn {
        /// Where they begin.
        at: u64,
    },
    /// With bytes that were synced and are no valid record now.
    Damaged {
        /// Where they begin.
        at: u64,
    },
}

/// A part of a newer format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NewerFormat(pub u32);

/// Binds a record to its position: copies of it elsewhere (in a value, in another part) are not valid records.
#[derive(Debug, Clone)]
pub(super) struct RecordContext {
    log: String,
    number: u64,
}

impl RecordContext {
    pub(super) fn new(log: &LogId, number: u64) -> Self {
        Self { log: log.to_string(), number }
    }

    fn digest(&self, offset: u64) -> Digest {
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        digest.update(self.log.as_bytes());
        digest.update(&self.number.to_le_bytes());
        digest.update(&offset.to_le_bytes());
        digest
    }

    fn crc(&self, offset: u64, bytes: &[u8]) -> u32 {
        let mut digest = self.digest(offset);
        digest.update(bytes);
        low(digest.finalize())
    }
}

/// The lower 32 bits of a `u64` that holds a CRC-32C.
const fn low(crc: u64) -> u32 {
    crc as u32
}

fn plain_crc(bytes: &[u8]) -> u32 {
    low(crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes))
}

/// Encodes the header of a part.
pub(super) fn encode_header(log: &LogId, number: u64, before: Lsn) -> Vec<u8> {
    let name = log.to_string();
    let mut bytes = Vec::with_capacity(FORMAT_BYTES + 22 + name.len());
    bytes.put_slice(&PART_MAGIC);
    bytes.put_u32_le(WAL_FORMAT);
    bytes.put_u32_le(plain_crc(&bytes));
    bytes.put_u64_le(number);
    bytes.put_u64_le(before.get());
    bytes.put_u16_le(short(name.len()));
    bytes.put_slice(name.as_bytes());
    bytes.put_u32_le(plain_crc(&bytes));
    bytes
}

/// Converts a length; names are far shorter than the limit.
fn short(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

struct WalPartHeader {
    log: LogId,
    number: u64,
    before: Lsn,
    bytes: usize,
}

/// `Ok(None)`: no valid header.
fn decode_header(bytes: &[u8]) -> Result<Option<WalPartHeader>, NewerFormat> {
    let mut input = Input(bytes);
    let format = match (input.take(8), input.u32(), input.u32()) {
        (Some(magic), Some(format), Some(crc)) if magic == PART_MAGIC && crc == plain_crc(&bytes[..12]) => {
            format
        }
        _ => return Ok(None),
    };
    if format > WAL_FORMAT {
        return Err(NewerFormat(format));
    }
    let mut rest = || {
        let (number, before) = (input.u64()?, Lsn::new(input.u64()?));
        let length = usize::from(input.u16()?);
        let log = std::str::from_utf8(input.take(length)?).ok()?.parse().ok()?;
        let covered = bytes.len() - input.0.len();
        let whole = input.u32()? == plain_crc(&bytes[..covered]);
        whole.then_some(WalPartHeader { log, number, before, bytes: covered + 4 })
    };
    Ok(rest())
}

/// Appends a record to `out`, whose first byte is at `start` in the part; `synced` bytes of the part are known to
/// survive a loss of power. Returns whether the record is short enough to be read again; if not, nothing was appended.
pub(super) fn encode_record(
    out: &mut Vec<u8>,
    context: &RecordContext,
    start: u64,
    synced: u64,
    record: &PartRecord,
) -> bool {
    let before = out.len();
    let offset = start + before as u64;
    out.put_slice(&[0; HEAD_BYTES]);
    encode_body(out, record);
    let length = out.len() - before - HEAD_BYTES;
    if length > MAX_RECORD_BYTES {
        out.truncate(before);
        return false;
    }
    let (head, body) = out[before..].split_at_mut(HEAD_BYTES);
    let mut input = &mut head[..];
    input.put_slice(&RECORD_MAGIC);
    input.put_u32_le(length as u32);
    input.put_u64_le(synced);
    input.put_u32_le(context.crc(offset, body));
    let crc = context.crc(offset, &head[..HEAD_BYTES - 4]);
    head[HEAD_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    true
}

fn encode_body(out: &mut Vec<u8>, record: &PartRecord) {
    match record {
        PartRecord::Append(append) => {
            out.put_u8(APPEND);
            out.put_u64_le(append.lsn.get());
            out.put_u64_le(append.first_after.get());
            out.put_u64_le(append.last_rev.get());
            out.put_u32_le(append.entries);
            let subject = append.subject.as_str();
            out.put_u16_le(short(subject.len()));
            out.put_slice(subject.as_bytes());
            out.put_slice(&append.frames);
        }
        PartRecord::Shipped(ShippedUpTo { through, slot }) => {
            out.put_u8(SHIPPED);
            out.put_u64_le(through.get());
            out.put_u64_le(slot.get());
        }
        PartRecord::Failed(ranges) => {
            out.put_u8(FAILED);
            for (first, last) in ranges {
                out.put_u64_le(first.get());
                out.put_u64_le(last.get());
            }
        }
        PartRecord::Resolved(subject) => {
            out.put_u8(RESOLVED);
            out.put_slice(subject.as_str().as_bytes());
        }
    }
}

/// `None`: a whole record of a type or content that this format does not know.
fn decode_body(body: &Bytes) -> Option<PartRecord> {
    let mut input = Input(body);
    match input.u8()? {
        APPEND => {
            let lsn = Lsn::new(input.u64()?);
            let (first_after, last_rev) = (Rev::new(input.u64()?), Rev::new(input.u64()?));
            let entries = input.u32()?;
            let length = usize::from(input.u16()?);
            let subject = subject(input.take(length)?)?;
            let frames = body.slice_ref(input.0);
            Some(PartRecord::Append(WalAppend { lsn, subject, first_after, last_rev, entries, frames }))
        }
        SHIPPED => {
            let shipped = ShippedUpTo { through: Lsn::new(input.u64()?), slot: Slot::new(input.u64()?) };
            input.0.is_empty().then_some(PartRecord::Shipped(shipped))
        }
        FAILED => {
            let mut ranges = Vec::new();
            while !input.0.is_empty() {
                ranges.push((Lsn::new(input.u64()?), Lsn::new(input.u64()?)));
            }
            Some(PartRecord::Failed(ranges))
        }
        RESOLVED => subject(input.0).map(PartRecord::Resolved),
        _ => None,
    }
}

fn subject(bytes: &[u8]) -> Option<Subject> {
    Subject::new(std::str::from_utf8(bytes).ok()?).ok()
}

/// A valid record at its original position.
struct DecodedRecord {
    body: Bytes,
    synced: u64,
    end: usize,
}

fn find_record(bytes: &Bytes, at: usize, context: &RecordContext) -> Option<DecodedRecord> {
    let mut input = Input(bytes.get(at..)?);
    let head = input.take(HEAD_BYTES)?;
    let (checked, crc) = head.split_at(HEAD_BYTES - 4);
    let mut fields = Input(checked);
    let magic = fields.take(4)?;
    if magic != RECORD_MAGIC || crc != context.crc(at as u64, checked).to_le_bytes() {
        return None;
    }
    let (length, synced, body_crc) = (fields.u32()? as usize, fields.u64()?, fields.u32()?);
    let body = bytes.slice_ref(input.take(length)?);
    (context.crc(at as u64, &body) == body_crc).then_some(DecodedRecord {
        body,
        synced,
        end: at + HEAD_BYTES + length,
    })
}

/// Decodes a part that should be number `number` of `log`.
pub(super) fn decode(log: &LogId, number: u64, bytes: &Bytes) -> Result<WalPart, NewerFormat> {
    let context = RecordContext::new(log, number);
    let mut part =
        WalPart { log: log.clone(), number, before: Lsn::ZERO, records: Vec::new(), end: PartEnd::Whole };
    let mut at = match decode_header(bytes)? {
        Some(header) if header.log == *log && header.number == number => {
            part.before = header.before;
            header.bytes
        }
        // The following bytes cannot be distinguished from another part's.
        Some(_) => return Ok(WalPart { end: PartEnd::Damaged { at: 0 }, ..part }),
        None => {
            part.end = classify_end(bytes, 0, &context);
            return Ok(part);
        }
    };
    while at < bytes.len() {
        let record = find_record(bytes, at, &context)
            .and_then(|decoded| Some((decode_body(&decoded.body)?, decoded.end)));
        let Some((record, end)) = record else {
            part.end = classify_end(bytes, at, &context);
            break;
        };
        part.records.push(record);
        at = end;
    }
    Ok(part)
}

/// The bytes at `at` are no valid record. Records after them show whether they were synced. The disk writes a part's
/// pages in any order, so whole records after a bad one prove nothing by themselves.
fn classify_end(bytes: &Bytes, at: usize, context: &RecordContext) -> PartEnd {
    let start = at as u64;
    let mut from = at;
    while let Some(next) = bytes[from..].windows(RECORD_MAGIC.len()).position(|window| window == RECORD_MAGIC)
    {
        from += next;
        match find_record(bytes, from, context) {
            Some(decoded) if decoded.synced > start => return PartEnd::Damaged { at: start },
            Some(decoded) => from = decoded.end,
            None => from += 1,
        }
    }
    PartEnd::Torn { at: start }
}

/// Decodes a part without knowing its log; `None` if the bytes do not begin as a part does, or are of a newer format.
///
/// Public for the tests of the format and for its fuzz target; recovery reads parts with `read_wal`.
#[must_use]
pub fn decode_part(bytes: &[u8]) -> Option<WalPart> {
    let header = decode_header(bytes).ok()??;
    decode(&header.log, header.number, &Bytes::copy_from_slice(bytes)).ok()
}

/// Unread bytes.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}
