//! Seeing to what earlier processes accepted and could not ship: where nobody else has claimed the subject it goes with
//! this process's claim, otherwise into `lost/`.

use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::{ErrorReply, LogId, Subject};

use crate::api::Request;
use crate::engine::Shared;
use crate::subject::{lose_surplus, newest_manifest};

/// The pause between two rounds.
const PAUSE: Duration = Duration::from_secs(5);

/// Goes on until nothing waits any more.
pub(super) async fn run(shared: Arc<Shared>) {
    while !shared.surplus.is_empty() {
        for (subject, logs) in shared.surplus.waiting() {
            for log in logs {
                if let Err(error) = settle(&shared, &subject, &log).await {
                    tracing::info!(%subject, %log, %error, "changes of an earlier process wait to be taken over");
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn settle(shared: &Arc<Shared>, subject: &Subject, log: &LogId) -> Result<(), ErrorReply> {
    let newest = newest_manifest(shared, subject).await?;
    if newest.as_ref().is_some_and(|newest| newest.owner == *log && !newest.released) {
        // Opening it is what takes them along.
        return shared.execute(subject, Request::Compact).await.map(drop);
    }
    lose_surplus(shared, subject, log, newest.as_ref()).await
}
