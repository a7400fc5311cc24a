//! One engine: what it keeps, what it announces, when it closes, and what it says when something is wrong.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{World, large, lost_files, messages_in, pairs, set_request, subject};
use dormouse_protocol::data::{DestroyRequest, GetRequest};
use dormouse_protocol::message::DeleteAllChange;
use dormouse_protocol::{Change, ErrorCode, Level, Rev};
use dormouse_runtime::Env;
use dormouse_storage::api::{Reply, Request, Submission};
use dormouse_storage::bucket::{Bucket, Operation};
use dormouse_storage::{Engine, EngineSettings, OpenError};

const APP: &str = "app.orders";

#[test]
fn a_snapshot_is_a_plain_sqlite_file() {
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

#[test]
fn a_backlog_is_read_copied_and_left_by_nobody() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server_with("persist-1", |settings| settings.level = Level::Memory);
    let backlog = || server.engine.figures().backlog_bytes;
    server.get(&app, "k").unwrap();
    let write = |value: &str| {
        server.set(&app, "k", value).unwrap();
        assert_ne!(backlog(), 0, "it is acknowledged, and waits for company");
    };
    write("read");
    assert_eq!(server.get(&app, "k").unwrap().as_deref(), Some("read"));
    assert_eq!(backlog(), 0);
    write("copied");
    server.compact(&app).unwrap();
    assert_eq!((messages_in(&world.snapshot(&app)), backlog()), (pairs(&[("k", "copied")]), 0));
    write("alone");
    server.pass(Duration::from_secs(6));
    assert_eq!(backlog(), 0);
    write("left");
    server.hand_over(&app).unwrap();
    assert_eq!(backlog(), 0);
    let next = world.server("persist-2");
    assert_eq!(next.get(&app, "k").unwrap().as_deref(), Some("left"));
}

#[test]
fn what_many_subjects_have_in_their_backlogs_is_bounded() {
    let world = World::in_memory();
    let server = world.server_with("persist-1", |settings| settings.level = Level::Memory);
    let value = "v".repeat(200_000);
    let apps: Vec<_> = (0..400).map(|n| subject(&format!("app.{n}"))).collect();
    for app in &apps {
        server.get(app, "k").unwrap();
        server.set(app, "k", &value).unwrap();
        assert!(server.engine.figures().backlog_bytes < 65 * 1_024 * 1_024);
    }
    for app in &apps {
        assert_eq!(server.get(app, "k").unwrap().as_deref(), Some(&*value));
    }
}

#[test]
fn changes_of_a_weaker_level_reach_the_bucket_by_themselves() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server_with("persist-1", |settings| settings.level = Level::Memory);
    // The lease is trusted once it was looked whether the log is still ours.
    server.get(&app, "k").unwrap();
    let rev = server.set(&app, "k", "v").unwrap().rev;
    assert_eq!(server.info(&app).bucket_rev, Rev::new(0));
    server.pass(Duration::from_millis(1_100));
    assert_eq!(server.info(&app).bucket_rev, rev, "within the ship interval");
    assert_eq!(server.engine.figures().log.unshipped_bytes, 0);
}

#[test]
fn an_idle_subject_is_closed_and_opens_again_under_the_same_term() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server_with("persist-1", |settings| settings.idle_close = Duration::from_millis(50));
    let before = server.set(&app, "k", "v").unwrap();
    server.until("the subject is closed", || server.engine.figures().open_subjects == 0);
    assert_eq!(server.engine.figures().local_bytes, 0);
    let objects = world.objects(&app);
    assert_eq!(server.get(&app, "k").unwrap().as_deref(), Some("v"));
    assert_eq!(world.objects(&app), objects, "reopening one's own subject writes nothing");
    let after = server.set(&app, "k", "w").unwrap();
    assert_eq!((after.term, after.rev), (before.term, before.rev.next()));
    assert_eq!(server.engine.figures().opens, 2);
}

#[test]
fn a_request_that_meets_a_closing_subject_is_served_by_the_reopened_one() {
    let world = World::in_memory();
    let app = subject(APP);
    // Closes as soon as everything is in the bucket and nobody waits.
    let server = world.server_with("persist-1", |settings| settings.idle_close = Duration::ZERO);
    server.set(&app, "k", "v").unwrap();
    server.runtime.block_on(async {
        let ask = async |task: u64| {
            for n in 0..100 {
                let answer = server.engine.execute(&app, Request::Get(GetRequest::key("k"))).await;
                assert!(matches!(&answer, Ok(Reply::Get(reply)) if reply.messages.len() == 1), "{answer:?}");
                tokio::time::sleep(Duration::from_millis((task * 31 + n * 17) % 70)).await;
            }
        };
        tokio::join!(ask(1), ask(2), ask(3));
    });
    assert!(server.engine.figures().opens > 5, "{:?}", server.engine.figures());
}

