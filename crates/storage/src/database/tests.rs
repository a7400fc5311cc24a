//! The file on its own: what is refused, what survives, what fits a page.

use std::path::PathBuf;

use bytes::Bytes;
use dormouse_protocol::data::{
    DeleteAllRequest, Expect, GetAllRequest, GetRequest, KeysRequest, SetItem, SetRequest,
};
use dormouse_protocol::limits::{ENVELOPE_BYTES, MAX_ITEMS_PER_REQUEST};
use dormouse_protocol::message::Removed;
use dormouse_protocol::{ErrorCode, Headers};
use tempfile::TempDir;

use super::fixture::{fresh, log, second, subject, tenure};
use super::*;
use crate::api::Request;
use crate::entry::Entry;
use crate::manifest::TermBase;
use crate::plan::{Context, Operation, Planned, Record, RemovalCause, plan};

impl Database {
    /// From now on the disk is full.
    pub(crate) fn limit_pages_to_what_there_is(&self) {
        let pages: i64 = self.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
        self.connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).unwrap();
    }
}

/// The entry that holds nothing but this record.
fn alone(record: &Record) -> Entry {
    Entry {
        term: record.term,
        after: Rev::new(record.rev.get() - 1),
        accept_time: record.accept_time,
        request: None,
        operations: vec![record.operation.clone()],
    }
}

fn file() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sqlite3");
    (folder, path)
}

fn run(database: &mut Database, request: &Request) -> Result<Vec<Record>, dormouse_protocol::ErrorReply> {
    let context = Context { accept_time: Timestamp::from_micros(7), max_message_bytes: 1 << 20, blobs: &[] };
    let entry = match plan(request, database, context) {
        Planned::Write { entry, .. } => entry,
        Planned::Answer(answer) | Planned::Settle(answer) => return answer.map(|_| Vec::new()),
        Planned::Later => panic!("{request:?}"),
    };
    database.begin().unwrap();
    database.apply(&entry).unwrap();
    database.commit().unwrap();
    Ok(entry.records().collect())
}

fn set(key: Option<&str>, value: &[u8]) -> SetItem {
    SetItem { key: key.map(str::to_owned), value: Some(Bytes::copy_from_slice(value)), ..SetItem::default() }
}

fn sets(items: Vec<SetItem>) -> Request {
    Request::Set(SetRequest { sets: items, ..SetRequest::default() })
}

#[test]
fn this_sqlite_is_safe() {
    assert!(sqlite_is_safe());
}

#[test]
fn what_is_committed_survives_and_what_is_rolled_back_does_not() {
    let (_folder, path) = file();
    let mut database = fresh(&path);
    run(&mut database, &sets(vec![set(Some("a"), b"1"), set(None, b"2")])).unwrap();
    let committed = database.state().clone();
    database.begin().unwrap();
    let record = Record {
        term: Term::new(1),
        rev: Rev::new(3),
        accept_time: Timestamp::from_micros(9),
        operation: Operation::DeleteAll { end_seq: Seq::new(2), count: 2 },
    };
    database.apply(&alone(&record)).unwrap();
    assert_eq!(database.state().count, 0);
    database.rollback().unwrap();
    assert_eq!(*database.state(), committed);
    drop(database);
    let database = Database::open(&path, &subject()).unwrap();
    assert_eq!(*database.state(), committed);
    assert_eq!(database.provenance().log, Some(log()));
    assert_eq!(database.get(&GetRequest::key("a"), 1 << 20).unwrap().messages[0].seq, Seq::new(1));
}

#[test]
fn a_file_that_is_not_ours_is_refused_and_not_touched() {
    let (_folder, path) = file();
    drop(fresh(&path));
    let other: Subject = "app.other".parse().unwrap();
    assert!(
        matches!(Database::open(&path, &other), Err(DatabaseError::OtherSubject(held)) if held == "app.orders")
    );

    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 5).unwrap();
    drop(connection);
    let before = std::fs::read(&path).unwrap();
    let error = Database::open(&path, &subject()).unwrap_err();
    assert!(matches!(error, DatabaseError::Newer { found: 5, understood: 4 }));
    assert!(!error.is_unfit_file(), "a newer file is not damaged");
    assert_eq!(error.reply(&subject()).code, ErrorCode::Unavailable);
    assert_eq!(std::fs::read(&path).unwrap(), before);

    let foreign = path.with_extension("foreign");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE t(x)").unwrap();
    assert!(matches!(Database::open(&foreign, &subject()), Err(DatabaseError::Foreign(0))));
    std::fs::write(&foreign, vec![b'x'; 5_000]).unwrap();
    assert!(matches!(Database::open(&foreign, &subject()), Err(DatabaseError::Damaged(_))));
    std::fs::write(&foreign, b"").unwrap();
    assert!(matches!(Database::open(&foreign, &subject()), Err(DatabaseError::Empty)));
}

