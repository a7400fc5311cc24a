//! Health documents: JSON, so that any NATS client can read them.

use serde::{Deserialize, Serialize};

/// The status of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// Everything works.
    Ok,
    /// The process serves, but has problems that an operator should check.
    Degraded,
    /// The process does not serve: it starts, stops or stands by.
    NotServing,
    /// The data side of the server hangs: it renews no lease, and the process ends if this lasts.
    Critical,
}

/// The reply of a coordinator or server on `<prefix>.health` and `<prefix>.health.<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `coordinator` or `server`.
    pub kind: String,
    /// The server's name, or `coordinator`.
    pub name: String,
    /// The id of the process: a log id, or the coordinator's incarnation.
    pub id: String,
    /// The version of the software.
    pub version: String,
    /// The status.
    pub status: HealthStatus,
    /// Problems that an operator should check, one sentence each. Empty if `status` is `ok`.
    #[serde(default)]
    pub problems: Vec<String>,
    /// Milliseconds since the process started.
    pub uptime_ms: u64,
    /// Metrics of this kind of process, by name.
    #[serde(default)]
    pub figures: std::collections::BTreeMap<String, u64>,
}
