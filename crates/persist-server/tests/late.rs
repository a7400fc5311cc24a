//! Every request comes late, twice and out of order, and many answers are lost, while a second server takes over: each is carried
//! out once, and answered as it was the first time.

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::memory::{Network, Passage};
use dormouse_bus::{AskError, Outgoing, RequestError, ask, service_error};
use dormouse_harness::Dice;
use dormouse_protocol::data::*;
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{
    ErrorCode, ErrorReply, MessageId, Op, Position, Prefix, RequestId, Retry, Rev, Seq, ServerName,
    SessionId, decode, encode,
};
use futures::future::join_all;
use support::{Fleet, subject};

const SESSIONS: usize = 8;
const REQUESTS: usize = 60;
/// How many requests of a session are under way at the same time.
const TOGETHER: usize = 6;
const SUBJECTS: [&str; 2] = ["app.orders", "app.notes"];

/// Delivers each request of the caller two or three times: within a second, or a minute later, in any order; and loses three
/// in ten answers. All else comes at once.
struct Rough(Mutex<Dice>);

impl Network for Rough {
    fn fates(&self, passage: Passage<'_>) -> Vec<Duration> {
        let mut dice = self.0.lock().unwrap();
        if passage.to == "caller" && passage.is_answer {
            return if dice.percent(30) {
                Vec::new()
            } else {
                vec![Duration::from_millis(dice.within(0..50))]
            };
        }
        if passage.from != "caller" || !passage.route.as_str().starts_with("persist.server.") {
            return vec![Duration::ZERO];
        }
        let mut copies: Vec<_> = (0..2).map(|_| Duration::from_millis(dice.within(1..900))).collect();
        if dice.percent(40) {
            copies.push(Duration::from_millis(dice.within(1_000..60_000)));
        }
        copies
    }
}

/// A changing request, as it travels.
#[derive(Debug, Clone)]
struct Change {
    subject: &'static str,
    op: Op,
    payload: Bytes,
}

/// What a change was answered, without what tells a first answer from a repeated one.
#[derive(Debug, Clone, PartialEq)]
enum Answer {
    Set(Vec<SetOutcome>),
    Delete(Position, Vec<Seq>),
    DeleteAll(Position, u64),
    Configure(Position),
    Refused(ErrorReply),
}

impl Answer {
    /// The answer, and whether it says that it is a repeated one.
    fn read(op: Op, payload: &[u8]) -> (Self, bool) {
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
            other => panic!("{other} changes nothing here"),
        }
    }

    /// Whether its repetition says that it is one: a refusal has no place for that.
    fn tells_of_repetition(&self) -> bool {
        match self {
            Self::Set(outcomes) => outcomes.iter().any(|outcome| matches!(outcome, SetOutcome::Ok(_))),
            Self::Refused(_) => false,
            Self::Delete(..) | Self::DeleteAll(..) | Self::Configure(_) => true,
        }
    }

    /// Whether it says that something was changed.
    fn changed(&self) -> bool {
        match self {
            Self::Set(outcomes) => outcomes.iter().any(|outcome| matches!(outcome, SetOutcome::Ok(_))),
            Self::Delete(_, seqs) => !seqs.is_empty(),
            Self::DeleteAll(_, count) => *count > 0,
            Self::Configure(_) => true,
            Self::Refused(_) => false,
        }
    }
}

/// Who has the subjects now, as those who ask believe.
struct World {
    fleet: Fleet,
    moved: AtomicBool,
    answered: AtomicUsize,
    unheard: AtomicUsize,
}

impl World {
    fn server(&self) -> ServerName {
        ServerName::new(if self.moved.load(Ordering::Relaxed) { "b" } else { "a" }).unwrap()
    }

