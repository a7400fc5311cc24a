//! The task that looks at the next slot, for reads that need to know that nobody has taken over.

use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::Slot;
use tokio::time::sleep;

use super::handle::Shared;
use super::owner::{OwnerInput, Probed};
use crate::bucket::BucketError;
use crate::format::segment::FOOTER_BYTES;

/// After a look that failed.
const PAUSE: Duration = Duration::from_millis(200);

pub(super) async fn run(shared: Arc<Shared>) {
    let mut over = std::pin::pin!(shared.ended());
    loop {
        let slot = shared.lock().probe.take();
        let step = async {
            match slot {
                None => shared.wakers.look.notified().await,
                Some(slot) => {
                    let probed = look(&shared, slot).await;
                    shared.lock().tell(OwnerInput::Probed(probed), &shared);
                }
            }
        };
        tokio::select! {
            biased;
            () = shared.stop.given() => return,
            _ = &mut over => return,
            () = step => {}
        }
    }
}

/// Whether there is an object: its last bytes are few, whatever it is.
async fn look(shared: &Shared, slot: Slot) -> Probed {
    match shared.bucket.get_tail(&shared.keys.slot(slot), FOOTER_BYTES as u64).await {
        Ok(None) => Probed::Absent,
        Ok(Some(_)) | Err(BucketError::Corrupt { .. }) => Probed::Present,
        Err(error) => {
            tracing::debug!(log = %shared.id, %slot, %error, "cannot look at the next slot");
            sleep(PAUSE).await;
            Probed::Failed
        }
    }
}
