//! A feed against a subject that does everything a subject may do, over a bus that loses, repeats and reorders.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use dormouse_protocol::data::{InfoDetails, InfoReply};
use dormouse_protocol::message::{
    ConfigureChange, DeleteAllChange, DeleteChange, Removed, SetChange, SubjectConfig,
};
use dormouse_protocol::{
    Change, ErrorCode, ErrorReply, Headers, Level, Message, ProtocolVersion, Rev, ServerName, Term, Timestamp,
};
use proptest::prelude::*;

use super::*;
use crate::feed::Update;

type Messages = BTreeMap<Seq, Message>;

/// A subject and what has become of it.
#[derive(Clone)]
struct Subject {
    term: u64,
    base: u64,
    rev: u64,
    next_seq: u64,
    messages: Messages,
    config: SubjectConfig,
    /// Every change on the path that leads here, with its term.
    path: Vec<(u64, Change)>,
    /// The base of every term.
    bases: BTreeMap<u64, u64>,
    /// What was removed before this rev is not known any more.
    floor: u64,
    /// The state at every rev of the path, to begin from.
    states: BTreeMap<u64, (Messages, SubjectConfig, u64)>,
}

impl Subject {
    fn new() -> Self {
        let states = BTreeMap::from([(0, (Messages::new(), SubjectConfig::default(), 1))]);
        Self {
            term: 1,
            base: 0,
            rev: 0,
            next_seq: 1,
            messages: Messages::new(),
            config: SubjectConfig::default(),
            path: Vec::new(),
            bases: BTreeMap::from([(1, 0)]),
            floor: 0,
            states,
        }
    }

    fn position(&self) -> Position {
        Position { term: Term::new(self.term), rev: Rev::new(self.rev) }
    }

    fn set(&mut self, key: Option<String>, in_place: Option<u64>) -> Change {
        let seq = in_place.unwrap_or(self.next_seq);
        self.next_seq = self.next_seq.max(seq + 1);
        let replaces = match &key {
            Some(_) => self.messages.values().find(|message| message.key == key).map(|message| message.seq),
            None => in_place.map(Seq::new),
        };
        let value = Bytes::from(format!("{}-{}", self.term, self.rev + 1));
        let message = Message {
            seq: Seq::new(seq),
            term: Term::new(self.term),
            rev: Rev::new(self.rev + 1),
            key,
            size: value.len() as u64,
            value: Some(value),
            headers: Headers::default(),
            timestamp: Timestamp::from_micros(1),
            value_omitted: false,
            expires_at: None,
        };
        if let Some(replaced) = replaces {
            self.messages.remove(&replaced);
        }
        self.messages.insert(message.seq, message.clone());
        Change::Set(SetChange { message, replaces })
    }

    /// Something happens; returns the event.
    fn act(&mut self, what: u8, pick: u64) -> Option<Event> {
        let held = |subject: &Self| {
            let count = subject.messages.len() as u64;
            (count > 0).then(|| subject.messages.values().nth((pick % count) as usize).cloned()).flatten()
        };
        let rev = Rev::new(self.rev + 1);
        let change = match what % 12 {
            0..=3 => self.set(Some(format!("k{}", pick % 4)), None),
            4 | 5 => self.set(None, None),
            6 => {
                let held = held(self)?;
                self.set(held.key, Some(held.seq.get()))
            }
            7 => {
                let held = held(self)?;
                self.messages.remove(&held.seq);
                Change::Delete(DeleteChange { rev, removed: vec![Removed { seq: held.seq, key: held.key }] })
            }
            8 => {
                let end_seq = held(self)?.seq;
                let kept = self.messages.split_off(&end_seq.next());
                let count = std::mem::replace(&mut self.messages, kept).len() as u64;
                Change::DeleteAll(DeleteAllChange { rev, end_seq, count })
            }
            9 => {
                self.config = SubjectConfig { max_msgs: Some(self.rev + 1), ..SubjectConfig::default() };
                Change::Configure(ConfigureChange { rev, config: self.config.clone() })
            }
            10 => return Some(self.fail_over(pick % 4)),
            _ => {
                self.floor = self.rev;
                return None;
            }
        };
        self.rev += 1;
        self.path.push((self.term, change.clone()));
        self.states.insert(self.rev, (self.messages.clone(), self.config.clone(), self.next_seq));
        Some(self.event(vec![change]))
    }

