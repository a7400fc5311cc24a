//! A long read under concurrent writes: its pages and the changes after the first page's position give the state. The
//! test uses the real client, coordinator and server, over the in-memory messaging system.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dormouse_bucket::ObjectStoreBucket;
use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
use dormouse_bus::{Callers, InboxPrefixes};
use dormouse_client::{Change, Changes, Client, Kv, Message, Pages, Position, Seq, SeqRange, Stream};
use dormouse_coordinator::store::memory::{MemoryDisk, MemoryStore};
use dormouse_coordinator::{Coordinator, CoordinatorOptions};
use dormouse_engine::{Engine, EngineSettings};
use dormouse_persist_server::server::{ProcessExit, Server, ServerSettings, ServerSides};
use dormouse_protocol::{Prefix, ServerName, TenantRule};
use dormouse_runtime::{Env, SeededEntropy, Tasks, VirtualClock};
use proptest::prelude::*;

/// So small that a read takes many pages.
const PAYLOAD: usize = 32 * 1_024;
const VALUE: usize = 3_000;

#[derive(Debug, Clone, Copy)]
enum Write {
    Put(u8),
    Delete(u8),
    DeleteSeq(u64),
    DeleteUpTo(u64),
    Publish,
    /// Several keys in one revision.
    Batch(u8, u8),
}

fn writes(most: usize) -> impl Strategy<Value = Vec<Write>> {
    let write = prop_oneof![
        8 => (0_u8..60).prop_map(Write::Put),
        3 => (0_u8..60).prop_map(Write::Delete),
        1 => (1_u64..120).prop_map(Write::DeleteSeq),
        1 => (1_u64..40).prop_map(Write::DeleteUpTo),
        1 => Just(Write::Publish),
        1 => (0_u8..30, 30_u8..60).prop_map(|(one, other)| Write::Batch(one, other)),
    ];
    proptest::collection::vec(write, 0..most)
}

/// The read, the writes before it, and the writes after a number of its messages.
#[derive(Debug, Clone)]
struct Case {
    before: Vec<Write>,
    meanwhile: Vec<(usize, Vec<Write>)>,
    prefix: Option<&'static str>,
    reverse: bool,
    limit: Option<u64>,
}

fn cases() -> impl Strategy<Value = Case> {
    let prefix = prop_oneof![Just(None), Just(Some("")), Just(Some("a"))];
    let meanwhile = proptest::collection::vec((0_usize..12, writes(12)), 0..8);
    (writes(120), meanwhile, prefix, any::<bool>(), proptest::option::of(1_u64..60)).prop_map(
        |(before, meanwhile, prefix, reverse, limit)| Case { before, meanwhile, prefix, reverse, limit },
    )
}

/// The fleet in one process.
struct Fleet {
    client: Client,
    _server: Server,
    _coordinator: Coordinator,
    _folder: tempfile::TempDir,
    _tasks: Tasks,
}

async fn fleet() -> Fleet {
    let clock = VirtualClock::starting_at(Duration::from_secs(1_000_000));
    let env = Env::simulated(Arc::new(clock), Arc::new(SeededEntropy::new(1)));
    let broker = MemoryBroker::new();
    broker.set_max_payload(PAYLOAD);
    let tasks = Tasks::new();
    let options = CoordinatorOptions {
        prefix: Prefix::default(),
        lease_ttl: Duration::from_secs(3),
        inbox_prefixes: InboxPrefixes::default(),
        callers: Callers::default(),
        tenant_rule: TenantRule::default(),
    };
    let store = Arc::new(MemoryStore::open(&MemoryDisk::new()));
    let bus = Arc::new(broker.connect(MemoryOptions::named("coordinator")));
    let coordinator = Coordinator::start(options, store, bus, env.clone(), &tasks).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let name = ServerName::new("a").unwrap();
    let bucket = Arc::new(ObjectStoreBucket::in_memory(env.clone()));
    let settings = EngineSettings::new(folder.path().to_owned(), name);
    let prepared = Engine::prepare(settings, bucket, env.clone()).await.unwrap();
    let settings = ServerSettings {
        prefix: Prefix::default(),
        capacity: 100,
        inbox_prefixes: InboxPrefixes::default(),
        callers: Callers::default(),
        tenant_rule: TenantRule::default(),
        started: env.boot(),
        exit: ProcessExit::new(|| panic!("a stalled data side ended its process")),
    };
    let bus = Arc::new(broker.connect(MemoryOptions::named("a")));
    let mut server = Server::start(prepared, settings, ServerSides::same(bus, env.clone())).await.unwrap();
    server.ready().await.unwrap();
    let bus = Arc::new(broker.connect(MemoryOptions::named("client")));
    let client = Client::builder().env(env).over(bus).await.unwrap();
    Fleet { client, _server: server, _coordinator: coordinator, _folder: folder, _tasks: tasks }
}

