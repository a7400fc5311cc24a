//! A model of the bucket, the network and a few processes. Production's machines decide about logs, claims and
//! manifests in it, and an explorer visits every reachable state.
//!
//! The machines are production's own: [`LogOwner`](dormouse_commit_log::log::owner::LogOwner),
//! [`SealMachine`](dormouse_commit_log::log::seal::SealMachine), [`Tails`](dormouse_commit_log::log::tails::Tails),
//! [`Claim`](dormouse_engine::ownership::claim::Claim), [`Publish`](dormouse_engine::ownership::publish::Publish),
//! [`LogReclaim`](dormouse_engine::ownership::reclaim::LogReclaim) and the rules of
//! [`garbage`](dormouse_engine::ownership::garbage). The model replaces their shells, the network and the bucket.
//!
//! | module | contains |
//! |---|---|
//! | [`settings`] | the bounds of a run, the rules that can be broken on purpose, counters of covered cases |
//! | [`world`] | one state, and its possible steps |
//! | [`bucket`], [`process`] | the parts of a state |
//! | [`action`], [`step`] | one step |
//! | [`check`] | the guarantees |
//! | [`explore`] | the search, breadth-first or depth-first |
//! | [`hash`] | the identity of states |

// All numbers here are small, because the bounds are.
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
