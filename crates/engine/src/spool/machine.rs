//! The table of uploads: their progress, their limits and their expiry. A pure machine without bytes, files or clock.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_protocol::limits::UPLOAD_WINDOW_BYTES;
use dormouse_protocol::transfer::{UploadPlace, UploadReply, UploadedValue};
use dormouse_protocol::{ErrorReply, OverloadCause, Term, UploadId};

use super::fair_share::FairShare;
pub(crate) use super::upload::UploadGeneration;
use super::upload::{Upload, UploadStage};
use crate::api::TenantId;
use dormouse_subject_state::plan::UploadQuota;

/// Bytes of the waiting chunks of all uploads. A chunk waits for the chunks before it. As with all limits here, one
/// subject may use half of the bytes that other subjects leave free.
const MAX_HELD_BYTES: u64 = 4 * UPLOAD_WINDOW_BYTES;

/// Identifies an upload on this server. An upload belongs to one subject.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct UploadKey {
    /// The subject's escaped name, as in file names.
    pub(crate) subject: String,
    pub(crate) upload: UploadId,
}

/// Limits of all subjects together. [`FairShare`] limits the share of one subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SpoolLimits {
    /// Uploads in progress.
    pub(crate) uploads: usize,
    /// Bytes of all uploads.
    pub(crate) bytes: u64,
}

impl SpoolLimits {
    /// Bytes that an upload with a declared size reserves at its begin. The other bytes are reserved as they arrive. So
    /// a declared size alone uses little of the limit, and a value up to this size is never refused after its begin.
    const fn initial_reservation(self) -> u64 {
        self.bytes / if self.uploads == 0 { 1 } else { self.uploads as u64 }
    }
}

/// A client's parameters of a new upload, and the quota from its subject's limits.
#[derive(Debug, Clone, Default)]
pub(crate) struct UploadBegin {
    pub(crate) size: Option<u64>,
    pub(crate) place: Option<UploadPlace>,
    pub(crate) quota: UploadQuota,
    pub(crate) tenant: TenantId,
    /// The maximum number of the tenant's uploads that an operator has set.
    pub(crate) max_of_tenant: Option<u64>,
}

/// Result of a chunk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ChunkOutcome {
    /// The bytes are written already.
    Known(UploadReply),
    /// The caller must keep the chunk until it can be written.
    Held,
}

/// The next write: the chunk that begins at `offset`, without its first `skip` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChunkWrite {
    pub(crate) generation: UploadGeneration,
    pub(crate) offset: u64,
    pub(crate) skip: u64,
}

/// Result of a finish request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FinishOutcome {
    /// Only send this reply.
    Reply(UploadReply),
    /// Store the value in the bucket.
    Store(UploadGeneration),
    /// As [`FinishOutcome::Store`]; also drop the object that was stored for an earlier term.
    StoreAgain(UploadGeneration),
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct UploadTable {
    limits: SpoolLimits,
    uploads: BTreeMap<UploadKey, Upload>,
    count_shares: FairShare,
    byte_shares: FairShare,
    by_tenant: BTreeMap<TenantId, u64>,
    generations: u64,
}

impl UploadTable {
    pub(crate) const fn new(limits: SpoolLimits) -> Self {
        Self {
            limits,
            uploads: BTreeMap::new(),
            count_shares: FairShare::new(limits.uploads as u64, 1),
            byte_shares: FairShare::new(limits.bytes, 0),
            by_tenant: BTreeMap::new(),
            generations: 0,
        }
    }

    /// Resumes an upload of an earlier process, with so many bytes in its file. `false`: the limits do not allow it,
    /// and the caller must remove its file.
    pub(crate) fn resume(&mut self, key: UploadKey, received: u64, now: Duration) -> bool {
        if !self.count_shares.resume(&key.subject, 1) {
            return false;
        }
        if !self.byte_shares.resume(&key.subject, received) {
            self.count_shares.give_back(&key.subject, 1);
            return false;
        }
        self.insert(key, Upload { received, reserved: received, ..Upload::new(now) });
        true
    }

