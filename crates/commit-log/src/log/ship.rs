//! The task that writes the log's slots, one at a time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bucket::{Bucket, BucketError, CreateOutcome, create_once};
use dormouse_format::checksum::Crc64;
use dormouse_format::keys::{LogKeys, Nonce};
use dormouse_format::segment::{self, Block, EncodedSlot, NO_PREVIOUS, SlotHeader, SlotKind};
use dormouse_metrics::StepKind;
use dormouse_protocol::{LogId, Slot};
use dormouse_runtime::fail_point;
use dormouse_runtime::injected_bug;
use dormouse_runtime::{Env, Stop};
use tokio::time::sleep;

use super::handle::LogShared;
use super::owner::{OwnerInput, PutOutcome};
use super::sealed::read_header;
use super::ship_schedule::FlushDecision;
use super::state::Segment;
use super::{Append, StartLogError};

/// Backoff after a failed upload: the first pause, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A segment with more bytes of entries is encoded on the blocking pool.
const MAX_INLINE_BYTES: usize = 64 * 1_024;

/// The first object of a log.
pub(super) struct FirstSlot {
    pub(super) checksum: Crc64,
    pub(super) size_bytes: u64,
}

/// Creates the first object of a log.
pub(super) async fn create_first_slot(
    log: &LogId,
    bucket: &dyn Bucket,
    env: &Env,
    stop: &Stop,
) -> Result<FirstSlot, StartLogError> {
    let slot = Slot::new(0);
    let nonce = Nonce::new(env.ulid());
    let header = SlotHeader { kind: SlotKind::Birth, log: log.clone(), slot, nonce, previous: NO_PREVIOUS };
    let EncodedSlot { bytes, checksum, .. } = segment::encode(&header, Vec::new());
    let size_bytes = bytes.len() as u64;
    match create_once(bucket, &LogKeys::new(log).slot(slot), bytes, stop.requested()).await {
        Ok(CreateOutcome::Ours) => Ok(FirstSlot { checksum, size_bytes }),
        Ok(CreateOutcome::Foreign) => Err(StartLogError::AlreadyExists(log.clone())),
        Ok(CreateOutcome::Unknown(source)) | Err(source) => {
            Err(StartLogError::Bucket { log: log.clone(), source })
        }
    }
}

/// The next action of the ship task.
enum ShipStep {
    Put(Segment),
    Wait(Option<Duration>),
    Over,
}

pub(super) async fn run(shared: Arc<LogShared>, birth: Crc64) {
    let mut previous = birth;
    loop {
        match next(&shared) {
            ShipStep::Over => return,
            ShipStep::Wait(pause) => shared.wait_for_work(&shared.wakers.ship, pause).await,
            ShipStep::Put(segment) => {
                let Some(checksum) = put(&shared, segment, previous).await else { return };
                previous = checksum;
            }
        }
    }
}

fn next(shared: &LogShared) -> ShipStep {
    let now = shared.env.boot();
    let mut state = shared.lock();
    if shared.stop.is_requested() {
        // Each task checks the stop signal itself: if this task waited for another one to act on it, the other could be
        // blocked by it.
        state.stop_now(&shared.wakers);
    }
    if state.end.is_some() {
        return ShipStep::Over;
    }
    if state.segment_to_ship.is_none() {
        match state.decide(now) {
            FlushDecision::Idle => return ShipStep::Wait(None),
            FlushDecision::Wait(at) => return ShipStep::Wait(Some(at.saturating_sub(now))),
            FlushDecision::Now => state.apply_owner_input(OwnerInput::Ready, shared),
        }
    }
    state.segment_to_ship.take().map_or(ShipStep::Wait(None), ShipStep::Put)
}

/// Creates a slot and applies the result to the state; `None` if the log has ended.
async fn put(shared: &LogShared, Segment { slot, appends }: Segment, previous: Crc64) -> Option<Crc64> {
    let nonce = Nonce::new(shared.env.ulid());
    let header = SlotHeader { kind: SlotKind::Data, log: shared.id.clone(), slot, nonce, previous };
    let EncodedSlot { bytes, checksum, .. } = encode(shared, header, appends).await;
    let size = bytes.len() as u64;
    let over = async {
        tokio::select! {
            biased;
            () = shared.stop.requested() => {}
            _ = shared.ended() => {}
        }
    };
    let outcome = tokio::select! {
        biased;
        // A definite result counts even at the end: writers wait for it.
        outcome = create_until_definite(shared, slot, nonce, bytes) => outcome,
        () = over => return None,
        () = warn_bucket_stalled(shared, slot) => return None,
    };
    fail_point!(SlotCreated);
    let mut state = shared.lock();
    match outcome {
        SlotOwner::Ours => {
            state.shipped(size, shared);
            return Some(checksum);
        }
        SlotOwner::Foreign => {}
        SlotOwner::Unreadable => state.segment_unreadable(),
    }
    state.apply_owner_input(OwnerInput::Put { outcome: PutOutcome::Foreign, ready: false }, shared);
    None
}

