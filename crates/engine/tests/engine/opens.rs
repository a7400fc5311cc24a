//! Opens at the same time: those that wait for the bucket do not stop the others.

use std::time::Duration;

use dormouse_bucket::BucketOperation;
use dormouse_engine::api::{SubjectRequest, Submission, TenantId};
use dormouse_protocol::Subject;
use dormouse_protocol::data::{GetRequest, SetItem, SetRequest};

use crate::support::{PendingReply, Server, World, subject};

/// More than the permits of each kind that one tenant may hold.
const MANY: usize = 140;

/// A value that makes a snapshot a large download, in bytes.
const LARGE_VALUES: usize = 20;
const VALUE_BYTES: usize = 250 * 1_024;

/// Writes a subject whose snapshot is larger than a small download.
fn write_large(server: &Server, app: &Subject) {
    let item = |number: usize| SetItem {
        key: Some(format!("k{number}")),
        value: Some(vec![b'x'; VALUE_BYTES].into()),
        ..SetItem::default()
    };
    let sets = (0..LARGE_VALUES).map(item).collect();
    server.run(app, SubjectRequest::Set(SetRequest { sets, ..SetRequest::default() })).unwrap();
}

/// Gets the key `k0`.
fn get(server: &Server, tenant: TenantId, app: &Subject) -> PendingReply {
    server.submit_as(tenant, app, Submission::NO_DEADLINE, SubjectRequest::Get(GetRequest::key("k0")))
}

/// Downloads that stand still block neither an open whose file is local, nor one from small objects.
#[test]
fn slow_downloads_leave_other_opens_alone() {
    let world = World::in_memory();
    let first = world.server("persist-1");
    let large: Vec<_> = (0..40).map(|number| subject(&format!("large.s{number}"))).collect();
    large.iter().for_each(|app| write_large(&first, app));
    let small = subject("small.one");
    first.set(&small, "k0", "small").unwrap();
    first.shutdown();
    let second = world.server_with("persist-2", |settings| settings.idle_close = Duration::from_secs(5));
    let local = subject("local.one");
    second.set(&local, "k0", "local").unwrap();
    second.advance(Duration::from_secs(10));
    assert_eq!(second.engine.metrics().open_subjects, 0);

    let gate = world.bucket.hold_requests(BucketOperation::GetFile, "large.");
    let hanging: Vec<_> = large.iter().map(|app| get(&second, TenantId::SHARED, app)).collect();
    second.advance(Duration::from_secs(1));
    assert_eq!(second.get(&local, "k0").unwrap().as_deref(), Some("local"));
    assert_eq!(second.get(&small, "k0").unwrap().as_deref(), Some("small"));
    drop(gate);
    let opened = hanging.iter().filter(|reply| reply.wait(&second).is_ok()).count();
    assert!(opened >= 8, "{opened} opened: those that had a permit");
}

/// The downloads of one tenant, and its calls to a bucket that does not answer for its subjects, leave permits to another.
#[test]
fn slow_opens_of_one_tenant_leave_those_of_another_alone() {
    const GREEDY: TenantId = TenantId::new(1);
    const POLITE: TenantId = TenantId::new(2);
    let world = World::in_memory();
    let first = world.server("persist-1");
    let large: Vec<_> = (0..40).map(|number| subject(&format!("greedy.s{number}"))).collect();
    large.iter().for_each(|app| write_large(&first, app));
    let polite = [subject("polite.a"), subject("polite.b")];
    polite.iter().for_each(|app| write_large(&first, app));
    first.shutdown();
    let second = world.server("persist-2");

    let files = world.bucket.hold_requests(BucketOperation::GetFile, "greedy.");
    let downloads: Vec<_> = large.iter().map(|app| get(&second, GREEDY, app)).collect();
    second.advance(Duration::from_secs(1));
    get(&second, POLITE, &polite[0]).wait(&second).unwrap();
    let lists = world.bucket.hold_requests(BucketOperation::List, "greedy.");
    let calls: Vec<_> =
        (0..MANY).map(|number| get(&second, GREEDY, &subject(&format!("greedy.n{number}")))).collect();
    second.advance(Duration::from_secs(1));
    get(&second, POLITE, &polite[1]).wait(&second).unwrap();
    drop((files, lists));
    let answered = downloads.iter().chain(&calls).filter(|reply| reply.wait(&second).is_ok()).count();
    assert!(answered >= 8, "{answered} answered");
}
