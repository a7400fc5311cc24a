//! Two coordinators in one fleet.

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
            tenant_rule: TenantRule::default(),
        };
        let bus = Arc::new(self.broker.connect(MemoryOptions::named("second")));
        let store = Arc::new(MemoryStore::open(&MemoryDisk::new()));
        let second = Coordinator::start(options, store, bus, self.env.clone(), &tasks).await.unwrap();
        (second, tasks)
    }

    fn first(&self) -> &Coordinator {
        &self.running.as_ref().unwrap().0
    }

    /// Sends a presence check and returns the incarnation in the reply.
    async fn ask_presence(&self, asker: Incarnation) -> Result<Incarnation, RequestError> {
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
    tokio::time::timeout(SECOND * 60, reached).await.expect("the condition is reached");
}

/// A second coordinator stands by, reports `not_serving`, and becomes active after the first one stops.
#[tokio::test(start_paused = true)]
async fn coordinator_stands_by_while_another_is_active() {
    let mut world = World::started().await;
    let one = log("one", 1);
    world.join(&one).await.unwrap();
    let (second, tasks) = world.second().await;
    assert!(!second.is_active() && world.first().is_active());
    let health = second.status.health();
    assert_eq!(health.status, HealthStatus::NotServing);
    let first = world.first().incarnation();
    assert!(health.problems[0].contains(&first.to_string()), "{health:?}");
    // While the first coordinator runs, only it replies.
    for _ in 0..10 {
        tokio::time::sleep(SECOND).await;
        assert_eq!(world.heartbeat(&one).await.unwrap().incarnation, first);
    }
    assert!(!second.is_active());
    let (mut coordinator, of_first) = world.running.take().unwrap();
    of_first.finish(SECOND).await.unwrap();
    coordinator.ended().await.unwrap();
    until(|| second.is_active()).await;
    assert_ne!(second.status.health().status, HealthStatus::NotServing);
    assert_eq!(world.heartbeat(&one).await, Err(ErrorCode::UnknownServer));
    assert_eq!(world.join(&one).await.unwrap().incarnation, second.incarnation());
    tasks.finish(SECOND).await.unwrap();
}

/// If two active coordinators detect each other, the newer one stands down and later starts with a new incarnation.
#[tokio::test(start_paused = true)]
async fn two_coordinators_newer_stands_down() {
    let mut world = World::started().await;
    let one = log("one", 1);
    tokio::time::sleep(SECOND).await;
    // While they cannot reach each other, both become active.
    world.broker.disconnect("coordinator");
    let (second, tasks) = world.second().await;
    assert!(second.is_active());
    let run = second.incarnation();
    assert_eq!(world.join(&one).await.unwrap().incarnation, run);
    world.broker.reconnect("coordinator");
    until(|| !second.is_active()).await;
    assert!(world.first().is_active());
    assert_eq!(second.status.health().status, HealthStatus::NotServing);
    assert_eq!(world.heartbeat(&one).await, Err(ErrorCode::UnknownServer), "the first does not know it");
    let (_, of_first) = world.running.take().unwrap();
    of_first.finish(SECOND).await.unwrap();
    until(|| second.is_active()).await;
    assert_ne!(second.incarnation(), run);
    tasks.finish(SECOND).await.unwrap();
}

/// If a listener never answers the presence check, the coordinator becomes active after one to ten seconds.
#[tokio::test(start_paused = true)]
async fn presence_check_without_reply_times_out() {
    let mut world = World::started().await;
    let (_, tasks) = world.running.take().unwrap();
    tasks.finish(SECOND).await.unwrap();
    let route = world.prefix.presence().into();
    let _listener = world.asker.subscribe(route, SubscribeOptions::default()).await.unwrap();
    let before = world.env.boot();
    let (second, tasks) = world.second().await;
    assert!(second.is_active());
    let waited = world.env.boot() - before;
    assert!((SECOND..SECOND * 10).contains(&waited), "{waited:?}");
    tasks.finish(SECOND).await.unwrap();
}

/// A coordinator on standby stops cleanly.
#[tokio::test(start_paused = true)]
async fn coordinator_on_standby_can_be_stopped() {
    let world = World::started().await;
    let (mut second, tasks) = world.second().await;
    tasks.finish(SECOND).await.unwrap();
    second.ended().await.unwrap();
}

/// The coordinator answers presence checks of other incarnations and ignores its own.
#[tokio::test(start_paused = true)]
async fn coordinator_answers_presence_checks_of_others_only() {
    let world = World::started().await;
    let run = world.first().incarnation();
    assert_eq!(world.ask_presence(Incarnation::new(Ulid::from_parts(9, 9))).await, Ok(run));
    let error = world.ask_presence(run).await.unwrap_err();
    assert!(matches!(error, RequestError::Deadline { .. }), "{error}");
}
