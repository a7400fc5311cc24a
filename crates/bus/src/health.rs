//! Health over the bus, as JSON.

use std::sync::Arc;

use bytes::Bytes;
use dormouse_protocol::Prefix;
use dormouse_protocol::health::Health;
use dormouse_runtime::Tasks;

use crate::answers::{Answer, stand};
use crate::{Bus, InboxPrefixes, SubscribeError};

/// Answers on `<prefix>.health` and `<prefix>.health.<name>` with what `health` says at that moment, until the stop
/// signal of `tasks` is given or the bus is closed. `inbox_prefixes` as in
/// [`ServeOptions`](crate::ServeOptions::inbox_prefixes).
///
/// Cancelling the call leaves one of the two answered, or none.
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
    // The type holds nothing that JSON cannot say.
    let answer: Answer = Arc::new(move || Bytes::from(serde_json::to_vec(&health()).unwrap_or_default()));
    for route in [prefix.health(), prefix.health_of(name)] {
        stand(bus, tasks, "health", route.into(), inbox_prefixes, Arc::clone(&answer)).await?;
    }
    Ok(())
}
