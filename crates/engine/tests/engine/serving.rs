//! One engine: stored data, events, closing of subjects, and error replies.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dormouse_bucket::{Bucket, BucketOperation};
use dormouse_engine::api::{SubjectReply, SubjectRequest, Submission, TenantId};
use dormouse_engine::{Engine, EngineOpenError, EngineSettings};
use dormouse_protocol::data::{DestroyRequest, GetRequest};
use dormouse_protocol::message::DeleteAllChange;
use dormouse_protocol::{Change, ErrorCode, Level, Rev};
use dormouse_runtime::Env;

use crate::support::{World, large, lost_files, messages_in, pairs, set_request, subject};

const APP: &str = "app.orders";

/// A snapshot is a plain SQLite file with exactly the messages at its position.
#[test]
fn snapshot_is_a_plain_sqlite_file() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "a", &large()).unwrap();
    server.set(&app, "b", "2").unwrap();
    let position = server.compact(&app).unwrap();
    assert_eq!(position, server.info(&app).position);
    server.set(&app, "c", "3").unwrap();
    assert_eq!(messages_in(&world.snapshot(&app)), pairs(&[("a", &large()), ("b", "2")]));
}

/// The server applies the apply backlog before a read, a compaction and a handover, and within seconds without a
/// request.
#[test]
fn apply_backlog_is_empty_after_read_compaction_and_handover() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server_with("persist-1", |settings| settings.level = Level::Memory);
    let backlog = || server.engine.metrics().apply_backlog_bytes;
    server.get(&app, "k").unwrap();
    let write = |value: &str| {
        server.set(&app, "k", value).unwrap();
        assert_ne!(backlog(), 0, "the write is acked and in the apply backlog");
    };
    write("read");
    assert_eq!(server.get(&app, "k").unwrap().as_deref(), Some("read"));
    assert_eq!(backlog(), 0);
    write("copied");
    server.compact(&app).unwrap();
    assert_eq!((messages_in(&world.snapshot(&app)), backlog()), (pairs(&[("k", "copied")]), 0));
    write("alone");
    server.advance(Duration::from_secs(6));
    assert_eq!(backlog(), 0);
    write("left");
    server.hand_over(&app).unwrap();
    assert_eq!(backlog(), 0);
    let next = world.server("persist-2");
    assert_eq!(next.get(&app, "k").unwrap().as_deref(), Some("left"));
}

/// The apply backlogs of 400 subjects together stay bounded, and no acked value is lost.
#[test]
fn apply_backlog_of_many_subjects_is_bounded() {
    let world = World::in_memory();
    let server = world.server_with("persist-1", |settings| settings.level = Level::Memory);
    let value = "v".repeat(200_000);
    let apps: Vec<_> = (0..400).map(|n| subject(&format!("app.{n}"))).collect();
    for app in &apps {
        server.get(app, "k").unwrap();
        server.set(app, "k", &value).unwrap();
        assert!(server.engine.metrics().apply_backlog_bytes < 65 * 1_024 * 1_024);
    }
    for app in &apps {
        assert_eq!(server.get(app, "k").unwrap().as_deref(), Some(&*value));
    }
}

/// A write of a weaker level is in the bucket within the ship interval, without a flush.
#[test]
fn weak_write_ships_within_interval_without_flush() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server_with("persist-1", |settings| settings.level = Level::Memory);
    // A read with a barrier confirms the lease.
    server.get(&app, "k").unwrap();
    let rev = server.set(&app, "k", "v").unwrap().rev;
    assert_eq!(server.info(&app).bucket_rev, Rev::new(0));
    server.advance(Duration::from_millis(1_100));
    assert_eq!(server.info(&app).bucket_rev, rev, "within the ship interval");
    assert_eq!(server.engine.metrics().log.unshipped_bytes, 0);
}

