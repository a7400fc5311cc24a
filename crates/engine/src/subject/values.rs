//! Uploads and downloads of an open subject's large values. The subject continues to serve meanwhile.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use dormouse_format::entry::LogEntry;
use dormouse_format::keys::{BlobName, SubjectKeys};
use dormouse_format::record::BlobRef;
use dormouse_protocol::data::{GetReply, GetRequest};
use dormouse_protocol::limits::ENVELOPE_BYTES;
use dormouse_protocol::transfer::UploadedValue;
use dormouse_protocol::{ErrorReply, Subject, Term, Timestamp};
use dormouse_runtime::fail_point;
use dormouse_subject_state::database::{Database, Slice};
use dormouse_subject_state::plan::{PlanContext, PlanProgress, PlanResult, size};
use tokio::sync::{Notify, mpsc, oneshot};

use super::Respond;
use super::pipeline::{MAX_IN_FLIGHT, Pipeline, too_many};
use super::planning::{ChangeUnderWay, RequestPlan};
use super::serve::OpenSubject;
use crate::api::{SubjectReply, SubjectRequest, Submission};
use crate::engine::EngineShared;
use crate::subject_table::shutting_down;
use crate::values::{self, FetchError, LargeValue, MAX_WHOLE_VALUE_BYTES, Uploaded, Uploader};

/// Maximum number of a subject's reads that wait for a retry because their blob was missing.
const MAX_READ_RETRIES: usize = 16;

/// The large values of the write that is planned next.
///
/// A write is first planned with placeholders for its values, so a rejected write uploads nothing. Then the
/// values that it would write are uploaded, and once they are complete it is planned again.
#[derive(Default)]
pub(super) struct ValueUploads {
    under_way: Option<oneshot::Receiver<Result<Uploaded, ErrorReply>>>,
    complete: Uploaded,
}

/// Upload progress of the next write's large values.
enum UploadProgress {
    /// The upload is running: the write waits, and everything behind it.
    UnderWay,
    /// These blobs are complete.
    Complete(Uploaded),
    /// The upload has failed.
    Failed(ErrorReply),
}

impl ValueUploads {
    /// Takes the blobs uploaded for the next write.
    fn take(&mut self) -> UploadProgress {
        if let Some(end) = &mut self.under_way {
            match end.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => return UploadProgress::UnderWay,
                Ok(Ok(uploaded)) => self.complete.extend(uploaded),
                Ok(Err(reply)) => {
                    *self = Self::default();
                    return UploadProgress::Failed(reply);
                }
                Err(oneshot::error::TryRecvError::Closed) => {
                    *self = Self::default();
                    return UploadProgress::Failed(ErrorReply::internal("an upload ended without a result"));
                }
            }
            self.under_way = None;
        }
        UploadProgress::Complete(std::mem::take(&mut self.complete))
    }

    /// Keeps the write's blobs for its next planning.
    pub(super) fn put_back(&mut self, uploaded: Uploaded) {
        self.complete = uploaded;
    }

    /// Uploads `values`, in addition to the blobs that the write already has. `waker` is notified when the
    /// upload ends.
    ///
    /// # Errors
    /// `overloaded`; then no upload is running.
    fn begin(
        &mut self,
        shared: &Arc<EngineShared>,
        subject: &Subject,
        term: Term,
        uploaded: Uploaded,
        values: Vec<LargeValue>,
        waker: &Arc<Notify>,
    ) -> Result<(), ErrorReply> {
        let bytes = values.iter().map(|(_, value)| value.len() as u64).sum();
        let permit = shared.uploads.admit(bytes)?;
        let uploader = Uploader {
            bucket: Arc::clone(&shared.bucket),
            env: shared.env.clone(),
            garbage: shared.garbage.clone(),
            keys: SubjectKeys::new(subject),
            term,
        };
        let (mut sender, receiver) = oneshot::channel();
        let (shared, waker) = (Arc::clone(shared), Arc::clone(waker));
        self.put_back(uploaded);
        self.under_way = Some(receiver);
        Arc::clone(&shared).tasks.spawn("upload a value", async move {
            let _permit = permit;
            let end = tokio::select! {
                biased;
                end = uploader.upload(&shared.uploads, values) => end,
                // The write was rejected: its blobs are deleted.
                () = sender.closed() => return,
            };
            fail_point!(BlobUploaded);
            // If the receiver is gone, dropping the result deletes its blobs.
            let _ = sender.send(end);
            waker.notify_one();
        });
        Ok(())
    }

    /// The write is rejected: its blobs are deleted.
    pub(super) fn abandon(&mut self) {
        *self = Self::default();
    }
}