    fn event(&self, changes: Vec<Change>) -> Event {
        Event {
            v: ProtocolVersion::CURRENT,
            term: Term::new(self.term),
            term_base: Rev::new(self.base),
            rev: Rev::new(self.rev),
            changes,
        }
    }

    /// Another server goes on, without the last few changes. Its beacon.
    fn fail_over(&mut self, lost: u64) -> Event {
        self.rev = self.rev.saturating_sub(lost).max(self.base);
        self.base = self.rev;
        self.term += 1;
        self.bases.insert(self.term, self.base);
        self.floor = self.floor.min(self.rev);
        self.path.retain(|(_, change)| change.rev().get() <= self.base);
        self.states.retain(|rev, _| *rev <= self.base);
        (self.messages, self.config, self.next_seq) = self.states[&self.rev].clone();
        self.event(Vec::new())
    }

    fn leads_here(&self, after: Position) -> bool {
        let next = self.bases.range(after.term.get() + 1..).next().map(|(_, base)| *base);
        let (term, rev) = (after.term.get(), after.rev.get());
        rev == 0 && self.floor == 0
            || rev >= self.floor && term <= self.term && rev <= next.unwrap_or(self.rev)
    }

    /// At most `most` changes since.
    fn changes(&self, after: Position, most: usize) -> ChangesReply {
        let mut reply = ChangesReply {
            position: self.position(),
            term_base: Rev::new(self.base),
            resync: !self.leads_here(after),
            changes: Vec::new(),
            more: false,
        };
        if reply.resync {
            return reply;
        }
        for (_, change) in self.path.iter().filter(|(_, change)| change.rev() > after.rev) {
            let is_there = match change {
                Change::Set(set) => self.messages.get(&set.message.seq) == Some(&set.message),
                Change::Configure(configure) => configure.config == self.config,
                Change::Delete(_) | Change::DeleteAll(_) => true,
            };
            if !is_there {
                continue;
            }
            if reply.changes.len() == most {
                reply.more = true;
                reply.position.rev = Rev::new(change.rev().get() - 1);
                break;
            }
            let mut change = change.clone();
            if let Change::Set(set) = &mut change {
                set.replaces = None;
            }
            reply.changes.push(change);
        }
        reply
    }

    fn page(&self, start: Seq, most: usize, keys: &FeedKeys) -> GetAllReply {
        let mut wanted = self
            .messages
            .range(start..)
            .map(|(_, message)| message)
            .filter(|message| keys.wants(message.key.as_deref()));
        let messages: Vec<_> = wanted.by_ref().take(most).cloned().collect();
        GetAllReply { position: self.position(), messages, cursor: wanted.next().map(|message| message.seq) }
    }

    fn info(&self) -> InfoReply {
        InfoReply {
            position: self.position(),
            term_base: Rev::new(self.base),
            first_seq: None,
            last_seq: None,
            next_seq: Seq::new(self.next_seq),
            count: 0,
            bytes: 0,
            config: self.config.clone(),
            level: Level::Memory,
            server: ServerName::new("a").unwrap(),
            log: "a-01J9Z3ABCDEFGHJKMNPQRSTVWX".parse().unwrap(),
            bucket_rev: Rev::new(0),
            details: InfoDetails::default(),
        }
    }
}

