//! Sessions that send changes, each until it has a final reply.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{Outgoing, RequestError, service_error};
use dormouse_harness::SeededRng;
use dormouse_protocol::data::*;
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{
    ErrorCode, ErrorReply, MessageId, Op, Position, Prefix, RequestId, RetryAdvice, Rev, Seq, ServerName,
    SessionId, decode, encode,
};
use futures::future::join_all;

use dormouse_persist_server::server::Server;

use crate::support::{Fleet, subject};

pub const SESSIONS: usize = 8;
pub const REQUESTS: usize = 60;
/// Number of concurrent requests of a session.
const CONCURRENT: usize = 6;
pub const SUBJECTS: [&str; 2] = ["app.orders", "app.notes"];

/// Number of `indeterminate` replies after which a change counts as indeterminate.
const INDETERMINATE_AFTER: u32 = 4;

/// An encoded changing request.
#[derive(Debug, Clone)]
pub struct Change {
    pub subject: &'static str,
    pub op: Op,
    pub payload: Bytes,
}

/// The reply to a change, without the duplicate mark.
#[derive(Debug, Clone, PartialEq)]
pub enum SessionReply {
    Set(Vec<SetOutcome>),
    Delete(Position, Vec<Seq>),
    DeleteAll(Position, u64),
    Configure(Position),
    Destroy(Position),
    Refused(ErrorReply),
    /// The outcome is indeterminate.
    Indeterminate,
}

impl SessionReply {
    /// The reply, and whether it is marked as a duplicate.
    pub fn read(op: Op, payload: &[u8]) -> (Self, bool) {
        match op {
            Op::Set => {
                let mut reply: SetReply = decode(payload).unwrap();
                let mut duplicate = false;
                for outcome in &mut reply.results {
                    if let SetOutcome::Ok(result) = outcome {
                        duplicate |= std::mem::take(&mut result.duplicate);
                    }
                }
                (Self::Set(reply.results), duplicate)
            }
            Op::Delete => {
                let reply: DeleteReply = decode(payload).unwrap();
                (Self::Delete(reply.position, reply.seqs), reply.duplicate)
            }
            Op::DeleteAll => {
                let reply: DeleteAllReply = decode(payload).unwrap();
                (Self::DeleteAll(reply.position, reply.count), reply.duplicate)
            }
            Op::Configure => {
                let reply: ConfigureReply = decode(payload).unwrap();
                (Self::Configure(reply.position), reply.duplicate)
            }
            Op::Destroy => {
                let reply: DestroyReply = decode(payload).unwrap();
                (Self::Destroy(reply.position), reply.duplicate)
            }
            other => panic!("{other} is no changing operation of this test"),
        }
    }

    /// Whether the reply to a repeat is marked as a duplicate: a refusal has no such field.
    pub fn marks_duplicate(&self) -> bool {
        match self {
            Self::Set(outcomes) => outcomes.iter().any(|outcome| matches!(outcome, SetOutcome::Ok(_))),
            Self::Refused(_) | Self::Indeterminate => false,
            Self::Delete(..) | Self::DeleteAll(..) | Self::Configure(_) | Self::Destroy(_) => true,
        }
    }

    /// Whether the change had an effect.
    pub fn changed(&self) -> bool {
        match self {
            Self::Set(outcomes) => outcomes.iter().any(|outcome| matches!(outcome, SetOutcome::Ok(_))),
            Self::Delete(_, seqs) => !seqs.is_empty(),
            Self::DeleteAll(_, count) => *count > 0,
            Self::Configure(_) | Self::Destroy(_) => true,
            Self::Refused(_) | Self::Indeterminate => false,
        }
    }

    /// The last rev of the change, if it had an effect.
    pub fn rev(&self) -> Option<Rev> {
        match self {
            Self::Set(outcomes) => outcomes
                .iter()
                .filter_map(|outcome| match outcome {
                    SetOutcome::Ok(result) => Some(result.rev),
                    SetOutcome::Error(_) => None,
                })
                .max(),
            Self::Delete(position, _)
            | Self::DeleteAll(position, _)
            | Self::Configure(position)
            | Self::Destroy(position) => self.changed().then_some(position.rev),
            Self::Refused(_) | Self::Indeterminate => None,
        }
    }
}

/// The fleet, and the server that the sessions send to.
pub struct World {
    pub fleet: Fleet,
    /// A drop would end them.
    #[expect(dead_code, reason = "kept")]
    pub servers: [Server; 2],
    pub moved: AtomicBool,
    pub answered: AtomicUsize,
    pub unanswered: AtomicUsize,
}

impl World {
    pub fn server(&self) -> ServerName {
        ServerName::new(if self.moved.load(Ordering::Relaxed) { "b" } else { "a" }).unwrap()
    }