#[test]
fn a_record_that_does_not_follow_is_refused() {
    let (_folder, path) = file();
    let mut database = fresh(&path);
    let record = |term: u64, rev: u64, operation: Operation| Record {
        term: Term::new(term),
        rev: Rev::new(rev),
        accept_time: Timestamp::from_micros(1),
        operation,
    };
    let nothing = Operation::DeleteAll { end_seq: Seq::new(0), count: 0 };
    let gone = Operation::Delete {
        removed: vec![Removed { seq: Seq::new(5), key: None }],
        cause: RemovalCause::Asked,
    };
    for wrong in [
        record(1, 2, nothing.clone()),
        record(0, 1, nothing.clone()),
        record(1, 1, gone),
        record(1, 1, Operation::DeleteAll { end_seq: Seq::new(9), count: 3 }),
    ] {
        database.begin().unwrap();
        assert!(matches!(database.apply(&alone(&wrong)), Err(DatabaseError::Diverged(_))), "{wrong:?}");
        database.rollback().unwrap();
    }
    database.begin().unwrap();
    database.apply(&alone(&record(1, 1, nothing))).unwrap();
    database.commit().unwrap();
}

#[test]
fn the_main_file_stays_as_a_checkpoint_left_it_even_when_the_connection_closes() {
    let (_folder, path) = file();
    let mut database = fresh(&path);
    run(&mut database, &sets(vec![set(None, b"1")])).unwrap();
    database.checkpoint().unwrap();
    assert_eq!(database.wal_bytes(), 0);
    let image = std::fs::read(&path).unwrap();
    for _ in 0..2_000 {
        run(&mut database, &sets(vec![set(None, &[b'x'; 4_000])])).unwrap();
    }
    assert!(database.wal_bytes() > 8_000_000);
    drop(database);
    assert!(std::fs::read(&path).unwrap() == image, "the file changed without a checkpoint");
    let database = Database::open(&path, &subject()).unwrap();
    assert_eq!(database.state().count, 2_001);
    database.close().unwrap();
    assert!(!companion(&path, "-wal").exists());
    assert_eq!(Database::open(&path, &subject()).unwrap().state().count, 2_001);
}

#[test]
fn a_full_disk_fails_the_transaction_and_nothing_else() {
    let (_folder, path) = file();
    let mut database = fresh(&path);
    run(&mut database, &sets(vec![set(Some("kept"), b"1")])).unwrap();
    database.limit_pages_to_what_there_is();
    let state = database.state().clone();
    let context = Context { accept_time: Timestamp::from_micros(7), max_message_bytes: 1 << 20, blobs: &[] };
    let Planned::Write { entry, .. } = plan(&sets(vec![set(None, &[0; 100_000])]), &database, context) else {
        panic!()
    };
    database.begin().unwrap();
    let error = database.apply(&entry).unwrap_err();
    assert!(matches!(error, DatabaseError::DiskFull(_)), "{error}");
    assert_eq!(error.reply(&subject()).code, ErrorCode::Unavailable);
    database.rollback().unwrap();
    assert_eq!(*database.state(), state);
    run(&mut database, &sets(vec![set(Some("kept"), b"2")])).unwrap();
}

