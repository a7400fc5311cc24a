//! Reads: single messages, and pages bounded in bytes and number.

use bytes::Bytes;
use dormouse_protocol::data::{GetAllReply, GetAllRequest, GetReply, GetRequest, KeysReply, KeysRequest};
use dormouse_protocol::limits::{ENVELOPE_BYTES, MAX_PAGE_ITEMS, MAX_SEQ};
use dormouse_protocol::{ErrorReply, Headers, Message, Rev, Seq, Term, Timestamp};
use rusqlite::{Row, params};

use super::{Database, DatabaseError, from_sql, to_sql};
use crate::plan::{check_items, check_key, size};

/// Maximum number of rows that one page scans. A filter that few messages pass must not block the subject:
/// the page ends early, even empty, with a cursor for the next page.
const MAX_SCANNED_ROWS: usize = 20_000;

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
struct ReplyBudget {
    whole: usize,
    left: usize,
}

impl ReplyBudget {
    fn new(max_reply_bytes: usize) -> Self {
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

    fn get_several<'a>(
        &self,
        selectors: impl Iterator<Item = Selector<'a>>,
        max_reply_bytes: usize,
    ) -> Result<GetReply, ErrorReply> {
        let mut budget = ReplyBudget::new(max_reply_bytes);
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

    fn never_fits(&self, seq: Seq, budget: ReplyBudget) -> ErrorReply {
        let mut error = ErrorReply::too_large("max_reply_bytes", budget.whole + 1, budget.whole);
        error.message = format!("{}: key and headers of {seq} alone do not fit", error.message);
        error
    }

    fn select(&self, selector: Selector<'_>, budget: &mut ReplyBudget) -> Result<Selected, ErrorReply> {
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

    /// Replies to a get_all with one page.
    ///
    /// # Errors
    /// `too_large` if the key and headers of the first message do not fit; or the file cannot be read.
    pub fn get_all(
        &self,
        request: &GetAllRequest,
        max_reply_bytes: usize,
    ) -> Result<GetAllReply, ErrorReply> {
        if let Some(prefix) = &request.key_prefix {
            check_key(prefix)?;
        }
        check_limit(request.limit)?;
        let mut budget = ReplyBudget::new(max_reply_bytes);
        let page = self.page(request, &mut budget).map_err(|error| self.unreadable(&error))?;
        if let Some(seq) = page.never_fits.filter(|_| page.messages.is_empty()) {
            return Err(self.never_fits(seq, budget));
        }
        Ok(GetAllReply { position: self.state.position(), messages: page.messages, cursor: page.cursor })
    }

    fn page(&self, request: &GetAllRequest, budget: &mut ReplyBudget) -> Result<PageBuilder, DatabaseError> {
        let start = to_sql(request.start_seq.map_or(0, Seq::get).min(MAX_SEQ + 1));
        let end = to_sql(request.end_seq.map_or(MAX_SEQ, Seq::get).min(MAX_SEQ + 1));
        let limit = request.limit.unwrap_or(u64::MAX).min(MAX_PAGE_ITEMS as u64);
        let sql = if request.reverse { PAGE_REVERSE } else { PAGE };
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query(params![start, end])?;
        let mut page = PageBuilder { messages: Vec::new(), cursor: None, never_fits: None };
        let mut scanned = 0;
        while let Some(row) = rows.next()? {
            let seq = Seq::new(from_sql(row.get(0)?));
            if page.messages.len() as u64 >= limit || scanned >= MAX_SCANNED_ROWS {
                page.cursor = Some(seq);
                break;
            }
            scanned += 1;
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

    /// Replies to a keys request with one page.
    ///
    /// # Errors
    /// `too_large` for a prefix or cursor that is too long; or the file cannot be read.
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
        let mut budget = ReplyBudget::new(max_reply_bytes);
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
            // The first key is included regardless of the budget: it is at most a kilobyte, and paging must
            // progress.
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

    /// The lowest and the highest seq with a message.
    ///
    /// # Errors
    /// The file cannot be read.
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

enum Selected {
    None,
    /// With its value, unless the value is in a blob.
    Message(Message),
    /// The value fits no reply.
    WithoutValue(Message),
    NoRoom,
    NeverFits(Seq),
}

struct PageBuilder {
    messages: Vec<Message>,
    cursor: Option<Seq>,
    never_fits: Option<Seq>,
}

pub(super) fn check_limit(limit: Option<u64>) -> Result<(), ErrorReply> {
    if limit == Some(0) { Err(ErrorReply::bad_request("the limit of a page is at least 1")) } else { Ok(()) }
}

/// Reads as much of one row as fits: SQLite fetches a value only when its column is read.
fn read_row(row: &Row<'_>, budget: &mut ReplyBudget) -> Result<Selected, DatabaseError> {
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
