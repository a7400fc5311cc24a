//! Large values of an open subject, on their way to the bucket and back. The subject goes on meanwhile.

use std::sync::Arc;

use bytes::Bytes;
use dormouse_protocol::data::{GetReply, GetRequest};
use dormouse_protocol::limits::ENVELOPE_BYTES;
use dormouse_protocol::transfer::UploadedValue;
use dormouse_protocol::{ErrorReply, Subject, Term, Timestamp};
use tokio::sync::{Notify, mpsc, oneshot};

use super::Respond;
use super::pipeline::{MAX_IN_FLIGHT, Pipeline, too_many};
use super::serve::Serving;
use crate::api::{Reply, Request, Submission};
use crate::database::Database;
use crate::directory::shutting_down;
use crate::engine::Shared;
use crate::entry::Entry;
use crate::fail_points::{Step as FailPoint, reach};
use crate::keys::{BlobName, SubjectKeys};
use crate::plan::{self, BlobRef, Context, Planned, size};
use crate::values::{self, FetchError, LargeValue, MAX_WHOLE_VALUE_BYTES, Uploaded, Uploader};

/// Reads of one subject whose value was gone when it was asked for, and that wait for their second look.
const MOST_AGAIN: usize = 16;

/// The large values of the write that is planned next.
///
/// A write is planned with stand-ins for its values first: what is refused uploads nothing. Then the values that it
/// would write go to the bucket, and when they are complete it is planned again.
#[derive(Default)]
pub(super) struct Uploads {
    under_way: Option<oneshot::Receiver<Result<Uploaded, ErrorReply>>>,
    complete: Uploaded,
}

/// How far the large values of the next write are.
enum Progress {
    /// On their way: the write waits, and everything behind it.
    UnderWay,
    /// These are complete.
    Complete(Uploaded),
    /// They cannot be brought to the bucket.
    Failed(ErrorReply),
}

impl Uploads {
    /// Takes what there is for the next write.
    fn take(&mut self) -> Progress {
        if let Some(end) = &mut self.under_way {
            match end.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => return Progress::UnderWay,
                Ok(Ok(uploaded)) => self.complete.extend(uploaded),
                Ok(Err(reply)) => {
                    *self = Self::default();
                    return Progress::Failed(reply);
                }
                Err(oneshot::error::TryRecvError::Closed) => {
                    *self = Self::default();
                    return Progress::Failed(ErrorReply::internal("an upload ended without a result"));
                }
            }
            self.under_way = None;
        }
        Progress::Complete(std::mem::take(&mut self.complete))
    }

    /// The write is to be planned once more: nothing is lost of what it has.
    pub(super) fn put_back(&mut self, uploaded: Uploaded) {
        self.complete = uploaded;
    }

    /// Brings `values` to the bucket, beside what the write has already. `waker` is told when that is over.
    ///
    /// # Errors
    /// `overloaded`; then nothing is under way.
    fn begin(
        &mut self,
        shared: &Arc<Shared>,
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
                // The write was turned away. What was written of it goes.
                () = sender.closed() => return,
            };
            reach(FailPoint::ValueUp);
            // Dropped unheard, it deletes what it wrote.
            let _ = sender.send(end);
            waker.notify_one();
        });
        Ok(())
    }

    /// The write is turned away: what was written for it goes.
    fn abandon(&mut self) {
        *self = Self::default();
    }
}

/// What `request` needs in the bucket before it can be planned in earnest, when planning it with stand-ins came to
/// `entry`: the values whose stand-ins are in it.
fn lacking(entry: &Entry, values: Vec<LargeValue>) -> Vec<LargeValue> {
    let named: Vec<BlobName> = values::of_entry(entry).map(|blob| blob.name).collect();
    values
        .into_iter()
        .filter(|(place, value)| named.contains(&values::stand_in(*place, value.len() as u64).name))
        .collect()
}

/// What a request is planned with: the objects that are there, and stand-ins for the others, given by place and size.
fn with_stand_ins(
    there: &[(usize, BlobRef)],
    sizes: impl Iterator<Item = (usize, u64)>,
) -> Vec<(usize, BlobRef)> {
    let lacking = sizes.filter(|(place, _)| there.iter().all(|(at, _)| at != place));
    let stand_ins = lacking.map(|(place, size)| (place, values::stand_in(place, size)));
    there.iter().copied().chain(stand_ins).collect()
}

