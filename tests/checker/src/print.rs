//! Prints calls and events, one per line, for readers.

use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::data::{DeleteRequest, Expect, GetRequest, SetItem, SetOutcome, SetRequest};
use dormouse_protocol::{Change, Message, RequestId, Seq};

use crate::history::{Burst, Call, CallOutcome, Feed, FeedBegins, Op, OpResult, ReceivedEvent};

/// The largest number of list items that are printed.
const MOST: usize = 12;

pub(crate) fn call(call: &Call) -> String {
    let mut line = format!("{} ", time(call.invoked_at));
    match &call.returned {
        Some(returned) => write!(line, "to {}", time(returned.at)),
        None => write!(line, "and open"),
    }
    .ok();
    write!(line, ", client {}", call.client).ok();
    if let Some(server) = &call.server {
        write!(line, " at {server}").ok();
    }
    let outcome = match call.returned.as_ref().map(|returned| &returned.outcome) {
        Some(CallOutcome::Answered(answer)) => answered(answer),
        Some(CallOutcome::Refused(error)) => format!("refused: {error}"),
        Some(CallOutcome::Unknown) | None => "unknown".to_owned(),
    };
    format!("{line}: {} -> {outcome}", asked(&call.op))
}

pub(crate) fn event(received: &ReceivedEvent) -> String {
    let event = &received.event;
    let what =
        if event.changes.is_empty() { "beacon".to_owned() } else { list(event.changes.iter().map(change)) };
    format!("{}, event: {} at {}, term base {}", time(received.at), what, event.position(), event.term_base)
}

pub(crate) fn feed(feed: &Feed) -> String {
    let begins = match feed.begins {
        FeedBegins::Beginning => "from the beginning".to_owned(),
        FeedBegins::Now => "from then on".to_owned(),
        FeedBegins::After(position) => format!("after {position}"),
    };
    let (client, at, count) = (feed.client, time(feed.at), feed.outputs.len());
    format!("{at}, client {client}: feed of {:?} {begins} with {count} outputs", feed.keys)
}

pub(crate) fn burst(burst: &Burst) -> String {
    let written = burst.written.iter().map(|written| match written {
        Some(position) => position.to_string(),
        None => "an unknown position".to_owned(),
    });
    let (client, at) = (burst.client, time(burst.at));
    format!("{at}, client {client}: burst of sets, written at {}", list(written))
}

fn time(at: Duration) -> String {
    format!("{:.6} s", at.as_secs_f64())
}

fn list(items: impl ExactSizeIterator<Item = String>) -> String {
    let rest = items.len().saturating_sub(MOST);
    let mut text = items.take(MOST).collect::<Vec<_>>().join(", ");
    if rest > 0 {
        write!(text, " and {rest} more").ok();
    }
    text
}

fn id(request: Option<RequestId>) -> String {
    match request {
        Some(RequestId { session, counter }) => {
            let session = session.to_string();
            format!(" (request {}:{counter})", &session[session.len() - 4..])
        }
        None => String::new(),
    }
}

fn asked(op: &Op) -> String {
    match op {
        Op::Set(request) => set(request),
        Op::Delete(request) => delete(request),
        Op::DeleteAll(request) => {
            let range = match (request.end_seq, request.keep_last) {
                (Some(end), _) => format!("up to {end}"),
                (None, Some(keep)) => format!("except the last {keep}"),
                (None, None) => "everything".to_owned(),
            };
            format!("delete {range}{}", id(request.request))
        }
        Op::Configure(request) => {
            format!("configure {:?}{}", request.config.level, id(request.request))
        }
        Op::Destroy(request) => format!("destroy{}", id(request.request)),
        Op::Get(request) => get(request),
        Op::GetAll(request) => format!(
            "get all from {:?} to {:?}{}{}",
            request.start_seq.map(Seq::get),
            request.end_seq.map(Seq::get),
            request.key_prefix.as_ref().map(|prefix| format!(" under {prefix:?}")).unwrap_or_default(),
            if request.reverse { " in reverse" } else { "" },
        ),
        Op::Keys(request) => format!("keys after {:?}", request.cursor),
        Op::Changes(request) => format!("changes after {}", request.after),
        Op::Info => "info".to_owned(),
        Op::Flush => "flush".to_owned(),
    }
}

fn set(request: &SetRequest) -> String {
    let what = if request.atomic { "set all or none" } else { "set" };
    let level = request.level.map(|level| format!(" at {level}")).unwrap_or_default();
    format!("{what} {}{level}{}", list(request.sets.iter().map(item)), id(request.request))
}

