//! One engine: what it keeps, what it announces, when it closes, and what it says when something is wrong.

mod support;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dormouse_protocol::data::GetRequest;
use dormouse_protocol::message::DeleteAllChange;
use dormouse_protocol::{Change, ErrorCode, Level, Rev, Subject};
use dormouse_runtime::Env;
use dormouse_storage::api::{Reply, Request, Submission};
use dormouse_storage::bucket::Bucket;
use dormouse_storage::{Engine, EngineSettings, ExportError, OpenError, export_snapshot};
use support::{Server, World, lost_files, messages_in, pairs, set_request, subject};

const APP: &str = "app.orders";

#[test]
fn what_was_acknowledged_survives_a_kill() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    for n in 0..50 {
        server.set(&app, &format!("k{n:02}"), &n.to_string()).unwrap();
    }
    let before = (server.all(&app).unwrap(), server.info(&app));
    assert_eq!(before.1.bucket_rev, Rev::new(0), "nothing has been brought to the bucket");
    server.kill();

    let server = world.server("persist-1");
    assert_eq!(server.all(&app).unwrap(), before.0);
    let info = server.info(&app);
    assert_eq!((info.position.term, info.term_base), (before.1.position.term.next(), before.1.position.rev));
    assert_eq!(server.set(&app, "k", "v").unwrap().rev, info.position.rev.next());
    // It was in no snapshot, so the claim had to bring it to the bucket: nothing refers to a log that is over.
    assert_eq!(info.bucket_rev, before.1.position.rev);
    assert_eq!(lost_files(&world.data_dir("persist-1")), [] as [std::path::PathBuf; 0]);
}

#[test]
fn a_snapshot_is_a_plain_sqlite_file() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "a", "1").unwrap();
    server.set(&app, "b", "2").unwrap();
    let position = server.flush(&app).unwrap();
    assert_eq!(position, server.info(&app).position);
    server.set(&app, "c", "3").unwrap();
    assert_eq!(messages_in(&world.snapshot(&app)), pairs(&[("a", "1"), ("b", "2")]));

    let exported = world.folder.path().join("exported.sqlite3");
    let export =
        |name| server.runtime.block_on(export_snapshot(world.bucket.as_ref(), &subject(name), &exported));
    assert_eq!(export(APP).unwrap(), position);
    assert_eq!(messages_in(&exported), pairs(&[("a", "1"), ("b", "2")]));
    assert!(matches!(export("app.unknown"), Err(ExportError::NoSuchSubject(_))));
    server.set(&subject("app.fresh"), "a", "1").unwrap();
    assert!(matches!(export("app.fresh"), Err(ExportError::NothingYet(_))));
}

#[test]
fn flush_again_costs_nothing_and_old_snapshots_go() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    for n in 0..5 {
        server.set(&app, "k", &n.to_string()).unwrap();
        server.flush(&app).unwrap();
        server.flush(&app).unwrap();
    }
    assert_eq!(server.engine.figures().publications, 5);
    server.until("one manifest and one snapshot are left", || world.objects(&app).len() == 2);
    assert_eq!(messages_in(&world.snapshot(&app)), pairs(&[("k", "4")]));
}

