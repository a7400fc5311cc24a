//! `set` and `rm`.

use std::io::Read;
use std::os::unix::ffi::OsStringExt;

use bytes::Bytes;
use dormouse_client::NewMessage;
use dormouse_runtime::Env;
use serde_json::json;

use crate::args::{Rm, Set};
use crate::error::Failure;
use crate::session::Session;

/// `set`.
pub(super) async fn set(session: &Session, arguments: Set) -> Result<(), Failure> {
    let mut message = match value(&arguments).await? {
        Some(value) => NewMessage::new(value),
        None => NewMessage::null(),
    };
    for header in arguments.headers {
        message = message.header(header.name, header.value);
    }
    if let Some(seq) = arguments.seq {
        message = message.seq(seq);
    }
    if let Some(ttl) = arguments.ttl {
        message = message.ttl(ttl.into());
    }
    if arguments.expect_absent || arguments.expect.is_some() {
        message = match arguments.key {
            Some(_) => message.expect_key(arguments.expect),
            None => message.expect_last(arguments.expect),
        };
    }
    let written = match arguments.key {
        Some(key) => session.kv(&arguments.subject)?.put_with(key, message).await?,
        None => session.stream(&arguments.subject)?.publish_with(message).await?,
    };
    if session.output.is_json() {
        session.output.json(&json!({
            "subject": arguments.subject,
            "seq": written.seq,
            "term": written.term,
            "rev": written.rev,
            "timestamp_us": written.timestamp,
            "duplicate": written.duplicate,
        }))
    } else {
        session.output.line(format_args!(
            "seq {}  term {}  rev {}",
            written.seq.get(),
            written.term.get(),
            written.rev.get()
        ))
    }
}

/// The value that the arguments speak of; `None` for the null value.
async fn value(arguments: &Set) -> Result<Option<Bytes>, Failure> {
    if let Some(path) = &arguments.file {
        let path = path.clone();
        let read = move || match std::fs::read(&path) {
            Ok(value) => Ok(Some(value.into())),
            Err(error) => Err(Failure::new(format!("cannot read {}: {error}", path.display()))),
        };
        return Env::system().blocking(read).await;
    }
    match &arguments.value {
        Some(value) if value == "-" => {
            let read = || {
                let mut value = Vec::new();
                std::io::stdin().read_to_end(&mut value).map(|_| Some(value.into()))
            };
            let read = Env::system().blocking(read).await;
            read.map_err(|error| Failure::new(format!("cannot read standard input: {error}")))
        }
        Some(value) => Ok(Some(value.clone().into_vec().into())),
        None => Ok(None),
    }
}

/// `rm`.
pub(super) async fn rm(session: &Session, arguments: Rm) -> Result<(), Failure> {
    let stream = session.stream(&arguments.subject)?;
    let removed = if let Some(seq) = arguments.up_to {
        stream.delete_up_to(seq).await?
    } else if let Some(messages) = arguments.keep_last {
        stream.keep_last(messages).await?
    } else if arguments.all {
        session.kv(&arguments.subject)?.clear().await?
    } else if !arguments.seqs.is_empty() {
        stream.delete(arguments.seqs.iter().copied()).await?.len() as u64
    } else {
        session.kv(&arguments.subject)?.delete_many(arguments.keys).await?.len() as u64
    };
    if session.output.is_json() {
        session.output.json(&json!({ "subject": arguments.subject, "removed": removed }))
    } else {
        session.output.line(format_args!("{removed} removed"))
    }
}
