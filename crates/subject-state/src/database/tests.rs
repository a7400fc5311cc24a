//! Tests of one file: rejections, durability and page sizes.

mod changes;
mod dedup;
mod expiry;
mod golden;
mod model;
mod replay;

use std::path::PathBuf;

use bytes::Bytes;
use dormouse_format::entry::LogEntry;
use dormouse_format::manifest::TermBase;
use dormouse_format::record::{Record, RecordOp, RemovalCause};
use dormouse_protocol::data::{
    DeleteAllRequest, Expect, GetAllRequest, GetRequest, KeysRequest, SetItem, SetRequest,
};
use dormouse_protocol::limits::{ENVELOPE_BYTES, MAX_ITEMS_PER_REQUEST};
use dormouse_protocol::message::Removed;
use dormouse_protocol::{ErrorCode, Headers};
use tempfile::TempDir;

use super::fixture::{fresh, log, owner_of_term, second, subject};
use super::*;
use crate::plan::{PlanContext, PlanResult, plan};
use crate::request::SubjectRequest;

impl Database {
    /// Simulates a full disk from now on.
    pub(crate) fn cap_pages_at_current_count(&self) {
        let pages: i64 = self.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
        self.connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).unwrap();
    }
}

/// The entry with only this record.
fn alone(record: &Record) -> LogEntry {
    LogEntry {
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

fn run(
    database: &mut Database,
    request: &SubjectRequest,
) -> Result<Vec<Record>, dormouse_protocol::ErrorReply> {
    let context =
        PlanContext { accept_time: Timestamp::from_micros(7), max_message_bytes: 1 << 20, blobs: &[] };
    let entry = match plan(request, database, context) {
        PlanResult::Write { entry, .. } => entry,
        PlanResult::Answer(answer) | PlanResult::DeferredAnswer(answer) => return answer.map(|_| Vec::new()),
        PlanResult::Later => panic!("{request:?}"),
    };
    database.begin().unwrap();
    database.apply(&entry).unwrap();
    database.commit().unwrap();
    Ok(entry.records().collect())
}

fn set(key: Option<&str>, value: &[u8]) -> SetItem {
    SetItem { key: key.map(str::to_owned), value: Some(Bytes::copy_from_slice(value)), ..SetItem::default() }
}

fn sets(items: Vec<SetItem>) -> SubjectRequest {
    SubjectRequest::Set(SetRequest { sets: items, ..SetRequest::default() })
}

/// The linked SQLite is at least the first safe version.
#[test]
fn sqlite_version_is_safe() {
    assert!(sqlite_is_safe());
}

/// Committed changes survive a reopen, and a rollback restores the previous state.
#[test]
fn database_reopen_keeps_commits_and_drops_rollbacks() {
    let (_folder, path) = file();
    let mut database = fresh(&path);
    run(&mut database, &sets(vec![set(Some("a"), b"1"), set(None, b"2")])).unwrap();
    let committed = database.state().clone();
    database.begin().unwrap();
    let record = Record {
        term: Term::new(1),
        rev: Rev::new(3),
        accept_time: Timestamp::from_micros(9),
        operation: RecordOp::DeleteAll { end_seq: Seq::new(2), count: 2 },
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

/// A foreign, newer, damaged or empty file gives the matching error, and a newer file stays unchanged.
#[test]
fn database_rejects_foreign_files_without_writing() {
    let (_folder, path) = file();
    drop(fresh(&path));
    let other: Subject = "app.other".parse().unwrap();
    assert!(
        matches!(Database::open(&path, &other), Err(DatabaseError::OtherSubject(held)) if held == "app.orders")
    );

    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 6).unwrap();
    drop(connection);
    let before = std::fs::read(&path).unwrap();
    let error = Database::open(&path, &subject()).unwrap_err();
    assert!(matches!(error, DatabaseError::NewerSchema { found: 6, understood: 5 }));
    assert!(!error.is_unfit_file(), "a newer file is not damaged");
    assert_eq!(error.reply(&subject()).code, ErrorCode::Unavailable);
    assert_eq!(std::fs::read(&path).unwrap(), before);

    let foreign = path.with_extension("foreign");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE t(x)").unwrap();
    assert!(matches!(Database::open(&foreign, &subject()), Err(DatabaseError::ForeignFile(0))));
    std::fs::write(&foreign, vec![b'x'; 5_000]).unwrap();
    assert!(matches!(Database::open(&foreign, &subject()), Err(DatabaseError::Damaged(_))));
    std::fs::write(&foreign, b"").unwrap();
    assert!(matches!(Database::open(&foreign, &subject()), Err(DatabaseError::Empty)));
}

/// A record with a wrong rev, term, message or count is rejected, and the next correct record applies.
#[test]
fn database_rejects_record_that_does_not_follow() {
    let (_folder, path) = file();
    let mut database = fresh(&path);
    let record = |term: u64, rev: u64, operation: RecordOp| Record {
        term: Term::new(term),
        rev: Rev::new(rev),
        accept_time: Timestamp::from_micros(1),
        operation,
    };
    let nothing = RecordOp::DeleteAll { end_seq: Seq::new(0), count: 0 };
    let gone = RecordOp::Delete {
        removed: vec![Removed { seq: Seq::new(5), key: None }],
        cause: RemovalCause::Asked,
    };
    for wrong in [
        record(1, 2, nothing.clone()),
        record(0, 1, nothing.clone()),
        record(1, 1, gone),
        record(1, 1, RecordOp::DeleteAll { end_seq: Seq::new(9), count: 3 }),
    ] {
        database.begin().unwrap();
        assert!(matches!(database.apply(&alone(&wrong)), Err(DatabaseError::Diverged(_))), "{wrong:?}");
        database.rollback().unwrap();
    }
    database.begin().unwrap();
    database.apply(&alone(&record(1, 1, nothing))).unwrap();
    database.commit().unwrap();
}

/// Writes and a dropped connection leave the main file as the last checkpoint wrote it; a clean close removes the
/// sidecar.
#[test]
fn database_main_file_changes_only_at_checkpoints() {
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
    assert!(!sidecar_path(&path, "-wal").exists());
    assert_eq!(Database::open(&path, &subject()).unwrap().state().count, 2_001);
}

/// A full disk fails one transaction with `unavailable`, and the database keeps its state and takes smaller writes.
#[test]
fn database_disk_full_fails_one_transaction_only() {
    let (_folder, path) = file();
    let mut database = fresh(&path);
    run(&mut database, &sets(vec![set(Some("kept"), b"1")])).unwrap();
    database.cap_pages_at_current_count();
    let state = database.state().clone();
    let context =
        PlanContext { accept_time: Timestamp::from_micros(7), max_message_bytes: 1 << 20, blobs: &[] };
    let PlanResult::Write { entry, .. } = plan(&sets(vec![set(None, &[0; 100_000])]), &database, context)
    else {
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

/// The number of removal records is bounded, and the floor lies below the oldest kept one.
#[test]
fn removal_records_are_bounded_and_have_a_known_floor() {
    let (_folder, path) = file();
    let mut database = fresh(&path);
    for round in 0..5 {
        run(&mut database, &sets((0..3_000).map(|_| set(None, b"")).collect())).unwrap();
        let first = round * 3_000 + 1;
        let seqs = (first..first + 3_000).map(Seq::new).collect();
        let request = dormouse_protocol::data::DeleteRequest { seqs, ..Default::default() };
        run(&mut database, &SubjectRequest::Delete(request)).unwrap();
    }
    assert!(database.removal_records <= schema::MAX_REMOVAL_RECORDS + schema::REMOVAL_RECORD_SLACK);
    let (count, oldest): (i64, i64) = database
        .connection
        .query_row("SELECT COUNT(*), MIN(rev) FROM tombstones", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    assert_eq!(from_sql(count), database.removal_records);
    assert!(database.removal_floor.get() > 0 && from_sql(oldest) > database.removal_floor.get());
}

/// Pages and multi-gets stay within the reply size and continue after a value too large for any reply.
#[test]
fn page_respects_byte_limit_and_continues_past_large_value() {
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

    // The same by seq: in request order, and a value that is too large for any reply is omitted.
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

/// A get of several seqs replies in request order, skips absent seqs and rejects too many or mixed selectors.
#[test]
fn get_of_several_seqs_keeps_order_and_skips_absent_ones() {
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

/// A page has a cursor only if more messages exist than its limit, and a limit of zero is rejected.
#[test]
fn page_has_cursor_only_if_more_messages_exist() {
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

/// Pages of keys follow byte order, respect the prefix and include the empty key.
#[test]
fn key_pages_follow_byte_order_and_prefix() {
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

/// All fields of a message read back as written, including null values, empty values and repeated headers.
#[test]
fn message_fields_round_trip_through_database() {
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

/// A transaction or open that cannot start returns `unavailable`, and the file does not count as damaged.
#[test]
fn transaction_that_cannot_begin_returns_unavailable() {
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

/// The database file shrinks after most of its messages are deleted, and its content stays whole.
#[test]
fn database_file_shrinks_after_large_delete() {
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
        run(&mut database, &SubjectRequest::DeleteAll(request)).unwrap();
        while database.delete_hidden_rows().unwrap() {}
        database.checkpoint().unwrap();
        assert!(database.file_bytes() <= most, "{keep_last} left: {} of {full}", database.file_bytes());
        database.check_integrity().unwrap();
        assert_eq!(database.state().count, keep_last);
    }
    database.close().unwrap();
    let database = Database::open(&path, &subject()).unwrap();
    assert_eq!(database.state().next_seq, Seq::new(1_001));
}

/// Terms increase and each has one base rev; contradicting entries and claims are rejected, and only the last 64 terms
/// are kept.
#[test]
fn database_rejects_terms_that_contradict_history() {
    let (_folder, path) = file();
    let mut database = fresh(&path);
    let set = |database: &Database, term| {
        let operation = RecordOp::Set(database.set(None, b""));
        LogEntry { term: Term::new(term), ..database.entry(vec![operation]) }
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
        database.take_over(&owner_of_term(2, 1)),
        database.take_over(&owner_of_term(3, 2)),
        database.take_over(&owner_of_term(5, 3)),
        // Either the owner of term 4 lacked a write of term 3, or the term numbers are wrong.
        database.commit_entry(&set(&database, 4)),
        database.commit_entry(&set(&database, 2)),
    ];
    for refused in refused {
        assert!(matches!(refused, Err(DatabaseError::Diverged(_))), "{refused:?}");
    }
    assert_eq!((database.state().clone(), database.dump()), before);
    database.take_over(&owner_of_term(5, 2)).unwrap();
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

/// The database never lowers its accept time, even if an entry has an earlier one.
#[test]
fn database_accept_time_never_decreases() {
    let (_folder, path) = file();
    let mut database = fresh(&path);
    for (at, expected) in [(5, 5), (3, 5), (7, 7)] {
        let entry = LogEntry { accept_time: second(at), ..database.entry(vec![database.delete_all(0)]) };
        database.commit_entry(&entry).unwrap();
        assert_eq!(database.state().accept_time, second(expected));
    }
}

/// One request with a hundred sets gives the same rows as a hundred requests with one set each.
#[test]
fn database_sets_of_one_request_equal_single_sets() {
    // 0 to 31 replace no message, and are inserted sixteen at a time; some of the others replace one.
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
    let request = |sets| SubjectRequest::Set(SetRequest { sets, ..SetRequest::default() });
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
    together.check_integrity().unwrap();
}

/// A transaction writes to the sidecar only at its commit, unless it exceeds the page cache.
#[test]
fn database_transaction_writes_at_commit_unless_large() {
    let (_folder, path) = file();
    let mut database = fresh(&path);
    for (messages, is_much) in [(10, false), (200, true)] {
        database.checkpoint().unwrap();
        database.begin().unwrap();
        for _ in 0..messages {
            let set = RecordOp::Set(database.set(None, &[b'x'; 100_000]));
            database.apply(&database.entry(vec![set])).unwrap();
        }
        assert_eq!(database.wal_bytes() > 0, is_much, "{messages} messages");
        database.commit().unwrap();
    }
}