/// Values that were uploaded before their request: the place of each set, and the object where there is one. They are still
/// the uploads': a set that is refused leaves them to the next.
struct Before(Vec<(usize, UploadedValue, Option<BlobRef>)>);

impl Before {
    fn look(shared: &Shared, subject: &Subject, term: Term, request: &Request) -> Self {
        let look = |(place, value)| (place, value, shared.spool.stored(subject, value, term));
        Self(values::uploaded_before(request).map(look).collect())
    }

    fn there(&self) -> impl Iterator<Item = (usize, BlobRef)> {
        self.0.iter().filter_map(|(place, _, blob)| Some((*place, (*blob)?)))
    }

    fn sizes(&self) -> impl Iterator<Item = (usize, u64)> {
        self.0.iter().map(|(place, value, _)| (*place, value.size))
    }

    /// Whether an entry refers to one that is not there.
    fn is_lacking(&self, entry: &Entry) -> bool {
        let absent = self.0.iter().filter(|(_, _, blob)| blob.is_none());
        let stand_ins: Vec<BlobName> =
            absent.map(|(place, value, _)| values::stand_in(*place, value.size).name).collect();
        !stand_ins.is_empty() && values::of_entry(entry).any(|blob| stand_ins.contains(&blob.name))
    }

    /// Takes those that an entry refers to from their uploads. `false`: one has gone since it was looked at.
    fn take(
        self,
        shared: &Shared,
        subject: &Subject,
        term: Term,
        entry: &Entry,
        into: &mut Uploaded,
    ) -> bool {
        let named: Vec<BlobName> = values::of_entry(entry).map(|blob| blob.name).collect();
        self.0.into_iter().all(|(place, value, blob)| {
            let Some(blob) = blob.filter(|blob| named.contains(&blob.name)) else { return true };
            let taken = shared.spool.use_up(subject, value, term).filter(|stored| stored.blob() == blob);
            taken.map(|stored| into.add(place, stored)).is_some()
        })
    }
}

/// What planning the next write came to.
#[expect(clippy::large_enum_variant, reason = "the largest is the usual one, and none is kept")]
pub(super) enum Attempt {
    /// This, with these large values in the bucket.
    Planned(Planned, Uploaded),
    /// It waits for its large values.
    UnderWay,
}

impl Pipeline {
    /// Plans the next write, and sends its large values ahead.
    pub(super) fn attempt(
        &mut self,
        shared: &Arc<Shared>,
        subject: &Subject,
        database: &Database,
        front: &Submission,
        in_flight: usize,
    ) -> Attempt {
        let refuse = |reply| Attempt::Planned(Planned::Answer(Err(reply)), Uploaded::default());
        let mut uploaded = match self.uploads.take() {
            Progress::UnderWay => return Attempt::UnderWay,
            Progress::Complete(uploaded) => uploaded,
            Progress::Failed(reply) => return refuse(reply),
        };
        let full = in_flight >= MAX_IN_FLIGHT;
        if let Some(refusal) = self.stalled.clone().or_else(|| full.then(too_many)) {
            return refuse(refusal);
        }
        self.bus_bytes = front.max_reply_bytes;
        let values = values::of_request(&front.request);
        let term = database.state().term;
        let before = Before::look(shared, subject, term, &front.request);
        let there: Vec<(usize, BlobRef)> = uploaded.blobs().iter().copied().chain(before.there()).collect();
        let brought = values.iter().map(|(place, value)| (*place, value.len() as u64));
        let context = Context {
            accept_time: Timestamp::from_micros(shared.env.wall_micros()),
            max_message_bytes: front.max_reply_bytes,
            blobs: &with_stand_ins(&there, brought.chain(before.sizes())),
        };
        let planned = plan::plan(&front.request, &self.pending.view(database), context);
        let Planned::Write { entry, .. } = &planned else { return Attempt::Planned(planned, uploaded) };
        let unknown = || ErrorReply::unknown_upload("the value is not here, or not in the bucket yet");
        if before.is_lacking(entry) {
            return refuse(unknown());
        }
        let lacking = lacking(entry, values);
        if lacking.is_empty() {
            if !before.take(shared, subject, term, entry, &mut uploaded) {
                return refuse(unknown());
            }
            return Attempt::Planned(planned, uploaded);
        }
        match self.uploads.begin(shared, subject, term, uploaded, lacking, &self.waker) {
            Ok(()) => Attempt::UnderWay,
            Err(reply) => refuse(reply),
        }
    }

