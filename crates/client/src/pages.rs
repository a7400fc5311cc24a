//! Long results as a sequence of pages: pulled, never blasted, with one or two pages ahead of the reader.

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

use crate::call::Fixed;
use crate::error::{Error, MalformedCause};
use crate::range::SeqRange;
use crate::subject::Handle;

/// The items of a long result, in order. While one page is being read the next is on its way, or there and the one after
/// it is, and no more than that: a reader that is slow makes the pages wait at the server. Of keys, and close to a limit,
/// one page at a time is on its way.
///
/// Each page shows the subject as it was when that page was read, not as it was when the reading began. After an
/// error the sequence ends. Dropping it abandons what is in flight.
///
/// A value that does not fit on a page is fetched on its own; one that no answer carries stays away, and its message
/// has `value_omitted` set. A message that is gone by then is left out. If another has taken its key, that one comes
/// where it belongs when reading upwards, and in the place of the old one when reading in reverse, beyond the range's
/// end if need be, so that no key which exists all the time is missed.
///
/// It is a [`futures::Stream`]; [`next`](Self::next) and [`all`](Self::all) do without that trait.
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
    /// What it was read from; `None` where there is no such thing.
    pub(crate) position: Option<Position>,
}

/// Where pages come from.
pub(crate) trait Source<T>: Send + 'static {
    /// Reads the next page. Not called again after the last one or an error.
    fn next_page(&mut self) -> impl Future<Output = Result<Page<T>, Error>> + Send;
}

impl<T: Send + 'static> Pages<T> {
    pub(crate) fn read(tasks: &Tasks, source: impl Source<T>) -> Self {
        // One place, reserved before the source goes on: one page ahead of the reader, and what the source has asked for.
        let (sender, pages) = mpsc::channel(1);
        let stop = tasks.stop().clone();
        tasks.spawn("pages", async move {
            tokio::select! {
                biased;
                () = stop.given() => {}
                () = sender.closed() => {}
                () = read_ahead(source, &sender) => {}
            }
        });
        let items = Vec::new().into_iter();
        Self { pages, items, ended: false, first_position: None, page_position: None }
    }

    /// The state of the subject that the first page was read from, once that page has come: after the first
    /// [`next`](Self::next). What this sequence shows, and then the [`changes`](crate::Kv::changes) after this position,
    /// give the state, whatever was written meanwhile.
    ///
    /// `None` where nothing had to be asked, and for pages that are not of a subject.
    #[must_use]
    pub const fn position(&self) -> Option<Position> {
        self.first_position
    }

    /// The state of the subject that the newest item was read from, or the empty page after the last.
    #[must_use]
    pub const fn page_position(&self) -> Option<Position> {
        self.page_position
    }

    /// The next item; `None` after the last. Cancelling the wait loses no item.
    ///
    /// # Errors
    /// What reading the next page came to, see the call that began it; [`Error::Closed`] when the client was closed
    /// before the last page. The sequence ends with it.
    pub async fn next(&mut self) -> Option<Result<T, Error>> {
        std::future::poll_fn(|cx| self.poll_item(cx)).await
    }

    /// All items that are left. Cancelling the call loses what was read so far.
    ///
    /// # Errors
    /// As [`next`](Self::next).
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
                // The reading was stopped short of the last page: silence would look like the end.
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

async fn read_ahead<T>(mut source: impl Source<T>, pages: &mpsc::Sender<Result<Page<T>, Error>>) {
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
    /// The page after the last one, where it has been asked for.
    next: Option<oneshot::Receiver<Result<Unread, Error>>>,
}

/// A page as it came. Where the one after it begins is known before the messages are read, so that the server reads that
/// one meanwhile.
struct Unread {
    cursor: Option<Seq>,
    reply: Bytes,
}

impl Unread {
    fn new(reply: &Bytes) -> Result<Self, DecodeError> {
        #[derive(Deserialize)]
        struct End {
            #[serde(default)]
            cursor: Option<Seq>,
        }
        let End { cursor } = decode(reply)?;
        Ok(Self { cursor, reply: reply.clone() })
    }
}

impl Source<Message> for MessagePages {
    async fn next_page(&mut self) -> Result<Page<Message>, Error> {
        if self.range.is_empty() {
            return Ok(Page { items: Vec::new(), last: true, position: None });
        }
        let asked = match self.next.take() {
            // What could not be had ahead of time is asked for when it is due.
            Some(asked) => asked.await.ok().and_then(Result::ok),
            None => None,
        };
        let Unread { cursor, reply } = match asked {
            Some(page) => page,
            None => self.ask().await?,
        };
        if let Some(cursor) = cursor {
            self.advance(cursor)?;
        }
        let mut last = cursor.is_none() || self.range.is_empty();
        // How many messages of this page count is known only once they have been read; the next may be a whole one still.
        let is_next_whole = self.range.limit.is_none_or(|limit| limit >= 2 * MAX_PAGE_ITEMS as u64);
        if !last && is_next_whole {
            self.ask_ahead();
            // It leaves before this page is read, on a runtime with one thread too.
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
            // What has the key by now has a higher seq. A page that was read before does not show it, and it may stand
            // behind what was the last one.
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

    /// Asks for the page that begins where the range does.
    fn ask(&self) -> impl Future<Output = Result<Unread, Error>> + Send + use<> {
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
            let content = Fixed(encode(&request).expect("a request encodes"));
            let Handle { inner, subject, deadline, .. } = &handle;
            inner.call_with(subject, Op::GetAll, &content, *deadline, Unread::new).await
        }
    }

    /// Begins to ask for it beside whoever reads the page before; nobody waits for it yet.
    fn ask_ahead(&mut self) {
        let (mut sender, page) = oneshot::channel();
        let (ask, stop) = (self.ask(), self.handle.inner.tasks.stop().clone());
        self.handle.inner.tasks.spawn("page", async move {
            tokio::select! {
                biased;
                () = stop.given() => {}
                () = sender.closed() => {}
                page = ask => drop(sender.send(page)),
            }
        });
        self.next = Some(page);
    }

    /// Fetches a value that was left out. What replaced the message under its key meanwhile has a higher seq: read
    /// upwards, it is still to come, read downwards, its place has been passed.
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

impl Source<String> for KeyPages {
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
