//! Decodes a delta from pieces of its bytes.

use bytes::{Bytes, BytesMut};
use dormouse_protocol::{Rev, Subject};

use super::{BLOCK_HEAD_BYTES, Delta, END_BYTES, FORMAT, MAGIC, MAX_BLOCK_BYTES};
use crate::checksum::{Crc64, Crc64Digest, crc32c};
use crate::entry::LogEntry;
use crate::read::{ByteReader, check_start};
use crate::{DecodeFault, frame};

/// Bytes before the subject: magic, format, and the length of the subject.
const START_BYTES: usize = 14;

/// Bytes of the header after the subject, in format 1 and in format 2.
const NUMBERS_BYTES: [usize; 2] = [40, 12];

/// Decodes a delta from pieces of its bytes, in order, of any size. Holds at most one block and one piece.
#[derive(Debug)]
pub struct DeltaDecoder {
    /// The subject and the last rev that it must have.
    expected: Option<(Subject, Rev)>,
    /// Bytes that are not decoded yet.
    buffer: BytesMut,
    part: Part,
    header: Option<(Subject, Rev)>,
    /// The rev after the last entry so far.
    reached: Rev,
    entries: u64,
}

/// The part of the delta that comes next.
#[derive(Debug)]
enum Part {
    Header,
    /// A block, or the end.
    Block,
    /// A frame of format 1.
    Frame(Box<FrameList>),
    Nothing,
}

/// What the header of format 1 says of its frames, and what is left of them.
#[derive(Debug)]
struct FrameList {
    left_bytes: u64,
    checksum: Crc64,
    entries: u64,
    last_rev: Rev,
    digest: Crc64Digest,
}

impl DeltaDecoder {
    /// Decodes a delta of `subject` whose name contains `last_rev`.
    #[must_use]
    pub fn expecting(subject: &Subject, last_rev: Rev) -> Self {
        Self { expected: Some((subject.clone(), last_rev)), ..Self::any() }
    }

    /// Decodes a delta of any subject.
    #[must_use]
    pub fn any() -> Self {
        Self {
            expected: None,
            buffer: BytesMut::new(),
            part: Part::Header,
            header: None,
            reached: Rev::default(),
            entries: 0,
        }
    }

    /// The rev before the first entry, once the header is decoded.
    #[must_use]
    pub fn after(&self) -> Option<Rev> {
        self.header.as_ref().map(|(_, after)| *after)
    }

