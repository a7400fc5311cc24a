use std::collections::BTreeMap;

use dormouse_protocol::limits::SESSION_RESULTS;
use dormouse_protocol::{Rev, Seq, Term};
use proptest::prelude::*;

use super::super::fixture::*;
use super::super::{Origin, remove_files};
use super::*;
use crate::plan::{Memory, SubjectView};

/// The file of the subject that begins after this life.
fn begin_again(database: Database, past: &PastLife) -> Database {
    let path = database.path().to_owned();
    drop(database);
    remove_files(&path).unwrap();
    let origin = Origin { rev: past.position.rev, next_seq: Seq::new(1), past: Some(past.clone()) };
    let mut database = Database::create(&path, &subject(), &origin).unwrap();
    database.take_over(&tenure(2, past.position.rev.get())).unwrap();
    database
}

/// Has the answer to a request remembered.
fn note(database: &mut Database, id: RequestId, at: Timestamp) {
    let accept_time = at.max(database.state().accept_time);
    let entry = crate::entry::Entry { accept_time, ..database.entry(Vec::new()) };
    database.commit_entry(&remembered(entry, id, refusal("no"))).unwrap();
}

#[test]
fn of_too_many_sessions_those_heard_of_last_are_taken_along_and_always_that_of_the_destroy() {
    let folder = tempfile::tempdir().unwrap();
    let mut database = fresh(&folder.path().join("s.sqlite3"));
    let most = REMEMBERED_SESSIONS as u64;
    for session in 1..=most + 2 {
        note(&mut database, request(session.into(), 5), second(session));
    }
    let taken = |past: &PastLife| past.sessions.iter().map(|known| known.session).collect::<Vec<_>>();
    let ids = |sessions: &mut dyn Iterator<Item = u64>| {
        let mut ids: Vec<_> = sessions.map(|session| request(session.into(), 1).session).collect();
        ids.sort_unstable();
        ids
    };
    let of_nobody = database.past_life(None, second(0)).unwrap();
    assert_eq!(taken(&of_nobody), ids(&mut (3..=most + 2)));
    assert_eq!((of_nobody.accept_time, of_nobody.request), (second(most + 2), None), "time does not go back");
    let of_a_new_one = database.past_life(Some(request(1_000, 1)), second(most + 9)).unwrap();
    assert_eq!(taken(&of_a_new_one), ids(&mut (4..=most + 2).chain([1_000])));
    assert_eq!(of_a_new_one.accept_time, second(most + 9));
    // The one heard of first of all, whose last request was a higher one.
    let of_the_first = database.past_life(Some(request(1, 3)), second(0)).unwrap();
    assert_eq!(taken(&of_the_first), ids(&mut (4..=most + 2).chain([1])));
    let first = of_the_first.sessions.iter().find(|known| known.session == request(1, 3).session).unwrap();
    assert_eq!((first.counter, first.accept_time), (5, second(most + 2)));
}

#[test]
fn results_that_are_forgotten_already_count_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let mut database = fresh(&folder.path().join("s.sqlite3"));
    let last = SESSION_RESULTS as u64 + 3;
    for counter in 1..=last {
        note(&mut database, request(1, counter), second(1));
    }
    let past = database.past_life(None, second(1)).unwrap();
    let database = begin_again(database, &past);
    assert_eq!(database.remembered(request(1, last)).unwrap(), Memory::Forgotten);
    assert_eq!(database.remembered(request(1, last + 1)).unwrap(), Memory::New);
    // And once more, with nothing in between.
    let past = database.past_life(None, second(1)).unwrap();
    assert_eq!(past.sessions.len(), 1);
    let database = begin_again(database, &past);
    assert_eq!(database.remembered(request(1, last)).unwrap(), Memory::Forgotten);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn nothing_that_was_known_is_new_after_a_destroy(
        noted in proptest::collection::vec((0_u128..6, prop_oneof![0_u64..20, u64::MAX - 3..], 0_u64..3_000), 0..40),
        destroy in any::<Option<(u8, u64)>>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut database = fresh(&folder.path().join("s.sqlite3"));
        let mut known = BTreeMap::<u128, i64>::new();
        for (session, counter, at) in noted {
            let id = request(session, counter);
            if database.remembered(id).unwrap() == Memory::New {
                note(&mut database, id, second(at));
            }
            let highest = known.entry(session).or_insert(i64::MIN);
            *highest = (*highest).max(to_sql(counter));
        }
        let destroy = destroy.map(|(session, counter)| request(u128::from(session % 8), counter));
        let destroy = destroy.filter(|id| database.remembered(*id).unwrap() == Memory::New);
        let past = database.past_life(destroy, second(10)).unwrap();
        let tombstone_rev = database.state().rev.next();
        prop_assert_eq!(past.position, Position { term: Term::new(1), rev: tombstone_rev });
        let database = begin_again(database, &past);
        let rows = database.dump();
        for (session, highest) in known {
            prop_assert_ne!(database.remembered(request(session, from_sql(highest))).unwrap(), Memory::New);
            let own = destroy.filter(|id| id.session == request(session, 0).session);
            let highest = highest.max(own.map_or(i64::MIN, |id| to_sql(id.counter)));
            if let Some(above) = highest.checked_add(1) {
                prop_assert_eq!(database.remembered(request(session, from_sql(above))).unwrap(), Memory::New);
            }
        }
        if let Some(id) = destroy {
            let reply = DestroyReply { position: past.position, duplicate: false };
            prop_assert_eq!(database.remembered(id).unwrap(), Memory::Done(Outcome::Destroy(reply)));
        }
        prop_assert_eq!(database.state().rev, Rev::new(past.position.rev.get()));
        prop_assert_eq!(database.state().accept_time, past.accept_time);
        // Whoever makes it anew from the same manifest has the same.
        prop_assert_eq!(begin_again(database, &past).dump(), rows);
    }
}