/// The values that must be uploaded before a write can be logged: those whose placeholders are in `entry`,
/// the result of planning with placeholders.
fn to_upload(entry: &LogEntry, values: Vec<LargeValue>) -> Vec<LargeValue> {
    let named: HashSet<BlobName> = values::blobs_of_entry(entry).map(|blob| blob.name).collect();
    values
        .into_iter()
        .filter(|(index, value)| named.contains(&values::placeholder(*index, value.len() as u64).name))
        .collect()
}

/// The blobs to plan a request with: existing objects, and placeholders for the others, given by index and
/// size, in order of index.
fn with_placeholders(
    stored: &[(usize, BlobRef)],
    sizes: impl Iterator<Item = (usize, u64)>,
) -> Vec<(usize, BlobRef)> {
    let known: HashSet<usize> = stored.iter().map(|(at, _)| *at).collect();
    let to_upload = sizes.filter(|(index, _)| !known.contains(index));
    let placeholders = to_upload.map(|(index, size)| (index, values::placeholder(index, size)));
    let mut blobs: Vec<_> = stored.iter().copied().chain(placeholders).collect();
    blobs.sort_unstable_by_key(|(index, _)| *index);
    blobs
}

/// The large values of a request that is being planned.
pub(super) struct ValuesOfRequest {
    /// Those in the bucket, which belong to the request.
    pub(super) uploaded: Uploaded,
    /// Those that the request carries.
    carried: Vec<LargeValue>,
    /// Those that were uploaded before it.
    before: CommittedUploads,
    /// The blobs to plan with, in order of index.
    blobs: Vec<(usize, BlobRef)>,
}

impl ValuesOfRequest {
    fn find(
        shared: &EngineShared,
        subject: &Subject,
        term: Term,
        request: &SubjectRequest,
        uploaded: Uploaded,
    ) -> Self {
        let carried = values::large_values(request);
        let before = CommittedUploads::find(shared, subject, term, request);
        let stored: Vec<(usize, BlobRef)> = uploaded.blobs().iter().copied().chain(before.stored()).collect();
        let sizes = carried.iter().map(|(index, value)| (*index, value.len() as u64));
        let blobs = with_placeholders(&stored, sizes.chain(before.sizes()));
        Self { uploaded, carried, before, blobs }
    }
}

/// Values that were uploaded before their request: the index of each set, and the object if there is one.
/// They still belong to their uploads: a rejected set leaves them for the next set.
struct CommittedUploads(Vec<(usize, UploadedValue, Option<BlobRef>)>);

impl CommittedUploads {
    fn find(shared: &EngineShared, subject: &Subject, term: Term, request: &SubjectRequest) -> Self {
        let find = |(index, value)| (index, value, shared.spool.stored(subject, value, term));
        Self(values::uploaded_before(request).map(find).collect())
    }

    fn stored(&self) -> impl Iterator<Item = (usize, BlobRef)> {
        self.0.iter().filter_map(|(index, _, blob)| Some((*index, (*blob)?)))
    }

    fn sizes(&self) -> impl Iterator<Item = (usize, u64)> {
        self.0.iter().map(|(index, value, _)| (*index, value.size))
    }

    /// Whether an entry refers to a missing object.
    fn refers_to_missing(&self, entry: &LogEntry) -> bool {
        let absent = self.0.iter().filter(|(_, _, blob)| blob.is_none());
        let placeholders: HashSet<BlobName> =
            absent.map(|(index, value, _)| values::placeholder(*index, value.size).name).collect();
        !placeholders.is_empty()
            && values::blobs_of_entry(entry).any(|blob| placeholders.contains(&blob.name))
    }

    /// Takes the objects that an entry refers to from their uploads. Returns `false` if one has disappeared
    /// since the lookup.
    fn take(
        self,
        shared: &EngineShared,
        subject: &Subject,
        term: Term,
        entry: &LogEntry,
        into: &mut Uploaded,
    ) -> bool {
        let named: HashSet<BlobName> = values::blobs_of_entry(entry).map(|blob| blob.name).collect();
        self.0.into_iter().all(|(index, value, blob)| {
            let Some(blob) = blob.filter(|blob| named.contains(&blob.name)) else { return true };
            let taken = shared.spool.take_stored(subject, value, term).filter(|stored| stored.blob() == blob);
            taken.map(|stored| into.add(index, stored)).is_some()
        })
    }
}