#[test]
fn tombstones_are_bounded_and_say_how_far_back_they_reach() {
    let (_folder, path) = file();
    let mut database = fresh(&path);
    for round in 0..5 {
        run(&mut database, &sets((0..3_000).map(|_| set(None, b"")).collect())).unwrap();
        let first = round * 3_000 + 1;
        let seqs = (first..first + 3_000).map(Seq::new).collect();
        let request = dormouse_protocol::data::DeleteRequest { seqs, ..Default::default() };
        run(&mut database, &Request::Delete(request)).unwrap();
    }
    assert!(database.tombstones <= schema::MAX_TOMBSTONES + schema::TOMBSTONE_SLACK);
    let (count, oldest): (i64, i64) = database
        .connection
        .query_row("SELECT COUNT(*), MIN(rev) FROM tombstones", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    assert_eq!(from_sql(count), database.tombstones);
    assert!(database.tombstone_floor.get() > 0 && from_sql(oldest) > database.tombstone_floor.get());
}

#[test]
fn pages_respect_bytes_and_number_and_go_on_after_an_oversized_value() {
    let (_folder, path) = file();
    let mut database = fresh(&path);
    let mut items: Vec<_> = (0..20).map(|n| set(Some(&format!("k{n:02}")), &[b'v'; 1_000])).collect();
    items[7].value = Some(Bytes::from(vec![b'L'; 50_000]));
    run(&mut database, &sets(items)).unwrap();
    let max_reply_bytes = ENVELOPE_BYTES + 6_000;
    for reverse in [false, true] {
        let mut request = GetAllRequest { reverse, ..GetAllRequest::default() };
        let (mut seen, mut pages) = (Vec::new(), 0);
        loop {
            let page = database.get_all(&request, max_reply_bytes).unwrap();
            assert!(dormouse_protocol::encode(&page).unwrap().len() <= max_reply_bytes);
            pages += 1;
            for message in &page.messages {
                assert_eq!(message.value_omitted, message.size == 50_000);
                assert_eq!(message.value.is_none(), message.value_omitted);
                seen.push(message.seq.get());
            }
            let Some(cursor) = page.cursor else { break };
            if reverse {
                request.end_seq = Some(cursor);
            } else {
                request.start_seq = Some(cursor);
            }
        }
        if reverse {
            seen.reverse();
        }
        assert_eq!(seen, (1..=20).collect::<Vec<_>>());
        assert!((4..8).contains(&pages), "{pages}");
    }
    let error = database.get(&GetRequest::key("k07"), max_reply_bytes).unwrap_err();
    assert_eq!((error.code, error.limit.as_deref()), (ErrorCode::TooLarge, Some("max_reply_bytes")));
    assert!(error.message.contains("50"), "{}", error.message);
    assert_eq!(database.get(&GetRequest::key("k07"), 60_000).unwrap().messages[0].size, 50_000);

    let keys: Vec<_> = (0..20).rev().map(|n| format!("k{n:02}")).collect();
    let mut got = Vec::new();
    let mut rest = keys.as_slice();
    while !rest.is_empty() {
        let request = GetRequest { keys: Some(rest.to_vec()), ..GetRequest::default() };
        let reply = database.get(&request, max_reply_bytes).unwrap();
        assert!(reply.answered > 0);
        got.extend(reply.messages.into_iter().filter_map(|message| message.key));
        rest = &rest[usize::try_from(reply.answered).unwrap()..];
    }
    assert_eq!(got, keys);

    // The same by seq: in the order asked for, and what is too large for any answer without its value.
    let seqs: Vec<_> = (1..=20).rev().map(Seq::new).collect();
    let mut got = Vec::new();
    let mut rest = seqs.as_slice();
    while !rest.is_empty() {
        let request = GetRequest { seqs: Some(rest.to_vec()), ..GetRequest::default() };
        let reply = database.get(&request, max_reply_bytes).unwrap();
        assert!(dormouse_protocol::encode(&reply).unwrap().len() <= max_reply_bytes);
        assert!(reply.answered > 0);
        assert!(reply.messages.iter().all(|message| message.value_omitted == (message.size == 50_000)));
        got.extend(reply.messages.into_iter().map(|message| message.seq));
        rest = &rest[usize::try_from(reply.answered).unwrap()..];
    }
    assert_eq!(got, seqs);
}

#[test]
fn several_seqs_are_answered_in_the_order_asked_for_without_those_that_are_not_there() {
    let (_folder, path) = file();
    let mut database = fresh(&path);
    run(&mut database, &sets((0..3).map(|_| set(None, b"")).collect())).unwrap();
    let get = |seqs: &[u64]| {
        let seqs = Some(seqs.iter().copied().map(Seq::new).collect());
        database.get(&GetRequest { seqs, ..GetRequest::default() }, 1 << 20)
    };
    let reply = get(&[3, 9, 1, 3, 0, u64::MAX]).unwrap();
    assert_eq!(reply.answered, 6);
    assert_eq!(reply.messages.iter().map(|message| message.seq.get()).collect::<Vec<_>>(), [3, 1, 3]);
    assert_eq!(get(&[]).unwrap().answered, 0);
    assert_eq!(get(&[1; MAX_ITEMS_PER_REQUEST + 1]).unwrap_err().code, ErrorCode::TooLarge);
    let two = GetRequest { seqs: Some(vec![]), ..GetRequest::key("k") };
    assert_eq!(database.get(&two, 1 << 20).unwrap_err().code, ErrorCode::BadRequest);
}

#[test]
fn one_more_message_than_the_limit_is_announced_by_a_cursor() {
    let (_folder, path) = file();
    let mut database = fresh(&path);
    run(&mut database, &sets((0..5).map(|_| set(None, b"")).collect())).unwrap();
    let page = |limit| {
        database.get_all(&GetAllRequest { limit: Some(limit), ..Default::default() }, 1 << 20).unwrap()
    };
    assert_eq!(page(5).cursor, None);
    assert_eq!(page(4).cursor, Some(Seq::new(5)));
    let nothing = GetAllRequest { limit: Some(0), ..Default::default() };
    assert_eq!(database.get_all(&nothing, 1 << 20).unwrap_err().code, ErrorCode::BadRequest);
}

#[test]
fn keys_are_paged_in_order_of_bytes_with_prefixes_and_the_empty_key() {
    let (_folder, path) = file();
    let mut database = fresh(&path);
    let keys = ["", "a", "a\0", "a.b", "aé", "b", "é", "\u{10ffff}"];
    run(&mut database, &sets(keys.iter().rev().map(|key| set(Some(key), b"")).collect())).unwrap();
    for (prefix, expected) in [
        (None, keys.to_vec()),
        (Some("a"), vec!["a", "a\0", "a.b", "aé"]),
        (Some("\u{10ffff}"), vec!["\u{10ffff}"]),
        (Some("x"), vec![]),
    ] {
        let mut request =
            KeysRequest { prefix: prefix.map(str::to_owned), limit: Some(2), ..Default::default() };
        let mut seen: Vec<String> = Vec::new();
        loop {
            let page = database.keys(&request, 1 << 20).unwrap();
            assert!(page.keys.len() <= 2);
            seen.extend(page.keys);
            request.cursor = page.cursor;
            if request.cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen, expected, "{prefix:?}");
    }
}

#[test]
fn every_bit_of_a_message_comes_back() {
    let (_folder, path) = file();
    let mut database = fresh(&path);
    let mut item = set(Some("k\u{0}é"), b"\0\xff");
    item.timestamp = Some(Timestamp::from_micros(u64::MAX));
    item.headers = Headers(vec![("n".to_owned(), "1".to_owned()), ("n".to_owned(), String::new())]);
    item.expect = Some(Expect::Key(None));
    let null = SetItem { seq: Some(Seq::new(10)), ..SetItem::default() };
    run(&mut database, &sets(vec![item.clone(), null, set(None, b"")])).unwrap();
    let page = database.get_all(&GetAllRequest::default(), 1 << 20).unwrap();
    let [first, second, third] = page.messages.as_slice() else { panic!("{page:?}") };
    assert_eq!((&first.key, &first.value, &first.headers), (&item.key, &item.value, &item.headers));
    assert_eq!((Some(first.timestamp), first.size), (item.timestamp, 2));
    assert_eq!(
        (second.seq, &second.value, second.timestamp),
        (Seq::new(10), &None, Timestamp::from_micros(7))
    );
    assert_eq!((third.seq, third.value.as_deref()), (Seq::new(11), Some(&b""[..])));
}

#[test]
fn a_transaction_that_cannot_begin_has_changed_nothing_for_certain() {
    let (_folder, path) = file();
    let mut database = fresh(&path);
    database.begin().unwrap();
    assert_eq!(database.begin().unwrap_err().reply(&subject()).code, ErrorCode::Unavailable);
    database.rollback().unwrap();
    drop(database);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let error = Database::open(&path, &subject()).unwrap_err();
    assert_eq!(error.reply(&subject()).code, ErrorCode::Unavailable, "{error}");
    assert!(!error.is_unfit_file());
}

#[test]
fn a_file_shrinks_when_most_of_it_is_deleted() {
    let (_folder, path) = file();
    let mut database = fresh(&path);
    let value = vec![b'v'; 10_000];
    for round in 0..10 {
        let item = |n: usize| set(Some(&format!("{round}-{n}")), &value);
        run(&mut database, &sets((0..100).map(item).collect())).unwrap();
    }
    database.checkpoint().unwrap();
    let full = database.file_bytes();
    assert!(full > 10_000_000);
    for (keep_last, most) in [(500, full), (100, full / 5), (0, 200_000)] {
        let request = DeleteAllRequest { keep_last: Some(keep_last), ..DeleteAllRequest::default() };
        run(&mut database, &Request::DeleteAll(request)).unwrap();
        database.checkpoint().unwrap();
        assert!(database.file_bytes() <= most, "{keep_last} left: {} of {full}", database.file_bytes());
        database.check_whole().unwrap();
        assert_eq!(database.state().count, keep_last);
    }
    database.close().unwrap();
    let database = Database::open(&path, &subject()).unwrap();
    assert_eq!(database.state().next_seq, Seq::new(1_001));
}

#[test]
fn terms_follow_each_other_and_each_begins_at_one_rev_only() {
    let (_folder, path) = file();
    let mut database = fresh(&path);
    let set = |database: &Database, term| {
        let operation = Operation::Set(database.set(None, b""));
        Entry { term: Term::new(term), ..database.entry(vec![operation]) }
    };
    database.commit_entry(&set(&database, 1)).unwrap();
    let base = |term, rev| TermBase { term: Term::new(term), term_base: Rev::new(rev) };
    database.inherit(&[base(1, 0), base(2, 1), base(4, 1)]).unwrap();
    assert_eq!(database.state().position().term, Term::new(1), "nothing was written under the others");
    database.commit_entry(&set(&database, 3)).unwrap();
    assert_eq!((database.state().term, database.state().term_base), (Term::new(3), Rev::new(1)));
    let before = (database.state().clone(), database.dump());
    let refused = [
        database.inherit(&[base(5, 2), base(2, 0)]),
        database.take_over(&tenure(2, 1)),
        database.take_over(&tenure(3, 2)),
        database.take_over(&tenure(5, 3)),
        // Something of term 3 was not known to whoever began term 4, or this is not that term.
        database.commit_entry(&set(&database, 4)),
        database.commit_entry(&set(&database, 2)),
    ];
    for refused in refused {
        assert!(matches!(refused, Err(DatabaseError::Diverged(_))), "{refused:?}");
    }
    assert_eq!((database.state().clone(), database.dump()), before);
    database.take_over(&tenure(5, 2)).unwrap();
    for term in 6..90 {
        database.commit_entry(&set(&database, term)).unwrap();
    }
    drop(database);
    let database = Database::open(&path, &subject()).unwrap();
    assert_eq!((database.state().term, database.state().term_base), (Term::new(89), Rev::new(85)));
    let terms: i64 =
        database.connection.query_row("SELECT COUNT(*) FROM terms", [], |row| row.get(0)).unwrap();
    assert_eq!(terms, 64);
}

#[test]
fn accept_time_never_goes_back() {
    let (_folder, path) = file();
    let mut database = fresh(&path);
    for (at, expected) in [(5, 5), (3, 5), (7, 7)] {
        let entry = Entry { accept_time: second(at), ..database.entry(vec![database.delete_all(0)]) };
        database.commit_entry(&entry).unwrap();
        assert_eq!(database.state().accept_time, second(expected));
    }
}

#[test]
fn messages_that_come_together_are_stored_as_they_are_one_by_one() {
    // 0 to 31 take nobody's place, and go into the file by sixteens; of the others some do.
    let item = |number: u64| match number {
        32 => set(Some("k3"), b"again"),
        60 | 61 => set(Some("k60"), &number.to_be_bytes()),
        _ => SetItem {
            key: number.is_multiple_of(3).then(|| format!("k{number}")),
            msg_id: number.is_multiple_of(5).then(|| format!("m{number}")),
            ttl_ms: number.is_multiple_of(7).then_some(number + 1),
            headers: Headers(vec![("n".to_owned(), number.to_string())]),
            ..set(None, &vec![b'v'; number as usize])
        },
    };
    let request = |sets| Request::Set(SetRequest { sets, ..SetRequest::default() });
    let ((_one, one), (_other, other)) = (file(), file());
    let (mut together, mut one_by_one) = (fresh(&one), fresh(&other));
    let sets: Vec<SetItem> = (0..100).map(item).collect();
    run(&mut together, &request(sets.clone())).unwrap();
    for set in sets {
        run(&mut one_by_one, &request(vec![set])).unwrap();
    }
    assert_eq!(together.state(), one_by_one.state());
    assert_eq!(together.dump(), one_by_one.dump());
    together.check_counts();
    together.check_whole().unwrap();
}

#[test]
fn a_transaction_writes_nothing_before_its_end_unless_it_is_more_than_fits_the_memory() {
    let (_folder, path) = file();
    let mut database = fresh(&path);
    for (messages, is_much) in [(10, false), (200, true)] {
        database.checkpoint().unwrap();
        database.begin().unwrap();
        for _ in 0..messages {
            let set = Operation::Set(database.set(None, &[b'x'; 100_000]));
            database.apply(&database.entry(vec![set])).unwrap();
        }
        assert_eq!(database.wal_bytes() > 0, is_much, "{messages} messages");
        database.commit().unwrap();
    }
}