    /// Takes the next bytes. Returns the entries that are complete now, in order, without a gap.
    ///
    /// # Errors
    /// [`DecodeFault`]; then the decoder must not be used any more.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<LogEntry>, DecodeFault> {
        self.buffer.extend_from_slice(bytes);
        let mut all = Vec::new();
        while let Some(entries) = self.next_part()? {
            self.count(&entries)?;
            all.extend(entries);
        }
        Ok(all)
    }

    /// Checks that the whole delta was taken.
    ///
    /// # Errors
    /// [`DecodeFault::Damaged`] if bytes are missing.
    pub fn finish(self) -> Result<(), DecodeFault> {
        match self.part {
            Part::Nothing => Ok(()),
            Part::Header | Part::Block | Part::Frame(_) => Err(DecodeFault::damaged("ends too early")),
        }
    }

    /// Decodes a whole delta.
    pub(super) fn read(mut self, bytes: &[u8]) -> Result<(Subject, Delta), DecodeFault> {
        let entries = self.push(bytes)?;
        let (header, last_rev) = (self.header.take(), self.reached);
        self.finish()?;
        let (subject, after) = header.ok_or_else(|| DecodeFault::damaged("has no header"))?;
        Ok((subject, Delta { after, last_rev, entries }))
    }

    /// Decodes the next part, and returns its entries; `None` if its bytes are not complete.
    fn next_part(&mut self) -> Result<Option<Vec<LogEntry>>, DecodeFault> {
        match &mut self.part {
            Part::Header => self.read_header(),
            Part::Block => self.read_block(),
            Part::Frame(list) if list.left_bytes > 0 => list.next_frame(&mut self.buffer),
            Part::Frame(list) => {
                let (entries, last_rev) = list.check()?;
                self.end(entries, last_rev)
            }
            Part::Nothing if self.buffer.is_empty() => Ok(None),
            Part::Nothing => Err(DecodeFault::damaged("has bytes after its end")),
        }
    }

    fn read_header(&mut self) -> Result<Option<Vec<LogEntry>>, DecodeFault> {
        if self.buffer.len() < START_BYTES {
            return Ok(None);
        }
        let mut reader = ByteReader::new(&self.buffer);
        check_start(&mut reader, MAGIC, FORMAT)?;
        let format = u32::from_le_bytes([self.buffer[8], self.buffer[9], self.buffer[10], self.buffer[11]]);
        let subject_bytes = usize::from(u16::from_le_bytes([self.buffer[12], self.buffer[13]]));
        let size_bytes = START_BYTES + subject_bytes + NUMBERS_BYTES[usize::from(format > 1)];
        if self.buffer.len() < size_bytes {
            return Ok(None);
        }
        let head = self.buffer.split_to(size_bytes).freeze();
        let mut reader = ByteReader::new(&head[START_BYTES - 2..]);
        let subject = reader.subject()?;
        let after = reader.rev()?;
        self.part =
            if format == 1 { Part::Frame(Box::new(FrameList::read(&mut reader)?)) } else { Part::Block };
        if reader.u32()? != crc32c(&head[..size_bytes - 4]) {
            return Err(DecodeFault::damaged("has a header with a wrong checksum"));
        }
        if let Some((expected, _)) = &self.expected
            && *expected != subject
        {
            return Err(DecodeFault::damaged(format!("belongs to the subject {subject}")));
        }
        self.reached = after;
        self.header = Some((subject, after));
        Ok(Some(Vec::new()))
    }

    fn read_block(&mut self) -> Result<Option<Vec<LogEntry>>, DecodeFault> {
        let mut reader = ByteReader::new(&self.buffer);
        let Ok(frames_bytes) = reader.u32() else { return Ok(None) };
        let frames_bytes = frames_bytes as usize;
        if frames_bytes == 0 {
            return self.read_end();
        }
        let (Ok(entries), Ok(checksum), Ok(head_checksum)) = (reader.u32(), reader.crc64(), reader.u32())
        else {
            return Ok(None);
        };
        if head_checksum != crc32c(&self.buffer[..BLOCK_HEAD_BYTES - 4]) {
            return Err(DecodeFault::damaged("has the head of a block with a wrong checksum"));
        }
        let most = if entries == 1 { frame::MAX_FRAME_BYTES } else { MAX_BLOCK_BYTES };
        if frames_bytes > most {
            return Err(DecodeFault::damaged(format!("has a block of {frames_bytes} bytes, at most {most}")));
        }
        if self.buffer.len() < BLOCK_HEAD_BYTES + frames_bytes {
            return Ok(None);
        }
        let block: Bytes = self.buffer.split_to(BLOCK_HEAD_BYTES + frames_bytes).freeze();
        let frames = &block[BLOCK_HEAD_BYTES..];
        if Crc64::of(frames) != checksum {
            return Err(DecodeFault::damaged("has frames with a wrong checksum"));
        }
        let read = frame::decode_all(frames)?;
        if read.len() != entries as usize {
            return Err(DecodeFault::damaged("has a block with another number of entries"));
        }
        Ok(Some(read))
    }

    fn read_end(&mut self) -> Result<Option<Vec<LogEntry>>, DecodeFault> {
        if self.buffer.len() < END_BYTES {
            return Ok(None);
        }
        let end = self.buffer.split_to(END_BYTES).freeze();
        let mut reader = ByteReader::new(&end[4..]);
        let zero = reader.u32()?;
        let (entries, last_rev) = (reader.u64()?, reader.rev()?);
        if reader.u32()? != crc32c(&end[..END_BYTES - 4]) {
            return Err(DecodeFault::damaged("has an end with a wrong checksum"));
        }
        if zero != 0 {
            return Err(DecodeFault::damaged("has an end with entries"));
        }
        self.end(entries, last_rev)
    }

    /// All entries are read: there must be this many, up to this rev.
    fn end(&mut self, entries: u64, last_rev: Rev) -> Result<Option<Vec<LogEntry>>, DecodeFault> {
        if entries == 0 || (entries, last_rev) != (self.entries, self.reached) {
            return Err(DecodeFault::damaged("does not hold the entries that its header or end names"));
        }
        if let Some((_, expected)) = &self.expected
            && *expected != last_rev
        {
            return Err(DecodeFault::damaged(format!("ends at {last_rev}, not at {expected}")));
        }
        self.part = Part::Nothing;
        Ok(Some(Vec::new()))
    }

    /// Counts entries, which must follow the ones before.
    fn count(&mut self, entries: &[LogEntry]) -> Result<(), DecodeFault> {
        for entry in entries {
            if entry.after != self.reached {
                let (after, reached) = (entry.after, self.reached);
                return Err(DecodeFault::damaged(format!("has an entry after {after} behind {reached}")));
            }
            self.reached = entry.last_rev();
            self.entries += 1;
        }
        Ok(())
    }
}

impl FrameList {
    /// Reads the numbers in a header of format 1, without `after` and without its checksum.
    fn read(reader: &mut ByteReader<'_>) -> Result<Self, DecodeFault> {
        let (last_rev, entries) = (reader.rev()?, reader.u32()?.into());
        let (left_bytes, checksum) = (reader.u64()?, reader.crc64()?);
        Ok(Self { left_bytes, checksum, entries, last_rev, digest: Crc64Digest::new() })
    }

    /// Decodes the next frame; `None` if its bytes are not complete.
    fn next_frame(&mut self, buffer: &mut BytesMut) -> Result<Option<Vec<LogEntry>>, DecodeFault> {
        let Some(size_bytes) = frame::size_of_first(buffer)? else { return Ok(None) };
        self.left_bytes = self
            .left_bytes
            .checked_sub(size_bytes as u64)
            .ok_or_else(|| DecodeFault::damaged("has more bytes of frames than its header names"))?;
        if buffer.len() < size_bytes {
            self.left_bytes += size_bytes as u64;
            return Ok(None);
        }
        let frame = buffer.split_to(size_bytes);
        self.digest.update(&frame);
        frame::decode_all(&frame).map(Some)
    }

    /// Checks the checksum of the frames; returns their number and the last rev.
    fn check(&self) -> Result<(u64, Rev), DecodeFault> {
        if self.digest.finish() != self.checksum {
            return Err(DecodeFault::damaged("has frames with a wrong checksum"));
        }
        Ok((self.entries, self.last_rev))
    }
}
