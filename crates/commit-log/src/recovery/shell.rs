//! Carries out the effects of the [machine](super::machine).

use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use dormouse_bucket::{Bucket, BucketError, CreateOutcome, create_once};
use dormouse_format::checksum::Crc64;
use dormouse_format::keys::{LogKeys, Nonce};
use dormouse_format::segment::{self, NO_PREVIOUS, SlotHeader, SlotKind};
use dormouse_protocol::{LogId, Slot};
use dormouse_runtime::Env;
use dormouse_runtime::disk::Disk;
use dormouse_runtime::fail_point;

use super::machine::{Recovered, Recovery, RecoveryEffect, RecoveryInput, RecoverySlotRead};
use super::segments::{blocks, match_segment, next_batch};
use super::{RecoveryError, SealLog, StrandedWrites};
use crate::wal::{Lsn, WalContents, WalError, keep_damaged, list_logs, read_wal, remove_wal};

/// Resources of a recovery.
#[derive(Clone)]
pub struct RecoverySettings {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// Folder of the write-ahead logs, each in a folder named after its log.
    pub wal: PathBuf,
    /// Folder for data that cannot be used any more.
    pub lost: PathBuf,
    /// The bucket.
    pub bucket: Arc<dyn Bucket>,
    /// Clock, randomness, blocking work.
    pub env: Env,
}

/// Ships unshipped writes of earlier processes into their logs, and seals these logs. Called before this process
/// creates its own write-ahead log. While the bucket does not answer, it retries.
///
/// Cancelling the call loses nothing: the next call continues from there.
///
/// # Errors
/// [`RecoveryError`]; the writes that were not shipped stay on the disk.
pub async fn recover(
    settings: &RecoverySettings,
    sealer: &dyn SealLog,
) -> Result<StrandedWrites, RecoveryError> {
    let (disk, dir) = (settings.disk.clone(), settings.wal.clone());
    let logs = settings.env.blocking(move || list_logs(disk.as_ref(), &dir)).await?;
    let mut stranded = BTreeMap::new();
    for log in logs {
        let wal = read(settings, &log).await?;
        let recovery =
            LogRecovery { settings, keys: LogKeys::new(&log), log: &log, wal: &wal, previous: None };
        let recovered = recovery.run(sealer).await?;
        match recovered {
            Recovered::Stranded { after } => {
                let mut appends = wal.appends;
                appends.retain(|append| append.lsn > after);
                tracing::warn!(
                    %log, appends = appends.len(), impact = "writes below level bucket missing until the claim",
                    "stranded writes found, deferred to next claim"
                );
                stranded.insert(log, appends);
            }
            Recovered::Complete | Recovered::Nothing => {
                tracing::info!(%log, "WAL recovery complete");
                let (disk, dir) = (settings.disk.clone(), settings.wal.clone());
                fail_point!(WalRemoving);
                settings.env.blocking(move || remove_wal(disk.as_ref(), &dir, &log)).await?;
                fail_point!(WalRemoved);
            }
            Recovered::SlotsMissing => {
                let wal = settings.wal.join(log.to_string());
                return Err(RecoveryError::SlotsMissing { log, wal });
            }
        }
    }
    Ok(StrandedWrites::new(settings.clone(), stranded))
}

async fn read(settings: &RecoverySettings, log: &LogId) -> Result<WalContents, WalError> {
    let (disk, dir, log) = (settings.disk.clone(), settings.wal.clone(), log.clone());
    let kept = settings.lost.join("=wal").join(log.to_string());
    let read = move || {
        let wal = read_wal(disk.as_ref(), &dir, &log)?;
        if wal.torn {
            tracing::info!(%log, "WAL ends in a torn write");
        }
        if let Some(damage) = &wal.damaged {
            keep_damaged(disk.as_ref(), &dir, &log, damage, &kept)?;
            tracing::error!(
                %log, part = %damage.path.display(), at = damage.at, reason = damage.reason, kept = %kept.display(),
                impact = "acknowledged writes below level bucket may be lost", "WAL damaged, damaged parts kept"
            );
        }
        Ok(wal)
    };
    settings.env.blocking(read).await
}

struct LogRecovery<'a> {
    settings: &'a RecoverySettings,
    keys: LogKeys,
    log: &'a LogId,
    wal: &'a WalContents,
    /// The last slot that was read or put, and its checksum.
    previous: Option<(Slot, Crc64)>,
}

impl LogRecovery<'_> {
    async fn run(mut self, sealer: &dyn SealLog) -> Result<Recovered, RecoveryError> {
        let (mut machine, mut effect) = Recovery::begin(self.wal);
        loop {
            let input = match effect {
                RecoveryEffect::List => RecoveryInput::Listed(self.highest().await?),
                RecoveryEffect::ReadSlot(slot) => RecoveryInput::SlotRead(self.read_slot(slot).await?),
                RecoveryEffect::Put { slot, after } => self.put(slot, after).await?,
                RecoveryEffect::Seal => {
                    fail_point!(RecoverySealing);
                    let sealed = sealer.seal(self.log).await;
                    sealed.map_err(|reply| RecoveryError::Seal { log: self.log.clone(), reply })?;
                    RecoveryInput::Sealed
                }
                RecoveryEffect::Done(recovered) => return Ok(recovered),
            };
            // Every input is the result of the previous effect.
            let Some(next) = machine.apply(input) else { unreachable!("the input matches the effect") };
            effect = next;
        }
    }

    async fn highest(&self) -> Result<Option<Slot>, BucketError> {
        let entries = with_retries(|| self.settings.bucket.list(self.keys.folder())).await?;
        Ok(self.keys.read_listing(&entries).last().copied())
    }

    async fn read_slot(&mut self, slot: Slot) -> Result<RecoverySlotRead, RecoveryError> {
        let key = self.keys.slot(slot);
        let Some(bytes) = with_retries(|| self.settings.bucket.get(&key)).await? else {
            return Ok(RecoverySlotRead::Gone);
        };
        let object = segment::decode(self.log, slot, bytes)?;
        self.previous = Some((slot, object.checksum));
        Ok(match object.header.kind {
            SlotKind::Birth => RecoverySlotRead::Birth,
            SlotKind::Seal => RecoverySlotRead::Seal,
            SlotKind::Data => RecoverySlotRead::Data(match_segment(&object, &self.wal.appends)),
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
                fail_point!(RecoveryPut);
                self.previous = Some((slot, encoded.checksum));
                Ok(RecoveryInput::Put { ours: true, through })
            }
            CreateOutcome::Foreign => Ok(RecoveryInput::Put { ours: false, through }),
            CreateOutcome::Unknown(error) => Err(error.into()),
        }
    }
}

/// Retries the call until its result is known.
async fn with_retries<T, F>(mut call: impl FnMut() -> F) -> Result<T, BucketError>
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
        match call().await {
            Err(error) if error.is_unknown() => {
                tracing::warn!(%error, "bucket not answering, retrying WAL recovery");
                tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
            }
            answer => return answer,
        }
    }
}