/// An idle subject closes, and reopens under the same term without a write to the bucket.
#[test]
fn idle_subject_closes_and_reopens_under_same_term() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server_with("persist-1", |settings| settings.idle_close = Duration::from_millis(50));
    let before = server.set(&app, "k", "v").unwrap();
    server.until("the subject is closed", || server.engine.metrics().open_subjects == 0);
    assert_eq!(server.engine.metrics().local_bytes, 0);
    let objects = world.objects(&app);
    assert_eq!(server.get(&app, "k").unwrap().as_deref(), Some("v"));
    assert_eq!(world.objects(&app), objects, "reopening an owned subject writes nothing");
    let after = server.set(&app, "k", "w").unwrap();
    assert_eq!((after.term, after.rev), (before.term, before.rev.next()));
    assert_eq!(server.engine.metrics().subject_opens, 2);
}

/// The server serves a request to a closing subject after it reopens.
#[test]
fn request_to_closing_subject_is_served_after_reopen() {
    let world = World::in_memory();
    let app = subject(APP);
    // The subject closes as soon as all its writes are in the bucket and no request waits.
    let server = world.server_with("persist-1", |settings| settings.idle_close = Duration::ZERO);
    server.set(&app, "k", "v").unwrap();
    server.runtime.block_on(async {
        let ask = async |task: u64| {
            for n in 0..100 {
                let answer = server.engine.execute(&app, SubjectRequest::Get(GetRequest::key("k"))).await;
                assert!(
                    matches!(&answer, Ok(SubjectReply::Get(reply)) if reply.messages.len() == 1),
                    "{answer:?}"
                );
                tokio::time::sleep(Duration::from_millis((task * 31 + n * 17) % 70)).await;
            }
        };
        tokio::join!(ask(1), ask(2), ask(3));
    });
    assert!(server.engine.metrics().subject_opens > 5, "{:?}", server.engine.metrics());
}

/// A set that waits behind a destroy executes on the new subject under the next term.
#[test]
fn request_behind_destroy_is_served_by_new_subject() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    let old = server.set(&app, "old", "v").unwrap();
    let (destroyed, set) = server.runtime.block_on(async {
        tokio::join!(
            server.engine.execute(&app, SubjectRequest::Destroy(DestroyRequest::default())),
            server.engine.execute(&app, set_request("new", "v"))
        )
    });
    assert!(destroyed.is_ok() && set.is_ok(), "{destroyed:?} {set:?}");
    assert_eq!(server.all(&app).unwrap(), pairs(&[("new", "v")]));
    assert_eq!(server.info(&app).position.term, old.term.next());
}

/// With more subjects than the open limit, the server closes idle subjects and serves all of them in turn.
#[test]
fn subjects_over_open_limit_are_served_in_turn() {
    let world = World::in_memory();
    let server = world.server_with("persist-1", |settings| settings.max_open_subjects = 8);
    let subjects: Vec<_> = (0..60).map(|n| subject(&format!("app.s{n}"))).collect();
    for (n, one) in subjects.iter().enumerate() {
        // At twice the limit, the server rejects a request for another subject until some have closed.
        server.until("the subject opens", || server.set(one, "k", &n.to_string()).is_ok());
    }
    server.until("enough subjects are closed", || server.engine.metrics().open_subjects <= 8);
    for (n, one) in subjects.iter().enumerate() {
        let mut value = None;
        server.until("the subject opens", || match server.get(one, "k") {
            Ok(found) => {
                value = found;
                true
            }
            Err(error) => error.code != ErrorCode::Overloaded,
        });
        assert_eq!(value, Some(n.to_string()));
    }
}

