//! What the engine counts about itself.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::log::LogFigures;

/// The engine's figures at one moment. Reading them costs the same however many subjects there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// Subjects that are open, opening or closing.
    pub open_subjects: u64,
    /// Open subjects whose last attempt to get a newer base failed. Not 0: an operator should look.
    pub subjects_not_compacted: u64,
    /// Bytes of the local files of open subjects, as of their last snapshot.
    pub local_bytes: u64,
    /// Bytes of changes that are acknowledged and not in their subjects' files yet.
    pub backlog_bytes: u64,
    /// Requests taken so far.
    pub requests: u64,
    /// Requests turned away so far because a queue was full or too many subjects were open.
    pub overloaded: u64,
    /// Changes acknowledged so far.
    pub changes: u64,
    /// Subjects opened so far.
    pub opens: u64,
    /// Manifests published so far, claims not counted.
    pub publications: u64,
    /// Attempts to publish that failed so far.
    pub publication_failures: u64,
    /// Subjects that turned out to belong to another process while they were served here.
    pub lost_subjects: u64,
    /// Subjects handed over so far, one by one.
    pub handed_over: u64,
    /// Manifests so far by which this process claimed a subject, whether or not they came to count: as long as there are
    /// none, nothing belongs to its log.
    pub claims: u64,
    /// Values on their way up, chunk by chunk.
    pub uploads: u64,
    /// Bytes that they take on the local disk or have announced.
    pub upload_bytes: u64,
    /// The log.
    pub log: LogFigures,
}

/// A number that several tasks move.
#[derive(Debug, Default)]
pub(crate) struct Figure(AtomicU64);

impl Figure {
    pub(crate) fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One subject's share of a figure: taken back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share<'a> {
    figure: &'a Figure,
    mine: u64,
}

impl Share<'_> {
    pub(crate) fn set(&mut self, number: u64) {
        // Wrapping arithmetic on both sides: the sum of all shares is right whatever order they move in.
        self.figure.0.fetch_add(number.wrapping_sub(self.mine), Ordering::Relaxed);
        self.mine = number;
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// The figures as they are kept.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) subjects_not_compacted: Figure,
    pub(crate) local_bytes: Figure,
    /// Of changes that are acknowledged and not in their subjects' files yet.
    pub(crate) backlog_bytes: Figure,
    pub(crate) requests: Figure,
    pub(crate) overloaded: Figure,
    pub(crate) changes: Figure,
    pub(crate) opens: Figure,
    pub(crate) publications: Figure,
    pub(crate) publication_failures: Figure,
    pub(crate) lost_subjects: Figure,
    pub(crate) handed_over: Figure,
    pub(crate) claims: Figure,
}

impl Figure {
    pub(crate) const fn share(&self) -> Share<'_> {
        Share { figure: self, mine: 0 }
    }
}

impl Counters {
    pub(crate) fn figures(&self, open_subjects: usize, log: LogFigures) -> Figures {
        Figures {
            open_subjects: open_subjects as u64,
            subjects_not_compacted: self.subjects_not_compacted.get(),
            local_bytes: self.local_bytes.get(),
            backlog_bytes: self.backlog_bytes.get(),
            requests: self.requests.get(),
            overloaded: self.overloaded.get(),
            changes: self.changes.get(),
            opens: self.opens.get(),
            publications: self.publications.get(),
            publication_failures: self.publication_failures.get(),
            lost_subjects: self.lost_subjects.get(),
            handed_over: self.handed_over.get(),
            claims: self.claims.get(),
            uploads: 0,
            upload_bytes: 0,
            log,
        }
    }
}