#[test]
fn changes_reach_the_bucket_by_themselves() {
    let world = World::on_disk();
    let app = subject(APP);
    let server =
        world.server_with("persist-1", |settings| settings.snapshot_interval = Duration::from_millis(50));
    server.set(&app, "k", "v").unwrap();
    assert_eq!(server.engine.figures().dirty_subjects, 1);
    server.until("the change is in the bucket", || server.engine.figures().dirty_subjects == 0);
    assert_eq!(messages_in(&world.snapshot(&app)), pairs(&[("k", "v")]));
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
                tokio::time::sleep(Duration::from_micros((task * 31 + n * 17) % 700)).await;
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
            server.engine.execute(&app, Request::Destroy),
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
    let server = world.server("persist-1");
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
fn a_bucket_that_goes_away_stops_flushes_and_nothing_else() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server_with("persist-1", |settings| {
        settings.snapshot_interval = Duration::from_millis(20);
        settings.flush_patience = Duration::from_millis(200);
    });
    server.set(&app, "a", "1").unwrap();
    server.flush(&app).unwrap();
    world.bucket.gone.store(true, Ordering::SeqCst);
    server.set(&app, "b", "2").unwrap();
    let error = server.flush(&app).unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(error.message.contains("it is gone"), "{error}");
    assert_eq!(server.all(&app).unwrap(), pairs(&[("a", "1"), ("b", "2")]));
    assert_eq!(server.engine.figures().subjects_not_in_bucket, 1);
    world.bucket.gone.store(false, Ordering::SeqCst);
    server.until("everything is in the bucket", || {
        let figures = server.engine.figures();
        (figures.subjects_not_in_bucket, figures.dirty_subjects) == (0, 0)
    });
    assert_eq!(messages_in(&world.snapshot(&app)), pairs(&[("a", "1"), ("b", "2")]));
}

#[test]
fn a_subject_that_cannot_be_opened_says_so_and_is_tried_again() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    world.bucket.gone.store(true, Ordering::SeqCst);
    assert_eq!(server.get(&app, "k").unwrap_err().code, ErrorCode::Unavailable);
    world.bucket.gone.store(false, Ordering::SeqCst);
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
    world.bucket.gone.store(true, Ordering::SeqCst);
    let report = server.shutdown();
    assert_eq!(report.released, 0);
    assert_eq!(report.unreleased.len(), 1);
    assert_eq!(report.unreleased[0].0, subject("app.s1"));
    world.bucket.gone.store(false, Ordering::SeqCst);
    let server = world.server("persist-1");
    assert_eq!(server.get(&subject("app.s1"), "k").unwrap().as_deref(), Some("w"));
}

#[test]
fn a_data_directory_belongs_to_one_process_and_a_level_is_not_promised_in_vain() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    let prepare = |settings: EngineSettings| {
        let bucket = Arc::clone(&world.bucket) as Arc<dyn Bucket>;
        server.runtime.block_on(Engine::prepare(settings, bucket, Env::system())).unwrap_err()
    };
    let settings = EngineSettings::new(world.data_dir("persist-1"), "persist-1".parse().unwrap());
    assert!(matches!(prepare(settings), OpenError::DataDir(_)));
    let mut settings = EngineSettings::new(world.data_dir("persist-2"), "persist-2".parse().unwrap());
    settings.level = Level::Bucket;
    let error = prepare(settings);
    assert!(matches!(error, OpenError::Level(Level::Bucket)));
    assert!(error.to_string().contains("memory"));
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
fn without_a_lease_nothing_is_answered() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    server.set(&app, "k", "v").unwrap();
    server.authority.set_lease(None);
    assert_eq!(server.get(&app, "k").unwrap_err().code, ErrorCode::Unavailable);
    assert_eq!(server.set(&app, "k", "w").unwrap_err().code, ErrorCode::Unavailable);
    assert_eq!(server.get(&subject("app.other"), "k").unwrap_err().code, ErrorCode::Unavailable);
    let claimed = world.folder.path().join("bucket/subjects/app.other");
    assert!(!claimed.exists(), "without a lease nothing is claimed");
    server.authority.set_lease(Some(2));
    assert_eq!(server.get(&app, "k").unwrap().as_deref(), Some("v"));
    // The gap is verified in the bucket: without it there is no answer.
    server.authority.set_lease(Some(3));
    world.bucket.gone.store(true, Ordering::SeqCst);
    assert_eq!(server.get(&app, "k").unwrap_err().code, ErrorCode::Unavailable);
    world.bucket.gone.store(false, Ordering::SeqCst);
    assert_eq!(server.get(&app, "k").unwrap().as_deref(), Some("v"));
}

