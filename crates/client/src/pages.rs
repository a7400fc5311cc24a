//! Long results as a sequence of pages, pulled by the client, one or two pages ahead of the reader.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::vec;

use bytes::Bytes;
use dormouse_protocol::codec::DecodeError;
use dormouse_protocol::data::{GetAllReply, GetAllRequest, KeysReply, KeysRequest};
use dormouse_protocol::limits::MAX_PAGE_ITEMS;
use dormouse_protocol::{Message, Op, Position, Seq, decode, encode};
use dormouse_runtime::Tasks;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use crate::call::StaticBody;
use crate::error::{Error, MalformedCause};
use crate::range::SeqRange;
use crate::subject::Handle;

/// The items of a long result, in order. While the application reads one page, the client requests the next
/// one, and at most the one after it. If the reader is slow, the pages stay at the server. For keys, and
/// close to a limit, the client requests one page at a time.
///
/// Each page shows the subject at the time when that page was read, which may be after the start of the
/// sequence. After an error the sequence ends. Dropping it abandons requests in flight.
///
/// A value that does not fit on a page is fetched separately. If no reply can carry it, it is omitted, and
/// its message has `value_omitted` set. A message that was removed by then is left out. If another message
/// has replaced it under its key, that message is returned instead: at its own position when reading upwards,
/// and at the position of the old message when reading in reverse, even beyond the end of the range. So no
/// key is missed that exists during the whole read.
///
/// It is a [`futures::Stream`]; [`next`](Self::next) and [`all`](Self::all) work without that trait.
#[derive(Debug)]
pub struct Pages<T> {
    pages: mpsc::Receiver<Result<Page<T>, Error>>,
    items: vec::IntoIter<T>,
    ended: bool,
    first_position: Option<Position>,
    page_position: Option<Position>,
}

#[derive(Debug)]
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    pub(crate) last: bool,
    /// The position at which it was read; `None` if it has none.
    pub(crate) position: Option<Position>,
}

/// A source of pages.
pub(crate) trait PageSource<T>: Send + 'static {
    /// Reads the next page. Not called again after the last one or an error.
    fn next_page(&mut self) -> impl Future<Output = Result<Page<T>, Error>> + Send;
}

impl<T: Send + 'static> Pages<T> {
    pub(crate) fn read(tasks: &Tasks, source: impl PageSource<T>) -> Self {
        // Capacity 1, reserved before the source continues: one page ahead of the reader, and the one being
        // requested.
        let (sender, pages) = mpsc::channel(1);
        let stop = tasks.stop().clone();
        tasks.spawn("pages", async move {
            tokio::select! {
                biased;
                () = stop.requested() => {}
                () = sender.closed() => {}
                () = read_ahead(source, &sender) => {}
            }
        });
        let items = Vec::new().into_iter();
        Self { pages, items, ended: false, first_position: None, page_position: None }
    }

    /// The position of the subject at which the first page was read. It is set once that page has arrived:
    /// after the first [`next`](Self::next). The items of this sequence and then the
    /// [`changes`](crate::Kv::changes) after this position together give the current state, regardless of
    /// concurrent writes.
    ///
    /// `None` if no request was needed, and for pages that are not about a subject.
    #[must_use]
    pub const fn position(&self) -> Option<Position> {
        self.first_position
    }

    /// The position at which the page of the newest item was read, or the last page if it is empty.
    #[must_use]
    pub const fn page_position(&self) -> Option<Position> {
        self.page_position
    }

    /// The next item; `None` after the last. Cancelling the wait loses no item.
    ///
    /// # Errors
    /// The error of reading the next page, see the call that made the sequence; [`Error::Closed`] if the
    /// client was closed before the last page. The sequence ends with the error.
    pub async fn next(&mut self) -> Option<Result<T, Error>> {
        std::future::poll_fn(|cx| self.poll_item(cx)).await
    }

    /// All remaining items. If the call is cancelled, the items that were read so far are lost.
    ///
    /// # Errors
    /// Those of [`next`](Self::next).
    pub async fn all(mut self) -> Result<Vec<T>, Error> {
        let mut items = Vec::new();
        while let Some(item) = self.next().await {
            items.push(item?);
        }
        Ok(items)
    }

    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, Error>>> {
        loop {
            if let Some(item) = self.items.next() {
                return Poll::Ready(Some(Ok(item)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match std::task::ready!(self.pages.poll_recv(cx)) {
                Some(Ok(page)) => {
                    self.ended = page.last;
                    self.first_position = self.first_position.or(page.position);
                    self.page_position = page.position;
                    self.items = page.items.into_iter();
                }
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
                // Reading stopped before the last page: without an error, this would look like the end.
                None => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(Error::Closed)));
                }
            }
        }
    }
}

impl<T: Send + Unpin + 'static> futures::Stream for Pages<T> {
    type Item = Result<T, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_item(cx)
    }
}

async fn read_ahead<T>(mut source: impl PageSource<T>, pages: &mpsc::Sender<Result<Page<T>, Error>>) {
    while let Ok(slot) = pages.reserve().await {
        let page = source.next_page().await;
        let ended = page.as_ref().map_or(true, |page| page.last);
        slot.send(page);
        if ended {
            return;
        }
    }
}

/// Reads messages in order of seq.
pub(crate) struct MessagePages {
    handle: Handle,
    range: SeqRange,
    key_prefix: Option<String>,
    /// The page after the last one, if it was requested already.
    next: Option<oneshot::Receiver<Result<UndecodedPage, Error>>>,
}

/// A page as received. Its cursor is known before the messages are decoded, so the server can read the next
/// page meanwhile.
struct UndecodedPage {
    cursor: Option<Seq>,
    reply: Bytes,
}

