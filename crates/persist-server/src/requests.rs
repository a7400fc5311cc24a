//! The path of a request: from its route and bytes to the engine, and the reply back.
//!
//! No request waits here or gets a task of its own: one task takes deliveries in bursts, and the subject's task puts
//! the reply directly into the reply queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use dormouse_bus::{Bus, EndpointStats, Incoming, Requests};
use dormouse_engine::api::{SubjectReply, SubjectRequest, Submission, TenantId};
use dormouse_protocol::data::{FlushRequest, InfoRequest, SetRequest};
use dormouse_protocol::deadline::time_left;
use dormouse_protocol::limits::ENVELOPE_BYTES;
use dormouse_protocol::{ErrorReply, Op, OverloadCause, Prefix, ServerName, Subject, decode_request, encode};
use dormouse_runtime::Stop;

/// Maximum number of requests that the task takes at a time.
const BURST: usize = 256;

/// Receiver of requests.
pub trait RequestSink: Send + Sync + 'static {
    /// Takes a request on a subject. Its reply comes through [`Submission::respond`].
    fn submit(&self, subject: &Subject, submission: Submission);
}

/// Limits of the concurrent requests.
#[derive(Debug)]
pub struct RequestBudget {
    max_requests: usize,
    max_bytes: usize,
    requests: AtomicUsize,
    bytes: AtomicUsize,
    refused: AtomicU64,
}

impl RequestBudget {
    /// Limits unanswered requests to `max_requests` requests and `max_bytes` bytes.
    #[must_use]
    pub fn new(max_requests: usize, max_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            max_requests,
            max_bytes,
            requests: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
        })
    }

    /// Number of unanswered requests.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Number of requests rejected since the start because the budget was used up.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn take(self: &Arc<Self>, bytes: usize) -> Result<RequestPermit, ErrorReply> {
        // Created first, so that every exit returns the budget.
        let permit = RequestPermit { budget: Arc::clone(self), bytes };
        let requests = self.requests.fetch_add(1, Ordering::Relaxed);
        let held = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if requests < self.max_requests && held + bytes <= self.max_bytes {
            return Ok(permit);
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        Err(OverloadCause::RequestsInFlight.into())
    }
}

/// One request's share of the budget. A drop returns it.
struct RequestPermit {
    budget: Arc<RequestBudget>,
    bytes: usize,
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.budget.requests.fetch_sub(1, Ordering::Relaxed);
        self.budget.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Statistics of each operation.
#[derive(Debug, Clone, Default)]
pub struct OpStats([Arc<EndpointStats>; Op::ALL.len()]);

impl OpStats {
    /// The statistics of `op`.
    #[must_use]
    pub fn of(&self, op: Op) -> &Arc<EndpointStats> {
        // `Op::ALL` lists the variants in the order of their declaration.
        &self.0[op as usize]
    }

    /// Number of answered requests, of all operations.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.0.iter().map(|stats| stats.requests()).sum()
    }
}

/// Takes the requests of one server and submits them to the engine.
pub struct RequestIntake<E> {
    /// The first tokens of every route.
    pub prefix: Prefix,
    /// The server.
    pub name: ServerName,
    /// The bus, for its payload limit.
    pub bus: Arc<dyn Bus>,
    /// Receiver of the requests.
    pub engine: E,
    /// Limits of the concurrent requests.
    pub budget: Arc<RequestBudget>,
    /// Statistics of each operation.
    pub stats: OpStats,
}

impl<E: RequestSink> RequestIntake<E> {
    /// Takes requests until `stop` is given. Then it unsubscribes, and the requests that have arrived still get a
    /// reply.
    ///
    /// When `closed` is given, requests are rejected with `not_owner`. From this reply, unlike from silence, a caller
    /// knows that its request had no effect and where to send it.
    pub async fn run(self, mut requests: Requests, closed: Stop, stop: Stop) {
        let mut burst = Vec::with_capacity(BURST);
        let mut subscribed = true;
        loop {
            tokio::select! {
                biased;
                // Before the requests, which may arrive without a pause.
                () = stop.requested(), if subscribed => {
                    subscribed = false;
                    requests.unsubscribe();
                }
                taken = requests.next_many(&mut burst, BURST) => {
                    if taken == 0 {
                        return;
                    }
                }
            }
            if closed.is_requested() {
                burst.drain(..).for_each(|incoming| incoming.responder.error(&closed_error()));
                continue;
            }
            let max_reply_bytes = self.bus.max_payload().saturating_sub(ENVELOPE_BYTES);
            for incoming in burst.drain(..) {
                self.take(incoming, max_reply_bytes);
            }
        }
    }