/// The server announces changes in order and before their acks, a claim by a beacon, and many changes in one event.
#[test]
fn changes_are_announced_in_order_before_ack() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    let events = Arc::clone(&server.events);
    let late = Arc::new(Mutex::new(Vec::new()));
    let _guard = server.runtime.enter();
    let (done, mut finished) = tokio::sync::mpsc::unbounded_channel();
    for n in 0..500 {
        let (events, late, app, done) = (Arc::clone(&events), Arc::clone(&late), app.clone(), done.clone());
        let to = app.clone();
        let respond = Box::new(move |answer: Result<_, _>| {
            assert!(answer.is_ok(), "{answer:?}");
            let announced = events.of(&app).last().map_or(0, |event| event.rev.get());
            late.lock().unwrap().push((n + 1, announced));
            done.send(()).unwrap();
        });
        let request = set_request(&format!("k{n}"), "v");
        server.engine.submit(
            &to,
            Submission {
                tenant: TenantId::SHARED,
                deadline: Submission::NO_DEADLINE,
                received: Duration::ZERO,
                request,
                max_reply_bytes: 1 << 20,
                respond,
            },
        );
    }
    server.runtime.block_on(async {
        for _ in 0..500 {
            finished.recv().await.unwrap();
        }
    });
    for (rev, announced) in late.lock().unwrap().iter() {
        assert!(announced >= rev, "ack of rev {rev} before its event: events up to {announced}");
    }
    let events = events.of(&app);
    assert!(events[0].changes.is_empty(), "a claim is announced by a beacon");
    assert!(events.len() < 100, "changes of one batch share events: {}", events.len());
    let revs: Vec<_> = events.iter().flat_map(|event| &event.changes).map(Change::rev).collect();
    assert_eq!(revs, (1..=500).map(Rev::new).collect::<Vec<_>>());
}

/// A subject without further changes sends a beacon with the rev of the last change.
#[test]
fn quiet_subject_sends_beacon_after_change() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    let rev = server.set(&app, "k", "v").unwrap().rev;
    server.until("a beacon follows the change", || {
        let events = server.events.of(&app);
        events.len() == 3 && events[2].changes.is_empty() && events[2].rev == rev
    });
}

/// If the queue of a subject is full, the server replies `overloaded` with a retry delay and serves the queued
/// requests.
#[test]
fn full_subject_queue_replies_overloaded() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    let _guard = server.runtime.enter();
    // The subject's task blocks in this closure while its queue fills.
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let (reached, mut waiting) = tokio::sync::mpsc::unbounded_channel();
    let respond = Box::new(move |_| {
        reached.send(()).unwrap();
        gate.recv().unwrap();
    });
    server.engine.submit(
        &app,
        Submission {
            tenant: TenantId::SHARED,
            deadline: Submission::NO_DEADLINE,
            received: Duration::ZERO,
            request: SubjectRequest::Info,
            max_reply_bytes: 1 << 20,
            respond,
        },
    );
    server.runtime.block_on(waiting.recv()).unwrap();
    let (sender, answers) = std::sync::mpsc::channel();
    for _ in 0..1_025 {
        let sender = sender.clone();
        let respond = Box::new(move |answer| sender.send(answer).unwrap());
        server.engine.submit(
            &app,
            Submission {
                tenant: TenantId::SHARED,
                deadline: Submission::NO_DEADLINE,
                received: Duration::ZERO,
                request: SubjectRequest::Info,
                max_reply_bytes: 1 << 20,
                respond,
            },
        );
    }
    let refused = answers.try_recv().unwrap().unwrap_err();
    assert_eq!(refused.code, ErrorCode::Overloaded);
    assert!(refused.retry_after_ms.is_some());
    release.send(()).unwrap();
    for _ in 0..1_024 {
        assert!(answers.recv().unwrap().is_ok());
    }
    assert_eq!(server.engine.metrics().overloaded, 1);
}

/// A flush succeeds when all writes are in the bucket, and fails as `unavailable` while the bucket is unreachable.
#[test]
fn flush_waits_for_bucket_or_fails_unavailable() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server_with("persist-1", |settings| settings.level = Level::Disk);
    server.set(&app, "a", "1").unwrap();
    let flushed = server.flush(&app).unwrap();
    assert_eq!(server.info(&app).bucket_rev, flushed.rev);
    world.bucket.set_unreachable(true);
    server.set(&app, "b", "2").unwrap();
    let error = server.flush(&app).unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "1"), ("b", "2")]));
    world.bucket.set_unreachable(false);
    assert_eq!(server.flush(&app).unwrap(), server.info(&app).position);
    assert_eq!(server.info(&app).bucket_rev, flushed.rev.next());
}

