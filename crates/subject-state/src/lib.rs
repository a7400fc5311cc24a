//! The state of one subject: from a request to an entry, and from an entry to rows.
//!
//! | module | holds |
//! |---|---|
//! | [`request`] | the requests to a subject, and their replies |
//! | [`plan`] | from a request to an entry: every decision about a write. Pure |
//! | [`database`] | from an entry to rows: one SQLite file per subject, and all reads of it |
//!
//! It never knows the bucket, the log, a clock, or another subject.

pub mod database;
pub mod plan;
pub mod request;
