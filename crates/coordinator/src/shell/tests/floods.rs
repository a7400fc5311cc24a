use dormouse_bus::Reply;

use super::*;
use crate::locate_queue::{MAX_QUEUED_PER_TENANT, MAX_REFUSALS_PER_SECOND};

/// The result of one look-up of a flood.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Located,
    Overloaded,
    NoReply,
}

impl World {
    async fn locate_in_flood(&self, name: &str) -> Outcome {
        let payload = encode(&LocateRequest::default()).unwrap();
        let message = Outgoing::new(self.prefix.locate(&subject(name)), payload);
        match self.asker.request(message, SECOND).await {
            Ok(Reply { headers, payload }) if headers.get(ErrorReply::STATUS_HEADER).is_some() => {
                let error = decode::<ErrorReply>(&payload).unwrap();
                assert_eq!((error.code, error.retry_after_ms), (ErrorCode::Overloaded, Some(200)));
                Outcome::Overloaded
            }
            Ok(_) => Outcome::Located,
            Err(RequestError::Deadline { .. }) => Outcome::NoReply,
            Err(error) => panic!("{error}"),
        }
    }
}

/// A flood of look-ups by one tenant leaves heartbeats, claims and another tenant's look-ups alone. The tenant gets
/// `overloaded`, within limits; the rest is dropped, counted, and reported in health.
#[tokio::test(start_paused = true)]
async fn locate_flood_of_one_tenant_leaves_others_alone() {
    const FLOOD: usize = 12_000;
    let world = World::started().await;
    let one = log("one", 1);
    world.join(&one).await.unwrap();
    let greedy: Vec<_> = (0..FLOOD).map(|n| format!("greedy.{n}")).collect();
    let flood = futures::future::join_all(greedy.iter().map(|name| world.locate_in_flood(name)));
    let polite = async {
        for n in 0..20 {
            assert_eq!(world.locate(&format!("polite.{n}")).await, Ok("one".into()));
            world.heartbeat(&one).await.unwrap();
            world.claim(&format!("polite.{n}"), &one).await.unwrap();
        }
    };
    let (outcomes, ()) = tokio::join!(flood, polite);
    let count = |wanted: Outcome| outcomes.iter().filter(|outcome| **outcome == wanted).count() as u64;
    let (located, refused, dropped) =
        (count(Outcome::Located), count(Outcome::Overloaded), count(Outcome::NoReply));
    assert!(located >= MAX_QUEUED_PER_TENANT as u64, "{located} located");
    assert_eq!(refused, u64::from(MAX_REFUSALS_PER_SECOND), "all of it arrives within a second");
    assert!(dropped > 0);
    let health = world.health().await;
    assert_eq!(health.figures["refused_lookups_total"], refused);
    assert_eq!(health.figures["dropped_lookups_total"], dropped);
    assert_eq!(health.figures["queued_lookups"], 0);
    assert_eq!(health.status, HealthStatus::Degraded);
    assert_eq!(
        health.problems,
        ["look-ups dropped within the last 5 minutes: a tenant asks for far more than its share"]
    );
    // The problem ends some time after the last drop.
    for _ in 0..301 {
        tokio::time::sleep(SECOND).await;
        world.heartbeat(&one).await.unwrap();
    }
    assert_eq!(world.health().await.status, HealthStatus::Ok);
    assert_eq!(world.locate("greedy.0").await, Ok("one".into()));
}

/// A flood of invalid look-ups gets a bounded number of error replies.
#[tokio::test(start_paused = true)]
async fn locate_flood_of_invalid_requests_is_bounded() {
    let world = World::started().await;
    world.join(&log("one", 1)).await.unwrap();
    let route = world.prefix.locate(&subject("greedy.a"));
    let large = Bytes::from(vec![0xc0; 5_000]);
    let requests =
        (0..2_000).map(|_| world.asker.request(Outgoing::new(route.clone(), large.clone()), SECOND));
    let replies = futures::future::join_all(requests).await;
    let errors: Vec<_> = replies.into_iter().filter_map(Result::ok).collect();
    assert_eq!(errors.len(), MAX_REFUSALS_PER_SECOND as usize);
    for Reply { payload, .. } in errors {
        assert_eq!(decode::<ErrorReply>(&payload).unwrap().code, ErrorCode::TooLarge);
    }
    assert_eq!(world.health().await.figures["dropped_lookups_total"], 1_000);
}

/// Look-ups that have arrived before the stop signal are answered, also those that wait for their turn.
#[tokio::test(start_paused = true)]
async fn locate_queued_at_stop_is_answered() {
    let mut world = World::started().await;
    world.join(&log("one", 1)).await.unwrap();
    let (coordinator, tasks) = world.running.take().unwrap();
    let names: Vec<_> = (0..3_000).map(|n| format!("app.{n}")).collect();
    let asked = futures::future::join_all(names.iter().map(|name| world.locate_in_flood(name)));
    let stopped = async {
        tasks.stop().request();
        tasks.finish(SECOND).await.unwrap();
    };
    let (outcomes, ()) = tokio::join!(asked, stopped);
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Located));
    drop(coordinator);
}

/// Requests for health itself are dropped when too many wait. Health counts them and reports them for a while.
#[tokio::test(start_paused = true)]
async fn dropped_health_requests_are_counted_and_reported() {
    let world = World::started().await;
    let one = log("one", 1);
    world.join(&one).await.unwrap();
    assert_eq!(world.health().await.status, HealthStatus::Ok);
    let mut asked = Vec::new();
    for _ in 0..300 {
        let message = Outgoing::new(world.prefix.health_of("coordinator"), Bytes::new());
        asked.push(Box::pin(world.asker.request(message, SECOND)));
        assert!(futures::poll!(asked.last_mut().unwrap()).is_pending());
    }
    // The first 256 fit.
    asked.swap_remove(0).await.unwrap();
    world.heartbeat(&one).await.unwrap();
    let health = world.health().await;
    assert_eq!((health.status, health.figures["messages_dropped_total"]), (HealthStatus::Degraded, 44));
    assert_eq!(health.problems, ["requests dropped within the last 5 minutes: a queue was full"]);
    for _ in 0..301 {
        tokio::time::sleep(SECOND).await;
        world.heartbeat(&one).await.unwrap();
    }
    assert_eq!(world.health().await.status, HealthStatus::Ok);
}
