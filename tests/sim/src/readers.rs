//! Clients that read feeds of every subject, from any position, slowly at times, and from the position of an earlier
//! feed.

use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::Bus;
use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
use dormouse_checker::{FeedBegins, FeedKeys as RecordedKeys, FeedOutputKind};
use dormouse_client::{Client, Feed, FeedFrom, FeedKeys, Position, Subject, Update};
use dormouse_runtime::{Env, Stop};

use crate::recorder::Recorder;
use crate::rng::SeededRng;
use crate::workload::ClientPlan;

/// The deadline of a call.
const DEADLINE: Duration = Duration::from_secs(4);

/// The time that a reader waits for the next update before it checks the position of the feed.
const GLANCE: Duration = Duration::from_millis(500);

/// Reads feeds of all subjects until its process ends.
///
/// # Errors
/// If the connection is closed at once.
pub async fn read(
    plan: ClientPlan,
    broker: MemoryBroker,
    recorder: Recorder,
    env: Env,
    rng: Arc<SeededRng>,
    stop: Stop,
) -> Result<(), dormouse_client::Error> {
    recorder.feeds_end(plan.number);
    let name = format!("client-{}", plan.number);
    let bus: Arc<dyn Bus> = Arc::new(broker.connect(MemoryOptions::named(name)));
    let (bus, _) = recorder.connect(bus, plan.number);
    let client = Client::builder().env(env.clone()).deadline(DEADLINE).over(bus).await?;
    let tasks = env.tasks();
    for subject in &plan.subjects {
        let reader = Reader {
            client: client.clone(),
            subject: subject.clone(),
            plan: plan.clone(),
            recorder: recorder.clone(),
            rng: Arc::clone(&rng),
            stop: stop.clone(),
        };
        tasks.spawn("reader", reader.run());
    }
    // The readers live as long as the process.
    std::future::pending().await
}

/// A reader of one subject.
struct Reader {
    client: Client,
    subject: Subject,
    plan: ClientPlan,
    recorder: Recorder,
    rng: Arc<SeededRng>,
    stop: Stop,
}

impl Reader {
    async fn run(self) {
        let mut reached = None;
        loop {
            let (keys, about) = self.keys();
            let (from, begins) = self.from(reached);
            let kv = self.client.kv(self.subject.as_str()).expect("a valid subject name");
            let index = self.recorder.feed_begins(&self.subject, self.plan.number, begins, about);
            match kv.feed(keys, from).await {
                Ok(feed) => reached = self.follow(feed, index).await,
                Err(_) => tokio::time::sleep(GLANCE).await,
            }
            self.recorder.feed_ends(&self.subject, index);
        }
    }

    fn keys(&self) -> (FeedKeys, RecordedKeys) {
        match self.rng.below(4) {
            0 => (FeedKeys::One("k1".to_owned()), RecordedKeys::One("k1".to_owned())),
            1 => (FeedKeys::Prefix("k".to_owned()), RecordedKeys::Prefix("k".to_owned())),
            _ => (FeedKeys::All, RecordedKeys::All),
        }
    }

    fn from(&self, reached: Option<Position>) -> (FeedFrom, FeedBegins) {
        match (self.rng.below(6), reached) {
            (0, _) => (FeedFrom::Now, FeedBegins::Now),
            (1 | 2, Some(position)) => (FeedFrom::After(position), FeedBegins::After(position)),
            _ => (FeedFrom::Beginning, FeedBegins::Beginning),
        }
    }

    /// Reads a feed for a while; after the end of the faults, without limit. Returns the reached position.
    async fn follow(&self, mut feed: Feed, index: usize) -> Option<Position> {
        loop {
            if self.rng.chance(5) && !self.stop.is_requested() {
                return feed.position();
            }
            if self.rng.chance(20) {
                tokio::time::sleep(self.rng.millis(0..3_000)).await;
            }
            match tokio::time::timeout(GLANCE, feed.next()).await {
                Err(_) => self.recorder.feed_reached(&self.subject, index, feed.position()),
                Ok(Some(Ok(update))) => {
                    self.recorder.feed_output(&self.subject, index, output_kind(update), feed.position());
                }
                Ok(Some(Err(error))) => {
                    self.recorder.feed_failed(&self.subject, index, &error);
                    return None;
                }
                Ok(None) => return None,
            }
        }
    }
}

fn output_kind(update: Update) -> FeedOutputKind {
    match update {
        Update::Set { message, replaces } => FeedOutputKind::Set { message, replaces },
        Update::Removed { seq, key } => FeedOutputKind::Removed { seq, key },
        Update::Cleared { end_seq } => FeedOutputKind::Cleared { end_seq },
        Update::CaughtUp(position) => FeedOutputKind::CaughtUp(position),
        Update::Reset => FeedOutputKind::Reset,
        // New kinds of updates need a rule in the checker.
        _ => FeedOutputKind::Configured,
    }
}
