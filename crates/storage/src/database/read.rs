//! Reading: single messages, pages bounded in bytes and number, and what planning asks.

use bytes::Bytes;
use dormouse_protocol::data::{GetAllReply, GetAllRequest, GetReply, GetRequest, KeysReply, KeysRequest};
use dormouse_protocol::limits::{ENVELOPE_BYTES, MAX_PAGE_ITEMS, MAX_SEQ};
use dormouse_protocol::{ErrorReply, Headers, Message, Rev, Seq, Term, Timestamp};
use rusqlite::{Row, params};

use super::{Database, DatabaseError, from_sql, to_sql};
use crate::plan::{check_items, check_key, size};

/// The most rows that one page looks at. A filter that few messages pass must not stall the subject: the page ends
/// early, even empty, with a cursor to go on from.
const MAX_ROWS_LOOKED_AT: usize = 20_000;

macro_rules! select_messages {
    ($rest:literal) => {
        concat!(
            "SELECT seq, term, rev, key, timestamp, headers, size, expires_at, blob IS NOT NULL, value \
             FROM messages ",
            $rest
        )
    };
}
pub(super) use select_messages;

const BY_SEQ: &str = select_messages!("WHERE seq = ?1");
pub(super) const BY_KEY: &str = select_messages!("WHERE key = ?1");
pub(super) const KEYS_FROM: &str = "SELECT key FROM messages WHERE key >= ?1 ORDER BY key";
pub(super) const KEYS_AFTER: &str = "SELECT key FROM messages WHERE key > ?1 ORDER BY key";
const PAGE: &str = select_messages!("WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq");
const PAGE_REVERSE: &str = select_messages!("WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq DESC");

/// How a value that is too large is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// The message fits with its value.
    Fits(usize),
    /// It fits if its value is left out, and would not fit an empty answer either with it.
    OnlyWithoutValue(usize),
    /// It would fit an answer of its own, not this one.
    NotHere,
    /// It fits no answer: its key and headers alone are too large.
    Never,
}

/// What is left of an answer.
#[derive(Debug, Clone, Copy)]
struct Budget {
    whole: usize,
    left: usize,
}

impl Budget {
    fn new(max_reply_bytes: usize) -> Self {
        let whole = max_reply_bytes.saturating_sub(ENVELOPE_BYTES);
        Self { whole, left: whole }
    }

    fn room(self, key: usize, value: usize, headers: &Headers) -> Room {
        let with = size::message_bytes(key, value, headers);
        let without = size::message_bytes(key, 0, headers);
        if with <= self.left {
            Room::Fits(with)
        } else if with <= self.whole {
            Room::NotHere
        } else if without <= self.left {
            Room::OnlyWithoutValue(without)
        } else if without <= self.whole {
            Room::NotHere
        } else {
            Room::Never
        }
    }

    const fn take(&mut self, bytes: usize) {
        self.left -= bytes;
    }
}

impl Database {
    /// Answers a get. A value that lies in an [object of its own](Database::blob_at) is left out.
    ///
    /// # Errors
    /// `too_large` when the one message asked for does not fit; `bad_request`; or that the file cannot be read.
    pub fn get(&self, request: &GetRequest, max_reply_bytes: usize) -> Result<GetReply, ErrorReply> {
        let GetRequest { v: _, seq, key, keys, seqs } = request;
        match (seq, key, keys, seqs) {
            (Some(seq), None, None, None) => self.get_one(Selector::Seq(*seq), max_reply_bytes),
            (None, Some(key), None, None) => {
                check_key(key)?;
                self.get_one(Selector::Key(key), max_reply_bytes)
            }
            (None, None, Some(keys), None) => {
                check_items(keys.len())?;
                keys.iter().try_for_each(|key| check_key(key))?;
                self.get_several(keys.iter().map(|key| Selector::Key(key)), max_reply_bytes)
            }
            (None, None, None, Some(seqs)) => {
                check_items(seqs.len())?;
                self.get_several(seqs.iter().copied().map(Selector::Seq), max_reply_bytes)
            }
            _ => Err(ErrorReply::bad_request("a get names exactly one of seq, key, keys and seqs")),
        }
    }

