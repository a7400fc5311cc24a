//! Deleting what nothing refers to any more: one collector for all subjects of an engine.

use std::sync::Arc;

use dormouse_runtime::Stop;
use futures::StreamExt;
use tokio::sync::mpsc;

use crate::bucket::{Bucket, BucketKey};

/// Publications whose garbage waits at most. What does not fit is found again by a later listing.
pub(crate) const QUEUE: usize = 256;

/// Objects deleted at the same time.
const DELETING: usize = 8;

/// Deletes what comes until nobody is left to send any, or one of the signals is given: a process on its way out has
/// better things to do.
///
/// Cancelling it leaves objects that a later listing finds again.
pub(crate) async fn collect(
    bucket: Arc<dyn Bucket>,
    mut queue: mpsc::Receiver<Vec<BucketKey>>,
    stops: [Stop; 2],
) {
    let [one, other] = &stops;
    let mut batch = Vec::new();
    let work = async {
        while queue.recv_many(&mut batch, QUEUE).await > 0 {
            let garbage = futures::stream::iter(batch.drain(..).flatten());
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
        let keys = SubjectKeys::new(&"app.a".parse().unwrap());
        let manifests: Vec<_> = (1..=20).map(|number| keys.manifest(ManifestNumber::new(number))).collect();
        for key in &manifests {
            bucket.create(key, "x".into()).await.unwrap();
        }
        let (garbage, queue) = mpsc::channel(QUEUE);
        let (first, second) = manifests.split_at(10);
        garbage.try_send(first.to_vec()).unwrap();
        drop(garbage);
        collect(Arc::clone(&bucket), queue, [Stop::new(), Stop::new()]).await;
        assert_eq!(bucket.list(keys.folder()).await.unwrap().len(), second.len());

        let (garbage, queue) = mpsc::channel(QUEUE);
        garbage.try_send(second.to_vec()).unwrap();
        let stop = Stop::new();
        stop.give();
        collect(Arc::clone(&bucket), queue, [Stop::new(), stop]).await;
        assert_eq!(bucket.list(keys.folder()).await.unwrap().len(), second.len());
    }
}