fn item(item: &SetItem) -> String {
    let mut text = named(item.key.as_deref(), item.value.as_ref());
    if let Some(seq) = item.seq {
        write!(text, " at {seq}").ok();
    }
    if let Some(expect) = item.expect {
        write!(text, " if {}", expected(expect)).ok();
    }
    if let Some(msg_id) = &item.msg_id {
        write!(text, " with id {msg_id:?}").ok();
    }
    text
}

fn expected(expect: Expect) -> String {
    let (what, wanted) = match expect {
        Expect::Last(wanted) => ("the last message is", wanted),
        Expect::Key(wanted) => ("the key holds", wanted),
    };
    wanted.map_or_else(|| format!("{what} none"), |wanted| format!("{what} {wanted}"))
}

fn named(key: Option<&str>, value: Option<&Bytes>) -> String {
    let value = value.map_or_else(
        || "null".to_owned(),
        |value| format!("{:?}", String::from_utf8_lossy(&value[..value.len().min(32)])),
    );
    key.map_or_else(|| value.clone(), |key| format!("{key:?}={value}"))
}

fn delete(request: &DeleteRequest) -> String {
    let mut names: Vec<String> = request.keys.iter().map(|key| format!("{key:?}")).collect();
    names.extend(request.seqs.iter().map(ToString::to_string));
    let expect = request.expect.map(|expect| format!(" if {}", expected(expect))).unwrap_or_default();
    format!("delete {}{expect}{}", list(names.into_iter()), id(request.request))
}

fn get(request: &GetRequest) -> String {
    let names = request.keys.iter().flatten().chain(&request.key).map(|key| format!("{key:?}"));
    let seqs = request.seq.iter().chain(request.seqs.iter().flatten()).map(ToString::to_string);
    let names: Vec<String> = names.chain(seqs).collect();
    format!("get {}", list(names.into_iter()))
}

fn answered(answer: &OpResult) -> String {
    match answer {
        OpResult::Set(reply) => list(reply.results.iter().map(|outcome| match outcome {
            SetOutcome::Ok(ok) => {
                let again = if ok.duplicate { ", duplicate" } else { "" };
                format!("{}, {} of {}{again}", ok.seq, ok.rev, ok.term)
            }
            SetOutcome::Error(error) => format!("refused: {error}"),
        })),
        OpResult::Delete(reply) => format!(
            "removed [{}], {}{}",
            list(reply.seqs.iter().map(ToString::to_string)),
            reply.position,
            if reply.duplicate { ", duplicate" } else { "" }
        ),
        OpResult::DeleteAll(reply) => format!("removed {}, {}", reply.count, reply.position),
        OpResult::Configure(reply) => format!("done, {}", reply.position),
        OpResult::Destroy(reply) => format!("done, {}", reply.position),
        OpResult::Get(reply) => shown(&reply.messages, reply.position),
        OpResult::GetAll(reply) => shown(&reply.messages, reply.position),
        OpResult::Keys(reply) => {
            format!("[{}] at {}", list(reply.keys.iter().map(|key| format!("{key:?}"))), reply.position)
        }
        OpResult::Changes(reply) if reply.resync => format!("resync at {}", reply.position),
        OpResult::Changes(reply) => format!(
            "[{}] to {}{}",
            list(reply.changes.iter().map(change)),
            reply.position,
            if reply.more { ", and more" } else { "" }
        ),
        OpResult::Info(reply) => format!(
            "{} messages, next {}, bucket rev {}, at {}, term base {}, by {}",
            reply.count, reply.next_seq, reply.bucket_rev, reply.position, reply.term_base, reply.server
        ),
        OpResult::Flush(reply) => format!("in the bucket: {}", reply.position),
    }
}

fn shown(messages: &[Message], position: dormouse_protocol::Position) -> String {
    format!("[{}] at {position}", list(messages.iter().map(message)))
}

fn message(message: &Message) -> String {
    format!(
        "{} ({}, {} of {})",
        named(message.key.as_deref(), message.value.as_ref()),
        message.seq,
        message.rev,
        message.term
    )
}

fn change(change: &Change) -> String {
    match change {
        Change::Set(set) => message(&set.message),
        Change::Delete(delete) => format!(
            "{} removes {}",
            delete.rev,
            list(delete.removed.iter().map(|removed| removed.seq.to_string()))
        ),
        Change::DeleteAll(delete) => format!("{} removes all up to {}", delete.rev, delete.end_seq),
        Change::Configure(configure) => format!("{} configures", configure.rev),
    }
}
