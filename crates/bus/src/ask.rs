//! A typed request.

use std::time::Duration;

use dormouse_protocol::codec::{DecodeError, EncodeError};
use dormouse_protocol::{ErrorCode, ErrorReply, Executed, Route, decode, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Bus, Outgoing, Reply, RequestError};

/// Why a typed request has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The request got no reply.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The service replied with an error.
    #[error(transparent)]
    Service(#[from] ErrorReply),
    /// The reply does not have the expected type.
    #[error("invalid reply on {route}")]
    Decode {
        /// The route of the request.
        route: Route,
        /// Why the reply is invalid.
        source: DecodeError,
    },
    /// The request cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

impl AskError {
    /// Whether the request may have been executed.
    #[must_use]
    pub fn executed(&self) -> Executed {
        match self {
            Self::Request(error) => error.executed(),
            Self::Service(error) => error.executed(),
            Self::Decode { .. } => Executed::Unknown,
            Self::Encode(_) => Executed::No,
        }
    }
}

/// Sends `request` as MessagePack and decodes the reply. Waits at most for `deadline`.
///
/// If the call is cancelled, the reply is discarded; the request may have been executed.
///
/// # Errors
/// [`AskError`]; [`executed`](AskError::executed) says whether the request may have been executed.
pub async fn ask<Req, Rep>(
    bus: &dyn Bus,
    route: Route,
    request: &Req,
    deadline: Duration,
) -> Result<Rep, AskError>
where
    Req: Serialize + ?Sized + Sync,
    Rep: DeserializeOwned,
{
    let message = Outgoing::new(route.clone(), encode(request)?);
    let reply = bus.request(message, deadline).await?;
    if let Some(error) = service_error(&reply) {
        return Err(error.into());
    }
    decode(&reply.payload).map_err(|source| AskError::Decode { route, source })
}

/// The error in a reply, if the reply is an error. The header decides, because a result can have the same body as an
/// error.
#[must_use]
pub fn service_error(reply: &Reply) -> Option<ErrorReply> {
    let status = reply.headers.get(ErrorReply::STATUS_HEADER)?;
    // A foreign service sets only the headers.
    Some(decode(&reply.payload).unwrap_or_else(|_| {
        let text = reply.headers.get(ErrorReply::TEXT_HEADER).unwrap_or_default();
        ErrorReply::new(ErrorCode::Other(format!("status_{status}")), text)
    }))
}
