//! Requests whose reply would be too large for the bus.

use std::time::Duration;

use dormouse_engine::api::{SubjectReply, SubjectRequest, Submission, TenantId};
use dormouse_protocol::data::{SetItem, SetRequest};
use dormouse_protocol::limits::ENVELOPE_BYTES;
use dormouse_protocol::{ErrorCode, ErrorReply};

use crate::support::{Server, World, subject};

fn submit(server: &Server, items: usize, max_reply_bytes: usize) -> Result<SubjectReply, ErrorReply> {
    let (sender, answer) = std::sync::mpsc::channel();
    let respond = Box::new(move |reply| sender.send(reply).unwrap());
    let request =
        SubjectRequest::Set(SetRequest { sets: vec![SetItem::default(); items], ..SetRequest::default() });
    let _runtime = server.runtime.enter();
    server.engine.submit(
        &subject("app.orders"),
        Submission {
            tenant: TenantId::SHARED,
            deadline: Submission::NO_DEADLINE,
            received: Duration::ZERO,
            request,
            max_reply_bytes,
            respond,
        },
    );
    answer.recv().unwrap()
}

/// A set whose reply could exceed `max_reply_bytes` is rejected as `too_large` and changes nothing.
#[test]
fn write_with_oversized_reply_is_rejected() {
    let world = World::in_memory();
    let server = world.running_server("persist-1", |_| {});
    let room = ENVELOPE_BYTES + 1_000;
    let refused = submit(&server, 100, room).unwrap_err();
    assert_eq!((refused.code, refused.limit.as_deref()), (ErrorCode::TooLarge, Some("max_reply_bytes")));
    let before = server.info(&subject("app.orders"));
    assert_eq!((before.count, before.position.rev.get()), (0, 0));

    let Ok(SubjectReply::Set(reply)) = submit(&server, 10, room) else { panic!() };
    assert!(dormouse_protocol::encode(&reply).unwrap().len() <= room);
    assert_eq!(server.info(&subject("app.orders")).count, 10);
}