    /// Sends the same bytes until a final reply arrives.
    pub async fn send_until_final(&self, change: &Change) -> (SessionReply, bool) {
        let mut unknown = 0;
        for _ in 0..200 {
            let route = Prefix::default().server(&self.server(), change.op, &subject(change.subject));
            let message = Outgoing::new(route, change.payload.clone());
            match self.fleet.bus().request(message, Duration::from_secs(3)).await {
                Ok(reply) => match service_error(&reply) {
                    None => return SessionReply::read(change.op, &reply.payload),
                    // No server remembers it.
                    Some(error) if error.code == ErrorCode::Forgotten => {
                        return (SessionReply::Indeterminate, false);
                    }
                    Some(error)
                        if error.retry() == RetryAdvice::Never && error.code != ErrorCode::Indeterminate =>
                    {
                        return (SessionReply::Refused(error), false);
                    }
                    // A server that is being fenced may reply so once or twice. The new owner knows the outcome.
                    Some(error) if error.code == ErrorCode::Indeterminate => {
                        unknown += 1;
                        if unknown == INDETERMINATE_AFTER {
                            return (SessionReply::Indeterminate, false);
                        }
                    }
                    Some(_) => {}
                },
                Err(RequestError::Deadline { .. }) => {
                    self.unanswered.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => panic!("{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("no final reply: {change:?}");
    }
}

/// A session, and the messages that it can update.
pub struct Session {
    pub id: SessionId,
    pub number: usize,
    pub counter: u64,
    /// Percentage of its requests that destroy.
    pub destroys: u64,
    pub rng: SeededRng,
    /// Ids of messages from earlier replies.
    pub known: Vec<(&'static str, String, MessageId)>,
}

impl Session {
    fn key(&mut self) -> String {
        format!("k{}", self.rng.within(0..6))
    }

    fn item(&mut self, expect: Option<Expect>, key: Option<String>) -> SetItem {
        let value = format!("{}:{}:{}", self.number, self.counter, self.rng.next());
        SetItem { key, value: Some(value.into()), expect, ..SetItem::default() }
    }

    fn next(&mut self) -> Change {
        self.counter += 1;
        let request = Some(RequestId { session: self.id, counter: self.counter });
        let mut subject = *self.rng.pick(&SUBJECTS);
        let set =
            |atomic, sets| encode(&SetRequest { request, atomic, sets, ..SetRequest::default() }).unwrap();
        if self.destroys > 0 && self.rng.percent(self.destroys) {
            let payload = encode(&DestroyRequest { request, ..DestroyRequest::default() }).unwrap();
            return Change { subject, op: Op::Destroy, payload };
        }
        let (op, payload) = match self.rng.within(0..14) {
            0..3 => {
                let key = Some(self.key());
                (Op::Set, set(false, vec![self.item(None, key), self.item(None, None)]))
            }
            3..6 => {
                let key = self.key();
                (Op::Set, set(false, vec![self.item(Some(Expect::Key(None)), Some(key))]))
            }
            6 | 7 => {
                let (expect, key) = match self.known.pop() {
                    Some((named, key, id)) => {
                        subject = named;
                        (Expect::Key(Some(id)), key)
                    }
                    None => (Expect::Key(None), self.key()),
                };
                (Op::Set, set(false, vec![self.item(Some(expect), Some(key))]))
            }
            8 | 9 => {
                // One set of the batch may be refused, and then the whole batch is.
                let expect = self.rng.percent(40).then_some(Expect::Key(None));
                let items = vec![
                    self.item(None, Some("k0".to_owned())),
                    self.item(expect, Some("k1".to_owned())),
                    self.item(None, None),
                ];
                (Op::Set, set(true, items))
            }
            10 | 11 => {
                let keys = vec![self.key(), self.key()];
                let seqs = vec![Seq::new(self.rng.within(1..200))];
                (
                    Op::Delete,
                    encode(&DeleteRequest { request, keys, seqs, ..DeleteRequest::default() }).unwrap(),
                )
            }
            12 => {
                let end_seq = Some(Seq::new(self.rng.within(1..60)));
                let request = DeleteAllRequest { request, end_seq, ..DeleteAllRequest::default() };
                (Op::DeleteAll, encode(&request).unwrap())
            }
            _ => {
                let metadata =
                    BTreeMap::from([("by".to_owned(), format!("{}:{}", self.number, self.counter))]);
                let config = SubjectConfig { metadata, ..SubjectConfig::default() };
                let request = ConfigureRequest { request, config, ..ConfigureRequest::default() };
                (Op::Configure, encode(&request).unwrap())
            }
        };
        Change { subject, op, payload }
    }

    /// Keeps the message ids of the reply for later updates.
    fn learn(&mut self, change: &Change, answer: &SessionReply) {
        let (Op::Set, SessionReply::Set(outcomes)) = (change.op, answer) else { return };
        let request: SetRequest = decode(&change.payload).unwrap();
        for (item, outcome) in request.sets.iter().zip(outcomes) {
            if let (Some(key), SetOutcome::Ok(result)) = (&item.key, outcome) {
                self.known.push((change.subject, key.clone(), result.id()));
            }
        }
    }

    pub async fn run(mut self, world: &World) -> Vec<(Change, SessionReply)> {
        let mut done = Vec::new();
        while done.len() < REQUESTS {
            let changes: Vec<Change> = (0..CONCURRENT).map(|_| self.next()).collect();
            let answers = join_all(changes.iter().map(|change| world.send_until_final(change))).await;
            for (change, (answer, _)) in changes.into_iter().zip(answers) {
                self.learn(&change, &answer);
                world.answered.fetch_add(1, Ordering::Relaxed);
                done.push((change, answer));
            }
        }
        done
    }
}
