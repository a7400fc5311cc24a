//! Looking through the assignments in the store, page by page, beside everything else that the coordinator does.
//!
//! A page of the store is short work on a thread where work may block. What is found may be older than what the next
//! batch knows; whoever decides by it looks again.

use std::collections::BTreeMap;
use std::sync::Arc;

use dormouse_protocol::admin::{Assigned, SubjectsReply, SubjectsRequest};
use dormouse_protocol::limits::MAX_PAGE_ITEMS;
use dormouse_protocol::{RoutePattern, ServerName, Subject};
use dormouse_runtime::Env;

use crate::store::{Store, StoreError};

/// Most assignments that one page of an answer looks at: a page may be empty and not the last.
const ROWS_PER_PAGE: usize = 10_000;

/// Most assignments read in one go.
const ROWS_PER_READ: usize = 2_000;

/// Most assignments that one rebalancing looks at; the next one goes on from there.
const ROWS_PER_REBALANCE: usize = 200_000;

/// What an assignment takes in an answer beside its names, in bytes.
const ASSIGNED_BYTES: usize = 32;

/// Reads pages of assignments.
#[derive(Clone)]
pub(super) struct Reader {
    pub(super) env: Env,
    pub(super) store: Arc<dyn Store>,
}

impl Reader {
    async fn read(
        &self,
        prefix: &str,
        after: Option<Subject>,
        rows: usize,
    ) -> Result<Vec<(Subject, ServerName)>, StoreError> {
        // Others have their turn between two pages, also where blocking work runs inline.
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
        let prefix = fixed_beginning(&request.pattern);
        let (mut subjects, mut bytes, mut looked_at) = (Vec::new(), 0, 0);
        let mut after = request.after;
        while looked_at < ROWS_PER_PAGE {
            let rows = ROWS_PER_READ.min(ROWS_PER_PAGE - looked_at);
            let read = self.read(prefix, after.clone(), rows).await?;
            let more = read.len() == rows;
            looked_at += read.len();
            for (subject, server) in read {
                let wanted = request.server.as_ref().is_none_or(|wanted| *wanted == server);
                if wanted && pattern.matches(subject.as_str()) {
                    bytes += subject.as_str().len() + server.as_str().len() + ASSIGNED_BYTES;
                    // One fits always, or the pages would never end.
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

    /// So many subjects of each server as `wanted` says, as far as they are among the assignments after `after` (and,
    /// behind the last one, those from the first one on), and where the next search should begin.
    pub(super) async fn subjects_of(
        &self,
        mut wanted: BTreeMap<ServerName, u64>,
        mut after: Option<Subject>,
    ) -> Result<(Vec<(Subject, ServerName)>, Option<Subject>), StoreError> {
        let mut found = Vec::new();
        let (mut looked_at, mut came_round) = (0, after.is_none());
        let began = after.clone();
        while looked_at < ROWS_PER_REBALANCE && !wanted.is_empty() {
            let read = self.read("", after.clone(), ROWS_PER_READ).await?;
            let more = read.len() == ROWS_PER_READ;
            looked_at += read.len();
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
                if std::mem::replace(&mut came_round, true) {
                    break;
                }
            } else if came_round && began.is_some() && after >= began {
                break;
            }
        }
        // Where it went round, some were seen twice.
        found.sort();
        found.dedup();
        Ok((found, after))
    }
}

/// What every subject that `pattern` stands for begins with.
fn fixed_beginning(pattern: &str) -> &str {
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