    fn get_one(&self, selector: Selector<'_>, max_reply_bytes: usize) -> Result<GetReply, ErrorReply> {
        let mut budget = Budget::new(max_reply_bytes);
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

    fn get_several<'a>(
        &self,
        selectors: impl Iterator<Item = Selector<'a>>,
        max_reply_bytes: usize,
    ) -> Result<GetReply, ErrorReply> {
        let mut budget = Budget::new(max_reply_bytes);
        let mut messages = Vec::new();
        let mut answered = 0;
        for selector in selectors {
            match self.select(selector, &mut budget)? {
                Selected::None => {}
                Selected::Message(message) | Selected::WithoutValue(message) => messages.push(message),
                Selected::NoRoom => break,
                Selected::NeverFits(seq) => return Err(self.never_fits(seq, budget)),
            }
            answered += 1;
        }
        Ok(GetReply { position: self.state.position(), messages, answered })
    }

    fn never_fits(&self, seq: Seq, budget: Budget) -> ErrorReply {
        let mut error = ErrorReply::too_large("max_reply_bytes", budget.whole + 1, budget.whole);
        error.message = format!("{}: key and headers of {seq} alone do not fit", error.message);
        error
    }

    fn select(&self, selector: Selector<'_>, budget: &mut Budget) -> Result<Selected, ErrorReply> {
        let mut select = || -> Result<Selected, DatabaseError> {
            let connection = &self.connection;
            match selector {
                Selector::Seq(seq) => {
                    let mut statement = connection.prepare_cached(BY_SEQ)?;
                    let mut rows = statement.query([to_sql(seq.get().min(MAX_SEQ + 1))])?;
                    rows.next()?.map_or(Ok(Selected::None), |row| read_row(row, budget))
                }
                Selector::Key(key) => {
                    let mut statement = connection.prepare_cached(BY_KEY)?;
                    let mut rows = statement.query([key])?;
                    rows.next()?.map_or(Ok(Selected::None), |row| read_row(row, budget))
                }
            }
        };
        select().map_err(|error| self.unreadable(&error))
    }

    /// Answers a get_all with one page.
    ///
    /// # Errors
    /// `too_large` when key and headers alone of the first message do not fit; or that the file cannot be read.
    pub fn get_all(
        &self,
        request: &GetAllRequest,
        max_reply_bytes: usize,
    ) -> Result<GetAllReply, ErrorReply> {
        if let Some(prefix) = &request.key_prefix {
            check_key(prefix)?;
        }
        check_limit(request.limit)?;
        let mut budget = Budget::new(max_reply_bytes);
        let page = self.page(request, &mut budget).map_err(|error| self.unreadable(&error))?;
        if let Some(seq) = page.never_fits.filter(|_| page.messages.is_empty()) {
            return Err(self.never_fits(seq, budget));
        }
        Ok(GetAllReply { position: self.state.position(), messages: page.messages, cursor: page.cursor })
    }

    fn page(&self, request: &GetAllRequest, budget: &mut Budget) -> Result<Page, DatabaseError> {
        let start = to_sql(request.start_seq.map_or(0, Seq::get).min(MAX_SEQ + 1));
        let end = to_sql(request.end_seq.map_or(MAX_SEQ, Seq::get).min(MAX_SEQ + 1));
        let limit = request.limit.unwrap_or(u64::MAX).min(MAX_PAGE_ITEMS as u64);
        let sql = if request.reverse { PAGE_REVERSE } else { PAGE };
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query(params![start, end])?;
        let mut page = Page { messages: Vec::new(), cursor: None, never_fits: None };
        let mut looked_at = 0;
        while let Some(row) = rows.next()? {
            let seq = Seq::new(from_sql(row.get(0)?));
            if page.messages.len() as u64 >= limit || looked_at >= MAX_ROWS_LOOKED_AT {
                page.cursor = Some(seq);
                break;
            }
            looked_at += 1;
            if let Some(prefix) = &request.key_prefix {
                let key = row.get_ref(3)?.as_str_or_null().map_err(rusqlite::Error::from)?;
                if !key.is_some_and(|key| key.starts_with(prefix.as_str())) {
                    continue;
                }
            }
            match read_row(row, budget)? {
                Selected::Message(message) | Selected::WithoutValue(message) => page.messages.push(message),
                Selected::NeverFits(seq) => {
                    page.never_fits = Some(seq);
                    page.cursor = Some(seq);
                    break;
                }
                Selected::NoRoom | Selected::None => {
                    page.cursor = Some(seq);
                    break;
                }
            }
        }
        Ok(page)
    }

