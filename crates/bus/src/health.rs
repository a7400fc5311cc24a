//! Health and metrics over the bus.

use std::sync::Arc;

use bytes::Bytes;
use dormouse_protocol::Prefix;
use dormouse_protocol::health::Health;
use dormouse_runtime::Tasks;

use crate::fixed_replies::{FixedReply, serve_fixed_reply};
use crate::{Bus, InboxPrefixes, SubscribeError};

/// Replies on `<prefix>.health` and `<prefix>.health.<name>` with the current `health`, until the stop signal of
/// `tasks` is given or the bus is closed. `inbox_prefixes` as in [`ServeOptions`](crate::ServeOptions::inbox_prefixes).
///
/// If the call is cancelled, one of the two routes gets replies, or none.
///
/// # Errors
/// [`SubscribeError`].
pub async fn answer_health<F>(
    bus: &Arc<dyn Bus>,
    tasks: &Tasks,
    prefix: &Prefix,
    name: &str,
    inbox_prefixes: &InboxPrefixes,
    health: F,
) -> Result<(), SubscribeError>
where
    F: Fn() -> Health + Send + Sync + 'static,
{
    // Every value of the type has a JSON form.
    let answer: FixedReply = Arc::new(move || Bytes::from(serde_json::to_vec(&health()).unwrap_or_default()));
    for route in [prefix.health(), prefix.health_of(name)] {
        serve_fixed_reply(bus, tasks, "health", route.into(), inbox_prefixes, Arc::clone(&answer)).await?;
    }
    Ok(())
}

/// Replies on `<prefix>.metrics.<name>` with `text`, otherwise as [`answer_health`]. If the text is larger than the
/// maximum payload, the reply is the error `too_large`.
///
/// If the call is cancelled, the route gets replies or none.
///
/// # Errors
/// [`SubscribeError`].
pub async fn answer_metrics<F>(
    bus: &Arc<dyn Bus>,
    tasks: &Tasks,
    prefix: &Prefix,
    name: &str,
    inbox_prefixes: &InboxPrefixes,
    text: F,
) -> Result<(), SubscribeError>
where
    F: Fn() -> String + Send + Sync + 'static,
{
    let answer: FixedReply = Arc::new(move || Bytes::from(text()));
    serve_fixed_reply(bus, tasks, "metrics", prefix.metrics_of(name).into(), inbox_prefixes, answer).await
}
