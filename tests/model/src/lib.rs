//! A model of the bucket, the network and a few processes, in which the machines that production runs decide about
//! logs, claims and manifests; and an explorer that goes through everything that can happen.
//!
//! The machines are production's own: [`Owner`](dormouse_storage::log::owner::Owner),
//! [`Seal`](dormouse_storage::log::seal::Seal), [`Tails`](dormouse_storage::log::tails::Tails),
//! [`Claim`](dormouse_storage::ownership::claim::Claim), [`Publish`](dormouse_storage::ownership::publish::Publish),
//! [`Drain`](dormouse_storage::ownership::drain::Drain) and the rules of
//! [`garbage`](dormouse_storage::ownership::garbage). What is modelled is around them: their shells, the network, the
//! bucket.
//!
//! | module | holds |
//! |---|---|
//! | [`settings`] | bounds of a run, the lies that break a rule on purpose, counters of what was reached |
//! | [`world`] | one state, and what can happen in it |
//! | [`bucket`], [`process`] | what a state consists of |
//! | [`action`], [`step`] | one thing that happens |
//! | [`check`] | the promises |
//! | [`explore`] | all of it, nearest or deepest first |
//! | [`hash`] | how states are told apart |

// Everything here is small: the bounds are.
#![allow(clippy::cast_possible_truncation)]

pub mod action;
pub mod bucket;
pub mod check;
mod claiming;
mod collecting;
mod draining;
pub mod explore;
pub mod hash;
pub mod process;
mod publishing;
mod sealing;
pub mod settings;
pub mod step;
pub mod world;
mod writing;
