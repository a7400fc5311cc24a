//! The path of a request: from its route and bytes to the engine, and the reply back.
//!
//! No request gets a task of its own: one task takes deliveries in bursts, and the subject's task puts the reply directly
//! into the reply queue.
//!
//! ```text
//! bus ──> admit: route, size, share ──> one queue per tenant ──> serve: decode, submit to the engine
//!             │ refused: an error, or dropped     in turn, in bounded passes
//! ```
//!
//! Between two passes the task yields, so that the subjects work on what they have. A flood of one tenant therefore
//! delays a request of another by at most one turn.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{Bus, EndpointStats, Incoming, Requests, Responder};
use dormouse_engine::api::{SubjectReply, SubjectRequest, Submission, TenantId};
use dormouse_metrics::{LongestSteps, StepKind};
use dormouse_protocol::data::{FlushRequest, InfoRequest, SetRequest};
use dormouse_protocol::deadline::{time_left, time_ran_out};
use dormouse_protocol::limits::ENVELOPE_BYTES;
use dormouse_protocol::tenant::TenantLimits;
use dormouse_protocol::{ErrorReply, Op, Prefix, ServerName, Subject, decode_request, encode};
use dormouse_runtime::fair_queue::FairQueue;
use dormouse_runtime::{Env, Stop};

use crate::admission::{Admission, Refusal, RequestPermit};
use crate::progress::DataProgress;

/// Maximum number of requests that the task admits in a pass. It is above [`SERVED`]: requests above a share must not
/// queue before the admission.
const ARRIVALS: usize = 2_048;

/// Maximum number of requests that the task decodes and submits in a pass.
const SERVED: usize = 256;

/// A pass ends after this many bytes of request bodies.
const SERVED_BYTES: usize = 1_024 * 1_024;

/// Bytes of request bodies in one turn of a tenant.
const TURN_BYTES: u64 = 64 * 1_024;

/// The least that a request counts in its turn, in bytes.
const LEAST_COST: u64 = 1_024;

/// Receiver of requests.
pub trait RequestSink: Send + Sync + 'static {
    /// Takes a request on a subject. Its reply comes through [`Submission::respond`].
    fn submit(&self, subject: &Subject, submission: Submission);

    /// Takes the limits that an operator has set for a tenant.
    fn set_tenant_limits(&self, tenant: TenantId, limits: TenantLimits);
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
    /// Decides which requests are served.
    pub admission: Arc<Admission>,
    /// Statistics of each operation.
    pub stats: OpStats,
    /// Learns of each pass.
    pub progress: Arc<DataProgress>,
    /// The longest steps, and their clock.
    pub steps: (LongestSteps, Env),
}

/// An admitted request that waits for its turn, encoded.
struct QueuedRequest {
    subject: Subject,
    op: Op,
    payload: Bytes,
    received: Duration,
    deadline: Duration,
    permit: RequestPermit,
    responder: Responder,
}

/// The admitted requests, by tenant.
type TenantQueues = FairQueue<TenantId, QueuedRequest>;

