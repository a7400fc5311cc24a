//! The durable engine: subjects as local SQLite files, and as snapshots and manifests in a bucket. It knows no bus.
//! [`dormouse_format`] has the keys and bytes of the objects in the bucket.
//!
//! | module | holds |
//! |---|---|
//! | [`api`] | requests to the engine, and the interfaces that it needs |
//! | [`bucket`] | the object store, behind one port |
//! | [`ownership`] | ownership: the machines that claim, publish, reclaim and collect |
//! | [`log`](mod@log) | the commit log: groups, segments, seals, barriers |
//! | [`plan`] | from a request to records: every decision about a write |
//! | `database` | from records to rows: one SQLite file per subject |
//! | `subject` | the task of one open subject: opens, serves, publishes, closes |
//! | `values`, `spool` | blobs: values as objects of their own; chunked uploads until they are blobs |
//! | `subject_table` | which subjects have a task |
//! | [`engine`] | the engine, made of all these parts |
//! | [`wal`] | the local write-ahead log: writes that are accepted and not yet shipped |
//! | [`recovery`] | after a restart: ships the unshipped writes of earlier processes into their logs |
//! | [`gc`] | collection without a server: deletes objects that no manifest needs |
//! | [`export_snapshot`] | a subject's data straight from the bucket |

pub mod api;
mod backoff;
pub mod bucket;
#[cfg(test)]
mod cases;
pub mod data_dir;
mod database;
pub mod engine;
mod export;
pub mod gc;
mod housekeeping;
pub mod log;
mod metrics;
pub mod ownership;
pub mod plan;
mod read_lease;
pub mod recovery;
mod request_rate;
mod settings;
mod spool;
mod subject;
mod subject_table;
mod values;
pub mod wal;

#[cfg(feature = "internals")]
pub mod internals {
    //! For benchmarks: internal parts, which can change at any time.

    pub use crate::database::{Database, InitialState};
}

pub use database::sqlite_is_safe;
pub use engine::{Engine, EngineOpenError, PreparedEngine, ShutdownReport};
pub use export::{ExportError, export_snapshot};
pub use log::{LogEnd, LogMetrics, LogSettings};
pub use metrics::EngineMetrics;
pub use settings::EngineSettings;
pub use subject_table::SubjectLoad;
