//! Compares planning and applying with a simple model over random requests. In between, the file is closed
//! and opened, copied as a snapshot and restored.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use dormouse_protocol::data::{
    ChangesRequest, ConfigureRequest, DeleteAllRequest, DeleteRequest, Expect, GetAllRequest, GetRequest,
    KeysRequest, SetItem, SetOutcome, SetRequest,
};
use dormouse_protocol::message::Discard;
use dormouse_protocol::{Change, ErrorCode, Position, RequestId, SessionId};
use proptest::prelude::*;

use super::super::*;
use crate::plan::{self, PlanContext, PlanResult, plan, plan_retention};
use crate::request::{SubjectReply, SubjectRequest};

/// Seq, key, value, expectation and time to live of one set.
type Set = (Option<u64>, Option<u8>, u8, Option<Guess>, Option<u64>);

/// A random step, from a small range so that steps collide often.
#[derive(Debug, Clone)]
enum Step {
    Set(Vec<Set>),
    Delete(Vec<u64>, Vec<u8>),
    DeleteAll(Option<u64>, Option<u64>),
    Configure(SubjectConfig),
    Clock(u64),
    KeepUp,
    Reopen,
    Restore,
    NextTerm,
    /// Deletes at most this many rows of removed messages.
    DeleteRows(usize),
    /// An earlier request arrives once more.
    Repeat(u8),
}

/// The expectation of a set's caller.
#[derive(Debug, Clone, Copy)]
enum Guess {
    LastIsRight,
    LastIsWrong,
    KeyIsRight,
    KeyIsAbsent,
}

fn step() -> impl Strategy<Value = Step> {
    let guess = prop_oneof![
        Just(Guess::LastIsRight),
        Just(Guess::LastIsWrong),
        Just(Guess::KeyIsRight),
        Just(Guess::KeyIsAbsent)
    ];
    let set = (
        proptest::option::weighted(0.3, 0..40_u64),
        proptest::option::weighted(0.7, 0..6_u8),
        any::<u8>(),
        proptest::option::weighted(0.3, guess),
        proptest::option::weighted(0.3, 1..50_u64),
    );
    prop_oneof![
        8 => proptest::collection::vec(set, 1..5).prop_map(Step::Set),
        2 => (proptest::collection::vec(0..40_u64, 0..3), proptest::collection::vec(0..6_u8, 0..3))
            .prop_map(|(seqs, keys)| Step::Delete(seqs, keys)),
        1 => (proptest::option::of(0..40_u64), Just(None)).prop_map(|(end, keep)| Step::DeleteAll(end, keep)),
        1 => (0..5_u64).prop_map(|keep| Step::DeleteAll(None, Some(keep))),
        2 => config().prop_map(Step::Configure),
        // Also backwards.
        3 => (0..100_u64).prop_map(Step::Clock),
        4 => Just(Step::KeepUp),
        1 => Just(Step::Reopen),
        1 => Just(Step::Restore),
        1 => Just(Step::NextTerm),
        2 => (1..4_usize).prop_map(Step::DeleteRows),
        3 => any::<u8>().prop_map(Step::Repeat),
    ]
}

fn config() -> impl Strategy<Value = SubjectConfig> {
    (
        proptest::option::of(1..8_u64),
        proptest::option::of(4..20_u64),
        proptest::option::weighted(0.2, 1..4_u64),
        proptest::option::weighted(0.4, 1..60_u64),
        proptest::option::weighted(0.3, 1..60_u64),
        proptest::bool::weighted(0.3),
    )
        .prop_map(|(max_msgs, max_bytes, max_msg_size, max_age_ms, default_ttl_ms, refuses)| {
            SubjectConfig {
                max_msgs,
                max_bytes,
                max_msg_size,
                max_age_ms,
                default_ttl_ms,
                discard: refuses.then_some(Discard::New),
                ..SubjectConfig::default()
            }
        })
}