#[test]
fn what_waits_behind_a_destroy_is_served_by_the_subject_that_follows() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    let old = server.set(&app, "old", "v").unwrap();
    let (destroyed, set) = server.runtime.block_on(async {
        tokio::join!(
            server.engine.execute(&app, Request::Destroy(DestroyRequest::default())),
            server.engine.execute(&app, set_request("new", "v"))
        )
    });
    assert!(destroyed.is_ok() && set.is_ok(), "{destroyed:?} {set:?}");
    assert_eq!(server.all(&app).unwrap(), pairs(&[("new", "v")]));
    assert_eq!(server.info(&app).position.term, old.term.next());
}

#[test]
fn more_subjects_than_may_be_open_take_turns() {
    let world = World::in_memory();
    let server = world.server_with("persist-1", |settings| settings.max_open_subjects = 8);
    let subjects: Vec<_> = (0..60).map(|n| subject(&format!("app.s{n}"))).collect();
    for (n, one) in subjects.iter().enumerate() {
        // Above twice the number a request is turned away until others have closed.
        server.until("there is room", || server.set(one, "k", &n.to_string()).is_ok());
    }
    server.until("enough are closed", || server.engine.figures().open_subjects <= 8);
    for (n, one) in subjects.iter().enumerate() {
        let mut value = None;
        server.until("there is room", || match server.get(one, "k") {
            Ok(found) => {
                value = found;
                true
            }
            Err(error) => error.code != ErrorCode::Overloaded,
        });
        assert_eq!(value, Some(n.to_string()));
    }
}

#[test]
fn changes_are_announced_in_order_and_before_they_are_acknowledged() {
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
        server.engine.submit(&to, Submission { request, max_reply_bytes: 1 << 20, respond });
    }
    server.runtime.block_on(async {
        for _ in 0..500 {
            finished.recv().await.unwrap();
        }
    });
    for (rev, announced) in late.lock().unwrap().iter() {
        assert!(announced >= rev, "rev {rev} was acknowledged when only {announced} was announced");
    }
    let events = events.of(&app);
    assert!(events[0].changes.is_empty(), "a claim is announced by a beacon");
    assert!(events.len() < 100, "changes of one batch share events: {}", events.len());
    let revs: Vec<_> = events.iter().flat_map(|event| &event.changes).map(Change::rev).collect();
    assert_eq!(revs, (1..=500).map(Rev::new).collect::<Vec<_>>());
}

#[test]
fn a_quiet_subject_says_once_more_where_it_is() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    let rev = server.set(&app, "k", "v").unwrap().rev;
    server.until("a beacon follows the change", || {
        let events = server.events.of(&app);
        events.len() == 3 && events[2].changes.is_empty() && events[2].rev == rev
    });
}

#[test]
fn a_full_queue_turns_requests_away() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.running_server("persist-1", |_| {});
    let _guard = server.runtime.enter();
    // The subject's task waits in here while its queue fills.
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let (reached, mut waiting) = tokio::sync::mpsc::unbounded_channel();
    let respond = Box::new(move |_| {
        reached.send(()).unwrap();
        gate.recv().unwrap();
    });
    server.engine.submit(&app, Submission { request: Request::Info, max_reply_bytes: 1 << 20, respond });
    server.runtime.block_on(waiting.recv()).unwrap();
    let (sender, answers) = std::sync::mpsc::channel();
    for _ in 0..1_025 {
        let sender = sender.clone();
        let respond = Box::new(move |answer| sender.send(answer).unwrap());
        server.engine.submit(&app, Submission { request: Request::Info, max_reply_bytes: 1 << 20, respond });
    }
    let refused = answers.try_recv().unwrap().unwrap_err();
    assert_eq!(refused.code, ErrorCode::Overloaded);
    assert!(refused.retry_after_ms.is_some());
    release.send(()).unwrap();
    for _ in 0..1_024 {
        assert!(answers.recv().unwrap().is_ok());
    }
    assert_eq!(server.engine.figures().overloaded, 1);
}

#[test]
fn a_flush_is_answered_when_everything_is_in_the_bucket_or_says_why_not() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server_with("persist-1", |settings| settings.level = Level::Disk);
    server.set(&app, "a", "1").unwrap();
    let flushed = server.flush(&app).unwrap();
    assert_eq!(server.info(&app).bucket_rev, flushed.rev);
    world.bucket.set_gone(true);
    server.set(&app, "b", "2").unwrap();
    let error = server.flush(&app).unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "1"), ("b", "2")]));
    world.bucket.set_gone(false);
    assert_eq!(server.flush(&app).unwrap(), server.info(&app).position);
    assert_eq!(server.info(&app).bucket_rev, flushed.rev.next());
}