    fn take(&self, incoming: Incoming, max_reply_bytes: usize) {
        let Incoming { route, caller, payload, headers, responder } = incoming;
        let route = match self.prefix.parse_server(&self.name, route.as_str()) {
            Ok(route) => route,
            Err(error) => return responder.error(&ErrorReply::bad_request(error.to_string())),
        };
        let mut responder = responder.counted_in(self.stats.of(route.op));
        if route.op.changes() {
            responder = responder.changing();
        }
        let received = responder.received();
        let taken = caller
            .may_use(&route.subject)
            .and_then(|()| time_left(&headers))
            .and_then(|left| Ok((received.saturating_add(left), self.budget.take(payload.len())?)))
            .and_then(|(deadline, permit)| Ok((deadline, permit, read(route.op, &payload)?)));
        let (deadline, permit, request) = match taken {
            Ok(taken) => taken,
            Err(error) => return responder.error(&error),
        };
        let respond = Box::new(move |outcome: Result<SubjectReply, ErrorReply>| {
            match outcome.and_then(|reply| write(&reply)) {
                Ok(payload) => responder.ok(payload),
                Err(error) => responder.error(&error),
            }
            drop(permit);
        });
        self.engine.submit(
            &route.subject,
            Submission { tenant: TenantId::SHARED, deadline, request, max_reply_bytes, respond },
        );
    }
}

fn closed_error() -> ErrorReply {
    ErrorReply { message: "this server is shutting down".to_owned(), ..ErrorReply::not_owner(None) }
}

/// The request in `payload`.
fn read(op: Op, payload: &[u8]) -> Result<SubjectRequest, ErrorReply> {
    Ok(match op {
        Op::Set => SubjectRequest::Set(without_uploads(decode_request(payload)?)?),
        Op::UploadCommit => SubjectRequest::Set(decode_request(payload)?),
        Op::UploadBegin => SubjectRequest::UploadBegin(decode_request(payload)?),
        Op::UploadChunk => SubjectRequest::UploadChunk(decode_request(payload)?),
        Op::UploadFinish => SubjectRequest::UploadFinish(decode_request(payload)?),
        Op::UploadCancel => SubjectRequest::UploadCancel(decode_request(payload)?),
        Op::GetChunk => SubjectRequest::GetChunk(decode_request(payload)?),
        Op::Get => SubjectRequest::Get(decode_request(payload)?),
        Op::GetAll => SubjectRequest::GetAll(decode_request(payload)?),
        Op::Keys => SubjectRequest::Keys(decode_request(payload)?),
        Op::Delete => SubjectRequest::Delete(decode_request(payload)?),
        Op::DeleteAll => SubjectRequest::DeleteAll(decode_request(payload)?),
        Op::Configure => SubjectRequest::Configure(decode_request(payload)?),
        Op::Info => decode_request::<InfoRequest>(payload).map(|_| SubjectRequest::Info)?,
        Op::Flush => decode_request::<FlushRequest>(payload).map(|_| SubjectRequest::Flush)?,
        Op::Destroy => SubjectRequest::Destroy(decode_request(payload)?),
        Op::Changes => SubjectRequest::Changes(decode_request(payload)?),
    })
}

/// A server without support for uploads would read such a set as a set of the null value, so it has its own route.
fn without_uploads(request: SetRequest) -> Result<SetRequest, ErrorReply> {
    if request.sets.iter().any(|item| item.uploaded.is_some()) {
        return Err(ErrorReply::bad_request("a set of an uploaded value needs upload_commit"));
    }
    Ok(request)
}

/// The encoded reply.
fn write(reply: &SubjectReply) -> Result<Bytes, ErrorReply> {
    match reply {
        SubjectReply::Set(reply) => encode(reply),
        SubjectReply::Get(reply) => encode(reply),
        SubjectReply::GetAll(reply) => encode(reply),
        SubjectReply::Keys(reply) => encode(reply),
        SubjectReply::Delete(reply) => encode(reply),
        SubjectReply::DeleteAll(reply) => encode(reply),
        SubjectReply::Changes(reply) => encode(reply),
        SubjectReply::Info(reply) => encode(reply),
        SubjectReply::Configure(reply) => encode(reply),
        SubjectReply::Flush(reply) => encode(reply),
        SubjectReply::Destroy(reply) => encode(reply),
        SubjectReply::Upload(reply) => encode(reply),
        SubjectReply::Chunk(reply) => encode(reply),
        // Only the server itself sends it, and gets the reply from the engine.
        SubjectReply::HandOver(_) => {
            return Err(ErrorReply::internal("handover request received over the wire"));
        }
    }
    .map_err(ErrorReply::internal)
}

#[cfg(test)]
mod tests;
