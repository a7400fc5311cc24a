//! Does what the [machine](super::machine) says.

use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use dormouse_protocol::{LogId, Slot};
use dormouse_runtime::Env;

use super::machine::{Looked, Recovered, Recovery, RecoveryEffect, RecoveryInput};
use super::segments::{blocks, found_in, next_batch};
use super::{RecoveryError, SealLog, Surplus};
use crate::bucket::{Bucket, BucketError, CreateOutcome, create_once};
use crate::checksum::Crc64;
use crate::fail_points::{Step as FailPoint, reach};
use crate::format::segment::{self, NO_PREVIOUS, SlotHeader, SlotKind};
use crate::keys::{LogKeys, Nonce};
use crate::wal::{Lsn, WalContents, WalError, WalStorage, keep_damaged, list_logs, read_wal, remove_wal};

/// What a recovery works with.
#[derive(Clone)]
pub struct RecoverySettings {
    /// The disk.
    pub storage: Arc<dyn WalStorage>,
    /// Where the write-ahead logs are, each in a folder named after its log.
    pub wal: PathBuf,
    /// Where what cannot be used any more is kept.
    pub lost: PathBuf,
    /// The bucket.
    pub bucket: Arc<dyn Bucket>,
    /// Clock, chance, blocking work.
    pub env: Env,
}

/// Brings what earlier processes left into their logs, and ends these. Called before this process begins a write-ahead
/// log of its own. While the bucket does not answer, it waits and tries again.
///
/// Cancelling the call loses nothing: the next one goes on from there.
///
/// # Errors
/// [`RecoveryError`]; what could not be brought into the bucket stays on the disk.
pub async fn recover(settings: &RecoverySettings, sealer: &dyn SealLog) -> Result<Surplus, RecoveryError> {
    let (storage, dir) = (settings.storage.clone(), settings.wal.clone());
    let logs = settings.env.blocking(move || list_logs(storage.as_ref(), &dir)).await?;
    let mut surplus = BTreeMap::new();
    for log in logs {
        let wal = read(settings, &log).await?;
        let one = OneLog { settings, keys: LogKeys::new(&log), log: &log, wal: &wal, previous: None };
        let recovered = one.run(sealer).await?;
        match recovered {
            Recovered::Surplus { after } => {
                let mut appends = wal.appends;
                appends.retain(|append| append.lsn > after);
                tracing::warn!(
                    %log, appends = appends.len(),
                    "somebody ended the log of an earlier process before all that it had accepted was in the bucket; \
                     it goes with the next claim of each subject"
                );
                surplus.insert(log, appends);
            }
            Recovered::Complete | Recovered::Nothing => {
                tracing::info!(%log, "the log of an earlier process is complete");
                let (storage, dir) = (settings.storage.clone(), settings.wal.clone());
                reach(FailPoint::WalRemoving);
                settings.env.blocking(move || remove_wal(storage.as_ref(), &dir, &log)).await?;
                reach(FailPoint::WalRemoved);
            }
            Recovered::BucketLacks => {
                let wal = settings.wal.join(log.to_string());
                return Err(RecoveryError::BucketLacks { log, wal });
            }
        }
    }
    Ok(Surplus::new(settings.clone(), surplus))
}

async fn read(settings: &RecoverySettings, log: &LogId) -> Result<WalContents, WalError> {
    let (storage, dir, log) = (settings.storage.clone(), settings.wal.clone(), log.clone());
    let kept = settings.lost.join("=wal").join(log.to_string());
    let read = move || {
        let wal = read_wal(storage.as_ref(), &dir, &log)?;
        if wal.torn {
            tracing::info!(%log, "the write-ahead log of an earlier process ends in the middle of a write");
        }
        if let Some(damage) = &wal.damaged {
            keep_damaged(storage.as_ref(), &dir, &log, damage, &kept)?;
            tracing::error!(
                %log, part = %damage.path.display(), at = damage.at, what = damage.what, kept = %kept.display(),
                "the write-ahead log of an earlier process is damaged: what stood before the damage is used, the rest is \
                 kept and may hold acknowledged writes of levels below bucket"
            );
        }
        Ok(wal)
    };
    settings.env.blocking(read).await
}

