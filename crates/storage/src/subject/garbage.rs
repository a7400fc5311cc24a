//! Deleting what nothing refers to any more: one collector for all subjects of an engine.

use std::sync::{Arc, Weak};
use std::time::Duration;

use dormouse_protocol::Subject;
use dormouse_runtime::Stop;
use futures::StreamExt;
use tokio::sync::mpsc;

use super::serve::Serving;
use crate::bucket::{Bucket, BucketKey};
use crate::keys::{BlobName, SubjectKeys};
use crate::ownership::Verified;

/// Publications whose garbage waits at most. What does not fit is found again by a later listing.
pub(crate) const QUEUE: usize = 256;

/// Objects deleted at the same time.
const DELETING: usize = 8;

/// After each of them. So at most 400 objects are deleted in a second.
const PAUSE: Duration = Duration::from_millis(20);

/// Objects of one subject that nothing refers to.
#[derive(Debug)]
pub(crate) struct Garbage {
    keys: SubjectKeys,
    objects: Vec<BucketKey>,
    /// Large values, by name and ascending: of a destroyed subject there may be very many. Dropped when they are deleted.
    blobs: Arc<Vec<BlobName>>,
}

impl Garbage {
    /// Everything but large values.
    pub(crate) fn objects(subject: &Subject, objects: Vec<BucketKey>) -> Self {
        Self { keys: SubjectKeys::new(subject), objects, blobs: Arc::default() }
    }

    /// Large values.
    pub(crate) fn blobs(keys: SubjectKeys, blobs: Vec<BlobName>) -> Self {
        Self { keys, objects: Vec::new(), blobs: Arc::new(blobs) }
    }
}

/// Deletes what comes until nobody is left to send any, or one of the signals is given: a process on its way out has
/// better things to do.
///
/// Cancelling it leaves objects that a later listing finds again.
pub(crate) async fn collect(bucket: Arc<dyn Bucket>, mut queue: mpsc::Receiver<Garbage>, stops: [Stop; 2]) {
    let [one, other] = &stops;
    let work = async {
        while let Some(Garbage { keys, objects, blobs }) = queue.recv().await {
            let blobs = blobs.iter().map(|name| keys.blob(name));
            let garbage = futures::stream::iter(objects.into_iter().chain(blobs));
            garbage.for_each_concurrent(DELETING, |key| delete(bucket.as_ref(), key)).await;
        }
    };
    tokio::select! {
        biased;
        () = one.given() => {}
        () = other.given() => {}
        () = work => {}
    }
}

async fn delete(bucket: &dyn Bucket, key: BucketKey) {
    match bucket.delete(&key).await {
        Ok(()) => tracing::debug!(%key, "deleted an object that nothing refers to"),
        Err(error) => tracing::debug!(%key, %error, "an object that nothing refers to could not be deleted"),
    }
    tokio::time::sleep(PAUSE).await;
}

impl Serving<'_> {
    /// Has deleted what nobody needs any more, now that a manifest of ours is known to be the newest.
    pub(super) async fn collect(&mut self, verified: Verified) {
        let Verified { manifest, garbage: objects, blobs: listed } = verified;
        let found = self.apart(move |database| database.collect_blobs(&manifest, &listed)).await;
        let mut blobs = found.unwrap_or_else(|error| {
            tracing::warn!(
                subject = %self.subject, %error,
                "it cannot be told which large values nobody needs any more; none is deleted"
            );
            Vec::new()
        });
        // What an earlier look has found may still be on the way out.
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
        // A full queue drops it: what lies about is found again by a later listing.
        let _ = self.shared.garbage.try_send(garbage);
    }
}

#[cfg(test)]
mod tests {
    use dormouse_runtime::Env;

    use super::*;
    use crate::bucket::ObjectStoreBucket;
    use crate::keys::{ManifestNumber, SubjectKeys};

    #[tokio::test]
    async fn garbage_goes_until_the_process_is_on_its_way_out() {
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
        collect(Arc::clone(&bucket), queue, [Stop::new(), Stop::new()]).await;
        assert_eq!(bucket.list(keys.folder()).await.unwrap().len(), second.len());

        let (garbage, queue) = mpsc::channel(QUEUE);
        garbage.try_send(Garbage::objects(&app, second.to_vec())).unwrap();
        let stop = Stop::new();
        stop.give();
        collect(Arc::clone(&bucket), queue, [Stop::new(), stop]).await;
        assert_eq!(bucket.list(keys.folder()).await.unwrap().len(), second.len());
    }
}
