//! What every store must do, run on each implementation.

use std::time::Duration;

use dormouse_protocol::{LogId, ServerName, Subject};
use ulid::Ulid;

use super::memory::{MemoryDisk, MemoryStore};
use super::{Change, MemberRecord, Remembered, Store, Waits};

/// Runs the suite. `place` makes a fresh place for state; what it returns opens (again and again) the state that is
/// there.
pub fn run<Open, S>(place: impl Fn() -> Open)
where
    Open: Fn() -> S,
    S: Store,
{
    begins_empty(&place());
    keeps_members_and_the_wait(&place());
    keeps_assignments(&place());
    counts_what_it_assigns(&place());
    follows_the_order_of_changes(&place());
    shows_assignments_in_order_page_by_page(&place());
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

fn assign(name: &str, previous: Option<&str>, to: &str) -> Change {
    Change::Assign { subject: subject(name), previous: previous.map(server), server: server(to) }
}

fn commit(store: &impl Store, changes: &[Change]) {
    store.write(changes).unwrap();
    store.flush().unwrap();
}

fn begins_empty<S: Store>(open: &impl Fn() -> S) {
    let store = open();
    assert_eq!(store.remembered().unwrap(), Remembered::default());
    assert_eq!(store.assignments(&[subject("a")]).unwrap(), [None]);
    assert_eq!(store.counts().total(), 0);
}

fn keeps_members_and_the_wait<S: Store>(open: &impl Fn() -> S) {
    let store = open();
    commit(&store, &[Change::Member(member("one", 1)), Change::Member(member("two", 2))]);
    let waits = Waits { member: Duration::from_millis(3_900), stranger: Duration::from_secs(30) };
    let drain = Some(member("two", 2).log);
    let newer = MemberRecord { dead: true, drain, ..member("two", 3) };
    commit(&store, &[Change::Member(newer.clone()), Change::Waits(waits)]);
    let expected = Remembered {
        members: [(server("one"), member("one", 1)), (server("two"), newer)].into(),
        waits: Some(waits),
    };
    assert_eq!(store.remembered().unwrap(), expected);
    drop(store);
    assert_eq!(open().remembered().unwrap(), expected);
}

fn keeps_assignments<S: Store>(open: &impl Fn() -> S) {
    let store = open();
    commit(
        &store,
        &[assign("app.a", None, "one"), assign("app.ab", None, "two"), assign("app.Ä", None, "one")],
    );
    commit(&store, &[Change::Unassign { subject: subject("app.Ä"), previous: server("one") }]);
    let asked = ["app.ab", "app", "app.a", "app.Ä", "app.a"].map(subject);
    let expected = [Some(server("two")), None, Some(server("one")), None, Some(server("one"))];
    assert_eq!(store.assignments(&asked).unwrap(), expected);
    drop(store);
    assert_eq!(open().assignments(&asked).unwrap(), expected);
}

fn counts_what_it_assigns<S: Store>(open: &impl Fn() -> S) {
    let store = open();
    let many: Vec<_> = (0..100).map(|n| assign(&format!("s.{n}"), None, "one")).collect();
    commit(&store, &many);
    commit(
        &store,
        &[
            assign("s.0", Some("one"), "two"),
            assign("s.1", Some("one"), "two"),
            Change::Unassign { subject: subject("s.2"), previous: server("one") },
        ],
    );
    let counts = |store: &S| (store.counts().of(&server("one")), store.counts().of(&server("two")));
    assert_eq!(counts(&store), (97, 2));
    drop(store);
    assert_eq!(counts(&open()), (97, 2));
}

fn follows_the_order_of_changes<S: Store>(open: &impl Fn() -> S) {
    let store = open();
    commit(
        &store,
        &[
            assign("s", None, "one"),
            Change::Unassign { subject: subject("s"), previous: server("one") },
            assign("s", None, "two"),
        ],
    );
    drop(store);
    let store = open();
    assert_eq!(store.assignments(&[subject("s")]).unwrap(), [Some(server("two"))]);
    assert_eq!((store.counts().of(&server("one")), store.counts().of(&server("two"))), (0, 1));
}

fn shows_assignments_in_order_page_by_page<S: Store>(open: &impl Fn() -> S) {
    let store = open();
    // What is no assignment stands before and behind them.
    commit(&store, &[Change::Member(member("one", 1))]);
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

#[test]
fn the_store_in_memory_keeps_the_contract() {
    run(|| {
        let disk = MemoryDisk::new();
        move || MemoryStore::open(&disk)
    });
}

#[test]
fn the_store_in_memory_loses_what_was_not_flushed() {
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