/// Whoever reads the feed, by the rules that the documentation of [`Update`] gives.
#[derive(Default)]
struct Reader {
    messages: Messages,
    /// As far as it was told: a feed from the beginning tells it once it changes.
    config: Option<SubjectConfig>,
    /// Every message that was ever told.
    told: BTreeSet<(Seq, Term, Rev)>,
    /// What a server has lost may bring back what was there before.
    may_come_back: bool,
    position: Option<Position>,
    marks: usize,
    resets: usize,
    /// Whether `replaces` and `Removed` must be exact.
    is_exact: bool,
}

impl Reader {
    fn take(&mut self, told: Vec<Told>) {
        for told in told {
            if let Some(update) = told.update {
                self.update(update);
            }
            self.position = told.position;
        }
    }

    fn update(&mut self, update: Update) {
        match update {
            Update::Set { message, replaces } => {
                let name = (message.seq, message.term, message.rev);
                let is_new = self.told.insert(name);
                assert!(is_new || self.may_come_back, "{message:?} was told twice");
                assert_ne!(self.messages.get(&message.seq), Some(&message), "it was told and is there");
                let holder = |held: &&Message| message.key.is_some() && held.key == message.key;
                let under = self.messages.values().find(holder).map(|held| held.seq);
                let at = self.messages.get(&message.seq).map(|held| held.seq);
                if self.is_exact {
                    assert_eq!(replaces, at.or(under), "what {message:?} replaces");
                }
                for gone in under.into_iter().chain(at) {
                    self.messages.remove(&gone);
                }
                self.messages.insert(message.seq, message);
            }
            Update::Removed { seq, key } => {
                let gone = self.messages.remove(&seq);
                if self.is_exact {
                    assert_eq!(gone.map(|gone| gone.key), Some(key));
                } else if key.is_some() {
                    self.messages.retain(|_, held| held.key != key);
                }
            }
            Update::Cleared { end_seq } => self.messages = self.messages.split_off(&end_seq.next()),
            Update::Configured(config) => self.config = Some(config),
            Update::CaughtUp(_) => self.marks += 1,
            Update::Reset => {
                assert!(!self.is_exact, "a feed from the beginning knows what was told");
                self.messages.clear();
                self.told.clear();
                self.resets += 1;
            }
        }
    }
}

/// A feed, its reader, and what is on the way to it.
struct World {
    subject: Subject,
    keys: FeedKeys,
    machine: Machine,
    reader: Reader,
    next: Next,
    events: VecDeque<Event>,
    now: Duration,
}

impl World {
    fn new(before: &[(u8, u64)], keys: FeedKeys, from: u8) -> Self {
        let mut subject = Subject::new();
        for (what, pick) in before {
            subject.act(*what, *pick);
        }
        let mut reader = Reader { is_exact: from == 0, ..Reader::default() };
        let from = match from {
            0 => FeedFrom::Beginning,
            1 => FeedFrom::Now,
            _ => FeedFrom::After(subject.position()),
        };
        if from != FeedFrom::Beginning {
            reader.messages = subject.messages.clone();
            reader.messages.retain(|_, message| keys.wants(message.key.as_deref()));
            reader.config = Some(subject.config.clone());
        }
        let (mut machine, mut step) = Machine::begin(keys.clone(), from);
        if from == FeedFrom::Now {
            step = machine.apply(Input::Info(Box::new(subject.info())), Duration::ZERO, 0);
        }
        let mut world = Self {
            subject,
            keys,
            machine,
            reader,
            next: step.next,
            events: VecDeque::new(),
            now: Duration::ZERO,
        };
        world.reader.take(step.tell);
        world
    }

    fn apply(&mut self, input: Input, luck: u64) {
        self.now += Duration::from_millis(1);
        self.reader.may_come_back = self.subject.term > 1;
        let step = self.machine.apply(input, self.now, luck);
        self.reader.take(step.tell);
        self.next = step.next;
        if let Next::End(error) = &self.next {
            panic!("the feed ended: {error}");
        }
    }

