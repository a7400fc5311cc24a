//! `get`, `ls` and `keys`.

use std::path::Path;

use dormouse_client::{Message, SeqRange, ValueReader};
use dormouse_protocol::Subject;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use super::list::tables;
use super::staged::{Interruption, StagedFile, refuse_existing};
use crate::args::{Get, Keys, Ls};
use crate::error::{Failure, FailureKind};
use crate::progress::Progress;
use crate::session::Session;
use crate::view::{MESSAGE_TITLES, MessageView, cell, message_row};

/// `get`.
pub(super) async fn get(session: &Session, arguments: Get) -> Result<(), Failure> {
    if let Some(file) = arguments.output.clone() {
        return download(session, arguments, &file).await;
    }
    let (found, selector) = match (arguments.key, arguments.seq) {
        (Some(key), _) => {
            let selector = format!("key {:?}", cell(&key));
            (session.kv(&arguments.subject)?.entry(key).await?.map(Message::from), selector)
        }
        (None, Some(seq)) => (session.stream(&arguments.subject)?.get(seq).await?, seq.to_string()),
        (None, None) => return Err(Failure::usage("either --key or --seq is required")),
    };
    let Some(message) = found else { return Err(missing(&arguments.subject, &selector)) };
    if session.output.is_json() {
        return session.output.json(&MessageView::new(&message));
    }
    match &message.value {
        Some(value) => session.output.value(value),
        None => {
            session.output.info_line("the value is null");
            Ok(())
        }
    }
}

fn missing(subject: &Subject, selector: &str) -> Failure {
    Failure::of(FailureKind::NotFound, format!("{subject} has no message at {selector}"))
}

/// `get --output`: a value of any size goes through bounded memory into a temporary file beside the target. The
/// complete file then replaces the target.
async fn download(session: &Session, arguments: Get, file: &Path) -> Result<(), Failure> {
    refuse_existing(file, arguments.force)?;
    let (found, selector) = match (arguments.key, arguments.seq) {
        (Some(key), _) => {
            let selector = format!("key {:?}", cell(&key));
            (session.kv(&arguments.subject)?.get_reader(key).await?, selector)
        }
        (None, Some(seq)) => (session.stream(&arguments.subject)?.get_reader(seq).await?, seq.to_string()),
        (None, None) => return Err(Failure::usage("either --key or --seq is required")),
    };
    let Some(mut reader) = found else { return Err(missing(&arguments.subject, &selector)) };
    let message = reader.message().clone();
    let mut interruption = Interruption::listen()?;
    let staged = StagedFile::beside(file, arguments.force)?;
    interruption.or(fetch(session, &mut reader, &staged.path())).await?;
    let size_bytes = staged.put_in_place()?;
    if session.output.is_json() {
        session.output.json(&json!({
            "subject": arguments.subject,
            "seq": message.seq,
            // A path may not be UTF-8; JSON is.
            "file": file.to_string_lossy(),
            "size_bytes": size_bytes,
        }))
    } else {
        session.output.line(format_args!("{}: {size_bytes} bytes", file.display()))
    }
}

async fn fetch(session: &Session, reader: &mut ValueReader, staged: &Path) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| Failure::new(format!("cannot write {}: {error}", staged.display()));
    let progress = Progress::of_bytes(&session.output, Some(reader.size()));
    let mut file = tokio::fs::File::create_new(staged).await.map_err(cannot)?;
    let mut done = 0;
    while let Some(bytes) = reader.next().await? {
        file.write_all(&bytes).await.map_err(cannot)?;
        done += bytes.len() as u64;
        progress.reach(done);
    }
    file.flush().await.map_err(cannot)
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
