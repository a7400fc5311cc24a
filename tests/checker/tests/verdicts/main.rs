//! For each property a history that breaks it, and one just inside.

mod durable;
mod feeds;
mod many;
mod reading;
mod story;
mod writing;