    /// Answers what is asked, or lets the next event arrive.
    fn go_on(&mut self, luck: u64) {
        match self.next {
            Next::Ask(question, _) => {
                let most = (luck % 3 + 1) as usize;
                let input = match question {
                    Question::Info => Input::Info(Box::new(self.subject.info())),
                    Question::Changes(after) => Input::Changes(self.subject.changes(after, most)),
                    Question::Page(start) => Input::Page(self.subject.page(start, most, &self.keys)),
                };
                self.apply(input, luck);
            }
            Next::Listen(_) => {
                if let Some(event) = self.events.pop_front() {
                    self.apply(Input::Event(event), luck);
                }
            }
            Next::End(_) => {}
        }
    }

    fn step(&mut self, action: u8, what: u8, pick: u64) {
        match action % 16 {
            0..=4 => self.events.extend(self.subject.act(what, pick)),
            5..=8 => self.go_on(pick),
            9 => drop(self.events.pop_front()),
            10 => self.events.extend(self.events.front().cloned()),
            11 => self.events.rotate_left(usize::from(!self.events.is_empty())),
            12 => self.events.push_back(self.subject.event(Vec::new())),
            13 if matches!(self.next, Next::Ask(..)) => {
                let code = if pick.is_multiple_of(2) { ErrorCode::Unavailable } else { ErrorCode::Internal };
                self.apply(Input::Failed(Error::from_reply(ErrorReply::new(code, "no"))), pick);
            }
            14 if matches!(self.next, Next::Listen(_)) => {
                self.apply(if pick.is_multiple_of(2) { Input::Lost } else { Input::ServerGone }, pick);
            }
            _ => {}
        }
    }

    /// What is on its way arrives, and then a beacon.
    fn settle(&mut self) {
        self.events.push_back(self.subject.event(Vec::new()));
        while !self.events.is_empty() || matches!(self.next, Next::Ask(..)) {
            self.go_on(2);
        }
    }

    fn check(&self) {
        let keys = &self.keys;
        let mut expected = self.subject.messages.clone();
        expected.retain(|_, message| keys.wants(message.key.as_deref()));
        assert_eq!(self.reader.messages, expected);
        assert_eq!(self.reader.position, Some(self.subject.position()));
        if *keys == FeedKeys::All
            && let Some(config) = &self.reader.config
        {
            assert_eq!(*config, self.subject.config);
        }
        assert!(self.reader.marks > 0);
    }
}

fn actions(most: usize) -> impl Strategy<Value = Vec<(u8, u8, u64)>> {
    proptest::collection::vec((any::<u8>(), any::<u8>(), 0..1_000_u64), 0..most)
}

fn keys() -> impl Strategy<Value = FeedKeys> {
    prop_oneof![
        Just(FeedKeys::All),
        Just(FeedKeys::One("k1".to_owned())),
        Just(FeedKeys::Prefix("k".to_owned()))
    ]
}

/// `usual` cases, or as many as the environment's `PROPTEST_CASES` says: a number in the source would hide it.
fn cases(usual: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() { default } else { ProptestConfig::with_cases(usual) }
}

