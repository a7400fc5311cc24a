//! The completion of a multipart upload, with a definite result: a pure machine.
//!
//! A store may assemble a large object for minutes without a word, and its answer may get lost. A completion that took
//! effect cannot be repeated, because the upload no longer exists. So after silence or an error, the object itself is the
//! answer: its key is fresh, so an object with the size and the checksum of the file is this upload.

use std::time::Duration;

use crate::{Backoff, BucketError};

/// How long an unanswered completion is awaited. S3 promises no limit; its documentation speaks of minutes.
pub(super) const LONGEST_COMPLETION: Duration = Duration::from_secs(15 * 60);

/// Input of [`CompleteUpload`].
#[derive(Debug)]
pub(super) enum CompleteInput {
    /// The store has completed the upload.
    Completed,
    /// The store answered with an error.
    Failed(BucketError),
    /// There is no such upload: never, or no longer, because an earlier request has completed it.
    UploadMissing(BucketError),
    /// No answer yet. The request is still awaited.
    Silent(BucketError),
    /// The answer to [`CompleteStep::Look`].
    Looked(Look),
    /// The pause that [`CompleteStep::Pause`] asked for is over.
    PauseOver,
}

/// What is under the key of the upload.
#[derive(Debug)]
pub(super) enum Look {
    /// The object, whole.
    Whole,
    /// An object of another size or checksum.
    Other(BucketError),
    /// Nothing.
    Absent,
    /// It could not be read.
    Unknown,
}

/// Next step of [`CompleteUpload`].
#[derive(Debug)]
pub(super) enum CompleteStep {
    /// Ask the store to complete the upload, then [`Wait`](Self::Wait).
    Send,
    /// Wait for the answer to the request, for some time.
    Wait,
    /// Look at the key.
    Look,
    /// Wait before the next request.
    Pause(Duration),
    /// The result.
    Done(Result<(), BucketError>),
}

/// Decides the next step. Does no I/O itself.
#[derive(Debug)]
pub(super) struct CompleteUpload {
    since: Duration,
    /// Why the last request has no definite answer.
    doubt: Option<Doubt>,
    backoff: Option<Backoff>,
}

#[derive(Debug)]
struct Doubt {
    error: BucketError,
    next: AfterLook,
}

/// What follows if no object is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AfterLook {
    /// The request is still in flight.
    Wait,
    /// The request may not have arrived.
    SendAgain,
    /// Another request cannot succeed.
    GiveUp,
}

impl CompleteUpload {
    /// Begins at `now`; the first step is [`CompleteStep::Send`].
    pub(super) const fn new(now: Duration) -> Self {
        Self { since: now, doubt: None, backoff: None }
    }

    /// Takes an input at `now` and returns the next step.
    pub(super) fn apply(&mut self, input: CompleteInput, now: Duration) -> CompleteStep {
        match input {
            CompleteInput::Completed => CompleteStep::Done(Ok(())),
            CompleteInput::Failed(error) if error.is_unknown() => self.look(error, AfterLook::SendAgain),
            // An earlier request may have completed the upload all the same.
            CompleteInput::Failed(error) | CompleteInput::UploadMissing(error) => {
                self.look(error, AfterLook::GiveUp)
            }
            CompleteInput::Silent(error) => self.look(error, AfterLook::Wait),
            CompleteInput::Looked(Look::Whole) => CompleteStep::Done(Ok(())),
            CompleteInput::Looked(Look::Other(error)) => CompleteStep::Done(Err(error)),
            CompleteInput::Looked(Look::Absent | Look::Unknown) => self.without_object(now),
            CompleteInput::PauseOver => CompleteStep::Send,
        }
    }

    fn look(&mut self, error: BucketError, next: AfterLook) -> CompleteStep {
        self.doubt = Some(Doubt { error, next });
        CompleteStep::Look
    }

    fn without_object(&mut self, now: Duration) -> CompleteStep {
        // Only an unanswered request leads to a look.
        let Some(Doubt { error, next }) = self.doubt.take() else { return CompleteStep::Wait };
        let is_late = now.saturating_sub(self.since) >= LONGEST_COMPLETION;
        match next {
            AfterLook::Wait if !is_late => CompleteStep::Wait,
            AfterLook::SendAgain if !is_late => {
                match self.backoff.get_or_insert(Backoff::from(now)).pause(now) {
                    Some(pause) => CompleteStep::Pause(pause),
                    None => CompleteStep::Done(Err(error)),
                }
            }
            AfterLook::Wait | AfterLook::SendAgain | AfterLook::GiveUp => CompleteStep::Done(Err(error)),
        }
    }
}