struct OneLog<'a> {
    settings: &'a RecoverySettings,
    keys: LogKeys,
    log: &'a LogId,
    wal: &'a WalContents,
    /// The last slot that was read or put, and its checksum.
    previous: Option<(Slot, Crc64)>,
}

impl OneLog<'_> {
    async fn run(mut self, sealer: &dyn SealLog) -> Result<Recovered, RecoveryError> {
        let (mut machine, mut effect) = Recovery::begin(self.wal);
        loop {
            let input = match effect {
                RecoveryEffect::List => RecoveryInput::Listed(self.highest().await?),
                RecoveryEffect::Look(slot) => RecoveryInput::Looked(self.look(slot).await?),
                RecoveryEffect::Put { slot, after } => self.put(slot, after).await?,
                RecoveryEffect::Seal => {
                    reach(FailPoint::RecoverySealing);
                    let sealed = sealer.seal(self.log).await;
                    sealed.map_err(|reply| RecoveryError::Seal { log: self.log.clone(), reply })?;
                    RecoveryInput::Sealed
                }
                RecoveryEffect::Done(recovered) => return Ok(recovered),
            };
            // Every input answers the effect before it.
            let Some(next) = machine.apply(input) else { unreachable!("an answer that was asked for") };
            effect = next;
        }
    }

    async fn highest(&self) -> Result<Option<Slot>, BucketError> {
        let entries = patiently(|| self.settings.bucket.list(self.keys.folder())).await?;
        Ok(self.keys.read_listing(&entries).last().copied())
    }

    async fn look(&mut self, slot: Slot) -> Result<Looked, RecoveryError> {
        let key = self.keys.slot(slot);
        let Some(bytes) = patiently(|| self.settings.bucket.get(&key)).await? else {
            return Ok(Looked::Gone);
        };
        let object = segment::decode(self.log, slot, bytes)?;
        self.previous = Some((slot, object.checksum));
        Ok(match object.header.kind {
            SlotKind::Birth => Looked::Birth,
            SlotKind::Seal => Looked::Seal,
            SlotKind::Data => Looked::Data(found_in(&object, &self.wal.appends)),
        })
    }

    async fn put(&mut self, slot: Slot, after: Lsn) -> Result<RecoveryInput, RecoveryError> {
        let batch = next_batch(&self.wal.appends, after);
        let through = batch.last().map_or(after, |append| append.lsn);
        let previous =
            self.previous.filter(|(before, _)| before.next() == slot).map_or(NO_PREVIOUS, |(_, crc)| crc);
        let nonce = Nonce::new(self.settings.env.ulid());
        let header = SlotHeader { kind: SlotKind::Data, log: self.log.clone(), slot, nonce, previous };
        let encoded = segment::encode(&header, blocks(batch));
        let outcome =
            create_once(self.settings.bucket.as_ref(), &self.keys.slot(slot), encoded.bytes, pending())
                .await?;
        match outcome {
            CreateOutcome::Ours => {
                reach(FailPoint::RecoveryPut);
                self.previous = Some((slot, encoded.checksum));
                Ok(RecoveryInput::Put { ours: true, through })
            }
            CreateOutcome::Anothers => Ok(RecoveryInput::Put { ours: false, through }),
            CreateOutcome::Unknown(error) => Err(error.into()),
        }
    }
}

/// Asks until there is an answer.
async fn patiently<T, F>(mut ask: impl FnMut() -> F) -> Result<T, BucketError>
where
    F: Future<Output = Result<T, BucketError>>,
{
    const LONGEST_PAUSE: Duration = Duration::from_secs(5);
    let mut pauses = ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(LONGEST_PAUSE)
        .without_max_times()
        .build();
    loop {
        match ask().await {
            Err(error) if error.is_unknown() => {
                tracing::warn!(%error, "the bucket does not answer; what an earlier process left has to wait");
                tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
            }
            answer => return answer,
        }
    }
}