/// The size of a value that starts with this byte.
const fn size(value: u8) -> usize {
    1 + value as usize % 4
}

/// A message of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    accepted_ms: u64,
    expires_ms: Option<u64>,
    term: u64,
    rev: u64,
    key: Option<u8>,
    value: u8,
}

#[derive(Debug, Default)]
struct Model {
    messages: BTreeMap<u64, Entry>,
    next_seq: u64,
    last: Option<(u64, u64)>,
    term: u64,
    rev: u64,
    config: SubjectConfig,
    now_ms: u64,
}

impl Model {
    fn bytes(&self) -> u64 {
        self.messages.values().map(|entry| size(entry.value) as u64).sum()
    }

    /// Whether the limits allow this amount, given the amount before.
    fn may_hold(&self, (msgs, bytes): (u64, u64), before: (u64, u64)) -> bool {
        self.config.max_msgs.is_none_or(|most| msgs <= most.max(before.0))
            && self.config.max_bytes.is_none_or(|most| bytes <= most.max(before.1))
    }

    fn held(&self) -> (u64, u64) {
        (self.messages.len() as u64, self.bytes())
    }

    /// Evicts the oldest messages until the limits allow the rest, given the amount before; messages not in
    /// `spared` first.
    fn evict(&mut self, before: (u64, u64), spared: &[u64]) {
        let mut gone = Vec::new();
        while self.config.discard != Some(Discard::New) && !self.may_hold(self.held(), before) {
            let all = || self.messages.keys().copied();
            let oldest = all().find(|seq| !spared.contains(seq)).or_else(|| all().next()).unwrap();
            self.messages.remove(&oldest);
            gone.push(oldest);
        }
        self.rev += u64::from(!gone.is_empty());
    }

    fn expire(&mut self) {
        let (before, max_age_ms) = (self.messages.len(), self.config.max_age_ms);
        let now_ms = self.now_ms;
        self.messages.retain(|_, entry| {
            let by_age = max_age_ms.map(|max_age_ms| entry.accepted_ms + max_age_ms);
            entry.expires_ms.iter().chain(&by_age).all(|&at| at > now_ms)
        });
        self.rev += u64::from(self.messages.len() < before);
    }

    fn holder(&self, key: Option<u8>) -> Option<u64> {
        let key = key?;
        self.messages.iter().find(|(_, entry)| entry.key == Some(key)).map(|(&seq, _)| seq)
    }

    /// The seq, or `None` if the set must be rejected.
    fn set(&mut self, (seq, key, value, guess, ttl_ms): Set) -> Option<u64> {
        match guess {
            Some(Guess::LastIsWrong) => return None,
            Some(Guess::KeyIsRight | Guess::KeyIsAbsent) if key.is_none() => return None,
            Some(Guess::KeyIsAbsent) if self.holder(key).is_some() => return None,
            _ => {}
        }
        let seq = match seq {
            None => self.next_seq,
            Some(seq) if seq >= self.next_seq => seq,
            Some(seq) if self.messages.get(&seq).is_some_and(|entry| entry.key == key) => seq,
            Some(_) => return None,
        };
        let alone = (1, size(value) as u64);
        let before = self.held();
        let gone = self.holder(key).filter(|&holder| holder != seq).into_iter().chain([seq]);
        let gone: Vec<_> =
            gone.filter_map(|seq| self.messages.remove(&seq).map(|entry| (seq, entry))).collect();
        let after = (self.messages.len() as u64 + 1, self.bytes() + alone.1);
        let is_refused = self.config.discard == Some(Discard::New) && !self.may_hold(after, before);
        if is_refused
            || !self.may_hold(alone, (0, 0))
            || self.config.max_msg_size.is_some_and(|most| alone.1 > most)
        {
            self.messages.extend(gone);
            return None;
        }
        self.rev += 1;
        let expires_ms = ttl_ms.or(self.config.default_ttl_ms).map(|ttl_ms| self.now_ms + ttl_ms);
        let entry =
            Entry { accepted_ms: self.now_ms, expires_ms, term: self.term, rev: self.rev, key, value };
        self.messages.insert(seq, entry);
        self.next_seq = self.next_seq.max(seq + 1);
        if self.last.is_none_or(|(_, last)| seq >= last) {
            self.last = Some((self.term, seq));
        }
        Some(seq)
    }

