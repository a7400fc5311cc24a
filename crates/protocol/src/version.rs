//! The version of the wire protocol.

use serde::{Deserialize, Serialize};

/// The protocol version of a request.
///
/// Each request has it in the field `v`; a request without the field has version 1. Within a version, fields are only added.
/// A request with a newer version is rejected with `unsupported_version`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProtocolVersion(u32);

impl ProtocolVersion {
    /// The version of this crate.
    pub const CURRENT: Self = Self(1);

    /// Wraps a version number.
    #[must_use]
    pub const fn new(version: u32) -> Self {
        Self(version)
    }

    /// The bare number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// A request without a version has version 1.
impl Default for ProtocolVersion {
    fn default() -> Self {
        Self(1)
    }
}