fn key(number: u8) -> String {
    format!("{}{number}", if number.is_multiple_of(2) { 'a' } else { 'b' })
}

async fn write(kv: &Kv, stream: &Stream, writes: &[Write]) {
    for write in writes {
        match *write {
            Write::Put(number) => drop(kv.put(key(number), vec![number; VALUE]).await.unwrap()),
            Write::Delete(number) => drop(kv.delete(key(number)).await.unwrap()),
            Write::DeleteSeq(seq) => drop(stream.delete([Seq::new(seq)]).await.unwrap()),
            Write::DeleteUpTo(seq) => drop(stream.delete_up_to(Seq::new(seq)).await.unwrap()),
            Write::Publish => drop(stream.publish(vec![0; VALUE]).await.unwrap()),
            Write::Batch(one, other) => {
                let batch = kv.batch().put(key(one), "one").put(key(other), "other");
                let committed = batch.commit().await.unwrap();
                assert!(committed.messages.iter().all(|message| message.rev == committed.position.rev));
            }
        }
    }
}

/// A reader's copy of the subject.
#[derive(Default)]
struct Copy(BTreeMap<Seq, Message>);

impl Copy {
    fn set(&mut self, message: Message) {
        if message.key.is_some() {
            self.0.retain(|_, held| held.key != message.key);
        }
        self.0.insert(message.seq, message);
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Set(set) => self.set(set.message),
            Change::Delete(delete) => {
                for removed in delete.removed {
                    self.0.remove(&removed.seq);
                    if removed.key.is_some() {
                        self.0.retain(|_, held| held.key != removed.key);
                    }
                }
            }
            Change::DeleteAll(cleared) => self.0.retain(|seq, _| *seq > cleared.end_seq),
            Change::Configure(_) => {}
        }
    }
}

/// Reads as the case says, with concurrent writes. Returns the messages.
async fn read(case: &Case, kv: &Kv, stream: &Stream) -> (Vec<Message>, Pages<Message>) {
    let mut range = SeqRange::all();
    if case.reverse {
        range = range.reverse();
    }
    if let Some(limit) = case.limit {
        range = range.limit(limit);
    }
    let mut pages = match case.prefix {
        Some(prefix) => kv.entries_in(prefix, range),
        None => stream.get_all(range),
    };
    let mut read: Vec<Message> = Vec::new();
    let mut last_page = Position::default();
    for (messages, writes) in &case.meanwhile {
        for _ in 0..*messages {
            read.extend(pages.next().await.transpose().unwrap());
        }
        if let Some(position) = pages.page_position() {
            assert!(position >= last_page, "pages go back from {last_page} to {position}");
            last_page = position;
        }
        write(kv, stream, writes).await;
    }
    while let Some(message) = pages.next().await {
        read.push(message.unwrap());
    }
    (read, pages)
}

async fn catch_up(copy: &mut Copy, stream: &Stream, from: Position) {
    let mut after = from;
    loop {
        match stream.changes(after).await.unwrap() {
            Changes::Since { changes, position, more } => {
                changes.into_iter().for_each(|change| copy.apply(change));
                after = position;
                if !more {
                    return;
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn check(case: Case) {
    let fleet = fleet().await;
    let (kv, stream) = (fleet.client.kv("app.x").unwrap(), fleet.client.stream("app.x").unwrap());
    write(&kv, &stream, &case.before).await;
    let (mut read, pages) = read(&case, &kv, &stream).await;
    let from = pages.position().expect("a page was read");
    let complete = case.limit.is_none_or(|limit| (read.len() as u64) < limit);
    let edge = read.last().map(|message| message.seq);
    let covered = |message: &Message| {
        let keyed = case.prefix.is_none_or(|p| message.key.as_ref().is_some_and(|key| key.starts_with(p)));
        let reached =
            edge.is_some_and(|edge| if case.reverse { message.seq >= edge } else { message.seq <= edge });
        // Later writes are in the changes, whatever the pages contained.
        message.rev > from.rev || (keyed && (complete || reached))
    };
    let mut copy = Copy::default();
    read.sort_by_key(|message| message.rev);
    read.into_iter().for_each(|message| copy.set(message));
    catch_up(&mut copy, &stream, from).await;
    let state = stream.get_all(..).all().await.unwrap();
    let state: BTreeMap<Seq, Message> = state.into_iter().map(|message| (message.seq, message)).collect();
    for (seq, message) in &copy.0 {
        assert_eq!(state.get(seq), Some(message), "the copy has an extra message");
    }
    for (seq, message) in state.iter().filter(|(_, message)| covered(message)) {
        assert_eq!(copy.0.get(seq), Some(message), "the copy lacks a message");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// The pages of a long read, plus the changes after the first page, equal the subject's state under concurrent
    /// writes.
    #[test]
    fn pages_plus_later_changes_equal_the_state(case in cases()) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(check(case));
    }
}
