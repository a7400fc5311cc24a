//! Pages of messages and keys, read in slices. Between two slices the file is free for other reads, but must not change.

use dormouse_protocol::data::{
    ChangesReply, ChangesRequest, GetAllReply, GetAllRequest, GetReply, GetRequest, KeysReply, KeysRequest,
};
use dormouse_protocol::limits::{MAX_PAGE_ITEMS, MAX_SEQ};
use dormouse_protocol::{ErrorReply, Message, Position, Seq};
use rusqlite::params;

use super::changes::ChangesProgress;
use super::read::{
    GetProgress, KEYS_AFTER, KEYS_FROM, PAGE, PAGE_REVERSE, ReplyBudget, Selected, check_limit, read_row,
};
use super::slice::Slice;
use super::{Database, DatabaseError, from_sql, to_sql};
use crate::plan::{check_key, size};
use crate::request::{SubjectReply, SubjectRequest};

/// Maximum number of rows that one page scans. A filter that few messages pass must not hold back the changes of its
/// subject: the page ends early, even empty, with a cursor for the next page.
const MAX_SCANNED_ROWS: usize = 4_096;

/// A get of at most this many messages is answered without slices.
pub const DIRECT_GET_ITEMS: usize = 64;

/// A page of a reply, as far as it has been read. See [`Database::read_slice`].
#[derive(Debug)]
pub struct PageRead {
    progress: Progress,
    /// The position at the first slice.
    position: Option<Position>,
}

#[derive(Debug)]
enum Progress {
    Messages(GetAllRequest, MessagesProgress),
    Keys(KeysRequest, KeysProgress),
    Changes(ChangesRequest, Box<ChangesProgress>),
    Several(GetRequest, GetProgress),
}

impl PageRead {
    /// Whether the reply to `request` is read in slices.
    #[must_use]
    pub fn is_for(request: &SubjectRequest) -> bool {
        match request {
            SubjectRequest::GetAll(_) | SubjectRequest::Keys(_) | SubjectRequest::Changes(_) => true,
            SubjectRequest::Get(request) => items(request) > DIRECT_GET_ITEMS,
            _ => false,
        }
    }

    /// Begins a page. `None` if the reply to `request` [is not read in slices](Self::is_for).
    #[must_use]
    pub fn new(request: SubjectRequest, max_reply_bytes: usize) -> Option<Self> {
        if !Self::is_for(&request) {
            return None;
        }
        let progress = match request {
            SubjectRequest::GetAll(request) => {
                Progress::Messages(request, MessagesProgress::new(max_reply_bytes))
            }
            SubjectRequest::Keys(request) => Progress::Keys(request, KeysProgress::new(max_reply_bytes)),
            SubjectRequest::Changes(request) => {
                Progress::Changes(request, Box::new(ChangesProgress::new(max_reply_bytes)))
            }
            SubjectRequest::Get(request) => Progress::Several(request, GetProgress::new(max_reply_bytes)),
            _ => return None,
        };
        Some(Self { progress, position: None })
    }
}

fn items(request: &GetRequest) -> usize {
    request.keys.as_ref().map_or(0, Vec::len).max(request.seqs.as_ref().map_or(0, Vec::len))
}

#[derive(Debug)]
struct MessagesProgress {
    budget: ReplyBudget,
    messages: Vec<Message>,
    /// The seq at which the next slice begins; `None`: the first slice.
    next: Option<Seq>,
    scanned: usize,
}

impl MessagesProgress {
    fn new(max_reply_bytes: usize) -> Self {
        Self { budget: ReplyBudget::new(max_reply_bytes), messages: Vec::new(), next: None, scanned: 0 }
    }
}

/// Where a page ends.
enum PageEnd {
    /// The next slice continues it.
    NotYet,
    /// The next page begins at this seq.
    Cursor(Seq),
    /// The key and headers of this message fit no reply.
    NeverFits(Seq),
    /// There is no further message.
    Last,
}

#[derive(Debug)]
struct KeysProgress {
    budget: ReplyBudget,
    keys: Vec<String>,
    /// The last key that was read, also if its message is removed and only its row exists.
    last: Option<String>,
    /// Number of such rows.
    hidden: usize,
}

impl KeysProgress {
    fn new(max_reply_bytes: usize) -> Self {
        Self { budget: ReplyBudget::new(max_reply_bytes), keys: Vec::new(), last: None, hidden: 0 }
    }
}

