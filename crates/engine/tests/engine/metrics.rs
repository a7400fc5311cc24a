//! The instruments of the engine change with its work.

use std::time::Duration;

use bytes::Bytes;
use dormouse_engine::api::SubjectRequest;
use dormouse_metrics::MetricsRegistry;
use dormouse_protocol::data::{DeleteAllRequest, SetItem, SetRequest};
use tokio::task::yield_now;

use crate::support::{Server, World, subject};

const APP: &str = "app.orders";

/// Messages of a batch: they need several slices.
const MESSAGES: usize = 3_000;

/// A bound of the turns that a request takes.
const TURNS: usize = 1_000;

/// The value of a series.
fn series(world: &World, server: &Server, name: &str) -> f64 {
    let mut registry = MetricsRegistry::default();
    world.instruments.register(&mut registry, &server.env);
    let text = registry.text();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().parse().unwrap()
}

fn batch() -> SubjectRequest {
    let item = SetItem { value: Some(Bytes::from_static(b"0")), ..SetItem::default() };
    let sets = vec![item; MESSAGES];
    SubjectRequest::Set(SetRequest { sets, atomic: true, ..SetRequest::default() })
}

/// Each open is counted by its kind, and only by this one.
#[test]
fn metrics_count_opens_by_kind() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    let opens = |server: &Server| {
        ["fresh", "reused", "rebuilt", "takeover", "failed"]
            .map(|kind| series(&world, server, &format!("dormouse_open_seconds_count{{kind=\"{kind}\"}}")))
    };
    server.set(&subject(APP), "k", "1").unwrap();
    assert_eq!(opens(&server), [1.0, 0.0, 0.0, 0.0, 0.0]);
    server.until("the subject closes", || {
        server.advance(Duration::from_secs(60));
        server.engine.metrics().open_subjects == 0
    });
    server.get(&subject(APP), "k").unwrap();
    assert_eq!(opens(&server), [1.0, 1.0, 0.0, 0.0, 0.0]);
    server.kill();
    let server = world.server("persist-1");
    server.get(&subject(APP), "k").unwrap();
    assert_eq!(opens(&server), [1.0, 1.0, 0.0, 1.0, 0.0]);
}

/// A batch is in the backlog once it is acknowledged, and until the file has it.
#[test]
fn metrics_show_apply_backlog_until_it_is_applied() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    server.set(&subject(APP), "k", "1").unwrap();
    let reply = server.submit(&subject(APP), batch());
    let seen = (0..TURNS).any(|_| {
        server.runtime.block_on(yield_now());
        server.engine.metrics().apply_backlog_bytes > 0
    });
    assert!(seen);
    reply.wait(&server).unwrap();
    server.until("the batch is applied", || server.engine.metrics().apply_backlog_bytes == 0);
}

/// Each kind of step of a subject's file has a duration after its work.
#[test]
fn metrics_show_longest_step_of_each_kind() {
    let world = World::on_disk();
    let server = world.running_server("persist-1", |_| {});
    let app = subject(APP);
    server.run(&app, batch()).unwrap();
    server.run(&app, batch()).unwrap();
    server.run(&app, SubjectRequest::GetAll(Default::default())).unwrap();
    server.run(&app, SubjectRequest::Get(dormouse_protocol::data::GetRequest::key("k"))).unwrap();
    server.run(&app, SubjectRequest::DeleteAll(DeleteAllRequest::default())).unwrap();
    server.compact(&app).unwrap();
    for step in ["plan", "acknowledge", "get", "page", "apply", "delete", "checkpoint", "wal_write"] {
        let longest = series(&world, &server, &format!("dormouse_longest_step_seconds{{step=\"{step}\"}}"));
        assert!(longest > 0.0, "{step}");
    }
}
