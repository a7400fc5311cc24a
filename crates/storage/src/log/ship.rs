//! The task that writes the log's slots, one at a time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::{LogId, Slot};
use dormouse_runtime::{Env, Stop};
use tokio::time::sleep;

use super::handle::Shared;
use super::owner::{OwnerInput, PutOutcome};
use super::pace::Decision;
use super::sealed::read_header;
use super::state::Segment;
use super::{Append, StartLogError};
use crate::bucket::{Bucket, BucketError, CreateOutcome, create_once};
use crate::checksum::Crc64;
use crate::fail_points::{Step as FailPoint, reach};
use crate::format::segment::{self, Block, EncodedSlot, NO_PREVIOUS, SlotHeader, SlotKind};
use crate::keys::{LogKeys, Nonce};
use crate::mutations::{Mutation, is_there};

/// Between attempts that the bucket refused: the first pause, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Begins a log with its first object.
pub(super) async fn create_birth(
    log: &LogId,
    bucket: &dyn Bucket,
    env: &Env,
    stop: &Stop,
) -> Result<Crc64, StartLogError> {
    let slot = Slot::new(0);
    let nonce = Nonce::new(env.ulid());
    let header = SlotHeader { kind: SlotKind::Birth, log: log.clone(), slot, nonce, previous: NO_PREVIOUS };
    let EncodedSlot { bytes, checksum, .. } = segment::encode(&header, Vec::new());
    match create_once(bucket, &LogKeys::new(log).slot(slot), bytes, stop.given()).await {
        Ok(CreateOutcome::Ours) => Ok(checksum),
        Ok(CreateOutcome::Anothers) => Err(StartLogError::Taken(log.clone())),
        Ok(CreateOutcome::Unknown(source)) | Err(source) => {
            Err(StartLogError::Bucket { log: log.clone(), source })
        }
    }
}

/// What to do next.
enum Step {
    Put(Segment),
    Wait(Option<Duration>),
    Over,
}

pub(super) async fn run(shared: Arc<Shared>, birth: Crc64) {
    let mut previous = birth;
    loop {
        match next(&shared) {
            Step::Over => return,
            Step::Wait(pause) => shared.rest(&shared.wakers.ship, pause).await,
            Step::Put(segment) => {
                let Some(checksum) = put(&shared, segment, previous).await else { return };
                previous = checksum;
            }
        }
    }
}

fn next(shared: &Shared) -> Step {
    let now = shared.env.boot();
    let mut state = shared.lock();
    if shared.stop.is_given() {
        // Whichever task sees it first: to wait here for another to say so is not to let that one take a step.
        state.cut_short(&shared.wakers);
    }
    if state.end.is_some() {
        return Step::Over;
    }
    if state.departing.is_none() {
        match state.decide(now) {
            Decision::Idle => return Step::Wait(None),
            Decision::Wait(at) => return Step::Wait(Some(at.saturating_sub(now))),
            Decision::Now => state.tell(OwnerInput::Ready, shared),
        }
    }
    state.departing.take().map_or(Step::Wait(None), Step::Put)
}

/// Creates a slot and has the books say so; `None` when the log is at its end.
async fn put(shared: &Shared, Segment { slot, appends }: Segment, previous: Crc64) -> Option<Crc64> {
    let nonce = Nonce::new(shared.env.ulid());
    let header = SlotHeader { kind: SlotKind::Data, log: shared.id.clone(), slot, nonce, previous };
    let EncodedSlot { bytes, checksum, .. } = segment::encode(&header, blocks(appends));
    let size = bytes.len() as u64;
    let over = async {
        tokio::select! {
            biased;
            () = shared.stop.given() => {}
            _ = shared.ended() => {}
        }
    };
    let outcome = tokio::select! {
        biased;
        // What is known counts, also at the end: there are writers to be told.
        outcome = until_definite(shared, slot, nonce, bytes) => outcome,
        () = over => return None,
        () = complain(shared, slot) => return None,
    };
    reach(FailPoint::SlotPut);
    let mut state = shared.lock();
    match outcome {
        Found::Ours => {
            state.shipped(size, shared);
            return Some(checksum);
        }
        Found::Anothers => {}
        Found::Unreadable => state.segment_lost_sight_of(),
    }
    state.tell(OwnerInput::Put { outcome: PutOutcome::Anothers, ready: false }, shared);
    None
}

fn blocks(appends: Vec<Append>) -> Vec<Block> {
    let block = |append: Append| Block {
        subject: append.subject,
        first_after: append.first_after,
        last_rev: append.last_rev,
        entries: append.entries,
        frames: append.frames,
    };
    appends.into_iter().map(block).collect()
}

/// What lies in the slot, for certain.
enum Found {
    Ours,
    Anothers,
    /// Something that this version cannot read, or damage. It may be ours.
    Unreadable,
}

/// Sends the same bytes to the same slot until it is known what lies there.
async fn until_definite(shared: &Shared, slot: Slot, nonce: Nonce, bytes: Bytes) -> Found {
    let key = shared.keys.slot(slot);
    let mut pause = FIRST_PAUSE;
    loop {
        let sent = create_once(shared.bucket.as_ref(), &key, bytes.clone(), std::future::pending()).await;
        match sent {
            Ok(CreateOutcome::Ours) => return Found::Ours,
            Ok(CreateOutcome::Anothers) => {
                if let Some(found) = see_whose(shared, slot, nonce).await {
                    return found;
                }
            }
            Ok(CreateOutcome::Unknown(error)) | Err(error) => {
                tracing::warn!(
                    log = %shared.id, %slot, error = &error as &dyn std::error::Error,
                    "the bucket refuses a segment; trying again"
                );
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The end of a log is not declared on one comparison of bytes: the header says whose the object is. `None`: it could
/// not be found out now.
async fn see_whose(shared: &Shared, slot: Slot, nonce: Nonce) -> Option<Found> {
    match read_header(shared.bucket.as_ref(), &shared.id, slot).await {
        Ok(Some(Ok(header))) if header.nonce == nonce || is_there(Mutation::ExistsIsSuccess) => {
            Some(Found::Ours)
        }
        Ok(Some(Ok(header))) => {
            tracing::info!(log = %shared.id, %slot, kind = ?header.kind, "the next slot is another's");
            Some(Found::Anothers)
        }
        Ok(Some(Err(error))) => {
            tracing::error!(log = %shared.id, %slot, %error, "the next slot holds something unreadable");
            Some(Found::Unreadable)
        }
        Ok(None) => None,
        Err(error) => {
            warn_unread(shared, slot, &error);
            None
        }
    }
}

fn warn_unread(shared: &Shared, slot: Slot, error: &BucketError) {
    tracing::warn!(
        log = %shared.id, %slot, error = error as &dyn std::error::Error,
        "cannot read what lies in the next slot; trying again"
    );
}

/// Says, again and again, that weaker levels wait for a bucket that does not answer. Never resolves.
async fn complain(shared: &Shared, slot: Slot) {
    let patience = shared.settings.max_unshipped_age.max(FIRST_PAUSE);
    loop {
        sleep(patience).await;
        tracing::warn!(
            log = %shared.id, %slot,
            "the bucket has not taken a segment for {patience:?} and more: writes of every level wait"
        );
    }
}