    /// Begins an upload, or returns the progress of an existing one.
    ///
    /// # Errors
    /// `too_large`, `limit_exceeded`, `overloaded`.
    pub(crate) fn begin(
        &mut self,
        key: UploadKey,
        params: UploadBegin,
        now: Duration,
    ) -> Result<UploadReply, ErrorReply> {
        let UploadBegin { size, place, quota, tenant, max_of_tenant } = params;
        let bytes = size.unwrap_or(0);
        if let Some(upload) = self.uploads.get_mut(&key) {
            // The subject's limits may have changed meanwhile.
            quota.check(bytes.max(upload.received))?;
            upload.active_at = now;
            (upload.place, upload.quota) = (place, quota);
            return Ok(upload.reply());
        }
        self.check_size(bytes)?;
        quota.check(bytes)?;
        // An upload whose whole size does not fit now is refused, although only a part of it is reserved.
        if !self.byte_shares.may_take(&key.subject, bytes) {
            return Err(too_many_bytes());
        }
        if self.is_over_share(tenant, max_of_tenant) || !self.count_shares.take(&key.subject, 1) {
            return Err(ErrorReply::from(OverloadCause::Uploads));
        }
        let reserved = bytes.min(self.limits.initial_reservation());
        self.byte_shares.take(&key.subject, reserved);
        self.insert(key, Upload { tenant, declared_size: size, reserved, place, quota, ..Upload::new(now) });
        Ok(UploadReply::default())
    }

    fn insert(&mut self, key: UploadKey, upload: Upload) {
        self.generations += 1;
        *self.by_tenant.entry(upload.tenant).or_default() += 1;
        self.uploads.insert(key, Upload { generation: UploadGeneration(self.generations), ..upload });
    }

    /// Whether a tenant may begin no further upload. The last eighth of the uploads is for tenants that have less than
    /// their share, which is half of what others leave.
    fn is_over_share(&self, tenant: TenantId, limit: Option<u64>) -> bool {
        let (whole, taken) = (self.limits.uploads as u64, self.count_shares.taken());
        let own = self.by_tenant.get(&tenant).copied().unwrap_or_default();
        let share = (whole.saturating_sub(taken - own) / 2).max(1);
        limit.is_some_and(|most| own >= most) || taken + whole / 8 >= whole && own >= share
    }

    /// Number of uploads of each tenant that has some.
    pub(crate) const fn by_tenant(&self) -> &BTreeMap<TenantId, u64> {
        &self.by_tenant
    }

    /// Checks the size of one value against the highest possible share.
    fn check_size(&self, bytes: u64) -> Result<(), ErrorReply> {
        let most = self.byte_shares.most();
        if bytes <= most {
            return Ok(());
        }
        let whole = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        Err(ErrorReply::too_large("max_upload_bytes", whole(bytes), whole(most)))
    }

    /// Checks whether a chunk of `length` bytes may wait for the chunks before it.
    fn check_held(&self, key: &UploadKey, upload: &Upload, length: u64) -> Result<(), ErrorReply> {
        let of_upload = upload.held_bytes().saturating_add(length);
        let (mut of_subject, mut of_others) = (length, 0_u64);
        for (other, upload) in &self.uploads {
            let sum = if other.subject == key.subject { &mut of_subject } else { &mut of_others };
            *sum = sum.saturating_add(upload.held_bytes());
        }
        if of_upload > UPLOAD_WINDOW_BYTES || of_subject > MAX_HELD_BYTES.saturating_sub(of_others) / 2 {
            return Err(ErrorReply::from(OverloadCause::HeldChunkBytes));
        }
        Ok(())
    }

    /// Checks a chunk. A chunk that is refused for lack of capacity does not extend its upload. Otherwise uploads could
    /// wait for each other's capacity without end.
    ///
    /// # Errors
    /// `unknown_upload`, `bad_request`, `too_large`, `limit_exceeded`, `overloaded`.
    pub(crate) fn chunk(
        &mut self,
        key: &UploadKey,
        offset: u64,
        length: u64,
        now: Duration,
    ) -> Result<ChunkOutcome, ErrorReply> {
        let end = offset.checked_add(length).filter(|end| *end > offset);
        let end = end.ok_or_else(|| ErrorReply::bad_request("a chunk has at least one byte"))?;
        self.check_size(end)?;
        let upload = self.uploads.get(key).ok_or_else(unknown)?;
        let known = end <= upload.received;
        if !known {
            upload.check_end(end)?;
            // A chunk that is written at once does not wait.
            if offset > upload.received || upload.writing {
                self.check_held(key, upload, length)?;
            }
            if !self.byte_shares.take(&key.subject, end.saturating_sub(upload.reserved)) {
                return Err(too_many_bytes());
            }
        }
        let upload = self.uploads.get_mut(key).ok_or_else(unknown)?;
        upload.active_at = now;
        if known {
            return Ok(ChunkOutcome::Known(upload.reply()));
        }
        upload.reserved = upload.reserved.max(end);
        let longest = upload.held.entry(offset).or_default();
        *longest = length.max(*longest);
        Ok(ChunkOutcome::Held)
    }

