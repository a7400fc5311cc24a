//! Health documents: JSON, so that anything with a NATS connection can read them.

use serde::{Deserialize, Serialize};

/// How a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// Everything works.
    Ok,
    /// It serves, but an operator should look.
    Degraded,
    /// It is on its way up or down.
    NotServing,
}

/// What a coordinator or server answers on `<prefix>.health` and `<prefix>.health.<name>`.
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
    /// How it is.
    pub status: HealthStatus,
    /// What an operator should look at, one sentence each. Empty when `status` is `ok`.
    #[serde(default)]
    pub problems: Vec<String>,
    /// Milliseconds since the process started.
    pub uptime_ms: u64,
    /// Figures of this kind of process, by name.
    #[serde(default)]
    pub figures: std::collections::BTreeMap<String, u64>,
}