/// Encodes a segment. The copy and the checksums of a large one would be a long step: it leaves this thread.
async fn encode(shared: &LogShared, header: SlotHeader, appends: Vec<Append>) -> EncodedSlot {
    let bytes: usize = appends.iter().map(|append| append.frames.len()).sum();
    let (steps, env) = (shared.instruments.steps.clone(), shared.env.clone());
    let encode = move || {
        let _step = steps.start(&env, StepKind::EncodeSegment);
        segment::encode(&header, blocks(appends))
    };
    if bytes <= MAX_INLINE_BYTES { encode() } else { shared.env.blocking(encode).await }
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

/// The confirmed owner of the slot's object.
enum SlotOwner {
    Ours,
    Foreign,
    /// The object is damaged, or this version cannot read it. It may be ours.
    Unreadable,
}

/// Sends the same bytes to the same slot until the owner of the slot's object is known. After a time-out, it first
/// reads the slot.
async fn create_until_definite(shared: &LogShared, slot: Slot, nonce: Nonce, bytes: Bytes) -> SlotOwner {
    let key = shared.keys.slot(slot);
    let size = bytes.len() as u64;
    let mut pause = FIRST_PAUSE;
    let mut is_first = true;
    loop {
        let timeout = shared.lock().upload_rate.create_timeout(size);
        let began = shared.env.boot();
        let sent = create_once(shared.bucket.as_ref(), &key, bytes.clone(), sleep(timeout)).await;
        let duration = shared.env.boot().saturating_sub(began);
        match sent {
            Ok(CreateOutcome::Ours) => {
                if is_first && duration < timeout {
                    shared.lock().upload_rate.uploaded(size, duration);
                }
                return SlotOwner::Ours;
            }
            Ok(CreateOutcome::Foreign) => {
                if let Some(found) = read_slot_owner(shared, slot, nonce).await {
                    return found;
                }
            }
            Ok(CreateOutcome::Unknown(error)) | Err(error) => {
                tracing::warn!(
                    log = %shared.id, %slot, ?timeout, error = &error as &dyn std::error::Error,
                    "segment upload failed, retrying"
                );
                if duration >= timeout {
                    shared.lock().upload_rate.timed_out();
                    // The upload may be complete, and only its answer lost.
                    if let Some(found) = read_slot_owner(shared, slot, nonce).await {
                        return found;
                    }
                }
            }
        }
        is_first = false;
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// A byte comparison alone does not end a log: the header identifies the object's owner. `None`: the header cannot be
/// read now.
async fn read_slot_owner(shared: &LogShared, slot: Slot, nonce: Nonce) -> Option<SlotOwner> {
    match read_header(shared.bucket.as_ref(), &shared.id, slot).await {
        Ok(Some(Ok(header))) if header.nonce == nonce || injected_bug!(ExistsIsSuccess) => {
            Some(SlotOwner::Ours)
        }
        Ok(Some(Ok(header))) => {
            tracing::info!(log = %shared.id, %slot, kind = ?header.kind, "fenced: log sealed by another process");
            Some(SlotOwner::Foreign)
        }
        Ok(Some(Err(error))) => {
            tracing::error!(log = %shared.id, %slot, %error, "slot unreadable");
            Some(SlotOwner::Unreadable)
        }
        Ok(None) => None,
        Err(error) => {
            warn_unread(shared, slot, &error);
            None
        }
    }
}

fn warn_unread(shared: &LogShared, slot: Slot, error: &BucketError) {
    tracing::warn!(
        log = %shared.id, %slot, error = error as &dyn std::error::Error,
        "slot read failed, retrying"
    );
}

/// Logs repeatedly that writes of weaker levels wait for a bucket that does not answer. Never resolves.
async fn warn_bucket_stalled(shared: &LogShared, slot: Slot) {
    let timeout = shared.settings.max_unshipped_age.max(FIRST_PAUSE);
    loop {
        sleep(timeout).await;
        tracing::warn!(
            log = %shared.id, %slot, ?timeout, impact = "writes of all levels wait",
            "write stall: segment upload timed out"
        );
    }
}