impl UndecodedPage {
    fn new(reply: &Bytes) -> Result<Self, DecodeError> {
        #[derive(Deserialize)]
        struct PageEnd {
            #[serde(default)]
            cursor: Option<Seq>,
        }
        let PageEnd { cursor } = decode(reply)?;
        Ok(Self { cursor, reply: reply.clone() })
    }
}

impl PageSource<Message> for MessagePages {
    async fn next_page(&mut self) -> Result<Page<Message>, Error> {
        if self.range.is_empty() {
            return Ok(Page { items: Vec::new(), last: true, position: None });
        }
        let asked = match self.next.take() {
            // If the early request failed, the page is requested again now.
            Some(asked) => asked.await.ok().and_then(Result::ok),
            None => None,
        };
        let UndecodedPage { cursor, reply } = match asked {
            Some(page) => page,
            None => self.ask().await?,
        };
        if let Some(cursor) = cursor {
            self.advance(cursor)?;
        }
        let mut last = cursor.is_none() || self.range.is_empty();
        // How many messages of this page count is known only after they were read; the next page may still be
        // full.
        let is_next_whole = self.range.limit.is_none_or(|limit| limit >= 2 * MAX_PAGE_ITEMS as u64);
        if !last && is_next_whole {
            self.ask_ahead();
            // The request is sent before this page is read, also on a runtime with one thread.
            tokio::task::yield_now().await;
        }
        let reply: GetAllReply = decode(&reply)
            .map_err(|error| Error::Malformed { cause: MalformedCause::Decode(Arc::new(error)) })?;
        let highest = reply.messages.last().map(|message| message.seq);
        let mut items = Vec::with_capacity(reply.messages.len());
        let mut is_short = false;
        for message in reply.messages {
            match self.complete(message).await? {
                Some(message) => items.push(message),
                None => is_short = !self.range.reverse,
            }
        }
        if is_short {
            // The message that has the key by now has a higher seq. A page that was read earlier does not
            // contain it, and its seq may be after the page that was the last one.
            self.next = None;
            if let (None, Some(highest)) = (cursor, highest) {
                self.advance(highest.next())?;
                last = self.range.is_empty();
            }
        }
        if let Some(limit) = &mut self.range.limit {
            *limit = limit.saturating_sub(items.len() as u64);
            last |= self.range.is_empty();
        }
        Ok(Page { items, last, position: Some(reply.position) })
    }
}

impl MessagePages {
    pub(crate) const fn new(handle: Handle, range: SeqRange, key_prefix: Option<String>) -> Self {
        Self { handle, range, key_prefix, next: None }
    }

    /// Requests the page at the start of the range.
    fn ask(&self) -> impl Future<Output = Result<UndecodedPage, Error>> + Send + use<> {
        let request = GetAllRequest {
            start_seq: self.range.start,
            end_seq: self.range.end,
            key_prefix: self.key_prefix.clone(),
            reverse: self.range.reverse,
            limit: self.range.limit.map(|limit| limit.min(MAX_PAGE_ITEMS as u64)),
            ..GetAllRequest::default()
        };
        let handle = self.handle.clone();
        async move {
            // The requests of the protocol are maps of plain fields, which always encode.
            let content = StaticBody(encode(&request).expect("a request encodes"));
            let Handle { inner, subject, deadline, .. } = &handle;
            inner.call_with(subject, Op::GetAll, &content, *deadline, UndecodedPage::new).await
        }
    }

    /// Requests the next page in a task, while the previous one is read.
    fn ask_ahead(&mut self) {
        let (mut sender, page) = oneshot::channel();
        let (ask, stop) = (self.ask(), self.handle.inner.tasks.stop().clone());
        self.handle.inner.tasks.spawn("page", async move {
            tokio::select! {
                biased;
                () = stop.requested() => {}
                () = sender.closed() => {}
                page = ask => drop(sender.send(page)),
            }
        });
        self.next = Some(page);
    }

    /// Fetches an omitted value. A message that has replaced it under its key has a higher seq: when reading
    /// upwards, it still follows; when reading downwards, its position was passed already.
    async fn complete(&self, message: Message) -> Result<Option<Message>, Error> {
        if self.range.reverse {
            self.handle.complete_or_newer(message).await
        } else {
            self.handle.complete(message).await
        }
    }

    fn advance(&mut self, cursor: Seq) -> Result<(), Error> {
        let ahead = if self.range.reverse {
            self.range.end.is_none_or(|end| cursor < end)
        } else {
            self.range.start.is_none_or(|start| cursor > start)
        };
        if !ahead {
            return Err(Error::Malformed { cause: MalformedCause::StuckCursor });
        }
        if self.range.reverse {
            self.range.end = Some(cursor);
        } else {
            self.range.start = Some(cursor);
        }
        Ok(())
    }
}

/// Reads keys in ascending order.
pub(crate) struct KeyPages {
    pub(crate) handle: Handle,
    pub(crate) prefix: Option<String>,
    pub(crate) cursor: Option<String>,
}

impl PageSource<String> for KeyPages {
    async fn next_page(&mut self) -> Result<Page<String>, Error> {
        let request = KeysRequest {
            prefix: self.prefix.clone(),
            cursor: self.cursor.clone(),
            ..KeysRequest::default()
        };
        let reply: KeysReply = self.handle.call(Op::Keys, &request).await?;
        let last = reply.cursor.is_none();
        if !last && reply.cursor <= self.cursor {
            return Err(Error::Malformed { cause: MalformedCause::StuckCursor });
        }
        self.cursor = reply.cursor;
        Ok(Page { items: reply.keys, last, position: Some(reply.position) })
    }
}
