//! The way of a request: from its route and bytes to the engine, and the answer back.
//!
//! Nothing here waits and nothing is spawned for a request: one task takes deliveries in bursts, and the answer goes
//! from the subject's task straight into the queue of replies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use dormouse_bus::{Bus, EndpointStats, Incoming, Requests};
use dormouse_protocol::data::{FlushRequest, InfoRequest, SetRequest};
use dormouse_protocol::limits::ENVELOPE_BYTES;
use dormouse_protocol::{ErrorReply, Op, Prefix, ServerName, Subject, decode_request, encode};
use dormouse_runtime::Stop;
use dormouse_storage::api::{Reply, Request, Submission};

/// How many requests are taken per wake-up.
const BURST: usize = 256;
/// What a refused caller is told to wait, in milliseconds.
const RETRY_AFTER_MS: u64 = 100;

/// Where requests go.
pub trait Submit: Send + Sync + 'static {
    /// Takes a request on a subject; its answer comes through [`Submission::respond`].
    fn submit(&self, subject: &Subject, submission: Submission);
}

/// How much work is taken on at once.
#[derive(Debug)]
pub struct Budget {
    most_requests: usize,
    most_bytes: usize,
    requests: AtomicUsize,
    bytes: AtomicUsize,
    refused: AtomicU64,
}

impl Budget {
    /// At most `most_requests` requests and `most_bytes` bytes of them unanswered at a time.
    #[must_use]
    pub fn new(most_requests: usize, most_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            most_requests,
            most_bytes,
            requests: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
        })
    }

    /// How many requests are unanswered now.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// How many requests were refused since the start because the budget was spent.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn take(self: &Arc<Self>, bytes: usize) -> Result<Permit, ErrorReply> {
        // Made first, so that whatever happens next gives back what was taken.
        let permit = Permit { budget: Arc::clone(self), bytes };
        let requests = self.requests.fetch_add(1, Ordering::Relaxed);
        let held = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if requests < self.most_requests && held + bytes <= self.most_bytes {
            return Ok(permit);
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        Err(ErrorReply::overloaded("the server has more requests in flight than it takes on", RETRY_AFTER_MS))
    }
}

/// One request's share of the budget, given back when dropped.
struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.requests.fetch_sub(1, Ordering::Relaxed);
        self.budget.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Figures for each operation.
#[derive(Debug, Clone, Default)]
pub struct OpStats([Arc<EndpointStats>; Op::ALL.len()]);

impl OpStats {
    /// The figures of `op`.
    #[must_use]
    pub fn of(&self, op: Op) -> &Arc<EndpointStats> {
        // `Op::ALL` lists the variants in the order of their declaration.
        &self.0[op as usize]
    }

    /// Requests answered so far, of all operations.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.0.iter().map(|stats| stats.requests()).sum()
    }
}

/// Takes the requests of one server and hands them to the engine.
pub struct Intake<E> {
    /// The first tokens of every route.
    pub prefix: Prefix,
    /// The server.
    pub name: ServerName,
    /// Tells the largest payload.
    pub bus: Arc<dyn Bus>,
    /// Where requests go.
    pub engine: E,
    /// How much is taken on at once.
    pub budget: Arc<Budget>,
    /// Figures for each operation.
    pub stats: OpStats,
}

impl<E: Submit> Intake<E> {
    /// Takes requests until `stop` is given; then no new ones are asked for, and those that have arrived are still
    /// answered.
    ///
    /// Once `closed` is given, requests are turned away: with an answer, so that every caller knows that nothing came
    /// of its request and where to go, which silence would not say.
    pub async fn run(self, mut requests: Requests, closed: Stop, stop: Stop) {
        let mut burst = Vec::with_capacity(BURST);
        let mut listening = true;
        loop {
            tokio::select! {
                biased;
                // Before the requests, which may come without a pause.
                () = stop.given(), if listening => {
                    listening = false;
                    requests.unsubscribe();
                }
                taken = requests.next_many(&mut burst, BURST) => {
                    if taken == 0 {
                        return;
                    }
                }
            }
            if closed.is_given() {
                burst.drain(..).for_each(|incoming| incoming.responder.error(&turned_away()));
                continue;
            }
            let max_reply_bytes = self.bus.max_payload().saturating_sub(ENVELOPE_BYTES);
            for incoming in burst.drain(..) {
                self.take(incoming, max_reply_bytes);
            }
        }
    }