impl Database {
    /// Reads one slice of a page. Returns the reply once the page is complete; `None`: another slice continues it.
    /// Between the slices of a page the state must stay the same.
    ///
    /// # Errors
    /// `bad_request` or `too_large` for a limit, key, prefix or cursor; `too_large` if the key and headers of the first
    /// message do not fit; the file cannot be read; or the state has changed.
    pub fn read_slice(
        &self,
        page: &mut PageRead,
        slice: &mut Slice,
    ) -> Result<Option<SubjectReply>, ErrorReply> {
        let position = self.state.position();
        if *page.position.get_or_insert(position) != position {
            return Err(ErrorReply::internal("the subject changed within a page"));
        }
        match &mut page.progress {
            Progress::Messages(request, progress) => {
                self.messages_slice(request, progress, slice).map(|reply| reply.map(SubjectReply::GetAll))
            }
            Progress::Keys(request, progress) => {
                self.keys_slice(request, progress, slice).map(|reply| reply.map(SubjectReply::Keys))
            }
            Progress::Changes(request, progress) => {
                check_limit(request.limit)?;
                let reply =
                    self.changes_slice(request, progress, slice).map_err(|error| self.unreadable(&error))?;
                Ok(reply.map(SubjectReply::Changes))
            }
            Progress::Several(request, progress) => {
                self.get_slice(request, progress, slice).map(|reply| reply.map(SubjectReply::Get))
            }
        }
    }

