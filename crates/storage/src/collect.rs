//! Deleting what nobody needs any more, from outside of any server: for logs whose servers will never come back, and for
//! what a crash left behind.
//!
//! Nothing is claimed and nothing is sealed here. A log that is not sealed may have a living owner, and is left alone;
//! the slots of a sealed one go as far as no newest manifest needs them. The rest goes when a server opens the subjects
//! that need it, which brings what they need into objects of their own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::{ErrorReply, LogId, ServerName, Slot, Subject};
use dormouse_runtime::Env;

use crate::bucket::{Bucket, BucketError, BucketKey, BucketPrefix};
use crate::keys::{LogKeys, SubjectKeys};
use crate::log::{SealedLog, SealedLogs};
use crate::manifest::Manifest;
use crate::ownership::{Found, garbage};

/// How often a subject may get a new manifest while it is looked at.
const ATTEMPTS: u32 = 5;

/// The name under which nobody ever writes a log.
const NOBODY: &str = "nobody";

/// What is looked through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectSettings {
    /// Only tell what would be deleted.
    pub dry_run: bool,
    /// The pause after each deletion, so that servers keep the bucket to themselves.
    pause: Duration,
}

impl CollectSettings {
    /// At most `per_second` deletions a second.
    #[must_use]
    pub fn new(dry_run: bool, per_second: u32) -> Self {
        Self { dry_run, pause: Duration::from_secs(1) / per_second.max(1) }
    }
}

/// What a collection came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Logs in the bucket.
    pub logs: u64,
    /// Those of them that are sealed; the others were left alone.
    pub sealed: u64,
    /// Subjects that still need a sealed log.
    pub needing: u64,
    /// Subjects looked through for objects of their own.
    pub subjects: u64,
    /// Objects deleted, or that would have been.
    pub deleted: u64,
}

/// Why a collection ended early. What is deleted stays deleted, and was rightly so.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The bucket failed.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// A log or a manifest cannot be read.
    #[error("{0}")]
    Unreadable(ErrorReply),
}

impl From<ErrorReply> for CollectError {
    fn from(reply: ErrorReply) -> Self {
        Self::Unreadable(reply)
    }
}

/// Looks through every log, and through the folders of `subjects`, and deletes what nobody needs. Each object is told
/// to `told` before it goes.
///
/// Cancelling the call leaves the rest for the next time.
///
/// # Errors
/// [`CollectError`].
pub async fn collect(
    bucket: Arc<dyn Bucket>,
    env: &Env,
    settings: &CollectSettings,
    subjects: &[Subject],
    told: impl FnMut(&BucketKey),
) -> Result<Collected, CollectError> {
    let mut collector = Collector { bucket, env, settings, told, collected: Collected::default() };
    for log in collector.logs().await? {
        collector.collect_log(&log).await?;
    }
    for subject in subjects {
        collector.collect_subject(subject).await?;
    }
    Ok(collector.collected)
}

struct Collector<'a, T> {
    bucket: Arc<dyn Bucket>,
    env: &'a Env,
    settings: &'a CollectSettings,
    told: T,
    collected: Collected,
}

impl<T: FnMut(&BucketKey)> Collector<'_, T> {
    async fn logs(&self) -> Result<BTreeSet<LogId>, BucketError> {
        let listed = self.bucket.list(&BucketPrefix::of_legal("logs/".to_owned())).await?;
        let log = |key: &BucketKey| key.as_str().split('/').nth(1)?.parse().ok();
        Ok(listed.iter().filter_map(|entry| log(&entry.key)).collect())
    }

    async fn collect_log(&mut self, log: &LogId) -> Result<(), CollectError> {
        self.collected.logs += 1;
        // Its own log is none: it has a name that no server can have seen.
        let nobody = ServerName::new(NOBODY).map(|name| LogId::new(name, self.env.ulid()));
        let own = nobody.map_err(ErrorReply::internal)?;
        let logs = SealedLogs::new(Arc::clone(&self.bucket), self.env.clone(), own);
        // First the seal, and only then the manifests: from then on none can come to need more.
        let Some(sealed) = logs.read(log).await? else { return Ok(()) };
        self.collected.sealed += 1;
        let (needed, needing) = self.needed(&sealed).await?;
        self.collected.needing += needing;
        let keys = LogKeys::new(log);
        for slot in garbage::slots(&sealed.list().await?, |slot| needed.contains(&slot)) {
            // What lies above the seal is none of what was looked through.
            if slot < sealed.seal() {
                self.delete(&keys.slot(slot)).await?;
            }
        }
        if needing == 0 && self.bucket.get(&keys.index()).await?.is_some() {
            self.delete(&keys.index()).await?;
        }
        Ok(())
    }

    /// The slots that newest manifests need, and of how many subjects.
    async fn needed(&self, log: &SealedLog) -> Result<(BTreeSet<Slot>, u64), CollectError> {
        let (mut needed, mut needing, mut after) = (BTreeSet::new(), 0, None);
        while let Some((subject, held)) = log.next_held(after.as_ref()) {
            let Some(manifest) = self.newest(&subject).await? else {
                // Nothing is deleted because something else is missing.
                let object = LogKeys::new(log.log()).folder().to_string();
                let what = format!("holds entries of {subject}, which has no manifest");
                return Err(ErrorReply::corrupt(object, what).into());
            };
            let is_needed = |held: &&garbage::Held| garbage::needs(&manifest, log.log(), **held);
            let slots: Vec<Slot> = held.iter().filter(is_needed).map(|held| held.slot).collect();
            needing += u64::from(!slots.is_empty());
            needed.extend(slots);
            after = Some(subject);
        }
        Ok((needed, needing))
    }

    /// The newest manifest, as a listing after it was read has shown. `None`: there is none.
    async fn newest(&self, subject: &Subject) -> Result<Option<Manifest>, CollectError> {
        Ok(self.newest_with_folder(subject).await?.map(|(manifest, _)| manifest))
    }

    async fn newest_with_folder(
        &self,
        subject: &Subject,
    ) -> Result<Option<(Manifest, crate::keys::Folder)>, CollectError> {
        let keys = SubjectKeys::new(subject);
        for _ in 0..ATTEMPTS {
            let Some(number) = keys.read_listing(&self.bucket.list(keys.folder()).await?).newest() else {
                return Ok(None);
            };
            let manifest = match Found::read(subject, number, self.bucket.get(&keys.manifest(number)).await?)
            {
                Found::Manifest(manifest) => *manifest,
                Found::Missing => continue,
                Found::Unreadable(reply) => return Err(reply.into()),
            };
            let folder = keys.read_listing(&self.bucket.list(keys.folder()).await?);
            if folder.newest() == Some(number) {
                return Ok(Some((manifest, folder)));
            }
        }
        let busy = format!("{subject} gets new manifests faster than they can be read; try again");
        Err(ErrorReply::unavailable(busy).into())
    }

    async fn collect_subject(&mut self, subject: &Subject) -> Result<(), CollectError> {
        self.collected.subjects += 1;
        let Some((manifest, folder)) = self.newest_with_folder(subject).await? else { return Ok(()) };
        for key in garbage::objects(&folder, &manifest) {
            self.delete(&key).await?;
        }
        Ok(())
    }

    async fn delete(&mut self, key: &BucketKey) -> Result<(), BucketError> {
        (self.told)(key);
        self.collected.deleted += 1;
        if !self.settings.dry_run {
            self.bucket.delete(key).await?;
            tokio::time::sleep(self.settings.pause).await;
        }
        Ok(())
    }
}
