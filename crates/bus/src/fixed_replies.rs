//! Replies without request data: discovery, health and metrics.

use std::sync::Arc;

use bytes::Bytes;
use dormouse_protocol::{ErrorReply, RoutePattern};
use dormouse_runtime::Tasks;

use crate::serve::encode_error;
use crate::{Bus, InboxPrefixes, Outgoing, SubscribeError, SubscribeOptions, Subscription};

/// Maximum number of queued requests; further ones are dropped. Callers are few.
const CAPACITY: usize = 256;

/// Makes the reply to a request.
pub(crate) type FixedReply = Arc<dyn Fn() -> Bytes + Send + Sync>;

/// Replies to every request on `pattern`, until the stop signal of `tasks` is given or the bus is closed.
pub(crate) async fn serve_fixed_reply(
    bus: &Arc<dyn Bus>,
    tasks: &Tasks,
    name: &'static str,
    pattern: RoutePattern,
    inbox_prefixes: &InboxPrefixes,
    answer: FixedReply,
) -> Result<(), SubscribeError> {
    let options = SubscribeOptions { queue: None, capacity: CAPACITY };
    let requests = bus.subscribe(pattern, options).await?;
    let inbox_prefixes = inbox_prefixes.clone();
    let (bus, stop) = (Arc::clone(bus), tasks.stop().clone());
    tasks.spawn(name, async move {
        tokio::select! {
            biased;
            () = stop.requested() => {}
            () = answer_all(&*bus, requests, &inbox_prefixes, &answer) => {}
        }
    });
    Ok(())
}

async fn answer_all(
    bus: &dyn Bus,
    mut requests: Subscription,
    inbox_prefixes: &InboxPrefixes,
    answer: &FixedReply,
) {
    while let Some(delivery) = requests.next().await {
        let Some(reply_to) = delivery.reply_to.filter(|address| inbox_prefixes.allow(address)) else {
            continue;
        };
        let payload = answer();
        let limit_bytes = bus.max_payload();
        let reply = if payload.len() <= limit_bytes {
            Outgoing::new(reply_to, payload)
        } else {
            let error = ErrorReply::too_large("max_payload", payload.len(), limit_bytes);
            let (headers, payload) = encode_error(&error, limit_bytes);
            Outgoing { route: reply_to, headers, payload }
        };
        if let Err(error) = bus.publish(reply).await {
            tracing::debug!(%error, route = %delivery.route, "reply not sent");
        }
    }
}
