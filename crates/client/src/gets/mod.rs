//! Gets of single messages on their way to a subject: sent at once, or together where enough is in flight already.
//!
//! A few requests of a client's gets are in flight per subject at a time, and while they are fewer than that, a get goes
//! at once, by itself. What comes meanwhile waits, and all of it that fits goes with the next request: nothing ever waits
//! for company, and a thousand concurrent gets cost a few requests.
//!
//! A get goes only with a request that is put together after it was called, so it sees everything that was acknowledged
//! before. What a shared answer does not settle for one of the gets, that one asks again by itself: it is told what it
//! would be told without company.
//!
//! [`lane`] and [`flight`] decide, without clock or I/O: who waits, who goes together, and what each is told. [`lanes`] does
//! it; a subject that has nothing on its way costs nothing.

mod flight;
mod lane;
mod lanes;

#[cfg(test)]
mod tests;

pub(crate) use lanes::Lanes;
