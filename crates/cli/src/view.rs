//! Output formats of results: JSON, and cells of a table.

use std::time::{Duration, UNIX_EPOCH};

use dormouse_client::Update;
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Headers, Message, Position, Rev, Seq, Term, Timestamp};
use serde::Serialize;

use crate::output::{base64, printable};

/// Maximum number of characters of a key or value in a table.
const CELL_CHARACTERS: usize = 60;

/// A message as JSON.
#[derive(Debug, Serialize)]
pub struct MessageView<'m> {
    seq: Seq,
    term: Term,
    rev: Rev,
    key: Option<&'m str>,
    /// Absent for the null value, and for an omitted value.
    value_base64: Option<String>,
    /// The value as text, if it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    value_text: Option<&'m str>,
    /// The value was too large and is omitted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    value_omitted: bool,
    size: u64,
    #[serde(skip_serializing_if = "Headers::is_empty")]
    headers: &'m Headers,
    timestamp_us: Timestamp,
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_us: Option<Timestamp>,
}

impl<'m> MessageView<'m> {
    /// The view of a message.
    #[must_use]
    pub fn new(message: &'m Message) -> Self {
        Self {
            seq: message.seq,
            term: message.term,
            rev: message.rev,
            key: message.key.as_deref(),
            value_base64: message.value.as_deref().map(base64),
            value_text: message.value.as_deref().and_then(|value| std::str::from_utf8(value).ok()),
            value_omitted: message.value_omitted,
            size: message.size,
            headers: &message.headers,
            timestamp_us: message.timestamp,
            time: time(message.timestamp),
            expires_at_us: message.expires_at,
        }
    }
}

/// A change as JSON.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum UpdateView<'u> {
    /// A message was written.
    Set {
        /// The message.
        message: MessageView<'u>,
        /// The seq of the replaced message, if known.
        #[serde(skip_serializing_if = "Option::is_none")]
        replaces: Option<Seq>,
    },
    /// A message was removed.
    Removed {
        /// The seq it had.
        seq: Seq,
        /// The key it had.
        key: Option<&'u str>,
    },
    /// Every message up to a seq was removed.
    Cleared {
        /// The last removed seq.
        end_seq: Seq,
    },
    /// The configuration was replaced.
    Configured {
        /// The new configuration.
        config: &'u SubjectConfig,
    },
    /// Everything up to this position has been shown.
    CaughtUp {
        /// The position.
        position: Position,
    },
    /// Earlier output is obsolete; all current messages follow.
    Reset,
    /// A change of an unknown kind.
    Other,
}

impl<'u> UpdateView<'u> {
    /// The view of a change.
    #[must_use]
    pub fn new(update: &'u Update) -> Self {
        match update {
            Update::Set { message, replaces } => {
                Self::Set { message: MessageView::new(message), replaces: *replaces }
            }
            Update::Removed { seq, key } => Self::Removed { seq: *seq, key: key.as_deref() },
            Update::Cleared { end_seq } => Self::Cleared { end_seq: *end_seq },
            Update::Configured(config) => Self::Configured { config },
            Update::CaughtUp(position) => Self::CaughtUp { position: *position },
            Update::Reset => Self::Reset,
            _ => Self::Other,
        }
    }
}

/// A change as a text line.
#[must_use]
pub fn update_line(update: &Update) -> String {
    match update {
        Update::Set { message, .. } => {
            let key = message.key.as_deref().map(|key| format!("  {}", cell(key))).unwrap_or_default();
            format!("{}  set  seq {}{key}  {}", time(message.timestamp), message.seq.get(), value(message))
        }
        Update::Removed { seq, key } => {
            let key = key.as_deref().map(|key| format!("  {}", cell(key))).unwrap_or_default();
            format!("removed  seq {}{key}", seq.get())
        }
        Update::Cleared { end_seq } => format!("removed  everything up to seq {}", end_seq.get()),
        Update::Configured(_) => "configured".to_owned(),
        Update::CaughtUp(position) => format!("caught up at {position}"),
        Update::Reset => "reset: earlier output is obsolete; all current messages follow".to_owned(),
        _ => "a change of a kind that this version does not know".to_owned(),
    }
}

/// The titles of [`message_row`].
pub const MESSAGE_TITLES: [&str; 5] = ["SEQ", "KEY", "TIME", "SIZE", "VALUE"];

/// A message as a row of a table.
#[must_use]
pub fn message_row(message: &Message) -> Vec<String> {
    vec![
        message.seq.get().to_string(),
        message.key.as_deref().map(cell).unwrap_or_default(),
        time(message.timestamp),
        message.size.to_string(),
        value(message),
    ]
}

