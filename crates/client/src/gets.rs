//! Gets of single messages in flight to a subject: sent at once, or together if enough requests are in
//! flight.
//!
//! A client has a few requests of gets in flight per subject. Below that number, a get is sent at once, in a
//! request of its own. Further gets are queued, and as many as fit form the next request. There is no
//! batching delay, and a thousand concurrent gets cost a few requests.
//!
//! A get joins only a request that is built after the call, so it sees every write that was acknowledged
//! before the call. If a shared reply does not resolve one of its gets, the client sends that get again
//! alone. So each get has the result that it would have alone.
//!
//! [`queue`] and [`group`] decide, without clock or I/O: which gets are queued, which are sent together, and
//! which result each caller gets. [`scheduler`] holds the queues, and [`sender`] executes it; a subject without gets in
//! flight has no cost.

mod group;
mod queue;
mod scheduler;
mod sender;

#[cfg(test)]
mod tests;

pub(crate) use scheduler::GetScheduler;