proptest! {
    #![proptest_config(cases(1_000))]

    /// Whatever is lost, repeated or reordered, whatever happens meanwhile: whenever the bus has brought what it brings and a
    /// beacon, the fold of the updates is the state of the subject, and nothing was told twice.
    #[test]
    fn the_fold_is_the_state_at_every_quiet_point(
        before in proptest::collection::vec((any::<u8>(), 0..1_000_u64), 0..20),
        parts in proptest::collection::vec(actions(40), 1..4),
        keys in keys(),
        from in 0..3_u8,
    ) {
        let mut world = World::new(&before, keys, from);
        for part in parts {
            for (action, what, pick) in part {
                world.step(action, what, pick);
            }
            world.settle();
            world.check();
        }
    }

    /// Where a feed was taken up to is where another one goes on.
    #[test]
    fn a_feed_goes_on_where_another_one_was(
        parts in proptest::collection::vec(actions(40), 2..4),
    ) {
        let mut world = World::new(&[], FeedKeys::All, 0);
        for part in parts {
            for (action, what, pick) in part {
                world.step(action, what, pick);
            }
            if let Some(position) = world.reader.position {
                // The new one knows nothing, and the reader has been told some of it already.
                world.reader.is_exact = false;
                world.reader.told.clear();
                let (machine, step) = Machine::begin(FeedKeys::All, FeedFrom::After(position));
                (world.machine, world.next) = (machine, step.next);
                world.events.clear();
            }
        }
        world.settle();
        world.check();
    }
}

#[test]
fn a_key_that_was_set_again_meanwhile_does_not_blink_out() {
    let mut world = World::new(&[(0, 1), (4, 0)], FeedKeys::All, 0);
    world.settle();
    // Another server goes on without what was written last, and the key is set again: only a full read tells.
    world.subject.act(0, 2);
    world.apply(Input::Due, 0);
    world.go_on(2);
    world.subject.fail_over(1);
    world.subject.act(0, 1);
    world.apply(Input::Due, 0);
    let mut updates = Vec::new();
    while let Next::Ask(question, _) = world.next {
        let input = match question {
            Question::Info => Input::Info(Box::new(world.subject.info())),
            Question::Changes(after) => Input::Changes(world.subject.changes(after, 9)),
            Question::Page(start) => Input::Page(world.subject.page(start, 1, &world.keys)),
        };
        let step = world.machine.apply(input, world.now, 0);
        updates.extend(step.tell.into_iter().filter_map(|told| told.update));
        world.next = step.next;
    }
    let told: Vec<String> = updates
        .iter()
        .filter_map(|update| match update {
            Update::Set { message, replaces } => Some(format!("{:?} replaces {replaces:?}", message.key)),
            Update::Removed { key, .. } => Some(format!("{key:?} is gone")),
            _ => None,
        })
        .collect();
    // What took the lost message's seq belongs to another key.
    assert_eq!(told, ["Some(\"k2\") is gone", "Some(\"k1\") replaces Some(Seq(1))"]);
}

#[test]
fn what_asking_again_does_not_cure_ends_it_and_all_else_is_asked_again_later_and_later() {
    let (mut machine, _) = Machine::begin(FeedKeys::All, FeedFrom::Beginning);
    let mut last = Duration::ZERO;
    for _ in 0..20 {
        let error = Error::Deadline { deadline: Duration::from_secs(1), last: None };
        let Next::Ask(question, pause) = machine.apply(Input::Failed(error), last, 0).next else { panic!() };
        assert_eq!(question, Question::Page(Seq::new(0)));
        assert!(pause >= last && pause <= LONGEST_PAUSE);
        last = pause;
    }
    assert_eq!(last, LONGEST_PAUSE);
    for code in [ErrorCode::BadRequest, ErrorCode::Corrupt, ErrorCode::PermissionDenied] {
        let error = Error::from_reply(ErrorReply::new(code, "no"));
        assert!(matches!(machine.apply(Input::Failed(error), last, 0).next, Next::End(_)));
    }
}

#[test]
fn a_feed_that_hears_nothing_asks_about_once_a_minute() {
    let (mut machine, _) = Machine::begin(FeedKeys::All, FeedFrom::Now);
    let subject = Subject::new();
    for luck in [0, u64::MAX / 3, u64::MAX] {
        let step = machine.apply(Input::Info(Box::new(subject.info())), Duration::from_secs(1_000), luck);
        let Next::Listen(until) = step.next else { panic!("{step:?}") };
        let wait = until.as_secs() - 1_000;
        assert!((45..=68).contains(&wait), "{wait}");
    }
}