    /// The next write is turned away: so are its large values.
    pub(super) fn abandon_uploads(&mut self) {
        self.uploads.abandon();
    }
}

/// A read whose value was gone when it was asked for: the message may have been replaced meanwhile.
pub(super) struct Again {
    pub(super) submission: Submission,
    /// What was missing.
    pub(super) missing: BlobName,
}

/// The way back for reads whose value was gone. Made when the first value is asked for.
#[derive(Default)]
pub(super) struct Fetches {
    again: Option<(mpsc::Sender<Again>, mpsc::Receiver<Again>)>,
}

impl Fetches {
    /// The next read to be looked at again; never, while there is none. Cancelling the call loses nothing.
    pub(super) async fn again(&mut self) -> Again {
        match &mut self.again {
            Some((_, receiver)) => match receiver.recv().await {
                Some(again) => again,
                // There is a sender beside it.
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    pub(super) fn sender(&mut self) -> mpsc::Sender<Again> {
        self.again.get_or_insert_with(|| mpsc::channel(MOST_AGAIN)).0.clone()
    }
}

/// A value that is to go into an answer.
struct Wanted {
    blob: BlobRef,
    submission: Submission,
    reply: GetReply,
}

impl Serving<'_> {
    /// Answers a read from the file, or sends for the value that is not in it. `missing` was looked for in vain before.
    pub(super) fn answer_read(
        &mut self,
        submission: Submission,
        answer: Result<Reply, ErrorReply>,
        missing: Option<BlobName>,
    ) {
        let wanted = match (&submission.request, answer) {
            (Request::Get(request), Ok(Reply::Get(reply))) if is_single(request) => {
                match elsewhere(self.database(), &reply, submission.max_reply_bytes) {
                    Ok(Some(blob)) => Wanted { blob, submission, reply },
                    Ok(None) => return (submission.respond)(Ok(Reply::Get(reply))),
                    Err(error) => return (submission.respond)(Err(error)),
                }
            }
            (_, answer) => return (submission.respond)(answer),
        };
        if missing == Some(wanted.blob.name) {
            let key = SubjectKeys::new(self.subject).blob(&wanted.blob.name);
            tracing::error!(subject = %self.subject, %key, "the value of a message is missing in the bucket");
            return (wanted.submission.respond)(Err(values::missing(&key)));
        }
        self.fetch(wanted);
    }

    fn fetch(&mut self, wanted: Wanted) {
        let permit = match self.shared.downloads.admit(wanted.blob.size_bytes) {
            Ok(permit) => permit,
            Err(reply) => return (wanted.submission.respond)(Err(reply)),
        };
        let (shared, keys) = (Arc::clone(self.shared), SubjectKeys::new(self.subject));
        let again = self.fetches.sender();
        self.shared.tasks.spawn("fetch a value", async move {
            let _permit = permit;
            let Wanted { blob, submission, reply } = wanted;
            let found = tokio::select! {
                biased;
                () = shared.stopping() => return (submission.respond)(Err(shutting_down())),
                found = shared.downloads.fetch(shared.bucket.as_ref(), &keys, &blob) => found,
            };
            match found {
                Ok(value) => (submission.respond)(Ok(Reply::Get(with_value(reply, value)))),
                Err(FetchError::Missing(_)) => look_again(&again, submission, blob.name).await,
                Err(error) => {
                    if let FetchError::Corrupt { .. } = &error {
                        tracing::error!(%error, "the value of a message is damaged in the bucket");
                    }
                    (submission.respond)(Err(error.into()));
                }
            }
        });
    }
}

pub(super) async fn look_again(again: &mpsc::Sender<Again>, submission: Submission, missing: BlobName) {
    if let Err(mpsc::error::SendError(Again { submission, .. })) =
        again.send(Again { submission, missing }).await
    {
        refuse(submission.respond);
    }
}

/// The subject is not open any more.
fn refuse(respond: Respond) {
    respond(Err(ErrorReply::unavailable("the subject was closed while its value was read: ask again")));
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

/// Whether a get asks for one message. Of several, large values are announced by size.
const fn is_single(request: &GetRequest) -> bool {
    request.keys.is_none() && request.seqs.is_none()
}

/// The object that holds the value of the one message in `reply`, if it has one and the value fits the answer.
fn elsewhere(
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
