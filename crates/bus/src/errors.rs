//! Errors of the port.

use std::time::Duration;

use dormouse_protocol::{Executed, Route, RoutePattern};

/// Why a request got no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The route has no subscriber.
    #[error("no responder on {0}")]
    NoResponders(Route),
    /// No reply arrived in time. The request may have been executed, or may be executed later.
    #[error("no reply on {route} within {} ms", deadline.as_millis())]
    Deadline {
        /// The route of the request.
        route: Route,
        /// The deadline of the request.
        deadline: Duration,
    },
    /// The messaging system denies a publish to this route.
    #[error("not permitted to publish to {0}")]
    PermissionDenied(Route),
    /// The message is larger than the maximum payload.
    #[error("a message of {size_bytes} bytes exceeds the maximum payload of {limit_bytes} bytes")]
    TooLarge {
        /// Size of payload and headers.
        size_bytes: usize,
        /// The maximum payload of the connected server.
        limit_bytes: usize,
    },
    /// The message is invalid for every transport: a route with wildcards, a line break in a header.
    #[error("cannot send to {route}: {reason}")]
    Invalid {
        /// The destination.
        route: Route,
        /// Why it is invalid.
        reason: &'static str,
    },
    /// Not connected until the deadline. Nothing was sent.
    #[error("not connected")]
    Disconnected,
    /// The bus was closed by its owner.
    #[error("the connection is closed")]
    Closed {
        /// Whether the request was sent before the close. If so, it may have been executed.
        sent: bool,
    },
}

impl RequestError {
    /// Whether the request may have been executed.
    #[must_use]
    pub fn executed(&self) -> Executed {
        match self {
            Self::Deadline { .. } | Self::Closed { sent: true } => Executed::Unknown,
            Self::NoResponders(_)
            | Self::PermissionDenied(_)
            | Self::TooLarge { .. }
            | Self::Invalid { .. }
            | Self::Disconnected
            | Self::Closed { sent: false } => Executed::No,
        }
    }
}

/// Why a message was not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The message is larger than the maximum payload.
    #[error("a message of {size_bytes} bytes exceeds the maximum payload of {limit_bytes} bytes")]
    TooLarge {
        /// Size of payload and headers.
        size_bytes: usize,
        /// The maximum payload of the connected server.
        limit_bytes: usize,
    },
    /// The message is invalid for every transport: a route with wildcards, a line break in a header.
    #[error("cannot send to {route}: {reason}")]
    Invalid {
        /// The destination.
        route: Route,
        /// Why it is invalid.
        reason: &'static str,
    },
    /// The bus was closed by its owner.
    #[error("the connection is closed")]
    Closed,
}

/// Why a subscription failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The messaging system denies the subscription.
    #[error("not permitted to subscribe to {0}")]
    PermissionDenied(RoutePattern),
    /// The text is no valid pattern.
    #[error("not a valid pattern: {0}")]
    Invalid(RoutePattern),
    /// The bus was closed by its owner.
    #[error("the connection is closed")]
    Closed,
}

/// Why a connection did not carry a message to itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RoundTripError {
    /// The message did not arrive in time, or there was no connection.
    #[error("no message to this connection itself arrived within {} ms", .0.as_millis())]
    Deadline(Duration),
    /// The bus was closed by its owner.
    #[error("the connection is closed")]
    Closed,
}
