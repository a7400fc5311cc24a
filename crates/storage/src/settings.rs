//! What can be set about the engine.

use std::path::PathBuf;
use std::time::Duration;

use dormouse_protocol::{Level, ServerName};

use crate::log::LogSettings;

/// The engine's settings. [`EngineSettings::new`] fills in the defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineSettings {
    /// The folder for local files. Belongs to one process at a time.
    pub data_dir: PathBuf,
    /// The name of this server.
    pub server: ServerName,
    /// The level at which writes are acknowledged where a subject's configuration says nothing.
    pub level: Level,
    /// How changes are brought to the bucket.
    pub log: LogSettings,
    /// How long a subject stays open that nobody asks for.
    pub idle_close: Duration,
    /// How many subjects may be open at once. Above it, those idle longest are closed.
    pub max_open_subjects: usize,
    /// At so many, which are more, requests that would open another one are turned away. `None`: at twice as many.
    pub open_subjects_limit: Option<usize>,
    /// Bytes of local files above which those of sleeping subjects are removed, those written longest ago first. `None`:
    /// they all stay.
    pub max_local_bytes: Option<u64>,
    /// How long a flush waits for the bucket before it answers `unavailable`.
    pub flush_patience: Duration,
    /// How many values may be on their way up at a time, chunk by chunk. Above it, who begins one is turned away. Of this
    /// and of the bytes, one subject may have half of what the others leave.
    pub max_uploads: usize,
    /// Bytes that they may take on the local disk, all together.
    pub max_upload_bytes: u64,
}

impl EngineSettings {
    /// Default of [`EngineSettings::level`].
    pub const LEVEL: Level = Level::Bucket;
    /// Default of [`EngineSettings::idle_close`].
    pub const IDLE_CLOSE: Duration = Duration::from_secs(60);
    /// Default of [`EngineSettings::max_open_subjects`].
    pub const MAX_OPEN_SUBJECTS: usize = 2_000;
    /// Default of [`EngineSettings::flush_patience`].
    pub const FLUSH_PATIENCE: Duration = Duration::from_secs(10);

    /// Default of [`EngineSettings::max_uploads`].
    pub const MAX_UPLOADS: usize = 256;
    /// Default of [`EngineSettings::max_upload_bytes`].
    pub const MAX_UPLOAD_BYTES: u64 = 16 * 1_024 * 1_024 * 1_024;

    /// Settings with every default.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>, server: ServerName) -> Self {
        Self {
            data_dir: data_dir.into(),
            server,
            level: Self::LEVEL,
            log: LogSettings::default(),
            idle_close: Self::IDLE_CLOSE,
            max_open_subjects: Self::MAX_OPEN_SUBJECTS,
            open_subjects_limit: None,
            max_local_bytes: None,
            flush_patience: Self::FLUSH_PATIENCE,
            max_uploads: Self::MAX_UPLOADS,
            max_upload_bytes: Self::MAX_UPLOAD_BYTES,
        }
    }
}