    /// Answers a keys request with one page.
    ///
    /// # Errors
    /// `too_large` for a prefix or cursor that is too long; or that the file cannot be read.
    pub fn keys(&self, request: &KeysRequest, max_reply_bytes: usize) -> Result<KeysReply, ErrorReply> {
        for key in [&request.prefix, &request.cursor].into_iter().flatten() {
            check_key(key)?;
        }
        check_limit(request.limit)?;
        self.keys_page(request, max_reply_bytes).map_err(|error| self.unreadable(&error))
    }

    fn keys_page(&self, request: &KeysRequest, max_reply_bytes: usize) -> Result<KeysReply, DatabaseError> {
        let prefix = request.prefix.as_deref().unwrap_or("");
        let limit = request.limit.unwrap_or(u64::MAX).min(MAX_PAGE_ITEMS as u64);
        let mut budget = Budget::new(max_reply_bytes);
        let mut reply = KeysReply { position: self.state.position(), keys: Vec::new(), cursor: None };
        let after = request.cursor.as_deref().filter(|cursor| *cursor >= prefix);
        let mut statement =
            self.connection.prepare_cached(if after.is_some() { KEYS_AFTER } else { KEYS_FROM })?;
        let mut rows = statement.query([after.unwrap_or(prefix)])?;
        while let Some(row) = rows.next()? {
            let key: String = row.get(0)?;
            if !key.starts_with(prefix) {
                break;
            }
            // The first key goes in whatever the budget says: it is at most a kilobyte, and paging must go on.
            let full = size::of_key(&key) > budget.left && !reply.keys.is_empty();
            if full || reply.keys.len() as u64 >= limit {
                reply.cursor = reply.keys.last().cloned();
                break;
            }
            budget.left = budget.left.saturating_sub(size::of_key(&key));
            reply.keys.push(key);
        }
        Ok(reply)
    }

    /// The lowest and the highest seq that hold a message.
    ///
    /// # Errors
    /// That the file cannot be read.
    pub fn seq_range(&self) -> Result<Option<(Seq, Seq)>, ErrorReply> {
        let read = || -> Result<_, rusqlite::Error> {
            self.connection
                .prepare_cached("SELECT (SELECT MIN(seq) FROM messages), (SELECT MAX(seq) FROM messages)")?
                .query_row([], |row| Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?)))
        };
        let (first, last) = read().map_err(|error| self.unreadable(&error.into()))?;
        Ok(first.zip(last).map(|(first, last)| (Seq::new(from_sql(first)), Seq::new(from_sql(last)))))
    }

    pub(super) fn unreadable(&self, error: &DatabaseError) -> ErrorReply {
        let file = self.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        tracing::error!(path = %self.path.display(), %error, "a local file cannot be read");
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

enum Selected {
    None,
    /// With its value, unless that lies elsewhere.
    Message(Message),
    /// There is no room for the value, in no answer.
    WithoutValue(Message),
    NoRoom,
    NeverFits(Seq),
}

struct Page {
    messages: Vec<Message>,
    cursor: Option<Seq>,
    never_fits: Option<Seq>,
}

pub(super) fn check_limit(limit: Option<u64>) -> Result<(), ErrorReply> {
    if limit == Some(0) { Err(ErrorReply::bad_request("a page of nothing: the limit is 0")) } else { Ok(()) }
}

/// Reads one row as far as it fits: SQLite fetches a value only when its column is read.
fn read_row(row: &Row<'_>, budget: &mut Budget) -> Result<Selected, DatabaseError> {
    let mut message = read_message(row)?;
    let value_bytes =
        if message.value_omitted { 0 } else { usize::try_from(message.size).unwrap_or(usize::MAX / 2) };
    match budget.room(message.key.as_ref().map_or(0, String::len), value_bytes, &message.headers) {
        Room::Fits(bytes) => {
            budget.take(bytes);
            message.value = read_value(row)?;
            Ok(Selected::Message(message))
        }
        Room::OnlyWithoutValue(bytes) => {
            budget.take(bytes);
            message.value_omitted = true;
            Ok(Selected::WithoutValue(message))
        }
        Room::NotHere => Ok(Selected::NoRoom),
        Room::Never => Ok(Selected::NeverFits(message.seq)),
    }
}

/// Reads a row without its value. The value counts as left out when it is not in the file.
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
