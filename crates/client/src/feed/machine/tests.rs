//! A feed against a model of a subject with all kinds of changes, over a bus that loses, repeats and
//! reorders.

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

/// A subject and its history.
#[derive(Clone)]
struct Subject {
    term: u64,
    base: u64,
    rev: u64,
    next_seq: u64,
    messages: Messages,
    config: SubjectConfig,
    /// Every change of the current history, with its term.
    path: Vec<(u64, Change)>,
    /// The base of every term.
    bases: BTreeMap<u64, u64>,
    /// Removals before this rev are forgotten.
    floor: u64,
    /// The state at every rev of the history, to start a feed from.
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

    /// Performs a random change; returns its event.
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

    /// A failover to another server, which lacks the last few changes. Returns the server's beacon.
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

    /// Returns whether the changes since this position lead to the current state.
    fn has_path_from(&self, after: Position) -> bool {
        let next = self.bases.range(after.term.get() + 1..).next().map(|(_, base)| *base);
        let (term, rev) = (after.term.get(), after.rev.get());
        rev == 0 && self.floor == 0
            || rev >= self.floor && term <= self.term && rev <= next.unwrap_or(self.rev)
    }

    /// At most `most` changes after this position.
    fn changes(&self, after: Position, most: usize) -> ChangesReply {
        let mut reply = ChangesReply {
            position: self.position(),
            term_base: Rev::new(self.base),
            resync: !self.has_path_from(after),
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

/// A reader of the feed that follows the rules in the documentation of [`Update`].
#[derive(Default)]
struct Reader {
    messages: Messages,
    /// As far as reported: a feed from the beginning reports it once it changes.
    config: Option<SubjectConfig>,
    /// Every message that was ever emitted.
    emitted: BTreeSet<(Seq, Term, Rev)>,
    /// A failover may restore a message that was replaced before.
    may_come_back: bool,
    position: Option<Position>,
    marks: usize,
    resets: usize,
    /// Whether `replaces` and `Removed` must be exact.
    is_exact: bool,
}

impl Reader {
    fn take(&mut self, outputs: Vec<FeedOutput>) {
        for output in outputs {
            if let Some(update) = output.update {
                self.update(update);
            }
            self.position = output.position;
        }
    }

    fn update(&mut self, update: Update) {
        match update {
            Update::Set { message, replaces } => {
                let name = (message.seq, message.term, message.rev);
                let is_new = self.emitted.insert(name);
                assert!(is_new || self.may_come_back, "{message:?} was emitted twice");
                assert_ne!(self.messages.get(&message.seq), Some(&message), "emitted again while it exists");
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
                assert!(!self.is_exact, "a feed from the beginning needs no reset");
                self.messages.clear();
                self.emitted.clear();
                self.resets += 1;
            }
        }
    }
}

/// A feed, its reader, and the events in flight to it.
struct World {
    subject: Subject,
    keys: FeedKeys,
    machine: FeedMachine,
    reader: Reader,
    next: FeedAction,
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
        let (mut machine, mut step) = FeedMachine::begin(keys.clone(), from);
        if from == FeedFrom::Now {
            step = machine.apply(FeedInput::Info(Box::new(subject.info())), Duration::ZERO, 0);
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
        world.reader.take(step.outputs);
        world
    }

    fn apply(&mut self, input: FeedInput, random: u64) {
        self.now += Duration::from_millis(1);
        self.reader.may_come_back = self.subject.term > 1;
        let step = self.machine.apply(input, self.now, random);
        self.reader.take(step.outputs);
        self.next = step.next;
        if let FeedAction::End(error) = &self.next {
            panic!("the feed ended: {error}");
        }
    }

    /// Answers the pending query, or lets the next event arrive.
    fn advance(&mut self, random: u64) {
        match self.next {
            FeedAction::Ask(question, _) => {
                let most = (random % 3 + 1) as usize;
                let input = match question {
                    FeedQuery::Info => FeedInput::Info(Box::new(self.subject.info())),
                    FeedQuery::Changes(after) => FeedInput::Changes(self.subject.changes(after, most)),
                    FeedQuery::Page(start) => FeedInput::Page(self.subject.page(start, most, &self.keys)),
                };
                self.apply(input, random);
            }
            FeedAction::Listen(_) => {
                if let Some(event) = self.events.pop_front() {
                    self.apply(FeedInput::Event(event), random);
                }
            }
            FeedAction::End(_) => {}
        }
    }

    fn step(&mut self, action: u8, what: u8, pick: u64) {
        match action % 16 {
            0..=4 => self.events.extend(self.subject.act(what, pick)),
            5..=8 => self.advance(pick),
            9 => drop(self.events.pop_front()),
            10 => self.events.extend(self.events.front().cloned()),
            11 => self.events.rotate_left(usize::from(!self.events.is_empty())),
            12 => self.events.push_back(self.subject.event(Vec::new())),
            13 if matches!(self.next, FeedAction::Ask(..)) => {
                let code = if pick.is_multiple_of(2) { ErrorCode::Unavailable } else { ErrorCode::Internal };
                self.apply(FeedInput::Failed(Error::from_reply(ErrorReply::new(code, "no"))), pick);
            }
            14 if matches!(self.next, FeedAction::Listen(_)) => {
                self.apply(
                    if pick.is_multiple_of(2) { FeedInput::Lost } else { FeedInput::ServerGone },
                    pick,
                );
            }
            _ => {}
        }
    }

    /// The events in flight arrive, and then a beacon.
    fn deliver_all(&mut self) {
        self.events.push_back(self.subject.event(Vec::new()));
        while !self.events.is_empty() || matches!(self.next, FeedAction::Ask(..)) {
            self.advance(2);
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

/// `usual` cases, or as many as the environment's `PROPTEST_CASES` says: a number in the source would hide
/// it.
fn cases(usual: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() { default } else { ProptestConfig::with_cases(usual) }
}

proptest! {
    #![proptest_config(cases(1_000))]

    /// Under any loss, repetition, reordering and change: after the bus has delivered its messages and a
    /// beacon, the fold of the updates equals the state of the subject, and no update was emitted twice.
    #[test]
    fn feed_updates_fold_to_subject_state_when_quiet(
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
            world.deliver_all();
            world.check();
        }
    }

    /// A feed resumes from the position up to which another feed was read.
    #[test]
    fn feed_resumes_from_position_of_another_feed(
        parts in proptest::collection::vec(actions(40), 2..4),
    ) {
        let mut world = World::new(&[], FeedKeys::All, 0);
        for part in parts {
            for (action, what, pick) in part {
                world.step(action, what, pick);
            }
            if let Some(position) = world.reader.position {
                // The new feed tracks nothing, and the reader already has some of the messages.
                world.reader.is_exact = false;
                world.reader.emitted.clear();
                let (machine, step) = FeedMachine::begin(FeedKeys::All, FeedFrom::After(position));
                (world.machine, world.next) = (machine, step.next);
                world.events.clear();
            }
        }
        world.deliver_all();
        world.check();
    }
}

/// After a failover, the full read reports a key that was set again as a replacement, without a removal.
#[test]
fn feed_resync_reports_rewritten_key_without_removal() {
    let mut world = World::new(&[(0, 1), (4, 0)], FeedKeys::All, 0);
    world.deliver_all();
    // Another server continues without the last writes, and the key is set again: only a full read detects
    // it.
    world.subject.act(0, 2);
    world.apply(FeedInput::Due, 0);
    world.advance(2);
    world.subject.fail_over(1);
    world.subject.act(0, 1);
    world.apply(FeedInput::Due, 0);
    let mut updates = Vec::new();
    while let FeedAction::Ask(question, _) = world.next {
        let input = match question {
            FeedQuery::Info => FeedInput::Info(Box::new(world.subject.info())),
            FeedQuery::Changes(after) => FeedInput::Changes(world.subject.changes(after, 9)),
            FeedQuery::Page(start) => FeedInput::Page(world.subject.page(start, 1, &world.keys)),
        };
        let step = world.machine.apply(input, world.now, 0);
        updates.extend(step.outputs.into_iter().filter_map(|output| output.update));
        world.next = step.next;
    }
    let emitted: Vec<String> = updates
        .iter()
        .filter_map(|update| match update {
            Update::Set { message, replaces } => Some(format!("{:?} replaces {replaces:?}", message.key)),
            Update::Removed { key, .. } => Some(format!("{key:?} removed")),
            _ => None,
        })
        .collect();
    // The message that now has the lost message's seq has another key.
    assert_eq!(emitted, ["Some(\"k2\") removed", "Some(\"k1\") replaces Some(Seq(1))"]);
}

/// A feed repeats its query with growing pauses after a transient error and ends after a permanent one.
#[test]
fn feed_backs_off_on_transient_and_ends_on_permanent_error() {
    let (mut machine, _) = FeedMachine::begin(FeedKeys::All, FeedFrom::Beginning);
    let mut last = Duration::ZERO;
    for _ in 0..20 {
        let error = Error::Deadline { deadline: Duration::from_secs(1), last: None };
        let FeedAction::Ask(question, pause) = machine.apply(FeedInput::Failed(error), last, 0).next else {
            panic!()
        };
        assert_eq!(question, FeedQuery::Page(Seq::new(0)));
        assert!(pause >= last && pause <= LONGEST_PAUSE);
        last = pause;
    }
    assert_eq!(last, LONGEST_PAUSE);
    for code in [ErrorCode::BadRequest, ErrorCode::Corrupt, ErrorCode::PermissionDenied] {
        let error = Error::from_reply(ErrorReply::new(code, "no"));
        assert!(matches!(machine.apply(FeedInput::Failed(error), last, 0).next, FeedAction::End(_)));
    }
}

/// A feed that receives no events polls the server after 45 to 68 seconds.
#[test]
fn feed_without_events_polls_about_once_a_minute() {
    let (mut machine, _) = FeedMachine::begin(FeedKeys::All, FeedFrom::Now);
    let subject = Subject::new();
    for random in [0, u64::MAX / 3, u64::MAX] {
        let step =
            machine.apply(FeedInput::Info(Box::new(subject.info())), Duration::from_secs(1_000), random);
        let FeedAction::Listen(until) = step.next else { panic!("{step:?}") };
        let wait = until.as_secs() - 1_000;
        assert!((45..=68).contains(&wait), "{wait}");
    }
}
