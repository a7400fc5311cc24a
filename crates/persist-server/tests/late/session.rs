//! Those who change things, and how they ask until they are answered.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{Outgoing, RequestError, service_error};
use dormouse_harness::Dice;
use dormouse_protocol::data::*;
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{
    ErrorCode, ErrorReply, MessageId, Op, Position, Prefix, RequestId, Retry, Rev, Seq, ServerName,
    SessionId, decode, encode,
};
use futures::future::join_all;

use dormouse_persist_server::server::Server;

use crate::support::{Fleet, subject};

pub const SESSIONS: usize = 8;
pub const REQUESTS: usize = 60;
/// How many requests of a session are under way at the same time.
const TOGETHER: usize = 6;
pub const SUBJECTS: [&str; 2] = ["app.orders", "app.notes"];

/// So many answers in a row that say that nobody knows are believed.
const FORGOTTEN_AFTER: u32 = 4;

/// A changing request, as it travels.
#[derive(Debug, Clone)]
pub struct Change {
    pub subject: &'static str,
    pub op: Op,
    pub payload: Bytes,
}

/// What a change was answered, without what tells a first answer from a repeated one.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Set(Vec<SetOutcome>),
    Delete(Position, Vec<Seq>),
    DeleteAll(Position, u64),
    Configure(Position),
    Destroy(Position),
    Refused(ErrorReply),
    /// Nobody can say any more what became of it.
    Forgotten,
}

impl Answer {
    /// The answer, and whether it says that it is a repeated one.
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
            other => panic!("{other} changes nothing here"),
        }
    }

    /// Whether its repetition says that it is one: a refusal has no place for that.
    pub fn tells_of_repetition(&self) -> bool {
        match self {
            Self::Set(outcomes) => outcomes.iter().any(|outcome| matches!(outcome, SetOutcome::Ok(_))),
            Self::Refused(_) | Self::Forgotten => false,
            Self::Delete(..) | Self::DeleteAll(..) | Self::Configure(_) | Self::Destroy(_) => true,
        }
    }

    /// Whether it says that something was changed.
    pub fn changed(&self) -> bool {
        match self {
            Self::Set(outcomes) => outcomes.iter().any(|outcome| matches!(outcome, SetOutcome::Ok(_))),
            Self::Delete(_, seqs) => !seqs.is_empty(),
            Self::DeleteAll(_, count) => *count > 0,
            Self::Configure(_) | Self::Destroy(_) => true,
            Self::Refused(_) | Self::Forgotten => false,
        }
    }

    /// The last rev of what was done, if something was.
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
            Self::Refused(_) | Self::Forgotten => None,
        }
    }
}

/// Who has the subjects now, as those who ask believe.
pub struct World {
    pub fleet: Fleet,
    /// They serve as long as they are kept.
    #[expect(dead_code, reason = "kept")]
    pub servers: [Server; 2],
    pub moved: AtomicBool,
    pub answered: AtomicUsize,
    pub unheard: AtomicUsize,
}

impl World {
    pub fn server(&self) -> ServerName {
        ServerName::new(if self.moved.load(Ordering::Relaxed) { "b" } else { "a" }).unwrap()
    }