/// A text as a table cell.
#[must_use]
pub fn cell(text: &str) -> String {
    printable(text, CELL_CHARACTERS)
}

/// An instant as RFC 3339, in UTC.
#[must_use]
pub fn time(timestamp: Timestamp) -> String {
    // A timestamp can have any value. This calendar ends with the year 9999.
    const LAST_MICROS: u64 = 253_402_300_799_999_999;
    let micros = timestamp.as_micros().min(LAST_MICROS);
    humantime::format_rfc3339_micros(UNIX_EPOCH + Duration::from_micros(micros)).to_string()
}

/// A duration as text, rounded to seconds.
#[must_use]
pub fn duration(milliseconds: u64) -> String {
    if milliseconds < 1_000 {
        return format!("{milliseconds}ms");
    }
    humantime::format_duration(Duration::from_secs(milliseconds / 1_000)).to_string()
}

fn value(message: &Message) -> String {
    match &message.value {
        None if message.value_omitted => format!("({} bytes, not shown)", message.size),
        None => "(null)".to_owned(),
        Some(value) => match std::str::from_utf8(value) {
            Ok(text) => cell(text),
            Err(_) => format!("({} bytes)", value.len()),
        },
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;

    fn message(value: Option<&'static [u8]>) -> Message {
        Message {
            seq: Seq::new(3),
            term: Term::new(2),
            rev: Rev::new(7),
            key: Some("k".to_owned()),
            value: value.map(Bytes::from_static),
            headers: Headers(vec![("n".to_owned(), "v".to_owned())]),
            timestamp: Timestamp::from_micros(1_700_000_000_000_001),
            size: value.map_or(0, <[u8]>::len) as u64,
            value_omitted: false,
            expires_at: None,
        }
    }

    /// A message view shows its value as base64, and also as text if it is valid UTF-8.
    #[test]
    fn message_view_shows_value_as_base64_and_text() {
        assert_eq!(
            serde_json::to_value(MessageView::new(&message(Some(b"hi")))).unwrap(),
            json!({
                "seq": 3, "term": 2, "rev": 7, "key": "k", "value_base64": "aGk=", "value_text": "hi", "size": 2,
                "headers": [["n", "v"]],
                "timestamp_us": 1_700_000_000_000_001_u64, "time": "2023-11-14T22:13:20.000001Z",
            })
        );
        let binary = serde_json::to_value(MessageView::new(&message(Some(&[0xff])))).unwrap();
        assert_eq!((&binary["value_base64"], binary.get("value_text")), (&json!("/w=="), None));
        let null = serde_json::to_value(MessageView::new(&message(None))).unwrap();
        assert_eq!((&null["value_base64"], null.get("value_text")), (&json!(null), None));
    }

    /// The JSON of each update names its kind in `type`.
    #[test]
    fn update_view_names_kind_of_change() {
        let view = |update: &Update| serde_json::to_value(UpdateView::new(update)).unwrap();
        let set = view(&Update::Set { message: message(None), replaces: Some(Seq::new(2)) });
        assert_eq!((&set["type"], &set["replaces"]), (&json!("set"), &json!(2)));
        assert_eq!(
            view(&Update::Removed { seq: Seq::new(3), key: None }),
            json!({"type": "removed", "seq": 3, "key": null})
        );
        assert_eq!(view(&Update::Cleared { end_seq: Seq::new(3) }), json!({"type": "cleared", "end_seq": 3}));
        assert_eq!(
            view(&Update::CaughtUp(Position { term: Term::new(1), rev: Rev::new(2) })),
            json!({"type": "caught_up", "position": {"term": 1, "rev": 2}})
        );
        assert_eq!(view(&Update::Reset), json!({"type": "reset"}));
        assert_eq!(view(&Update::Configured(SubjectConfig::default()))["type"], "configured");
    }

    /// Each timestamp can be shown, up to the largest value.
    #[test]
    fn timestamp_view_accepts_any_value() {
        assert_eq!(time(Timestamp::from_micros(0)), "1970-01-01T00:00:00.000000Z");
        assert_eq!(time(Timestamp::from_micros(u64::MAX)), "9999-12-31T23:59:59.999999Z");
    }

    /// A table cell shows text escaped, binary values as a byte count, and null as `(null)`.
    #[test]
    fn table_cell_shows_value_in_one_line() {
        assert_eq!(value(&message(Some(b"a\nb"))), "a\\nb");
        assert_eq!(value(&message(Some(&[0xff, 0xfe]))), "(2 bytes)");
        assert_eq!(value(&message(None)), "(null)");
    }
}
