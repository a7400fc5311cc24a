//! Random entries: every replay gives the same file, whatever its interruptions and its initial state, and
//! every follower of changes gets the same state.

use std::collections::BTreeMap;
use std::path::PathBuf;

use dormouse_format::entry::LogEntry;
use dormouse_format::record::RecordOp;
use dormouse_protocol::data::{ChangesRequest, GetAllRequest, GetRequest};
use dormouse_protocol::limits::ENVELOPE_BYTES;
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Change, Message, Position};
use proptest::prelude::*;

use super::super::fixture::*;
use super::super::*;

/// A random step, from a small range so that steps collide often.
#[derive(Debug, Clone)]
enum Step {
    /// Consecutive sets, each in a separate operation or all in one batch, with a key or none.
    Sets {
        keys: Vec<Option<u8>>,
        batch: bool,
        bytes: u8,
        in_place: bool,
        msg_id: Option<u8>,
    },
    /// A message of the file is removed.
    Delete(u8),
    /// Everything up to a message of the file is removed.
    DeleteAll(u8),
    Configure(u8),
    /// A rejection is recorded.
    Remember,
    /// The term increases by this number.
    Term(u64),
    /// Time passes.
    Wait(u64),
    /// The follower reads a page with this number of changes and this size limit.
    Follow(u64, usize),
    /// The current file is copied, and replayed to the end later.
    Copy,
    /// The next entry is rolled back first, and the file is reopened.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let sets = (
        proptest::collection::vec(proptest::option::weighted(0.7, 0..6_u8), 1..4),
        any::<bool>(),
        any::<u8>(),
        proptest::bool::weighted(0.2),
        proptest::option::weighted(0.2, 0..4_u8),
    );
    prop_oneof![
        8 => sets.prop_map(|(keys, batch, bytes, in_place, msg_id)| Step::Sets { keys, batch, bytes, in_place, msg_id }),
        2 => any::<u8>().prop_map(Step::Delete),
        1 => any::<u8>().prop_map(Step::DeleteAll),
        1 => any::<u8>().prop_map(Step::Configure),
        2 => Just(Step::Remember),
        1 => (1..3_u64).prop_map(Step::Term),
        2 => (1..5_000_u64).prop_map(Step::Wait),
        4 => (1..5_u64, 1_500..4_000_usize).prop_map(|(limit, bytes)| Step::Follow(limit, bytes)),
        1 => Just(Step::Copy),
        1 => Just(Step::Crash),
    ]
}

/// A follower that updates its copy of the subject with changes.
#[derive(Default)]
struct Follower {
    position: Position,
    messages: BTreeMap<Seq, Message>,
    config: SubjectConfig,
}

impl Follower {
    /// Returns whether there is more.
    fn follow(&mut self, database: &Database, limit: Option<u64>, bytes: usize) -> bool {
        let request = ChangesRequest { after: self.position, limit, ..ChangesRequest::default() };
        let reply = database.changes(&request, ENVELOPE_BYTES + bytes).unwrap();
        assert!(dormouse_protocol::encode(&reply).unwrap().len() <= ENVELOPE_BYTES + bytes);
        assert!(!reply.resync, "{request:?} {reply:?}");
        assert!(reply.more || reply.position == database.state().position());
        assert!(reply.position > self.position || !reply.more);
        let mut last = self.position.rev;
        for change in reply.changes {
            assert!(change.rev() >= last && change.rev() > self.position.rev);
            last = change.rev();
            self.take(change);
        }
        assert!(last <= reply.position.rev);
        self.position = reply.position;
        reply.more
    }

    fn take(&mut self, change: Change) {
        match change {
            Change::Set(set) => {
                let message = set.message;
                self.messages.retain(|_, held| held.key.is_none() || held.key != message.key);
                self.messages.insert(message.seq, message);
            }
            Change::Delete(delete) => {
                for gone in delete.removed {
                    self.messages
                        .retain(|&seq, held| seq != gone.seq && (held.key.is_none() || held.key != gone.key));
                }
            }
            Change::DeleteAll(gone) => self.messages.retain(|&seq, _| seq > gone.end_seq),
            Change::Configure(configure) => self.config = configure.config,
        }
    }

    /// Reads the remaining changes and the omitted values; then its copy must equal the file.
    fn catch_up(mut self, database: &Database) {
        while self.follow(database, None, 2_000) {}
        for message in self.messages.values_mut().filter(|message| message.value_omitted) {
            let got = database.get(&GetRequest::seq(message.seq), 1 << 20).unwrap().messages.remove(0);
            *message = got;
        }
        let held: Vec<_> = self.messages.into_values().collect();
        assert_eq!(held, database.get_all(&GetAllRequest::default(), 1 << 24).unwrap().messages);
        assert_eq!(self.config, database.state().config);
    }
}