/// The result of planning the next write.
#[expect(clippy::large_enum_variant, reason = "the largest is the usual one, and none is kept")]
pub(super) enum PlanAttempt {
    /// The plan's result, with these blobs in the bucket.
    Planned(PlanResult, Uploaded),
    /// It waits for its large values.
    UntilUploaded,
    /// The slice is spent, and planning continues with the next.
    UntilNextSlice,
}

impl Pipeline {
    /// Plans the next slice of the next write. Once it is planned, starts the upload of its large values.
    pub(super) fn attempt(
        &mut self,
        shared: &Arc<EngineShared>,
        subject: &Subject,
        database: &Database,
        front: &Submission,
        in_flight: usize,
        slice: &mut Slice,
    ) -> PlanAttempt {
        let refuse = |reply| PlanAttempt::Planned(PlanResult::Answer(Err(reply)), Uploaded::default());
        let term = database.state().term;
        let mut plan = match std::mem::take(&mut self.under_way) {
            ChangeUnderWay::Request(plan) => *plan,
            _ => match self.uploads.take() {
                UploadProgress::UnderWay => return PlanAttempt::UntilUploaded,
                UploadProgress::Complete(uploaded) => RequestPlan {
                    progress: PlanProgress::new(),
                    values: ValuesOfRequest::find(shared, subject, term, &front.request, uploaded),
                },
                UploadProgress::Failed(reply) => return refuse(reply),
            },
        };
        let full = in_flight >= MAX_IN_FLIGHT;
        if let Some(refusal) = self.stalled.clone().or_else(|| full.then(too_many)) {
            return refuse(refusal);
        }
        self.bus_bytes = front.max_reply_bytes;
        let context = PlanContext {
            accept_time: Timestamp::from_micros(shared.env.wall_micros()),
            max_message_bytes: front.max_reply_bytes,
            blobs: &plan.values.blobs,
        };
        let view = self.pending.view(database);
        let Some(planned) = plan.progress.step(&front.request, &view, context, slice) else {
            self.under_way = ChangeUnderWay::Request(Box::new(plan));
            return PlanAttempt::UntilNextSlice;
        };
        let ValuesOfRequest { mut uploaded, carried, before, .. } = plan.values;
        let PlanResult::Write { entry, .. } = &planned else {
            return PlanAttempt::Planned(planned, uploaded);
        };
        if let SubjectRequest::Set(_) = &front.request
            && let Err(refusal) = shared.tenants.check_store(self.tenant())
        {
            return refuse(refusal);
        }
        let unknown =
            || ErrorReply::unknown_upload("the value is not on this server, or not in the bucket yet");
        if before.refers_to_missing(entry) {
            return refuse(unknown());
        }
        let to_upload = to_upload(entry, carried);
        if to_upload.is_empty() {
            if !before.take(shared, subject, term, entry, &mut uploaded) {
                return refuse(unknown());
            }
            return PlanAttempt::Planned(planned, uploaded);
        }
        match self.uploads.begin(shared, subject, term, uploaded, to_upload, &self.waker) {
            Ok(()) => PlanAttempt::UntilUploaded,
            Err(reply) => refuse(reply),
        }
    }
}

/// A read whose blob was missing in the bucket: the message may have been replaced meanwhile.
pub(super) struct RetriedRead {
    pub(super) submission: Submission,
    /// The missing blob.
    pub(super) missing: BlobName,
}

/// Returns reads whose blob was missing. The channel is created with the first fetch.
#[derive(Default)]
pub(super) struct Fetches {
    again: Option<(mpsc::Sender<RetriedRead>, mpsc::Receiver<RetriedRead>)>,
}

