//! Reads of single messages.

use bytes::Bytes;
use dormouse_protocol::data::{GetReply, GetRequest};
use dormouse_protocol::limits::{ENVELOPE_BYTES, MAX_SEQ};
use dormouse_protocol::{ErrorReply, Headers, Message, Rev, Seq, Term, Timestamp};
use rusqlite::Row;

use super::slice::Slice;
use super::{Database, DatabaseError, from_sql, to_sql};
use crate::plan::{check_items, check_key, size};

macro_rules! select_messages {
    ($rest:literal) => {
        concat!(
            "SELECT seq, term, rev, key, timestamp, headers, size, expires_at, blob IS NOT NULL, value \
             FROM messages ",
            $rest
        )
    };
}

const BY_SEQ: &str = select_messages!("WHERE seq = ?1");
pub(super) const BY_KEY: &str = select_messages!("WHERE key = ?1");
pub(super) const KEYS_FROM: &str = "SELECT key, seq FROM messages WHERE key >= ?1 ORDER BY key";
pub(super) const KEYS_AFTER: &str = "SELECT key, seq FROM messages WHERE key > ?1 ORDER BY key";
pub(super) const PAGE: &str = select_messages!("WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq");
pub(super) const PAGE_REVERSE: &str = select_messages!("WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq DESC");

/// How a value that is too large is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OversizePolicy {
    /// The message fits with its value.
    Fits(usize),
    /// It fits without its value; with its value it would not fit even an empty reply.
    OnlyWithoutValue(usize),
    /// It would fit a separate reply, but not this one.
    NotHere,
    /// It fits no reply: its key and headers alone are too large.
    Never,
}

/// The remaining size of a reply.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReplyBudget {
    whole: usize,
    left: usize,
}

impl ReplyBudget {
    pub(super) fn new(max_reply_bytes: usize) -> Self {
        let whole = max_reply_bytes.saturating_sub(ENVELOPE_BYTES);
        Self { whole, left: whole }
    }

    fn room(self, key: usize, value: usize, headers: &Headers) -> OversizePolicy {
        let with = size::message_bytes(key, value, headers);
        let without = size::message_bytes(key, 0, headers);
        if with <= self.left {
            OversizePolicy::Fits(with)
        } else if with <= self.whole {
            OversizePolicy::NotHere
        } else if without <= self.left {
            OversizePolicy::OnlyWithoutValue(without)
        } else if without <= self.whole {
            OversizePolicy::NotHere
        } else {
            OversizePolicy::Never
        }
    }

    const fn take(&mut self, bytes: usize) {
        self.left -= bytes;
    }

    /// Whether this many bytes fit.
    pub(super) const fn holds(self, bytes: usize) -> bool {
        bytes <= self.left
    }

    /// Takes this many bytes, or all that are left.
    pub(super) const fn take_at_most(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }
}

impl Database {
    /// Replies to a get. A value in a [blob](Database::blob_at) is omitted.
    ///
    /// # Errors
    /// `too_large` if the single requested message does not fit; `bad_request`; or the file cannot be read.
    pub fn get(&self, request: &GetRequest, max_reply_bytes: usize) -> Result<GetReply, ErrorReply> {
        let GetRequest { v: _, seq, key, keys, seqs } = request;
        match (seq, key, keys, seqs) {
            (Some(seq), None, None, None) => self.get_one(Selector::Seq(*seq), max_reply_bytes),
            (None, Some(key), None, None) => {
                check_key(key)?;
                self.get_one(Selector::Key(key), max_reply_bytes)
            }
            (None, None, Some(_), None) | (None, None, None, Some(_)) => {
                self.get_page(request, max_reply_bytes)
            }
            _ => Err(ErrorReply::bad_request("a get names exactly one of seq, key, keys and seqs")),
        }
    }

