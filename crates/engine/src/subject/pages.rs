//! Reads that are not answered at once: pages, which are read in slices, and reads that need the apply backlog.
//!
//! Between two slices of a page the subject serves other requests, and answers reads of single messages from the same
//! state. The page and the apply backlog exclude each other, so a page reflects one state.

use std::collections::VecDeque;
use std::sync::Arc;

use dormouse_format::keys::BlobName;
use dormouse_metrics::StepKind;
use dormouse_protocol::{ErrorReply, OverloadCause};
use dormouse_runtime::injected_bug;
use dormouse_subject_state::database::{DatabaseError, PageRead, Slice};

use super::Respond;
use super::page_room::PageBytes;
use super::serve::OpenSubject;
use crate::api::{Submission, TenantId};

/// Maximum number of a subject's reads that wait for a page or for the apply backlog.
const MAX_QUEUED: usize = 1_024;

/// The reads of one subject that wait for its file.
#[derive(Default)]
pub(super) struct FileReads {
    /// In order of arrival.
    queue: VecDeque<QueuedRead>,
    page: Option<OpenPage>,
}

struct QueuedRead {
    submission: Submission,
    /// The blob that an earlier attempt did not find.
    missing: Option<BlobName>,
}

/// The page that is being read.
struct OpenPage {
    page: PageRead,
    tenant: TenantId,
    respond: Respond,
    /// For its result.
    _bytes: PageBytes,
}

impl FileReads {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.page.is_none()
    }

    /// Whether a page is being read.
    pub(super) const fn is_page_open(&self) -> bool {
        self.page.is_some()
    }

    fn push(&mut self, submission: Submission, missing: Option<BlobName>) {
        if self.queue.len() >= MAX_QUEUED {
            return (submission.respond)(Err(OverloadCause::SubjectQueue.into()));
        }
        self.keep(submission, missing);
    }

    /// Queues a read that has waited in another queue, whose limit applies.
    pub(super) fn keep(&mut self, submission: Submission, missing: Option<BlobName>) {
        self.queue.push_back(QueuedRead { submission, missing });
    }

    /// Takes all waiting callers.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Respond> + use<> {
        let page = self.page.take().map(|page| page.respond);
        let queue = std::mem::take(&mut self.queue);
        page.into_iter().chain(queue.into_iter().map(|read| read.submission.respond))
    }
}

impl OpenSubject<'_> {
    /// Whether a read needs changes that are not in the file.
    fn is_file_behind(&self) -> bool {
        !injected_bug!(ReadIgnoresBacklog) && !self.pipeline.backlog().is_empty()
    }

    /// Answers a read at once, or queues it.
    pub(super) fn read(&mut self, submission: Submission, missing: Option<BlobName>, slice: &mut Slice) {
        if submission.is_expired(self.shared.env.boot()) {
            slice.count(0);
            return self.shared.refuse_expired(submission);
        }
        if PageRead::is_for(&submission.request) || self.is_file_behind() {
            slice.count(0);
            self.file_reads.push(submission, missing);
        } else {
            self.read_at_once(submission, missing, slice);
        }
    }

    /// Answers the queued reads up to the next page, and reads one slice of a page. If their slice is spent first, the
    /// others stay queued. Must not be cancelled.
    ///
    /// # Errors
    /// The file is unusable.
    pub(super) async fn serve_reads(&mut self) -> Result<(), DatabaseError> {
        let mut slice = Slice::new();
        while !self.file_reads.is_page_open() {
            if self.file_reads.queue.is_empty() || slice.is_spent() {
                return Ok(());
            }
            if self.is_file_behind() {
                self.apply().await?;
                if self.is_file_behind() {
                    let reply = self.stalled_reply();
                    self.file_reads.drain().for_each(|respond| respond(Err(reply.clone())));
                    return Ok(());
                }
            }
            let Some(QueuedRead { submission, missing }) = self.file_reads.queue.pop_front() else {
                continue;
            };
            if submission.is_expired(self.shared.env.boot()) {
                slice.count(0);
                self.shared.refuse_expired(submission);
            } else if PageRead::is_for(&submission.request) {
                self.open_page(submission);
            } else {
                self.read_at_once(submission, missing, &mut slice);
            }
        }
        self.read_page_slice().await;
        Ok(())
    }

    /// Reserves the bytes of a page's result. Without room, the page is refused.
    fn open_page(&mut self, submission: Submission) {
        let Submission { tenant, request, max_reply_bytes, respond, .. } = submission;
        let bytes = self.shared.page_room.try_reserve(tenant, max_reply_bytes);
        match (bytes, PageRead::new(request, max_reply_bytes)) {
            (Some(bytes), Some(page)) => {
                self.file_reads.page = Some(OpenPage { page, tenant, respond, _bytes: bytes });
            }
            (None, _) => self.refuse_page(respond),
            (Some(_), None) => respond(Err(ErrorReply::internal("a page was opened for another request"))),
        }
    }

    fn refuse_page(&self, respond: Respond) {
        self.shared.counters.overloaded.add(1);
        respond(Err(OverloadCause::FilePool.into()));
    }

    async fn read_page_slice(&mut self) {
        let Some(OpenPage { mut page, tenant, respond, _bytes }) = self.file_reads.page.take() else {
            return;
        };
        let Ok(entry) = self.shared.pool.try_reserve(tenant.get()) else { return self.refuse_page(respond) };
        let shared = Arc::clone(self.shared);
        let (page, result) = self
            .run_slice(entry, move |database| {
                let _step = shared.step(StepKind::Page);
                let result = database.read_slice(&mut page, &mut Slice::new());
                (page, result)
            })
            .await;
        match result {
            Ok(Some(reply)) => respond(Ok(reply)),
            Ok(None) => self.file_reads.page = Some(OpenPage { page, tenant, respond, _bytes }),
            Err(error) => respond(Err(error)),
        }
    }

    /// Reads the open page to its end: the file is about to change.
    pub(super) async fn finish_page(&mut self) {
        while self.file_reads.is_page_open() {
            self.read_page_slice().await;
        }
    }
}
