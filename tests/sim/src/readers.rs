//! Who reads feeds: of every subject, from anywhere, slowly at times, and going on where an earlier feed was.

use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::Bus;
use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
use dormouse_checker::{FeedBegins, FeedKeys as About, FeedTells};
use dormouse_client::{Client, Feed, FeedFrom, FeedKeys, Position, Subject, Update};
use dormouse_runtime::{Env, Stop};

use crate::dice::Dice;
use crate::recorder::{Line, Recorder};
use crate::workload::Plan;

/// What a call may take.
const DEADLINE: Duration = Duration::from_secs(4);

/// How long a reader waits for the next update before it looks how far the feed has come.
const GLANCE: Duration = Duration::from_millis(500);

/// Reads feeds of all subjects until its process ends.
///
/// # Errors
/// When the connection is closed at once.
pub async fn read(
    plan: Plan,
    broker: MemoryBroker,
    recorder: Recorder,
    env: Env,
    dice: Arc<Dice>,
    stop: Stop,
) -> Result<(), dormouse_client::Error> {
    recorder.feeds_end(plan.number);
    let name = format!("client-{}", plan.number);
    let bus: Arc<dyn Bus> = Arc::new(broker.connect(MemoryOptions::named(name)));
    let bus: Arc<dyn Bus> = Arc::new(Line::new(bus, recorder.clone(), plan.number));
    let client = Client::builder().env(env.clone()).deadline(DEADLINE).over(bus).await?;
    let tasks = env.tasks();
    for subject in &plan.subjects {
        let reader = Reader {
            client: client.clone(),
            subject: subject.clone(),
            plan: plan.clone(),
            recorder: recorder.clone(),
            dice: Arc::clone(&dice),
            stop: stop.clone(),
        };
        tasks.spawn("reader", reader.run());
    }
    // They live as long as the process does.
    std::future::pending().await
}

/// One who reads one subject.
struct Reader {
    client: Client,
    subject: Subject,
    plan: Plan,
    recorder: Recorder,
    dice: Arc<Dice>,
    stop: Stop,
}

impl Reader {
    async fn run(self) {
        let mut came_to = None;
        loop {
            let (keys, about) = self.keys();
            let (from, begins) = self.from(came_to);
            let kv = self.client.kv(self.subject.as_str()).expect("a subject's name is one");
            let place = self.recorder.feed_begins(&self.subject, self.plan.number, begins, about);
            match kv.feed(keys, from).await {
                Ok(feed) => came_to = self.follow(feed, place).await,
                Err(_) => tokio::time::sleep(GLANCE).await,
            }
            self.recorder.feed_ends(&self.subject, place);
        }
    }

    fn keys(&self) -> (FeedKeys, About) {
        match self.dice.below(4) {
            0 => (FeedKeys::One("k1".to_owned()), About::One("k1".to_owned())),
            1 => (FeedKeys::Prefix("k".to_owned()), About::Prefix("k".to_owned())),
            _ => (FeedKeys::All, About::All),
        }
    }

    fn from(&self, came_to: Option<Position>) -> (FeedFrom, FeedBegins) {
        match (self.dice.below(6), came_to) {
            (0, _) => (FeedFrom::Now, FeedBegins::Now),
            (1 | 2, Some(position)) => (FeedFrom::After(position), FeedBegins::After(position)),
            _ => (FeedFrom::Beginning, FeedBegins::Beginning),
        }
    }

    /// Reads a feed for a while; while everything goes wrong only, for good after that. Where it came to.
    async fn follow(&self, mut feed: Feed, place: usize) -> Option<Position> {
        loop {
            if self.dice.chance(5) && !self.stop.is_given() {
                return feed.position();
            }
            if self.dice.chance(20) {
                tokio::time::sleep(self.dice.millis(0..3_000)).await;
            }
            match tokio::time::timeout(GLANCE, feed.next()).await {
                Err(_) => self.recorder.feed_came_to(&self.subject, place, feed.position()),
                Ok(Some(Ok(update))) => {
                    self.recorder.feed_told(&self.subject, place, tells(update), feed.position());
                }
                Ok(Some(Err(error))) => {
                    self.recorder.feed_failed(&self.subject, place, &error);
                    return None;
                }
                Ok(None) => return None,
            }
        }
    }
}

fn tells(update: Update) -> FeedTells {
    match update {
        Update::Set { message, replaces } => FeedTells::Set { message, replaces },
        Update::Removed { seq, key } => FeedTells::Removed { seq, key },
        Update::Cleared { end_seq } => FeedTells::Cleared { end_seq },
        Update::CaughtUp(position) => FeedTells::CaughtUp(position),
        Update::Reset => FeedTells::Reset,
        // Kinds that are to come would have to be judged.
        _ => FeedTells::Configured,
    }
}