impl<E: RequestSink> RequestIntake<E> {
    /// Takes requests until `stop` is given. Then it unsubscribes, and the requests that have arrived still get a
    /// reply.
    ///
    /// When `closed` is given, requests are rejected with `not_owner`. From this reply, unlike from silence, a caller
    /// knows that its request had no effect and where to send it.
    pub async fn run(self, mut requests: Requests, closed: Stop, stop: Stop) {
        let mut burst = Vec::new();
        let mut queues = TenantQueues::new(TURN_BYTES);
        let (mut subscribed, mut is_open) = (true, true);
        let _attached = self.progress.attach_intake();
        self.progress.advance();
        while is_open || !queues.is_empty() {
            tokio::select! {
                biased;
                // Before the requests, which may arrive without a pause.
                () = stop.requested(), if subscribed => {
                    subscribed = false;
                    requests.unsubscribe();
                }
                // Before the requests, too.
                () = self.progress.pass_due() => {}
                taken = requests.next_many(&mut burst, ARRIVALS), if is_open => is_open = taken > 0,
                () = std::future::ready(()), if !queues.is_empty() => {}
            }
            if closed.is_requested() {
                let queued = queues.drain().map(|(_, request)| request.responder);
                let arrived = burst.drain(..).map(|incoming| incoming.responder);
                queued.chain(arrived).for_each(|responder| responder.error(&closed_error()));
                self.progress.advance();
                continue;
            }
            let (steps, env) = &self.steps;
            let started = burst.first().map_or_else(|| env.boot(), |taken| taken.responder.received());
            let step = steps.start_at(env, StepKind::Intake, started);
            self.admission.apply_limits();
            for incoming in burst.drain(..) {
                self.admit(incoming, &mut queues);
            }
            // Before the first request of a tenant that has limits.
            for (tenant, limits) in self.admission.take_changed_limits() {
                self.engine.set_tenant_limits(tenant, limits);
            }
            self.serve_turns(&mut queues);
            self.progress.advance_at(step.end());
            if !queues.is_empty() {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Queues a request in its tenant's queue, refuses it or drops it. Does not read its body.
    fn admit(&self, incoming: Incoming, queues: &mut TenantQueues) {
        let Incoming { route, caller, payload, headers, responder } = incoming;
        let route = match self.prefix.parse_server(&self.name, route.as_str()) {
            Ok(route) => route,
            Err(error) => {
                let refusal = self.admission.refuse(None, ErrorReply::bad_request(error.to_string()));
                return reply_refusal(responder, refusal);
            }
        };
        let (subject, op) = (route.subject, route.op);
        let mut responder = responder.counted_in(self.stats.of(op));
        if op.changes() {
            responder = responder.changing();
        }
        let left = match caller.may_use(&subject).and_then(|()| time_left(&headers)) {
            Ok(left) => left,
            Err(error) => {
                let refusal = self.admission.refuse(Some((&caller, &subject)), error);
                return reply_refusal(responder, refusal);
            }
        };
        let permit = match self.admission.admit(&caller, &subject, op, payload.len(), responder.received()) {
            Ok(permit) => permit,
            Err(refusal) => return reply_refusal(responder, refusal),
        };
        let received = responder.received();
        let deadline = received.saturating_add(left);
        let cost = (payload.len() as u64).max(LEAST_COST);
        let tenant = permit.tenant();
        let responder = responder.in_turn_of(tenant.get());
        queues.push(
            tenant,
            cost,
            QueuedRequest { subject, op, payload, received, deadline, permit, responder },
        );
    }

    /// One pass over the queues.
    fn serve_turns(&self, queues: &mut TenantQueues) {
        let max_reply_bytes = self.bus.max_payload().saturating_sub(ENVELOPE_BYTES);
        let mut bytes = 0;
        for _ in 0..SERVED {
            let Some((_, request)) = queues.pop() else { return };
            bytes += request.payload.len();
            self.serve(request, max_reply_bytes);
            if bytes >= SERVED_BYTES {
                return;
            }
        }
    }

    fn serve(&self, queued: QueuedRequest, max_reply_bytes: usize) {
        let QueuedRequest { subject, op, payload, received, deadline, mut permit, responder } = queued;
        // The engine decides about a change: another copy of it may be planned.
        if !op.changes() && self.admission.is_expired(deadline) {
            self.admission.metrics().expired.fetch_add(1, Ordering::Relaxed);
            return responder.error(&time_ran_out());
        }
        let taken = read(op, &payload).and_then(|request| {
            permit.charge_items(items(&request))?;
            Ok(request)
        });
        let request = match taken {
            Ok(request) => request,
            Err(error) => return responder.error(&error),
        };
        let tenant = permit.tenant();
        // The request counts until its reply is sent: a caller that reads slowly must not fill the queue of replies.
        let responder = responder.hold(permit);
        let respond = Box::new(move |outcome: Result<SubjectReply, ErrorReply>| {
            match outcome.and_then(|reply| write(&reply)) {
                Ok(payload) => responder.ok(payload),
                Err(error) => responder.error(&error),
            }
        });
        let submission = Submission { tenant, deadline, received, request, max_reply_bytes, respond };
        self.engine.submit(&subject, submission);
    }
}

/// Number of items that a request names or carries, at least one.
fn items(request: &SubjectRequest) -> usize {
    let items = match request {
        SubjectRequest::Set(request) => request.sets.len(),
        SubjectRequest::Delete(request) => request.seqs.len() + request.keys.len(),
        SubjectRequest::Get(request) => {
            request.keys.as_ref().map_or(0, Vec::len) + request.seqs.as_ref().map_or(0, Vec::len)
        }
        _ => 1,
    };
    items.max(1)
}

/// Sends the error of a refusal, if it gets one.
fn reply_refusal(responder: Responder, refusal: Refusal) {
    match refusal {
        Refusal::Reply(error) => responder.error(&error),
        Refusal::Drop => {}
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
