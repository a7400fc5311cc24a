//! One request and what its answer says.

use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::{Bus, Outgoing, service_error};
use dormouse_protocol::decode;
use serde::de::DeserializeOwned;

use crate::retry::Refusal;

/// Sends one request and reads the answer, be it a reply or an error.
pub(crate) async fn exchange<R: DeserializeOwned>(
    bus: &dyn Bus,
    message: Outgoing,
    deadline: Duration,
) -> Result<R, Refusal> {
    let reply = bus.request(message, deadline).await.map_err(Refusal::Request)?;
    if let Some(error) = service_error(&reply) {
        return Err(Refusal::Reply(Box::new(error)));
    }
    decode(&reply.payload).map_err(|error| Refusal::Malformed(Arc::new(error)))
}