    /// Asks until there is an answer that is final, always with the same bytes.
    async fn carry_out(&self, change: &Change) -> (Answer, bool) {
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
struct Session {
    id: SessionId,
    number: usize,
    counter: u64,
    dice: Dice,
    /// Names of messages that were told to it.
    known: Vec<(&'static str, String, MessageId)>,
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

    async fn run(mut self, world: &World) -> Vec<(Change, Answer)> {
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

/// What one rev did, as the answers say.
#[derive(Debug)]
enum Done {
    Set(Vec<(Seq, Option<String>, Option<Bytes>)>),
    Delete(Vec<Seq>),
    DeleteAll(Seq),
    Configure(SubjectConfig),
}

/// Everything that was answered as carried out, by its rev. No rev is told twice.
fn by_rev<'a>(answers: impl Iterator<Item = &'a (Change, Answer)>) -> BTreeMap<Rev, Done> {
    let mut revs = BTreeMap::new();
    let mut tell = |rev: Rev, done: Done| {
        let before = revs.insert(rev, done);
        assert!(before.is_none(), "{rev} was told to two: {before:?}");
    };
    for (change, answer) in answers.filter(|(_, answer)| answer.changed()) {
        match answer {
            Answer::Set(outcomes) => {
                let request: SetRequest = decode(&change.payload).unwrap();
                let mut together = BTreeMap::<Rev, Vec<_>>::new();
                for (item, outcome) in request.sets.into_iter().zip(outcomes) {
                    if let SetOutcome::Ok(result) = outcome {
                        together.entry(result.rev).or_default().push((result.seq, item.key, item.value));
                    }
                }
                together.into_iter().for_each(|(rev, sets)| tell(rev, Done::Set(sets)));
            }
            Answer::Delete(position, seqs) => tell(position.rev, Done::Delete(seqs.clone())),
            Answer::DeleteAll(position, _) => {
                let request: DeleteAllRequest = decode(&change.payload).unwrap();
                tell(position.rev, Done::DeleteAll(request.end_seq.unwrap()));
            }
            Answer::Configure(position) => {
                let request: ConfigureRequest = decode(&change.payload).unwrap();
                tell(position.rev, Done::Configure(request.config));
            }
            Answer::Refused(_) => {}
        }
    }
    revs
}

/// Keys and values by seq.
type Messages = BTreeMap<Seq, (Option<String>, Option<Bytes>)>;

/// The state to which what was answered leads.
fn fold(revs: BTreeMap<Rev, Done>) -> (Messages, SubjectConfig) {
    let (mut messages, mut config) = (Messages::new(), SubjectConfig::default());
    for done in revs.into_values() {
        match done {
            Done::Set(sets) => {
                for (seq, key, value) in sets {
                    messages.retain(|_, (held, _)| key.is_none() || *held != key);
                    messages.insert(seq, (key, value));
                }
            }
            Done::Delete(seqs) => seqs.iter().for_each(|seq| drop(messages.remove(seq))),
            Done::DeleteAll(end) => messages.retain(|seq, _| *seq > end),
            Done::Configure(new) => config = new,
        }
    }
    (messages, config)
}

/// A question, asked until it is answered: answers are lost.
async fn find_out<Req, Rep>(world: &World, op: Op, name: &str, request: &Req) -> Rep
where
    Req: serde::Serialize + Sync,
    Rep: serde::de::DeserializeOwned,
{
    loop {
        let route = Prefix::default().server(&world.server(), op, &subject(name));
        match ask(&**world.fleet.bus(), route, request, Duration::from_secs(3)).await {
            Ok(reply) => return reply,
            Err(AskError::Request(RequestError::Deadline { .. })) => {}
            Err(error) => panic!("{op}: {error}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_request_that_comes_late_twice_and_out_of_order_is_carried_out_once_also_across_a_failover() {
    let fleet = Fleet::over(Some(Arc::new(Rough(Mutex::new(Dice::new(5)))))).await;
    let (_first, _second) = (fleet.serve("a").await, fleet.serve("b").await);
    let sessions: Vec<_> = (0..SESSIONS)
        .map(|number| Session {
            id: SessionId::new(fleet.env.ulid()),
            number,
            counter: 0,
            dice: Dice::new(100 + number as u64),
            known: Vec::new(),
        })
        .collect();
    let (moved, answered, unheard) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let world = World { fleet, moved, answered, unheard };
    let failing_over = async {
        world
            .fleet
            .until("half is done", || world.answered.load(Ordering::Relaxed) >= SESSIONS * REQUESTS / 2)
            .await;
        // From here on the second server is asked. It claims, and ends the log of the first, which goes on hearing what comes
        // late.
        world.moved.store(true, Ordering::Relaxed);
    };
    let (done, ()) =
        futures::join!(join_all(sessions.into_iter().map(|session| session.run(&world))), failing_over);
    let done: Vec<(Change, Answer)> = done.into_iter().flatten().collect();
    assert!(world.unheard.load(Ordering::Relaxed) > 10, "no answer was lost");

    // The last copies come a minute late; and each is sent once more, and answered as it was the first time.
    tokio::time::sleep(Duration::from_secs(70)).await;
    let mut last = BTreeMap::new();
    for name in SUBJECTS {
        last.insert(
            name,
            find_out::<_, InfoReply>(&world, Op::Info, name, &InfoRequest::default()).await.position,
        );
    }
    for (change, first) in &done {
        let (again, duplicate) = world.carry_out(change).await;
        assert_eq!(&again, first, "{change:?}");
        assert_eq!(duplicate, first.tells_of_repetition(), "{change:?}: {first:?}");
    }

    for name in SUBJECTS {
        let info: InfoReply = find_out(&world, Op::Info, name, &InfoRequest::default()).await;
        assert_eq!(info.position, last[name], "a repeat has changed something");
        let revs = by_rev(done.iter().filter(|(change, _)| change.subject == name));
        let told: Vec<u64> = revs.keys().map(|rev| rev.get()).collect();
        let all: Vec<u64> = (1..=info.position.rev.get()).collect();
        assert_eq!(told, all, "a change was carried out that nobody was told of");
        let (messages, config) = fold(revs);
        let page: GetAllReply = find_out(&world, Op::GetAll, name, &GetAllRequest::default()).await;
        assert!(page.cursor.is_none());
        let held: Messages =
            page.messages.into_iter().map(|message| (message.seq, (message.key, message.value))).collect();
        assert_eq!(held, messages);
        assert_eq!(info.config, config);
        assert!(info.position.term.get() > 1, "nobody took over");
    }
    let refused = |answer: &Answer| match answer {
        Answer::Refused(_) => true,
        Answer::Set(outcomes) => outcomes.iter().any(|outcome| matches!(outcome, SetOutcome::Error(_))),
        _ => false,
    };
    let refusals = done.iter().filter(|(_, answer)| refused(answer)).count();
    assert!(refusals > 20, "only {refusals} were refused");
}