    fn take(&self, incoming: Incoming, max_reply_bytes: usize) {
        let Incoming { route, caller, payload, responder, .. } = incoming;
        let route = match self.prefix.parse_server(&self.name, route.as_str()) {
            Ok(route) => route,
            Err(error) => return responder.error(&ErrorReply::bad_request(error.to_string())),
        };
        let mut responder = responder.counted_in(self.stats.of(route.op));
        if route.op.changes() {
            responder = responder.changing();
        }
        let taken = caller
            .may_use(&route.subject)
            .and_then(|()| self.budget.take(payload.len()))
            .and_then(|permit| Ok((permit, read(route.op, &payload)?)));
        let (permit, request) = match taken {
            Ok(taken) => taken,
            Err(error) => return responder.error(&error),
        };
        let respond = Box::new(move |outcome: Result<Reply, ErrorReply>| {
            match outcome.and_then(|reply| write(&reply)) {
                Ok(payload) => responder.ok(payload),
                Err(error) => responder.error(&error),
            }
            drop(permit);
        });
        self.engine.submit(&route.subject, Submission { request, max_reply_bytes, respond });
    }
}

fn turned_away() -> ErrorReply {
    ErrorReply { message: "this server is shutting down".to_owned(), ..ErrorReply::not_owner(None) }
}

/// The request in `payload`.
fn read(op: Op, payload: &[u8]) -> Result<Request, ErrorReply> {
    Ok(match op {
        Op::Set => Request::Set(without_uploads(decode_request(payload)?)?),
        Op::UploadCommit => Request::Set(decode_request(payload)?),
        Op::UploadBegin => Request::UploadBegin(decode_request(payload)?),
        Op::UploadChunk => Request::UploadChunk(decode_request(payload)?),
        Op::UploadFinish => Request::UploadFinish(decode_request(payload)?),
        Op::UploadCancel => Request::UploadCancel(decode_request(payload)?),
        Op::GetChunk => Request::GetChunk(decode_request(payload)?),
        Op::Get => Request::Get(decode_request(payload)?),
        Op::GetAll => Request::GetAll(decode_request(payload)?),
        Op::Keys => Request::Keys(decode_request(payload)?),
        Op::Delete => Request::Delete(decode_request(payload)?),
        Op::DeleteAll => Request::DeleteAll(decode_request(payload)?),
        Op::Configure => Request::Configure(decode_request(payload)?),
        Op::Info => decode_request::<InfoRequest>(payload).map(|_| Request::Info)?,
        Op::Flush => decode_request::<FlushRequest>(payload).map(|_| Request::Flush)?,
        Op::Destroy => Request::Destroy(decode_request(payload)?),
        Op::Changes => Request::Changes(decode_request(payload)?),
    })
}

/// A server that does not know of uploads would take such a set for one of the null value; so it has a route of its own.
fn without_uploads(request: SetRequest) -> Result<SetRequest, ErrorReply> {
    if request.sets.iter().any(|item| item.uploaded.is_some()) {
        return Err(ErrorReply::bad_request("a value that was uploaded is committed by upload_commit"));
    }
    Ok(request)
}

/// The reply as it travels.
fn write(reply: &Reply) -> Result<Bytes, ErrorReply> {
    match reply {
        Reply::Set(reply) => encode(reply),
        Reply::Get(reply) => encode(reply),
        Reply::GetAll(reply) => encode(reply),
        Reply::Keys(reply) => encode(reply),
        Reply::Delete(reply) => encode(reply),
        Reply::DeleteAll(reply) => encode(reply),
        Reply::Changes(reply) => encode(reply),
        Reply::Info(reply) => encode(reply),
        Reply::Configure(reply) => encode(reply),
        Reply::Flush(reply) => encode(reply),
        Reply::Destroy(reply) => encode(reply),
        Reply::Upload(reply) => encode(reply),
        Reply::Chunk(reply) => encode(reply),
        // Asked by the server itself, which has the answer from the engine.
        Reply::HandOver(_) => return Err(ErrorReply::internal("a hand-over was asked for over the wire")),
    }
    .map_err(ErrorReply::internal)
}

#[cfg(test)]
#[path = "requests_tests.rs"]
mod tests;
