//! `info` and `subject …`.

use dormouse_protocol::data::InfoReply;
use dormouse_protocol::{Seq, Subject};
use serde::Serialize;
use serde_json::json;

use super::export::export;
use super::placement;
use crate::args::{Configure, Destroy, LevelChoice, SubjectCommand};
use crate::error::Failure;
use crate::session::Session;
use crate::view::cell;

pub(super) async fn run(session: &Session, command: SubjectCommand) -> Result<(), Failure> {
    match command {
        SubjectCommand::Ls(arguments) => placement::ls(session, arguments).await,
        SubjectCommand::Move(arguments) => placement::move_subject(session, arguments).await,
        SubjectCommand::Locate(arguments) => locate(session, &arguments.subject).await,
        SubjectCommand::Flush(arguments) => flush(session, &arguments.subject).await,
        SubjectCommand::Configure(arguments) => configure(session, arguments).await,
        SubjectCommand::Export(arguments) => export(session, arguments).await,
        SubjectCommand::Destroy(arguments) => destroy(session, &arguments).await,
    }
}

/// What `info` prints as JSON.
#[derive(Debug, Serialize)]
struct InfoView<'i> {
    subject: &'i Subject,
    #[serde(flatten)]
    info: &'i InfoReply,
}

/// `info`.
pub(super) async fn info(session: &Session, subject: &Subject) -> Result<(), Failure> {
    let info = session.stream(subject)?.info().await?;
    if session.output.is_json() {
        return session.output.json(&InfoView { subject, info: &info });
    }
    let seq = |seq: Option<Seq>| seq.map_or_else(|| "none".to_owned(), |seq| seq.get().to_string());
    let mut rows = vec![
        ("subject", subject.to_string()),
        ("server", info.server.to_string()),
        ("log", info.log.to_string()),
        ("level", info.level.to_string()),
        ("messages", info.count.to_string()),
        ("bytes", info.bytes.to_string()),
        ("first seq", seq(info.first_seq)),
        ("last seq", seq(info.last_seq)),
        ("next seq", info.next_seq.get().to_string()),
        ("position", info.position.to_string()),
        ("in the bucket up to", info.bucket_rev.to_string()),
    ];
    rows.extend(configuration(&info));
    let rows = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]);
    session.output.table(&[], rows)
}

fn configuration(info: &InfoReply) -> Vec<(&'static str, String)> {
    let config = &info.config;
    let mut rows = Vec::new();
    let mut number = |name, value: Option<u64>| rows.extend(value.map(|value| (name, value.to_string())));
    number("max messages", config.max_msgs);
    number("max bytes", config.max_bytes);
    number("max age, ms", config.max_age_ms);
    number("max message size, bytes", config.max_msg_size);
    number("default ttl, ms", config.default_ttl_ms);
    for (name, value) in &config.metadata {
        rows.push(("metadata", format!("{}={}", cell(name), cell(value))));
    }
    rows
}

/// `subject locate`.
async fn locate(session: &Session, subject: &Subject) -> Result<(), Failure> {
    let server = session.client().locate(subject).await?;
    if session.output.is_json() {
        session.output.json(&json!({ "subject": subject, "server": server }))
    } else {
        session.output.line(server)
    }
}

/// `subject flush`.
async fn flush(session: &Session, subject: &Subject) -> Result<(), Failure> {
    let position = session.stream(subject)?.flush().await?;
    if session.output.is_json() {
        session.output.json(&json!({ "subject": subject, "position": position }))
    } else {
        session.output.line(format_args!("in the bucket up to {position}"))
    }
}

/// `subject configure`.
async fn configure(session: &Session, arguments: Configure) -> Result<(), Failure> {
    let stream = session.stream(&arguments.subject)?;
    let mut config = stream.info().await?.config;
    if let Some(LevelChoice(level)) = arguments.level {
        config.level = level;
    }
    for name in &arguments.remove_metadata {
        config.metadata.remove(name);
    }
    for metadata in arguments.metadata {
        config.metadata.insert(metadata.name, metadata.value);
    }
    let position = stream.configure(config.clone()).await?;
    if session.output.is_json() {
        let subject = &arguments.subject;
        session.output.json(&json!({ "subject": subject, "position": position, "config": config }))
    } else {
        session.output.line(format_args!("configured at {position}"))
    }
}

/// `subject destroy`.
async fn destroy(session: &Session, arguments: &Destroy) -> Result<(), Failure> {
    let position = session.stream(&arguments.subject)?.destroy().await?;
    if session.output.is_json() {
        session.output.json(&json!({ "subject": arguments.subject, "position": position }))
    } else {
        session.output.line(format_args!("destroyed at {position}"))
    }
}
