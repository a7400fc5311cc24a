//! Sets on their way to a subject: queued in the order of the calls, and sent together where they queued together.
//!
//! One request of a client's sets is in flight per subject at a time. What comes meanwhile waits, and all of it that
//! fits goes with the next request: nothing ever waits for company, and a thousand concurrent sets cost a few requests.
//! One at a time is also what keeps the order, over retries and changes of server.
//!
//! [`queue`] and [`flight`] decide, without clock or I/O: who waits, who goes together, and what each is told.
//! [`writer`] does it, with one task per subject that has something on its way; a subject that has not costs nothing.

mod ack;
mod flight;
mod queue;
mod writer;

#[cfg(test)]
mod tests;

pub use ack::AckFuture;
pub(crate) use ack::unheard;
pub(crate) use queue::{Company, Entry};
pub(crate) use writer::{Outcome, Writers};
