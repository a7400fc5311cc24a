//! Histories of one subject, built call by call.

use std::time::Duration;

use bytes::Bytes;
use dormouse_checker::{
    CallOutcome, History, Op, OpResult, Property, ReceivedEvent, ServerFault, ServerFaultKind,
    SubjectHistory, TermFacts, Verdict, check,
};
use dormouse_protocol::data::{
    ChangesReply, ChangesRequest, ConfigureReply, ConfigureRequest, DeleteAllReply, DeleteAllRequest,
    DeleteReply, DeleteRequest, DestroyReply, DestroyRequest, Expect, GetAllReply, GetAllRequest, GetReply,
    GetRequest, SetItem, SetOutcome, SetReply, SetRequest, SetResult,
};
use dormouse_protocol::message::{SetChange, SubjectConfig};
use dormouse_protocol::{
    Change, ErrorReply, Event, Headers, Level, Message, MessageId, Position, ProtocolVersion, RequestId, Rev,
    Seq, SessionId, Subject, Term, Timestamp,
};

pub fn at(term: u64, rev: u64) -> Position {
    Position { term: Term::new(term), rev: Rev::new(rev) }
}

pub fn id(term: u64, seq: u64) -> MessageId {
    MessageId { term: Term::new(term), seq: Seq::new(seq) }
}

pub fn request(counter: u64) -> Option<RequestId> {
    let session = SessionId::new(ulid::Ulid::from_parts(1, 1));
    Some(RequestId { session, counter })
}

pub fn item(key: &str, value: &str) -> SetItem {
    let key = (!key.is_empty()).then(|| key.to_owned());
    SetItem { key, value: Some(Bytes::copy_from_slice(value.as_bytes())), ..SetItem::default() }
}

/// A message; its timestamp is its rev.
pub fn message(key: &str, value: &str, seq: u64, position: Position) -> Message {
    let SetItem { key, value, .. } = item(key, value);
    Message {
        seq: Seq::new(seq),
        term: position.term,
        rev: position.rev,
        key,
        size: value.as_ref().map_or(0, |value| value.len() as u64),
        value,
        headers: Headers::default(),
        timestamp: Timestamp::from_micros(position.rev.get()),
        value_omitted: false,
        expires_at: None,
    }
}

pub fn written(seq: u64, position: Position) -> SetOutcome {
    SetOutcome::Ok(SetResult {
        seq: Seq::new(seq),
        term: position.term,
        rev: position.rev,
        timestamp: Timestamp::from_micros(position.rev.get()),
        duplicate: false,
    })
}

pub fn set_of(items: Vec<SetItem>) -> SetRequest {
    SetRequest { sets: items, ..SetRequest::default() }
}

pub fn set_answer(outcomes: Vec<SetOutcome>) -> CallOutcome {
    CallOutcome::Answered(OpResult::Set(SetReply { results: outcomes }))
}

/// A history of one subject. By default, its calls follow one another.
#[derive(Clone, Default)]
pub struct Story {
    pub history: History,
    pub subject: SubjectHistory,
    now: u64,
}

impl Story {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn of_level(level: Level) -> Self {
        let mut story = Self::default();
        story.history.rules.default_level = level;
        story
    }

    /// The next moment.
    pub fn tick(&mut self) -> Duration {
        self.now += 1;
        Duration::from_secs(self.now)
    }

    /// A call that returns before the next one starts.
    pub fn call(&mut self, op: Op, outcome: CallOutcome) -> &mut Self {
        let call = self.begin(op);
        self.end(call, outcome)
    }

    pub fn begin(&mut self, op: Op) -> usize {
        let now = self.tick();
        self.subject.invoked(1, None, op, now)
    }

    pub fn end(&mut self, call: usize, outcome: CallOutcome) -> &mut Self {
        let now = self.tick();
        self.subject.returned(call, now, outcome);
        self
    }

    pub fn set(&mut self, key: &str, value: &str, seq: u64, position: Position) -> &mut Self {
        self.call(Op::Set(set_of(vec![item(key, value)])), set_answer(vec![written(seq, position)]))
    }

    pub fn set_as(&mut self, counter: u64, value: &str, seq: u64, position: Position) -> &mut Self {
        let op = Op::Set(SetRequest { request: request(counter), ..set_of(vec![item("", value)]) });
        self.call(op, set_answer(vec![written(seq, position)]))
    }

    /// A set without a reply.
    pub fn lost_set(&mut self, key: &str, value: &str) -> &mut Self {
        self.call(Op::Set(set_of(vec![item(key, value)])), CallOutcome::Unknown)
    }

    pub fn refused_set(&mut self, key: &str, value: &str, expect: Expect, error: ErrorReply) -> &mut Self {
        let item = SetItem { expect: Some(expect), ..item(key, value) };
        self.call(Op::Set(set_of(vec![item])), CallOutcome::Refused(error))
    }

