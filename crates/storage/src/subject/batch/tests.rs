//! Batches: all or nothing, answers in order, reads that see earlier writes.

use std::sync::mpsc::{Receiver, channel};

use bytes::Bytes;
use dormouse_protocol::data::{GetAllRequest, GetRequest, SetItem, SetRequest};
use dormouse_protocol::{ErrorCode, Term};
use tempfile::TempDir;

use super::*;
use crate::database::{Origin, Tenure};
use crate::keys::ManifestNumber;

type Answers = Receiver<(usize, Result<Reply, ErrorReply>)>;

fn database() -> (TempDir, Database) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sqlite3");
    let mut database = Database::create(&path, &around().subject, Origin::default()).unwrap();
    let tenure = Tenure {
        log: around().log,
        term: Term::new(1),
        term_base: Rev::new(0),
        manifest: ManifestNumber::FIRST,
        bucket_rev: Rev::new(0),
    };
    database.take_over(&tenure).unwrap();
    (folder, database)
}

fn around() -> Surroundings {
    Surroundings {
        subject: "app.orders".parse().unwrap(),
        log: "persist-1-01J9Z3ABCDEFGHJKMNPQRSTVWX".parse().unwrap(),
        level: Level::Memory,
        bucket_rev: Rev::new(0),
        now: Timestamp::from_micros(100),
    }
}

fn queue(requests: Vec<Request>) -> (VecDeque<Submission>, Answers) {
    let (sender, answers) = channel();
    let submission = |(place, request)| {
        let sender = sender.clone();
        Submission {
            request,
            max_reply_bytes: 1 << 20,
            respond: Box::new(move |answer| sender.send((place, answer)).unwrap()),
        }
    };
    (requests.into_iter().enumerate().map(submission).collect(), answers)
}

fn set(key: &str, value_bytes: usize) -> Request {
    let item = SetItem {
        key: Some(key.to_owned()),
        value: Some(Bytes::from(vec![b'v'; value_bytes])),
        ..SetItem::default()
    };
    Request::Set(SetRequest { sets: vec![item], ..SetRequest::default() })
}

fn found(answer: &Result<Reply, ErrorReply>) -> usize {
    match answer {
        Ok(Reply::Get(reply)) => reply.messages.len(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn reads_see_earlier_writes_and_wait_for_the_commit_with_them() {
    let (_folder, mut database) = database();
    let get = || Request::Get(GetRequest::key("a"));
    let (mut waiting, answers) = queue(vec![get(), set("a", 1), get(), Request::Flush, get()]);
    let executed = execute(&mut database, &mut waiting, &around());
    assert_eq!(waiting.len(), 2, "it stops at the flush");
    let early: Vec<_> = answers.try_iter().collect();
    assert_eq!(early.len(), 1, "only the read before the first write has been answered");
    assert_eq!(found(&early[0].1), 0);
    assert_eq!(executed.records.len(), 1);
    for (respond, answer) in executed.answers {
        respond(answer);
    }
    let late: Vec<_> = answers.try_iter().collect();
    assert_eq!(late.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(found(&late[1].1), 1);
}

#[test]
fn a_commit_that_fails_fails_everybody_who_saw_it_and_changes_nothing() {
    let (_folder, mut database) = database();
    let (mut waiting, _answers) = queue(vec![set("kept", 10)]);
    execute(&mut database, &mut waiting, &around());
    database.limit_pages_to_what_there_is();
    let before = database.state().clone();
    let get = || Request::Get(GetRequest::key("a"));
    let (mut waiting, answers) = queue(vec![get(), set("a", 1), get(), set("b", 200_000), get()]);
    let executed = execute(&mut database, &mut waiting, &around());
    assert!(executed.records.is_empty() && executed.broken.is_none());
    assert_eq!(answers.try_iter().count(), 1);
    assert_eq!(executed.answers.len(), 3, "the write before, the read in between, and the one that failed");
    for (_, answer) in &executed.answers {
        let error = answer.as_ref().unwrap_err();
        assert_eq!(error.code, ErrorCode::Unavailable, "{error}");
        assert!(error.message.contains("disk is full"), "{error}");
    }
    assert_eq!(*database.state(), before);
    let executed = execute(&mut database, &mut waiting, &around());
    assert!(executed.broken.is_none());
    assert_eq!(found(&answers.try_iter().next().unwrap().1), 0, "the write was never visible");
}

#[test]
fn what_a_batch_reads_and_holds_is_bounded() {
    let (_folder, mut database) = database();
    let requests = (0..40).map(|n| set(&n.to_string(), 500_000)).collect();
    let (mut waiting, _answers) = queue(requests);
    execute(&mut database, &mut waiting, &around());
    assert!((25..35).contains(&waiting.len()), "{}", waiting.len());
    // Pages that wait for a commit count as well.
    let mut requests = vec![set("x", 1)];
    requests.extend((0..40).map(|_| Request::GetAll(GetAllRequest::default())));
    let (mut waiting, _answers) = queue(requests);
    execute(&mut database, &mut waiting, &around());
    assert!(waiting.len() > 30, "{}", waiting.len());
    // And so do pages alone: they keep others waiting.
    let (mut waiting, _answers) = queue((0..40).map(|_| Request::GetAll(GetAllRequest::default())).collect());
    execute(&mut database, &mut waiting, &around());
    assert!(waiting.len() > 30, "{}", waiting.len());
}

#[test]
fn accept_time_never_goes_back() {
    let (_folder, mut database) = database();
    for (now, accepted) in [(100, 100), (50, 100), (150, 150)] {
        let (mut waiting, _answers) = queue(vec![set("a", 1)]);
        let executed = execute(
            &mut database,
            &mut waiting,
            &Surroundings { now: Timestamp::from_micros(now), ..around() },
        );
        assert_eq!(executed.records[0].accept_time, Timestamp::from_micros(accepted));
    }
}
