//! Settings of the engine.

use std::path::PathBuf;
use std::time::Duration;

use dormouse_protocol::{Level, ServerName};

use dormouse_commit_log::log::LogSettings;

/// The engine's settings. [`EngineSettings::new`] fills in the defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineSettings {
    /// The folder for local files. Belongs to one process at a time.
    pub data_dir: PathBuf,
    /// The name of this server.
    pub server: ServerName,
    /// The level at which writes are acknowledged if a subject's configuration sets none.
    pub level: Level,
    /// How the log ships changes to the bucket.
    pub log: LogSettings,
    /// How long a subject stays open without requests.
    pub idle_close: Duration,
    /// How many subjects may be open at once. Above this number, the subjects idle longest close.
    pub max_open_subjects: usize,
    /// At this higher number of open subjects, requests that would open another one get `overloaded`. `None`: twice
    /// [`EngineSettings::max_open_subjects`].
    pub open_subjects_limit: Option<usize>,
    /// Limit for the bytes of local files. Above it, the files of dormant subjects are evicted, those written longest
    /// ago first. `None`: no limit.
    pub max_local_bytes: Option<u64>,
    /// How long a flush waits for the bucket before the reply is `unavailable`.
    pub flush_timeout: Duration,
    /// How many chunked uploads may be in progress at once. Above this number, a new upload is refused. One subject may
    /// use half of the uploads, and half of the bytes, that other subjects leave free.
    pub max_uploads: usize,
    /// Bytes that all chunked uploads together may occupy on the local disk.
    pub max_upload_bytes: u64,
}

impl EngineSettings {
    /// Default of [`EngineSettings::level`].
    pub const LEVEL: Level = Level::Bucket;
    /// Default of [`EngineSettings::idle_close`].
    pub const IDLE_CLOSE: Duration = Duration::from_secs(60);
    /// Default of [`EngineSettings::max_open_subjects`].
    pub const MAX_OPEN_SUBJECTS: usize = 2_000;
    /// Default of [`EngineSettings::flush_timeout`].
    pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

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
            flush_timeout: Self::FLUSH_TIMEOUT,
            max_uploads: Self::MAX_UPLOADS,
            max_upload_bytes: Self::MAX_UPLOAD_BYTES,
        }
    }
}
