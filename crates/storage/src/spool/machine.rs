//! Which uploads there are, what is taken of them, and when they go: a pure machine without bytes, files or clock.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_protocol::limits::UPLOAD_WINDOW_BYTES;
use dormouse_protocol::transfer::{UploadPlace, UploadReply, UploadedValue};
use dormouse_protocol::{ErrorReply, Term, UploadId};

use super::shares::Shares;
pub(crate) use super::upload::Life;
use super::upload::{Stage, Upload};
use crate::plan::UploadRoom;

/// Bytes of the chunks of all uploads that wait for those before them. Of what the others leave of it, a subject may have
/// half, as of everything here.
const MOST_HELD_BYTES: u64 = 4 * UPLOAD_WINDOW_BYTES;

/// When a caller that was turned away may come again.
pub(super) const RETRY_AFTER_MS: u64 = 1_000;

/// Names an upload on this server: one that is brought for one subject is nothing to another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct UploadKey {
    /// The subject, as it is called in file names.
    pub(crate) subject: String,
    pub(crate) upload: UploadId,
}

/// How much is taken on, for all subjects together. One may have of it what [`Shares`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SpoolLimits {
    /// Uploads at a time.
    pub(crate) uploads: usize,
    /// Bytes of all of them together.
    pub(crate) bytes: u64,
}

impl SpoolLimits {
    /// Room that an upload whose size was announced has from its beginning. The rest of it is found as its bytes come: who
    /// only announces takes nobody's room, and a value of this size is never refused halfway.
    const fn advance(self) -> u64 {
        self.bytes / if self.uploads == 0 { 1 } else { self.uploads as u64 }
    }
}

/// What a client says when it begins an upload, and what its subject's limits leave for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Beginning {
    pub(crate) size: Option<u64>,
    pub(crate) place: Option<UploadPlace>,
    pub(crate) room: UploadRoom,
}

/// What becomes of a chunk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is there already.
    Known(UploadReply),
    /// It is to be kept until it can be written.
    Held,
}

/// What is to be written next: `length` bytes of the chunk that begins at `offset`, without its first `skip`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) life: Life,
    pub(crate) offset: u64,
    pub(crate) skip: u64,
}

/// What comes of asking that a value be put in the bucket.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finishing {
    /// Nothing is to be done but to say so.
    Answer(UploadReply),
    /// Its way to the bucket is to be begun.
    Begin(Life),
    /// As [`Finishing::Begin`]; what is there already was for an earlier term and goes.
    BeginAnew(Life),
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Uploads {
    limits: SpoolLimits,
    uploads: BTreeMap<UploadKey, Upload>,
    slots: Shares,
    room: Shares,
    lives: u64,
}

impl Uploads {
    pub(crate) const fn new(limits: SpoolLimits) -> Self {
        Self {
            limits,
            uploads: BTreeMap::new(),
            slots: Shares::new(limits.uploads as u64, 1),
            room: Shares::new(limits.bytes, 0),
            lives: 0,
        }
    }

    /// Takes up an upload that an earlier process has left, with so many bytes. `false`: there is no room, or its subject
    /// has too much of it, and its file goes.
    pub(crate) fn take_up(&mut self, key: UploadKey, received: u64, now: Duration) -> bool {
        if !self.slots.take_up(&key.subject, 1) {
            return false;
        }
        if !self.room.take_up(&key.subject, received) {
            self.slots.give_back(&key.subject, 1);
            return false;
        }
        self.insert(key, Upload { received, reserved: received, ..Upload::new(now) });
        true
    }

    /// Begins an upload, or says how far it is.
    ///
    /// # Errors
    /// `too_large`, `limit_exceeded`, `overloaded`.
    pub(crate) fn begin(
        &mut self,
        key: UploadKey,
        beginning: Beginning,
        now: Duration,
    ) -> Result<UploadReply, ErrorReply> {
        let Beginning { size, place, room } = beginning;
        let bytes = size.unwrap_or(0);
        if let Some(upload) = self.uploads.get_mut(&key) {
            // An owner may have set limits meanwhile.
            room.check(bytes.max(upload.received))?;
            upload.heard_at = now;
            (upload.place, upload.room) = (place, room);
            return Ok(upload.reply());
        }
        self.check_size(bytes)?;
        room.check(bytes)?;
        // What would not find its room now is not begun, though not all of that is kept for it.
        if !self.room.may_take(&key.subject, bytes) {
            return Err(no_room());
        }
        if !self.slots.take(&key.subject, 1) {
            return Err(ErrorReply::overloaded("too many uploads are under way", RETRY_AFTER_MS));
        }
        let reserved = bytes.min(self.limits.advance());
        self.room.take(&key.subject, reserved);
        self.insert(key, Upload { announced: size, reserved, place, room, ..Upload::new(now) });
        Ok(UploadReply::default())
    }

    fn insert(&mut self, key: UploadKey, upload: Upload) {
        self.lives += 1;
        self.uploads.insert(key, Upload { life: Life(self.lives), ..upload });
    }

