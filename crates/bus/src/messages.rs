//! Messages of the port.

use bytes::Bytes;
use dormouse_protocol::{Headers, Route};

/// A message to send.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The destination.
    pub route: Route,
    /// Headers of the transport.
    pub headers: Headers,
    /// The content.
    pub payload: Bytes,
}

impl Outgoing {
    /// A message without headers.
    #[must_use]
    pub fn new(route: Route, payload: Bytes) -> Self {
        Self { route, headers: Headers::default(), payload }
    }
}

/// A message that has arrived.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The route of the message.
    pub route: Route,
    /// The address for a reply, if a reply is expected.
    pub reply_to: Option<Route>,
    /// Headers of the transport.
    pub headers: Headers,
    /// The content.
    pub payload: Bytes,
}

/// The first reply to a request.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Headers of the transport.
    pub headers: Headers,
    /// The content.
    pub payload: Bytes,
}
