//! Pages are read in slices: the subject serves other requests between them, and a page reflects one state.

use std::collections::VecDeque;
use std::sync::mpsc;
use std::time::Duration;

use dormouse_engine::api::{SubjectReply, SubjectRequest, Submission, TenantId};
use dormouse_protocol::data::{
    ChangesRequest, DeleteAllRequest, GetAllReply, GetAllRequest, GetRequest, SetItem, SetRequest,
};
use dormouse_protocol::{ErrorCode, ErrorReply, Level, OverloadCause, Position, Rev, Seq, Subject, Term};
use tokio::task::yield_now;

use crate::support::{PendingReply, Server, World, at_level, set_request, subject};

const APP: &str = "app.orders";

/// Messages of the subject: a page of them needs a dozen slices.
const MESSAGES: usize = 3_000;

/// A bound of the turns that a request takes.
const TURNS: usize = 1_000;

fn key(number: usize) -> String {
    format!("k{number:04}")
}

/// A batch of all messages, with the value `0`.
fn batch() -> SubjectRequest {
    let sets = (0..MESSAGES)
        .map(|number| SetItem { key: Some(key(number)), value: Some("0".into()), ..SetItem::default() })
        .collect();
    SubjectRequest::Set(SetRequest { sets, atomic: true, ..SetRequest::default() })
}

fn fill(server: &Server, subject: &Subject) {
    server.run(subject, batch()).unwrap();
}

fn get_all() -> SubjectRequest {
    SubjectRequest::GetAll(GetAllRequest::default())
}

fn page(reply: Result<SubjectReply, ErrorReply>) -> GetAllReply {
    match reply {
        Ok(SubjectReply::GetAll(reply)) => reply,
        other => panic!("{other:?}"),
    }
}

/// Submits a request of a tenant for a reply of up to so many bytes.
fn submit_large(
    server: &Server,
    tenant: TenantId,
    subject: &Subject,
    max_reply_bytes: usize,
) -> mpsc::Receiver<Result<SubjectReply, ErrorReply>> {
    let (sender, receiver) = mpsc::channel();
    let respond = Box::new(move |answer| sender.send(answer).unwrap());
    let deadline = Submission::NO_DEADLINE;
    let _guard = server.runtime.enter();
    server.engine.submit(
        subject,
        Submission {
            tenant,
            deadline,
            received: Duration::ZERO,
            request: get_all(),
            max_reply_bytes,
            respond,
        },
    );
    receiver
}

/// While a page is read, reads of single messages get their replies, from the same state.
#[test]
fn page_leaves_room_for_point_reads_between_slices() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    fill(&server, &subject(APP));
    let large = server.submit(&subject(APP), get_all());
    let (mut gets, mut position) = (Vec::new(), None);
    for _ in 0..TURNS {
        gets.push(server.submit(&subject(APP), SubjectRequest::Get(GetRequest::key(key(7)))));
        server.runtime.block_on(yield_now());
        if let Some(reply) = large.try_reply() {
            position = Some(page(reply).position);
            break;
        }
    }
    let replies = gets.iter().filter_map(PendingReply::try_reply);
    let early =
        replies.filter(|reply| matches!(reply, Ok(SubjectReply::Get(get)) if Some(get.position) == position));
    let early = early.count();
    assert_eq!(position, Some(server.info(&subject(APP)).position));
    assert!(early >= 5, "{early} reads were answered during the page");
}

/// A page that is read while messages are overwritten shows the state at the rev that it names, whole.
#[test]
fn page_reflects_one_state_beside_writes() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    let app = subject(APP);
    server.configure(&app, Level::Memory);
    fill(&server, &app);
    let first = server.info(&app).position.rev.get();
    // The write at rev `first + n` gives the message `n` of a walk over distant messages the value `n`.
    let target = |number: usize| (number * 997) % MESSAGES;
    let mut pages: VecDeque<PendingReply> = VecDeque::new();
    let (mut written, mut checked) = (0, 0);
    for turn in 0..TURNS {
        written += 1;
        let set = set_request(&key(target(written)), &written.to_string());
        drop(server.submit(&app, at_level(Level::Memory, set)));
        if turn % 7 == 0 {
            // It removes nothing, but its plan needs all changes in the file.
            let none = DeleteAllRequest { end_seq: Some(Seq::new(0)), ..DeleteAllRequest::default() };
            drop(server.submit(&app, SubjectRequest::DeleteAll(none)));
        }
        if turn % 10 == 0 {
            pages.push_back(server.submit(&app, get_all()));
        }
        server.runtime.block_on(yield_now());
        while let Some(reply) = pages.front().and_then(PendingReply::try_reply) {
            pages.pop_front();
            check(&page(reply), first, target);
            checked += 1;
        }
    }
    for pending in pages {
        check(&page(pending.wait(&server)), first, target);
        checked += 1;
    }
    assert_eq!(checked, TURNS / 10);
}

