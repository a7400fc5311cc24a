//! State of one upload in the upload table.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_protocol::limits::{UPLOAD_IDLE_TIMEOUT_MS, UPLOAD_WINDOW_BYTES};
use dormouse_protocol::transfer::{UploadPlace, UploadReply, UploadedValue};
use dormouse_protocol::{ErrorReply, OverloadCause, Term};
use dormouse_subject_state::plan::UploadQuota;

use crate::api::TenantId;

/// After this time without a request an upload expires.
const IDLE_TIMEOUT: Duration = Duration::from_millis(UPLOAD_IDLE_TIMEOUT_MS);

/// Maximum number of waiting chunks of one upload. Their bytes are at most one window together, even if they overlap.
const MAX_HELD: usize = 256;

/// Distinguishes an upload from a later one with the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UploadGeneration(pub(super) u64);

/// Stage of a value from the local file to the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UploadStage {
    /// Only in the local file.
    Local,
    /// Being stored in the bucket, for a subject at this term.
    Storing(Term, UploadedValue),
    /// Stored in the bucket, for a subject at this term.
    Stored(Term, UploadedValue),
}

/// One upload. The table assigns the generation when it inserts the upload.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) generation: UploadGeneration,
    /// The tenant whose request began it; the shared one after a restart.
    pub(super) tenant: TenantId,
    /// Bytes in the file, from the first on without a gap.
    pub(super) received: u64,
    /// Bytes that count against the limit.
    pub(super) reserved: u64,
    pub(super) declared_size: Option<u64>,
    /// Chunks that are not written: the offset and length of each.
    pub(super) held: BTreeMap<u64, u64>,
    pub(super) writing: bool,
    /// Number of unanswered sets that refer to it.
    pub(super) committing: usize,
    pub(super) active_at: Duration,
    pub(super) stage: UploadStage,
    /// The message that will contain it, and the quota from the subject's limits, both as of the last begin request.
    pub(super) place: Option<UploadPlace>,
    pub(super) quota: UploadQuota,
}

impl Upload {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            generation: UploadGeneration(0),
            tenant: TenantId::SHARED,
            received: 0,
            reserved: 0,
            declared_size: None,
            held: BTreeMap::new(),
            writing: false,
            committing: 0,
            active_at: now,
            stage: UploadStage::Local,
            place: None,
            quota: UploadQuota::default(),
        }
    }

    /// Checks whether a chunk may end at `end`.
    pub(super) fn check_end(&self, end: u64) -> Result<(), ErrorReply> {
        self.quota.check(end)?;
        if self.declared_size.is_some_and(|size| end > size) {
            return Err(ErrorReply::bad_request("the chunk ends after the declared size"));
        }
        if self.stage != UploadStage::Local {
            return Err(ErrorReply::bad_request("the upload was finished before this chunk"));
        }
        if end > self.received + UPLOAD_WINDOW_BYTES {
            return Err(ErrorReply::unknown_upload(format!(
                "only {} bytes are received, and the chunk is too far ahead",
                self.received
            )));
        }
        if self.held.len() >= MAX_HELD {
            return Err(ErrorReply::from(OverloadCause::HeldChunks));
        }
        Ok(())
    }

    pub(super) fn held_bytes(&self) -> u64 {
        self.held.values().sum()
    }

    pub(super) fn reply(&self) -> UploadReply {
        UploadReply { received: self.received, stored: matches!(self.stage, UploadStage::Stored(..)) }
    }

    pub(super) fn expires_at(&self) -> Option<Duration> {
        let is_busy = self.writing || self.committing > 0 || matches!(self.stage, UploadStage::Storing(..));
        (!is_busy).then(|| self.active_at + IDLE_TIMEOUT)
    }
}
