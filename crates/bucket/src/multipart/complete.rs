//! The completion of a multipart upload, with a definite result: a pure machine.
//!
//! A store may assemble a large object for minutes without a word, and its answer may get lost. A completion that took
//! effect cannot be repeated, because the upload no longer exists. So after silence or an error, the object itself is the
//! answer: its key is fresh, so an object with the size and the checksum of the file is this upload. While neither the
//! answer nor the object is there, the completion is sent again, with pauses, for as long as an unanswered one is awaited.

use std::time::Duration;

use crate::{Backoff, BucketError};

/// How long a completion is awaited and repeated. S3 promises no limit; its documentation speaks of minutes.
pub(super) const LONGEST_COMPLETION: Duration = Duration::from_secs(15 * 60);

/// Longest pause between two requests: about 60 fit into [`LONGEST_COMPLETION`].
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

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
    /// Whether the connection of an earlier request failed. The store may still be completing it.
    has_earlier: bool,
    after_pause: AfterPause,
    backoff: Backoff,
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
    /// Another request cannot succeed, but an earlier one may still create the object.
    LookAgain,
    /// Another request cannot succeed.
    GiveUp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AfterPause {
    Send,
    Look,
}

impl CompleteUpload {
    /// Begins at `now`; the first step is [`CompleteStep::Send`].
    pub(super) const fn new(now: Duration) -> Self {
        let backoff = Backoff::lasting(now, LONGEST_COMPLETION, LONGEST_PAUSE);
        Self { since: now, doubt: None, has_earlier: false, after_pause: AfterPause::Send, backoff }
    }

    /// Takes an input at `now` and returns the next step.
    pub(super) fn apply(&mut self, input: CompleteInput, now: Duration) -> CompleteStep {
        match input {
            CompleteInput::Completed => CompleteStep::Done(Ok(())),
            CompleteInput::Failed(error) if error.is_unknown() => {
                self.has_earlier = true;
                self.look(error, AfterLook::SendAgain)
            }
            // The store forgets the upload before the object of an earlier request is visible.
            CompleteInput::UploadMissing(error) if self.has_earlier => self.look(error, AfterLook::LookAgain),
            // An earlier request may have completed the upload all the same.
            CompleteInput::Failed(error) | CompleteInput::UploadMissing(error) => {
                self.look(error, AfterLook::GiveUp)
            }
            CompleteInput::Silent(error) => self.look(error, AfterLook::Wait),
            CompleteInput::Looked(Look::Whole) => CompleteStep::Done(Ok(())),
            CompleteInput::Looked(Look::Other(error)) => CompleteStep::Done(Err(error)),
            CompleteInput::Looked(Look::Absent) => self.without_object(now, AfterLook::GiveUp),
            // An object that cannot be read now may be ours.
            CompleteInput::Looked(Look::Unknown) => self.without_object(now, AfterLook::LookAgain),
            CompleteInput::PauseOver => match self.after_pause {
                AfterPause::Send => CompleteStep::Send,
                AfterPause::Look => CompleteStep::Look,
            },
        }
    }

    fn look(&mut self, error: BucketError, next: AfterLook) -> CompleteStep {
        self.doubt = Some(Doubt { error, next });
        CompleteStep::Look
    }

    /// `last_resort` replaces [`AfterLook::GiveUp`].
    fn without_object(&mut self, now: Duration, last_resort: AfterLook) -> CompleteStep {
        // Only an unanswered request leads to a look.
        let Some(Doubt { error, next }) = self.doubt.take() else { return CompleteStep::Wait };
        let next = if next == AfterLook::GiveUp { last_resort } else { next };
        let after_pause = match next {
            AfterLook::Wait if now.saturating_sub(self.since) < LONGEST_COMPLETION => {
                return CompleteStep::Wait;
            }
            AfterLook::Wait | AfterLook::GiveUp => return CompleteStep::Done(Err(error)),
            AfterLook::SendAgain => AfterPause::Send,
            AfterLook::LookAgain => AfterPause::Look,
        };
        let Some(pause) = self.backoff.pause(now) else { return CompleteStep::Done(Err(error)) };
        self.after_pause = after_pause;
        if after_pause == AfterPause::Look {
            self.doubt = Some(Doubt { error, next });
        }
        CompleteStep::Pause(pause)
    }
}