/// The page must be the state at its rev.
fn check(page: &GetAllReply, first: u64, target: impl Fn(usize) -> usize) {
    let writes = usize::try_from(page.position.rev.get() - first).unwrap();
    let mut expected = vec![0; MESSAGES];
    for number in 1..=writes {
        expected[target(number)] = number;
    }
    let mut found = vec![usize::MAX; MESSAGES];
    for message in &page.messages {
        let number: usize = message.key.as_ref().unwrap()[1..].parse().unwrap();
        found[number] = std::str::from_utf8(message.value.as_ref().unwrap()).unwrap().parse().unwrap();
    }
    assert_eq!(found, expected, "at {}", page.position);
}

/// Pages above the room for results are refused with a delay. Meanwhile reads of single messages, writes and the page that
/// has the room get their replies, and later pages have room again.
#[test]
fn overload_of_full_pool_blocks_no_thread() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    let (one, other) = (subject("app.one"), subject("app.other"));
    fill(&server, &one);
    fill(&server, &other);
    let all_of_the_room = 64 * 1_024 * 1_024;
    let large = submit_large(&server, TenantId::SHARED, &one, all_of_the_room);
    server.runtime.block_on(yield_now());
    let refused = submit_large(&server, TenantId::SHARED, &other, 1_024);
    let get = server.submit(&other, SubjectRequest::Get(GetRequest::key(key(1))));
    let refusal = (0..TURNS).find_map(|_| {
        server.runtime.block_on(yield_now());
        refused.try_recv().ok()
    });
    let error = refusal.unwrap().unwrap_err();
    let delay_ms = OverloadCause::FilePool.retry_after_ms();
    assert_eq!((error.code, error.retry_after_ms), (ErrorCode::Overloaded, Some(delay_ms)));
    assert!(large.try_recv().is_err(), "the other page is still being read");
    assert!(matches!(get.wait(&server), Ok(SubjectReply::Get(reply)) if reply.messages.len() == 1));
    server.set(&other, "k0001", "after").unwrap();
    let mut whole = None;
    server.until("the large page is complete", || {
        whole = large.try_recv().ok();
        whole.is_some()
    });
    assert_eq!(page(whole.unwrap()).messages.len(), MESSAGES);
    assert_eq!(server.all(&other).unwrap().len(), MESSAGES);
}

/// However many pages a tenant asks for at once, the page of another tenant is read.
#[test]
fn page_flood_leaves_page_of_other_tenant() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    let eighth = 8 * 1_024 * 1_024;
    let (greedy, polite) = (TenantId::new(1), TenantId::new(2));
    let subjects: Vec<Subject> = (0..9).map(|number| subject(&format!("app.s{number}"))).collect();
    subjects.iter().for_each(|subject| fill(&server, subject));
    let (last, others) = subjects.split_last().unwrap();
    let flood: Vec<_> = others.iter().map(|subject| submit_large(&server, greedy, subject, eighth)).collect();
    server.runtime.block_on(yield_now());
    let reply = submit_large(&server, polite, last, eighth);
    let mut replies = Vec::new();
    server.until("all pages have replies", || {
        replies.extend(flood.iter().filter_map(|pending| pending.try_recv().ok()));
        replies.len() == others.len()
    });
    let refused = replies.iter().filter(|reply| reply.is_err()).count();
    assert!(refused > 0, "the flood is above its share");
    let mut polite_reply = None;
    server.until("the polite page has a reply", || {
        polite_reply = reply.try_recv().ok();
        polite_reply.is_some()
    });
    assert_eq!(page(polite_reply.unwrap()).messages.len(), MESSAGES);
}

const GREEDY: TenantId = TenantId::new(1);
const POLITE: TenantId = TenantId::new(2);

/// Eight subjects of the greedy tenant, and among them one of the polite tenant.
fn flood() -> Vec<(TenantId, Subject)> {
    let mut callers: Vec<_> = (0..8).map(|number| (GREEDY, subject(&format!("app.s{number}")))).collect();
    callers.insert(4, (POLITE, subject("app.polite")));
    callers
}

