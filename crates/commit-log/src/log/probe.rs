//! The task that probes the next slot, for reads that need proof that no takeover happened.

use std::sync::Arc;
use std::time::Duration;

use dormouse_bucket::BucketError;
use dormouse_format::segment::FOOTER_BYTES;
use dormouse_protocol::Slot;
use tokio::time::sleep;

use super::handle::LogShared;
use super::owner::{OwnerInput, Probed};

/// Pause after a failed probe.
const PAUSE: Duration = Duration::from_millis(200);

pub(super) async fn run(shared: Arc<LogShared>) {
    let mut over = std::pin::pin!(shared.ended());
    loop {
        let slot = shared.lock().probe.take();
        let step = async {
            match slot {
                None => shared.wakers.probe.notified().await,
                Some(slot) => {
                    let probed = probe_slot(&shared, slot).await;
                    shared.lock().apply_owner_input(OwnerInput::Probed(probed), &shared);
                }
            }
        };
        tokio::select! {
            biased;
            () = shared.stop.requested() => return,
            _ = &mut over => return,
            () = step => {}
        }
    }
}

/// Checks whether the object exists: it reads only the last bytes, which are few for any object.
async fn probe_slot(shared: &LogShared, slot: Slot) -> Probed {
    match shared.bucket.get_tail(&shared.keys.slot(slot), FOOTER_BYTES as u64).await {
        Ok(None) => Probed::Absent,
        Ok(Some(_)) | Err(BucketError::Corrupt { .. }) => Probed::Present,
        Err(error) => {
            tracing::debug!(log = %shared.id, %slot, %error, "slot probe failed");
            sleep(PAUSE).await;
            Probed::Failed
        }
    }
}
