//! `set` and `rm`.

use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;

use dormouse_client::{Ack, NewMessage, ValueSource};
use serde_json::json;

use crate::args::{Rm, Set};
use crate::error::{Failure, FailureKind};
use crate::progress::Progress;
use crate::session::Session;

/// `set`.
pub(super) async fn set(session: &Session, mut arguments: Set) -> Result<(), Failure> {
    let from = source(session, &mut arguments).await?;
    let mut message = match (&from, arguments.value.take()) {
        (None, Some(value)) => NewMessage::new(value.into_vec()),
        _ => NewMessage::null(),
    };
    for header in std::mem::take(&mut arguments.headers) {
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
    let write = write(session, &arguments, message, from);
    let written = tokio::select! {
        biased;
        written = write => written?,
        // An abandoned upload leaves nothing: the server deletes the parts of an uncommitted value.
        _ = tokio::signal::ctrl_c() => {
            return Err(Failure::of(
                FailureKind::Indeterminate,
                "interrupted: nothing was set, unless the complete value had arrived",
            ));
        }
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

async fn write(
    session: &Session,
    arguments: &Set,
    message: NewMessage,
    from: Option<ValueSource<'static>>,
) -> Result<Ack, Failure> {
    let subject = &arguments.subject;
    Ok(match (arguments.key.clone(), from) {
        (Some(key), Some(source)) => session.kv(subject)?.put_reader_with(key, message, source).await?,
        (Some(key), None) => session.kv(subject)?.put_with(key, message).await?,
        (None, Some(source)) => session.stream(subject)?.append_reader_with(message, source).await?,
        (None, None) => session.stream(subject)?.publish_with(message).await?,
    })
}

/// The source of the value, if it is not on the command line.
async fn source(session: &Session, arguments: &mut Set) -> Result<Option<ValueSource<'static>>, Failure> {
    if let Some(path) = &arguments.file {
        let cannot = |error| Failure::new(format!("cannot read {}: {error}", path.display()));
        let file = tokio::fs::File::open(path).await.map_err(cannot)?;
        let metadata = file.metadata().await.map_err(cannot)?;
        if !metadata.is_file() {
            // For example a pipe: it has no size and can be read once.
            let progress = Progress::of_bytes(&session.output, None);
            return Ok(Some(ValueSource::once(file).on_progress(move |bytes| progress.reach(bytes))));
        }
        let progress = Progress::of_bytes(&session.output, Some(metadata.len()));
        return Ok(Some(ValueSource::seekable(file).on_progress(move |bytes| progress.reach(bytes))));
    }
    if arguments.value.as_deref() != Some("-".as_ref()) {
        return Ok(None);
    }
    arguments.value = None;
    let progress = Progress::of_bytes(&session.output, None);
    let input = std::io::stdin().as_fd().try_clone_to_owned();
    let input = input.map_err(|error| Failure::new(format!("cannot read standard input: {error}")))?;
    let input = tokio::fs::File::from_std(std::fs::File::from(input));
    Ok(Some(ValueSource::once(input).on_progress(move |bytes| progress.reach(bytes))))
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