    /// Whether so many bytes of one value ever find room.
    fn check_size(&self, bytes: u64) -> Result<(), ErrorReply> {
        let most = self.room.most();
        if bytes <= most {
            return Ok(());
        }
        let whole = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        Err(ErrorReply::too_large("max_upload_bytes", whole(bytes), whole(most)))
    }

    /// Whether so many bytes more may wait for those before them.
    fn check_held(&self, key: &UploadKey, upload: &Upload, length: u64) -> Result<(), ErrorReply> {
        let of_upload = upload.held_bytes().saturating_add(length);
        let (mut of_subject, mut of_others) = (length, 0_u64);
        for (other, upload) in &self.uploads {
            let sum = if other.subject == key.subject { &mut of_subject } else { &mut of_others };
            *sum = sum.saturating_add(upload.held_bytes());
        }
        if of_upload > UPLOAD_WINDOW_BYTES || of_subject > MOST_HELD_BYTES.saturating_sub(of_others) / 2 {
            return Err(ErrorReply::overloaded("too many bytes wait for those before them", RETRY_AFTER_MS));
        }
        Ok(())
    }

    /// Looks at a chunk. One that finds no room does not keep its upload alive: uploads that wait for each other's room
    /// shall not do so for ever.
    ///
    /// # Errors
    /// `unknown_upload`, `bad_request`, `too_large`, `limit_exceeded`, `overloaded`.
    pub(crate) fn chunk(
        &mut self,
        key: &UploadKey,
        offset: u64,
        length: u64,
        now: Duration,
    ) -> Result<Taken, ErrorReply> {
        let end = offset.checked_add(length).filter(|end| *end > offset);
        let end = end.ok_or_else(|| ErrorReply::bad_request("a chunk has at least one byte"))?;
        self.check_size(end)?;
        let upload = self.uploads.get(key).ok_or_else(unknown)?;
        let known = end <= upload.received;
        if !known {
            upload.check_end(end)?;
            // What is written at once waits for nothing.
            if offset > upload.received || upload.writing {
                self.check_held(key, upload, length)?;
            }
            if !self.room.take(&key.subject, end.saturating_sub(upload.reserved)) {
                return Err(no_room());
            }
        }
        let upload = self.uploads.get_mut(key).ok_or_else(unknown)?;
        upload.heard_at = now;
        if known {
            return Ok(Taken::Known(upload.reply()));
        }
        upload.reserved = upload.reserved.max(end);
        let longest = upload.held.entry(offset).or_default();
        *longest = length.max(*longest);
        Ok(Taken::Held)
    }

    /// What is to be written next, if nothing is being written and the next bytes are here.
    pub(crate) fn write(&mut self, key: &UploadKey) -> Option<Write> {
        let upload = self.uploads.get_mut(key).filter(|upload| !upload.writing)?;
        let reaches = |(offset, length): (&u64, &u64)| (offset + length > upload.received).then_some(*offset);
        let offset = upload.held.range(..=upload.received).find_map(reaches)?;
        upload.held.remove(&offset);
        upload.writing = true;
        Some(Write { life: upload.life, offset, skip: upload.received - offset })
    }

    /// So many bytes were written, or none. Returns how far the upload is, and the chunks that need not be written any
    /// more; `None` when it has gone meanwhile.
    pub(crate) fn written(
        &mut self,
        key: &UploadKey,
        life: Life,
        bytes: u64,
    ) -> Option<(UploadReply, Vec<u64>)> {
        let upload = self.uploads.get_mut(key).filter(|upload| upload.life == life)?;
        upload.writing = false;
        upload.received += bytes;
        let received = upload.received;
        let known: Vec<u64> =
            upload.held.iter().filter(|(at, length)| *at + *length <= received).map(|(at, _)| *at).collect();
        for at in &known {
            upload.held.remove(at);
        }
        Some((upload.reply(), known))
    }

    /// What is being written was given up with everything that waits: the disk does not take it.
    ///
    /// `false`: that upload has ended, and what waits now is another's.
    pub(crate) fn fail(&mut self, key: &UploadKey, life: Life) -> bool {
        let Some(upload) = self.uploads.get_mut(key).filter(|upload| upload.life == life) else {
            return false;
        };
        upload.writing = false;
        upload.held.clear();
        true
    }

    /// The client says that all is sent. `value` is what it sent, and `room` what its subject's limits leave for it now.
    ///
    /// # Errors
    /// `unknown_upload`, `bad_request`, `too_large`, `limit_exceeded`.
    pub(crate) fn finish(
        &mut self,
        key: &UploadKey,
        value: UploadedValue,
        term: Term,
        room: &UploadRoom,
        now: Duration,
    ) -> Result<Finishing, ErrorReply> {
        let upload = self.uploads.get_mut(key).ok_or_else(unknown)?;
        upload.heard_at = now;
        if upload.received > value.size {
            return Err(ErrorReply::bad_request("more was uploaded than the value's size"));
        }
        if upload.received < value.size || upload.writing {
            return Ok(Finishing::Answer(upload.reply()));
        }
        match upload.stage {
            Stage::Going(_, other) | Stage::There(_, other) if other != value => {
                Err(ErrorReply::bad_request("the upload was finished with another digest"))
            }
            Stage::Going(..) => Ok(Finishing::Answer(upload.reply())),
            Stage::There(of, _) if of == term => Ok(Finishing::Answer(upload.reply())),
            stage => {
                // What no set may have does not go to the bucket.
                room.check(value.size)?;
                upload.stage = Stage::Going(term, value);
                let anew = matches!(stage, Stage::There(..));
                Ok(if anew { Finishing::BeginAnew(upload.life) } else { Finishing::Begin(upload.life) })
            }
        }
    }

