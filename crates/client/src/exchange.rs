//! One request and its reply.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{Bus, Outgoing, service_error};
use dormouse_protocol::codec::DecodeError;
use dormouse_protocol::decode;
use serde::de::DeserializeOwned;

use crate::retry::AttemptCause;

/// Decodes the bytes of a reply.
pub(crate) type ReplyDecoder<R> = fn(&Bytes) -> Result<R, DecodeError>;

/// Decodes the whole reply.
pub(crate) fn whole<R: DeserializeOwned>(reply: &Bytes) -> Result<R, DecodeError> {
    decode(reply)
}

/// Sends one request and reads the reply, which may be an error.
pub(crate) async fn exchange<R>(
    bus: &dyn Bus,
    message: Outgoing,
    deadline: Duration,
    read: ReplyDecoder<R>,
) -> Result<R, AttemptCause> {
    let reply = bus.request(message, deadline).await.map_err(AttemptCause::Request)?;
    if let Some(error) = service_error(&reply) {
        return Err(AttemptCause::Reply(Box::new(error)));
    }
    read(&reply.payload).map_err(|error| AttemptCause::Malformed(Arc::new(error)))
}
