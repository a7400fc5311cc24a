use std::collections::BTreeMap;

use dormouse_protocol::limits::SESSION_RESULTS;
use dormouse_protocol::{Rev, Seq, Term};
use proptest::prelude::*;

use super::super::fixture::*;
use super::super::{InitialState, remove_files};
use super::*;
use crate::plan::{DedupLookup, SubjectView};

/// The file of the subject that is created after this one is destroyed.
fn create_after_destroy(database: Database, past: &TombstoneState) -> Database {
    let path = database.path().to_owned();
    drop(database);
    remove_files(&path).unwrap();
    let origin =
        InitialState { rev: past.position.rev, next_seq: Seq::new(1), tombstone: Some(past.clone()) };
    let mut database = Database::create(&path, &subject(), &origin).unwrap();
    database.take_over(&owner_of_term(2, past.position.rev.get())).unwrap();
    database
}

/// Records the reply to a request.
fn note(database: &mut Database, id: RequestId, at: Timestamp) {
    let accept_time = at.max(database.state().accept_time);
    let entry = dormouse_format::entry::LogEntry { accept_time, ..database.entry(Vec::new()) };
    database.commit_entry(&remembered(entry, id, refusal("no"))).unwrap();
}

/// If there are too many sessions, the tombstone keeps the latest ones and always the session of the destroy.
#[test]
fn tombstone_keeps_latest_sessions_and_destroy_session() {
    let folder = tempfile::tempdir().unwrap();
    let mut database = fresh(&folder.path().join("s.sqlite3"));
    let most = TOMBSTONE_SESSIONS as u64;
    for session in 1..=most + 2 {
        note(&mut database, request(session.into(), 5), second(session));
    }
    let taken = |past: &TombstoneState| past.sessions.iter().map(|known| known.session).collect::<Vec<_>>();
    let ids = |sessions: &mut dyn Iterator<Item = u64>| {
        let mut ids: Vec<_> = sessions.map(|session| request(session.into(), 1).session).collect();
        ids.sort_unstable();
        ids
    };
    let without_request = database.tombstone_state(None, second(0)).unwrap();
    assert_eq!(taken(&without_request), ids(&mut (3..=most + 2)));
    assert_eq!(
        (without_request.accept_time, without_request.request),
        (second(most + 2), None),
        "time does not go back"
    );
    let with_new_session = database.tombstone_state(Some(request(1_000, 1)), second(most + 9)).unwrap();
    assert_eq!(taken(&with_new_session), ids(&mut (4..=most + 2).chain([1_000])));
    assert_eq!(with_new_session.accept_time, second(most + 9));
    // The least recently used session, whose last request has a higher counter.
    let with_first_session = database.tombstone_state(Some(request(1, 3)), second(0)).unwrap();
    assert_eq!(taken(&with_first_session), ids(&mut (4..=most + 2).chain([1])));
    let first =
        with_first_session.sessions.iter().find(|known| known.session == request(1, 3).session).unwrap();
    assert_eq!((first.counter, first.accept_time), (5, second(most + 2)));
}

/// Requests with results that the dedup window already dropped stay known as old after one or two destroys.
#[test]
fn tombstone_covers_requests_with_dropped_results() {
    let folder = tempfile::tempdir().unwrap();
    let mut database = fresh(&folder.path().join("s.sqlite3"));
    let last = SESSION_RESULTS as u64 + 3;
    for counter in 1..=last {
        note(&mut database, request(1, counter), second(1));
    }
    let past = database.tombstone_state(None, second(1)).unwrap();
    let database = create_after_destroy(database, &past);
    assert_eq!(database.remembered(request(1, last)).unwrap(), DedupLookup::Forgotten);
    assert_eq!(database.remembered(request(1, last + 1)).unwrap(), DedupLookup::New);
    // A second destroy, with nothing in between.
    let past = database.tombstone_state(None, second(1)).unwrap();
    assert_eq!(past.sessions.len(), 1);
    let database = create_after_destroy(database, &past);
    assert_eq!(database.remembered(request(1, last)).unwrap(), DedupLookup::Forgotten);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// After a destroy, no known request counts as new, higher counters do, and the destroy's own reply is kept.
    #[test]
    fn dedup_after_destroy_treats_no_known_request_as_new(
        noted in proptest::collection::vec((0_u128..6, prop_oneof![0_u64..20, u64::MAX - 3..], 0_u64..3_000), 0..40),
        destroy in any::<Option<(u8, u64)>>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut database = fresh(&folder.path().join("s.sqlite3"));
        let mut known = BTreeMap::<u128, i64>::new();
        for (session, counter, at) in noted {
            let id = request(session, counter);
            if database.remembered(id).unwrap() == DedupLookup::New {
                note(&mut database, id, second(at));
            }
            let highest = known.entry(session).or_insert(i64::MIN);
            *highest = (*highest).max(to_sql(counter));
        }
        let destroy = destroy.map(|(session, counter)| request(u128::from(session % 8), counter));
        let destroy = destroy.filter(|id| database.remembered(*id).unwrap() == DedupLookup::New);
        let past = database.tombstone_state(destroy, second(10)).unwrap();
        let tombstone_rev = database.state().rev.next();
        prop_assert_eq!(past.position, Position { term: Term::new(1), rev: tombstone_rev });
        let database = create_after_destroy(database, &past);
        let rows = database.dump();
        for (session, highest) in known {
            prop_assert_ne!(database.remembered(request(session, from_sql(highest))).unwrap(), DedupLookup::New);
            let own = destroy.filter(|id| id.session == request(session, 0).session);
            let highest = highest.max(own.map_or(i64::MIN, |id| to_sql(id.counter)));
            if let Some(above) = highest.checked_add(1) {
                prop_assert_eq!(database.remembered(request(session, from_sql(above))).unwrap(), DedupLookup::New);
            }
        }
        if let Some(id) = destroy {
            let reply = DestroyReply { position: past.position, duplicate: false };
            prop_assert_eq!(database.remembered(id).unwrap(), DedupLookup::Done(WriteOutcome::Destroy(reply)));
        }
        prop_assert_eq!(database.state().rev, Rev::new(past.position.rev.get()));
        prop_assert_eq!(database.state().accept_time, past.accept_time);
        // A second file from the same manifest is equal.
        prop_assert_eq!(create_after_destroy(database, &past).dump(), rows);
    }
}