struct World {
    folder: tempfile::TempDir,
    database: Option<Database>,
    entries: Vec<LogEntry>,
    term: Term,
    now: u64,
    follower: Follower,
    copies: Vec<PathBuf>,
    crash: bool,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = fresh(&folder.path().join("s.sqlite3"));
        Self {
            folder,
            database: Some(database),
            entries: Vec::new(),
            term: Term::new(1),
            now: 0,
            follower: Follower::default(),
            copies: Vec::new(),
            crash: false,
        }
    }

    fn database(&mut self) -> &mut Database {
        self.database.as_mut().unwrap()
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Sets { keys, batch, bytes, in_place, msg_id } => {
                let operations = self.sets(keys, *batch, *bytes, *in_place, *msg_id);
                self.write(operations);
            }
            Step::Delete(which) => {
                if let Some(seq) = self.held(*which) {
                    let operation = self.database().delete(&[seq]);
                    self.write(vec![operation]);
                }
            }
            Step::DeleteAll(which) => {
                if let Some(seq) = self.held(*which) {
                    let operation = self.database().delete_all(seq);
                    self.write(vec![operation]);
                }
            }
            Step::Configure(n) => self.write(vec![RecordOp::Configure { config: config(&n.to_string()) }]),
            Step::Remember => self.write(Vec::new()),
            Step::Term(more) => self.term = Term::new(self.term.get() + more),
            Step::Wait(seconds) => self.now += seconds,
            Step::Follow(limit, bytes) => {
                self.follower.follow(self.database.as_ref().unwrap(), Some(*limit), *bytes);
            }
            Step::Copy => {
                let copy = self.folder.path().join(format!("copy-{}", self.copies.len()));
                self.database().checkpoint().unwrap();
                std::fs::copy(self.database().path(), &copy).unwrap();
                self.copies.push(copy);
            }
            Step::Crash => self.crash = true,
        }
    }

    /// The seq of some message of the file.
    fn held(&mut self, which: u8) -> Option<u64> {
        let page = self.database().get_all(&GetAllRequest::default(), 1 << 24).unwrap();
        let place = usize::from(which) % page.messages.len().max(1);
        page.messages.get(place).map(|message| message.seq.get())
    }

    fn sets(
        &mut self,
        keys: &[Option<u8>],
        batch: bool,
        bytes: u8,
        in_place: bool,
        msg_id: Option<u8>,
    ) -> Vec<RecordOp> {
        let database = self.database.as_ref().unwrap();
        let mut keys = keys.to_vec();
        keys.sort_unstable();
        keys.dedup_by(|one, other| one == other && one.is_some());
        let mut sets = Vec::new();
        for (n, key) in keys.iter().enumerate() {
            let key = key.map(|key| "k".repeat(usize::from(key)));
            let mut set = database.set(key.as_deref(), &vec![bytes; usize::from(bytes) * 2]);
            set.seq = Seq::new(set.seq.get() + n as u64);
            if let Some(held) = set.replaces.filter(|_| in_place) {
                set.seq = held;
            } else if bytes > 250 {
                (set.value, set.blob) = (None, Some(blob(1, (self.entries.len() * 10 + n) as u128)));
            }
            set.expires_at = bytes.is_multiple_of(3).then(|| second(u64::from(bytes)));
            set.msg_id = msg_id.map(|msg_id| format!("{msg_id}-{n}"));
            sets.push(set);
        }
        match batch {
            true => vec![RecordOp::Batch { sets }],
            false => sets.into_iter().map(RecordOp::Set).collect(),
        }
    }

    fn write(&mut self, operations: Vec<RecordOp>) {
        let n = self.entries.len() as u64;
        let (term, accept_time) = (self.term, second(self.now));
        let crash = std::mem::take(&mut self.crash);
        let database = self.database.as_mut().unwrap();
        let entry = LogEntry { term, accept_time, ..database.entry(operations) };
        let entry = remembered(entry, request(u128::from(n % 3), n), refusal(&n.to_string()));
        if crash {
            database.begin().unwrap();
            database.apply(&entry).unwrap();
            if n.is_multiple_of(2) {
                database.rollback().unwrap();
            } else {
                let path = self.database.take().unwrap().path().to_owned();
                self.database = Some(Database::open(&path, &subject()).unwrap());
            }
        }
        self.database().check_counts();
        self.database().commit_entry(&entry).unwrap();
        self.database().check_counts();
        self.entries.push(entry);
    }

    fn compare(mut self) {
        let database = self.database.take().unwrap();
        let expected = database.dump();
        let fresh = fresh(&self.folder.path().join("fresh"));
        // Several entries in one transaction, some twice.
        for (mut copy, overlap) in
            self.copies.iter().map(|copy| (Database::open(copy, &subject()).unwrap(), 5)).chain([(fresh, 0)])
        {
            let base = copy.state().rev;
            let above =
                self.entries.iter().position(|entry| entry.is_above(base)).unwrap_or(self.entries.len());
            for group in self.entries[above.saturating_sub(overlap)..].chunks(3) {
                copy.begin().unwrap();
                for entry in group {
                    copy.apply_if_new(entry).unwrap();
                }
                copy.commit().unwrap();
            }
            copy.check_counts();
            assert_eq!(copy.dump(), expected);
            assert_eq!(copy.state(), database.state());
            if let Some(entry) = self.entries.last().filter(|entry| !entry.operations.is_empty()) {
                let gap = LogEntry { after: copy.state().rev.next(), ..entry.clone() };
                assert!(matches!(copy.apply_if_new(&gap), Err(DatabaseError::Diverged(_))));
            }
        }
        self.follower.catch_up(&database);
        Follower::default().catch_up(&database);
    }
}

proptest! {
    #![proptest_config(dormouse_testkit::cases(100))]

    /// The counters also equal the rows: after every entry, a rollback, an open, and a replay on a copy.
    #[test]
    fn database_replay_gives_equal_files_and_equal_states(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.compare();
    }
}
