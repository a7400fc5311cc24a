//! The commit log of one engine: entries of all subjects, first on the local disk, then in the bucket.
//!
//! | module | holds |
//! |---|---|
//! | [`wal`] | the local write-ahead log: entries that are accepted and not yet shipped |
//! | [`log`](mod@log) | groups, segments, seals, read barriers, trimming; reading sealed logs |
//! | [`recovery`] | after a restart: ships the unshipped entries of earlier processes into their logs |
//!
//! It never knows the meaning of an entry, the state of a subject, SQLite, or the coordinator.

pub mod log;
pub mod recovery;
pub mod wal;