    fn get_one(&self, selector: Selector<'_>, max_reply_bytes: usize) -> Result<GetReply, ErrorReply> {
        let mut budget = ReplyBudget::new(max_reply_bytes);
        let whole = budget.whole;
        let message = match self.select(selector, &mut budget)? {
            Selected::None => None,
            Selected::Message(message) => Some(message),
            Selected::WithoutValue(message) => {
                return Err(ErrorReply::too_large(
                    "max_reply_bytes",
                    size::of_message(&message) + message.size as usize,
                    whole,
                ));
            }
            Selected::NoRoom | Selected::NeverFits(_) => {
                return Err(ErrorReply::too_large("max_reply_bytes", whole + 1, whole));
            }
        };
        Ok(GetReply { position: self.state.position(), messages: message.into_iter().collect(), answered: 1 })
    }

    /// Reads one slice of a get of several messages; `None` until the reply is complete.
    pub(super) fn get_slice(
        &self,
        request: &GetRequest,
        progress: &mut GetProgress,
        slice: &mut Slice,
    ) -> Result<Option<GetReply>, ErrorReply> {
        let GetRequest { v: _, seq, key, keys, seqs } = request;
        let (keys, seqs) = match (seq, key, keys, seqs) {
            (None, None, Some(keys), None) => (keys.as_slice(), &[][..]),
            (None, None, None, Some(seqs)) => (&[][..], seqs.as_slice()),
            _ => return Err(ErrorReply::bad_request("a get names exactly one of seq, key, keys and seqs")),
        };
        check_items(keys.len().max(seqs.len()))?;
        if progress.answered == 0 {
            keys.iter().try_for_each(|key| check_key(key))?;
        }
        let selectors =
            keys.iter().map(|key| Selector::Key(key)).chain(seqs.iter().copied().map(Selector::Seq));
        for selector in selectors.skip(progress.answered) {
            if slice.is_spent() {
                return Ok(None);
            }
            match self.select(selector, &mut progress.budget)? {
                Selected::None => slice.count(0),
                Selected::Message(message) | Selected::WithoutValue(message) => {
                    slice.count(size::of_message(&message));
                    progress.messages.push(message);
                }
                Selected::NoRoom => break,
                Selected::NeverFits(seq) => return Err(Self::never_fits(seq, progress.budget)),
            }
            progress.answered += 1;
        }
        let messages = std::mem::take(&mut progress.messages);
        let answered = progress.answered as u64;
        Ok(Some(GetReply { position: self.state.position(), messages, answered }))
    }

    pub(super) fn never_fits(seq: Seq, budget: ReplyBudget) -> ErrorReply {
        let mut error = ErrorReply::too_large("max_reply_bytes", budget.whole + 1, budget.whole);
        error.message = format!("{}: key and headers of {seq} alone do not fit", error.message);
        error
    }

    fn select(&self, selector: Selector<'_>, budget: &mut ReplyBudget) -> Result<Selected, ErrorReply> {
        let mut select = || -> Result<Selected, DatabaseError> {
            let connection = &self.connection;
            match selector {
                Selector::Seq(seq) if self.floor.hides(seq) => Ok(Selected::None),
                Selector::Seq(seq) => {
                    let mut statement = connection.prepare_cached(BY_SEQ)?;
                    let mut rows = statement.query([to_sql(seq.get().min(MAX_SEQ + 1))])?;
                    rows.next()?.map_or(Ok(Selected::None), |row| read_row(row, budget))
                }
                Selector::Key(key) => {
                    let mut statement = connection.prepare_cached(BY_KEY)?;
                    let mut rows = statement.query([key])?;
                    match rows.next()? {
                        Some(row) if !self.floor.hides(Seq::new(from_sql(row.get(0)?))) => {
                            read_row(row, budget)
                        }
                        Some(_) | None => Ok(Selected::None),
                    }
                }
            }
        };
        select().map_err(|error| self.unreadable(&error))
    }

