//! For each property: a history that breaks it, and one that just satisfies it.

mod durable;
mod feeds;
mod many;
mod reading;
mod story;
mod writing;
