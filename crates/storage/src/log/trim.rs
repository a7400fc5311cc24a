//! The task that deletes slots nobody needs.

use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::Slot;
use tokio::time::sleep;

use super::handle::Shared;

/// After a deletion that failed.
const PAUSE: Duration = Duration::from_secs(5);

pub(super) async fn run(shared: Arc<Shared>) {
    let mut over = std::pin::pin!(shared.ended());
    loop {
        let range = shared.lock().doomed_slots.pop_front();
        let step = async {
            match range {
                None => shared.wakers.trim.notified().await,
                Some((from, to)) => delete(&shared, from, to).await,
            }
        };
        // What is not deleted now goes when the log is drained.
        tokio::select! {
            () = step => {}
            () = shared.stop.given() => return,
            _ = &mut over => return,
        }
    }
}

async fn delete(shared: &Shared, from: Slot, to: Slot) {
    for slot in (from.get()..to.get()).map(Slot::new) {
        while let Err(error) = shared.bucket.delete(&shared.keys.slot(slot)).await {
            tracing::debug!(log = %shared.id, %slot, %error, "a slot that nobody needs stays for now");
            sleep(PAUSE).await;
        }
        tracing::debug!(log = %shared.id, %slot, "deleted: no manifest needs it");
    }
}