    /// Asks until there is an answer that is final, always with the same bytes.
    pub async fn carry_out(&self, change: &Change) -> (Answer, bool) {
        let mut unknown = 0;
        for _ in 0..200 {
            let route = Prefix::default().server(&self.server(), change.op, &subject(change.subject));
            let message = Outgoing::new(route, change.payload.clone());
            match self.fleet.bus().request(message, Duration::from_secs(3)).await {
                Ok(reply) => match service_error(&reply) {
                    None => return Answer::read(change.op, &reply.payload),
                    Some(error)
                        if error.retry() == Retry::Never && error.code != ErrorCode::Indeterminate =>
                    {
                        return (Answer::Refused(error), false);
                    }
                    // Whoever is about to lose the subject says so once, or twice; its successor knows.
                    Some(error) if error.code == ErrorCode::Indeterminate => {
                        unknown += 1;
                        if unknown == FORGOTTEN_AFTER {
                            return (Answer::Forgotten, false);
                        }
                    }
                    Some(_) => {}
                },
                Err(RequestError::Deadline { .. }) => {
                    self.unheard.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => panic!("{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("never answered: {change:?}");
    }
}

/// One who changes things, and what it knows to change.
pub struct Session {
    pub id: SessionId,
    pub number: usize,
    pub counter: u64,
    /// How many of a hundred of its requests destroy.
    pub destroys: u64,
    pub dice: Dice,
    /// Names of messages that were told to it.
    pub known: Vec<(&'static str, String, MessageId)>,
}

impl Session {
    fn key(&mut self) -> String {
        format!("k{}", self.dice.within(0..6))
    }

    fn item(&mut self, expect: Option<Expect>, key: Option<String>) -> SetItem {
        let value = format!("{}:{}:{}", self.number, self.counter, self.dice.next());
        SetItem { key, value: Some(value.into()), expect, ..SetItem::default() }
    }

    fn next(&mut self) -> Change {
        self.counter += 1;
        let request = Some(RequestId { session: self.id, counter: self.counter });
        let mut subject = *self.dice.pick(&SUBJECTS);
        let set =
            |atomic, sets| encode(&SetRequest { request, atomic, sets, ..SetRequest::default() }).unwrap();
        if self.destroys > 0 && self.dice.percent(self.destroys) {
            let payload = encode(&DestroyRequest { request, ..DestroyRequest::default() }).unwrap();
            return Change { subject, op: Op::Destroy, payload };
        }
        let (op, payload) = match self.dice.within(0..14) {
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
                    Some((whose, key, id)) => {
                        subject = whose;
                        (Expect::Key(Some(id)), key)
                    }
                    None => (Expect::Key(None), self.key()),
                };
                (Op::Set, set(false, vec![self.item(Some(expect), Some(key))]))
            }
            8 | 9 => {
                // One of the batch may be refused, and the whole of it then is.
                let expect = self.dice.percent(40).then_some(Expect::Key(None));
                let items = vec![
                    self.item(None, Some("k0".to_owned())),
                    self.item(expect, Some("k1".to_owned())),
                    self.item(None, None),
                ];
                (Op::Set, set(true, items))
            }
            10 | 11 => {
                let keys = vec![self.key(), self.key()];
                let seqs = vec![Seq::new(self.dice.within(1..200))];
                (
                    Op::Delete,
                    encode(&DeleteRequest { request, keys, seqs, ..DeleteRequest::default() }).unwrap(),
                )
            }
            12 => {
                let end_seq = Some(Seq::new(self.dice.within(1..60)));
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

    /// Keeps what may be updated later.
    fn learn(&mut self, change: &Change, answer: &Answer) {
        let (Op::Set, Answer::Set(outcomes)) = (change.op, answer) else { return };
        let request: SetRequest = decode(&change.payload).unwrap();
        for (item, outcome) in request.sets.iter().zip(outcomes) {
            if let (Some(key), SetOutcome::Ok(result)) = (&item.key, outcome) {
                self.known.push((change.subject, key.clone(), result.id()));
            }
        }
    }

    pub async fn run(mut self, world: &World) -> Vec<(Change, Answer)> {
        let mut done = Vec::new();
        while done.len() < REQUESTS {
            let changes: Vec<Change> = (0..TOGETHER).map(|_| self.next()).collect();
            let answers = join_all(changes.iter().map(|change| world.carry_out(change))).await;
            for (change, (answer, _)) in changes.into_iter().zip(answers) {
                self.learn(&change, &answer);
                world.answered.fetch_add(1, Ordering::Relaxed);
                done.push((change, answer));
            }
        }
        done
    }
}
