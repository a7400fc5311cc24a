//! Sets in flight to a subject: queued in call order, and sent together if they are queued together.
//!
//! A client has one request of sets in flight per subject. Sets that are called meanwhile are queued, and as
//! many as fit form the next request. There is no batching delay, and a thousand concurrent sets cost a few
//! requests. The limit of one request also keeps the order, across retries and changes of server.
//!
//! [`queue`] and [`group`] decide, without clock or I/O: which sets are queued, which are sent together, and
//! which result each caller gets. [`scheduler`] holds the queues, and [`sender`] executes it, with one task per subject
//! that has sets in flight; a subject without any has no cost.

mod ack;
mod calls;
mod group;
mod queue;
mod scheduler;
mod sender;

#[cfg(test)]
mod tests;

pub use ack::AckFuture;
pub(crate) use queue::Batching;
pub(crate) use scheduler::SetScheduler;