    /// The way to the bucket is over: the value is there, or not. `false`: the upload has gone meanwhile.
    pub(crate) fn stored(&mut self, key: &UploadKey, life: Life, there: bool, now: Duration) -> bool {
        let Some(upload) = self.uploads.get_mut(key).filter(|upload| upload.life == life) else {
            return false;
        };
        // What took long was no silence of the client's.
        upload.heard_at = now;
        if let Stage::Going(term, value) = upload.stage {
            upload.stage = if there { Stage::There(term, value) } else { Stage::Here };
        }
        true
    }

    /// What is here is not what was sent: the upload begins again at its first byte.
    pub(crate) fn restart(&mut self, key: &UploadKey, life: Life) {
        if let Some(upload) = self.uploads.get_mut(key).filter(|upload| upload.life == life) {
            upload.received = 0;
            upload.stage = Stage::Here;
        }
    }

    /// A set that would have the value has come. Until it is answered the upload is not silent. `None`: there is none.
    pub(crate) fn commit_begins(&mut self, key: &UploadKey) -> Option<Life> {
        let upload = self.uploads.get_mut(key)?;
        upload.committing += 1;
        Some(upload.life)
    }

    /// Such a set was answered, or nobody will answer it.
    pub(crate) fn commit_ended(&mut self, key: &UploadKey, life: Life, now: Duration) {
        if let Some(upload) = self.uploads.get_mut(key).filter(|upload| upload.life == life) {
            upload.committing = upload.committing.saturating_sub(1);
            upload.heard_at = now;
        }
    }

    /// Whether `value` is in the bucket for a subject at `term`.
    pub(crate) fn is_there(&self, key: &UploadKey, value: UploadedValue, term: Term) -> bool {
        self.uploads.get(key).is_some_and(|upload| upload.stage == Stage::There(term, value))
    }

    /// As [`Uploads::is_there`]. It is used at most once: what was brought is as if it were not in the bucket from then
    /// on.
    pub(crate) fn use_up(&mut self, key: &UploadKey, value: UploadedValue, term: Term) -> bool {
        let there = self.is_there(key, value, term);
        if there && let Some(upload) = self.uploads.get_mut(key) {
            upload.stage = Stage::Here;
        }
        there
    }

    /// Forgets an upload. Whether there was one.
    pub(crate) fn end(&mut self, key: &UploadKey) -> bool {
        let Some(upload) = self.uploads.remove(key) else { return false };
        self.slots.give_back(&key.subject, 1);
        self.room.give_back(&key.subject, upload.reserved);
        true
    }

    /// Forgets the uploads that nobody has spoken of for long. One that is on its way to the bucket, or about to be
    /// committed, stays till the end of that.
    pub(crate) fn sweep(&mut self, now: Duration) -> Vec<UploadKey> {
        let silent = |(key, upload): (&UploadKey, &Upload)| {
            (upload.silent_at().is_some_and(|at| at <= now)).then(|| key.clone())
        };
        let gone: Vec<UploadKey> = self.uploads.iter().filter_map(silent).collect();
        for key in &gone {
            self.end(key);
        }
        gone
    }

    /// Everybody counts as heard now.
    pub(crate) fn hear_all(&mut self, now: Duration) {
        self.uploads.values_mut().for_each(|upload| upload.heard_at = now);
    }

    /// When the next upload may have to be swept; `None`: not before something happens.
    pub(crate) fn next_sweep(&self) -> Option<Duration> {
        self.uploads.values().filter_map(Upload::silent_at).min()
    }

    /// Which message an upload will be in, as far as its client has said so.
    pub(crate) fn place(&self, key: &UploadKey) -> Option<UploadPlace> {
        self.uploads.get(key).and_then(|upload| upload.place.clone())
    }

    /// Whether there is such an upload.
    pub(crate) fn has(&self, key: &UploadKey) -> bool {
        self.uploads.contains_key(key)
    }

    /// How many there are, and how many bytes count against the limit.
    pub(crate) fn figures(&self) -> (usize, u64) {
        (self.uploads.len(), self.room.taken())
    }
}

fn no_room() -> ErrorReply {
    ErrorReply::overloaded("too many bytes of uploads are under way", RETRY_AFTER_MS)
}

pub(crate) fn unknown() -> ErrorReply {
    ErrorReply::unknown_upload("there is no such upload here")
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