/// If the bucket is unreachable, an open fails as `unavailable`, and the next request opens the subject.
#[test]
fn failed_subject_open_is_unavailable_and_retried() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    world.bucket.set_unreachable(true);
    assert_eq!(server.get(&app, "k").unwrap_err().code, ErrorCode::Unavailable);
    world.bucket.set_unreachable(false);
    assert_eq!(server.get(&app, "k"), Ok(None));
}

/// A destroyed subject leaves only its tombstone, and the next write continues with the next seq, rev and term.
#[test]
fn destroyed_subject_continues_from_tombstone() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "a", "1").unwrap();
    let last = server.set(&app, "b", "2").unwrap();
    server.flush(&app).unwrap();
    let end = server.destroy(&app).unwrap();
    assert_eq!((end.term, end.rev), (last.term, last.rev.next()), "the destroy has its own rev");
    let announced = server.events.of(&app).pop().unwrap();
    assert_eq!((announced.term, announced.rev), (end.term, end.rev));
    let expected = DeleteAllChange { rev: end.rev, end_seq: last.seq, count: 2 };
    assert_eq!(announced.changes, [Change::DeleteAll(expected)]);
    server.until("only the tombstone remains", || world.objects(&app).len() == 1);
    assert!(world.objects(&app)[0].to_string_lossy().ends_with(".manifest"));
    let local = world.data_dir("persist-1").join("subjects/app.orders.sqlite3");
    server.until("the local file is deleted", || !local.exists());

    assert_eq!(server.all(&app).unwrap(), []);
    let first = server.set(&app, "a", "new").unwrap();
    assert_eq!((first.seq, first.rev, first.term), (last.seq.next(), end.rev.next(), last.term.next()));
    assert_eq!(server.info(&app).term_base, end.rev);
    server.kill();
    let server = world.server("persist-1");
    assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "new")]));
}

/// A shutdown releases every subject and reports those that the server could not release.
#[test]
fn shutdown_releases_subjects_and_reports_failures() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    for n in 0..40 {
        server.set(&subject(&format!("app.s{n}")), "k", "v").unwrap();
    }
    let authority = Arc::clone(&server.authority);
    let engine = server.engine.clone();
    let report = server.runtime.block_on(engine.shutdown(Duration::from_secs(20)));
    assert_eq!((report.released, report.unreleased), (40, Vec::new()));
    assert_eq!(authority.released.lock().unwrap().len(), 40);
    let error = server.set(&subject("app.s1"), "k", "v").unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    drop(engine);
    server.kill();

    let server = world.server("persist-1");
    server.set(&subject("app.s1"), "k", "w").unwrap();
    world.bucket.set_unreachable(true);
    let report = server.shutdown();
    assert_eq!(report.released, 0);
    assert_eq!(report.unreleased.len(), 1);
    assert_eq!(report.unreleased[0].0, subject("app.s1"));
    world.bucket.set_unreachable(false);
    let server = world.server("persist-1");
    assert_eq!(server.get(&subject("app.s1"), "k").unwrap().as_deref(), Some("w"));
}

/// A second engine on a data directory that is in use fails to start.
#[test]
fn data_directory_belongs_to_one_process() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    let prepare = |settings: EngineSettings| {
        let bucket = Arc::clone(&world.bucket) as Arc<dyn Bucket>;
        server.runtime.block_on(Engine::prepare(settings, bucket, Env::system())).unwrap_err()
    };
    let settings = EngineSettings::new(world.data_dir("persist-1"), "persist-1".parse().unwrap());
    assert!(matches!(prepare(settings), EngineOpenError::DataDir(_)));
}

