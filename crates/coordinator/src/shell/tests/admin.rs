//! Requests of operators, over the bus.

use dormouse_protocol::admin::{
    DrainReply, DrainRequest, HandOverOrder, MoveReply, MoveRequest, MovesReply, MovesRequest,
    RebalanceReply, RebalanceRequest, SubjectsReply, SubjectsRequest,
};

use super::*;

impl World {
    async fn release(&self, name: &str, log: &LogId) {
        let request = ReleaseRequest { v: ProtocolVersion::CURRENT, log: log.clone() };
        self.ask::<Acknowledged>(self.prefix.release(&subject(name)), &request).await.unwrap();
    }

    async fn subjects(&self, pattern: &str) -> Result<SubjectsReply, ErrorCode> {
        let request = SubjectsRequest { pattern: pattern.to_owned(), ..SubjectsRequest::default() };
        self.ask(self.prefix.admin_subjects(), &request).await
    }

    async fn orders_to(&self, log: &LogId) -> Subscription {
        let route = self.prefix.order(log.server());
        self.asker.subscribe(route.into(), SubscribeOptions::default()).await.unwrap()
    }
}

async fn order(orders: &mut Subscription) -> HandOverOrder {
    let delivery = tokio::time::timeout(SECOND * 5, orders.next()).await.expect("an order").unwrap();
    decode(&delivery.payload).unwrap()
}

/// An operator drains and undrains a server over the bus; an unknown server gets `bad_request`.
#[tokio::test(start_paused = true)]
async fn operator_drains_and_undrains_server() {
    let world = World::started().await;
    let (one, two) = (log("one", 1), log("two", 2));
    world.join(&one).await.unwrap();
    world.join(&two).await.unwrap();
    let drain = async |route: Route| -> Result<DrainReply, ErrorCode> {
        world.ask(route, &DrainRequest::default()).await
    };
    let reply = drain(world.prefix.admin_drain(one.server())).await.unwrap();
    assert_eq!((reply.server.log, reply.server.state), (one.clone(), ServerState::Draining));
    assert!(world.heartbeat(&one).await.unwrap().draining);
    assert_eq!(world.locate("new").await, Ok("two".into()));
    let reply = drain(world.prefix.admin_undrain(one.server())).await.unwrap();
    assert_eq!(reply.server.state, ServerState::Alive);
    assert!(!world.heartbeat(&one).await.unwrap().draining);
    let unknown = ServerName::new("unknown").unwrap();
    assert_eq!(drain(world.prefix.admin_drain(&unknown)).await, Err(ErrorCode::BadRequest));
}

/// The coordinator repeats the handover order of a move until the owner releases the subject.
#[tokio::test(start_paused = true)]
async fn move_order_repeats_until_release() {
    let world = World::started().await;
    let (one, two) = (log("one", 1), log("two", 2));
    world.join(&one).await.unwrap();
    world.claim("a", &one).await.unwrap();
    world.join(&two).await.unwrap();
    let mut orders = world.orders_to(&one).await;
    let request = MoveRequest { v: ProtocolVersion::CURRENT, to: two.server().clone() };
    let reply: MoveReply = world.ask(world.prefix.admin_move(&subject("a")), &request).await.unwrap();
    assert_eq!((reply.from, reply.done), (Some(one.server().clone()), false));
    for _ in 0..2 {
        let HandOverOrder { log, subject: named, .. } = order(&mut orders).await;
        assert_eq!((log, named), (one.clone(), subject("a")));
        world.heartbeat(&one).await.unwrap();
        world.heartbeat(&two).await.unwrap();
    }
    assert_eq!(world.locate("a").await, Ok("one".into()));
    world.release("a", &one).await;
    assert_eq!(world.locate("a").await, Ok("two".into()));
    let moves: MovesReply = world.ask(world.prefix.admin_moves(), &MovesRequest::default()).await.unwrap();
    assert_eq!(moves, MovesReply { pending: 0, done: 1, given_up: 0 });
}

