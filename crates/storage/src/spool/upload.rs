//! One upload, as the machine sees it.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_protocol::limits::{UPLOAD_SILENCE_MS, UPLOAD_WINDOW_BYTES};
use dormouse_protocol::transfer::{UploadPlace, UploadReply, UploadedValue};
use dormouse_protocol::{ErrorReply, Term};

use super::machine::RETRY_AFTER_MS;
use crate::plan::UploadRoom;

/// After this time without a word an upload is abandoned.
const SILENCE: Duration = Duration::from_millis(UPLOAD_SILENCE_MS);

/// Chunks of one upload that wait for those before them. Their bytes are at most a window together, however they overlap.
const MOST_HELD: usize = 256;

/// Tells one life of an upload from a later one under the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Life(pub(super) u64);

/// Where a whole value is on its way to the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not asked for.
    Here,
    /// On its way there, or there, for a subject that is at this term.
    Going(Term, UploadedValue),
    There(Term, UploadedValue),
}

/// What is known of it. The life is drawn when it is taken in.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) life: Life,
    /// Bytes in the file, from the first on without a hole.
    pub(super) received: u64,
    /// Bytes that count against the limit.
    pub(super) reserved: u64,
    pub(super) announced: Option<u64>,
    /// Chunks that are not written: where each begins, and its length.
    pub(super) held: BTreeMap<u64, u64>,
    pub(super) writing: bool,
    /// Sets that would have it and were not answered yet.
    pub(super) committing: usize,
    pub(super) heard_at: Duration,
    pub(super) stage: Stage,
    /// Which message it will be in, and what the subject's limits left for it when its client was last heard to say so.
    pub(super) place: Option<UploadPlace>,
    pub(super) room: UploadRoom,
}

impl Upload {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            life: Life(0),
            received: 0,
            reserved: 0,
            announced: None,
            held: BTreeMap::new(),
            writing: false,
            committing: 0,
            heard_at: now,
            stage: Stage::Here,
            place: None,
            room: UploadRoom::default(),
        }
    }

    /// Whether a chunk may end there.
    pub(super) fn check_end(&self, end: u64) -> Result<(), ErrorReply> {
        self.room.check(end)?;
        if self.announced.is_some_and(|size| end > size) {
            return Err(ErrorReply::bad_request("the chunk ends behind the announced size"));
        }
        if self.stage != Stage::Here {
            return Err(ErrorReply::bad_request("the upload was finished before this chunk"));
        }
        if end > self.received + UPLOAD_WINDOW_BYTES {
            return Err(ErrorReply::unknown_upload(format!(
                "only {} bytes are here, and the chunk is too far ahead",
                self.received
            )));
        }
        if self.held.len() >= MOST_HELD {
            return Err(ErrorReply::overloaded("too many chunks wait", RETRY_AFTER_MS));
        }
        Ok(())
    }

    pub(super) fn held_bytes(&self) -> u64 {
        self.held.values().sum()
    }

    pub(super) fn reply(&self) -> UploadReply {
        UploadReply { received: self.received, stored: matches!(self.stage, Stage::There(..)) }
    }

    pub(super) fn silent_at(&self) -> Option<Duration> {
        let at_work = self.writing || self.committing > 0 || matches!(self.stage, Stage::Going(..));
        (!at_work).then(|| self.heard_at + SILENCE)
    }
}
