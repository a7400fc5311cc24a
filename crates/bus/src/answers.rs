//! Small standing answers, the same for everybody who asks: discovery and health.

use std::sync::Arc;

use bytes::Bytes;
use dormouse_protocol::RoutePattern;
use dormouse_runtime::Tasks;

use crate::{Bus, InboxPrefixes, Outgoing, SubscribeError, SubscribeOptions, Subscription};

/// Askers are few; more at a time than this are dropped.
const CAPACITY: usize = 256;

/// What is answered to whoever asks.
pub(crate) type Answer = Arc<dyn Fn() -> Bytes + Send + Sync>;

/// Answers every request to `pattern`, until the stop signal of `tasks` is given or the bus is closed.
pub(crate) async fn stand(
    bus: &Arc<dyn Bus>,
    tasks: &Tasks,
    name: &'static str,
    pattern: RoutePattern,
    inbox_prefixes: &InboxPrefixes,
    answer: Answer,
) -> Result<(), SubscribeError> {
    let options = SubscribeOptions { queue: None, capacity: CAPACITY };
    let asked = bus.subscribe(pattern, options).await?;
    let inbox_prefixes = inbox_prefixes.clone();
    let (bus, stop) = (Arc::clone(bus), tasks.stop().clone());
    tasks.spawn(name, async move {
        tokio::select! {
            biased;
            () = stop.given() => {}
            () = answer_all(&*bus, asked, &inbox_prefixes, &answer) => {}
        }
    });
    Ok(())
}

async fn answer_all(bus: &dyn Bus, mut asked: Subscription, inbox_prefixes: &InboxPrefixes, answer: &Answer) {
    while let Some(delivery) = asked.next().await {
        let Some(reply_to) = delivery.reply_to.filter(|address| inbox_prefixes.allow(address)) else {
            continue;
        };
        if let Err(error) = bus.publish(Outgoing::new(reply_to, answer())).await {
            tracing::debug!(%error, route = %delivery.route, "an answer was not sent");
        }
    }
}