impl Fetches {
    /// The next read to retry; pends while there is none. Cancelling the call loses nothing.
    pub(super) async fn next_retry(&mut self) -> RetriedRead {
        match &mut self.again {
            Some((_, receiver)) => match receiver.recv().await {
                Some(again) => again,
                // Does not happen: a sender is kept beside the receiver.
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    pub(super) fn sender(&mut self) -> mpsc::Sender<RetriedRead> {
        self.again.get_or_insert_with(|| mpsc::channel(MAX_READ_RETRIES)).0.clone()
    }
}

/// A value to fetch for a reply.
struct ValueFetch {
    blob: BlobRef,
    submission: Submission,
    reply: GetReply,
}

impl OpenSubject<'_> {
    /// Replies to a read from the file, or fetches the value that is not in it. `missing` is the blob that an
    /// earlier attempt did not find.
    pub(super) fn answer_read(
        &mut self,
        submission: Submission,
        answer: Result<SubjectReply, ErrorReply>,
        missing: Option<BlobName>,
    ) {
        let fetch = match (&submission.request, answer) {
            (SubjectRequest::Get(request), Ok(SubjectReply::Get(reply))) if is_single(request) => {
                match blob_to_fetch(self.database(), &reply, submission.max_reply_bytes) {
                    Ok(Some(blob)) => ValueFetch { blob, submission, reply },
                    Ok(None) => return (submission.respond)(Ok(SubjectReply::Get(reply))),
                    Err(error) => return (submission.respond)(Err(error)),
                }
            }
            (_, answer) => return (submission.respond)(answer),
        };
        if missing == Some(fetch.blob.name) {
            let key = SubjectKeys::new(self.subject).blob(&fetch.blob.name);
            tracing::error!(subject = %self.subject, %key, "blob missing in bucket");
            return (fetch.submission.respond)(Err(values::missing(&key)));
        }
        self.fetch(fetch);
    }

    fn fetch(&mut self, fetch: ValueFetch) {
        let permit = match self.shared.downloads.admit(fetch.blob.size_bytes) {
            Ok(permit) => permit,
            Err(reply) => return (fetch.submission.respond)(Err(reply)),
        };
        let (shared, keys) = (Arc::clone(self.shared), SubjectKeys::new(self.subject));
        let again = self.fetches.sender();
        self.shared.tasks.spawn("fetch a value", async move {
            let _permit = permit;
            let ValueFetch { blob, submission, reply } = fetch;
            let found = tokio::select! {
                biased;
                () = shared.stopping() => return (submission.respond)(Err(shutting_down())),
                found = shared.downloads.fetch(shared.bucket.as_ref(), &keys, &blob) => found,
            };
            match found {
                Ok(value) => (submission.respond)(Ok(SubjectReply::Get(with_value(reply, value)))),
                Err(FetchError::Missing(_)) => send_retry(&again, submission, blob.name).await,
                Err(error) => {
                    if let FetchError::Corrupt { .. } = &error {
                        tracing::error!(%error, "blob damaged in bucket");
                    }
                    (submission.respond)(Err(error.into()));
                }
            }
        });
    }
}

pub(super) async fn send_retry(again: &mpsc::Sender<RetriedRead>, submission: Submission, missing: BlobName) {
    if let Err(mpsc::error::SendError(RetriedRead { submission, .. })) =
        again.send(RetriedRead { submission, missing }).await
    {
        refuse(submission.respond);
    }
}

/// The subject is no longer open.
fn refuse(respond: Respond) {
    respond(Err(ErrorReply::unavailable("the subject was closed while its value was read, retry")));
}

impl Drop for Fetches {
    fn drop(&mut self) {
        let Some((_, receiver)) = &mut self.again else { return };
        receiver.close();
        while let Ok(again) = receiver.try_recv() {
            refuse(again.submission.respond);
        }
    }
}

/// Whether a get asks for one message. A get of several messages returns only the size of large values.
const fn is_single(request: &GetRequest) -> bool {
    request.keys.is_none() && request.seqs.is_none()
}

/// The blob of the single message in `reply`, if it has one and its value fits the reply.
fn blob_to_fetch(
    database: &Database,
    reply: &GetReply,
    max_reply_bytes: usize,
) -> Result<Option<BlobRef>, ErrorReply> {
    let Some(message) = reply.messages.first().filter(|message| message.value_omitted) else {
        return Ok(None);
    };
    let Some(blob) = database.blob_at(message.seq)? else { return Ok(None) };
    let value_bytes = usize::try_from(blob.size_bytes).unwrap_or(usize::MAX);
    if value_bytes > MAX_WHOLE_VALUE_BYTES {
        return Ok(None);
    }
    let key_bytes = message.key.as_ref().map_or(0, String::len);
    let bytes = size::message_bytes(key_bytes, value_bytes, &message.headers);
    Ok((bytes <= max_reply_bytes.saturating_sub(ENVELOPE_BYTES)).then_some(blob))
}

fn with_value(mut reply: GetReply, value: Bytes) -> GetReply {
    if let Some(message) = reply.messages.first_mut() {
        message.value = Some(value);
        message.value_omitted = false;
    }
    reply
}
