//! Stranded writes of earlier processes: if no other process has claimed the subject, this process's claim applies
//! them. Otherwise they have diverged, and go to `lost/`.

use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::{ErrorReply, LogId, Subject};

use crate::api::SubjectRequest;
use crate::engine::EngineShared;
use crate::subject::{move_stranded_to_lost, newest_manifest};

/// The pause between two rounds.
const PAUSE: Duration = Duration::from_secs(5);

/// Runs until no stranded writes are left.
pub(super) async fn run(shared: Arc<EngineShared>) {
    while !shared.stranded.is_empty() {
        for (subject, logs) in shared.stranded.pending_subjects() {
            for log in logs {
                if let Err(error) = resolve_stranded(&shared, &subject, &log).await {
                    tracing::info!(%subject, %log, %error, "stranded writes pending");
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn resolve_stranded(
    shared: &Arc<EngineShared>,
    subject: &Subject,
    log: &LogId,
) -> Result<(), ErrorReply> {
    let newest = newest_manifest(shared, subject).await?;
    if newest.as_ref().is_some_and(|newest| newest.owner == *log && !newest.released) {
        // The claim at the open applies the stranded writes.
        return shared.execute(subject, SubjectRequest::Compact).await.map(drop);
    }
    move_stranded_to_lost(shared, subject, log, newest.as_ref()).await
}
