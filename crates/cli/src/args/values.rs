//! Parsers of single argument values.

use std::str::FromStr;

use dormouse_protocol::ids::InvalidName;
use dormouse_protocol::{Level, MessageId, Seq, ServerName, Subject, Term};

/// A header as `name:value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderArg {
    /// Its name.
    pub name: String,
    /// Its value, without a space after the colon.
    pub value: String,
}

impl FromStr for HeaderArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some((name, value)) if !name.is_empty() => {
                let value = value.strip_prefix(' ').unwrap_or(value);
                Ok(Self { name: name.to_owned(), value: value.to_owned() })
            }
            _ => Err("a header has the form NAME:VALUE"),
        }
    }
}

/// Metadata as `name=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

impl FromStr for Metadata {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                Ok(Self { name: name.to_owned(), value: value.to_owned() })
            }
            _ => Err("metadata has the form NAME=VALUE"),
        }
    }
}

/// A seq.
///
/// # Errors
/// A sentence that explains the error.
pub fn seq(text: &str) -> Result<Seq, String> {
    match text.parse() {
        Ok(0) => Err("a seq is 1 or more".to_owned()),
        Ok(number) => Ok(Seq::new(number)),
        Err(error) => Err(format!("a seq is a whole number: {error}")),
    }
}

/// A message as `term:seq`.
///
/// # Errors
/// A sentence that explains the error.
pub fn message_id(text: &str) -> Result<MessageId, String> {
    let (term, number) = text
        .split_once(':')
        .ok_or("a message id has the form TERM:SEQ; `set` and `get --json` print both")?;
    let term = term.parse().map_err(|error| format!("a term is a whole number: {error}"))?;
    Ok(MessageId { term: Term::new(term), seq: seq(number)? })
}

/// The name of a server, or `coordinator`.
///
/// # Errors
/// A sentence that explains the error.
pub fn process(text: &str) -> Result<String, String> {
    if text != ServerName::COORDINATOR {
        ServerName::new(text).map_err(|error| error.to_string())?;
    }
    Ok(text.to_owned())
}

/// A pattern of subjects.
///
/// # Errors
/// A sentence that explains the error.
pub fn pattern(text: &str) -> Result<String, String> {
    let count = text.split('.').count();
    // With a token in place of each wildcard, the text must be a subject.
    let example = text.split('.').enumerate().map(|(number, token)| match token {
        "*" => "x",
        ">" if number + 1 == count => "x",
        token => token,
    });
    let example = example.collect::<Vec<_>>().join(".");
    Subject::new(&example).map_err(|error| {
        format!("{error}; in a pattern `*` matches one whole token, and a final `>` matches one or more")
    })?;
    Ok(text.to_owned())
}

/// A level, or `default` for the server's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LevelArg(pub Option<Level>);

impl FromStr for LevelArg {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "default" { Ok(Self(None)) } else { text.parse().map(|level| Self(Some(level))) }
    }
}
