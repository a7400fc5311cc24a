//! `info` and `subject …`.

use std::time::Duration;

use dormouse_protocol::data::{InfoDetails, InfoReply};
use dormouse_protocol::message::Discard;
use dormouse_protocol::{Seq, Subject};
use serde::Serialize;
use serde_json::json;

use super::export::export;
use super::placement;
use crate::args::{Configure, Destroy, SubjectCommand};
use crate::error::Failure;
use crate::session::Session;
use crate::view::{cell, time};

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

/// The JSON output of `info`.
#[derive(Debug, Serialize)]
struct SubjectInfoView<'i> {
    subject: &'i Subject,
    #[serde(flatten)]
    info: &'i InfoReply,
}

/// `info`.
pub(super) async fn info(session: &Session, subject: &Subject) -> Result<(), Failure> {
    let info = session.stream(subject)?.info().await?;
    if session.output.is_json() {
        return session.output.json(&SubjectInfoView { subject, info: &info });
    }
    let rows = [rows(subject, &info), limits(&info), details(&info.details)].concat();
    let rows = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]);
    session.output.table(&[], rows)
}

type Rows = Vec<(&'static str, String)>;

fn rows(subject: &Subject, info: &InfoReply) -> Rows {
    let seq = |seq: Option<Seq>| seq.map_or_else(|| "none".to_owned(), |seq| seq.get().to_string());
    vec![
        ("subject", subject.to_string()),
        ("server", info.server.to_string()),
        ("log", info.log.to_string()),
        ("level", info.level.to_string()),
        ("messages", of_limit(info.count, info.config.max_msgs)),
        ("bytes", of_limit(info.bytes, info.config.max_bytes)),
        ("first seq", seq(info.first_seq)),
        ("last seq", seq(info.last_seq)),
        ("next seq", info.next_seq.get().to_string()),
        ("position", info.position.to_string()),
        ("term started after", info.term_base.to_string()),
        ("in the bucket up to", info.bucket_rev.to_string()),
    ]
}

/// An amount and its limit.
fn of_limit(held: u64, limit: Option<u64>) -> String {
    match limit {
        None => held.to_string(),
        // A server never accepts a limit below 1.
        Some(limit) => format!("{held} of {limit} ({} %)", held.saturating_mul(100) / limit.max(1)),
    }
}

fn limits(info: &InfoReply) -> Rows {
    let config = &info.config;
    let mut rows = Vec::new();
    let time = |millis: u64| humantime::format_duration(Duration::from_millis(millis)).to_string();
    rows.extend(config.max_age_ms.map(|age| ("maximum age", time(age))));
    rows.extend(config.default_ttl_ms.map(|ttl| ("default ttl", time(ttl))));
    rows.extend(config.max_msg_size.map(|bytes| ("maximum value size", bytes.to_string())));
    if config.max_msgs.is_some() || config.max_bytes.is_some() {
        let discard = match config.discard.unwrap_or_default() {
            Discard::Old => "the oldest message is deleted",
            Discard::New => "the write fails",
        };
        rows.push(("at the limit", discard.to_owned()));
    }
    for (name, value) in &config.metadata {
        rows.push(("metadata", format!("{}={}", cell(name), cell(value))));
    }
    rows
}

fn details(details: &InfoDetails) -> Rows {
    let mut rows = Vec::new();
    rows.extend(details.oldest_timestamp.map(|at| ("oldest message", time(at))));
    rows.extend(details.newest_timestamp.map(|at| ("newest message", time(at))));
    rows.push(("messages with a ttl", details.expiring.to_string()));
    rows.extend(details.next_expiry.map(|at| ("next expiry", time(at))));
    rows.push(("large values", details.large_values.to_string()));
    rows.push(("bytes of large values", details.large_value_bytes.to_string()));
    rows.push(("base in the bucket up to", details.base_rev.to_string()));
    rows.push(("bytes in the log above the base", details.tail_bytes.to_string()));
    rows.push(("bytes on the server's disk", details.local_bytes.to_string()));
    rows.push(("sessions in the dedup window", details.sessions.to_string()));
    rows.push(("last request accepted", time(details.accept_time)));
    rows.push(("open since", time(details.open_since)));
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
    let subject = arguments.subject.clone();
    arguments.apply(&mut config);
    let position = stream.configure(config.clone()).await?;
    if session.output.is_json() {
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

#[cfg(test)]
mod tests {
    use dormouse_protocol::Timestamp;

    use super::*;

    /// A time beyond the calendar, such as that of a ttl without an end, is shown as its last instant.
    #[test]
    fn info_time_beyond_calendar_is_shown() {
        let last = Timestamp::from_micros(u64::MAX);
        let rows = details(&InfoDetails { next_expiry: Some(last), ..InfoDetails::default() });
        assert!(rows.contains(&("next expiry", "9999-12-31T23:59:59.999999Z".to_owned())), "{rows:?}");
    }
}
