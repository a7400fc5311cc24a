//! The contract suite of all stores, run on each implementation.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_protocol::tenant::TenantLimits;
use dormouse_protocol::{LogId, ServerName, Subject, TenantName};
use ulid::Ulid;

use super::memory::{MemoryDisk, MemoryStore};
use super::{MemberRecord, StartupGrace, Store, StoreChange, StoredState};

/// Runs the suite. `new_location` creates an empty location for state, and returns a function that opens (and reopens) the
/// state there.
pub fn run<Open, S>(new_location: impl Fn() -> Open)
where
    Open: Fn() -> S,
    S: Store,
{
    store_starts_empty(&new_location());
    store_keeps_members_and_startup_grace(&new_location());
    store_keeps_limits_of_tenants(&new_location());
    store_keeps_assignments(&new_location());
    store_counts_assignments_per_server(&new_location());
    store_applies_changes_in_order(&new_location());
    store_pages_assignments_in_order(&new_location());
}

fn server(name: &str) -> ServerName {
    ServerName::new(name).unwrap()
}

fn subject(name: &str) -> Subject {
    Subject::new(name).unwrap()
}

fn member(name: &str, process: u128) -> MemberRecord {
    MemberRecord {
        log: LogId::new(server(name), Ulid::from_parts(1, process)),
        predecessor: Some(LogId::new(server(name), Ulid::from_parts(0, process))),
        capacity: 100,
        version: "0.1.0".into(),
        dead: false,
        drain: None,
    }
}

fn assign(name: &str, previous: Option<&str>, to: &str) -> StoreChange {
    StoreChange::Assign { subject: subject(name), previous: previous.map(server), server: server(to) }
}

fn commit(store: &impl Store, changes: &[StoreChange]) {
    store.write(changes).unwrap();
    store.flush().unwrap();
}

/// A new store holds no members, assignments or counts.
fn store_starts_empty<S: Store>(open: &impl Fn() -> S) {
    let store = open();
    assert_eq!(store.load_state().unwrap(), StoredState::default());
    assert_eq!(store.assignments(&[subject("a")]).unwrap(), [None]);
    assert_eq!(store.counts().total(), 0);
}

/// The store keeps the newest record of each member and the startup grace across a reopen.
fn store_keeps_members_and_startup_grace<S: Store>(open: &impl Fn() -> S) {
    let store = open();
    commit(&store, &[StoreChange::Member(member("one", 1)), StoreChange::Member(member("two", 2))]);
    let waits = StartupGrace { member: Duration::from_millis(3_900), unknown: Duration::from_secs(30) };
    let drain = Some(member("two", 2).log);
    let newer = MemberRecord { dead: true, drain, ..member("two", 3) };
    commit(&store, &[StoreChange::Member(newer.clone()), StoreChange::StartupGrace(waits)]);
    let expected = StoredState {
        members: [(server("one"), member("one", 1)), (server("two"), newer)].into(),
        startup_grace: Some(waits),
        limits: BTreeMap::new(),
    };
    assert_eq!(store.load_state().unwrap(), expected);
    drop(store);
    assert_eq!(open().load_state().unwrap(), expected);
}

/// The store keeps the newest limits of each tenant across a reopen, and removes empty ones.
fn store_keeps_limits_of_tenants<S: Store>(open: &impl Fn() -> S) {
    let [one, two, three] = ["one", "two", "user.three"].map(|name| TenantName::new(name).unwrap());
    let limits = |requests| TenantLimits { requests: Some(requests), ..TenantLimits::NONE };
    let set = |tenant: &TenantName, limits| StoreChange::TenantLimits { tenant: tenant.clone(), limits };
    let store = open();
    commit(&store, &[set(&one, limits(1)), set(&two, limits(2)), set(&three, limits(3))]);
    commit(&store, &[set(&one, limits(4)), set(&two, TenantLimits::NONE)]);
    let expected = BTreeMap::from([(one, limits(4)), (three, limits(3))]);
    assert_eq!(store.load_state().unwrap().limits, expected);
    drop(store);
    assert_eq!(open().load_state().unwrap().limits, expected);
}

