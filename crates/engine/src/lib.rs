//! The durable engine: serves subjects from local SQLite files and a log in the bucket. It never knows the bus
//! or the coordinator: it asks an [`Authority`](api::Authority).
//!
//! | module | holds |
//! |---|---|
//! | [`api`] | requests to the engine, and the interfaces that it needs |
//! | [`ownership`] | ownership: the machines that claim, publish, reclaim and collect |
//! | `subject` | the task of one open subject: opens, serves, publishes, closes |
//! | `values`, `spool` | blobs: values as objects of their own; chunked uploads until they are blobs |
//! | `subject_table` | which subjects have a task |
//! | `housekeeping` | background work: compaction, eviction, reclamation of orphaned logs |
//! | `engine` | the engine, made of all these parts |
//! | [`data_dir`] | the data directory: its lock, its files. Public for its error, and for tests that hold the lock |
//! | [`gc`] | collection without a server: deletes objects that no manifest needs |
//! | [`export_snapshot`] | a subject's data straight from the bucket |
//!
//! [`dormouse_bucket`] accesses the bucket, [`dormouse_commit_log`] holds the log, [`dormouse_subject_state`] plans
//! writes and holds the rows, and [`dormouse_format`] has the keys and bytes of the objects in the bucket.

pub mod api;
pub mod data_dir;
mod engine;
mod export;
pub mod gc;
mod housekeeping;
mod instruments;
mod metrics;
mod open_permits;
pub mod ownership;
mod read_lease;
mod request_rate;
mod settings;
mod spool;
mod subject;
mod subject_table;
mod tenant_usage;
mod values;

pub use dormouse_commit_log::log::{LogEnd, LogMetrics, LogSettings};
pub use engine::{Engine, EngineOpenError, PreparedEngine, ShutdownReport};
pub use export::{ExportError, export_snapshot};
pub use instruments::{EngineInstruments, LocalFileUse, OpenKind};
pub use metrics::EngineMetrics;
pub use settings::EngineSettings;
pub use subject_table::SubjectLoad;
pub use tenant_usage::TenantFigures;
