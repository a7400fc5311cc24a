//! Two coordinators by mistake.

use dormouse_protocol::admin::{PresenceReply, PresenceRequest};

use super::*;

impl World {
    /// A second coordinator on the same bus, with a disk of its own.
    async fn second(&self) -> (Coordinator, Tasks) {
        let tasks = Tasks::new();
        let options = CoordinatorOptions {
            prefix: self.prefix.clone(),
            lease_ttl: TTL,
            inbox_prefixes: InboxPrefixes::default(),
            callers: Callers::default(),
        };
        let bus = Arc::new(self.broker.connect(MemoryOptions::named("second")));
        let store = Arc::new(MemoryStore::open(&MemoryDisk::new()));
        let second = Coordinator::start(options, store, bus, self.env.clone(), &tasks).await.unwrap();
        (second, tasks)
    }

    fn first(&self) -> &Coordinator {
        &self.running.as_ref().unwrap().0
    }

    async fn who_coordinates(&self, asker: Incarnation) -> Result<Incarnation, RequestError> {
        let request = PresenceRequest { v: ProtocolVersion::CURRENT, incarnation: asker };
        match ask::<_, PresenceReply>(&*self.asker, self.prefix.presence(), &request, SECOND).await {
            Ok(reply) => Ok(reply.incarnation),
            Err(AskError::Request(error)) => Err(error),
            Err(error) => panic!("{error}"),
        }
    }
}

async fn until(condition: impl Fn() -> bool) {
    let reached = async {
        while !condition() {
            tokio::time::sleep(SECOND / 10).await;
        }
    };
    tokio::time::timeout(SECOND * 60, reached).await.expect("it comes to that");
}

#[tokio::test(start_paused = true)]
async fn a_second_coordinator_stands_by_says_so_and_begins_once_it_is_alone() {
    let mut world = World::started().await;
    let one = log("one", 1);
    world.join(&one).await.unwrap();
    let (second, tasks) = world.second().await;
    assert!(!second.coordinates() && world.first().coordinates());
    let health = second.watch.health();
    assert_eq!(health.status, HealthStatus::NotServing);
    let first = world.first().incarnation();
    assert!(health.problems[0].contains(&first.to_string()), "{health:?}");
    // For as long as the first one is there, it alone answers.
    for _ in 0..10 {
        tokio::time::sleep(SECOND).await;
        assert_eq!(world.heartbeat(&one).await.unwrap().incarnation, first);
    }
    assert!(!second.coordinates());
    let (mut coordinator, of_first) = world.running.take().unwrap();
    of_first.finish(SECOND).await.unwrap();
    coordinator.ended().await.unwrap();
    until(|| second.coordinates()).await;
    assert_ne!(second.watch.health().status, HealthStatus::NotServing);
    assert_eq!(world.heartbeat(&one).await, Err(ErrorCode::UnknownServer));
    assert_eq!(world.join(&one).await.unwrap().incarnation, second.incarnation());
    tasks.finish(SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn of_two_that_hear_each_other_the_later_stands_down_at_once_and_is_another_when_it_begins_again() {
    let mut world = World::started().await;
    let one = log("one", 1);
    tokio::time::sleep(SECOND).await;
    // Cut off from each other both begin.
    world.broker.disconnect("coordinator");
    let (second, tasks) = world.second().await;
    assert!(second.coordinates());
    let run = second.incarnation();
    assert_eq!(world.join(&one).await.unwrap().incarnation, run);
    world.broker.reconnect("coordinator");
    until(|| !second.coordinates()).await;
    assert!(world.first().coordinates());
    assert_eq!(second.watch.health().status, HealthStatus::NotServing);
    assert_eq!(world.heartbeat(&one).await, Err(ErrorCode::UnknownServer), "the first has never heard of it");
    let (_, of_first) = world.running.take().unwrap();
    of_first.finish(SECOND).await.unwrap();
    until(|| second.coordinates()).await;
    assert_ne!(second.incarnation(), run);
    tasks.finish(SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_listens_and_never_answers_is_waited_for_a_while_only() {
    let mut world = World::started().await;
    let (_, tasks) = world.running.take().unwrap();
    tasks.finish(SECOND).await.unwrap();
    let route = world.prefix.presence().into();
    let _mute = world.asker.subscribe(route, SubscribeOptions::default()).await.unwrap();
    let before = world.env.boot();
    let (second, tasks) = world.second().await;
    assert!(second.coordinates());
    let waited = world.env.boot() - before;
    assert!((SECOND..SECOND * 10).contains(&waited), "{waited:?}");
    tasks.finish(SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_stands_by_can_be_stopped() {
    let world = World::started().await;
    let (mut second, tasks) = world.second().await;
    tasks.finish(SECOND).await.unwrap();
    second.ended().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn it_answers_others_and_never_itself() {
    let world = World::started().await;
    let run = world.first().incarnation();
    assert_eq!(world.who_coordinates(Incarnation::new(Ulid::from_parts(9, 9))).await, Ok(run));
    let error = world.who_coordinates(run).await.unwrap_err();
    assert!(matches!(error, RequestError::Deadline { .. }), "{error}");
}
