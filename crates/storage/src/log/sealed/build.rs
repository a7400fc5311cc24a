//! The index of a sealed log: read, or made and written.

use std::sync::Arc;

use bytes::Bytes;
use dormouse_protocol::{ErrorReply, LogId, Slot};
use dormouse_runtime::Env;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::time::sleep;

use super::read::{AT_ONCE, TailError, read_index};
use super::{Fence, PATIENCE, SealedLog, reply};
use crate::bucket::{Bucket, create_once};
use crate::fail_points::{Step as FailPoint, reach};
use crate::format::index::{self, IndexHeader, LogIndex};
use crate::format::segment::IndexLine;
use crate::keys::{LogKeys, Nonce};

/// A larger index is kept in memory only: it could not be read back in one piece.
const MOST_INDEX_BYTES: usize = 24 << 20;

/// Loads the index of a sealed log, or makes it, and writes it if `keep` says so.
pub(super) async fn open(
    bucket: Arc<dyn Bucket>,
    env: &Env,
    log: &LogId,
    fence: Fence,
    keep: bool,
) -> Result<SealedLog, ErrorReply> {
    let index = match load(bucket.as_ref(), log, fence.seal).await? {
        Some(index) => index,
        None => {
            let lines = collect(bucket.as_ref(), log, &fence.slots).await?;
            let header = IndexHeader { log: log.clone(), seal: fence.seal, nonce: Nonce::new(env.ulid()) };
            reach(FailPoint::Sealed);
            let bytes = index::encode(&header, lines);
            if keep {
                write(bucket.as_ref(), log, bytes.clone()).await;
            }
            LogIndex::decode(log, bytes)?
        }
    };
    Ok(SealedLog { log: log.clone(), seal: fence.seal, slots: fence.slots, index, bucket })
}

/// The index that somebody wrote; `None` when there is none that can be used.
async fn load(bucket: &dyn Bucket, log: &LogId, seal: Slot) -> Result<Option<LogIndex>, ErrorReply> {
    let Some(bytes) = bucket.get(&LogKeys::new(log).index()).await.map_err(reply)? else { return Ok(None) };
    match LogIndex::decode(log, bytes) {
        Ok(index) if index.header().seal == seal => Ok(Some(index)),
        Ok(index) => {
            tracing::warn!(%log, found = %index.header().seal, %seal, "an index of another seal is ignored");
            Ok(None)
        }
        // The slots say the same: the index only saves reading them.
        Err(error) => {
            tracing::warn!(%log, %error, "the index cannot be used and is made anew");
            Ok(None)
        }
    }
}

/// Where everything is. A slot that went meanwhile is needed by nobody.
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
        stream::iter(slots.iter().copied()).map(read).buffered(AT_ONCE).try_collect().await?;
    Ok(lines.concat())
}

/// Best effort: whoever comes without an index makes one.
async fn write(bucket: &dyn Bucket, log: &LogId, bytes: Bytes) {
    if bytes.len() > MOST_INDEX_BYTES {
        return;
    }
    let written = create_once(bucket, &LogKeys::new(log).index(), bytes, sleep(PATIENCE)).await;
    if let Err(error) = written {
        tracing::debug!(%log, %error, "the index of a sealed log could not be written");
    }
}
