//! Why a coordinator cannot start, or stops.

use dormouse_bus::SubscribeError;

use crate::store::StoreError;

/// The coordinator could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The stored state cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The messaging system refused a subscription.
    #[error(transparent)]
    Subscribe(#[from] SubscribeError),
}

/// The coordinator stopped without a stop signal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The store failed. Decisions may not survive a restart any more, so the coordinator must stop.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Requests cannot arrive any more: the connection was closed, or a subscription was refused.
    #[error("the coordinator is unreachable: its connection or a subscription ended")]
    Unreachable,
    /// After a standby the coordinator could not begin a new run.
    #[error("the coordinator could not begin a new run")]
    Resume(#[source] StartError),
    /// A defect; the log has the location.
    #[error("the coordinator's task panicked")]
    Panicked,
}