    /// The next write, if no write is in progress and the next bytes are held.
    pub(crate) fn write(&mut self, key: &UploadKey) -> Option<ChunkWrite> {
        let upload = self.uploads.get_mut(key).filter(|upload| !upload.writing)?;
        let reaches = |(offset, length): (&u64, &u64)| (offset + length > upload.received).then_some(*offset);
        let offset = upload.held.range(..=upload.received).find_map(reaches)?;
        upload.held.remove(&offset);
        upload.writing = true;
        Some(ChunkWrite { generation: upload.generation, offset, skip: upload.received - offset })
    }

    /// Records that so many bytes were written. Returns the progress, and the held chunks that are now written
    /// completely; `None` if the upload has ended meanwhile.
    pub(crate) fn written(
        &mut self,
        key: &UploadKey,
        generation: UploadGeneration,
        bytes: u64,
    ) -> Option<(UploadReply, Vec<u64>)> {
        let upload = self.uploads.get_mut(key).filter(|upload| upload.generation == generation)?;
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

    /// Records that a write has failed, and drops all held chunks.
    ///
    /// `false`: the upload has ended, and the held chunks belong to a later one.
    pub(crate) fn fail(&mut self, key: &UploadKey, generation: UploadGeneration) -> bool {
        let Some(upload) = self.uploads.get_mut(key).filter(|upload| upload.generation == generation) else {
            return false;
        };
        upload.writing = false;
        upload.held.clear();
        true
    }

    /// The client has sent all bytes. `value` describes them, and `quota` comes from its subject's current limits.
    ///
    /// # Errors
    /// `unknown_upload`, `bad_request`, `too_large`, `limit_exceeded`.
    pub(crate) fn finish(
        &mut self,
        key: &UploadKey,
        value: UploadedValue,
        term: Term,
        quota: &UploadQuota,
        now: Duration,
    ) -> Result<FinishOutcome, ErrorReply> {
        let upload = self.uploads.get_mut(key).ok_or_else(unknown)?;
        upload.active_at = now;
        if upload.received > value.size {
            return Err(ErrorReply::bad_request("more bytes were uploaded than the value's size"));
        }
        if upload.received < value.size || upload.writing {
            return Ok(FinishOutcome::Reply(upload.reply()));
        }
        match upload.stage {
            UploadStage::Storing(_, other) | UploadStage::Stored(_, other) if other != value => {
                Err(ErrorReply::bad_request("the upload was finished with another digest"))
            }
            UploadStage::Storing(..) => Ok(FinishOutcome::Reply(upload.reply())),
            UploadStage::Stored(of, _) if of == term => Ok(FinishOutcome::Reply(upload.reply())),
            stage => {
                // A value that no set may refer to is not stored.
                quota.check(value.size)?;
                upload.stage = UploadStage::Storing(term, value);
                let again = matches!(stage, UploadStage::Stored(..));
                Ok(if again {
                    FinishOutcome::StoreAgain(upload.generation)
                } else {
                    FinishOutcome::Store(upload.generation)
                })
            }
        }
    }

    /// Records the end of storing: the value is in the bucket, or not. `false`: the upload has ended meanwhile.
    pub(crate) fn stored(
        &mut self,
        key: &UploadKey,
        generation: UploadGeneration,
        is_stored: bool,
        now: Duration,
    ) -> bool {
        let Some(upload) = self.uploads.get_mut(key).filter(|upload| upload.generation == generation) else {
            return false;
        };
        // The time of storing does not count as idle time of the client.
        upload.active_at = now;
        if let UploadStage::Storing(term, value) = upload.stage {
            upload.stage = if is_stored { UploadStage::Stored(term, value) } else { UploadStage::Local };
        }
        true
    }

    /// The file does not match the client's digest: the upload restarts at its first byte.
    pub(crate) fn restart(&mut self, key: &UploadKey, generation: UploadGeneration) {
        if let Some(upload) = self.uploads.get_mut(key).filter(|upload| upload.generation == generation) {
            upload.received = 0;
            upload.stage = UploadStage::Local;
        }
    }

    /// A set that refers to the value has arrived. The upload does not expire until it is answered. `None`: there is no
    /// such upload.
    pub(crate) fn commit_begins(&mut self, key: &UploadKey) -> Option<UploadGeneration> {
        let upload = self.uploads.get_mut(key)?;
        upload.committing += 1;
        Some(upload.generation)
    }

    /// Such a set was answered, or dropped.
    pub(crate) fn commit_ended(&mut self, key: &UploadKey, generation: UploadGeneration, now: Duration) {
        if let Some(upload) = self.uploads.get_mut(key).filter(|upload| upload.generation == generation) {
            upload.committing = upload.committing.saturating_sub(1);
            upload.active_at = now;
        }
    }

    /// Whether `value` is in the bucket for a subject at `term`.
    pub(crate) fn is_stored(&self, key: &UploadKey, value: UploadedValue, term: Term) -> bool {
        self.uploads.get(key).is_some_and(|upload| upload.stage == UploadStage::Stored(term, value))
    }

    /// As [`UploadTable::is_stored`], and consumes the stored value: afterwards it counts as not stored.
    pub(crate) fn take_stored(&mut self, key: &UploadKey, value: UploadedValue, term: Term) -> bool {
        let was_stored = self.is_stored(key, value, term);
        if was_stored && let Some(upload) = self.uploads.get_mut(key) {
            upload.stage = UploadStage::Local;
        }
        was_stored
    }

    /// Removes an upload. Returns whether it existed.
    pub(crate) fn end(&mut self, key: &UploadKey) -> bool {
        let Some(upload) = self.uploads.remove(key) else { return false };
        self.count_shares.give_back(&key.subject, 1);
        self.byte_shares.give_back(&key.subject, upload.reserved);
        if let Some(uploads) = self.by_tenant.get_mut(&upload.tenant) {
            *uploads -= 1;
            if *uploads == 0 {
                self.by_tenant.remove(&upload.tenant);
            }
        }
        true
    }

    /// Removes idle uploads. An upload that is being written or stored, or that a pending set uses, does not expire.
    pub(crate) fn sweep(&mut self, now: Duration) -> Vec<UploadKey> {
        let is_expired = |(key, upload): (&UploadKey, &Upload)| {
            (upload.expires_at().is_some_and(|at| at <= now)).then(|| key.clone())
        };
        let expired: Vec<UploadKey> = self.uploads.iter().filter_map(is_expired).collect();
        for key in &expired {
            self.end(key);
        }
        expired
    }

    /// Restarts the idle time of all uploads.
    pub(crate) fn touch_all(&mut self, now: Duration) {
        self.uploads.values_mut().for_each(|upload| upload.active_at = now);
    }

    /// When the next upload may expire; `None`: not before the next event.
    pub(crate) fn next_sweep(&self) -> Option<Duration> {
        self.uploads.values().filter_map(Upload::expires_at).min()
    }

    /// The message that will contain the upload, if its client has named it.
    pub(crate) fn place(&self, key: &UploadKey) -> Option<UploadPlace> {
        self.uploads.get(key).and_then(|upload| upload.place.clone())
    }

    /// Whether the upload exists.
    pub(crate) fn has(&self, key: &UploadKey) -> bool {
        self.uploads.contains_key(key)
    }

    /// Number of uploads, and bytes that count against the limit.
    pub(crate) fn usage(&self) -> (usize, u64) {
        (self.uploads.len(), self.byte_shares.taken())
    }
}

fn too_many_bytes() -> ErrorReply {
    ErrorReply::from(OverloadCause::UploadBytes)
}

pub(crate) fn unknown() -> ErrorReply {
    ErrorReply::unknown_upload("there is no such upload here")
}

#[cfg(test)]
mod tests;