/// Submits a request to each subject at once, and waits for their replies. Returns the position of the polite tenant's
/// reply among all.
fn polite_position(server: &Server, callers: &[(TenantId, Subject)], request: &SubjectRequest) -> usize {
    let (sender, receiver) = mpsc::channel();
    for (tenant, subject) in callers {
        let (tenant, sender) = (*tenant, sender.clone());
        let respond = Box::new(move |reply: Result<_, ErrorReply>| sender.send((tenant, reply)).unwrap());
        let submission = Submission {
            tenant,
            deadline: Submission::NO_DEADLINE,
            received: Duration::ZERO,
            request: request.clone(),
            max_reply_bytes: 1 << 20,
            respond,
        };
        let _guard = server.runtime.enter();
        server.engine.submit(subject, submission);
    }
    let mut order = Vec::new();
    server.until("each request has a reply", || {
        order.extend(receiver.try_iter());
        order.len() == callers.len()
    });
    assert!(order.iter().all(|(_, reply)| reply.is_ok()), "{order:?}");
    order.iter().position(|(tenant, _)| *tenant == POLITE).unwrap()
}

/// Applying to the subjects of one tenant delays applying for another tenant by one slice at a time.
#[test]
fn apply_flood_leaves_turns_to_other_tenant() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    let callers = flood();
    polite_position(&server, &callers, &set_request("first", "0"));
    let submit = |(tenant, subject): &(TenantId, Subject)| {
        server.submit_as(*tenant, subject, Submission::NO_DEADLINE, batch())
    };
    let batches: Vec<_> = callers.iter().map(submit).collect();
    let mut acknowledged = 0;
    for _ in 0..TURNS {
        let replies = batches.iter().filter_map(PendingReply::try_reply);
        acknowledged += replies.filter(Result::is_ok).count();
        if acknowledged == callers.len() {
            break;
        }
        server.runtime.block_on(yield_now());
    }
    assert_eq!(acknowledged, callers.len());
    // Each read waits until the batch of its subject is applied.
    assert_eq!(polite_position(&server, &callers, &SubjectRequest::Get(GetRequest::key(key(1)))), 0);
}

/// Opening the subjects of one tenant, with checks of whole files, delays the open of another tenant by one check.
#[test]
fn restore_flood_leaves_turns_to_other_tenant() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    let callers = flood();
    callers.iter().for_each(|(_, subject)| fill(&server, subject));
    server.kill();
    let server = world.server("persist-1");
    let position = polite_position(&server, &callers, &SubjectRequest::Get(GetRequest::key(key(1))));
    assert!(position <= 1, "after {position} opens");
}

/// A subject that is released while a page is read completes or refuses the page.
#[test]
fn page_under_way_gets_reply_at_shutdown() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    fill(&server, &subject(APP));
    let after = Position { term: Term::new(1), rev: Rev::new(0) };
    let changes = SubjectRequest::Changes(ChangesRequest { after, ..ChangesRequest::default() });
    let pages: Vec<_> =
        [get_all(), changes, get_all()].map(|request| server.submit(&subject(APP), request)).into();
    server.runtime.block_on(yield_now());
    server.shutdown();
    for pending in pages {
        let reply = pending.try_reply().expect("each request has a reply after the shutdown");
        assert!(reply.is_ok() || reply.is_err_and(|error| error.code != ErrorCode::Internal));
    }
}

/// A `delete_all` with a bound of a large subject removes what the bound says, also behind other changes.
#[test]
fn delete_all_of_large_subject_is_counted_ahead() {
    let world = World::in_memory();
    let server = world.server("persist-1");
    let app = subject(APP);
    for _ in 0..2 {
        let sets = (0..MESSAGES).map(|_| SetItem { value: Some("0".into()), ..SetItem::default() }).collect();
        server.run(&app, SubjectRequest::Set(SetRequest { sets, ..SetRequest::default() })).unwrap();
    }
    let bounded = |end_seq: Option<u64>, keep_last| {
        let end_seq = end_seq.map(Seq::new);
        SubjectRequest::DeleteAll(DeleteAllRequest { end_seq, keep_last, ..DeleteAllRequest::default() })
    };
    let requests = [
        bounded(Some(500), None),
        set_request("key", "1"),
        bounded(Some(500), None),
        bounded(Some(600), None),
        bounded(None, Some(5_000)),
        bounded(None, Some(5_000)),
    ];
    let pending: Vec<_> = requests.into_iter().map(|request| server.submit(&app, request)).collect();
    let counts: Vec<u64> = pending
        .iter()
        .filter_map(|pending| match pending.wait(&server) {
            Ok(SubjectReply::DeleteAll(reply)) => Some(reply.count),
            Ok(SubjectReply::Set(_)) => None,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(counts, [500, 0, 100, 401, 0]);
    let info = server.info(&app);
    assert_eq!((info.count, info.first_seq), (5_000, Some(Seq::new(1_002))));
}
