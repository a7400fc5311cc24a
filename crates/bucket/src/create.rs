//! A conditional create with a definite result, on a network that loses answers.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use dormouse_format::keys::BucketKey;
use futures::future::{Either, select};

use super::{Bucket, BucketError, BucketOperation, Created};

/// How an attempt to create one particular object ended.
#[derive(Debug)]
pub enum CreateOutcome {
    /// The object under this key is ours.
    Ours,
    /// The object under this key was written by another process. It stays.
    Foreign,
    /// Indeterminate: no definite answer came before the caller gave up. The object may exist, or appear later. A retry
    /// must use the same bytes under the same key.
    Unknown(BucketError),
}

/// Input of [`CreateOnce`].
#[derive(Debug)]
pub enum CreateInput {
    /// The answer to [`CreateStep::Create`].
    Created(Result<Created, BucketError>),
    /// The answer to [`CreateStep::ReadBack`].
    ReadBack(Result<Option<Bytes>, BucketError>),
    /// The pause that [`CreateStep::Pause`] asked for is over.
    PauseOver,
}

/// Next step of [`CreateOnce`].
#[derive(Debug)]
pub enum CreateStep {
    /// Create the object: always the same bytes under the same key.
    Create,
    /// Read the object under the key.
    ReadBack,
    /// Wait before the next attempt.
    Pause,
    /// The result.
    Done(Result<CreateOutcome, BucketError>),
}

/// Interprets the answers to a create and decides the next step. Does no I/O itself.
///
/// Our bytes contain a unique nonce, so an object with equal bytes is ours.
#[derive(Debug)]
pub struct CreateOnce {
    bytes: Bytes,
    last_failure: Option<BucketError>,
}

impl CreateOnce {
    /// Begins; the first step is [`CreateStep::Create`].
    #[must_use]
    pub const fn new(bytes: Bytes) -> Self {
        Self { bytes, last_failure: None }
    }

    /// Takes an answer and returns the next step.
    pub fn apply(&mut self, input: CreateInput) -> CreateStep {
        match input {
            CreateInput::Created(Ok(Created::New)) => CreateStep::Done(Ok(CreateOutcome::Ours)),
            CreateInput::Created(Ok(Created::Exists)) => CreateStep::ReadBack,
            CreateInput::ReadBack(Ok(Some(found))) if found == self.bytes => {
                CreateStep::Done(Ok(CreateOutcome::Ours))
            }
            CreateInput::ReadBack(Ok(Some(_))) => CreateStep::Done(Ok(CreateOutcome::Foreign)),
            // A concurrent create caused the refusal and failed too, or the object was deleted since.
            CreateInput::ReadBack(Ok(None)) => CreateStep::Pause,
            CreateInput::Created(Err(error)) | CreateInput::ReadBack(Err(error)) if error.is_unknown() => {
                self.last_failure = Some(error);
                CreateStep::Pause
            }
            CreateInput::Created(Err(error)) => self.refused(error),
            // The object under the key is too large to be ours.
            CreateInput::ReadBack(Err(BucketError::Corrupt { .. })) => {
                CreateStep::Done(Ok(CreateOutcome::Foreign))
            }
            // The object exists but cannot be read, so its writer stays unknown.
            CreateInput::ReadBack(Err(error)) => CreateStep::Done(Ok(CreateOutcome::Unknown(error))),
            CreateInput::PauseOver => CreateStep::Create,
        }
    }

    /// A refusal proves that this attempt wrote nothing. After an earlier attempt without a definite answer the result
    /// is still unknown, because that attempt may have written the object.
    fn refused(&self, error: BucketError) -> CreateStep {
        CreateStep::Done(match self.last_failure {
            None => Err(error),
            Some(_) => Ok(CreateOutcome::Unknown(error)),
        })
    }

    /// The caller stops waiting. The last failure, or else `interrupted`, becomes the reason of the unknown result.
    #[must_use]
    pub fn give_up(self, interrupted: BucketError) -> CreateOutcome {
        CreateOutcome::Unknown(self.last_failure.unwrap_or(interrupted))
    }
}

/// Creates an object, and retries with the same bytes under the same key until the answer is definite or `until`
/// resolves (a deadline, a request to stop).
///
/// `bytes` must contain a fresh nonce. Cancelling the call leaves the outcome unknown, like `until`.
///
/// # Errors
/// A definite [`BucketError`]: nothing was created.
pub async fn create_once(
    bucket: &dyn Bucket,
    key: &BucketKey,
    bytes: Bytes,
    until: impl Future<Output = ()> + Send,
) -> Result<CreateOutcome, BucketError> {
    const FIRST_PAUSE: Duration = Duration::from_millis(50);
    const LONGEST_PAUSE: Duration = Duration::from_secs(5);
    let mut pauses = ExponentialBuilder::new()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .without_max_times()
        .build();
    let mut machine = CreateOnce::new(bytes.clone());
    let mut until = pin!(until);
    let mut step = CreateStep::Create;
    loop {
        let answer = async {
            match step {
                CreateStep::Create => Err(CreateInput::Created(bucket.create(key, bytes.clone()).await)),
                CreateStep::ReadBack => Err(CreateInput::ReadBack(bucket.get(key).await)),
                CreateStep::Pause => {
                    tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
                    Err(CreateInput::PauseOver)
                }
                CreateStep::Done(outcome) => Ok(outcome),
            }
        };
        step = match select(pin!(answer), until.as_mut()).await {
            Either::Left((Ok(outcome), _)) => return outcome,
            Either::Left((Err(input), _)) => machine.apply(input),
            Either::Right(((), _)) => {
                let name = key.to_string();
                return Ok(
                    machine.give_up(BucketError::Interrupted { operation: BucketOperation::Create, name })
                );
            }
        };
    }
}