    /// Removes the messages in `gone`, and counts a rev if there are any.
    fn remove(&mut self, gone: &[u64]) {
        let before = self.messages.len();
        self.messages.retain(|seq, _| !gone.contains(seq));
        self.rev += u64::from(self.messages.len() < before);
    }
}

fn key_name(key: u8) -> String {
    // One of them is the empty key.
    "k".repeat(usize::from(key))
}

struct World {
    folder: tempfile::TempDir,
    path: PathBuf,
    database: Option<Database>,
    model: Model,
    counter: u64,
    answered: Vec<(SubjectRequest, Result<SubjectReply, ErrorCode>)>,
    clock_ms: u64,
}

fn name() -> Subject {
    "app.model".parse().unwrap()
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sqlite3");
        let database = Database::create(&path, &name(), &InitialState::default()).unwrap();
        let model = Model { next_seq: 1, ..Model::default() };
        let mut world = Self {
            folder,
            path,
            database: Some(database),
            model,
            counter: 0,
            answered: Vec::new(),
            clock_ms: 0,
        };
        world.next_term();
        world
    }

    fn database(&mut self) -> &mut Database {
        self.database.as_mut().unwrap()
    }

    fn next_term(&mut self) {
        self.model.term += 1;
        let owner = FileOwner {
            log: "persist-1-01J9Z3ABCDEFGHJKMNPQRSTVWX".parse().unwrap(),
            term: Term::new(self.model.term),
            term_base: Rev::new(self.model.rev),
            manifest: ManifestNumber::new(self.model.term),
            bucket_rev: Rev::new(self.model.rev),
        };
        self.database().take_over(&owner).unwrap();
    }

    fn reopen(&mut self) {
        drop(self.database.take());
        self.database = Some(Database::open(&self.path, &name()).unwrap());
    }

    /// Like a snapshot through the bucket: the main file alone, copied after a checkpoint while writes
    /// continue.
    fn restore(&mut self) {
        self.database().checkpoint().unwrap();
        let copy = self.folder.path().join("copy");
        std::fs::copy(&self.path, &copy).unwrap();
        let owner = self.database().provenance().clone();
        self.database().set_in_bucket(owner.manifest, owner.bucket_rev).unwrap();
        drop(self.database.take());
        remove_files(&self.path).unwrap();
        std::fs::rename(copy, &self.path).unwrap();
        self.database = Some(Database::open(&self.path, &name()).unwrap());
    }

    /// Runs a request under a new id; the changes must be exactly those of the reply.
    fn run(&mut self, request: &SubjectRequest) -> (Result<SubjectReply, ErrorCode>, Vec<Change>) {
        let request = &self.named(request.clone());
        let context = self.context();
        let database = self.database();
        let (entry, outcome) = match plan(request, database, context) {
            PlanResult::Write { entry, outcome } => (entry, outcome),
            PlanResult::Answer(answer) | PlanResult::DeferredAnswer(answer) => {
                return (answer.map_err(|error| error.code), Vec::new());
            }
            PlanResult::Later => panic!("{request:?}"),
        };
        database.begin().unwrap();
        database.apply(&entry).unwrap();
        database.commit().unwrap();
        self.model.now_ms = self.model.now_ms.max(self.clock_ms);
        let changes = entry.records().flat_map(|record| record.changes()).collect();
        let answer = plan::answer(outcome).map_err(|error| error.code);
        self.answered.push((request.clone(), answer.clone()));
        (answer, changes)
    }

    fn context(&self) -> PlanContext<'static> {
        let accept_time = Timestamp::from_micros(self.clock_ms * 1_000);
        PlanContext { accept_time, max_message_bytes: 1 << 20, blobs: &[] }
    }

    fn configure(&mut self, config: &SubjectConfig) {
        let request = ConfigureRequest { config: config.clone(), ..ConfigureRequest::default() };
        let (answer, _) = self.run(&SubjectRequest::Configure(request));
        assert!(answer.is_ok(), "{answer:?}");
        self.model.config = config.clone();
        self.model.rev += 1;
        self.model.evict((0, 0), &[]);
    }

    /// Time passes without a request: expired messages are removed.
    fn keep_up(&mut self) {
        let context = self.context();
        self.model.now_ms = self.model.now_ms.max(self.clock_ms);
        let database = self.database.as_mut().unwrap();
        let due = database.next_expiry().is_some_and(|at| at.as_micros() <= self.model.now_ms * 1_000);
        let before = self.model.rev;
        self.model.expire();
        assert_eq!(due, self.model.rev > before, "the next expiry is known");
        self.model.evict((0, 0), &[]);
        if let Some(entry) = plan_retention(database, context).unwrap() {
            database.begin().unwrap();
            database.apply(&entry).unwrap();
            database.commit().unwrap();
        } else {
            self.model.now_ms = database.state().accept_time.as_millis();
        }
    }

    /// Three clients take turns.
    fn named(&mut self, mut request: SubjectRequest) -> SubjectRequest {
        self.counter += 1;
        let id =
            RequestId { session: SessionId::new(u128::from(self.counter % 3).into()), counter: self.counter };
        match &mut request {
            SubjectRequest::Set(request) => request.request = Some(id),
            SubjectRequest::Delete(request) => request.request = Some(id),
            SubjectRequest::DeleteAll(request) => request.request = Some(id),
            SubjectRequest::Configure(request) => request.request = Some(id),
            other => panic!("{other:?}"),
        }
        request
    }

    /// A repeat gets the first reply, marked as a duplicate, and changes nothing: also after the file was
    /// reopened, restored, or taken over under another term.
    fn repeat(&mut self, which: u8) {
        let Some((request, answer)) = self.answered.get(usize::from(which) % self.answered.len().max(1))
        else {
            return;
        };
        let mut answer = answer.clone();
        match &mut answer {
            Ok(SubjectReply::Set(reply)) => {
                for outcome in &mut reply.results {
                    if let SetOutcome::Ok(result) = outcome {
                        result.duplicate = true;
                    }
                }
            }
            Ok(SubjectReply::Delete(reply)) => reply.duplicate = true,
            Ok(SubjectReply::DeleteAll(reply)) => reply.duplicate = true,
            Ok(SubjectReply::Configure(reply)) => reply.duplicate = true,
            _ => {}
        }
        let context = self.context();
        let PlanResult::DeferredAnswer(again) = plan(request, self.database.as_ref().unwrap(), context)
        else {
            panic!("{request:?} is executed again");
        };
        assert_eq!(again.map_err(|error| error.code), answer);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Set(sets) => self.set(sets),
            Step::Delete(seqs, keys) => self.delete(seqs, keys),
            Step::DeleteAll(end_seq, keep_last) => self.delete_all(*end_seq, *keep_last),
            Step::Configure(config) => self.configure(config),
            Step::Clock(millis) => self.clock_ms = *millis,
            Step::KeepUp => self.keep_up(),
            Step::Reopen => self.reopen(),
            Step::Restore => self.restore(),
            Step::NextTerm => self.next_term(),
            Step::DeleteRows(most) => {
                self.database().delete_rows_below_floor(*most).unwrap();
            }
            Step::Repeat(which) => self.repeat(*which),
        }
        self.compare();
    }

    fn set(&mut self, sets: &[Set]) {
        // Expectations are chosen before the request is sent, so only the first set can have a correct one.
        let sets: Vec<_> = sets
            .iter()
            .enumerate()
            .map(|(n, &(seq, key, value, guess, ttl))| (seq, key, value, guess.filter(|_| n == 0), ttl))
            .collect();
        let id = |(term, seq)| MessageId { term: Term::new(term), seq: Seq::new(seq) };
        let items = sets
            .iter()
            .map(|&(seq, key, value, guess, ttl_ms)| SetItem {
                seq: seq.map(Seq::new),
                key: key.map(key_name),
                value: Some(Bytes::from(vec![value; size(value)])),
                ttl_ms,
                expect: guess.map(|guess| match guess {
                    Guess::LastIsRight => Expect::Last(self.model.last.map(id)),
                    Guess::LastIsWrong => Expect::Last(Some(id((77, 77)))),
                    Guess::KeyIsAbsent => Expect::Key(None),
                    Guess::KeyIsRight => Expect::Key(
                        self.model.holder(key).map(|seq| id((self.model.messages[&seq].term, seq))),
                    ),
                }),
                ..SetItem::default()
            })
            .collect();
        self.model.now_ms = self.model.now_ms.max(self.clock_ms);
        let (answer, changes) =
            self.run(&SubjectRequest::Set(SetRequest { sets: items, ..SetRequest::default() }));
        let Ok(SubjectReply::Set(answer)) = answer else { panic!("{answer:?}") };
        let accepted = self.database().state().accept_time.as_millis();
        let (mut revs, mut seqs) = (Vec::new(), Vec::new());
        let before = self.model.held();
        for (outcome, set) in answer.results.iter().zip(sets) {
            let expected = self.model.set(set);
            match outcome {
                SetOutcome::Ok(result) => {
                    assert_eq!(Some(result.seq.get()), expected);
                    assert_eq!((result.term.get(), result.rev.get()), (self.model.term, self.model.rev));
                    revs.push(result.rev);
                    seqs.push(result.seq.get());
                }
                SetOutcome::Error(error) => assert_eq!(expected, None, "{error}"),
            }
        }
        // A request that is rejected by itself has no effect.
        self.model.now_ms = accepted;
        let last = self.model.rev;
        self.model.evict(before, &seqs);
        revs.extend((self.model.rev > last).then_some(Rev::new(self.model.rev)));
        assert_eq!(changes.iter().map(Change::rev).collect::<Vec<_>>(), revs);
    }

    fn delete(&mut self, seqs: &[u64], keys: &[u8]) {
        let request = DeleteRequest {
            seqs: seqs.iter().copied().map(Seq::new).collect(),
            keys: keys.iter().copied().map(key_name).collect(),
            ..DeleteRequest::default()
        };
        let (answer, _) = self.run(&SubjectRequest::Delete(request));
        if seqs.is_empty() && keys.is_empty() {
            assert_eq!(answer, Err(ErrorCode::BadRequest));
            return;
        }
        let mut gone: Vec<u64> =
            seqs.iter().copied().filter(|seq| self.model.messages.contains_key(seq)).collect();
        gone.extend(keys.iter().filter_map(|&key| self.model.holder(Some(key))));
        gone.sort_unstable();
        gone.dedup();
        self.model.remove(&gone);
        let Ok(SubjectReply::Delete(answer)) = answer else { panic!("{answer:?}") };
        assert_eq!(answer.seqs.iter().map(|seq| seq.get()).collect::<Vec<_>>(), gone);
        assert_eq!(answer.position.rev.get(), self.model.rev);
    }

    fn delete_all(&mut self, end_seq: Option<u64>, keep_last: Option<u64>) {
        let request =
            DeleteAllRequest { end_seq: end_seq.map(Seq::new), keep_last, ..DeleteAllRequest::default() };
        let (answer, _) = self.run(&SubjectRequest::DeleteAll(request));
        let keep = usize::try_from(keep_last.unwrap_or(0)).unwrap();
        let all: Vec<u64> = self.model.messages.keys().copied().collect();
        let gone: Vec<u64> = match end_seq {
            Some(end) => all.iter().copied().filter(|&seq| seq <= end).collect(),
            None => all[..all.len().saturating_sub(keep)].to_vec(),
        };
        self.model.remove(&gone);
        let Ok(SubjectReply::DeleteAll(answer)) = answer else { panic!("{answer:?}") };
        assert_eq!((answer.count, answer.position.rev.get()), (gone.len() as u64, self.model.rev));
    }

    fn compare(&mut self) {
        let database = self.database.as_ref().unwrap();
        let page = database.get_all(&GetAllRequest::default(), 1 << 20).unwrap();
        let held: Vec<_> = page
            .messages
            .iter()
            .map(|message| {
                let known = &self.model.messages[&message.seq.get()];
                assert_eq!(message.value.as_ref().unwrap().len(), size(known.value));
                let entry = Entry {
                    // Not part of the reply; expiry shows that it is correct.
                    accepted_ms: known.accepted_ms,
                    expires_ms: message.expires_at.map(Timestamp::as_millis),
                    term: message.term.get(),
                    rev: message.rev.get(),
                    key: message.key.as_ref().map(|key| u8::try_from(key.len()).unwrap()),
                    value: message.value.as_ref().unwrap()[0],
                };
                (message.seq.get(), entry)
            })
            .collect();
        let expected: Vec<_> = self.model.messages.iter().map(|(&seq, entry)| (seq, entry.clone())).collect();
        assert_eq!(held, expected);
        for prefix in [None, Some("kk".to_owned())] {
            let prefix_len = prefix.as_ref().map_or(0, String::len);
            let request = KeysRequest { prefix, ..KeysRequest::default() };
            let mut keys: Vec<usize> =
                self.model.messages.values().filter_map(|entry| entry.key).map(usize::from).collect();
            keys.retain(|key| *key >= prefix_len);
            keys.sort_unstable();
            let found = database.keys(&request, 1 << 20).unwrap();
            assert_eq!((found.keys.iter().map(String::len).collect::<Vec<_>>(), found.cursor), (keys, None));
        }
        for key in 0..6 {
            let found = database.get(&GetRequest::key(key_name(key)), 1 << 20).unwrap().messages;
            assert_eq!(found.first().map(|message| message.seq.get()), self.model.holder(Some(key)));
        }
        let after = Position { term: database.state().term, rev: Rev::new(0) };
        let changes =
            database.changes(&ChangesRequest { after, ..ChangesRequest::default() }, 1 << 20).unwrap();
        let written = changes.changes.iter().filter_map(|change| match change {
            Change::Set(set) => Some(set.message.seq.get()),
            _ => None,
        });
        let mut written: Vec<_> = written.collect();
        written.sort_unstable();
        assert!(changes.resync || written == expected.iter().map(|(seq, _)| *seq).collect::<Vec<_>>());
        let range = database.seq_range().unwrap().map(|(first, last)| (first.get(), last.get()));
        assert_eq!(range, expected.first().zip(expected.last()).map(|(first, last)| (first.0, last.0)));
        database.check_counts();
        let state = database.state();
        assert_eq!((state.rev.get(), state.term.get()), (self.model.rev, self.model.term));
        assert_eq!(state.next_seq.get(), self.model.next_seq);
        assert_eq!(state.last.map(|last| (last.term.get(), last.seq.get())), self.model.last);
        assert_eq!((state.count, state.bytes), self.model.held());
    }
}

proptest! {
    #![proptest_config(dormouse_testkit::cases(150))]

    /// Under random requests, reopens, restores and repeats, the database stays equal to a simple reference model.
    #[test]
    fn database_matches_reference_model(steps in proptest::collection::vec(step(), 1..40)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
    }
}
