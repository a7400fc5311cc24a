//! A typed request.

use std::time::Duration;

use dormouse_protocol::codec::{DecodeError, EncodeError};
use dormouse_protocol::{ErrorCode, ErrorReply, Happened, Route, decode, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Bus, Outgoing, Reply, RequestError};

/// Why a typed request has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The messaging system has no answer.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The service answered with an error.
    #[error(transparent)]
    Service(#[from] ErrorReply),
    /// The service answered with something else than the expected type.
    #[error("the answer of {route} cannot be read")]
    Decode {
        /// The route asked.
        route: Route,
        /// What is wrong with the answer.
        source: DecodeError,
    },
    /// The request cannot be written.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

impl AskError {
    /// Could the request have been carried out all the same?
    #[must_use]
    pub fn happened(&self) -> Happened {
        match self {
            Self::Request(error) => error.happened(),
            Self::Service(error) => error.happened(),
            Self::Decode { .. } => Happened::Unknown,
            Self::Encode(_) => Happened::No,
        }
    }
}

/// Sends `request` as MessagePack and reads the answer, waiting at most for `deadline`.
///
/// Cancelling the call abandons the answer; the request may have been carried out.
///
/// # Errors
/// [`AskError`]; its [`happened`](AskError::happened) tells whether the request may have been carried out.
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

/// The error that a reply is, if it is one. Told by its header: the body alone could be a result that looks like one.
#[must_use]
pub fn service_error(reply: &Reply) -> Option<ErrorReply> {
    let status = reply.headers.get(ErrorReply::STATUS_HEADER)?;
    // A service that is not ours sets the headers alone.
    Some(decode(&reply.payload).unwrap_or_else(|_| {
        let text = reply.headers.get(ErrorReply::TEXT_HEADER).unwrap_or_default();
        ErrorReply::new(ErrorCode::Other(format!("status_{status}")), text)
    }))
}
