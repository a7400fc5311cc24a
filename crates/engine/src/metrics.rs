//! Metrics of the engine.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dormouse_commit_log::log::LogMetrics;
use dormouse_protocol::LogId;
use dormouse_runtime::Lock;

/// The engine's metrics at one moment. The cost of reading them does not depend on the number of subjects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineMetrics {
    /// Subjects that are open, opening or closing.
    pub open_subjects: u64,
    /// Open subjects whose last compaction failed. If it is not 0, an operator should look.
    pub compaction_failing_subjects: u64,
    /// Bytes of the local files of open subjects, as of their last snapshot.
    pub local_bytes: u64,
    /// Apply backlog: bytes of changes that are acknowledged and not yet in their subjects' files.
    pub apply_backlog_bytes: u64,
    /// Requests accepted so far.
    pub requests: u64,
    /// Requests refused as `overloaded` so far, because a queue was full or too many subjects were open.
    pub overloaded: u64,
    /// Requests refused so far because their time ran out before they were begun.
    pub expired: u64,
    /// Changes acknowledged so far.
    pub changes: u64,
    /// Subjects opened so far.
    pub subject_opens: u64,
    /// Manifests published so far, claims not counted.
    pub manifest_publishes: u64,
    /// Failed attempts to publish so far.
    pub manifest_publish_failures: u64,
    /// Subjects that were fenced here so far: another process claimed them while this one served them.
    pub fenced_subjects: u64,
    /// Subjects handed over so far, on single orders.
    pub handed_over: u64,
    /// Claim manifests that this process has tried to create so far, whether or not they took effect. While it is 0, no
    /// subject belongs to this process's log.
    pub claims: u64,
    /// Chunked uploads in progress.
    pub uploads: u64,
    /// Bytes that these uploads occupy on the local disk or have declared.
    pub upload_bytes: u64,
    /// Bytes of the slots that are not deleted: of the log, and of orphaned logs that this process reclaims.
    pub log_bytes: u64,
    /// The log has exceeded its limit of bytes for a while, because subjects are not compacted fast enough.
    pub log_over_limit: bool,
    /// Metrics of the log.
    pub log: LogMetrics,
}

/// A number that several tasks change.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicU64);

impl Gauge {
    pub(crate) fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One subject's share of a gauge. Dropping it subtracts the share.
#[derive(Debug)]
pub(crate) struct GaugeShare<'a> {
    gauge: &'a Gauge,
    share: u64,
}

impl GaugeShare<'_> {
    pub(crate) fn set(&mut self, number: u64) {
        // Wrapping arithmetic on both sides: the sum of all shares is right in any order of updates.
        self.gauge.0.fetch_add(number.wrapping_sub(self.share), Ordering::Relaxed);
        self.share = number;
    }
}

impl Drop for GaugeShare<'_> {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// The counters and gauges behind [`EngineMetrics`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) compaction_failing_subjects: Gauge,
    pub(crate) local_bytes: Gauge,
    /// Bytes of changes that are acknowledged and not yet in their subjects' files.
    pub(crate) apply_backlog_bytes: Gauge,
    pub(crate) requests: Gauge,
    pub(crate) overloaded: Gauge,
    pub(crate) expired: Gauge,
    pub(crate) changes: Gauge,
    pub(crate) subject_opens: Gauge,
    pub(crate) manifest_publishes: Gauge,
    pub(crate) manifest_publish_failures: Gauge,
    pub(crate) fenced_subjects: Gauge,
    pub(crate) handed_over: Gauge,
    pub(crate) claims: Gauge,
    pub(crate) log_over_limit: AtomicBool,
    pub(crate) orphaned_logs: OrphanedLogSizes,
}

/// Bytes of the slots of each orphaned log that this process reclaims.
#[derive(Debug, Default)]
pub(crate) struct OrphanedLogSizes(Lock<BTreeMap<LogId, u64>>);

impl OrphanedLogSizes {
    /// The log was listed, and its slots have this many bytes.
    pub(crate) fn set(&self, log: &LogId, size_bytes: u64) {
        self.0.lock().insert(log.clone(), size_bytes);
    }

    /// The log is reclaimed.
    pub(crate) fn remove(&self, log: &LogId) {
        self.0.lock().remove(log);
    }

    fn total(&self) -> u64 {
        self.0.lock().values().sum()
    }
}

impl Gauge {
    pub(crate) const fn share(&self) -> GaugeShare<'_> {
        GaugeShare { gauge: self, share: 0 }
    }
}

impl Counters {
    pub(crate) fn snapshot(&self, open_subjects: usize, log: LogMetrics) -> EngineMetrics {
        EngineMetrics {
            open_subjects: open_subjects as u64,
            compaction_failing_subjects: self.compaction_failing_subjects.get(),
            local_bytes: self.local_bytes.get(),
            apply_backlog_bytes: self.apply_backlog_bytes.get(),
            requests: self.requests.get(),
            overloaded: self.overloaded.get(),
            expired: self.expired.get(),
            changes: self.changes.get(),
            subject_opens: self.subject_opens.get(),
            manifest_publishes: self.manifest_publishes.get(),
            manifest_publish_failures: self.manifest_publish_failures.get(),
            fenced_subjects: self.fenced_subjects.get(),
            handed_over: self.handed_over.get(),
            claims: self.claims.get(),
            uploads: 0,
            upload_bytes: 0,
            log_bytes: log.slot_bytes + self.orphaned_logs.total(),
            log_over_limit: self.log_over_limit.load(Ordering::Relaxed),
            log,
        }
    }
}
