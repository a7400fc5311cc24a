//! A live watcher of the log, parallel to the other steps.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use dormouse_client::{Client, Feed, FeedFrom, Update};
use dormouse_runtime::Tasks;
use tokio::sync::{oneshot, watch};

use crate::input::{DemoInput, LOG_SUBJECT};
use crate::report::{DemoStep, say};

/// The largest lag of the watcher behind the last write.
const LAG: Duration = Duration::from_secs(20);

/// A running watcher.
pub struct Watcher {
    tasks: Tasks,
    seen: watch::Receiver<usize>,
    outcome: oneshot::Receiver<anyhow::Result<usize>>,
}

/// Watches the log from now on until it has received every line of the input. It prints the first line, and the first
/// line after `before` lines: the first one after the kill.
pub async fn follow(client: &Client, input: &DemoInput, before: usize) -> anyhow::Result<Watcher> {
    let feed = client.stream(LOG_SUBJECT)?.feed(FeedFrom::Now).await.context("cannot watch the log")?;
    let lines: Arc<[Bytes]> = input.lines.clone().into();
    let (sender, outcome) = oneshot::channel();
    let (progress, seen) = watch::channel(0);
    let tasks = Tasks::new();
    tasks.spawn("watcher", async move {
        // The receiver is gone if the demo has failed elsewhere.
        let _ = sender.send(compare(feed, &lines, before, &progress).await);
    });
    Ok(Watcher { tasks, seen, outcome })
}

impl Watcher {
    /// Waits until the watcher has received this number of changes.
    pub async fn has_seen(&mut self, changes: usize) -> anyhow::Result<()> {
        let wait = self.seen.wait_for(|seen| *seen >= changes);
        tokio::time::timeout(LAG, wait).await.context("the live watcher has not received every change")?.ok();
        // If the watcher ended early, `finish` reports why.
        Ok(())
    }

    /// Returns the number of changes, which must be all.
    pub async fn finish(self) -> anyhow::Result<usize> {
        let step = DemoStep::begin("waiting for the live watcher", 1);
        let outcome = tokio::time::timeout(LAG, self.outcome)
            .await
            .context("the live watcher has not received every change")?
            .context("the live watcher ended")?;
        let seen = outcome?;
        step.done(&format!("{seen} changes received live, in order"));
        self.tasks.finish(LAG).await?;
        Ok(seen)
    }
}

async fn compare(
    mut feed: Feed,
    lines: &[Bytes],
    before: usize,
    progress: &watch::Sender<usize>,
) -> anyhow::Result<usize> {
    let mut seen = 0;
    while seen < lines.len() {
        match feed.next().await.transpose()? {
            Some(Update::Set { message, .. }) => {
                ensure!(
                    message.value.as_ref() == Some(&lines[seen]),
                    "the watcher received a different line at {}",
                    message.seq
                );
                if seen == 0 || seen == before {
                    let line = String::from_utf8_lossy(&lines[seen]);
                    say(&format!("  » the watcher sees seq {}: {line:.60}", message.seq.get()));
                }
                seen += 1;
                progress.send_replace(seen);
            }
            Some(Update::CaughtUp(_)) => {}
            Some(other) => bail!("the watcher received {other:?}"),
            None => bail!("the feed ended after {seen} changes"),
        }
    }
    Ok(seen)
}
