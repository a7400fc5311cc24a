//! Reads of many messages or keys: the sources of their pages.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use dormouse_protocol::codec::DecodeError;
use dormouse_protocol::data::{GetAllReply, GetAllRequest, KeysReply, KeysRequest};
use dormouse_protocol::limits::MAX_PAGE_ITEMS;
use dormouse_protocol::{Message, Op, Seq, decode, encode};
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::call::StaticBody;
use crate::error::{Error, MalformedCause};
use crate::pages::{Page, PageSource, Pages};
use crate::range::SeqRange;
use crate::subject::Handle;

impl Handle {
    /// The messages of `range`; only those whose keys start with `key_prefix`.
    pub(crate) fn messages(&self, range: SeqRange, key_prefix: Option<String>) -> Pages<Message> {
        Pages::read(&self.inner.tasks, MessagePages { handle: self.clone(), range, key_prefix, next: None })
    }

    /// The keys that start with `prefix`.
    pub(crate) fn keys(&self, prefix: Option<String>) -> Pages<String> {
        Pages::read(&self.inner.tasks, KeyPages { handle: self.clone(), prefix, cursor: None })
    }
}

/// Reads messages in order of seq.
struct MessagePages {
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
struct KeyPages {
    handle: Handle,
    prefix: Option<String>,
    cursor: Option<String>,
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