/// A dry run shows the same plan that the rebalance then executes.
#[tokio::test(start_paused = true)]
async fn rebalance_dry_run_shows_plan_that_is_then_executed() {
    let world = World::started().await;
    let (one, two) = (log("one", 1), log("two", 2));
    world.join(&one).await.unwrap();
    for n in 0..20 {
        world.claim(&format!("s.{n}"), &one).await.unwrap();
    }
    world.join(&two).await.unwrap();
    let rebalance = async |dry_run| -> RebalanceReply {
        let request = RebalanceRequest { dry_run, ..RebalanceRequest::default() };
        world.ask(world.prefix.admin_rebalance(), &request).await.unwrap()
    };
    let shown = rebalance(true).await;
    assert!((8..=10).contains(&shown.moves.len()), "{shown:?}");
    let mut orders = world.orders_to(&one).await;
    let plan = rebalance(false).await;
    assert_eq!(plan, shown);
    let mut moved = std::collections::BTreeSet::new();
    while moved.len() < plan.moves.len() {
        let order = order(&mut orders).await;
        world.heartbeat(&one).await.unwrap();
        world.heartbeat(&two).await.unwrap();
        world.release(order.subject.as_str(), &one).await;
        moved.insert(order.subject);
    }
    assert!(plan.moves.iter().all(|step| moved.contains(&step.subject)));
    assert_eq!(world.servers().await.servers[1].assigned_subjects, plan.moves.len() as u64);
    assert_eq!(rebalance(true).await.moves, []);
}

/// The subject list filters by pattern, rejects invalid patterns, and omits the old subjects of a drained server.
#[tokio::test(start_paused = true)]
async fn subject_list_filters_by_pattern() {
    let world = World::started().await;
    let one = log("one", 1);
    world.join(&one).await.unwrap();
    for name in ["a.x", "a.y", "b.x"] {
        world.claim(name, &one).await.unwrap();
    }
    let listed = |reply: SubjectsReply| -> Vec<String> {
        assert_eq!(reply.cursor, None);
        reply.subjects.into_iter().map(|row| row.subject.to_string()).collect()
    };
    assert_eq!(listed(world.subjects("*.x").await.unwrap()), ["a.x", "b.x"]);
    assert_eq!(listed(world.subjects("a.>").await.unwrap()), ["a.x", "a.y"]);
    for bad in ["", "a..b", "a.>.b", "a b", "a.*x", ".a"] {
        assert_eq!(world.subjects(bad).await, Err(ErrorCode::BadRequest), "{bad:?}");
    }
    // The recorded assignments of a drained server are ignored.
    world.join(&log("two", 2)).await.unwrap();
    let _: DrainReply =
        world.ask(world.prefix.admin_drain(one.server()), &DrainRequest::default()).await.unwrap();
    let fresh = JoinRequest {
        v: ProtocolVersion::CURRENT,
        log: log("one", 3),
        predecessor: Some(one),
        capacity: 100,
        version: String::new(),
    };
    let _: LeaseReply = world.ask(world.prefix.join(), &fresh).await.unwrap();
    assert_eq!(listed(world.subjects(">").await.unwrap()), [""; 0]);
}

/// Subject lists block no other requests; at most 4 run at once, and further ones get `overloaded`.
#[tokio::test]
async fn subject_lists_block_no_requests_and_are_limited() {
    let disk = MemoryDisk::new();
    let store = WatchedStore::on(&disk);
    let world = World::started_in(Env::system(), disk, Arc::clone(&store) as Arc<dyn Store>).await;
    let one = log("one", 1);
    world.join(&one).await.unwrap();
    let pages = store.pages.lock().unwrap();
    let lists = futures::future::join_all((0..10).map(|_| world.subjects(">")));
    let others = async {
        for n in 0..10 {
            world.heartbeat(&one).await.unwrap();
            assert_eq!(world.locate(&format!("s.{n}")).await, Ok("one".into()));
        }
        drop(pages);
    };
    let (lists, ()) = tokio::join!(lists, others);
    let refused = lists.iter().filter(|list| **list == Err(ErrorCode::Overloaded)).count();
    assert_eq!((refused, lists.iter().filter(|list| list.is_ok()).count()), (6, 4));
}
