//! One request and its reply.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{Bus, Outgoing, RequestError, SubscribeOptions, Subscription, service_error};
use dormouse_protocol::codec::DecodeError;
use dormouse_protocol::{RoutePattern, decode};
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::retry::AttemptCause;

/// Decodes the bytes of a reply.
pub(crate) type ReplyDecoder<R> = fn(&Bytes) -> Result<R, DecodeError>;

/// Decodes the whole reply.
pub(crate) fn whole<R: DeserializeOwned>(reply: &Bytes) -> Result<R, DecodeError> {
    decode(reply)
}

/// Subscribes within `deadline`: a subscription waits for the messaging system.
///
/// # Errors
/// [`Error::Deadline`] if the messaging system is away until then; [`Error::PermissionDenied`];
/// [`Error::Closed`].
pub(crate) async fn subscribe(
    bus: &dyn Bus,
    pattern: RoutePattern,
    options: SubscribeOptions,
    deadline: Duration,
) -> Result<Subscription, Error> {
    match tokio::time::timeout(deadline, bus.subscribe(pattern, options)).await {
        Ok(subscription) => subscription.map_err(Error::from_subscribe),
        Err(_) => {
            let last = Some(Box::new(Error::Unreachable(RequestError::Disconnected)));
            Err(Error::Deadline { deadline, last })
        }
    }
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