    /// The lowest and the highest seq with a message.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn seq_range(&self) -> Result<Option<(Seq, Seq)>, ErrorReply> {
        let read = || -> Result<_, rusqlite::Error> {
            self.connection
                .prepare_cached("SELECT (SELECT MIN(seq) FROM messages WHERE seq > ?1), (SELECT MAX(seq) FROM messages WHERE seq > ?1)")?
                .query_row([to_sql(self.floor.seq.get())], |row| Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?)))
        };
        let (first, last) = read().map_err(|error| self.unreadable(&error.into()))?;
        Ok(first.zip(last).map(|(first, last)| (Seq::new(from_sql(first)), Seq::new(from_sql(last)))))
    }

    pub(super) fn unreadable(&self, error: &DatabaseError) -> ErrorReply {
        let file = self.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        tracing::error!(path = %self.path.display(), %error, "local file read failed");
        match error {
            DatabaseError::Damaged(_) => ErrorReply::corrupt(format!("the local file {file}"), error),
            _ => ErrorReply::internal(format_args!("the local file {file}: {error}")),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Selector<'a> {
    Seq(Seq),
    Key(&'a str),
}

pub(super) enum Selected {
    None,
    /// With its value, unless the value is in a blob.
    Message(Message),
    /// The value fits no reply.
    WithoutValue(Message),
    NoRoom,
    NeverFits(Seq),
}

/// A get of several messages, as far as it has been read.
#[derive(Debug)]
pub(super) struct GetProgress {
    budget: ReplyBudget,
    messages: Vec<Message>,
    /// How many of the requested messages are read.
    answered: usize,
}

impl GetProgress {
    pub(super) fn new(max_reply_bytes: usize) -> Self {
        Self { budget: ReplyBudget::new(max_reply_bytes), messages: Vec::new(), answered: 0 }
    }
}

pub(super) fn check_limit(limit: Option<u64>) -> Result<(), ErrorReply> {
    if limit == Some(0) { Err(ErrorReply::bad_request("the limit of a page is at least 1")) } else { Ok(()) }
}

/// Reads as much of one row as fits: SQLite fetches a value only when its column is read.
pub(super) fn read_row(row: &Row<'_>, budget: &mut ReplyBudget) -> Result<Selected, DatabaseError> {
    let mut message = read_message(row)?;
    let value_bytes =
        if message.value_omitted { 0 } else { usize::try_from(message.size).unwrap_or(usize::MAX / 2) };
    match budget.room(message.key.as_ref().map_or(0, String::len), value_bytes, &message.headers) {
        OversizePolicy::Fits(bytes) => {
            budget.take(bytes);
            message.value = read_value(row)?;
            Ok(Selected::Message(message))
        }
        OversizePolicy::OnlyWithoutValue(bytes) => {
            budget.take(bytes);
            message.value_omitted = true;
            Ok(Selected::WithoutValue(message))
        }
        OversizePolicy::NotHere => Ok(Selected::NoRoom),
        OversizePolicy::Never => Ok(Selected::NeverFits(message.seq)),
    }
}

/// Reads a row without its value. The value counts as omitted if it is not in the file.
pub(super) fn read_message(row: &Row<'_>) -> Result<Message, DatabaseError> {
    let number = |column: usize| row.get::<_, i64>(column).map(from_sql);
    let seq = Seq::new(number(0)?);
    let headers = match row.get_ref(5)?.as_blob_or_null().map_err(rusqlite::Error::from)? {
        None => Headers::default(),
        Some(encoded) => dormouse_protocol::decode(encoded)
            .map_err(|error| DatabaseError::Damaged(format!("the headers of {seq}: {error}")))?,
    };
    let expires_at: Option<i64> = row.get(7)?;
    Ok(Message {
        seq,
        term: Term::new(number(1)?),
        rev: Rev::new(number(2)?),
        key: row.get(3)?,
        value: None,
        headers,
        timestamp: Timestamp::from_micros(number(4)?),
        size: number(6)?,
        value_omitted: row.get(8)?,
        expires_at: expires_at.map(|at| Timestamp::from_micros(from_sql(at))),
    })
}

/// Reads the value of a row.
pub(super) fn read_value(row: &Row<'_>) -> Result<Option<Bytes>, DatabaseError> {
    let value = row.get_ref(9)?.as_blob_or_null().map_err(rusqlite::Error::from)?;
    Ok(value.map(Bytes::copy_from_slice))
}
