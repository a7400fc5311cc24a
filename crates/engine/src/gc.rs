//! Collection without a server (`dormouse gc`): deletes objects that no newest manifest needs. It serves for logs whose
//! servers never return, and for leftovers of crashes.
//!
//! It claims nothing and seals nothing. A log that is not sealed may have a live owner, so it is left alone. In a
//! sealed log, the slots that no newest manifest needs are deleted. The other slots become unneeded when a server opens
//! their subjects, because the claim gives them a base that needs no slot of that log.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dormouse_bucket::{Bucket, BucketError};
use dormouse_commit_log::log::{SealedLog, SealedLogs, SlotUse};
use dormouse_format::keys::{BucketKey, LogKeys, SubjectKeys, logs_folder};
use dormouse_format::manifest::Manifest;
use dormouse_protocol::{ErrorReply, LogId, ServerName, Slot, Subject};
use dormouse_runtime::Env;

use crate::ownership::{ManifestRead, garbage};

/// Number of attempts if a subject gets new manifests while it is read.
const ATTEMPTS: u32 = 5;

/// A server name under which no log is ever written.
const UNUSED_SERVER: &str = "nobody";

/// Settings of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcSettings {
    /// Only report the objects that would be deleted.
    pub dry_run: bool,
    /// The pause after each deletion, which leaves the bucket's capacity to the servers.
    pause: Duration,
}

impl GcSettings {
    /// At most `per_second` deletions a second.
    #[must_use]
    pub fn new(dry_run: bool, per_second: u32) -> Self {
        Self { dry_run, pause: Duration::from_secs(1) / per_second.max(1) }
    }
}

/// Result of a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GcReport {
    /// Logs in the bucket.
    pub logs: u64,
    /// Logs that are sealed; the others were left alone.
    pub sealed: u64,
    /// Subjects that still need a sealed log.
    pub needing: u64,
    /// Subjects whose own objects were checked.
    pub subjects: u64,
    /// Objects deleted, or in a dry run, objects that would have been.
    pub deleted: u64,
}

/// Why a collection ended early. The objects deleted until then were not needed.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// The bucket failed.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// A log or a manifest cannot be read.
    #[error("{0}")]
    Unreadable(ErrorReply),
    /// The bucket has no log. The logs of a fleet never disappear, so no fleet uses this bucket.
    #[error("this is no bucket of a fleet: it has no log")]
    NoLog,
}

impl From<ErrorReply> for GcError {
    fn from(reply: ErrorReply) -> Self {
        Self::Unreadable(reply)
    }
}

/// Checks every log and the folders of `subjects`, and deletes the objects that no newest manifest needs. Calls
/// `on_delete` with each object before its deletion.
///
/// Cancelling the call leaves the remaining objects to the next collection.
///
/// # Errors
/// [`GcError`].
pub async fn collect(
    bucket: Arc<dyn Bucket>,
    env: &Env,
    settings: &GcSettings,
    subjects: &[Subject],
    on_delete: impl FnMut(&BucketKey),
) -> Result<GcReport, GcError> {
    let mut collector = GarbageCollector { bucket, env, settings, on_delete, report: GcReport::default() };
    let logs = collector.logs().await?;
    if logs.is_empty() {
        return Err(GcError::NoLog);
    }
    for log in logs {
        collector.collect_log(&log).await?;
    }
    for subject in subjects {
        collector.collect_subject(subject).await?;
    }
    Ok(collector.report)
}

struct GarbageCollector<'a, T> {
    bucket: Arc<dyn Bucket>,
    env: &'a Env,
    settings: &'a GcSettings,
    on_delete: T,
    report: GcReport,
}