    /// Reads a whole page at once, in as many slices as it needs; `None` if the request is for no page.
    fn read_whole(&self, request: SubjectRequest, max_reply_bytes: usize) -> Option<PageResult> {
        let mut page = PageRead::new(request, max_reply_bytes)?;
        loop {
            match self.read_slice(&mut page, &mut Slice::new()) {
                Ok(None) => {}
                Ok(Some(reply)) => return Some(Ok(reply)),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Replies to a get_all with one page, read at once.
    ///
    /// # Errors
    /// As [`Database::read_slice`].
    pub fn get_all(
        &self,
        request: &GetAllRequest,
        max_reply_bytes: usize,
    ) -> Result<GetAllReply, ErrorReply> {
        match self.read_whole(SubjectRequest::GetAll(request.clone()), max_reply_bytes) {
            Some(Ok(SubjectReply::GetAll(reply))) => Ok(reply),
            other => Err(failure(other)),
        }
    }

    /// Replies to a keys request with one page, read at once.
    ///
    /// # Errors
    /// As [`Database::read_slice`].
    pub fn keys(&self, request: &KeysRequest, max_reply_bytes: usize) -> Result<KeysReply, ErrorReply> {
        match self.read_whole(SubjectRequest::Keys(request.clone()), max_reply_bytes) {
            Some(Ok(SubjectReply::Keys(reply))) => Ok(reply),
            other => Err(failure(other)),
        }
    }

    /// Answers a request for changes with one page, read at once. The changes of one rev are never split over pages. If
    /// an atomic batch is too large for a page, its last values are omitted and can be fetched by seq.
    ///
    /// # Errors
    /// As [`Database::read_slice`].
    pub fn changes(
        &self,
        request: &ChangesRequest,
        max_reply_bytes: usize,
    ) -> Result<ChangesReply, ErrorReply> {
        match self.read_whole(SubjectRequest::Changes(*request), max_reply_bytes) {
            Some(Ok(SubjectReply::Changes(reply))) => Ok(reply),
            other => Err(failure(other)),
        }
    }

    /// Replies to a get of any number of messages, read at once.
    ///
    /// # Errors
    /// As [`Database::read_slice`].
    pub(super) fn get_page(
        &self,
        request: &GetRequest,
        max_reply_bytes: usize,
    ) -> Result<GetReply, ErrorReply> {
        let mut progress = GetProgress::new(max_reply_bytes);
        loop {
            if let Some(reply) = self.get_slice(request, &mut progress, &mut Slice::new())? {
                return Ok(reply);
            }
        }
    }

    fn messages_slice(
        &self,
        request: &GetAllRequest,
        progress: &mut MessagesProgress,
        slice: &mut Slice,
    ) -> Result<Option<GetAllReply>, ErrorReply> {
        if let Some(prefix) = &request.key_prefix {
            check_key(prefix)?;
        }
        check_limit(request.limit)?;
        let end = self.scan_messages(request, progress, slice).map_err(|error| self.unreadable(&error))?;
        let cursor = match end {
            PageEnd::NotYet => return Ok(None),
            PageEnd::NeverFits(seq) if progress.messages.is_empty() => {
                return Err(Self::never_fits(seq, progress.budget));
            }
            PageEnd::Cursor(seq) | PageEnd::NeverFits(seq) => Some(seq),
            PageEnd::Last => None,
        };
        let messages = std::mem::take(&mut progress.messages);
        Ok(Some(GetAllReply { position: self.state.position(), messages, cursor }))
    }

    fn scan_messages(
        &self,
        request: &GetAllRequest,
        progress: &mut MessagesProgress,
        slice: &mut Slice,
    ) -> Result<PageEnd, DatabaseError> {
        let start = request.start_seq.unwrap_or_default().max(self.floor.next());
        let mut start = to_sql(start.get().min(MAX_SEQ + 1));
        let mut end = to_sql(request.end_seq.map_or(MAX_SEQ, Seq::get).min(MAX_SEQ + 1));
        if let Some(next) = progress.next {
            let bound = if request.reverse { &mut end } else { &mut start };
            *bound = to_sql(next.get());
        }
        let limit = request.limit.unwrap_or(u64::MAX).min(MAX_PAGE_ITEMS as u64);
        let sql = if request.reverse { PAGE_REVERSE } else { PAGE };
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query(params![start, end])?;
        while let Some(row) = rows.next()? {
            let seq = Seq::new(from_sql(row.get(0)?));
            if progress.messages.len() as u64 >= limit || progress.scanned >= MAX_SCANNED_ROWS {
                return Ok(PageEnd::Cursor(seq));
            }
            if slice.is_spent() {
                progress.next = Some(seq);
                return Ok(PageEnd::NotYet);
            }
            progress.scanned += 1;
            if let Some(prefix) = &request.key_prefix {
                let key = row.get_ref(3)?.as_str_or_null().map_err(rusqlite::Error::from)?;
                if !key.is_some_and(|key| key.starts_with(prefix.as_str())) {
                    slice.count(key.map_or(0, str::len));
                    continue;
                }
            }
            match read_row(row, &mut progress.budget)? {
                Selected::Message(message) | Selected::WithoutValue(message) => {
                    slice.count(size::of_message(&message));
                    progress.messages.push(message);
                }
                Selected::NeverFits(seq) => return Ok(PageEnd::NeverFits(seq)),
                Selected::NoRoom | Selected::None => return Ok(PageEnd::Cursor(seq)),
            }
        }
        Ok(PageEnd::Last)
    }

    fn keys_slice(
        &self,
        request: &KeysRequest,
        progress: &mut KeysProgress,
        slice: &mut Slice,
    ) -> Result<Option<KeysReply>, ErrorReply> {
        for key in [&request.prefix, &request.cursor].into_iter().flatten() {
            check_key(key)?;
        }
        check_limit(request.limit)?;
        let cursor =
            match self.scan_keys(request, progress, slice).map_err(|error| self.unreadable(&error))? {
                KeysEnd::NotYet => return Ok(None),
                KeysEnd::Cursor => progress.last.take(),
                KeysEnd::Last => None,
            };
        let keys = std::mem::take(&mut progress.keys);
        Ok(Some(KeysReply { position: self.state.position(), keys, cursor }))
    }

    fn scan_keys(
        &self,
        request: &KeysRequest,
        progress: &mut KeysProgress,
        slice: &mut Slice,
    ) -> Result<KeysEnd, DatabaseError> {
        let prefix = request.prefix.as_deref().unwrap_or("");
        let limit = request.limit.unwrap_or(u64::MAX).min(MAX_PAGE_ITEMS as u64);
        let after = progress.last.clone().or_else(|| request.cursor.clone());
        let after = after.as_deref().filter(|cursor| *cursor >= prefix);
        let mut statement =
            self.connection.prepare_cached(if after.is_some() { KEYS_AFTER } else { KEYS_FROM })?;
        let mut rows = statement.query([after.unwrap_or(prefix)])?;
        while let Some(row) = rows.next()? {
            let key: String = row.get(0)?;
            if !key.starts_with(prefix) {
                break;
            }
            if self.floor.hides(Seq::new(from_sql(row.get(1)?))) {
                if progress.hidden >= MAX_SCANNED_ROWS {
                    return Ok(KeysEnd::Cursor);
                }
                if slice.is_spent() {
                    return Ok(KeysEnd::NotYet);
                }
                slice.count(key.len());
                progress.hidden += 1;
                progress.last = Some(key);
                continue;
            }
            // The first key is included regardless of the budget: it is at most a kilobyte, and paging must
            // progress.
            let full = !progress.budget.holds(size::of_key(&key)) && !progress.keys.is_empty();
            if full || progress.keys.len() as u64 >= limit {
                return Ok(KeysEnd::Cursor);
            }
            if slice.is_spent() {
                return Ok(KeysEnd::NotYet);
            }
            slice.count(key.len());
            progress.budget.take_at_most(size::of_key(&key));
            progress.last = Some(key.clone());
            progress.keys.push(key);
        }
        Ok(KeysEnd::Last)
    }
}

/// Where a page of keys ends.
enum KeysEnd {
    NotYet,
    /// The next page begins after the last key.
    Cursor,
    Last,
}

type PageResult = Result<SubjectReply, ErrorReply>;

/// The error of a page that was read at once.
fn failure(result: Option<PageResult>) -> ErrorReply {
    match result {
        Some(Err(error)) => error,
        Some(Ok(_)) | None => ErrorReply::internal("a page of another kind"),
    }
}

#[cfg(test)]
mod tests;