/// The store keeps assignments across a reopen and returns them in request order.
fn store_keeps_assignments<S: Store>(open: &impl Fn() -> S) {
    let store = open();
    commit(
        &store,
        &[assign("app.a", None, "one"), assign("app.ab", None, "two"), assign("app.Ä", None, "one")],
    );
    commit(&store, &[StoreChange::Unassign { subject: subject("app.Ä"), previous: server("one") }]);
    let asked = ["app.ab", "app", "app.a", "app.Ä", "app.a"].map(subject);
    let expected = [Some(server("two")), None, Some(server("one")), None, Some(server("one"))];
    assert_eq!(store.assignments(&asked).unwrap(), expected);
    drop(store);
    assert_eq!(open().assignments(&asked).unwrap(), expected);
}

/// The store counts the assignments of each server, also after a reopen.
fn store_counts_assignments_per_server<S: Store>(open: &impl Fn() -> S) {
    let store = open();
    let many: Vec<_> = (0..100).map(|n| assign(&format!("s.{n}"), None, "one")).collect();
    commit(&store, &many);
    commit(
        &store,
        &[
            assign("s.0", Some("one"), "two"),
            assign("s.1", Some("one"), "two"),
            StoreChange::Unassign { subject: subject("s.2"), previous: server("one") },
        ],
    );
    let counts = |store: &S| (store.counts().of(&server("one")), store.counts().of(&server("two")));
    assert_eq!(counts(&store), (97, 2));
    drop(store);
    assert_eq!(counts(&open()), (97, 2));
}

/// The store applies the changes of one write in their order.
fn store_applies_changes_in_order<S: Store>(open: &impl Fn() -> S) {
    let store = open();
    commit(
        &store,
        &[
            assign("s", None, "one"),
            StoreChange::Unassign { subject: subject("s"), previous: server("one") },
            assign("s", None, "two"),
        ],
    );
    drop(store);
    let store = open();
    assert_eq!(store.assignments(&[subject("s")]).unwrap(), [Some(server("two"))]);
    assert_eq!((store.counts().of(&server("one")), store.counts().of(&server("two"))), (0, 1));
}

/// The store pages assignments in byte order, by prefix and cursor.
fn store_pages_assignments_in_order<S: Store>(open: &impl Fn() -> S) {
    let store = open();
    // Other records are stored before and after the assignments.
    commit(&store, &[StoreChange::Member(member("one", 1))]);
    let names = ["app", "app.a", "app.a-b", "app.a.b", "app.b", "appendix", "b", "Ä"];
    commit(&store, &names.map(|name| assign(name, None, "one")));
    let page = |prefix: &str, after: Option<&str>, rows| -> Vec<String> {
        let page = store.assigned_after(prefix, after.map(subject).as_ref(), rows).unwrap();
        assert!(page.iter().all(|(_, server)| server.as_str() == "one"));
        page.into_iter().map(|(subject, _)| subject.to_string()).collect()
    };
    assert_eq!(page("", None, 100), names);
    assert_eq!(page("", None, 2), names[..2]);
    assert_eq!(page("", Some("app.a"), 2), names[2..4]);
    assert_eq!(page("app.", None, 100), names[1..5]);
    assert_eq!(page("app.", Some("app.a-b"), 100), names[3..5]);
    assert_eq!(page("app.", Some("a"), 1), names[1..2], "a cursor before the prefix");
    for (prefix, after) in [("app.", "app.b"), ("app.", "z"), ("c", "a"), ("", "Ä")] {
        assert_eq!(page(prefix, Some(after), 100), [""; 0], "{prefix} {after}");
    }
}

/// The memory store passes the contract suite of all stores.
#[test]
fn memory_store_meets_contract() {
    run(|| {
        let disk = MemoryDisk::new();
        move || MemoryStore::open(&disk)
    });
}

/// A reopened memory store holds the flushed changes and has lost the others.
#[test]
fn memory_store_loses_unflushed_changes() {
    let disk = MemoryDisk::new();
    let store = MemoryStore::open(&disk);
    commit(&store, &[assign("kept", None, "one")]);
    store.write(&[assign("lost", None, "one")]).unwrap();
    assert_eq!(store.counts().of(&server("one")), 2);
    drop(store);
    let store = MemoryStore::open(&disk);
    assert_eq!(store.assignments(&["kept", "lost"].map(subject)).unwrap(), [Some(server("one")), None]);
    assert_eq!(store.counts().of(&server("one")), 1);
    disk.wipe();
    assert_eq!(store.counts().of(&server("one")), 0);
}
