//! The durable engine: subjects as SQLite files here, and as snapshots and manifests in a bucket. Knows no bus.
//!
//! | module | holds |
//! |---|---|
//! | [`api`] | what the engine is asked, and what it asks of its surroundings |
//! | [`bucket`] | the store of objects, behind one port |
//! | [`keys`], [`manifest`], [`checksum`] | what objects are called and what they say |
//! | [`ownership`] | who owns what: the machines that claim, publish, drain and collect |
//! | [`log`](mod@log) | the commit log: groups, segments, seals, barriers |
//! | [`format`](mod@format) | what the log's objects look like, byte for byte |
//! | [`plan`] | from a request to records: every decision about a write |
//! | `database` | from records to rows: one SQLite file per subject |
//! | `subject` | the task of one open subject: opens, serves, publishes, closes |
//! | `values`, `spool` | values as objects of their own; those that come piece by piece, until they are such objects |
//! | `directory` | which subjects have a task |
//! | [`engine`] | all of it together |
//! | [`wal`] | what was accepted and not yet shipped, on the local disk |
//! | [`recovery`] | after a restart: what earlier processes left goes into their logs |
//! | [`collect`] | deleting what nobody needs any more, without a server |
//! | [`fail_points`] | steps at which a test may have the process die |
//! | [`mutations`] | bugs that a simulation has to find |
//! | [`export_snapshot`] | a subject's data straight from the bucket |

mod activity;
pub mod api;
pub mod bucket;
#[cfg(test)]
mod cases;
pub mod checksum;
pub mod collect;
pub mod data_dir;
mod database;
mod directory;
pub mod engine;
pub mod entry;
mod export;
pub mod fail_points;
mod figures;
pub mod format;
mod housekeeping;
pub mod keys;
pub mod log;
pub mod manifest;
pub mod mutations;
pub mod ownership;
mod patience;
pub mod plan;
pub mod recovery;
mod settings;
mod spool;
mod subject;
mod trust;
mod values;
pub mod wal;

#[cfg(feature = "internals")]
pub mod internals {
    //! For benchmarks: what nobody outside builds on, and what may change at any time.

    pub use crate::database::{Database, Origin};
}

pub use database::sqlite_is_safe;
pub use directory::Busy;
pub use engine::{Engine, OpenError, Prepared, ShutdownReport};
pub use export::{ExportError, export_snapshot};
pub use figures::Figures;
pub use log::{LogEnd, LogFigures, LogSettings};
pub use settings::EngineSettings;
