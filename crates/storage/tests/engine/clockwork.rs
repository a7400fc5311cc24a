//! What an open subject does by itself, on a clock that the test holds, and with a bucket whose answers get lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dormouse_protocol::ErrorCode;
use dormouse_protocol::data::GetRequest;
use dormouse_runtime::{Env, SeededEntropy, Tasks, VirtualClock};
use dormouse_storage::api::{Authority, EventSink, Reply, Request};
use dormouse_storage::bucket::Bucket;
use dormouse_storage::{Engine, EngineSettings};
use crate::support::{Events, TestAuthority, Unreliable, set_request, subject};

struct Fixture {
    engine: Engine,
    bucket: Arc<Unreliable>,
    events: Arc<Events>,
    env: Env,
    _folder: tempfile::TempDir,
}

async fn fixture() -> Fixture {
    let clock = VirtualClock::starting_at(Duration::from_secs(1_700_000_000));
    let env = Env::simulated(Arc::new(clock), Arc::new(SeededEntropy::new(1)));
    let folder = tempfile::tempdir().unwrap();
    let bucket = Arc::new(Unreliable::in_memory(env.clone()));
    let settings = EngineSettings::new(folder.path(), "persist-1".parse().unwrap());
    let port = Arc::clone(&bucket) as Arc<dyn Bucket>;
    let prepared = Engine::prepare(settings, port, env.clone()).await.unwrap();
    let authority =
        Arc::new(TestAuthority::new(Arc::default(), prepared.log().clone())) as Arc<dyn Authority>;
    let events = Arc::new(Events::default());
    let sink = Arc::clone(&events) as Arc<dyn EventSink>;
    let engine = prepared.start(authority, sink, Tasks::new()).await.unwrap();
    Fixture { engine, bucket, events, env, _folder: folder }
}

impl Fixture {
    async fn set(&self, key: &str) {
        self.engine.execute(&subject("app.a"), set_request(key, "v")).await.unwrap();
    }

    async fn flush(&self) -> Result<u64, ErrorCode> {
        match self.engine.execute(&subject("app.a"), Request::Flush).await {
            Ok(Reply::Flush(reply)) => Ok(reply.position.rev.get()),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.code),
        }
    }

    /// Sleeps until the given second after the start.
    async fn at(&self, second: u64) {
        tokio::time::sleep(Duration::from_secs(second).saturating_sub(self.env.boot())).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_is_followed_by_beacons_a_snapshot_and_sleep() {
    let fixture = fixture().await;
    let app = subject("app.a");
    fixture.set("k").await;
    let mut seen = Vec::new();
    for second in 0..70 {
        fixture.at(second).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let figures = fixture.engine.figures();
        seen.push((fixture.events.of(&app).len(), figures.publications, figures.open_subjects));
    }
    let first = |what: &dyn Fn(&(usize, u64, u64)) -> bool| seen.iter().position(what).unwrap();
    // A beacon after the claim, the change, then three beacons, and one on closing.
    assert_eq!(seen[0], (2, 0, 1));
    assert_eq!([3, 4, 5, 6].map(|events| first(&|at| at.0 == events)), [1, 5, 30, 60]);
    assert_eq!(first(&|at| at.1 == 1), 10);
    assert_eq!(first(&|at| at.2 == 0), 60);
    assert_eq!(seen[69], (6, 1, 0), "a sleeping subject does nothing");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_in_the_bucket_stays_open() {
    let fixture = fixture().await;
    fixture.set("k").await;
    fixture.bucket.gone.store(true, Ordering::SeqCst);
    fixture.at(600).await;
    let figures = fixture.engine.figures();
    assert_eq!((figures.open_subjects, figures.subjects_not_in_bucket), (1, 1));
    assert!((15..25).contains(&figures.publication_failures), "{figures:?}");
    fixture.bucket.gone.store(false, Ordering::SeqCst);
    fixture.at(640).await;
    let figures = fixture.engine.figures();
    assert_eq!((figures.open_subjects, figures.subjects_not_in_bucket, figures.publications), (0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn flushes_that_wait_share_a_snapshot() {
    let fixture = fixture().await;
    for n in 0..10 {
        fixture.set(&n.to_string()).await;
    }
    let flushes = futures::future::join_all((0..20).map(|_| fixture.flush())).await;
    assert!(flushes.iter().all(|flushed| *flushed == Ok(10)), "{flushes:?}");
    assert_eq!(fixture.engine.figures().publications, 1);
}

#[tokio::test(start_paused = true)]
async fn a_publication_without_an_answer_is_settled_before_the_next() {
    let fixture = fixture().await;
    fixture.set("a").await;
    // The manifest is created, and nobody hears of it.
    fixture.bucket.creates_unanswered.store(true, Ordering::SeqCst);
    assert_eq!(fixture.flush().await, Err(ErrorCode::Unavailable));
    fixture.set("b").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(fixture.engine.figures().subjects_not_in_bucket, 1);
    fixture.set("c").await;
    fixture.bucket.creates_unanswered.store(false, Ordering::SeqCst);
    assert_eq!(fixture.flush().await, Ok(3));
    let figures = fixture.engine.figures();
    assert_eq!((figures.subjects_not_in_bucket, figures.dirty_subjects, figures.lost_subjects), (0, 0, 0));
    let get = Request::Get(GetRequest::key("c"));
    let Ok(Reply::Get(reply)) = fixture.engine.execute(&subject("app.a"), get).await else { panic!() };
    assert_eq!((reply.messages.len(), reply.position.term.get()), (1, 1), "never claimed anew");
    let report = fixture.engine.shutdown(Duration::from_secs(60)).await;
    assert_eq!((report.released, report.unreleased.len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_destroy_without_an_answer_is_indeterminate_and_nothing_is_accepted_until_it_is_known() {
    let fixture = fixture().await;
    let app = subject("app.a");
    fixture.set("a").await;
    fixture.bucket.creates_unanswered.store(true, Ordering::SeqCst);
    let error = fixture.engine.execute(&app, Request::Destroy).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Indeterminate);
    let error = fixture.engine.execute(&app, set_request("b", "v")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    fixture.bucket.creates_unanswered.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let Ok(Reply::Info(info)) = fixture.engine.execute(&app, Request::Info).await else { panic!() };
    assert_eq!((info.count, info.position.rev.get(), info.position.term.get()), (0, 2, 2));
}
