//! The index of a sealed log: load it, or build and write it.

use std::sync::Arc;

use bytes::Bytes;
use dormouse_bucket::{Bucket, create_once};
use dormouse_format::index::{self, IndexHeader, LogIndex};
use dormouse_format::keys::{LogKeys, Nonce};
use dormouse_format::segment::IndexLine;
use dormouse_protocol::{ErrorReply, LogId, Slot};
use dormouse_runtime::Env;
use dormouse_runtime::fail_point;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::time::sleep;

use super::read::{CONCURRENT_READS, TailError, read_index};
use super::{CREATE_TIMEOUT, SealPoint, SealedLog, reply};

/// A larger index stays in memory only: it cannot be read back in one piece.
const MAX_INDEX_BYTES: usize = 24 << 20;

/// Loads the index of a sealed log, or builds it; if `keep` is set, a built index is also written.
pub(super) async fn open(
    bucket: Arc<dyn Bucket>,
    env: &Env,
    log: &LogId,
    point: SealPoint,
    keep: bool,
) -> Result<SealedLog, ErrorReply> {
    let index = match load(bucket.as_ref(), log, point.seal).await? {
        Some(index) => index,
        None => {
            let lines = collect(bucket.as_ref(), log, &point.slots).await?;
            let header = IndexHeader { log: log.clone(), seal: point.seal, nonce: Nonce::new(env.ulid()) };
            fail_point!(Sealed);
            let bytes = index::encode(&header, lines);
            if keep {
                write(bucket.as_ref(), log, bytes.clone()).await;
            }
            LogIndex::decode(log, bytes)?
        }
    };
    let SealPoint { seal, slots, size_bytes } = point;
    Ok(SealedLog { log: log.clone(), seal, slots, size_bytes, index, bucket })
}

/// The stored index; `None` if there is no usable one.
async fn load(bucket: &dyn Bucket, log: &LogId, seal: Slot) -> Result<Option<LogIndex>, ErrorReply> {
    let Some(bytes) = bucket.get(&LogKeys::new(log).index()).await.map_err(reply)? else { return Ok(None) };
    match LogIndex::decode(log, bytes) {
        Ok(index) if index.header().seal == seal => Ok(Some(index)),
        Ok(index) => {
            tracing::warn!(%log, found = %index.header().seal, %seal, "sealed log index ignored: different seal");
            Ok(None)
        }
        // The slots hold the same information: the index only saves reading them.
        Err(error) => {
            tracing::warn!(%log, %error, "sealed log index unusable, rebuilding");
            Ok(None)
        }
    }
}

/// The index lines of all slots. A slot deleted meanwhile is needed by no manifest.
async fn collect(
    bucket: &dyn Bucket,
    log: &LogId,
    slots: &[Slot],
) -> Result<Vec<(Slot, IndexLine)>, ErrorReply> {
    let read = |slot: Slot| async move {
        let end = read_index(bucket, log, slot).await?;
        let lines = end.map(|end| end.lines).unwrap_or_default();
        Ok::<_, TailError>(lines.into_iter().map(|line| (slot, line)).collect())
    };
    let lines: Vec<Vec<(Slot, IndexLine)>> =
        stream::iter(slots.iter().copied()).map(read).buffered(CONCURRENT_READS).try_collect().await?;
    Ok(lines.concat())
}

/// Best effort: a reader that finds no index builds one.
async fn write(bucket: &dyn Bucket, log: &LogId, bytes: Bytes) {
    if bytes.len() > MAX_INDEX_BYTES {
        return;
    }
    let written = create_once(bucket, &LogKeys::new(log).index(), bytes, sleep(CREATE_TIMEOUT)).await;
    if let Err(error) = written {
        tracing::debug!(%log, %error, "sealed log index write failed");
    }
}