/// A local file of a newer schema version makes reads fail as `unavailable` and stays unchanged.
#[test]
fn newer_local_file_is_rejected_and_unchanged() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "k", "v").unwrap();
    server.kill();
    let local = world.data_dir("persist-1").join("subjects/app.orders.sqlite3");
    let connection = rusqlite::Connection::open(&local).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    connection.close().unwrap();
    let before = std::fs::read(&local).unwrap();
    let server = world.server("persist-1");
    let error = server.get(&app, "k").unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(error.message.contains("99"), "{error}");
    assert_eq!(std::fs::read(&local).unwrap(), before);
}

/// The server quarantines a garbage local file in `lost/` and serves the subject from the bucket.
#[test]
fn garbage_local_file_is_quarantined() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "k", "v").unwrap();
    server.shutdown();
    let local = world.data_dir("persist-1").join("subjects/app.orders.sqlite3");
    std::fs::write(&local, vec![b'?'; 10_000]).unwrap();
    let server = world.server("persist-1");
    assert_eq!(server.get(&app, "k").unwrap().as_deref(), Some("v"));
    let lost = lost_files(&world.data_dir("persist-1"));
    assert_eq!(lost.len(), 1);
    assert_eq!(std::fs::read(&lost[0]).unwrap(), vec![b'?'; 10_000]);
}

/// After a panic of its task, a subject reopens under the same term once no upload reads its file.
#[test]
fn panicked_subject_reopens_after_file_is_unused() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    let before = server.set(&app, "a", &large()).unwrap();
    let uploading = world.bucket.hold_requests(BucketOperation::PutFile, "");
    let _guard = server.runtime.enter();
    let respond = Box::new(|_| {});
    server.engine.submit(
        &app,
        Submission {
            tenant: TenantId::SHARED,
            deadline: Submission::NO_DEADLINE,
            received: Duration::ZERO,
            request: SubjectRequest::Compact,
            max_reply_bytes: 1 << 20,
            respond,
        },
    );
    server.until("the upload starts", || world.bucket.calls(BucketOperation::PutFile) == 1);
    let respond = Box::new(|_| panic!("injected panic"));
    server.engine.submit(
        &app,
        Submission {
            tenant: TenantId::SHARED,
            deadline: Submission::NO_DEADLINE,
            received: Duration::ZERO,
            request: SubjectRequest::Info,
            max_reply_bytes: 1 << 20,
            respond,
        },
    );
    server.until("the task of the subject has ended", || {
        server.get(&app, "a").is_err_and(|error| error.code == ErrorCode::Overloaded)
    });
    drop(uploading);
    server.until("the subject reopens", || server.get(&app, "a") == Ok(Some(large())));
    assert_eq!(server.info(&app).position.term, before.term);
    let after = server.set(&app, "b", &large()).unwrap();
    assert_eq!(after.rev, before.rev.next());
    server.compact(&app).unwrap();
    assert_eq!(messages_in(&world.snapshot(&app)).len(), 2);
    assert_eq!(server.engine.metrics().fenced_subjects, 0);
}

/// At the open limit, the server closes idle subjects for new ones while busy subjects stay served.
#[test]
fn idle_subjects_close_while_others_stay_in_use() {
    let world = World::in_memory();
    let server = world.server_with("persist-1", |settings| settings.max_open_subjects = 4);
    let hot = [subject("app.hot1"), subject("app.hot2")];
    for n in 0..60 {
        for one in &hot {
            server.set(one, "k", &n.to_string()).unwrap();
        }
        let cold = subject(&format!("app.cold{n}"));
        server.until("the subject opens", || {
            for one in &hot {
                server.set(one, "k", "again").unwrap();
            }
            server.set(&cold, "k", "v").is_ok()
        });
    }
    server.until("enough subjects are closed", || {
        for one in &hot {
            server.set(one, "k", "again").unwrap();
        }
        server.engine.metrics().open_subjects <= 4
    });
}