    pub fn delete(&mut self, key: &str, seqs: &[u64], position: Position) -> &mut Self {
        let op = Op::Delete(DeleteRequest { keys: vec![key.to_owned()], ..DeleteRequest::default() });
        let seqs = seqs.iter().copied().map(Seq::new).collect();
        self.call(
            op,
            CallOutcome::Answered(OpResult::Delete(DeleteReply { position, seqs, duplicate: false })),
        )
    }

    pub fn keep_last(&mut self, keep: u64, count: u64, position: Position) -> &mut Self {
        let op = Op::DeleteAll(DeleteAllRequest { keep_last: Some(keep), ..DeleteAllRequest::default() });
        let reply = DeleteAllReply { position, count, duplicate: false };
        self.call(op, CallOutcome::Answered(OpResult::DeleteAll(reply)))
    }

    pub fn destroy_as(&mut self, counter: u64, position: Position) -> &mut Self {
        let op = Op::Destroy(DestroyRequest { request: request(counter), ..DestroyRequest::default() });
        self.call(op, CallOutcome::Answered(OpResult::Destroy(DestroyReply { position, duplicate: false })))
    }

    pub fn lost_delete(&mut self, key: &str) -> &mut Self {
        let op = Op::Delete(DeleteRequest { keys: vec![key.to_owned()], ..DeleteRequest::default() });
        self.call(op, CallOutcome::Unknown)
    }

    pub fn configure(&mut self, level: Level, position: Position) -> &mut Self {
        let config = SubjectConfig { level: Some(level), ..SubjectConfig::default() };
        let op = Op::Configure(ConfigureRequest { config, ..ConfigureRequest::default() });
        let reply = ConfigureReply { position, duplicate: false };
        self.call(op, CallOutcome::Answered(OpResult::Configure(reply)))
    }

    pub fn get(&mut self, key: &str, messages: Vec<Message>, position: Position) -> &mut Self {
        let reply = GetReply { position, messages, answered: 1 };
        self.call(Op::Get(GetRequest::key(key)), CallOutcome::Answered(OpResult::Get(reply)))
    }

    pub fn get_all(&mut self, messages: Vec<Message>, position: Position) -> &mut Self {
        let reply = GetAllReply { position, messages, cursor: None };
        self.call(Op::GetAll(GetAllRequest::default()), CallOutcome::Answered(OpResult::GetAll(reply)))
    }

    pub fn changes(&mut self, after: Position, changes: Vec<Change>, position: Position) -> &mut Self {
        let term_base = self.base_of(position);
        let reply = ChangesReply { position, term_base, resync: false, changes, more: false };
        let request = ChangesRequest { after, ..ChangesRequest::default() };
        self.call(Op::Changes(request), CallOutcome::Answered(OpResult::Changes(reply)))
    }

    pub fn beacon(&mut self, position: Position, term_base: u64) -> &mut Self {
        let v = ProtocolVersion::CURRENT;
        let Position { term, rev } = position;
        let event = Event { v, term, term_base: Rev::new(term_base), rev, changes: Vec::new() };
        let at = self.tick();
        self.subject.events.push(ReceivedEvent { at, event });
        self
    }

    /// Adds the facts about a term; `base` is the last rev that it inherited.
    pub fn term(&mut self, term: u64, base: u64, server: &str) -> &mut Self {
        let facts = TermFacts { base: Some(Rev::new(base)), server: Some(server.parse().unwrap()) };
        self.subject.terms.insert(Term::new(term), facts);
        self
    }

    pub fn fault(&mut self, server: &str, kind: ServerFaultKind, since: u64, until: u64) -> &mut Self {
        let (since, until) = (Duration::from_secs(since), Duration::from_secs(until));
        self.history.faults.push(ServerFault { server: server.parse().unwrap(), kind, since, until });
        self
    }

    fn base_of(&self, position: Position) -> Rev {
        self.subject.terms.get(&position.term).and_then(|facts| facts.base).unwrap_or_default()
    }

    pub fn verdict(&self) -> Verdict {
        let mut history = self.history.clone();
        let name: Subject = "app.story".parse().unwrap();
        history.subjects.insert(name, self.subject.clone());
        check(&history)
    }

    #[track_caller]
    pub fn is_clean(&self) {
        let verdict = self.verdict();
        assert!(verdict.is_clean(), "{verdict}");
    }

    /// Asserts that the violation is found, with at most `lines` calls and events.
    #[track_caller]
    pub fn breaks(&self, property: Property, lines: usize) {
        let verdict = self.verdict();
        let found = verdict.violations.iter().find(|found| found.property == property);
        let found = found.unwrap_or_else(|| panic!("{property:?} was not found: {verdict}"));
        assert!(found.history.len() <= lines, "{found}");
        assert!(!found.history.is_empty(), "{found}");
    }
}

pub fn set_change(message: Message) -> Change {
    Change::Set(SetChange { message, replaces: None })
}
