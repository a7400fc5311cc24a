//! What the engine measures while it works.

use dormouse_commit_log::log::LogInstruments;
use dormouse_metrics::{ByLabel, Counter, DurationHistogram, LongestSteps, MetricsRegistry, labels};
use dormouse_protocol::Level;
use dormouse_runtime::Env;

labels! {
    /// How a subject was opened.
    pub enum OpenKind as "kind" {
        /// It did not exist.
        Fresh = "fresh",
        /// Its local file was reused.
        Reused = "reused",
        /// Its local file was made from the objects in the bucket.
        Rebuilt = "rebuilt",
        /// Its log was sealed and its tail read, because the process that had served it has ended.
        Takeover = "takeover",
        /// The open failed, or found that another server owns the subject.
        Failed = "failed",
    }
}

labels! {
    /// Whether a local file spared the objects in the bucket.
    pub enum LocalFileUse as "outcome" {
        /// The file fits the newest manifest.
        Reused = "reused",
        /// There was no file, or it does not fit.
        Rebuilt = "rebuilt",
    }
}

/// The instruments of an engine and its log. Cloning shares them: a process that continues with a new log keeps its
/// instruments.
#[derive(Debug, Clone, Default)]
pub struct EngineInstruments {
    /// Time from the arrival of a change to its acknowledgement, by the level that it had to reach.
    pub(crate) acknowledged: ByLabel<Level, DurationHistogram>,
    /// Time that requests wait for their subject's task.
    pub(crate) queue_wait: DurationHistogram,
    pub(crate) opens: ByLabel<OpenKind, DurationHistogram>,
    pub(crate) local_files: ByLabel<LocalFileUse, Counter>,
    /// Logs of other processes that this one has sealed.
    pub(crate) seals: Counter,
    /// Unneeded objects that this process has deleted from the folders of subjects.
    pub(crate) collected: Counter,
    pub(crate) log: LogInstruments,
}

impl EngineInstruments {
    /// Adds the metrics to a registry.
    pub fn register(&self, registry: &mut MetricsRegistry, env: &Env) {
        let help = "Time from the arrival of a change to its acknowledgement";
        registry.register("dormouse_acknowledge_seconds", help, &self.acknowledged);
        let help = "Time that requests wait for the task of their subject";
        registry.register("dormouse_queue_wait_seconds", help, &self.queue_wait);
        registry.register("dormouse_open_seconds", "Time to open a subject", &self.opens);
        let help = "Opens that reused the local file, and those that could not";
        registry.register("dormouse_local_file_uses_total", help, &self.local_files);
        registry.register("dormouse_seals_total", "Logs of ended processes sealed", &self.seals);
        registry.register("dormouse_collected_objects_total", "Unneeded objects deleted", &self.collected);
        self.log.register(registry);
        self.steps().register(registry, env);
    }

    /// The longest steps of the process.
    #[must_use]
    pub const fn steps(&self) -> &LongestSteps {
        &self.log.steps
    }
}