#[test]
fn a_subject_that_cannot_be_opened_says_so_and_is_tried_again() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    world.bucket.set_gone(true);
    assert_eq!(server.get(&app, "k").unwrap_err().code, ErrorCode::Unavailable);
    world.bucket.set_gone(false);
    assert_eq!(server.get(&app, "k"), Ok(None));
}

#[test]
fn destroyed_subjects_leave_a_tombstone_and_go_on_from_it() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "a", "1").unwrap();
    let last = server.set(&app, "b", "2").unwrap();
    server.flush(&app).unwrap();
    let end = server.destroy(&app).unwrap();
    assert_eq!((end.term, end.rev), (last.term, last.rev.next()), "a change with a rev of its own");
    let announced = server.events.of(&app).pop().unwrap();
    assert_eq!((announced.term, announced.rev), (end.term, end.rev));
    let gone = DeleteAllChange { rev: end.rev, end_seq: last.seq, count: 2 };
    assert_eq!(announced.changes, [Change::DeleteAll(gone)]);
    server.until("only the tombstone is left", || world.objects(&app).len() == 1);
    assert!(world.objects(&app)[0].to_string_lossy().ends_with(".manifest"));
    let local = world.data_dir("persist-1").join("subjects/app.orders.sqlite3");
    server.until("the local file is gone", || !local.exists());

    assert_eq!(server.all(&app).unwrap(), []);
    let first = server.set(&app, "a", "new").unwrap();
    assert_eq!((first.seq, first.rev, first.term), (last.seq.next(), end.rev.next(), last.term.next()));
    assert_eq!(server.info(&app).term_base, end.rev);
    server.kill();
    let server = world.server("persist-1");
    assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "new")]));
}

#[test]
fn shutdown_releases_everything_and_names_what_it_could_not() {
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
    world.bucket.set_gone(true);
    let report = server.shutdown();
    assert_eq!(report.released, 0);
    assert_eq!(report.unreleased.len(), 1);
    assert_eq!(report.unreleased[0].0, subject("app.s1"));
    world.bucket.set_gone(false);
    let server = world.server("persist-1");
    assert_eq!(server.get(&subject("app.s1"), "k").unwrap().as_deref(), Some("w"));
}

#[test]
fn a_data_directory_belongs_to_one_process() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    let prepare = |settings: EngineSettings| {
        let bucket = Arc::clone(&world.bucket) as Arc<dyn Bucket>;
        server.runtime.block_on(Engine::prepare(settings, bucket, Env::system())).unwrap_err()
    };
    let settings = EngineSettings::new(world.data_dir("persist-1"), "persist-1".parse().unwrap());
    assert!(matches!(prepare(settings), OpenError::DataDir(_)));
}

#[test]
fn a_file_of_a_newer_version_is_refused_and_left_alone() {
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

#[test]
fn garbage_in_place_of_a_local_file_is_kept_and_reported_and_the_bucket_serves() {
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

#[test]
fn a_subject_whose_task_panicked_opens_again_when_nobody_reads_its_file_any_more() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    let before = server.set(&app, "a", &large()).unwrap();
    let uploading = world.bucket.uploading.blocking_lock();
    let _guard = server.runtime.enter();
    let respond = Box::new(|_| {});
    server.engine.submit(&app, Submission { request: Request::Compact, max_reply_bytes: 1 << 20, respond });
    server.until("the upload has begun", || world.bucket.calls(Operation::PutFile) == 1);
    let respond = Box::new(|_| panic!("as the test wants it"));
    server.engine.submit(&app, Submission { request: Request::Info, max_reply_bytes: 1 << 20, respond });
    server.until("its task is gone", || {
        server.get(&app, "a").is_err_and(|error| error.code == ErrorCode::Overloaded)
    });
    drop(uploading);
    server.until("it is open again", || server.get(&app, "a") == Ok(Some(large())));
    assert_eq!(server.info(&app).position.term, before.term);
    let after = server.set(&app, "b", &large()).unwrap();
    assert_eq!(after.rev, before.rev.next());
    server.compact(&app).unwrap();
    assert_eq!(messages_in(&world.snapshot(&app)).len(), 2);
    assert_eq!(server.engine.figures().lost_subjects, 0);
}

#[test]
fn idle_subjects_make_room_while_others_are_in_use() {
    let world = World::in_memory();
    let server = world.server_with("persist-1", |settings| settings.max_open_subjects = 4);
    let hot = [subject("app.hot1"), subject("app.hot2")];
    for n in 0..60 {
        for one in &hot {
            server.set(one, "k", &n.to_string()).unwrap();
        }
        let cold = subject(&format!("app.cold{n}"));
        server.until("there is room", || {
            for one in &hot {
                server.set(one, "k", "again").unwrap();
            }
            server.set(&cold, "k", "v").is_ok()
        });
    }
    server.until("enough are closed", || {
        for one in &hot {
            server.set(one, "k", "again").unwrap();
        }
        server.engine.figures().open_subjects <= 4
    });
}
