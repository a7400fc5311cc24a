//! Collection: deletes unreferenced objects, with one collector for all subjects of an engine.

use std::sync::{Arc, Weak};
use std::time::Duration;

use dormouse_bucket::Bucket;
use dormouse_format::keys::{BlobName, BucketKey, SubjectKeys};
use dormouse_format::manifest::Manifest;
use dormouse_metrics::Counter;
use dormouse_protocol::Subject;
use dormouse_runtime::Stop;
use dormouse_subject_state::database::{Database, DatabaseError};
use futures::StreamExt;
use tokio::sync::mpsc;

use super::serve::OpenSubject;
use crate::ownership::{Verified, garbage};

/// Maximum number of publications whose garbage waits. A later listing finds the garbage that does not fit.
pub(crate) const QUEUE: usize = 256;

/// Objects deleted at the same time.
const DELETING: usize = 8;

/// The pause after each deletion. So at most 400 objects are deleted per second.
const PAUSE: Duration = Duration::from_millis(20);

/// Unreferenced objects of one subject.
#[derive(Debug)]
pub(crate) struct Garbage {
    keys: SubjectKeys,
    objects: Vec<BucketKey>,
    /// Blobs, by name and ascending: a destroyed subject may have very many. Dropped when they are deleted.
    blobs: Arc<Vec<BlobName>>,
}

impl Garbage {
    /// All objects except blobs.
    pub(crate) fn objects(subject: &Subject, objects: Vec<BucketKey>) -> Self {
        Self { keys: SubjectKeys::new(subject), objects, blobs: Arc::default() }
    }

    /// Blobs.
    pub(crate) fn blobs(keys: SubjectKeys, blobs: Vec<BlobName>) -> Self {
        Self { keys, objects: Vec::new(), blobs: Arc::new(blobs) }
    }
}

/// Deletes queued objects until all senders are gone or one of the signals is given: a stopping process does
/// not collect garbage.
///
/// Counts the deleted objects in `collected`. Cancelling it leaves objects that a later listing finds again.
pub(crate) async fn collect(
    bucket: Arc<dyn Bucket>,
    mut queue: mpsc::Receiver<Garbage>,
    stops: [Stop; 2],
    collected: Counter,
) {
    let [one, other] = &stops;
    let work = async {
        while let Some(Garbage { keys, objects, blobs }) = queue.recv().await {
            let blobs = blobs.iter().map(|name| keys.blob(name));
            let garbage = futures::stream::iter(objects.into_iter().chain(blobs));
            garbage.for_each_concurrent(DELETING, |key| delete(bucket.as_ref(), key, &collected)).await;
        }
    };
    tokio::select! {
        biased;
        () = one.requested() => {}
        () = other.requested() => {}
        () = work => {}
    }
}

/// The listed blobs that may be deleted, as [`garbage::blobs`] decides. The same listing shows that `manifest` is the
/// newest.
///
/// # Errors
/// The file cannot be read or written; then no blob may be deleted.
fn deletable_blobs(
    database: &mut Database,
    manifest: &Manifest,
    listed: &[BlobName],
) -> Result<Vec<BlobName>, DatabaseError> {
    let uses = database.blob_uses(manifest, listed)?;
    let removed = |name: &BlobName| uses.removed.get(name).copied();
    Ok(garbage::blobs(manifest, listed, removed, |name| uses.referenced.contains(name)))
}

async fn delete(bucket: &dyn Bucket, key: BucketKey, collected: &Counter) {
    match bucket.delete(&key).await {
        Ok(()) => {
            collected.inc();
            tracing::debug!(%key, "unreferenced object deleted");
        }
        Err(error) => tracing::debug!(%key, %error, "unreferenced object delete failed"),
    }
    tokio::time::sleep(PAUSE).await;
}

impl OpenSubject<'_> {
    /// Queues unneeded objects for deletion, now that a manifest of this process is verified as the newest.
    pub(super) async fn collect(&mut self, verified: Verified) {
        let Verified { manifest, garbage: objects, blobs: listed } = verified;
        let found = self.run_indivisible(move |database| deletable_blobs(database, &manifest, &listed)).await;
        let mut blobs = found.unwrap_or_else(|error| {
            tracing::warn!(
                subject = %self.subject, %error, impact = "no blob is deleted",
                "blob collection failed"
            );
            Vec::new()
        });
        // Blobs that an earlier collection found may still be queued.
        self.deleting.retain(|batch| batch.strong_count() > 0);
        let deleting: Vec<_> = self.deleting.iter().filter_map(Weak::upgrade).collect();
        blobs.retain(|name| deleting.iter().all(|batch| batch.binary_search(name).is_err()));
        if objects.is_empty() && blobs.is_empty() {
            return;
        }
        let blobs = Arc::new(blobs);
        if !blobs.is_empty() {
            self.deleting.push(Arc::downgrade(&blobs));
        }
        let garbage = Garbage { keys: SubjectKeys::new(self.subject), objects, blobs };
        // If the queue is full, the garbage is dropped; a later listing finds it again.
        let _ = self.shared.garbage.try_send(garbage);
    }
}

#[cfg(test)]
mod tests {
    use dormouse_format::keys::{ManifestNumber, SubjectKeys};
    use dormouse_runtime::Env;

    use super::*;
    use dormouse_bucket::ObjectStoreBucket;

    /// The garbage collector deletes queued objects until the process shuts down.
    #[tokio::test]
    async fn collection_deletes_queued_objects_until_shutdown() {
        let bucket: Arc<dyn Bucket> = Arc::new(ObjectStoreBucket::in_memory(Env::system()));
        let app = "app.a".parse().unwrap();
        let keys = SubjectKeys::new(&app);
        let manifests: Vec<_> = (1..=20).map(|number| keys.manifest(ManifestNumber::new(number))).collect();
        for key in &manifests {
            bucket.create(key, "x".into()).await.unwrap();
        }
        let (garbage, queue) = mpsc::channel(QUEUE);
        let (first, second) = manifests.split_at(10);
        garbage.try_send(Garbage::objects(&app, first.to_vec())).unwrap();
        drop(garbage);
        let collected = Counter::default();
        collect(Arc::clone(&bucket), queue, [Stop::new(), Stop::new()], collected.clone()).await;
        assert_eq!(collected.get(), 10);
        assert_eq!(bucket.list(keys.folder()).await.unwrap().len(), second.len());

        let (garbage, queue) = mpsc::channel(QUEUE);
        garbage.try_send(Garbage::objects(&app, second.to_vec())).unwrap();
        let stop = Stop::new();
        stop.request();
        collect(Arc::clone(&bucket), queue, [Stop::new(), stop], Counter::default()).await;
        assert_eq!(bucket.list(keys.folder()).await.unwrap().len(), second.len());
    }
}