impl<T: FnMut(&BucketKey)> GarbageCollector<'_, T> {
    async fn logs(&self) -> Result<BTreeSet<LogId>, BucketError> {
        let listed = self.bucket.list(&logs_folder()).await?;
        let log = |key: &BucketKey| key.as_str().split('/').nth(1)?.parse().ok();
        Ok(listed.iter().filter_map(|entry| log(&entry.key)).collect())
    }

    async fn collect_log(&mut self, log: &LogId) -> Result<(), GcError> {
        self.report.logs += 1;
        // A collection has no log of its own, so it uses a fresh id.
        let unused = ServerName::new(UNUSED_SERVER).map(|name| LogId::new(name, self.env.ulid()));
        let own = unused.map_err(ErrorReply::internal)?;
        let logs = SealedLogs::new(Arc::clone(&self.bucket), self.env.clone(), own);
        // The seal is read before the manifests: after the seal, no manifest can need a further slot.
        let Some(sealed) = logs.read(log).await? else { return Ok(()) };
        self.report.sealed += 1;
        let (needed, needing) = self.needed(&sealed).await?;
        self.report.needing += needing;
        let keys = LogKeys::new(log);
        for slot in garbage::slots(&sealed.list().await?, |slot| needed.contains(&slot)) {
            // Slots above the seal were not checked.
            if slot < sealed.seal() {
                self.delete(&keys.slot(slot)).await?;
            }
        }
        if needing == 0 && self.bucket.get(&keys.index()).await?.is_some() {
            self.delete(&keys.index()).await?;
        }
        Ok(())
    }

    /// The slots that newest manifests need, and the number of subjects that need one.
    async fn needed(&self, log: &SealedLog) -> Result<(BTreeSet<Slot>, u64), GcError> {
        let (mut needed, mut needing, mut after) = (BTreeSet::new(), 0, None);
        while let Some((subject, held)) = log.next_subject_uses(after.as_ref()) {
            let Some(manifest) = self.newest(&subject).await? else {
                // A missing manifest is damage, so nothing is deleted.
                let object = LogKeys::new(log.log()).folder().to_string();
                let what = format!("holds entries of {subject}, which has no manifest");
                return Err(ErrorReply::corrupt(object, what).into());
            };
            let is_needed = |held: &&SlotUse| garbage::needs(&manifest, log.log(), **held);
            let slots: Vec<Slot> = held.iter().filter(is_needed).map(|held| held.slot).collect();
            needing += u64::from(!slots.is_empty());
            needed.extend(slots);
            after = Some(subject);
        }
        Ok((needed, needing))
    }

    /// The newest manifest, confirmed by a listing after the read; `None` if there is none.
    async fn newest(&self, subject: &Subject) -> Result<Option<Manifest>, GcError> {
        Ok(self.newest_with_folder(subject).await?.map(|(manifest, _)| manifest))
    }

    async fn newest_with_folder(
        &self,
        subject: &Subject,
    ) -> Result<Option<(Manifest, dormouse_format::keys::Folder)>, GcError> {
        let keys = SubjectKeys::new(subject);
        for _ in 0..ATTEMPTS {
            let Some(number) = keys.read_listing(&self.bucket.list(keys.folder()).await?).newest() else {
                return Ok(None);
            };
            let manifest =
                match ManifestRead::read(subject, number, self.bucket.get(&keys.manifest(number)).await?) {
                    ManifestRead::Manifest(manifest) => *manifest,
                    ManifestRead::Missing => continue,
                    ManifestRead::Unreadable(reply) => return Err(reply.into()),
                };
            let folder = keys.read_listing(&self.bucket.list(keys.folder()).await?);
            if folder.newest() == Some(number) {
                return Ok(Some((manifest, folder)));
            }
        }
        let busy = format!("{subject} gets new manifests faster than they can be read; try again");
        Err(ErrorReply::unavailable(busy).into())
    }

    async fn collect_subject(&mut self, subject: &Subject) -> Result<(), GcError> {
        self.report.subjects += 1;
        let Some((manifest, folder)) = self.newest_with_folder(subject).await? else { return Ok(()) };
        for key in garbage::objects(&folder, &manifest) {
            self.delete(&key).await?;
        }
        Ok(())
    }

    async fn delete(&mut self, key: &BucketKey) -> Result<(), BucketError> {
        (self.on_delete)(key);
        self.report.deleted += 1;
        if !self.settings.dry_run {
            self.bucket.delete(key).await?;
            tokio::time::sleep(self.settings.pause).await;
        }
        Ok(())
    }
}
