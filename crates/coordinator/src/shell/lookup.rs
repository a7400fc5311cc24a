//! Scans of the assignments in the store, page by page, concurrent with all other work of the coordinator.
//!
//! Reading a page of the store is short work on a thread where blocking is allowed. The result may be older than the state
//! of the next batch; a decision that uses it reads the assignments again.

use std::collections::BTreeMap;
use std::sync::Arc;

use dormouse_protocol::admin::{Assigned, SubjectsReply, SubjectsRequest};
use dormouse_protocol::limits::MAX_PAGE_ITEMS;
use dormouse_protocol::{RoutePattern, ServerName, Subject};
use dormouse_runtime::Env;

use crate::store::{Store, StoreError};

/// The maximum number of assignments scanned for one page of a reply: a page may be empty and not the last.
const ROWS_PER_PAGE: usize = 10_000;

/// The maximum number of assignments per read of the store.
const ROWS_PER_READ: usize = 2_000;

/// The maximum number of assignments scanned for one rebalancing; the next one continues from there.
const ROWS_PER_REBALANCE: usize = 200_000;

/// The size of an assignment in a reply without its names, in bytes.
const ASSIGNED_BYTES: usize = 32;

/// Reads pages of assignments.
#[derive(Clone)]
pub(super) struct AssignmentReader {
    pub(super) env: Env,
    pub(super) store: Arc<dyn Store>,
}

impl AssignmentReader {
    async fn read(
        &self,
        prefix: &str,
        after: Option<Subject>,
        rows: usize,
    ) -> Result<Vec<(Subject, ServerName)>, StoreError> {
        // Other tasks run between two reads, even if blocking work runs inline.
        tokio::task::yield_now().await;
        let (store, prefix) = (Arc::clone(&self.store), prefix.to_owned());
        self.env.blocking(move || store.assigned_after(&prefix, after.as_ref(), rows)).await
    }

    /// The page that `request` asks for, in at most `most_bytes`.
    pub(super) async fn page(
        &self,
        request: SubjectsRequest,
        most_bytes: usize,
    ) -> Result<SubjectsReply, StoreError> {
        let limit = usize::try_from(request.limit).unwrap_or(usize::MAX).clamp(1, MAX_PAGE_ITEMS);
        let pattern = RoutePattern::new(request.pattern.as_str());
        let prefix = literal_prefix(&request.pattern);
        let (mut subjects, mut bytes, mut scanned) = (Vec::new(), 0, 0);
        let mut after = request.after;
        while scanned < ROWS_PER_PAGE {
            let rows = ROWS_PER_READ.min(ROWS_PER_PAGE - scanned);
            let read = self.read(prefix, after.clone(), rows).await?;
            let more = read.len() == rows;
            scanned += read.len();
            for (subject, server) in read {
                let wanted = request.server.as_ref().is_none_or(|wanted| *wanted == server);
                if wanted && pattern.matches(subject.as_str()) {
                    bytes += subject.as_str().len() + server.as_str().len() + ASSIGNED_BYTES;
                    // Each page holds at least one subject; otherwise the pages would never end.
                    if subjects.len() == limit || (bytes > most_bytes && !subjects.is_empty()) {
                        return Ok(SubjectsReply { subjects, cursor: after });
                    }
                    subjects.push(Assigned { subject: subject.clone(), server });
                }
                after = Some(subject);
            }
            if !more {
                return Ok(SubjectsReply { subjects, cursor: None });
            }
        }
        Ok(SubjectsReply { subjects, cursor: after })
    }

    /// Finds up to the `wanted` number of subjects of each server, and returns them with the cursor of the next scan. The
    /// scan begins after `after`, wraps around at the last assignment, and ends where it began or at its row limit.
    pub(super) async fn subjects_of(
        &self,
        mut wanted: BTreeMap<ServerName, u64>,
        mut after: Option<Subject>,
    ) -> Result<(Vec<(Subject, ServerName)>, Option<Subject>), StoreError> {
        let mut found = Vec::new();
        let (mut scanned, mut wrapped) = (0, after.is_none());
        let start = after.clone();
        while scanned < ROWS_PER_REBALANCE && !wanted.is_empty() {
            let read = self.read("", after.clone(), ROWS_PER_READ).await?;
            let more = read.len() == ROWS_PER_READ;
            scanned += read.len();
            after = read.last().map(|(subject, _)| subject.clone());
            for (subject, server) in read {
                if let Some(number) = wanted.get_mut(&server) {
                    *number -= 1;
                    if *number == 0 {
                        wanted.remove(&server);
                    }
                    found.push((subject, server));
                }
            }
            if !more {
                after = None;
                if std::mem::replace(&mut wrapped, true) {
                    break;
                }
            } else if wrapped && start.is_some() && after >= start {
                break;
            }
        }
        // After a wrap, some subjects may occur twice.
        found.sort();
        found.dedup();
        Ok((found, after))
    }
}

/// The literal prefix of all subjects that match `pattern`.
fn literal_prefix(pattern: &str) -> &str {
    let mut end = 0;
    for token in pattern.split_inclusive('.') {
        if matches!(token.trim_end_matches('.'), "*" | ">") {
            return &pattern[..end];
        }
        end += token.len();
    }
    pattern
}

#[cfg(test)]
mod tests;
