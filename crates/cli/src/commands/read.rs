//! `get`, `ls` and `keys`.

use dormouse_client::{Message, SeqRange};
use serde_json::json;

use super::list::tables;
use crate::args::{Get, Keys, Ls};
use crate::error::{ErrorKind, Failure};
use crate::session::Session;
use crate::view::{MESSAGE_TITLES, MessageView, cell, message_row};

/// `get`.
pub(super) async fn get(session: &Session, arguments: Get) -> Result<(), Failure> {
    let (found, what) = match (arguments.key, arguments.seq) {
        (Some(key), _) => {
            let what = format!("key {:?}", cell(&key));
            (session.kv(&arguments.subject)?.entry(key).await?.map(Message::from), what)
        }
        (None, Some(seq)) => (session.stream(&arguments.subject)?.get(seq).await?, seq.to_string()),
        (None, None) => return Err(Failure::usage("either --key or --seq is needed")),
    };
    let Some(message) = found else {
        let text = format!("{} holds no message at {what}", arguments.subject);
        return Err(Failure::of(ErrorKind::NotFound, text));
    };
    if session.output.is_json() {
        return session.output.json(&MessageView::new(&message));
    }
    match &message.value {
        Some(value) => session.output.value(value),
        None => {
            session.output.note("the value is null");
            Ok(())
        }
    }
}

/// `ls`.
pub(super) async fn ls(session: &Session, arguments: Ls) -> Result<(), Failure> {
    let mut range = SeqRange::all();
    if let Some(start) = arguments.start {
        range = range.from_seq(start);
    }
    if let Some(end) = arguments.end {
        range = range.to_seq(end);
    }
    if arguments.reverse {
        range = range.reverse();
    }
    if let Some(limit) = arguments.limit {
        range = range.limit(limit);
    }
    let mut pages = match arguments.key_prefix {
        Some(key_prefix) => session.kv(&arguments.subject)?.entries_in(key_prefix, range),
        None => session.stream(&arguments.subject)?.get_all(range),
    };
    if session.output.is_json() {
        while let Some(message) = pages.next().await {
            session.output.json(&MessageView::new(&message?))?;
        }
        return Ok(());
    }
    tables(session, &MESSAGE_TITLES, "no messages", &mut pages, message_row).await
}

/// `keys`.
pub(super) async fn keys(session: &Session, arguments: Keys) -> Result<(), Failure> {
    let mut pages = session.kv(&arguments.subject)?.keys(arguments.key_prefix);
    while let Some(key) = pages.next().await {
        let key = key?;
        if session.output.is_json() {
            session.output.json(&json!({ "key": key }))?;
        } else {
            session.output.text_line(&key)?;
        }
    }
    Ok(())
}
