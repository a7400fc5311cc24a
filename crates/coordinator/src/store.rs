//! The stored state of the coordinator, and the port to its storage.
//!
//! The store holds decisions, not ownership: the manifests in the bucket decide ownership. If the store is lost, the next
//! start waits longer and some answers are corrected later; no data is lost.

#[cfg(test)]
mod contract;
mod counts;
pub mod memory;
mod record;
pub mod sled_store;
mod state;
mod window;

use dormouse_protocol::{ServerName, Subject};

pub use counts::AssignmentCounts;
pub use state::{MemberRecord, StartupGrace, StoreChange, StoredState};
pub use window::{AssignmentView, AssignmentWindow};

/// An operation of a store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The underlying storage failed. After this, results of the store are not reliable.
    #[error("cannot read or write the coordinator's state: {what}")]
    Failed {
        /// The failed operation.
        what: &'static str,
        /// The error of the storage.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A stored value is invalid.
    #[error("the coordinator's state is damaged at {key:?}: {what}")]
    Damaged {
        /// The key of the value.
        key: String,
        /// The reason.
        what: String,
    },
    /// The state was written by newer software.
    #[error("the coordinator's state has schema version {found}; this software supports up to {newest}")]
    NewerSchema {
        /// The version found.
        found: u32,
        /// The newest supported version.
        newest: u32,
    },
}

/// The storage of a coordinator's state. Calls may block their thread.
///
/// There is one writer. Writes survive the process only after the next [`flush`](Store::flush) has returned.
pub trait Store: Send + Sync + 'static {
    /// Everything except the assignments.
    ///
    /// # Errors
    /// [`StoreError`] if the state cannot be read.
    fn load_state(&self) -> Result<StoredState, StoreError>;

    /// The server that each subject is assigned to, in the order of the request.
    ///
    /// # Errors
    /// [`StoreError`] if the state cannot be read.
    fn assignments(&self, subjects: &[Subject]) -> Result<Vec<Option<ServerName>>, StoreError>;

    /// The first `rows` assignments of subjects that begin with `prefix` and come after `after`, in ascending byte order of
    /// the subject. If the result is shorter, there are no more.
    ///
    /// # Errors
    /// [`StoreError`] if the assignments cannot be read.
    fn assigned_after(
        &self,
        prefix: &str,
        after: Option<&Subject>,
        rows: usize,
    ) -> Result<Vec<(Subject, ServerName)>, StoreError>;

    /// The number of subjects assigned to each server.
    fn counts(&self) -> AssignmentCounts;

    /// Applies the changes atomically.
    ///
    /// # Errors
    /// [`StoreError`] if the changes cannot be written.
    fn write(&self, changes: &[StoreChange]) -> Result<(), StoreError>;

    /// Returns when all writes so far survive the end of the process.
    ///
    /// # Errors
    /// [`StoreError`] if the flush fails; then it is unknown which writes survive.
    fn flush(&self) -> Result<(), StoreError>;
}
