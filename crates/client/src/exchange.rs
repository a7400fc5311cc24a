//! One request and what its answer says.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{Bus, Outgoing, service_error};
use dormouse_protocol::codec::DecodeError;
use dormouse_protocol::decode;
use serde::de::DeserializeOwned;

use crate::retry::Refusal;

/// What is made of the bytes of a reply.
pub(crate) type Read<R> = fn(&Bytes) -> Result<R, DecodeError>;

/// Reads all of it.
pub(crate) fn whole<R: DeserializeOwned>(reply: &Bytes) -> Result<R, DecodeError> {
    decode(reply)
}

/// Sends one request and reads the answer, be it a reply or an error.
pub(crate) async fn exchange<R>(
    bus: &dyn Bus,
    message: Outgoing,
    deadline: Duration,
    read: Read<R>,
) -> Result<R, Refusal> {
    let reply = bus.request(message, deadline).await.map_err(Refusal::Request)?;
    if let Some(error) = service_error(&reply) {
        return Err(Refusal::Reply(Box::new(error)));
    }
    read(&reply.payload).map_err(|error| Refusal::Malformed(Arc::new(error)))
}