/// Keeps the subject's task busy until told otherwise.
fn hold_up(server: &Server, subject: &Subject) -> std::sync::mpsc::Sender<()> {
    let _guard = server.runtime.enter();
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let (reached, waiting) = std::sync::mpsc::channel();
    let respond = Box::new(move |_| {
        reached.send(()).unwrap();
        gate.recv().unwrap();
    });
    server.engine.submit(subject, Submission { request: Request::Info, max_reply_bytes: 1 << 20, respond });
    waiting.recv().unwrap();
    release
}

#[test]
fn a_change_made_when_the_lease_has_run_out_is_indeterminate_and_not_announced() {
    let world = World::in_memory();
    let app = subject(APP);
    let server = world.server("persist-1");
    let before = server.set(&app, "a", "1").unwrap();
    let release = hold_up(&server, &app);
    // The three are one batch, and the lease runs out in its middle.
    let _guard = server.runtime.enter();
    let (sender, answers) = std::sync::mpsc::channel();
    let authority = Arc::clone(&server.authority);
    let run_out: Box<dyn FnOnce(Result<Reply, _>) + Send> = Box::new(move |answer| {
        assert!(answer.is_ok());
        authority.set_lease(None);
    });
    let requests = [Request::Info, set_request("b", "2"), Request::Get(GetRequest::key("b"))];
    let mut responds: Vec<Box<dyn FnOnce(Result<Reply, _>) + Send>> = vec![run_out];
    for _ in 0..2 {
        let sender = sender.clone();
        responds.push(Box::new(move |answer| sender.send(answer).unwrap()));
    }
    for (request, respond) in requests.into_iter().zip(responds) {
        server.engine.submit(&app, Submission { request, max_reply_bytes: 1 << 20, respond });
    }
    release.send(()).unwrap();
    let codes = [0, 1].map(|_| answers.recv().unwrap().unwrap_err().code);
    assert_eq!(codes, [ErrorCode::Indeterminate, ErrorCode::Unavailable]);
    assert_eq!(server.events.of(&app).last().unwrap().rev, before.rev);

    // Nobody came first: the change is there, and watchers learn of it from where the next term begins.
    server.authority.set_lease(Some(2));
    assert_eq!(server.get(&app, "b").unwrap().as_deref(), Some("2"));
    let beacon = server.events.of(&app).pop().unwrap();
    assert_eq!((beacon.term, beacon.term_base), (before.term.next(), before.rev.next()));
}

#[test]
fn a_subject_whose_task_panicked_opens_again_when_nobody_reads_its_file_any_more() {
    let world = World::on_disk();
    let app = subject(APP);
    let server = world.server("persist-1");
    let before = server.set(&app, "a", "1").unwrap();
    let uploading = world.bucket.uploading.blocking_lock();
    let _guard = server.runtime.enter();
    let respond = Box::new(|_| {});
    server.engine.submit(&app, Submission { request: Request::Flush, max_reply_bytes: 1 << 20, respond });
    server.until("the upload has begun", || world.bucket.uploads.load(Ordering::SeqCst) == 1);
    let respond = Box::new(|_| panic!("as the test wants it"));
    server.engine.submit(&app, Submission { request: Request::Info, max_reply_bytes: 1 << 20, respond });
    server.until("its task is gone", || {
        server.get(&app, "a").is_err_and(|error| error.code == ErrorCode::Overloaded)
    });
    drop(uploading);
    server.until("it is open again", || server.get(&app, "a") == Ok(Some("1".to_owned())));
    assert_eq!(server.info(&app).position.term, before.term);
    let after = server.set(&app, "b", "2").unwrap();
    assert_eq!(after.rev, before.rev.next());
    server.flush(&app).unwrap();
    assert_eq!(messages_in(&world.snapshot(&app)), pairs(&[("a", "1"), ("b", "2")]));
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
