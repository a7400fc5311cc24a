//! Health and metrics over the bus.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::Prefix;
use dormouse_protocol::health::Health;
use dormouse_runtime::{Lock, Tasks};

use crate::fixed_replies::{FixedReply, serve_fixed_reply};
use crate::{Bus, InboxPrefixes, SubscribeError};

/// How long health reports dropped messages as a problem.
pub const DROPPED_RECENTLY: Duration = Duration::from_secs(5 * 60);

/// When messages were last dropped, as far as looks at their number have seen it: each look compares the number with that
/// of the look before.
#[derive(Debug, Default)]
pub struct RecentDrops(Lock<(u64, Option<Duration>)>);

impl RecentDrops {
    /// Notes the number of drops since the start of the process at `now`, a time since any fixed point. Returns whether it
    /// has grown within [`DROPPED_RECENTLY`].
    pub fn note(&self, number: u64, now: Duration) -> bool {
        let mut last = self.0.lock();
        if number > last.0 {
            *last = (number, Some(now));
        }
        last.1.is_some_and(|at| now.saturating_sub(at) < DROPPED_RECENTLY)
    }
}

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
